/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

//go:build ignore

#include "refill.h"

SEC("xdp.frags")
int empty_xdp(struct xdp_md *xdp)
{
	return XDP_PASS;
}

SEC("xdp.frags")
int refill_xdp(struct xdp_md *xdp)
{
	refill_packet((void *)(long)xdp->data, (void *)(long)xdp->data_end);
	bpf_tail_call(xdp, &measured, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
