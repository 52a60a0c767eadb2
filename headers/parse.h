/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parsing of IPv4 and IPv6 headers behind an Ethernet header. Offsets count from the start of the
 * frame and are bounded so that the verifier accepts them as packet offsets.
 */
#ifndef PLAIT_PARSE_H
#define PLAIT_PARSE_H

#include "bpf.h"
#include "types.h"

#define L3_OFF ((__u32)sizeof(struct ethhdr))
#define MAX_L4_OFF 0xff /* IPv6 with 200 bytes of extension headers; more is unsupported */
#define MAX_EXT_HEADERS 6

#ifndef IPPROTO_SCTP
#define IPPROTO_SCTP 132
#endif
#define PROTO_UDPLITE 136
#define PROTO_DCCP 33

/* What lies behind the IP header. */
struct l4 {
	__u32 off;	/* of the transport header, at most MAX_L4_OFF */
	__u32 later;	/* a fragment other than the first: no transport header */
	__u32 fragment; /* any fragment */
	__u8 proto;
};

enum parse_result {
	PARSE_OK = 0,
	PARSE_TRUNCATED = -1,
	PARSE_UNSUPPORTED = -2,
};

static __always_inline int parse_ipv4(void *data, void *data_end, struct iphdr *ip, struct l4 *l4)
{
	__u32 hlen = ip->ihl * 4;
	__u16 frag = ip->frag_off;

	if (ip->ihl < 5 || (void *)ip + hlen > data_end)
		return PARSE_TRUNCATED;
	l4->off = (L3_OFF + hlen) & MAX_L4_OFF;
	l4->later = !!(frag & bpf_htons(0x1fff));
	l4->fragment = !!(frag & bpf_htons(0x3fff));
	l4->proto = ip->protocol;
	return l4->proto == IPPROTO_AH ? PARSE_UNSUPPORTED : PARSE_OK;
}

/* Walks hop-by-hop, destination options, spent routing headers and the fragment header. */
static __always_inline int parse_ipv6(void *data, void *data_end, struct ipv6hdr *ip, struct l4 *l4)
{
	__u32 off = L3_OFF + sizeof(*ip);
	__u8 next = ip->nexthdr;

	l4->later = 0;
	l4->fragment = 0;
	for (int i = 0; i < MAX_EXT_HEADERS; i++) {
		__u8 *h;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_FRAGMENT)
			break;
		if (l4->later)
			break;
		h = data + (off & MAX_L4_OFF);
		if ((void *)(h + 8) > data_end)
			return PARSE_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			__be16 frag = *(__be16 *)(h + 2);

			l4->later = !!(frag & bpf_htons(0xfff8));
			l4->fragment = !!(frag & bpf_htons(0xfff9));
			off += 8;
		} else {
			if (next == IPPROTO_ROUTING && h[3])
				return PARSE_UNSUPPORTED;
			off += (h[1] + 1) * 8;
		}
		next = h[0];
		if (off > MAX_L4_OFF)
			return PARSE_UNSUPPORTED;
	}
	l4->off = off & MAX_L4_OFF;
	l4->proto = next;
	if (l4->later)
		return PARSE_OK;
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING ||
	    next == IPPROTO_FRAGMENT || next == IPPROTO_AH)
		return PARSE_UNSUPPORTED;
	return PARSE_OK;
}

/* Offset of a checksum that covers the addresses within the transport header, or -1. */
static __always_inline int l4_csum_off(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
	case PROTO_UDPLITE:
	case PROTO_DCCP:
		return 6;
	case IPPROTO_ICMPV6:
		return 2;
	}
	return -1;
}

/* A computed checksum of zero is sent as all ones: RFC 768, RFC 3828 section 3.1. */
static __always_inline int l4_csum_nonzero(__u8 proto)
{
	return proto == IPPROTO_UDP || proto == PROTO_UDPLITE;
}

static __always_inline int icmp4_is_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* Neighbour and multicast listener discovery stay on their link (RFC 4861, RFC 2710). */
static __always_inline int icmp6_is_link_scoped(__u8 type)
{
	return type >= 130 && type <= 137;
}

static __always_inline int addr_equal(const struct addr *a, const void *b)
{
	const __be32 *w = b;

	return ((a->a[0] ^ w[0]) | (a->a[1] ^ w[1]) | (a->a[2] ^ w[2]) | (a->a[3] ^ w[3])) == 0;
}

static __always_inline void addr_copy(void *to, const struct addr *from)
{
	__be32 *w = to;

	w[0] = from->a[0];
	w[1] = from->a[1];
	w[2] = from->a[2];
	w[3] = from->a[3];
}

#endif
