/* SPDX-License-Identifier: MIT */
/*
 * A QEMU command line as data.
 *
 * Enters: an argv. Leaves: options by name, and an argv again. Parsing is conservative: an option that is not known is
 * refused, because whether the next word belongs to it would be a guess. Who owns it: the caller; strings belong to the
 * object and stay valid until the option is changed. No lock.
 */
#ifndef GMEM_LINK_CMDLINE_H
#define GMEM_LINK_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_cmdline;

/* argv[0] is the program. -EINVAL names the option that is unknown or lacks its value. */
int gmem_cmdline_parse(size_t argc, const char *const argv[], struct gmem_cmdline **ret);
void gmem_cmdline_free(struct gmem_cmdline *cl); /* NULL is allowed */

/* Number of options; an image given without an option counts as one with the name "". */
size_t gmem_cmdline_count(const struct gmem_cmdline *cl);
/* Names have no dash, and aliases are resolved: -M is "machine". The value is NULL for an option that takes none. */
const char *gmem_cmdline_name(const struct gmem_cmdline *cl, size_t i);
const char *gmem_cmdline_value(const struct gmem_cmdline *cl, size_t i);
const char *gmem_cmdline_program(const struct gmem_cmdline *cl);

/* The first option of this name at or after `from`; -1 if there is none. */
long gmem_cmdline_find(const struct gmem_cmdline *cl, const char *name, size_t from);

int gmem_cmdline_set_program(struct gmem_cmdline *cl, const char *program);
int gmem_cmdline_set(struct gmem_cmdline *cl, size_t i, const char *value);
void gmem_cmdline_remove(struct gmem_cmdline *cl, size_t i);
int gmem_cmdline_append(struct gmem_cmdline *cl, const char *name, const char *value);

/* NULL-terminated and allocated in one piece with its strings borrowed from `cl`; free() it. NULL: out of memory. */
char **gmem_cmdline_argv(const struct gmem_cmdline *cl);

/* The value of `key` of a mergeable option (-machine, -m): the last one over all its occurrences, allocated; *ret is
 * NULL if there is none. -ENOMEM, -EINVAL. */
int gmem_cmdline_merged(const struct gmem_cmdline *cl, const char *name, const char *implied, const char *key,
			char **ret);

/* RAM size as QEMU would use it: -m, or 128 MiB; rounded up to 8 KiB. -EINVAL, -ERANGE. */
int gmem_cmdline_ram_size(const struct gmem_cmdline *cl, uint64_t *ret);

/* The option -object that makes the object `id`, parsed; *ret_index where it is. -ENOENT. */
struct gmem_optstr;
int gmem_cmdline_object(const struct gmem_cmdline *cl, const char *id, size_t *ret_index, struct gmem_optstr **ret);

/*
 * Makes `size` bytes of the inherited descriptor `fd` the machine's RAM, under the backend id `id`. -EBUSY, naming it,
 * if the command line gives RAM a backend of its own already.
 */
int gmem_cmdline_give_ram(struct gmem_cmdline *cl, const char *id, uint64_t size, int fd);

/* Replaces the backend `id`, in whatever form it was given, by the inherited descriptor. `canonical`: the RAM block is
 * called /objects/ID, as machine types before 4.1 do. -ENOENT. */
int gmem_cmdline_replace_backend(struct gmem_cmdline *cl, const char *id, uint64_t size, int fd, bool canonical);

/* The option -drive whose file= is `file`; -1 if there is none, -2 if there are several. */
long gmem_cmdline_drive(const struct gmem_cmdline *cl, const char *file);

/*
 * What restoring adds: waits for an incoming stream, is of machine type `machine` ("pc-i440fx-7.2"), and has a monitor
 * on the inherited listening socket `qmp_fd`. An old -incoming and -loadvm go.
 */
int gmem_cmdline_make_incoming(struct gmem_cmdline *cl, const char *machine, int qmp_fd);

#endif
