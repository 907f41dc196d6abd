/* SPDX-License-Identifier: MIT */
#include "launch/tdx/status.h"

#include <stddef.h>

#include "base/err.h"

#define NAME(x)                  \
	{                        \
		GMEM_TDX_##x, #x \
	}

static const struct {
	uint64_t status;
	const char *name;
} names[] = {
	NAME(SUCCESS),
	NAME(OPERAND_INVALID),
	NAME(OPERAND_BUSY),
	NAME(PREVIOUS_TLB_EPOCH_BUSY),
	NAME(PAGE_METADATA_INCORRECT),
	NAME(TD_FATAL),
	NAME(OP_STATE_INCORRECT),
	NAME(NO_VCPUS),
	NAME(VCPU_STATE_INCORRECT),
	NAME(MAX_VCPUS_EXCEEDED),
	NAME(TD_KEYS_NOT_CONFIGURED),
	NAME(EPT_WALK_FAILED),
	NAME(EPT_ENTRY_NOT_PRESENT),
	NAME(GPA_RANGE_NOT_BLOCKED),
	NAME(GPA_RANGE_ALREADY_BLOCKED),
	NAME(TLB_TRACKING_NOT_DONE),
	NAME(PAGE_ALREADY_ACCEPTED),
	NAME(PAGE_SIZE_MISMATCH),
	NAME(EPT_ENTRY_STATE_INCORRECT),
};

const char *gmem_tdx_status_text(uint64_t status)
{
	if (status == GMEM_TDX_EXIT_EPT_VIOLATION)
		return "EPT violation";
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (names[i].status == gmem_tdx_status_class(status))
			return names[i].name;
	return "unknown status";
}

int gmem_tdx_status_err(int err, const char *call, uint64_t status)
{
	return gmem_err(err, "%s: %s (0x%016llx)", call, gmem_tdx_status_text(status), (unsigned long long)status);
}
