/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The liveness rule (docs/architecture.md, Liveness): pure logic over group_state and path_state.
 * Compiles on the host, where the tests hold it against a slow oracle.
 *
 * The includer provides
 *   struct group_state *live_group(__u32 group)               NULL if out of range
 *   struct path_state *live_path(__u32 first, __u32 number)   the same
 *   __u64 live_now(void)                                       CLOCK_MONOTONIC ns
 *   void live_event(struct event *)                            publish a transition
 */
#ifndef PLAIT_LIVENESS_H
#define PLAIT_LIVENESS_H

#include "types.h"

#define LIVE_INLINE static inline __attribute__((always_inline))

/* The verifier checks a global function once, not once for each way to its call. */
#ifdef __bpf__
#define LIVE_GLOBAL __attribute__((noinline))
#else
#define LIVE_GLOBAL static
#endif

/*
 * Rounds, the ceiling of the multiplier: with a queue of 20 ms on top, a real cut behind full queues
 * is still found within 50 rounds of 1 ms.
 */
#define LIVE_MAX_MULTIPLIER 30
#define LIVE_MAX_RUN 100	    /* a longer run of misses says nothing about congestion */
#define LIVE_CONGESTED_NS 100000000 /* back within this time: congested, not cut */
#define LIVE_CAS_TRIES 8

LIVE_INLINE struct group_state *live_group(__u32 group);
LIVE_INLINE struct path_state *live_path(__u32 first, __u32 number);
LIVE_INLINE __u64 live_now(void);
LIVE_INLINE void live_event(struct event *ev);

/* Raises *p to v; returns 1 if it was lower. Another CPU's larger value wins. */
LIVE_INLINE int live_max(__u64 *p, __u64 v)
{
	__u64 old = *(volatile __u64 *)p;

	for (int i = 0; i < LIVE_CAS_TRIES; i++) {
		__u64 seen;

		if (old >= v)
			return 0;
		seen = __sync_val_compare_and_swap(p, old, v);
		if (seen == old)
			return 1;
		old = seen;
	}
	return 0;
}

/* Rounds that a path may lag behind the newest before it is suspected. */
LIVE_INLINE __u32 live_threshold(const struct path_state *p)
{
	__u32 least = p->min_multiplier + p->base_lag;

	return p->multiplier > least ? p->multiplier : least;
}

/* A path that missed or lagged m rounds and lives was congested: remember twice that. */
LIVE_INLINE void live_congestion(struct path_state *p, __u64 m)
{
	__u64 want = 2 * m;

	if (m > LIVE_MAX_RUN)
		return;
	if (want > LIVE_MAX_MULTIPLIER)
		want = LIVE_MAX_MULTIPLIER;
	if (want > p->multiplier)
		p->multiplier = want;
}

/*
 * Something of the peer arrived on this path: one write a round at most. When nothing had arrived on
 * any path for some rounds, a host stood still (a paused virtual machine, a busy CPU), and what
 * waited comes in batches, path by path: for as many rounds again that says nothing about a path.
 */
LIVE_INLINE void live_heard(struct group_state *g, struct path_state *p)
{
	__u64 sent = g->sent, peer = g->peer_newest, heard = g->heard;

	if (heard != sent) {
		if (sent >= heard + p->min_multiplier)
			g->resumed = sent;
		g->heard = sent;
	}
	if (p->heard != sent)
		p->heard = sent;
	if (p->heard_peer != peer)
		p->heard_peer = peer;
}

/* Is the group still taking in what waited while a host stood still? */
LIVE_INLINE int live_resuming(const struct group_state *g, const struct path_state *p)
{
	return g->sent < g->resumed + p->min_multiplier;
}

/*
 * Rounds of patience with a path on which the peer is still heard: half as many again. One direction
 * alone seldom fails, but a full queue or a busy CPU often holds one direction back.
 */
LIVE_INLINE __u32 live_oneway(__u32 threshold)
{
	return threshold + threshold / 2 + 1;
}

/*
 * A path's verdict when another answered `round`: 0 keep, or the enum lost_reason. `report` is the
 * peer's mask of the paths on which it heard us lately.
 */
LIVE_INLINE int live_verdict(const struct group_state *g, const struct path_state *p, __u32 number,
			     __u64 round, __u32 report)
{
	__u32 threshold = live_threshold(p);

	if (live_resuming(g, p) || round < p->newest + threshold)
		return LOST_NONE;
	if (g->sent >= p->heard + p->multiplier)
		return LOST_SILENT;
	if (round >= p->newest + live_oneway(threshold) && !(report >> number & 1))
		return LOST_NOT_HEARD;
	return LOST_NONE;
}

LIVE_GLOBAL int live_publish(__u32 kind_reason, __u32 group, __u32 path, __u64 round, __u64 now)
{
	struct path_state *p = live_path(path, 0);
	struct event ev = {
		.time_ns = now,
		.kind = kind_reason & 0xff,
		.reason = kind_reason >> 8,
		.group = group,
		.path = path,
		.round = round,
	};

	if (p) {
		ev.newest = p->newest;
		ev.multiplier = p->multiplier;
		ev.lag = round > ev.newest ? round - ev.newest : 0;
	}
	live_event(&ev);
	return 0;
}

/* A path that was not fresh has answered. */
LIVE_INLINE void live_return(struct group_state *g, struct path_state *p, __u32 group, __u32 path,
			     __u32 number, __u64 round, __u64 missed)
{
	__u64 bit = 1ULL << number, now = live_now();
	__u32 kind = EV_BACK;

	if (!p->cleared_at) {
		kind = EV_FIRST;
		__sync_fetch_and_or(&g->up, bit);
	} else if (now - p->cleared_at < LIVE_CONGESTED_NS) {
		kind = EV_CONGESTED;
		live_congestion(p, missed);
		__sync_fetch_and_add(&p->congested, 1);
		if (p->was_up)
			__sync_fetch_and_or(&g->up, bit);
	}
	if (!(__sync_fetch_and_or(&g->fresh, bit) & bit))
		live_publish(kind, group, path, round, now);
}

/* Path `number` loses fresh, and up with it: one CPU wins and reports. */
LIVE_INLINE void live_clear(struct group_state *g, struct path_state *p, __u32 group, __u32 path,
			    __u32 number, __u64 round, __u32 reason)
{
	__u64 bit = 1ULL << number, now = live_now(), up = *(volatile __u64 *)&g->up;

	/* A CPU that comes second must not take the winner's clearing of up for the state before. */
	if (!(*(volatile __u64 *)&g->fresh & bit))
		return;
	p->was_up = !!(up & bit);
	p->cleared_at = now;
	if (!(__sync_fetch_and_and(&g->fresh, ~bit) & bit))
		return;
	__sync_fetch_and_and(&g->up, ~bit);
	__sync_fetch_and_add(&p->losses, 1);
	live_publish(EV_LOST | reason << 8, group, path, round, now);
}

/* Path `index`, the group's `number`, is fresh and another answered `round`: does it stay so? */
LIVE_GLOBAL int live_check(__u32 group, __u32 index, __u32 number, __u64 round, __u32 report)
{
	struct group_state *g = live_group(group);
	struct path_state *p = live_path(index, 0);
	int why;

	if (!g || !p)
		return LOST_NONE;
	why = live_verdict(g, p, number & (PLAIT_MAX_PATHS - 1), round, report);
	if (why)
		live_clear(g, p, group, index, number & (PLAIT_MAX_PATHS - 1), round, why);
	return why;
}

/*
 * A verified reply to `round` arrived on path `number` of group `group` (n paths from `first`).
 * Returns 0, or the enum reason why it changed nothing.
 */
LIVE_INLINE int live_reply(struct group_state *g, __u32 group, __u32 first, __u32 n, __u32 number,
			   __u64 round, __u16 report)
{
	struct path_state *p = live_path(first, number);
	__u64 prev, newest, missed, lag, others;

	number &= PLAIT_MAX_PATHS - 1;
	if (!p)
		return R_PROBE_FORMAT;
	if (round > g->sent)
		return R_PROBE_FUTURE;
	prev = p->newest;
	if (round <= prev || !live_max(&p->newest, round))
		return R_PROBE_REPLAYED;
	__sync_fetch_and_add(&p->replies, 1);
	live_heard(g, p);

	newest = g->newest;
	lag = newest > round ? newest - round : 0;
	missed = prev ? round - prev - 1 : 0;
	if (live_resuming(g, p))
		missed = lag = 0;
	if (!(g->fresh >> number & 1)) {
		live_return(g, p, group, first + number, number, round, missed);
	} else if (g->up >> number & 1) { /* what it misses in its hold-down is not congestion */
		if (lag > p->lag_max)
			p->lag_max = lag > 0xffffffff ? 0xffffffff : lag;
		live_congestion(p, missed > lag ? missed : lag);
	}
	if (!live_max(&g->newest, round))
		return 0;

	others = g->fresh & ~(1ULL << number);
	for (__u32 j = 0; j < PLAIT_MAX_PATHS && j < n && others >> j; j++)
		if (others >> j & 1)
			live_check(group, first + j, j, round, report);
	return 0;
}

/*
 * A verified request `round` of the peer's confirmed epoch arrived on path p. Returns 0, or why it
 * is refused.
 */
LIVE_INLINE int live_request(struct group_state *g, struct path_state *p, __u64 round)
{
	if (round <= p->req_newest || !live_max(&p->req_newest, round))
		return R_PROBE_REPLAYED;
	live_max(&g->peer_newest, round);
	live_heard(g, p);
	return 0;
}

/* The receive report for the peer: its own numbers of the paths it was heard on lately. */
LIVE_INLINE __u16 live_report(const struct group_state *g, __u32 first, __u32 n, __u32 window)
{
	__u16 report = 0;

	for (__u32 j = 0; j < PLAIT_MAX_PATHS; j++) {
		const struct path_state *q;

		if (j >= n)
			break;
		q = live_path(first, j);
		if (!q)
			break;
		/* peer_pair is known once a request has arrived here */
		if (q->req_newest && q->heard_peer && g->peer_newest < q->heard_peer + window)
			report |= 1 << (q->peer_pair & (PLAIT_MAX_PATHS - 1));
	}
	return report;
}

/* A reply proved the peer's boot epoch. If it is another one the peer's old rounds mean nothing. */
LIVE_INLINE void live_peer_epoch(struct group_state *g, __u32 group, __u32 first, __u32 n,
				 __u64 epoch)
{
	__u64 old = g->peer_epoch;
	struct path_state *p;

	if (old == epoch || __sync_val_compare_and_swap(&g->peer_epoch, old, epoch) != old)
		return;
	g->peer_newest = 0;
	for (__u32 j = 0; j < PLAIT_MAX_PATHS; j++) {
		if (j >= n)
			break;
		p = live_path(first, j);
		if (!p)
			break;
		p->req_newest = 0;
		p->heard_peer = 0;
	}
	live_publish(EV_PEER_EPOCH, group, first, 0, live_now());
}

#endif
