/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rewriting of addresses and hop limits, in the packet itself and in the packet that an ICMP error
 * quotes. Only direct writes within checked bounds.
 */
#ifndef PLAIT_REWRITE_H
#define PLAIT_REWRITE_H

#include "bpf.h"
#include "csum.h"
#include "parse.h"

/* Writes addresses and TTL; `diff` is the change of the addresses' sum. */
static __always_inline void rewrite_ipv4(struct iphdr *ip, __be32 saddr, __be32 daddr, __u32 diff,
					 __u8 ttl)
{
	__u16 *ttl_proto = (__u16 *)&ip->ttl, old = *ttl_proto;
	__u16 new = (old & bpf_htons(0xff)) | bpf_htons((__u16)ttl << 8);

	ip->saddr = saddr;
	ip->daddr = daddr;
	*ttl_proto = new;
	ip->check = csum_apply(ip->check, csum_add(diff, csum_word(old, new)));
}

/* Returns how the sum of the header changed, beyond `diff` of the addresses: by the hop limit. */
static __always_inline __u32 rewrite_ipv6(struct ipv6hdr *ip, const struct addr *saddr,
					  const struct addr *daddr, __u8 hop_limit)
{
	__u16 *next_hop = (__u16 *)&ip->nexthdr, old = *next_hop;
	__u16 new = (old & bpf_htons(0xff00)) | bpf_htons(hop_limit);

	addr_copy(&ip->saddr, saddr);
	addr_copy(&ip->daddr, daddr);
	*next_hop = new;
	return csum_word(old, new);
}

/* Adjusts a quoted transport checksum if it is there; returns the change of the field. */
static __always_inline __u32 rewrite_quoted_l4(void *l4, void *data_end, __u8 proto, __u32 diff)
{
	int off = l4_csum_off(proto);
	__u16 *check, old;

	if (off < 0)
		return 0;
	check = l4 + off;
	if ((void *)(check + 1) > data_end)
		return 0; /* RFC 792 promises 8 bytes only */
	old = *check;
	if (proto == IPPROTO_UDP && !old)
		return 0;
	*check = csum_apply(old, diff);
	if (l4_csum_nonzero(proto) && !*check)
		*check = 0xffff;
	return csum_word(old, *check);
}

/*
 * Rewrites a quoted IPv4 packet. Returns the change of the quote's sum: its IP header cancels
 * itself out, what remains is the transport checksum.
 */
static __always_inline __u32 rewrite_quote4(struct iphdr *in, void *data_end, __be32 saddr,
					    __be32 daddr, __u32 diff, __u8 ttl)
{
	__u32 hlen = in->ihl * 4;
	int later = !!(in->frag_off & bpf_htons(0x1fff));
	__u8 proto = in->protocol;

	rewrite_ipv4(in, saddr, daddr, diff, ttl);
	if (later || hlen < sizeof(*in) || proto == IPPROTO_ICMPV6)
		return 0;
	return rewrite_quoted_l4((void *)in + hlen, data_end, proto, diff);
}

/* The same for IPv6. Quoted extension headers: addresses only, the stack does not verify quotes. */
static __always_inline __u32 rewrite_quote6(struct ipv6hdr *in, void *data_end,
					    const struct addr *saddr, const struct addr *daddr,
					    __u32 diff, __u8 hop_limit)
{
	__u8 proto = in->nexthdr;
	__u32 change = csum_add(diff, rewrite_ipv6(in, saddr, daddr, hop_limit));

	return csum_add(change, rewrite_quoted_l4(in + 1, data_end, proto, diff));
}

#endif
