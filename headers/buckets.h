/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Choice of a path among usable ones; compiles on the host too.
 */
#ifndef PLAIT_BUCKETS_H
#define PLAIT_BUCKETS_H

#include "types.h"

/* Mixes bucket and path number: the rendezvous weight (Thaler, Ravishankar 1998). */
static inline __attribute__((always_inline)) __u32 bucket_score(__u32 bucket, __u32 number)
{
	__u32 x = (bucket * PLAIT_MAX_PATHS + number + 1) * 0x9e3779b1;

	x ^= x >> 15;
	x *= 0x85ebca77;
	x ^= x >> 13;
	x *= 0xc2b2ae3d;
	return x ^ x >> 16;
}

/*
 * The second choice of a bucket whose own path is not usable: the highest score among `usable`
 * (one bit a path number, not 0). Only this bucket's flows move, whatever else is down.
 */
static inline __attribute__((always_inline)) __u32 bucket_second(__u32 bucket, __u64 usable)
{
	__u32 best = 0, best_score = 0;

	for (__u32 j = 0; j < PLAIT_MAX_PATHS; j++) {
		__u32 score;

		if (!(usable >> j & 1))
			continue;
		score = bucket_score(bucket, j) | 1;
		if (score > best_score) {
			best_score = score;
			best = j;
		}
	}
	return best;
}

#endif
