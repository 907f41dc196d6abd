/* SPDX-License-Identifier: MIT */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gmem.h"

static _Thread_local char text[512];

const char *gmem_last_error(void)
{
	return text;
}

/* Cuts at the buffer's end; the caller's errno survives. */
static size_t append(size_t at, const char *fmt, va_list ap)
{
	int n = vsnprintf(text + at, sizeof(text) - at, fmt, ap);

	if (n < 0)
		return at;
	return (size_t)n < sizeof(text) - at ? at + (size_t)n : sizeof(text) - 1;
}

int gmem_set_error(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	append(0, fmt, ap);
	va_end(ap);
	return err;
}

int gmem_err_sys(int err, const char *fmt, ...)
{
	const char *words = strerrordesc_np(-err);
	va_list ap;
	size_t at;

	va_start(ap, fmt);
	at = append(0, fmt, ap);
	va_end(ap);
	snprintf(text + at, sizeof(text) - at, ": %s", words ? words : "unknown error");
	return err;
}

int gmem_err_prefix(int err, const char *fmt, ...)
{
	char old[sizeof(text)];
	va_list ap;
	size_t at;

	memcpy(old, text, sizeof(old));
	va_start(ap, fmt);
	at = append(0, fmt, ap);
	va_end(ap);
	snprintf(text + at, sizeof(text) - at, ": %s", old);
	return err;
}
