/* SPDX-License-Identifier: MIT */
/* Conversion in place where userfaultfd is forbidden: an empty file is mapped over private pages. */
#include "tap.h"

#include "convert_cases.h"

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	(void)features;
	(void)user_mode_only;
	return -EPERM;
}
