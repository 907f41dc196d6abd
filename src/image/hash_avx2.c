/* SPDX-License-Identifier: MIT */
/*
 * XXH3-64 compiled for AVX2 in a build whose baseline is lower: everything between push and pop may use it, and nothing
 * in this file runs before gmem_image_hash() has asked the CPU.
 */
#include "image/hash.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2: clang's attribute does not define __AVX2__ */
#include <xxhash.h>

uint64_t gmem_image_hash_avx2(const void *data, size_t len)
{
	return XXH3_64bits(data, len);
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
