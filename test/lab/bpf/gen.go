// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the lab's kernel programs, which cut, lose and delay packets at the ports of a
// fabric, and the Go mirrors of the C structs they share with package lab. Nothing but this file is
// written by hand; run make generate.
package bpf

//go:generate go tool bpf2go -target bpfel -go-package bpf -type port -type fabric -type counters Port port.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
