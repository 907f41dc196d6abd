/* SPDX-License-Identifier: MIT */
/* TEMPORARY: what is not there yet. */
#include <errno.h>

#include "base/err.h"
#include "launch/launch.h"

__attribute__((weak)) int gmem_snp_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts,
						 struct gmem_launch **ret)
{
	return gmem_err(-EOPNOTSUPP, "not yet");
}
