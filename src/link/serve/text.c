/* SPDX-License-Identifier: MIT */
#include "link/serve/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static bool make_room(struct gmem_text *t, size_t len)
{
	size_t room = t->room ? t->room : 512;
	char *s;

	while (room - t->len <= len)
		room *= 2;
	if (room == t->room)
		return true;
	s = realloc(t->s, room);
	if (!s)
		return false;
	t->s = s;
	t->room = room;
	return true;
}

void gmem_text_add(struct gmem_text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (t->failed || n < 0 || !make_room(t, (size_t)n)) {
		t->failed = true;
		return;
	}
	va_start(ap, fmt);
	t->len += (size_t)vsnprintf(t->s + t->len, t->room - t->len, fmt, ap);
	va_end(ap);
}

void gmem_text_free(struct gmem_text *t)
{
	free(t->s);
	*t = (struct gmem_text){ 0 };
}
