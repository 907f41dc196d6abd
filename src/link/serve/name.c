/* SPDX-License-Identifier: MIT */
#include "link/serve/name.h"

#include <string.h>
#include <time.h>

static bool is_id_byte(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

bool gmem_name_ok(const char *name)
{
	size_t len = strnlen(name, GMEM_STORE_MAX_NAME + 1);

	if (!len || len > GMEM_STORE_MAX_NAME)
		return false;
	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] >= 127 || name[i] == ':')
			return false;
	return true;
}

bool gmem_id_ok(const char *id)
{
	size_t len = strnlen(id, GMEM_STORE_MAX_ID + 1);

	if (!len || len > GMEM_STORE_MAX_ID)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!is_id_byte(id[i]))
			return false;
	return true;
}

void gmem_id_new(uint64_t *last, char ret[GMEM_STORE_MAX_ID + 1])
{
	static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
	char buf[16], *p = buf + sizeof(buf) - 1;
	struct timespec ts;
	uint64_t n;

	clock_gettime(CLOCK_REALTIME, &ts);
	n = (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
	if (n <= *last)
		n = *last + 1;
	*last = n;
	*p = '\0';
	do {
		*--p = digits[n % 36];
		n /= 36;
	} while (n);
	memcpy(ret, p, (size_t)(buf + sizeof(buf) - p));
}
