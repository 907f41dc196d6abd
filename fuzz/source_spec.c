/* SPDX-License-Identifier: MIT */
/*
 * The line of text that names a source: any text is refused with words, or taken apart into parts that, put together
 * again, are the same parts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "link/source_spec.h"

#define MAX_LEN (64u * 1024)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put(char **p, const char *text, bool escape)
{
	for (; *text; text++) {
		if (escape && *text == ',')
			*(*p)++ = ',';
		*(*p)++ = *text;
	}
	**p = '\0';
}

static void put_spec(char *p, const struct gmem_source_spec *spec)
{
	static const char *const prefixes[] = { "raw:", "ch:", "image:", "nbd:", "zero:" };

	put(&p, prefixes[spec->kind], false);
	if (spec->path)
		put(&p, spec->path, spec->kind != GMEM_SOURCE_NBD);
	if (spec->region) {
		put(&p, "#", false);
		put(&p, spec->region, true);
	}
	for (size_t i = 0; i < spec->nlayers; i++) {
		put(&p, ",layer=", false);
		put(&p, spec->layers[i], true);
	}
}

static bool same(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gmem_source_spec spec, again;
	char *text, *built;

	if (size > MAX_LEN)
		return 0;
	text = strndup((const char *)data, size);
	gmem_err(0, "%s", "");
	if (gmem_source_spec_parse(text, &spec) < 0) {
		if (!*gmem_last_error())
			__builtin_trap();
		free(text);
		return 0;
	}
	if ((spec.kind == GMEM_SOURCE_ZERO) != !spec.path || (spec.path && !*spec.path) ||
	    (spec.region && !*spec.region) || (spec.nlayers && spec.kind != GMEM_SOURCE_RAW))
		__builtin_trap();
	built = malloc(2 * size + 16);
	put_spec(built, &spec);
	if (gmem_source_spec_parse(built, &again) < 0 || again.kind != spec.kind || again.nlayers != spec.nlayers ||
	    !same(again.path, spec.path) || !same(again.region, spec.region))
		__builtin_trap();
	for (size_t i = 0; i < spec.nlayers; i++)
		if (!*spec.layers[i] || !same(again.layers[i], spec.layers[i]))
			__builtin_trap();
	gmem_source_spec_free(&spec);
	gmem_source_spec_free(&again);
	free(built);
	free(text);
	return 0;
}
