/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SipHash-2-4 (Aumasson, Bernstein, 2012), word by word; compiles on the host too.
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

#define PLAIT_SIP_INLINE static inline __attribute__((always_inline))

PLAIT_SIP_INLINE void sip_begin(__u64 v[4], __u64 k0, __u64 k1)
{
	v[0] = k0 ^ 0x736f6d6570736575ULL;
	v[1] = k1 ^ 0x646f72616e646f6dULL;
	v[2] = k0 ^ 0x6c7967656e657261ULL;
	v[3] = k1 ^ 0x7465646279746573ULL;
}

/* One little-endian word of the message. */
PLAIT_SIP_INLINE void sip_word(__u64 v[4], __u64 w)
{
	v[3] ^= w;
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	v[0] ^= w;
}

/* The last word holds the remaining 0 to 7 bytes of the message below the message's length << 56. */
PLAIT_SIP_INLINE __u64 sip_end(__u64 v[4], __u64 last)
{
	sip_word(v, last);
	v[2] ^= 0xff;
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	PLAIT_SIPROUND(v[0], v[1], v[2], v[3]);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
