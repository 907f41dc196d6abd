/* SPDX-License-Identifier: MIT */
/* Structures of options that grow: `size` says which version the caller was compiled with. */
#ifndef GMEM_BASE_OPTS_H
#define GMEM_BASE_OPTS_H

#include <stdbool.h>
#include <stddef.h>

/*
 * True if a caller's structure of `size` bytes may be read as one of `known` bytes: it is not smaller, and what a
 * newer caller has beyond that is zero, so that nothing it asks for is ignored.
 */
static inline bool gmem_opts_valid(const void *opts, size_t size, size_t known)
{
	const unsigned char *p = opts;

	if (size < known)
		return false;
	for (size_t i = known; i < size; i++)
		if (p[i])
			return false;
	return true;
}

#endif
