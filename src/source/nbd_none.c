/* SPDX-License-Identifier: MIT */
/* Built without libnbd. */
#include <errno.h>

#include "base/err.h"
#include "gmem.h"

int gmem_source_new_nbd(const char *uri, const struct gmem_nbd_opts *opts, struct gmem_source **ret)
{
	return gmem_err(-EOPNOTSUPP, "gmem_source_new_nbd: %s: this gmem was built without libnbd", uri);
}
