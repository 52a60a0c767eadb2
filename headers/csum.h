/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One's complement sums (RFC 1071, RFC 1624) over 32-bit words; host-order carriers of wire bytes. */
#ifndef PLAIT_CSUM_H
#define PLAIT_CSUM_H

#include <linux/types.h>

static inline __attribute__((always_inline)) __u32 csum_add(__u32 a, __u32 b)
{
	a += b;
	return a + (a < b);
}

static inline __attribute__((always_inline)) __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The checksum field `check` after the covered bytes' sum changed by `diff`. */
static inline __attribute__((always_inline)) __u16 csum_apply(__u16 check, __u32 diff)
{
	return ~csum_fold(csum_add((__u16)~check, diff));
}

/* How the sum changes when a 16-bit word (as it lies in memory) changes. */
static inline __attribute__((always_inline)) __u32 csum_word(__u16 from, __u16 to)
{
	return csum_add((__u16)~from, to);
}

static inline __attribute__((always_inline)) __u32 csum_words4(const __u32 *w)
{
	return csum_add(csum_add(w[0], w[1]), csum_add(w[2], w[3]));
}

static inline __attribute__((always_inline)) __u32 csum_fold64(__u64 w)
{
	return csum_add((__u32)w, w >> 32);
}

#endif
