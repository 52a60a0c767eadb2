/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
//go:build ignore

/*
 * The port of a fabric, seen by the kernel: whatever enters a fabric passes lab_port_xdp (wire form)
 * or lab_port_tc (virtual form), which drops it while the fabric is cut, loses it with a given
 * probability, and counts. One C function stands behind both hooks. XDP comes before GRO, so the
 * wire form decides about packets as they were on the wire; tcx sees super-packets and decides
 * about each as a whole.
 *
 * lab_relay is attached to the egress of a port only while a user-space relay delays it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_PORTS 1024
#define MAX_FABRICS 16
#define CUT_ALL (~0ULL)
#define PORT_NEXT (-1)	 /* TCX_NEXT, which linux/bpf.h has from 6.6 on */
#define PORT_DROP 2	 /* TCX_DROP */
#define RELAY_MARK 0x1ab /* SO_MARK of a relay's socket: this frame was held already */

/* Written by user space through mmap, one word at a time; read at every packet. */
struct fabric {
	__u64 cut; /* not 0: everything that enters the fabric is dropped */
	__u64 pad[7];
};

struct port {
	__u64 cut;   /* bit j-1: drop what is for host j; CUT_ALL: drop everything */
	__u64 loss;  /* probability of a random drop in units of 2^-32; 1 << 32 drops all */
	__u64 relay; /* interface index of the relay's tap, 0 for none */
	__u64 pad[5];
};

_Static_assert(sizeof(struct fabric) == 64, "struct fabric is shared with user space");
_Static_assert(sizeof(struct port) == 64, "struct port is shared with user space");

/* Per CPU; only ever written by the programs. */
struct counters {
	__u64 packets; /* passed */
	__u64 bytes;   /* of those, with the Ethernet header */
	__u64 cut;     /* dropped by a cut */
	__u64 lost;    /* dropped at random */
	__u64 longest; /* bytes of the longest frame that entered, with the Ethernet header */
};

/* key: number of the fabric from 0 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_FABRICS);
	__type(key, __u32);
	__type(value, struct fabric);
} lab_fabrics SEC(".maps");

/* key: number of the port from 0, see portIndex in package lab */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct port);
} lab_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct counters);
} lab_counters SEC(".maps");

/* Set before loading; each port has its own copy of the programs. */
const volatile __u32 this_fabric = 0; /* number from 0 */
const volatile __u32 this_port = 0;
/* 1: hosts share the subnet, and their number is in the last byte of an address */
const volatile __u32 is_flat = 0;

struct arp_ipv4 {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

_Static_assert(sizeof(struct arp_ipv4) == 28, "RFC 826 on Ethernet and IPv4");

/* Number of the host, from 1, that owns this IPv4 locator of this fabric; 0 for any other address. */
static __always_inline __u32 host_of_ipv4(const __u8 *a)
{
	if (a[0] != 10 || a[1] != this_fabric + 1)
		return 0;
	return is_flat ? a[3] : a[2];
}

static __always_inline __u32 host_of_ipv6(const struct in6_addr *a)
{
	if (a->in6_u.u6_addr16[0] != bpf_htons(0xfd00) ||
	    a->in6_u.u6_addr16[1] != bpf_htons(this_fabric + 1))
		return 0;
	return bpf_ntohs(is_flat ? a->in6_u.u6_addr16[7] : a->in6_u.u6_addr16[2]);
}

/* Number of the host, from 1, that the frame is for, or 0 when it is for no host's locator. */
static __always_inline __u32 destination_host(void *data, void *data_end)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > data_end)
			return 0;
		return host_of_ipv4((const __u8 *)&ip->daddr);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > data_end)
			return 0;
		return host_of_ipv6(&ip6->daddr);
	}
	if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
		struct arp_ipv4 *arp = (void *)(eth + 1);

		if ((void *)(arp + 1) > data_end)
			return 0;
		return host_of_ipv4(arp->target_ip);
	}
	return 0;
}

/* 1 to pass the frame, 0 to drop it. len is that of the whole frame in bytes. */
static __always_inline int enter(void *data, void *data_end, __u64 len)
{
	__u32 port = this_port, fabric = this_fabric;
	struct fabric *f = bpf_map_lookup_elem(&lab_fabrics, &fabric);
	struct port *p = bpf_map_lookup_elem(&lab_ports, &port);
	struct counters *c = bpf_map_lookup_elem(&lab_counters, &port);

	if (!f || !p || !c)
		return 0; /* cannot be: a lab that is not as described must not look healthy */
	if (len > c->longest)
		c->longest = len;
	if (f->cut) {
		c->cut++;
		return 0;
	}
	if (p->cut) {
		__u64 cut = p->cut;
		__u32 host = cut == CUT_ALL ? 1 : destination_host(data, data_end);

		if (host >= 1 && host <= 64 && (cut >> (host - 1)) & 1) {
			c->cut++;
			return 0;
		}
	}
	if (p->loss && bpf_get_prandom_u32() < p->loss) {
		c->lost++;
		return 0;
	}
	c->packets++;
	c->bytes += len;
	return 1;
}

SEC("xdp.frags")
int lab_port_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;

	return enter(data, data_end, bpf_xdp_get_buff_len(ctx)) ? XDP_PASS : XDP_DROP;
}

SEC("tc")
int lab_port_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;

	return enter(data, data_end, skb->len) ? PORT_NEXT : PORT_DROP;
}

/*
 * The host's end of a wire: only counts. It is there because veth segments super-packets, and polls
 * (NAPI), only where the other end has an XDP program.
 */
SEC("xdp.frags")
int lab_uplink_xdp(struct xdp_md *ctx)
{
	__u64 len = bpf_xdp_get_buff_len(ctx);
	__u32 port = this_port;
	struct counters *c = bpf_map_lookup_elem(&lab_counters, &port);

	if (!c)
		return XDP_PASS;
	if (len > c->longest)
		c->longest = len;
	c->packets++;
	c->bytes += len;
	return XDP_PASS;
}

/* Egress of a port: hand the frame to the relay, unless it comes from there. */
SEC("tc")
int lab_relay(struct __sk_buff *skb)
{
	__u32 port = this_port;
	struct port *p = bpf_map_lookup_elem(&lab_ports, &port);

	if (!p || !p->relay || skb->mark == RELAY_MARK)
		return PORT_NEXT;
	return bpf_redirect(p->relay, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
