/* SPDX-License-Identifier: MIT */
/*
 * What Intel's TDX module answers to a call: completion status codes of its ABI, 1.5. The upper half says what it came
 * to, the lower one may name an operand or a level.
 * Enters: a status. Leaves: words for it. No lock.
 */
#ifndef GMEM_LAUNCH_TDX_STATUS_H
#define GMEM_LAUNCH_TDX_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#define GMEM_TDX_SUCCESS 0ull
#define GMEM_TDX_OPERAND_INVALID 0xc000010000000000ull
#define GMEM_TDX_OPERAND_BUSY 0x8000020000000000ull
#define GMEM_TDX_PREVIOUS_TLB_EPOCH_BUSY 0x8000020100000000ull
#define GMEM_TDX_PAGE_METADATA_INCORRECT 0xc000030000000000ull
#define GMEM_TDX_TD_FATAL 0xe000060400000000ull
#define GMEM_TDX_OP_STATE_INCORRECT 0xc000060800000000ull
#define GMEM_TDX_NO_VCPUS 0xc000060900000000ull
#define GMEM_TDX_VCPU_STATE_INCORRECT 0xc000070000000000ull
#define GMEM_TDX_MAX_VCPUS_EXCEEDED 0xc000070500000000ull
#define GMEM_TDX_TD_KEYS_NOT_CONFIGURED 0x8000081000000000ull
#define GMEM_TDX_EPT_WALK_FAILED 0xc0000b0000000000ull
#define GMEM_TDX_EPT_ENTRY_NOT_PRESENT 0xc0000b0300000000ull
#define GMEM_TDX_GPA_RANGE_NOT_BLOCKED 0xc0000b0600000000ull
#define GMEM_TDX_GPA_RANGE_ALREADY_BLOCKED 0x00000b0700000000ull
#define GMEM_TDX_TLB_TRACKING_NOT_DONE 0xc0000b0800000000ull
#define GMEM_TDX_PAGE_ALREADY_ACCEPTED 0x00000b0a00000000ull
#define GMEM_TDX_PAGE_SIZE_MISMATCH 0xc0000b0b00000000ull
#define GMEM_TDX_EPT_ENTRY_STATE_INCORRECT 0xc0000b0d00000000ull

/* A call of the guest's that is none of these ends as an exit of its vCPU, which TDH.VP.ENTER answers. */
#define GMEM_TDX_EXIT_EPT_VIOLATION 48ull

/* The operands that a status may name. */
#define GMEM_TDX_RCX 1u
#define GMEM_TDX_RDX 2u
#define GMEM_TDX_R8 8u
#define GMEM_TDX_ATTRIBUTES 64u
#define GMEM_TDX_XFAM 65u
#define GMEM_TDX_MAX_VCPUS 68u

static inline uint64_t gmem_tdx_status_class(uint64_t status)
{
	return status & 0xffffffff00000000ull;
}

static inline bool gmem_tdx_busy(uint64_t status)
{
	return gmem_tdx_status_class(status) == GMEM_TDX_OPERAND_BUSY;
}

/* The name of its class, "EPT_WALK_FAILED"; "unknown status" for one that has none. Never NULL. */
const char *gmem_tdx_status_text(uint64_t status);

/* Leaves the text "CALL: NAME (0x...)" and returns `err`. */
int gmem_tdx_status_err(int err, const char *call, uint64_t status);

#endif
