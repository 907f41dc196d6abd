/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "link/serve/hello_parts.h"

static bool white(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* A byte outside of strings. 1: the text ends with it. */
static int plain_byte(struct gmem_hello_scan *scan, char c)
{
	switch (c) {
	case '"':
		scan->in_string = true;
		return 0;
	case '[':
	case '{':
		if (++scan->depth > GMEM_HELLO_MAX_DEPTH)
			return gmem_err(-E2BIG, "JSON nested deeper than %u", GMEM_HELLO_MAX_DEPTH);
		break;
	case ']':
	case '}':
		return --scan->depth == 0;
	case ',':
		break;
	default:
		return 0;
	}
	/* Whoever reads it makes something of some hundred bytes of each. */
	if (++scan->nvalues > GMEM_HELLO_MAX_VALUES)
		return gmem_err(-E2BIG, "JSON of more than %u values", GMEM_HELLO_MAX_VALUES);
	return 0;
}

int gmem_hello_scan(struct gmem_hello_scan *scan, const char *bytes, size_t len, size_t *used)
{
	int r;

	for (*used = 0; *used < len;) {
		char c = bytes[(*used)++];

		if (!scan->depth && c != '[' && c != '{') {
			if (white(c))
				continue;
			return gmem_err(-EPROTO, "it begins with byte 0x%02x, not with a JSON array or object",
					(unsigned char)c);
		}
		if (!scan->in_string) {
			r = plain_byte(scan, c);
			if (r)
				return r;
		} else if (scan->escaped) {
			scan->escaped = false;
		} else if (c == '\\') {
			scan->escaped = true;
		} else if (c == '"') {
			scan->in_string = false;
		}
	}
	return 0;
}
