/* SPDX-License-Identifier: MIT */
/*
 * ECDSA signatures on the curve P-384 over SHA-384 digests, by OpenSSL's libcrypto, with keys and signatures as the
 * firmware of AMD's security processor has them. Enters: bytes, trusted in nothing, borrowed for the call. Leaves:
 * whether they fit. The thread's queue of libcrypto errors is left as it was: it is the program's. No lock.
 */
#ifndef GMEM_LAUNCH_SNP_P384_H
#define GMEM_LAUNCH_SNP_P384_H

#include <stdint.h>

#include "launch/sha384.h"

/* An integer, little-endian, with room for larger curves. A pair of them: a point (x, y), a signature (r, s). */
#define GMEM_P384_INT 72u
#define GMEM_P384_PAIR (2 * GMEM_P384_INT)

/*
 * Both answer 1 (yes), 0 (no) or -ENOMEM: memory, or a libcrypto configured without the curve.
 * A point with a coordinate that is not below the field's prime is not on the curve, nor is (0, 0).
 */
int gmem_p384_on_curve(const uint8_t point[GMEM_P384_PAIR]);
/* `key` is a point on the curve. r and s of a signature are from 1 to the curve's order less 1. */
int gmem_p384_verify(const uint8_t key[GMEM_P384_PAIR], const uint8_t signature[GMEM_P384_PAIR],
		     const uint8_t digest[GMEM_SHA384_LEN]);

#endif
