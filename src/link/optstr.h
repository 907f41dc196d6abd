/* SPDX-License-Identifier: MIT */
/*
 * One QEMU option's value as data: "type,key=value,..." with `,,` for a comma, or JSON, which is flattened to dotted
 * keys.
 *
 * Enters: the text. Leaves: keys and values in order, and the text again, always in the key=value form. Who owns it:
 * the caller; strings belong to the object. No lock.
 */
#ifndef GMEM_LINK_OPTSTR_H
#define GMEM_LINK_OPTSTR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_optstr;

/*
 * `implied` is the key of a first element without '=' ("type" for -machine), NULL if there is none. Any other element
 * without = means key=on. -EINVAL (bad JSON), -ENOMEM.
 */
int gmem_optstr_parse(const char *text, const char *implied, struct gmem_optstr **ret);
void gmem_optstr_free(struct gmem_optstr *opts); /* NULL is allowed */

/* The value of a key, the last one given; NULL if there is none. */
const char *gmem_optstr_get(const struct gmem_optstr *opts, const char *key);
/* As gmem_optstr_get() for on/off values; `def` if absent or neither. */
bool gmem_optstr_bool(const struct gmem_optstr *opts, const char *key, bool def);
/* True if some key begins with `prefix`. */
bool gmem_optstr_has_prefix(const struct gmem_optstr *opts, const char *prefix);

/* Replaces every occurrence by one; adds it at the end if there was none. -ENOMEM. */
int gmem_optstr_set(struct gmem_optstr *opts, const char *key, const char *value);
void gmem_optstr_unset(struct gmem_optstr *opts, const char *key);

/* The text again, allocated. The first element is written without its key if that is the implied one. NULL: out of
 * memory. */
char *gmem_optstr_format(const struct gmem_optstr *opts);

/*
 * A size as QEMU reads it: a number, decimal with a fraction or hexadecimal, and a suffix of B K M G T P E. `unit` is
 * what a bare number counts (1, or 1 MiB for -m). -EINVAL, -ERANGE.
 */
int gmem_size_parse(const char *text, uint64_t unit, uint64_t *ret);

#endif
