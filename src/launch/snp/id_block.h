/* SPDX-License-Identifier: MIT */
/*
 * The ID block of a launch: what its owner signed that the guest shall be, checked by the firmware at
 * SNP_LAUNCH_FINISH ("ID Block Structure" and "ID Authentication Information Structure" of the SEV-SNP Firmware ABI).
 * Enters: both as bytes of any alignment, trusted in nothing, and what was launched. Leaves: the firmware's status, and
 * what the attestation report would say. No lock, but nobody may write to the bytes during the call.
 *
 * As the firmware does it: the version of an ID block, reserved bytes, and padding of keys and signatures are not
 * looked at. The padding of a key is part of its digest, and of what an author signs. One thing is assumed: that its
 * hardware refuses a public key with coordinates that are not below the field's prime.
 */
#ifndef GMEM_LAUNCH_SNP_ID_BLOCK_H
#define GMEM_LAUNCH_SNP_ID_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "launch/sha384.h"

#define GMEM_SNP_ID_BLOCK_LEN 96u
#define GMEM_SNP_ID_AUTH_LEN 4096u

/* Of a guest without ID block or without author all zero, as is what the report then has. */
struct gmem_snp_id {
	uint8_t family_id[16], image_id[16];
	uint32_t version, guest_svn;
	uint8_t id_key_digest[GMEM_SHA384_LEN]; /* SHA-384 of a key with its padding */
	uint8_t author_key_digest[GMEM_SHA384_LEN];
};

/*
 * Answers what the firmware does, in its order: 0, GMEM_SEV_RET_BAD_MEASUREMENT, _POLICY_FAILURE, _INVALID_PARAM (a
 * key's algorithm) or _BAD_SIGNATURE (curve, point or signature); `ret` is written on 0 only. -ENOMEM (libcrypto).
 */
int gmem_snp_id_verify(const uint8_t id_block[GMEM_SNP_ID_BLOCK_LEN], const uint8_t id_auth[GMEM_SNP_ID_AUTH_LEN],
		       const uint8_t ld[GMEM_SHA384_LEN], uint64_t policy, bool auth_key_en, struct gmem_snp_id *ret);

#endif
