/* SPDX-License-Identifier: MIT */
#include "tools/digest_text.h"

#include <ctype.h>
#include <string.h>

static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *gmem_hex_text(char *buf, const uint8_t *bytes, size_t n)
{
	char *o = buf;

	for (size_t i = 0; i < n; i++) {
		*o++ = "0123456789abcdef"[bytes[i] >> 4];
		*o++ = "0123456789abcdef"[bytes[i] & 15];
	}
	*o = '\0';
	return buf;
}

char *gmem_base64_text(char *buf, const uint8_t *bytes, size_t n)
{
	char *o = buf;

	for (size_t i = 0; i < n; i += 3) {
		size_t have = n - i < 3 ? n - i : 3;
		uint32_t group = (uint32_t)bytes[i] << 16;

		if (have > 1)
			group |= (uint32_t)bytes[i + 1] << 8;
		if (have > 2)
			group |= bytes[i + 2];
		for (size_t j = 0; j < 4; j++)
			*o++ = j <= have ? base64[(group >> (18 - 6 * j)) & 63] : '=';
	}
	*o = '\0';
	return buf;
}

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool gmem_hex_parse(const char *text, uint8_t *ret, size_t n)
{
	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		text += 2;
	if (strlen(text) != 2 * n)
		return false;
	for (size_t i = 0; i < n; i++) {
		int high = nibble(text[2 * i]), low = nibble(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		ret[i] = (uint8_t)(high << 4 | low);
	}
	return true;
}

/* Bits left over behind the last whole byte have to be 0, and padding be complete: one text for one digest. */
bool gmem_base64_parse(const char *text, size_t len, uint8_t *ret, size_t n)
{
	size_t done = 0, digits = 0, pads = 0;
	uint32_t bits = 0;
	unsigned int nbits = 0;

	for (size_t i = 0; i < len; i++) {
		const char *at;

		if (isspace((unsigned char)text[i]))
			continue;
		if (text[i] == '=') {
			pads++;
			continue;
		}
		at = text[i] ? strchr(base64, text[i]) : NULL;
		if (!at || pads)
			return false;
		digits++;
		bits = bits << 6 | (uint32_t)(at - base64);
		nbits += 6;
		if (nbits < 8)
			continue;
		nbits -= 8;
		if (done == n)
			return false;
		ret[done++] = (uint8_t)(bits >> nbits);
		bits &= (1u << nbits) - 1;
	}
	return done == n && !bits && nbits < 6 && pads <= 2 && (digits + pads) % 4 == 0;
}

bool gmem_digest_parse(const char *text, uint8_t *ret, size_t n)
{
	return gmem_hex_parse(text, ret, n) || gmem_base64_parse(text, strlen(text), ret, n);
}
