/* SPDX-License-Identifier: MIT */
#include "tools/options.h"

#include <ctype.h>
#include <string.h>

#include "tools/ui.h"

static int wrong_name(const struct gmem_options *o, const char *name, size_t len, const char *what)
{
	gmem_ui_usage(o->command, "%s '--%.*s'", what, (int)len, name);
	return GMEM_OPTION_WRONG;
}

/* How many of the table begin so; the last of them. */
static size_t abbreviated(const struct gmem_options *o, const char *name, size_t len, bool later, int *ret)
{
	size_t n = 0;

	for (size_t i = 0; i < o->count; i++) {
		if (!o->table[i].name || o->table[i].later != later || strncmp(o->table[i].name, name, len))
			continue;
		*ret = (int)i;
		n++;
	}
	return n;
}

static int find(const struct gmem_options *o, const char *name, size_t len)
{
	size_t n;
	int found = GMEM_OPTION_WRONG;

	for (size_t i = 0; i < o->count; i++)
		if (o->table[i].name && strlen(o->table[i].name) == len && !memcmp(o->table[i].name, name, len))
			return (int)i;
	n = abbreviated(o, name, len, false, &found);
	if (!n)
		n = abbreviated(o, name, len, true, &found);
	if (n == 1)
		return found;
	return wrong_name(o, name, len, n ? "ambiguous option" : "unknown option");
}

/* What begins with a dash is an option, and so no value, unless it is a number or has a space in it. */
static bool is_value(const char *word)
{
	if (word[0] != '-' || !word[1])
		return true;
	return strcmp(word, "--") && (strchr(word, ' ') || isdigit((unsigned char)word[1]));
}

static int take_value(struct gmem_options *o, int i, const char **ret_value)
{
	if (!*o->argv || !is_value(*o->argv)) {
		gmem_ui_usage(o->command, "option '--%s' takes a value%s%s%s", o->table[i].name,
			      *o->argv ? "; one that begins with a dash is written --" : "",
			      *o->argv ? o->table[i].name : "", *o->argv ? "=VALUE" : "");
		return GMEM_OPTION_WRONG;
	}
	*ret_value = *o->argv++;
	return i;
}

static int next_long(struct gmem_options *o, const char *arg, const char **ret_value)
{
	size_t len = strcspn(arg, "=");
	int i = find(o, arg, len);

	if (i < 0)
		return i;
	if (!arg[len])
		return o->table[i].value ? take_value(o, i, ret_value) : i;
	if (!o->table[i].value)
		return wrong_name(o, arg, len, "no value belongs to");
	*ret_value = arg + len + 1;
	return i;
}

static int next_letter(struct gmem_options *o, const char **ret_value)
{
	char letter = *o->cluster++;

	for (size_t i = 0; i < o->count; i++) {
		if (!o->table[i].name || !letter || o->table[i].letter != letter)
			continue;
		if (!o->table[i].value)
			return (int)i;
		if (!*o->cluster)
			return take_value(o, (int)i, ret_value);
		*ret_value = o->cluster;
		o->cluster = "";
		return (int)i;
	}
	gmem_ui_usage(o->command, "unknown option '-%c'", letter);
	return GMEM_OPTION_WRONG;
}

int gmem_options_next(struct gmem_options *o, const char **ret_value)
{
	const char *arg;

	*ret_value = NULL;
	if (o->cluster && *o->cluster)
		return next_letter(o, ret_value);
	arg = *o->argv;
	if (!arg)
		return GMEM_OPTION_END;
	o->argv++;
	if (!o->words_only && !strcmp(arg, "--")) {
		o->words_only = true;
		return gmem_options_next(o, ret_value);
	}
	if (!o->words_only && arg[0] == '-' && arg[1] == '-')
		return next_long(o, arg + 2, ret_value);
	if (!o->words_only && arg[0] == '-' && arg[1]) {
		o->cluster = arg + 1;
		return next_letter(o, ret_value);
	}
	*ret_value = arg;
	return GMEM_OPTION_WORD;
}

static unsigned int digit(char c)
{
	if (c >= '0' && c <= '9')
		return (unsigned int)(c - '0');
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? (unsigned int)(c - 'a') + 10 : 16;
}

bool gmem_options_number(const char *text, bool prefixed, uint64_t max, uint64_t *ret)
{
	unsigned int base = 10;
	uint64_t value = 0;

	text += *text == '+';
	if (prefixed && text[0] == '0' && text[1] && !isdigit((unsigned char)text[1])) {
		char c = (char)tolower((unsigned char)text[1]);

		base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
		text += 2;
	}
	if (!base || digit(*text) >= base)
		return false;
	for (; *text; text++) {
		if (*text == '_' && digit(text[1]) < base)
			text++;
		if (digit(*text) >= base || __builtin_mul_overflow(value, base, &value) ||
		    __builtin_add_overflow(value, digit(*text), &value))
			return false;
	}
	*ret = value;
	return value <= max;
}
