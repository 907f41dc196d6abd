/* SPDX-License-Identifier: MIT */
#include "link/optstr.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

struct pair {
	char *key, *value;
	bool bare; /* was written without '=' */
};

struct gmem_optstr {
	struct pair *pairs;
	size_t n;
	char *implied;
};

static int add(struct gmem_optstr *opts, char *key, char *value, bool bare)
{
	struct pair *pairs = NULL;

	if (key && value)
		pairs = reallocarray(opts->pairs, opts->n + 1, sizeof(*pairs));
	if (!pairs) {
		free(key);
		free(value);
		return gmem_err(-ENOMEM, "gmem_optstr: out of memory");
	}
	opts->pairs = pairs;
	pairs[opts->n++] = (struct pair){ .key = key, .value = value, .bare = bare };
	return 0;
}

static int flatten(struct gmem_optstr *opts, const char *prefix, json_t *value)
{
	char num[64], *key;
	const char *k;
	json_t *v;
	size_t i;
	int r;

	if (json_is_object(value)) {
		json_object_foreach(value, k, v) {
			if (asprintf(&key, "%s%s%s", prefix, *prefix ? "." : "", k) < 0)
				return -ENOMEM;
			r = flatten(opts, key, v);
			free(key);
			if (r)
				return r;
		}
		return 0;
	}
	if (json_is_array(value)) {
		json_array_foreach(value, i, v) {
			if (asprintf(&key, "%s.%zu", prefix, i) < 0)
				return -ENOMEM;
			r = flatten(opts, key, v);
			free(key);
			if (r)
				return r;
		}
		return 0;
	}
	if (json_is_string(value))
		return add(opts, strdup(prefix), strdup(json_string_value(value)), false);
	if (json_is_boolean(value))
		return add(opts, strdup(prefix), strdup(json_is_true(value) ? "on" : "off"), false);
	if (json_is_integer(value))
		snprintf(num, sizeof(num), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value))
		snprintf(num, sizeof(num), "%.17g", json_real_value(value));
	else
		num[0] = '\0';
	return add(opts, strdup(prefix), strdup(num), false);
}

static int parse_json(struct gmem_optstr *opts, const char *text)
{
	json_error_t jerr;
	json_t *value;
	int r;

	value = json_loads(text, 0, &jerr);
	if (!json_is_object(value)) {
		json_decref(value);
		return gmem_err(-EINVAL, "QEMU option '%.40s...': bad JSON: %s", text,
				value ? "not an object" : jerr.text);
	}
	r = flatten(opts, "", value);
	json_decref(value);
	return r;
}

/* The text up to the next single comma, with double ones made one; *p moves behind it. */
static char *take_element(const char **p)
{
	const char *s = *p;
	char *out = malloc(strlen(s) + 1), *o = out;

	if (!out)
		return NULL;
	while (*s) {
		if (*s == ',' && *++s != ',')
			break;
		*o++ = *s++;
	}
	*o = '\0';
	*p = s;
	return out;
}

static int parse_pairs(struct gmem_optstr *opts, const char *text)
{
	char *element, *eq, *key;
	bool first = true;
	int r = 0;

	while (*text && !r) {
		element = take_element(&text);
		if (!element)
			return gmem_err(-ENOMEM, "gmem_optstr: out of memory");
		eq = strchr(element, '=');
		if (eq) {
			key = strndup(element, (size_t)(eq - element));
			r = add(opts, key, strdup(eq + 1), false);
		} else if (first && opts->implied) {
			r = add(opts, strdup(opts->implied), strdup(element), true);
		} else {
			r = add(opts, strdup(element), strdup("on"), true);
		}
		free(element);
		first = false;
	}
	return r;
}

int gmem_optstr_parse(const char *text, const char *implied, struct gmem_optstr **ret)
{
	struct gmem_optstr *opts;
	int r = 0;

	opts = calloc(1, sizeof(*opts));
	if (!opts)
		return gmem_err(-ENOMEM, "gmem_optstr: out of memory");
	if (implied) {
		opts->implied = strdup(implied);
		if (!opts->implied)
			r = gmem_err(-ENOMEM, "gmem_optstr: out of memory");
	}
	if (!r)
		r = *text == '{' ? parse_json(opts, text) : parse_pairs(opts, text);
	if (r) {
		gmem_optstr_free(opts);
		return r;
	}
	*ret = opts;
	return 0;
}

static void free_pair(struct pair *pair)
{
	free(pair->key);
	free(pair->value);
}

void gmem_optstr_free(struct gmem_optstr *opts)
{
	size_t i;

	if (!opts)
		return;
	for (i = 0; i < opts->n; i++)
		free_pair(&opts->pairs[i]);
	free(opts->pairs);
	free(opts->implied);
	free(opts);
}

const char *gmem_optstr_get(const struct gmem_optstr *opts, const char *key)
{
	size_t i;

	for (i = opts->n; i-- > 0;)
		if (!strcmp(opts->pairs[i].key, key))
			return opts->pairs[i].value;
	return NULL;
}

bool gmem_optstr_bool(const struct gmem_optstr *opts, const char *key, bool def)
{
	const char *v = gmem_optstr_get(opts, key);

	if (!v)
		return def;
	if (!strcmp(v, "on") || !strcmp(v, "yes") || !strcmp(v, "true") || !strcmp(v, "y"))
		return true;
	if (!strcmp(v, "off") || !strcmp(v, "no") || !strcmp(v, "false") || !strcmp(v, "n"))
		return false;
	return def;
}

bool gmem_optstr_has_prefix(const struct gmem_optstr *opts, const char *prefix)
{
	size_t i, len = strlen(prefix);

	for (i = 0; i < opts->n; i++)
		if (!strncmp(opts->pairs[i].key, prefix, len))
			return true;
	return false;
}

int gmem_optstr_set(struct gmem_optstr *opts, const char *key, const char *value)
{
	bool done = false;
	size_t i = 0;

	while (i < opts->n) {
		struct pair *pair = &opts->pairs[i];
		char *copy;

		if (strcmp(pair->key, key)) {
			i++;
		} else if (done) {
			free_pair(pair);
			memmove(pair, pair + 1, (--opts->n - i) * sizeof(*pair));
		} else {
			copy = strdup(value);
			if (!copy)
				return gmem_err(-ENOMEM, "gmem_optstr: out of memory");
			free(pair->value);
			pair->value = copy;
			pair->bare = i == 0 && opts->implied && !strcmp(key, opts->implied);
			done = true;
			i++;
		}
	}
	return done ? 0 : add(opts, strdup(key), strdup(value), false);
}

void gmem_optstr_unset(struct gmem_optstr *opts, const char *key)
{
	size_t i, out = 0;

	for (i = 0; i < opts->n; i++) {
		if (!strcmp(opts->pairs[i].key, key))
			free_pair(&opts->pairs[i]);
		else
			opts->pairs[out++] = opts->pairs[i];
	}
	opts->n = out;
}

static char *put_escaped(char *o, const char *s)
{
	for (; *s; s++) {
		*o++ = *s;
		if (*s == ',')
			*o++ = ',';
	}
	return o;
}

char *gmem_optstr_format(const struct gmem_optstr *opts)
{
	size_t i, len = 1;
	char *out, *o;

	for (i = 0; i < opts->n; i++)
		len += 2 * (strlen(opts->pairs[i].key) + strlen(opts->pairs[i].value)) + 2;
	out = malloc(len);
	if (!out)
		return NULL;
	o = out;
	for (i = 0; i < opts->n; i++) {
		const struct pair *pair = &opts->pairs[i];
		bool implied = opts->implied && !strcmp(pair->key, opts->implied);

		if (i)
			*o++ = ',';
		if (pair->bare && i == 0 && implied) {
			o = put_escaped(o, pair->value);
		} else if (pair->bare && !strcmp(pair->value, "on")) {
			o = put_escaped(o, pair->key);
		} else {
			o = put_escaped(o, pair->key);
			*o++ = '=';
			o = put_escaped(o, pair->value);
		}
	}
	*o = '\0';
	return out;
}

static int suffix_shift(const char *s, int *ret)
{
	static const char units[] = "BKMGTPE";
	const char *u = strchr(units, toupper((unsigned char)*s));

	if (!u || s[1])
		return -EINVAL;
	*ret = 10 * (int)(u - units);
	return 0;
}

int gmem_size_parse(const char *text, uint64_t unit, uint64_t *ret)
{
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	long double frac = 0, scale = 1;
	unsigned long long whole;
	uint64_t mul = unit;
	char *end;
	int shift;

	if (!isdigit((unsigned char)text[0]))
		return gmem_err(-EINVAL, "'%s' is not a size: write a number and one of B K M G T P E", text);
	errno = 0;
	whole = strtoull(text, &end, hex ? 16 : 10);
	if (errno)
		return gmem_err(-ERANGE, "'%s': a size too large", text);
	if (!hex && *end == '.') {
		for (end++; isdigit((unsigned char)*end); end++) {
			scale /= 10;
			frac += (*end - '0') * scale;
		}
	}
	if (*end) {
		if (suffix_shift(end, &shift))
			return gmem_err(-EINVAL, "'%s' is not a size: write a number and one of B K M G T P E", text);
		mul = 1ULL << shift;
	}
	if (frac > 0 && mul == 1)
		return gmem_err(-EINVAL, "'%s': a fraction of a byte", text);
	if (__builtin_mul_overflow((uint64_t)whole, mul, &whole) ||
	    __builtin_add_overflow((uint64_t)whole, (uint64_t)(frac * mul), &whole))
		return gmem_err(-ERANGE, "'%s': a size too large", text);
	*ret = whole;
	return 0;
}
