/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Test-run repeats a program on the packet as the last run left it. The refill program puts the
 * fields back that a run reads and changes, then tail-calls the program; what it costs itself is
 * measured with an empty program in that place. A field is written at least as wide as the program
 * reads it, so that the processor forwards the store.
 */
#ifndef PLAIT_COST_REFILL_H
#define PLAIT_COST_REFILL_H

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_helpers.h>

#include "types.h"

#define REFILL_FRAMES 16384

/* What to put back. */
#define REFILL_HOP 1	   /* hop limit */
#define REFILL_ADDRESSES 2 /* locators or identities */
#define REFILL_PROBE 4	   /* what differs between rounds and paths */
#define REFILL_REFLECTED 8 /* whatever else a reflection changes, and the rate limit's count */

struct refill {
	__u64 round;
	__u64 tag;
	__u64 reflector_epoch;
	__u64 auth; /* the first word of the authentication section */
	__u32 source[4];
	__u32 dest[4];
	__u32 my_discr;
	__u32 your_discr;
	__u32 path;
	__u32 head; /* the first word of the BFD packet */
	__u16 hop;  /* with the protocol that shares its word */
	__u16 udp_source;
	__u16 udp_dest;
	__u16 udp_check;
};

_Static_assert(sizeof(struct refill) == 88, "struct refill is shared with user space");

/* What the next runs find. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, REFILL_FRAMES);
	__type(key, __u32);
	__type(value, struct refill);
} frames SEC(".maps");

/* plait's own map. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct path_state);
} path_states SEC(".maps");

/* 0 -> the program to measure. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} measured SEC(".maps");

const volatile __u32 refill_what;
const volatile __u32 refill_ipv6;

__u32 refill_next;  /* index of the next frame */
__u32 refill_count; /* of frames in use */

static __always_inline void refill_words(__u32 *to, const __u32 *from, int n)
{
	for (int i = 0; i < n; i++)
		*(volatile __u32 *)(to + i) = from[i];
}

static __always_inline void refill_packet(void *data, void *data_end)
{
	__u32 l3 = ETH_HLEN, l4 = l3 + (refill_ipv6 ? 40 : 20), probe = l4 + 8, i = refill_next;
	struct refill *f = bpf_map_lookup_elem(&frames, &i);

	refill_next = i + 1 < refill_count ? i + 1 : 0;
	if (!f)
		return;
	if (refill_what & REFILL_HOP) {
		__u32 off = l3 + (refill_ipv6 ? 6 : 8);

		if (data + off + 2 > data_end)
			return;
		*(volatile __u16 *)(data + off) = f->hop;
	}
	if (refill_what & REFILL_ADDRESSES) {
		if (data + l4 > data_end)
			return;
		if (refill_ipv6) {
			refill_words(data + l3 + 8, f->source, 4);
			refill_words(data + l3 + 24, f->dest, 4);
		} else {
			refill_words(data + l3 + 12, f->source, 1);
			refill_words(data + l3 + 16, f->dest, 1);
		}
	}
	if (refill_what & REFILL_PROBE) {
		if (data + probe + 64 > data_end)
			return;
		*(volatile __u32 *)(data + probe + 4) = f->my_discr;
		*(volatile __u32 *)(data + probe + 8) = f->your_discr;
		*(volatile __u64 *)(data + probe + 24) = f->auth;
		*(volatile __u64 *)(data + probe + 40) = f->round;
		*(volatile __u64 *)(data + probe + 56) = f->tag;
	}
	if (refill_what & REFILL_REFLECTED) {
		struct path_state *ps = bpf_map_lookup_elem(&path_states, &f->path);

		if (ps)
			*(volatile __u32 *)&ps->rate_count = 0;
		if (data + probe + 64 > data_end)
			return;
		*(volatile __u16 *)(data + l4) = f->udp_source;
		*(volatile __u16 *)(data + l4 + 2) = f->udp_dest;
		*(volatile __u16 *)(data + l4 + 6) = f->udp_check;
		*(volatile __u32 *)(data + probe) = f->head;
		*(volatile __u64 *)(data + probe + 48) = f->reflector_epoch;
	}
}

#endif
