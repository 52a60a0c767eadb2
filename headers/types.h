/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Types shared by the kernel programs, the agent (through bpf2go) and the host-compiled tests.
 *
 * Addresses are 16 bytes. In struct path an IPv4 address fills the first word and leaves the rest
 * zero; in identity_key it is IPv4-mapped (::ffff:a.b.c.d), so that both families share one map.
 * Byte order: __be fields are wire order, all others host order.
 */
#ifndef PLAIT_TYPES_H
#define PLAIT_TYPES_H

#include <linux/types.h>

#define PLAIT_LAYOUT_VERSION \
	1 /* part of the pin directory's name; raise it with any change below */

#define PLAIT_MAX_PATHS 16 /* paths of one group; the report field of a probe has 16 bits */
#define PLAIT_BUCKETS 256
#define PLAIT_MAX_UPLINKS 64 /* bits of settings.uplinks */

#define PLAIT_MARK 128 /* hop limits from here on are translated traffic */
#define PLAIT_MARK_BITS \
	192 /* or-ed into the hop limit at egress: arrives >= 128 after <= 64 hops */
#define PLAIT_SBFD_PORT 7784   /* RFC 7881, section 4: S-BFD reflector */
#define PLAIT_PROBE_PORT 61784 /* our source port; a reply is 7784 -> 61784 */

struct addr {
	__be32 a[4];
};

struct identity_key {
	struct addr addr; /* IPv4 mapped */
};

struct pair4_key {
	__be32 local;
	__be32 remote;
};

struct pair6_key {
	struct addr local;
	struct addr remote;
};

/*
 * One group is one peer in one address family. Written by the agent only; path numbers in bucket
 * are below path_count at all times, so a torn update of the table still names a path.
 */
struct group {
	__u32 first_path; /* index into paths, path_state, path_stats, path_keys */
	__u32 path_count; /* 1..PLAIT_MAX_PATHS */
	__u32 peer;	  /* the agent's number of the peer */
	__u32 family;	  /* AF_INET or AF_INET6 */
	__u64 pad[6];
	__u8 bucket[PLAIT_BUCKETS]; /* path number, 0..path_count-1 */
};

_Static_assert(sizeof(struct group) == 320, "struct group is shared with user space");

/* group_state.caps: what the peer announced in authenticated probes. */
enum group_cap {
	CAP_MARK = 1, /* it restores marked packets; none is sent before */
};

/*
 * Liveness of a group. Masks have one bit a path number and change by atomic and/or only;
 * newest and peer_newest by compare-and-swap maximum.
 */
struct group_state {
	/* what packets read */
	__u64 sent;	   /* last round sent; the agent stores it before it sends */
	__u64 fresh;	   /* paths that answer now; the kernel programs */
	__u64 up;	   /* fresh and past the hold-down: kernel clears, kernel or agent sets */
	__u64 active;	   /* value of sent when traffic last left towards this peer */
	__u64 peer_newest; /* newest round the peer sent in that epoch */
	__u64 heard;	   /* our round when anything last arrived on any path */
	__u64 resumed;	   /* our round when something arrived after a silence on all paths */
	__u32 caps;	   /* enum group_cap */
	__u32 unreachable; /* the agent's word: nothing has answered for a second */
	/* what only probes read */
	__u64 newest;	  /* newest round answered on any path */
	__u64 peer_epoch; /* learned from replies; 0 unknown */
	__u64 pad[6];
};

_Static_assert(sizeof(struct group_state) == 128, "struct group_state is shared with user space");

/* What the packet programs need to know of a path. Written by the agent before it is referenced. */
struct path {
	struct addr local;
	struct addr remote;
	struct addr identity;
	struct addr peer_identity;
	struct addr nexthop;
	__u32 csum_egress;  /* one's complement: sum(locators) - sum(identities) */
	__u32 csum_ingress; /* the reverse */
	__u32 ifindex;	    /* 0: the uplink does not exist now */
	__u32 group;
	__u8 family;	     /* AF_INET or AF_INET6 */
	__u8 uplink;	     /* bit in settings.uplinks */
	__u8 number;	     /* within the group */
	__u8 nexthop_family; /* 0: no route */
	__u32 pad[7];
};

_Static_assert(sizeof(struct path) == 128, "struct path is shared with user space");

/* Liveness of a path. The first block is written by kernel programs, the second by the agent. */
struct path_state {
	__u64 newest;	    /* newest round answered here */
	__u64 heard;	    /* our round when anything last arrived here */
	__u64 heard_peer;   /* the peer's round when anything last arrived here */
	__u64 req_newest;   /* newest round of the peer's requests here */
	__u64 cleared_at;   /* CLOCK_MONOTONIC ns when fresh was last lost; 0 never */
	__u64 sample_round; /* last reply with PROBE_SAMPLE set, and when it arrived */
	__u64 sample_at;    /* CLOCK_MONOTONIC ns */
	__u64 replies;	    /* replies recorded */
	__u64 losses;	    /* times fresh was lost */
	__u64 congested;    /* of those, how often the path was back within 100 ms */
	__u64 rate_jiffy;   /* reflections in this jiffy */
	__u32 rate_count;
	__u32 lag_max;	  /* largest lag since the agent last took it, rounds */
	__u32 multiplier; /* rounds; the agent sets and decays it, the kernel raises it */
	__u32 was_up;	  /* up when fresh was lost */
	__u32 peer_pair;  /* the number the peer gives this path */
	__u32 pad0;
	/* agent */
	__u32 base_lag;	      /* largest lag of the last second, rounds */
	__u32 min_multiplier; /* as configured */
	__u64 probes;	      /* requests sent */
	__u64 since;	      /* CLOCK_MONOTONIC ns of the last change of state */
	__u64 flaps;	      /* transitions counted as flaps */
	__u64 rtt_ns;	      /* smoothed; 0 unknown */
	__u32 loss_ppm;	      /* of the last ten seconds' probes */
	__u32 pad2;
	__u64 pad1[4];
};

_Static_assert(sizeof(struct path_state) == 192, "struct path_state is shared with user space");

/* SipHash keys of a path and direction, for two live key ids. Slot 0 signs requests; a reply uses its request's. */
struct sip_key {
	__u64 k0;
	__u64 k1;
};

struct path_keys {
	struct sip_key tx[2];
	struct sip_key rx[2];
	__u32 id[2]; /* 1..255; 0 empty */
	__u64 pad;
};

_Static_assert(sizeof(struct path_keys) == 80, "struct path_keys is shared with user space");

/* Per-CPU traffic of a path. GSO super-packets count as their segments. */
struct path_stats {
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_moved; /* of tx_packets, those whose bucket names another path */
	__u64 requests; /* of the peer, reflected */
};

/*
 * SipHash's state after the words of a tag that stay the same as long as both epochs do. A cache,
 * one a CPU: an entry is right if key and epochs are those asked for.
 */
struct tag_prefix {
	struct sip_key key;
	__u64 epoch;
	__u64 reflector_epoch;
	__u64 v[4];
};

struct settings {
	__u64 epoch;   /* our boot epoch, drawn when the maps are created */
	__u64 uplinks; /* usable uplinks: present, administratively up, with carrier */
	__u64 drained; /* uplinks whose probes are answered with ADMINDOWN */
	__u64 events_lost;
	__u64 pad[4];
};

_Static_assert(sizeof(struct settings) == 64, "struct settings is shared with user space");

/* Ports that never carry translated traffic: one bit a port. */
struct native_ports {
	__u64 tcp[1024];
	__u64 udp[1024];
};

/* Why a packet was dropped or refused. Append only: numbers are never used again. */
enum reason {
	R_NONE = 0,
	/* egress on plait0: everything not redirected is dropped */
	R_EGRESS_NOT_IP = 1,	    /* neither IPv4 nor IPv6 */
	R_EGRESS_TRUNCATED = 2,	    /* headers longer than the packet */
	R_EGRESS_UNKNOWN_PEER = 3,  /* destination is no peer's identity */
	R_EGRESS_BAD_SOURCE = 4,    /* source is not our identity */
	R_EGRESS_NOT_ANNOUNCED = 5, /* the peer has not announced that it restores marked packets */
	R_EGRESS_UNSUPPORTED = 6,   /* AH, a routing header in use, too many extension headers */
	R_EGRESS_NATIVE_PORT = 7,   /* a native port: would not be restored by the peer */
	R_EGRESS_NO_PATH = 8,	    /* no path has an uplink and a next hop */
	R_EGRESS_REWRITE = 9,	    /* a helper refused to write */
	R_EGRESS_FAR_END = 10,	    /* reached the far end of plait0 */
	/* ingress on an uplink: marked packets of a known pair that cannot be restored */
	R_INGRESS_TRUNCATED = 16,
	R_INGRESS_UNSUPPORTED = 17,
	R_INGRESS_REWRITE = 18,
	R_INGRESS_SHORT_LINEAR = 19, /* XDP: the headers are not in the linear part */
	/* probes */
	R_PROBE_TRUNCATED = 32,
	R_PROBE_FORMAT = 33,	  /* not our version, length or constants */
	R_PROBE_FOREIGN = 34,	  /* no such locator pair; passed on */
	R_PROBE_KEY = 35,	  /* unknown key id */
	R_PROBE_TAG = 36,	  /* tag does not verify: forged, relocated, reflected */
	R_PROBE_EPOCH = 37,	  /* of another epoch: replayed */
	R_PROBE_REPLAYED = 38,	  /* round not newer than the newest */
	R_PROBE_FUTURE = 39,	  /* reply to a round that was not sent */
	R_PROBE_RATE = 40,	  /* more requests than the limit */
	R_PROBE_UNCONFIRMED = 41, /* answered, not counted as heard: epoch not yet confirmed */
	R_MAX = 64,
};

enum event_kind {
	EV_NONE = 0,
	EV_FIRST = 1,	   /* a path answers for the first time */
	EV_LOST = 2,	   /* a path lost fresh */
	EV_CONGESTED = 3,  /* back within 100 ms: it was congested, not cut */
	EV_BACK = 4,	   /* it answers again; the agent's hold-down starts */
	EV_PEER_EPOCH = 5, /* the peer's boot epoch was learned or changed */
};

/* Why a path lost fresh (EV_LOST). */
enum lost_reason {
	LOST_NONE = 0,
	LOST_SILENT = 1,    /* nothing arrived here for multiplier rounds */
	LOST_NOT_HEARD = 2, /* the peer reports that nothing of ours arrived there */
};

struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 kind;
	__u32 reason;
	__u32 group;
	__u32 path;   /* index into paths */
	__u64 round;  /* the round that decided */
	__u64 newest; /* the path's newest answered round */
	__u32 multiplier;
	__u32 lag;
};

_Static_assert(sizeof(struct event) == 48, "struct event is shared with user space");

#endif
