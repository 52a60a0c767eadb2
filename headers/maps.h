/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps. All are created once, pinned, and shared by every program; sizes marked "load" are set
 * by the loader. Array maps that the agent shares with the programs word by word are mmapable.
 */
#ifndef PLAIT_MAPS_H
#define PLAIT_MAPS_H

#include "bpf.h"
#include "types.h"

/* peer identity -> group index. Written by the agent; an entry lives as long as the peer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* load */
	__type(key, struct identity_key);
	__type(value, __u32);
} identities SEC(".maps");

/* (our locator, peer's locator) -> path index, IPv4. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* load */
	__type(key, struct pair4_key);
	__type(value, __u32);
} pairs4 SEC(".maps");

/* The same for IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* load */
	__type(key, struct pair6_key);
	__type(value, __u32);
} pairs6 SEC(".maps");

/* group index -> buckets and range of paths. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct group);
} groups SEC(".maps");

/* group index -> liveness. Written by both, see struct group_state. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct group_state);
} group_states SEC(".maps");

/* path index -> addresses and next hop. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct path);
} paths SEC(".maps");

/* path index -> liveness. Written by both, see struct path_state. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct path_state);
} path_states SEC(".maps");

/* path index -> SipHash keys. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct path_keys);
} path_key_sets SEC(".maps");

/* path index -> traffic. Written by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* load */
	__type(key, __u32);
	__type(value, struct path_stats);
} path_traffic SEC(".maps");

/* path and kind of tag, modulo its size -> begun SipHash. Written by the programs. */
#define TAG_PREFIXES 1024
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAG_PREFIXES);
	__type(key, __u32);
	__type(value, struct tag_prefix);
} tag_prefixes SEC(".maps");

/* enum reason -> packets. Written by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, R_MAX);
	__type(key, __u32);
	__type(value, __u64);
} reasons SEC(".maps");

/* 0 -> settings. Written by the agent; events_lost by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings_map SEC(".maps");

/* 0 -> native ports. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct native_ports);
} native SEC(".maps");

/* Transitions for the agent, struct event. Kept while no agent reads; then the newest are lost. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

static __always_inline void count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&reasons, &reason);

	if (n)
		(*n)++;
}

static __always_inline struct settings *settings_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings_map, &zero);
}

static __always_inline int is_native(__u8 proto, __u16 sport, __u16 dport)
{
	__u32 zero = 0;
	struct native_ports *n = bpf_map_lookup_elem(&native, &zero);

	if (!n)
		return 0;
	if (proto == IPPROTO_TCP)
		return (n->tcp[sport >> 6] >> (sport & 63) | n->tcp[dport >> 6] >> (dport & 63)) &
		       1;
	if (proto == IPPROTO_UDP)
		return (n->udp[sport >> 6] >> (sport & 63) | n->udp[dport >> 6] >> (dport & 63)) &
		       1;
	return 0;
}

#endif
