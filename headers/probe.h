/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * S-BFD probes (RFC 7880, RFC 7881) with plait's authentication section; docs/wire.md has every
 * byte. Fields are in wire order.
 */
#ifndef PLAIT_PROBE_H
#define PLAIT_PROBE_H

#include "bpf.h"
#include "csum.h"
#include "path.h"
#include "siphash.h"

#define PROBE_VERSION 1
#define PROBE_BFD_VERS 0x20	     /* version 1, no diagnostic */
#define PROBE_BFD_AUTH 0x04	     /* A bit */
#define PROBE_BFD_DEMAND 0x02	     /* D bit: set by the initiator (RFC 7880, 7.2.2) */
#define PROBE_BFD_LEN 64	     /* BFD header 24, authentication section 40 */
#define PROBE_AUTH_TYPE 250	     /* unassigned by IANA */
#define PROBE_AUTH_LEN 40
#define PROBE_DISCRIMINATOR 0x504c4149 /* "PLAI": the reflector's */

/* probe.flags */
#define PROBE_REPLY 0x01  /* direction */
#define PROBE_MARK 0x02	  /* the sender restores marked packets */
#define PROBE_SAMPLE 0x04 /* note when the reply arrives */
#define PROBE_STATE 0xc0  /* the BFD state once more, where the tag covers it */

/* BFD states, RFC 5880, 4.1, in the upper two bits */
#define PROBE_ADMIN_DOWN 0x00
#define PROBE_UP 0xc0

/*
 * Reflections a path and jiffy (1 to 10 ms): far more than rounds, because a neighbour's queue or a
 * host that stood still delivers many at once.
 */
#define PROBE_RATE 256

struct probe {
	__u8 vers;
	__u8 state;
	__u8 mult; /* the window below */
	__u8 len;
	__be32 my_discr;
	__be32 your_discr;
	__be32 min_tx; /* informational, not covered by the tag, copied */
	__be32 min_rx;
	__be32 min_echo;
	/* authentication section; the tag covers the first 32 bytes of it */
	__u8 auth_type;
	__u8 auth_len;
	__u8 key_id;
	__u8 flags;
	__u8 version_pair; /* PROBE_VERSION << 4 | the prober's number of the path */
	__u8 window;	   /* rounds that the receive report covers */
	__be16 report;	   /* reply: paths (the prober's numbers) on which it was heard */
	__u64 epoch;	   /* the prober's boot epoch; opaque */
	__be64 round;
	__u64 reflector_epoch; /* reply: the reflector's boot epoch; request: 0 */
	__u64 tag;
} __attribute__((packed));

_Static_assert(sizeof(struct probe) == PROBE_BFD_LEN, "probe layout is on the wire");

/* The covered bytes as SipHash sees them. The frame is only 2-byte aligned. */
static __always_inline __u64 probe_word(const struct probe *p, int i)
{
	__u64 w;

	__builtin_memcpy(&w, (const __u8 *)p + 24 + 8 * i, sizeof(w));
	return w;
}

/* Global, so that its stack is not its caller's. */
__noinline __u64 probe_tag(const struct probe *p, const struct sip_key *key)
{
	if (!p || !key)
		return 0;
	return siphash_4words(key->k0, key->k1, probe_word(p, 0), probe_word(p, 1),
			      probe_word(p, 2), probe_word(p, 3));
}

/* Everything outside the tag's cover has one right value, except the three intervals. */
static __always_inline int probe_well_formed(const struct probe *p)
{
	int reply = p->flags & PROBE_REPLY;
	__be32 pair = bpf_htonl((p->version_pair & 15) + 1);
	__be32 reflector = bpf_htonl(PROBE_DISCRIMINATOR);
	__u8 state = (p->flags & PROBE_STATE) | PROBE_BFD_AUTH | (reply ? 0 : PROBE_BFD_DEMAND);

	return p->vers == PROBE_BFD_VERS && p->state == state && p->mult == p->window &&
	       p->len == PROBE_BFD_LEN && p->auth_type == PROBE_AUTH_TYPE &&
	       p->auth_len == PROBE_AUTH_LEN && p->version_pair >> 4 == PROBE_VERSION &&
	       p->my_discr == (reply ? reflector : pair) &&
	       p->your_discr == (reply ? pair : reflector);
}

/* Refuses more than PROBE_RATE reflections a jiffy. Racing CPUs may let a few more pass. */
static __always_inline int probe_rate_exceeded(struct path_state *ps)
{
	__u64 now = bpf_jiffies64();

	if (ps->rate_jiffy != now) {
		ps->rate_jiffy = now;
		ps->rate_count = 0;
	}
	return ++ps->rate_count > PROBE_RATE;
}

enum probe_result {
	PROBE_CONSUMED = -1,	/* a reply that was recorded */
	PROBE_REFLECT = -2,	/* a request; the payload is now the reply */
	PROBE_REFLECT_UNCONFIRMED = -3, /* the same, but it changed nothing */
	/* positive: enum reason, drop */
};

/* A request: answer in place. *change gets the change of the payload's sum. */
static __always_inline int probe_request(struct probe *p, struct path *path, struct group *g,
					 struct group_state *gs, struct path_state *ps, const struct sip_key *key, __u32 *change)
{
	struct settings *s = settings_get();
	__u64 round = bpf_be64_to_cpu(p->round), tag = p->tag;
	__u32 pair = p->version_pair & 15;
	int result = PROBE_REFLECT, err;
	__u16 *w = (__u16 *)p;
	__u32 before, after;

	if (!s)
		return R_PROBE_FORMAT;
	if (p->epoch == gs->peer_epoch) {
		err = live_request(gs, ps, round);
		if (err)
			return err;
		if (ps->peer_pair != pair)
			ps->peer_pair = pair;
		if ((p->flags & PROBE_MARK) && !(gs->caps & CAP_MARK))
			__sync_fetch_and_or(&gs->caps, CAP_MARK);
	} else if (bpf_be64_to_cpu(p->epoch) > bpf_be64_to_cpu(gs->peer_epoch)) {
		/*
		 * A peer that has started anew, or whose epoch no reply has told us yet. Answer, so
		 * that it can learn ours, but believe nothing. Epochs grow with the wall clock, so
		 * what was recorded earlier is older and is refused.
		 */
		result = PROBE_REFLECT_UNCONFIRMED;
	} else {
		return R_PROBE_EPOCH;
	}
	if (probe_rate_exceeded(ps))
		return R_PROBE_RATE;

	/* The words that change: state, flags, report, reflector epoch, tag. Discriminators swap. */
	before = csum_add(w[0], csum_add(w[13], w[15]));
	p->flags = (p->flags & (PROBE_SAMPLE)) | PROBE_REPLY | PROBE_MARK |
		   (s->drained >> (path->uplink & 63) & 1 ? PROBE_ADMIN_DOWN : PROBE_UP);
	p->state = (p->flags & PROBE_STATE) | PROBE_BFD_AUTH;
	p->your_discr = p->my_discr;
	p->my_discr = bpf_htonl(PROBE_DISCRIMINATOR);
	p->report = bpf_htons(live_report(gs, g->first_path, g->path_count, p->window));
	after = csum_add(w[0], csum_add(w[13], w[15]));
	after = csum_add(after, csum_add((__u32)s->epoch, s->epoch >> 32));
	before = csum_add(before,
			  csum_add((__u32)p->reflector_epoch, p->reflector_epoch >> 32));
	p->reflector_epoch = s->epoch;
	p->tag = probe_tag(p, key);
	after = csum_add(after, csum_add((__u32)p->tag, p->tag >> 32));
	before = csum_add(before, csum_add((__u32)tag, tag >> 32));
	*change = csum_add(after, ~before);
	__sync_fetch_and_add(&ps->requests, 1);
	return result;
}

static __always_inline int probe_reply(const struct probe *p, struct path *path, struct group *g,
				       struct group_state *gs, struct path_state *ps)
{
	struct settings *s = settings_get();
	__u64 round = bpf_be64_to_cpu(p->round);
	int err;

	if (!s || (p->version_pair & 15) != path->number)
		return R_PROBE_FORMAT;
	if (p->epoch != s->epoch)
		return R_PROBE_EPOCH;
	if (round > gs->sent)
		return R_PROBE_FUTURE;
	if (round <= ps->newest)
		return R_PROBE_REPLAYED;
	live_peer_epoch(gs, path->group, g->first_path, g->path_count, p->reflector_epoch);
	if ((p->flags & PROBE_MARK) && !(gs->caps & CAP_MARK))
		__sync_fetch_and_or(&gs->caps, CAP_MARK);
	err = live_reply(gs, path->group, g->first_path, g->path_count, path->number, round,
			 bpf_ntohs(p->report));
	if (err)
		return err;
	if (p->flags & PROBE_SAMPLE) {
		ps->sample_at = bpf_ktime_get_ns();
		ps->sample_round = round;
	}
	return PROBE_CONSUMED;
}

/*
 * The payload of a UDP packet from or to the S-BFD port, on path `index`. Returns enum probe_result
 * or an enum reason. Global, so that the verifier checks it once.
 */
__noinline int probe_receive(struct probe *p, __u32 from_reflector, __u32 index, __u32 *change)
{
	struct path *path = path_get(index);
	struct path_state *ps = live_path(index, 0);
	struct path_keys *keys = bpf_map_lookup_elem(&path_key_sets, &index);
	struct group_state *gs;
	struct group *g;
	__u32 slot;

	if (!p || !change || !path || !ps || !keys)
		return R_PROBE_FORMAT;
	gs = live_group(path->group);
	g = group_get(path->group);
	if (!gs || !g || !probe_well_formed(p) ||
	    !!(p->flags & PROBE_REPLY) != !!from_reflector)
		return R_PROBE_FORMAT;
	if (!p->key_id)
		return R_PROBE_KEY;
	if (p->key_id == keys->id[0])
		slot = 0;
	else if (p->key_id == keys->id[1])
		slot = 1;
	else
		return R_PROBE_KEY;
	if (p->tag != probe_tag(p, &keys->rx[slot]))
		return R_PROBE_TAG;
	if (from_reflector)
		return probe_reply(p, path, g, gs, ps);
	return probe_request(p, path, g, gs, ps, &keys->tx[slot], change);
}

#endif
