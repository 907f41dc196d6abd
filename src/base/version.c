/* SPDX-License-Identifier: MIT */
#include "gmem.h"

#define STR_(x) #x
#define STR(x) STR_(x)

const char *gmem_version(void)
{
	return STR(GMEM_VERSION_MAJOR) "." STR(GMEM_VERSION_MINOR) "." STR(GMEM_VERSION_PATCH);
}
