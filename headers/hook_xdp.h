/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between hooks, for native XDP. The tcx counterpart is hook_tc.h. */
#ifndef PLAIT_HOOK_XDP_H
#define PLAIT_HOOK_XDP_H

#include "bpf.h"
#include "csum.h"
#include "parse.h"

typedef struct xdp_md hook_ctx;

#define HOOK_PASS XDP_PASS
#define HOOK_DROP XDP_DROP

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
	return bpf_xdp_get_buff_len(ctx);
}

static __always_inline __u32 hook_segments(hook_ctx *ctx)
{
	return 1;
}

/* A tag in the frame shows as another ethertype. */
static __always_inline int hook_vlan(hook_ctx *ctx)
{
	return 0;
}

static __always_inline int hook_pull(hook_ctx *ctx)
{
	return 0;
}

/* Off the wire a checksum is always complete. */
static __always_inline int hook_l4_csum(hook_ctx *ctx, __u32 off, __u32 diff, int udp)
{
	void *data = hook_data(ctx), *data_end = hook_data_end(ctx);
	__u16 *check = data + (off & 0x1ff);
	__u16 sum;

	if ((void *)(check + 1) > data_end)
		return -1;
	if (udp && !*check)
		return 0; /* sent without one */
	sum = csum_apply(*check, diff);
	*check = udp && !sum ? 0xffff : sum;
	return 0;
}

static __always_inline void hook_csum_complete(hook_ctx *ctx, __u32 diff)
{
}

static __always_inline int hook_bounce(hook_ctx *ctx)
{
	return XDP_TX;
}

#endif
