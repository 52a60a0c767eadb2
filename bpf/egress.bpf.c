/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

//go:build ignore

#include "egress.h"

SEC("tc")
int plait_egress(struct __sk_buff *skb)
{
	return egress(skb);
}

/* The far end of plait0: what gets here was not meant to leave. */
SEC("tc")
int plait_far_end(struct __sk_buff *skb)
{
	count(R_EGRESS_FAR_END);
	return HOOK_DROP;
}

/* Types that Go needs and no map shows. */
const struct event *unused_event __attribute__((unused));
const struct probe *unused_probe __attribute__((unused));
enum reason unused_reason __attribute__((unused));
enum event_kind unused_event_kind __attribute__((unused));
enum lost_reason unused_lost_reason __attribute__((unused));
enum group_cap unused_group_cap __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";
