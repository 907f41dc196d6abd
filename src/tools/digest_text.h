/* SPDX-License-Identifier: MIT */
/*
 * Bytes as text and back: hexadecimal and base64 (RFC 4648).
 * Enters and leaves: bytes and NUL-terminated text. No state, no lock.
 */
#ifndef GMEM_TOOLS_DIGEST_TEXT_H
#define GMEM_TOOLS_DIGEST_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Room for the text of `n` bytes, its NUL included. */
#define GMEM_HEX_TEXT(n) (2 * (n) + 1)
#define GMEM_BASE64_TEXT(n) (((n) + 2) / 3 * 4 + 1)

/* Return buf. */
char *gmem_hex_text(char *buf, const uint8_t *bytes, size_t n);
char *gmem_base64_text(char *buf, const uint8_t *bytes, size_t n);

/* Exactly `n` bytes, or false. Capital letters are taken too; an 0x before hexadecimal; white space in base64. */
bool gmem_hex_parse(const char *text, uint8_t *ret, size_t n);
bool gmem_base64_parse(const char *text, size_t len, uint8_t *ret, size_t n);

/* Either of them. For no length of ours can a text be both. */
bool gmem_digest_parse(const char *text, uint8_t *ret, size_t n);

#endif
