/* SPDX-License-Identifier: MIT */
/* The checksum of the image format: XXH3-64 with seed 0. It finds accidents, not forgeries. */
#ifndef GMEM_IMAGE_HASH_H
#define GMEM_IMAGE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t gmem_image_hash(const void *data, size_t len);

#if defined(__x86_64__)
/* The same sum, compiled for AVX2: only where the CPU has it. */
uint64_t gmem_image_hash_avx2(const void *data, size_t len);
#endif

#endif
