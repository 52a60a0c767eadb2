/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SipHash-2-4 (Aumasson, Bernstein, 2012) of whole 64-bit words; compiles on the host too.
 */
#ifndef PLAIT_SIPHASH_H
#define PLAIT_SIPHASH_H

#include <linux/types.h>

#define PLAIT_ROTL64(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

#define PLAIT_SIPROUND(v0, v1, v2, v3)          \
	do {                                    \
		v0 += v1;                       \
		v1 = PLAIT_ROTL64(v1, 13) ^ v0; \
		v0 = PLAIT_ROTL64(v0, 32);      \
		v2 += v3;                       \
		v3 = PLAIT_ROTL64(v3, 16) ^ v2; \
		v0 += v3;                       \
		v3 = PLAIT_ROTL64(v3, 21) ^ v0; \
		v2 += v1;                       \
		v1 = PLAIT_ROTL64(v1, 17) ^ v2; \
		v2 = PLAIT_ROTL64(v2, 32);      \
	} while (0)

/* Tag of four little-endian words under key k0, k1: the value SipHash gives for those 32 bytes. */
static inline __attribute__((always_inline)) __u64 siphash_4words(__u64 k0, __u64 k1, __u64 w0,
								  __u64 w1, __u64 w2, __u64 w3)
{
	__u64 v0 = k0 ^ 0x736f6d6570736575ULL, v1 = k1 ^ 0x646f72616e646f6dULL;
	__u64 v2 = k0 ^ 0x6c7967656e657261ULL, v3 = k1 ^ 0x7465646279746573ULL;
	__u64 w[5] = { w0, w1, w2, w3, 32ULL << 56 };

#pragma clang loop unroll(full)
	for (int i = 0; i < 5; i++) {
		v3 ^= w[i];
		PLAIT_SIPROUND(v0, v1, v2, v3);
		PLAIT_SIPROUND(v0, v1, v2, v3);
		v0 ^= w[i];
	}
	v2 ^= 0xff;
	PLAIT_SIPROUND(v0, v1, v2, v3);
	PLAIT_SIPROUND(v0, v1, v2, v3);
	PLAIT_SIPROUND(v0, v1, v2, v3);
	PLAIT_SIPROUND(v0, v1, v2, v3);
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif
