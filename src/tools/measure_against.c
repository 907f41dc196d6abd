/* SPDX-License-Identifier: MIT */
/*
 * Where two measurements differ: the one made now, and one that gmem measure has told as JSON. That document may come
 * from anybody: it is checked before anything of it is used, and nothing of it reaches the terminal as a command.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/digest_text.h"
#include "tools/measure.h"
#include "tools/options.h"
#include "tools/ui.h"

#define MAX_LEN ((UINT64_C(64) << 20) - 1)
#define SHA256_LEN 32
#define SHOWN 160 /* characters of a value */

static int broken(const char *path, const char *what)
{
	return gmem_ui_fail("%s: %s: no output of gmem measure --explain --json", path, what);
}

/* A value as JSON has it, without what a terminal would obey. The caller frees. */
static char *shown(const json_t *value)
{
	char *text =
		value ? json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT | JSON_SORT_KEYS) : NULL;

	return text ? text : strdup("nothing");
}

static void printable(char *text)
{
	for (; *text; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}

static bool is_bytes(const json_t *value, size_t n)
{
	uint8_t bytes[GMEM_LAUNCH_DIGEST_LEN];
	const char *text = json_string_value(value);

	return text && gmem_hex_parse(text, bytes, n);
}

static bool read_range(const json_t *value, struct measure_range *ret)
{
	const char *name = json_string_value(json_object_get(value, "name"));
	const char *digest = json_string_value(json_object_get(value, "digest"));
	const char *gpa = json_string_value(json_object_get(value, "gpa"));
	const json_t *len = json_object_get(value, "bytes"), *contents = json_object_get(value, "contents");

	if (!name || !digest || !gpa || !json_is_integer(len) || json_integer_value(len) < 0 ||
	    !json_is_boolean(contents))
		return false;
	snprintf(ret->name, sizeof(ret->name), "%s", name);
	printable(ret->name);
	ret->len = (uint64_t)json_integer_value(len);
	ret->contents = json_is_true(contents);
	return gpa[0] == '0' && gmem_options_number(gpa, true, UINT64_MAX, &ret->gpa) &&
	       gmem_hex_parse(digest, ret->digest, sizeof(ret->digest));
}

static int check(const char *path, const json_t *root)
{
	const json_t *inputs = json_object_get(root, "inputs"), *ranges = json_object_get(root, "ranges");
	struct measure_range range;

	if (!json_is_string(json_object_get(root, "type")) || !json_is_object(json_object_get(root, "parameters")) ||
	    !json_is_array(inputs) || !is_bytes(json_object_get(root, "digest"), GMEM_LAUNCH_DIGEST_LEN))
		return broken(path, "type, parameters, inputs or digest is missing or wrong");
	for (size_t i = 0; i < json_array_size(inputs); i++)
		if (!json_is_string(json_object_get(json_array_get(inputs, i), "name")) ||
		    !is_bytes(json_object_get(json_array_get(inputs, i), "sha256"), SHA256_LEN))
			return broken(path, "an input without a name or sha256");
	if (!ranges)
		return broken(path, "it has no ranges");
	if (!json_is_array(ranges))
		return broken(path, "ranges is no array");
	for (size_t i = 0; i < json_array_size(ranges); i++)
		if (!read_range(json_array_get(ranges, i), &range))
			return broken(path, "a range that is none");
	return GMEM_UI_OK;
}

int measure_against_load(const char *path, json_t **ret, uint8_t ret_digest[GMEM_LAUNCH_DIGEST_LEN])
{
	json_error_t error;
	uint8_t *text;
	uint64_t len;
	json_t *root;
	int code;

	code = guest_read_file("--against", path, MAX_LEN, &text, &len);
	if (code)
		return code;
	root = json_loadb((const char *)text, len, JSON_REJECT_DUPLICATES, &error);
	free(text);
	if (!root) {
		printable(error.text);
		return gmem_ui_fail("%s: line %d: %s: no JSON", path, error.line, error.text);
	}
	code = check(path, root);
	if (code) {
		json_decref(root);
		return code;
	}
	gmem_hex_parse(json_string_value(json_object_get(root, "digest")), ret_digest, GMEM_LAUNCH_DIGEST_LEN);
	*ret = root;
	return GMEM_UI_OK;
}

static void tell_value(const char *kind, const char *name, const json_t *old, const json_t *now)
{
	char *there = shown(old), *here = shown(now), shown_name[64];

	snprintf(shown_name, sizeof(shown_name), "%s", name);
	printable(shown_name);
	gmem_ui_note("%s%s differs: it was %.*s, now it is %.*s", kind, shown_name, SHOWN, there ? there : "?", SHOWN,
		     here ? here : "?");
	free(there);
	free(here);
}

static void tell_parameters(const json_t *old, json_t *now)
{
	const char *key;
	json_t *value;

	json_object_foreach(now, key, value) if (!json_equal(json_object_get(old, key), value))
		tell_value("", key, json_object_get(old, key), value);
	json_object_foreach((json_t *)old, key, value) if (!json_object_get(now, key)) tell_value("", key, value, NULL);
}

static const json_t *input_named(const json_t *inputs, const char *name)
{
	for (size_t i = 0; i < json_array_size(inputs); i++)
		if (!strcmp(json_string_value(json_object_get(json_array_get(inputs, i), "name")), name))
			return json_array_get(inputs, i);
	return NULL;
}

/* Of a file its hash counts, not where it was. */
static bool same_input(const json_t *a, const json_t *b)
{
	uint8_t x[SHA256_LEN], y[SHA256_LEN];

	return a && b && gmem_hex_parse(json_string_value(json_object_get(a, "sha256")), x, sizeof(x)) &&
	       gmem_hex_parse(json_string_value(json_object_get(b, "sha256")), y, sizeof(y)) &&
	       !memcmp(x, y, sizeof(x));
}

static void tell_inputs(const json_t *old, const json_t *now)
{
	for (size_t i = 0; i < json_array_size(now); i++) {
		const json_t *input = json_array_get(now, i);
		const char *name = json_string_value(json_object_get(input, "name"));

		if (!same_input(input_named(old, name), input))
			tell_value("input ", name, input_named(old, name), input);
	}
	for (size_t i = 0; i < json_array_size(old); i++) {
		const char *name = json_string_value(json_object_get(json_array_get(old, i), "name"));

		if (!input_named(now, name))
			tell_value("input ", name, json_array_get(old, i), NULL);
	}
}

static void range_text(char *buf, size_t size, const struct measure_range *range)
{
	snprintf(buf, size, "%s at 0x%" PRIx64 ", 0x%" PRIx64 " bytes, %s", range->name, range->gpa, range->len,
		 range->contents ? "contents measured" : "presence measured");
}

/*
 * What is other about a range. Where nothing is: the type of an SNP page is measured, and monitors have different ones
 * for one section; one pass of TDX hashes the same as two in another order; else its bytes are other ones.
 */
static const char *difference(const struct measure_range *old, const struct measure_range *now, bool other_order)
{
	if (strcmp(old->name, now->name))
		return "another range";
	if (old->gpa != now->gpa)
		return "another address";
	if (old->len != now->len)
		return "another length";
	if (old->contents != now->contents)
		return "another kind";
	if (!now->contents)
		return "another type of page";
	return other_order ? "measured in another order, or other contents" : "other contents";
}

static void tell_range(size_t i, const struct measure_range *old, const struct measure_range *now, bool other_order)
{
	char there[128] = "nothing", here[128] = "nothing";

	if (old)
		range_text(there, sizeof(there), old);
	if (now)
		range_text(here, sizeof(here), now);
	gmem_ui_note("range %zu is the first that differs: %s", i,
		     !old ? "it is new" :
		     !now ? "it is gone" :
			    difference(old, now, other_order));
	gmem_ui_note("  it was %s", there);
	gmem_ui_note("  now it is %s", here);
}

static void tell_ranges(const struct measure_report *report, const json_t *old, bool other_order)
{
	size_t nold = json_array_size(old), n = nold > report->nranges ? nold : report->nranges;
	char hex[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];
	struct measure_range range;

	for (size_t i = 0; i < n; i++) {
		const struct measure_range *now = i < report->nranges ? &report->ranges[i] : NULL;
		bool there = i < nold && read_range(json_array_get(old, i), &range);

		if (now && there && !strcmp(now->name, range.name) && now->gpa == range.gpa && now->len == range.len &&
		    now->contents == range.contents && !memcmp(now->digest, range.digest, sizeof(range.digest)))
			continue;
		tell_range(i, there ? &range : NULL, now, other_order);
		if (i)
			gmem_ui_note("  the digest before it is the same: %s",
				     gmem_hex_text(hex, report->ranges[i - 1].digest, GMEM_LAUNCH_DIGEST_LEN));
		return;
	}
	gmem_ui_note("all %zu ranges are the same: %s", n,
		     n ? "the digest expected is of something else" : "there are none");
}

static bool same_order(const json_t *old, const json_t *now)
{
	return json_is_true(json_object_get(json_object_get(old, "parameters"), "two_pass")) ==
	       json_is_true(json_object_get(json_object_get(now, "parameters"), "two_pass"));
}

int measure_against_tell(const struct measure_report *report, const char *path, const json_t *old)
{
	json_t *now = measure_json(report, false);

	if (!now)
		return gmem_ui_fail("measure: no memory to compare");
	gmem_ui_note("compared with %s:", path);
	if (!json_equal(json_object_get(old, "type"), json_object_get(now, "type")))
		tell_value("", "type", json_object_get(old, "type"), json_object_get(now, "type"));
	tell_parameters(json_object_get(old, "parameters"), json_object_get(now, "parameters"));
	tell_inputs(json_object_get(old, "inputs"), json_object_get(now, "inputs"));
	tell_ranges(report, json_object_get(old, "ranges"), !same_order(old, now));
	json_decref(now);
	return GMEM_UI_FAILED;
}
