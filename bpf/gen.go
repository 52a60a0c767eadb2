// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the compiled kernel programs and the Go mirrors of the C structs they share
// with user space. Nothing here is written by hand; run make generate.
package bpf

//go:generate go tool bpf2go -target bpfel -go-package bpf -type group -type group_state -type path -type path_state -type path_keys -type path_stats -type settings -type native_ports -type identity_key -type pair4_key -type pair6_key -type event -type probe Egress egress.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel -go-package bpf -no-global-types IngressTC ingress_tc.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel -go-package bpf -no-global-types IngressXDP ingress_xdp.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
