/* SPDX-License-Identifier: MIT */
/*
 * Little-endian fields in bytes of any alignment, on hosts of either byte order.
 * Enters: a pointer to as many bytes as the name's bits make; nothing is checked. Leaves: host integers, and back. No
 * lock.
 */
#ifndef GMEM_BASE_LE_H
#define GMEM_BASE_LE_H

#include <stdint.h>

static inline uint16_t gmem_get_le16(const uint8_t *raw)
{
	return (uint16_t)(raw[0] | raw[1] << 8);
}

static inline uint32_t gmem_get_le32(const uint8_t *raw)
{
	return (uint32_t)raw[0] | (uint32_t)raw[1] << 8 | (uint32_t)raw[2] << 16 | (uint32_t)raw[3] << 24;
}

static inline uint64_t gmem_get_le64(const uint8_t *raw)
{
	return (uint64_t)gmem_get_le32(raw) | (uint64_t)gmem_get_le32(raw + 4) << 32;
}

static inline void gmem_put_le16(uint8_t *raw, uint16_t x)
{
	raw[0] = (uint8_t)x;
	raw[1] = (uint8_t)(x >> 8);
}

static inline void gmem_put_le32(uint8_t *raw, uint32_t x)
{
	gmem_put_le16(raw, (uint16_t)x);
	gmem_put_le16(raw + 2, (uint16_t)(x >> 16));
}

static inline void gmem_put_le64(uint8_t *raw, uint64_t x)
{
	gmem_put_le32(raw, (uint32_t)x);
	gmem_put_le32(raw + 4, (uint32_t)(x >> 32));
}

#endif
