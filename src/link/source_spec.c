/* SPDX-License-Identifier: MIT */
#include "link/source_spec.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

static const struct kind {
	const char *prefix;
	enum gmem_source_kind kind;
} kinds[] = {
	{ "raw:", GMEM_SOURCE_RAW },
	{ "ch:", GMEM_SOURCE_CH },
	{ "image:", GMEM_SOURCE_IMAGE },
	{ "zero:", GMEM_SOURCE_ZERO },
};

static const char *after(const char *text, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(text, prefix, n) == 0 ? text + n : NULL;
}

/* nbd://, nbds://, nbd+unix://, nbds+vsock://, ... */
static bool is_nbd_uri(const char *text)
{
	const char *p = after(text, "nbd");

	if (!p)
		return false;
	if (*p == 's')
		p++;
	if (*p == '+')
		p += 1 + strspn(p + 1, "abcdefghijklmnopqrstuvwxyz");
	return after(p, "://") != NULL;
}

/* The text up to the next single comma, with double ones made one; *p moves behind it, to NULL after the last. */
static char *take_part(const char **p)
{
	const char *s = *p;
	char *part = malloc(strlen(s) + 1), *to = part;

	if (!part)
		return NULL;
	while (*s && (*s != ',' || s[1] == ',')) {
		s += *s == ',';
		*to++ = *s++;
	}
	*to = '\0';
	*p = *s ? s + 1 : NULL;
	return part;
}

static int parse_layers(const char *rest, struct gmem_source_spec *spec)
{
	while (rest) {
		char *part = take_part(&rest), **layers;
		const char *path = part ? after(part, "layer=") : NULL;
		int r = 0;

		if (!part)
			return gmem_err(-ENOMEM, "source: no memory");
		if (!path)
			r = gmem_err(-EINVAL, "source: '%s' after the path of raw:, where only layer=PATH may be",
				     part);
		else if (!*path)
			r = gmem_err(-EINVAL, "source: layer= without a path");
		else if (spec->nlayers == GMEM_SOURCE_SPEC_LAYERS)
			r = gmem_err(-EINVAL, "source: more than %u layers", GMEM_SOURCE_SPEC_LAYERS);
		layers = r ? NULL : reallocarray(spec->layers, spec->nlayers + 1, sizeof(*layers));
		if (layers) {
			spec->layers = layers;
			layers[spec->nlayers] = strdup(path);
			r = layers[spec->nlayers] ? 0 : -ENOMEM;
			spec->nlayers += !r;
		} else if (!r) {
			r = -ENOMEM;
		}
		free(part);
		if (r)
			return r == -ENOMEM ? gmem_err(r, "source: no memory") : r;
	}
	return 0;
}

/* Cuts "#REGION" off the path. */
static int parse_region(struct gmem_source_spec *spec)
{
	char *mark = strrchr(spec->path, '#');

	if (!mark)
		return 0;
	if (!mark[1])
		return gmem_err(-EINVAL, "source: image:%s: no region after the #", spec->path);
	if (mark == spec->path)
		return gmem_err(-EINVAL, "source: image:%s: no path before the #", spec->path);
	spec->region = strdup(mark + 1);
	*mark = '\0';
	return spec->region ? 0 : gmem_err(-ENOMEM, "source: no memory");
}

static int parse(const char *text, struct gmem_source_spec *spec)
{
	const char *rest = NULL, *prefix = NULL;

	if (is_nbd_uri(text) || ((rest = after(text, "nbd:")) && is_nbd_uri(rest))) {
		spec->kind = GMEM_SOURCE_NBD;
		spec->path = strdup(rest ? rest : text);
		return spec->path ? 0 : gmem_err(-ENOMEM, "source: no memory");
	}
	if (rest)
		return gmem_err(-EINVAL,
				"source: '%s' after nbd: is no NBD URI (nbd://HOST/EXPORT, "
				"nbd+unix:///EXPORT?socket=PATH)",
				rest);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && !rest; i++) {
		prefix = kinds[i].prefix;
		spec->kind = kinds[i].kind;
		rest = after(text, prefix);
	}
	if (!rest)
		return gmem_err(-EINVAL, "source: '%s': none of raw:PATH, ch:DIR, image:PATH, zero: and an NBD URI",
				text);
	if (spec->kind == GMEM_SOURCE_ZERO)
		return *rest ? gmem_err(-EINVAL, "source: '%s' after zero:, which takes nothing", rest) : 0;
	spec->path = take_part(&rest);
	if (!spec->path)
		return gmem_err(-ENOMEM, "source: no memory");
	if (!*spec->path)
		return gmem_err(-EINVAL, "source: no path after %s", prefix);
	if (spec->kind == GMEM_SOURCE_RAW)
		return parse_layers(rest, spec);
	if (rest)
		return gmem_err(-EINVAL,
				"source: '%s' after the path of %s, which takes nothing more "
				"(a comma in a path is written twice)",
				rest, prefix);
	return spec->kind == GMEM_SOURCE_IMAGE ? parse_region(spec) : 0;
}

int gmem_source_spec_parse(const char *text, struct gmem_source_spec *ret)
{
	struct gmem_source_spec spec = { 0 };
	int r = parse(text, &spec);

	if (r < 0)
		gmem_source_spec_free(&spec);
	else
		*ret = spec;
	return r;
}

void gmem_source_spec_free(struct gmem_source_spec *spec)
{
	for (size_t i = 0; i < spec->nlayers; i++)
		free(spec->layers[i]);
	free(spec->layers);
	free(spec->path);
	free(spec->region);
	*spec = (struct gmem_source_spec){ 0 };
}
