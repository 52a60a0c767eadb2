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
#define PROBE_BFD_VERS 0x20   /* version 1, no diagnostic */
#define PROBE_BFD_AUTH 0x04   /* A bit */
#define PROBE_BFD_DEMAND 0x02 /* D bit: set by the initiator (RFC 7880, 7.2.2) */
#define PROBE_BFD_LEN 64      /* BFD header 24, authentication section 40 */
#define PROBE_AUTH_TYPE 250   /* unassigned by IANA */
#define PROBE_AUTH_LEN 40
#define PROBE_COVERED 31	       /* bytes under the tag */
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
	/* authentication section; the tag covers bytes 25 to 55 */
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
};

_Static_assert(sizeof(struct probe) == PROBE_BFD_LEN, "probe layout is on the wire");

/* What stays the same in a path's tags. */
struct tag_epochs {
	__u64 prober;
	__u64 reflector;
};

/* The path's tags differ in their epochs: requests, replies to them, replies to ours. */
enum tag_kind {
	TAG_REQUEST = 0,
	TAG_OUR_REPLY = 1,
	TAG_THEIR_REPLY = 2,
	TAG_KINDS = 4,
};

/*
 * The tag over the epochs, the round, and the seven bytes behind the authentication type, which are
 * the upper ones of `head`, the first eight bytes of the authentication section. In this order
 * because the epochs hardly ever change: SipHash's state behind them is kept (`cache` is the path
 * and kind). Words by value, because a load that spans fresh narrower stores waits for them. Global,
 * so that its stack is not its caller's.
 */
__noinline __u64 probe_tag(const struct sip_key *key, const struct tag_epochs *epochs, __u64 round,
			   __u64 head, __u32 cache)
{
	struct tag_prefix *c;
	__u64 v[4];

	cache &= TAG_PREFIXES - 1;
	c = bpf_map_lookup_elem(&tag_prefixes, &cache);
	if (!key || !epochs || !c)
		return 0;
	if (((c->key.k0 ^ key->k0) | (c->key.k1 ^ key->k1) | (c->epoch ^ epochs->prober) |
	     (c->reflector_epoch ^ epochs->reflector)) == 0) {
		v[0] = c->v[0];
		v[1] = c->v[1];
		v[2] = c->v[2];
		v[3] = c->v[3];
	} else {
		sip_begin(v, key->k0, key->k1);
		sip_word(v, epochs->prober);
		sip_word(v, epochs->reflector);
		c->key = *key;
		c->epoch = epochs->prober;
		c->reflector_epoch = epochs->reflector;
		c->v[0] = v[0];
		c->v[1] = v[1];
		c->v[2] = v[2];
		c->v[3] = v[3];
	}
	sip_word(v, round);
	return sip_end(v, head >> 8 | (__u64)PROBE_COVERED << 56);
}

/* Whole loads: the struct is not packed, or clang would put every word together from bytes. */
static __always_inline __u64 probe_head(const struct probe *p)
{
	return ((const __u64 *)p)[3];
}

/* Everything outside the tag's cover has one right value, except the three intervals. */
static __always_inline int probe_well_formed(const struct probe *p)
{
	int reply = p->flags & PROBE_REPLY;
	__be32 pair = bpf_htonl((p->version_pair & 15) + 1);
	__be32 reflector = bpf_htonl(PROBE_DISCRIMINATOR);
	__u8 state = (p->flags & PROBE_STATE) | PROBE_BFD_AUTH | (reply ? 0 : PROBE_BFD_DEMAND);

	if (!reply && p->reflector_epoch)
		return 0;
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
	PROBE_CONSUMED = -1,		/* a reply that was recorded */
	PROBE_REFLECT = -2,		/* a request; the payload is now the reply */
	PROBE_REFLECT_UNCONFIRMED = -3, /* the same, but it changed nothing */
					/* positive: enum reason, drop */
};

/* A request: answer in place. *change gets the change of the payload's sum. */
static __always_inline int probe_request(struct probe *p, struct path *path, __u32 index,
					 struct group *g, struct group_state *gs,
					 struct path_state *ps, const struct sip_key *key,
					 __u32 *change)
{
	struct settings *s = settings_get();
	__u64 round = bpf_be64_to_cpu(p->round), tag = p->tag;
	__u32 pair = p->version_pair & 15;
	int result = PROBE_REFLECT, err;
	struct path_stats *stats = bpf_map_lookup_elem(&path_traffic, &index);
	struct tag_epochs epochs;
	__u32 head, flags, change_sum;
	__u16 report;
	__u64 w0;

	if (!s || !stats)
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

	/*
	 * What changes: state, flags, report, reflector epoch, tag; discriminators swap. Put
	 * together in registers and stored in whole words: a load that spans fresh narrower stores
	 * would wait for them to leave the store buffer.
	 */
	head = *(__u32 *)p;
	w0 = probe_head(p);
	change_sum = csum_add(
		~head, csum_add(csum_fold64(~w0),
				csum_add(csum_fold64(~p->reflector_epoch), csum_fold64(~tag))));
	flags = (p->flags & PROBE_SAMPLE) | PROBE_REPLY | PROBE_MARK |
		(s->drained >> (path->uplink & 63) & 1 ? PROBE_ADMIN_DOWN : PROBE_UP);
	head = (head & ~0xff00u) | ((flags & PROBE_STATE) | PROBE_BFD_AUTH) << 8;
	report = 0xffff; /* of another epoch nothing is known: no evidence against any path */
	if (result == PROBE_REFLECT)
		report = bpf_htons(live_report(gs, g->first_path, g->path_count, p->window));
	w0 = (w0 & 0x0000ffff00ffffffULL) | (__u64)flags << 24 | (__u64)report << 48;
	epochs.prober = p->epoch;
	epochs.reflector = s->epoch;
	tag = probe_tag(key, &epochs, p->round, w0, index * TAG_KINDS + TAG_OUR_REPLY);
	*(__u32 *)p = head;
	*((__u64 *)p + 3) = w0;
	p->your_discr = p->my_discr;
	p->my_discr = bpf_htonl(PROBE_DISCRIMINATOR);
	p->reflector_epoch = s->epoch;
	p->tag = tag;
	*change = csum_add(change_sum,
			   csum_add(head, csum_add(csum_fold64(w0), csum_add(csum_fold64(s->epoch),
									     csum_fold64(tag)))));
	stats->requests++;
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
	struct tag_epochs epochs;
	struct group_state *gs;
	struct group *g;
	__u32 slot;

	if (!p || !change || !path || !ps || !keys)
		return R_PROBE_FORMAT;
	gs = live_group(path->group);
	g = group_get(path->group);
	if (!gs || !g || !probe_well_formed(p) || !!(p->flags & PROBE_REPLY) != !!from_reflector)
		return R_PROBE_FORMAT;
	if (!p->key_id)
		return R_PROBE_KEY;
	if (p->key_id == keys->id[0])
		slot = 0;
	else if (p->key_id == keys->id[1])
		slot = 1;
	else
		return R_PROBE_KEY;
	epochs.prober = p->epoch;
	epochs.reflector = p->reflector_epoch;
	if (p->tag !=
	    probe_tag(&keys->rx[slot], &epochs, p->round, probe_head(p),
		      index * TAG_KINDS + (from_reflector ? TAG_THEIR_REPLY : TAG_REQUEST)))
		return R_PROBE_TAG;
	if (from_reflector)
		return probe_reply(p, path, g, gs, ps);
	return probe_request(p, path, index, g, gs, ps, &keys->tx[slot], change);
}

#endif
