/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program includes: kernel and libbpf headers, and constants newer than some of them. */
#ifndef PLAIT_BPF_H
#define PLAIT_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmpv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Verdicts of tcx programs, enum tcx_action_base (Linux 6.6). */
#define PLAIT_TCX_NEXT (-1)
#define PLAIT_TCX_DROP 2

/* linux/icmp.h would pull in the C library. RFC 792. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 rest;
};

#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define PLAIT_AF_INET 2
#define PLAIT_AF_INET6 10

#endif
