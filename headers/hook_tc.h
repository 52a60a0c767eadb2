/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between hooks, for tcx. The XDP counterpart is hook_xdp.h. */
#ifndef PLAIT_HOOK_TC_H
#define PLAIT_HOOK_TC_H

#include "bpf.h"
#include "csum.h"

typedef struct __sk_buff hook_ctx;

#define HOOK_PASS PLAIT_TCX_NEXT /* never TCX_PASS: it would end the chain of other programs */
#define HOOK_DROP PLAIT_TCX_DROP
#define HOOK_PULL 256 /* covers an ICMP error with its quoted headers */

static __always_inline void *hook_data(hook_ctx *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *hook_data_end(hook_ctx *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline __u32 hook_len(hook_ctx *ctx)
{
	return ctx->len;
}

static __always_inline __u32 hook_segments(hook_ctx *ctx)
{
	return ctx->gso_segs ?: 1;
}

/* A tag that the NIC stripped lies here, not in the frame. */
static __always_inline int hook_vlan(hook_ctx *ctx)
{
	return ctx->vlan_present;
}

/* Makes the headers linear. Returns 1 if there is more to see than before. */
static __always_inline int hook_pull(hook_ctx *ctx)
{
	__u32 linear = ctx->data_end - ctx->data;

	if (linear >= HOOK_PULL || ctx->len <= linear)
		return 0;
	return !bpf_skb_pull_data(ctx, ctx->len < HOOK_PULL ? ctx->len : HOOK_PULL);
}

/*
 * Adjusts a transport checksum for a change of the pseudo-header. Must come after all direct
 * writes: it invalidates packet pointers. The helper alone knows whether the field holds a
 * complete checksum or, with CHECKSUM_PARTIAL, the pseudo-header's sum.
 */
static __always_inline int hook_l4_csum(hook_ctx *ctx, __u32 off, __u32 diff, int udp)
{
	return bpf_l4_csum_replace(ctx, off, 0, diff,
				   BPF_F_PSEUDO_HDR | (udp ? BPF_F_MARK_MANGLED_0 : 0));
}

/*
 * IPv6 has no header checksum that would cancel the change of its header, so with
 * CHECKSUM_COMPLETE the NIC's sum must follow it. (The flag BPF_F_IPV6 of newer kernels would do
 * half of this, and only there.)
 */
static __always_inline void hook_csum_complete(hook_ctx *ctx, __u32 diff)
{
	bpf_csum_update(ctx, diff);
}

/* Sends the frame back out of the interface it came in by. */
static __always_inline int hook_bounce(hook_ctx *ctx)
{
	return bpf_redirect(ctx->ifindex, 0);
}

#endif
