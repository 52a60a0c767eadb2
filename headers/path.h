/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Look-ups of groups and paths, the liveness rule on maps, and traffic counters. */
#ifndef PLAIT_PATH_H
#define PLAIT_PATH_H

#include "bpf.h"
#include "maps.h"
#include "liveness.h"

static __always_inline struct group_state *live_group(__u32 group)
{
	return bpf_map_lookup_elem(&group_states, &group);
}

static __always_inline struct path_state *live_path(__u32 first, __u32 number)
{
	__u32 index = first + number;

	return bpf_map_lookup_elem(&path_states, &index);
}

static __always_inline __u64 live_now(void)
{
	return bpf_ktime_get_ns();
}

static __always_inline void live_event(struct event *ev)
{
	struct settings *s;

	if (!bpf_ringbuf_output(&events, ev, sizeof(*ev), 0))
		return;
	s = settings_get();
	if (s)
		__sync_fetch_and_add(&s->events_lost, 1);
}

static __always_inline struct group *group_get(__u32 index)
{
	return bpf_map_lookup_elem(&groups, &index);
}

static __always_inline struct path *path_get(__u32 index)
{
	return bpf_map_lookup_elem(&paths, &index);
}

/* Path index of a locator pair, or NULL. */
static __always_inline __u32 *pair4_get(__be32 local, __be32 remote)
{
	struct pair4_key key = { .local = local, .remote = remote };

	return bpf_map_lookup_elem(&pairs4, &key);
}

static __always_inline __u32 *pair6_get(const struct in6_addr *local, const struct in6_addr *remote)
{
	struct pair6_key key;

	__builtin_memcpy(&key.local, local, sizeof(key.local));
	__builtin_memcpy(&key.remote, remote, sizeof(key.remote));
	return bpf_map_lookup_elem(&pairs6, &key);
}

static __always_inline void count_tx(__u32 index, __u32 packets, __u32 bytes, int moved)
{
	struct path_stats *s = bpf_map_lookup_elem(&path_traffic, &index);

	if (!s)
		return;
	s->tx_packets += packets;
	s->tx_bytes += bytes;
	if (moved)
		s->tx_moved += packets;
}

static __always_inline void count_rx(__u32 index, __u32 packets, __u32 bytes)
{
	struct path_stats *s = bpf_map_lookup_elem(&path_traffic, &index);

	if (!s)
		return;
	s->rx_packets += packets;
	s->rx_bytes += bytes;
}

#endif
