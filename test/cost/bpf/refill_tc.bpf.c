/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

//go:build ignore

#include "refill.h"

SEC("tc")
int empty_tc(struct __sk_buff *skb)
{
	return -1; /* TCX_NEXT */
}

SEC("tc")
int refill_tc(struct __sk_buff *skb)
{
	refill_packet((void *)(long)skb->data, (void *)(long)skb->data_end);
	bpf_tail_call(skb, &measured, 0);
	return -1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
