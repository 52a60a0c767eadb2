/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Egress on plait0: chooses a path towards a peer, translates, redirects to the uplink. Every
 * packet is redirected or dropped and counted, never passed on.
 */
#ifndef PLAIT_EGRESS_H
#define PLAIT_EGRESS_H

#include "bpf.h"
#include "buckets.h"
#include "csum.h"
#include "hook_tc.h"
#include "parse.h"
#include "path.h"
#include "probe.h"
#include "rewrite.h"

/* Can the path be sent on at all: uplink usable, next hop known. */
static __always_inline int path_sendable(const struct path *p, __u64 uplinks)
{
	return p->ifindex && p->nexthop_family && (uplinks >> (p->uplink & 63) & 1);
}

/* The same by index, as a value that the verifier does not follow: 16 of them are 2^16 states. */
__noinline __u64 path_sendable_at(__u32 index)
{
	struct path *p = path_get(index);
	struct settings *s = settings_get();

	return p && s && path_sendable(p, s->uplinks);
}

/*
 * The second choice, when the bucket's own path is not usable: among those up and fresh, else
 * fresh, else whatever can be sent on, because a host must not fall silent by our own doing.
 * Returns a path number, or PLAIT_MAX_PATHS. Global, so that the verifier checks it once.
 */
__noinline __u32 second_choice(__u32 group, __u32 bucket)
{
	struct group *g = group_get(group);
	struct group_state *gs = live_group(group);
	__u64 sendable = 0, fresh, up;
	__u32 own;

	if (!g || !gs)
		return PLAIT_MAX_PATHS;
	for (__u32 j = 0; j < PLAIT_MAX_PATHS && j < g->path_count; j++)
		sendable |= (path_sendable_at(g->first_path + j) & 1) << j;
	if (!sendable)
		return PLAIT_MAX_PATHS;
	fresh = gs->fresh;
	up = fresh & gs->up;
	if (up & sendable)
		sendable &= up;
	else if (fresh & sendable)
		sendable &= fresh;
	own = g->bucket[bucket & (PLAIT_BUCKETS - 1)];
	if (sendable >> (own & 63) & 1)
		return own;
	return bucket_second(bucket & (PLAIT_BUCKETS - 1), sendable);
}

/* The path of a flow: its bucket's own if that is usable. */
static __always_inline struct path *choose_path(const struct group *g, const struct group_state *gs,
						__u32 group, __u64 uplinks, __u32 bucket,
						__u32 *number)
{
	struct path *p;

	*number = g->bucket[bucket];
	if ((gs->fresh & gs->up) >> (*number & 63) & 1) {
		p = path_get(g->first_path + *number);
		if (p && path_sendable(p, uplinks))
			return p;
	}
	*number = second_choice(group, bucket);
	if (*number >= PLAIT_MAX_PATHS)
		return 0;
	return path_get(g->first_path + *number);
}

static __always_inline int send(struct __sk_buff *skb, const struct path *path)
{
	struct bpf_redir_neigh nh = { .nh_family = path->nexthop_family };

	__builtin_memcpy(&nh.ipv6_nh, &path->nexthop, sizeof(nh.ipv6_nh));
	return bpf_redirect_neigh(path->ifindex, &nh, sizeof(nh), 0);
}

/* The agent's probes carry locators and a path's pair; they take that path's way, as they are. */
static __always_inline int egress_probe(struct __sk_buff *skb, struct udphdr *udp, void *data_end,
					__u32 *index, __u8 hop_limit, int *verdict)
{
	struct path *path = index ? path_get(*index) : 0;
	struct settings *s = settings_get();

	if (!path || !s || hop_limit != 255 || (void *)(udp + 1) > data_end ||
	    udp->dest != bpf_htons(PLAIT_SBFD_PORT))
		return R_EGRESS_UNKNOWN_PEER;
	if (!path_sendable(path, s->uplinks))
		return R_EGRESS_NO_PATH;
	*verdict = send(skb, path);
	return R_NONE;
}

struct choice {
	struct path *path;
	__u32 index;
	int moved;
};

/* Peer's group -> path. */
static __always_inline int egress_choose(struct __sk_buff *skb, __u32 group, struct choice *c)
{
	struct group *g = group_get(group);
	struct group_state *gs = live_group(group);
	struct settings *s = settings_get();
	__u32 bucket, number;
	__u64 sent;

	if (!g || !gs || !s)
		return R_EGRESS_NO_PATH;
	/* Before the announcement the peer would take marked packets for its own. */
	if (!(gs->caps & CAP_MARK))
		return R_EGRESS_NOT_ANNOUNCED;
	sent = gs->sent;
	if (gs->active != sent)
		gs->active = sent;
	bucket = bpf_get_hash_recalc(skb) & (PLAIT_BUCKETS - 1);
	c->path = choose_path(g, gs, group, s->uplinks, bucket, &number);
	if (!c->path)
		return R_EGRESS_NO_PATH;
	c->index = g->first_path + number;
	c->moved = number != g->bucket[bucket];
	return R_NONE;
}

/* Checks what lies behind the IP header. *off gets the checksum's offset within it, or -1. */
static __always_inline int egress_l4(struct l4 *l4, __be16 *ports, void *data_end, int *off)
{
	*off = -1;
	if (l4->later)
		return R_NONE;
	if (l4->proto == IPPROTO_TCP || l4->proto == IPPROTO_UDP) {
		if ((void *)(ports + 4) > data_end)
			return R_EGRESS_TRUNCATED;
		if (is_native(l4->proto, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
			return R_EGRESS_NATIVE_PORT;
	}
	*off = l4_csum_off(l4->proto);
	if (*off >= 0 && (void *)ports + *off + 2 > data_end)
		return R_EGRESS_TRUNCATED;
	return R_NONE;
}

static __always_inline int egress_ipv4(struct __sk_buff *skb, struct ethhdr *eth, void *data_end,
				       int *verdict)
{
	struct identity_key key = { .addr.a[2] = bpf_htonl(0xffff) };
	void *data = eth;
	struct iphdr *ip = (struct iphdr *)(eth + 1);
	struct l4 l4 = {};
	struct choice c;
	__be16 *ports;
	__u32 *group;
	int err, off;

	if ((void *)(ip + 1) > data_end)
		return R_EGRESS_TRUNCATED;
	err = parse_ipv4(data, data_end, ip, &l4);
	if (err)
		return err == PARSE_TRUNCATED ? R_EGRESS_TRUNCATED : R_EGRESS_UNSUPPORTED;
	ports = data + l4.off;
	key.addr.a[3] = ip->daddr;
	group = bpf_map_lookup_elem(&identities, &key);
	if (!group) {
		if (l4.proto != IPPROTO_UDP || l4.fragment)
			return R_EGRESS_UNKNOWN_PEER;
		return egress_probe(skb, (struct udphdr *)ports, data_end,
				    pair4_get(ip->saddr, ip->daddr), ip->ttl, verdict);
	}
	err = egress_l4(&l4, ports, data_end, &off);
	if (err)
		return err;
	if (l4.proto == IPPROTO_ICMPV6)
		off = -1;
	err = egress_choose(skb, *group, &c);
	if (err)
		return err;
	if (ip->saddr != c.path->identity.a[0])
		return R_EGRESS_BAD_SOURCE;

	if (l4.proto == IPPROTO_ICMP && !l4.later) {
		struct icmphdr *icmp = (struct icmphdr *)ports;
		struct iphdr *in = (struct iphdr *)(icmp + 1);

		if ((void *)(icmp + 1) > data_end)
			return R_EGRESS_TRUNCATED;
		if (icmp4_is_error(icmp->type)) {
			if ((void *)(in + 1) > data_end)
				return R_EGRESS_TRUNCATED;
			if (in->saddr == c.path->peer_identity.a[0] &&
			    in->daddr == c.path->identity.a[0])
				icmp->checksum = csum_apply(
					icmp->checksum,
					rewrite_quote4(in, data_end, c.path->remote.a[0],
						       c.path->local.a[0], c.path->csum_egress,
						       in->ttl | PLAIT_MARK));
		}
	}
	rewrite_ipv4(ip, c.path->local.a[0], c.path->remote.a[0], c.path->csum_egress,
		     ip->ttl | PLAIT_MARK_BITS);
	if (off >= 0 &&
	    hook_l4_csum(skb, l4.off + off, c.path->csum_egress, l4_csum_nonzero(l4.proto)))
		return R_EGRESS_REWRITE;
	count_tx(c.index, hook_segments(skb), hook_len(skb), c.moved);
	*verdict = send(skb, c.path);
	return R_NONE;
}

static __always_inline int egress_ipv6(struct __sk_buff *skb, struct ethhdr *eth, void *data_end,
				       int *verdict)
{
	struct identity_key key;
	void *data = eth;
	struct ipv6hdr *ip = (struct ipv6hdr *)(eth + 1);
	struct l4 l4 = {};
	struct choice c;
	__be16 *ports;
	__u32 *group;
	int err, off;

	if ((void *)(ip + 1) > data_end)
		return R_EGRESS_TRUNCATED;
	err = parse_ipv6(data, data_end, ip, &l4);
	if (err)
		return err == PARSE_TRUNCATED ? R_EGRESS_TRUNCATED : R_EGRESS_UNSUPPORTED;
	ports = data + l4.off;
	__builtin_memcpy(&key.addr, &ip->daddr, sizeof(key.addr));
	group = bpf_map_lookup_elem(&identities, &key);
	if (!group) {
		if (l4.proto != IPPROTO_UDP || l4.fragment)
			return R_EGRESS_UNKNOWN_PEER;
		return egress_probe(skb, (struct udphdr *)ports, data_end,
				    pair6_get(&ip->saddr, &ip->daddr), ip->hop_limit, verdict);
	}
	err = egress_l4(&l4, ports, data_end, &off);
	if (err)
		return err;
	err = egress_choose(skb, *group, &c);
	if (err)
		return err;
	if (!addr_equal(&c.path->identity, &ip->saddr))
		return R_EGRESS_BAD_SOURCE;

	if (l4.proto == IPPROTO_ICMPV6 && !l4.later) {
		struct icmp6hdr *icmp = (struct icmp6hdr *)ports;
		struct ipv6hdr *in = (struct ipv6hdr *)(icmp + 1);

		if ((void *)(icmp + 1) > data_end)
			return R_EGRESS_TRUNCATED;
		if (icmp6_is_link_scoped(icmp->icmp6_type))
			return R_EGRESS_UNSUPPORTED;
		if (icmp->icmp6_type < 128) {
			if ((void *)(in + 1) > data_end)
				return R_EGRESS_TRUNCATED;
			if (addr_equal(&c.path->peer_identity, &in->saddr) &&
			    addr_equal(&c.path->identity, &in->daddr))
				icmp->icmp6_cksum = csum_apply(
					icmp->icmp6_cksum,
					rewrite_quote6(in, data_end, &c.path->remote,
						       &c.path->local, c.path->csum_egress,
						       in->hop_limit | PLAIT_MARK));
		}
	}
	rewrite_ipv6(ip, &c.path->local, &c.path->remote, ip->hop_limit | PLAIT_MARK_BITS);
	if (off >= 0 &&
	    hook_l4_csum(skb, l4.off + off, c.path->csum_egress, l4_csum_nonzero(l4.proto)))
		return R_EGRESS_REWRITE;
	count_tx(c.index, hook_segments(skb), hook_len(skb), c.moved);
	*verdict = send(skb, c.path);
	return R_NONE;
}

static __noinline int egress_packet(struct __sk_buff *skb, int *verdict)
{
	void *data = hook_data(skb), *data_end = hook_data_end(skb);
	struct ethhdr *eth = data;

	if (!verdict)
		return R_EGRESS_REWRITE;
	if ((void *)(eth + 1) > data_end)
		return R_EGRESS_TRUNCATED;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return egress_ipv4(skb, eth, data_end, verdict);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return egress_ipv6(skb, eth, data_end, verdict);
	return R_EGRESS_NOT_IP;
}

static __always_inline int egress(struct __sk_buff *skb)
{
	int verdict = HOOK_DROP, result = egress_packet(skb, &verdict);

	if (result == R_EGRESS_TRUNCATED && hook_pull(skb))
		result = egress_packet(skb, &verdict);
	if (!result)
		return verdict;
	count(result);
	return HOOK_DROP;
}

#endif
