// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs around the measured ones, and the Go mirrors of the C structs they
// share with package cost. Nothing but this file is written by hand; run make generate.
package bpf

//go:generate go tool bpf2go -target bpfel -go-package bpf -type refill RefillTC refill_tc.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../../../headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel -go-package bpf -no-global-types RefillXDP refill_xdp.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../../../headers -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
