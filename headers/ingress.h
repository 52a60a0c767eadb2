/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ingress on an uplink: answers and records probes, restores identities, passes everything else
 * untouched. One function behind two hooks; include hook_tc.h or hook_xdp.h first.
 */
#ifndef PLAIT_INGRESS_H
#define PLAIT_INGRESS_H

#include "bpf.h"
#include "csum.h"
#include "parse.h"
#include "path.h"
#include "probe.h"
#include "rewrite.h"

/* Outcomes beside enum reason (positive: count it, drop). */
enum ingress_result {
	INGRESS_PASS = 0,      /* not plait's, or restored */
	INGRESS_CONSUMED = -1, /* a recorded reply */
	INGRESS_BOUNCE = -2,   /* a reflected probe */
	INGRESS_BOUNCE_UNCONFIRMED = -3,
	INGRESS_SHORT = -4,   /* nothing touched; headers end early, not known to be plait's */
	INGRESS_FOREIGN = -5, /* a probe between hosts that are not our peers: count, pass */
};

/*
 * Accounts for a restored packet. Liveness takes one from the peer as evidence; what a router says
 * of a cut path is none.
 */
static __always_inline void restored(hook_ctx *ctx, __u32 index, struct path *path, int from_peer)
{
	struct group_state *gs = live_group(path->group);
	struct path_state *ps = live_path(index, 0);

	if (gs && ps && from_peer)
		live_heard(gs, ps);
	count_rx(index, hook_segments(ctx), hook_len(ctx));
}

/* Swaps what a reflected frame swaps at the Ethernet and UDP layers. */
static __always_inline void bounce_swap(struct ethhdr *eth, struct udphdr *udp, __u32 change)
{
	__u8 mac[ETH_ALEN];
	__be16 port = udp->source;

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	udp->source = udp->dest;
	udp->dest = port;
	if (udp->check) {
		__u16 sum = csum_apply(udp->check, change);

		udp->check = sum ?: 0xffff;
	}
}

static __always_inline int is_probe_port(const struct udphdr *udp)
{
	return udp->dest == bpf_htons(PLAIT_SBFD_PORT) || udp->source == bpf_htons(PLAIT_SBFD_PORT);
}

/* A packet of the S-BFD port from a known pair; `l3_len` is the IP payload's length. */
static __always_inline int ingress_probe(struct udphdr *udp, void *data_end, struct l4 *l4,
					 __u32 l3_len, __u32 index, __u32 *change)
{
	struct probe *p = (struct probe *)(udp + 1);

	if (l4->fragment)
		return R_PROBE_FORMAT;
	if ((void *)(p + 1) > data_end)
		return R_PROBE_TRUNCATED;
	if (udp->len != bpf_htons(sizeof(*udp) + sizeof(*p)) || l3_len != sizeof(*udp) + sizeof(*p))
		return R_PROBE_FORMAT;
	return probe_receive(p, udp->source == bpf_htons(PLAIT_SBFD_PORT), index, change);
}

/*
 * An IPv4 ICMP error whose quote is a translated packet of ours: from the peer, or from a router,
 * whose address stays. Returns INGRESS_PASS having changed nothing if the quote is not.
 */
static __always_inline int ingress_icmp4(hook_ctx *ctx, struct iphdr *ip, struct icmphdr *icmp,
					 void *data_end)
{
	struct iphdr *in = (struct iphdr *)(icmp + 1);
	struct path *path;
	__be32 saddr = ip->saddr;
	__u32 *index, change, diff;
	int from_peer;
	__u8 ttl = ip->ttl;
	__be16 *ports;

	if ((void *)(in + 1) > data_end)
		return INGRESS_SHORT;
	if (in->version != 4 || in->ihl < 5 || in->ttl < PLAIT_MARK)
		return INGRESS_PASS;
	ports = (void *)in + in->ihl * 4;
	if (!(in->frag_off & bpf_htons(0x1fff))) {
		if ((void *)(ports + 2) > data_end)
			return INGRESS_SHORT;
		if (is_native(in->protocol, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
			return INGRESS_PASS;
	}
	if (in->saddr != ip->daddr)
		return INGRESS_PASS;
	index = pair4_get(in->saddr, in->daddr);
	path = index ? path_get(*index) : 0;
	if (!path)
		return INGRESS_PASS;

	change = rewrite_quote4(in, data_end, path->identity.a[0], path->peer_identity.a[0],
				path->csum_ingress, in->ttl - PLAIT_MARK);
	icmp->checksum = csum_apply(icmp->checksum, change);
	diff = csum_add(~ip->daddr, path->identity.a[0]);
	from_peer = saddr == path->remote.a[0];
	if (from_peer) {
		saddr = path->peer_identity.a[0];
		diff = path->csum_ingress;
		if (ttl >= PLAIT_MARK)
			ttl -= PLAIT_MARK;
	}
	rewrite_ipv4(ip, saddr, path->identity.a[0], diff, ttl);
	restored(ctx, *index, path, from_peer);
	return INGRESS_PASS;
}

static __always_inline int ingress_icmp6(hook_ctx *ctx, struct ipv6hdr *ip, struct icmp6hdr *icmp,
					 void *data_end)
{
	struct ipv6hdr *in = (struct ipv6hdr *)(icmp + 1);
	struct addr source;
	struct path *path;
	__u32 *index, change, diff, hop_change;
	__u8 hop_limit = ip->hop_limit;
	int from_peer;
	__be16 *ports;

	if ((void *)(in + 1) > data_end)
		return INGRESS_SHORT;
	if (in->version != 6 || in->hop_limit < PLAIT_MARK)
		return INGRESS_PASS;
	ports = (void *)(in + 1);
	if (in->nexthdr == IPPROTO_TCP || in->nexthdr == IPPROTO_UDP) {
		if ((void *)(ports + 2) > data_end)
			return INGRESS_SHORT;
		if (is_native(in->nexthdr, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
			return INGRESS_PASS;
	}
	__builtin_memcpy(&source, &ip->daddr, sizeof(source));
	if (!addr_equal(&source, &in->saddr))
		return INGRESS_PASS;
	index = pair6_get(&in->saddr, &in->daddr);
	path = index ? path_get(*index) : 0;
	if (!path)
		return INGRESS_PASS;

	change = rewrite_quote6(in, data_end, &path->identity, &path->peer_identity,
				path->csum_ingress, in->hop_limit - PLAIT_MARK);
	__builtin_memcpy(&source, &ip->saddr, sizeof(source));
	from_peer = addr_equal(&source, &path->remote);
	if (from_peer) {
		source = path->peer_identity;
		diff = path->csum_ingress;
		if (hop_limit >= PLAIT_MARK)
			hop_limit -= PLAIT_MARK;
	} else {
		diff = csum_add(~csum_words4(path->local.a), csum_words4(path->identity.a));
	}
	icmp->icmp6_cksum = csum_apply(icmp->icmp6_cksum, csum_add(change, diff));
	hop_change = rewrite_ipv6(ip, &source, &path->identity, hop_limit);
	restored(ctx, *index, path, from_peer);
	hook_csum_complete(ctx, hop_change); /* all else cancels out in the checksum */
	return INGRESS_PASS;
}

static __always_inline int ingress_ipv4(hook_ctx *ctx, struct ethhdr *eth, void *data_end)
{
	void *data = eth;
	struct iphdr *ip = (struct iphdr *)(eth + 1);
	struct l4 l4 = {};
	struct path *path;
	__u32 *found, index, change = 0;
	__be32 saddr, daddr;
	__be16 *ports;
	int err, off;

	if ((void *)(ip + 1) > data_end)
		return INGRESS_SHORT;
	if (ip->ttl < PLAIT_MARK && ip->protocol != IPPROTO_ICMP)
		return INGRESS_PASS;
	err = parse_ipv4(data, data_end, ip, &l4);
	ports = data + l4.off;

	if (ip->protocol == IPPROTO_ICMP && !err && !l4.later) {
		struct icmphdr *icmp = (struct icmphdr *)ports;

		if ((void *)(icmp + 1) > data_end)
			return INGRESS_SHORT;
		if (icmp4_is_error(icmp->type)) {
			__u8 ttl = ip->ttl;
			__be32 source = ip->saddr;

			err = ingress_icmp4(ctx, ip, icmp, data_end);
			if (err || source != ip->saddr || ttl != ip->ttl || ttl < PLAIT_MARK)
				return err;
			/* Marked, of a peer, but about something else: only the outer header. */
		} else if (ip->ttl < PLAIT_MARK) {
			return INGRESS_PASS;
		}
	} else if (ip->ttl < PLAIT_MARK) {
		return INGRESS_PASS;
	}

	saddr = ip->saddr;
	daddr = ip->daddr;
	found = pair4_get(daddr, saddr);
	path = found ? path_get(*found) : 0;
	if (!path) {
		if (!err && !l4.later && l4.proto == IPPROTO_UDP &&
		    (void *)(ports + 4) <= data_end && is_probe_port((struct udphdr *)ports))
			return INGRESS_FOREIGN;
		return INGRESS_PASS;
	}
	index = *found;
	if (err)
		return err == PARSE_TRUNCATED ? R_INGRESS_TRUNCATED : R_INGRESS_UNSUPPORTED;

	off = -1;
	if (!l4.later) {
		if (l4.proto == IPPROTO_TCP || l4.proto == IPPROTO_UDP) {
			if ((void *)(ports + 4) > data_end)
				return R_INGRESS_TRUNCATED;
			if (l4.proto == IPPROTO_UDP && is_probe_port((struct udphdr *)ports)) {
				__u32 len = bpf_ntohs(ip->tot_len) + L3_OFF - l4.off;

				err = ingress_probe((struct udphdr *)ports, data_end, &l4, len,
						    index, &change);
				if (err != PROBE_REFLECT && err != PROBE_REFLECT_UNCONFIRMED)
					return err;
				rewrite_ipv4(ip, daddr, saddr, 0, 255);
				bounce_swap(eth, (struct udphdr *)ports, change);
				return err;
			}
			if (is_native(l4.proto, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
				return INGRESS_PASS;
		}
		if (l4.proto != IPPROTO_ICMPV6)
			off = l4_csum_off(l4.proto);
		if (off >= 0 && (void *)ports + off + 2 > data_end)
			return R_INGRESS_TRUNCATED;
	}

	rewrite_ipv4(ip, path->peer_identity.a[0], path->identity.a[0], path->csum_ingress,
		     ip->ttl - PLAIT_MARK);
	restored(ctx, index, path, 1);
	if (off >= 0 &&
	    hook_l4_csum(ctx, l4.off + off, path->csum_ingress, l4_csum_nonzero(l4.proto)))
		return R_INGRESS_REWRITE;
	return INGRESS_PASS;
}

static __always_inline int ingress_ipv6(hook_ctx *ctx, struct ethhdr *eth, void *data_end)
{
	void *data = eth;
	struct ipv6hdr *ip = (struct ipv6hdr *)(eth + 1);
	struct l4 l4 = {};
	struct path *path;
	__u32 *found, index, change = 0, hop_change;
	__be16 *ports;
	int err, off;

	if ((void *)(ip + 1) > data_end)
		return INGRESS_SHORT;
	if (ip->nexthdr == IPPROTO_ICMPV6) {
		struct icmp6hdr *icmp = (struct icmp6hdr *)(ip + 1);

		if ((void *)(icmp + 1) > data_end)
			return ip->hop_limit < PLAIT_MARK ? INGRESS_PASS : INGRESS_SHORT;
		if (icmp6_is_link_scoped(icmp->icmp6_type))
			return INGRESS_PASS;
		if (icmp->icmp6_type < 128) {
			__u8 hop_limit = ip->hop_limit;
			__be32 source = ip->saddr.in6_u.u6_addr32[3];

			err = ingress_icmp6(ctx, ip, icmp, data_end);
			if (err)
				return err;
			/* hook_csum_complete may have moved the packet */
			data = hook_data(ctx);
			data_end = hook_data_end(ctx);
			eth = data;
			ip = (struct ipv6hdr *)(eth + 1);
			if ((void *)(ip + 1) > data_end)
				return INGRESS_PASS;
			if (hop_limit < PLAIT_MARK || hop_limit != ip->hop_limit ||
			    source != ip->saddr.in6_u.u6_addr32[3])
				return INGRESS_PASS;
			/* Marked, of a peer, but about something else: only the outer header. */
		}
	}
	if (ip->hop_limit < PLAIT_MARK)
		return INGRESS_PASS;

	err = parse_ipv6(data, data_end, ip, &l4);
	ports = data + l4.off;
	found = pair6_get(&ip->daddr, &ip->saddr);
	path = found ? path_get(*found) : 0;
	if (!path) {
		if (!err && !l4.later && l4.proto == IPPROTO_UDP &&
		    (void *)(ports + 4) <= data_end && is_probe_port((struct udphdr *)ports))
			return INGRESS_FOREIGN;
		return INGRESS_PASS;
	}
	index = *found;
	if (err)
		return err == PARSE_TRUNCATED ? R_INGRESS_TRUNCATED : R_INGRESS_UNSUPPORTED;

	off = -1;
	if (!l4.later) {
		if (l4.proto == IPPROTO_TCP || l4.proto == IPPROTO_UDP) {
			if ((void *)(ports + 4) > data_end)
				return R_INGRESS_TRUNCATED;
			if (l4.proto == IPPROTO_UDP && is_probe_port((struct udphdr *)ports)) {
				__u32 len = bpf_ntohs(ip->payload_len) + sizeof(*ip) + L3_OFF -
					    l4.off;

				err = ingress_probe((struct udphdr *)ports, data_end, &l4, len,
						    index, &change);
				if (err != PROBE_REFLECT && err != PROBE_REFLECT_UNCONFIRMED)
					return err;
				rewrite_ipv6(ip, &path->local, &path->remote, 255);
				bounce_swap(eth, (struct udphdr *)ports, change);
				return err;
			}
			if (is_native(l4.proto, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
				return INGRESS_PASS;
		}
		off = l4_csum_off(l4.proto);
		if (off >= 0 && (void *)ports + off + 2 > data_end)
			return R_INGRESS_TRUNCATED;
	}

	hop_change = rewrite_ipv6(ip, &path->peer_identity, &path->identity,
				  ip->hop_limit - PLAIT_MARK);
	restored(ctx, index, path, 1);
	if (off >= 0 &&
	    hook_l4_csum(ctx, l4.off + off, path->csum_ingress, l4_csum_nonzero(l4.proto)))
		return R_INGRESS_REWRITE;
	hook_csum_complete(ctx, csum_add(path->csum_ingress, hop_change));
	return INGRESS_PASS;
}

static __noinline int ingress_packet(hook_ctx *ctx)
{
	void *data = hook_data(ctx), *data_end = hook_data_end(ctx);
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return INGRESS_SHORT;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ingress_ipv4(ctx, eth, data_end);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return ingress_ipv6(ctx, eth, data_end);
	return INGRESS_PASS;
}

/* The entry points' only line: outcome to verdict, and the one place that counts it. */
static __always_inline int ingress(hook_ctx *ctx)
{
	int result;

	if (hook_vlan(ctx))
		return HOOK_PASS;
	result = ingress_packet(ctx);
	if ((result == INGRESS_SHORT || result == R_INGRESS_TRUNCATED ||
	     result == R_PROBE_TRUNCATED) &&
	    hook_pull(ctx))
		result = ingress_packet(ctx);
	switch (result) {
	case INGRESS_PASS:
	case INGRESS_SHORT:
		return HOOK_PASS;
	case INGRESS_CONSUMED:
		return HOOK_DROP;
	case INGRESS_FOREIGN:
		count(R_PROBE_FOREIGN);
		return HOOK_PASS;
	case INGRESS_BOUNCE_UNCONFIRMED:
		count(R_PROBE_UNCONFIRMED);
		return hook_bounce(ctx);
	case INGRESS_BOUNCE:
		return hook_bounce(ctx);
	}
	if (result == R_INGRESS_TRUNCATED &&
	    hook_len(ctx) > (__u32)(hook_data_end(ctx) - hook_data(ctx)))
		result = R_INGRESS_SHORT_LINEAR;
	count(result);
	return HOOK_DROP;
}

#endif
