/* SPDX-License-Identifier: MIT */
/* The command line that restores a saved machine. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "link/qemu.h"

/* "pc" is whatever pc-i440fx-X this QEMU thinks newest: pinning it to the saved one is what was meant. Another type is
 * left to gmem_saved_check(), which names both. */
static bool may_pin(const char *given, const char *saved)
{
	static const struct {
		const char *alias, *prefix;
	} aliases[] = { { "pc", "pc-i440fx-" }, { "q35", "pc-q35-" }, { "virt", "virt-" } };
	size_t i;

	if (!given || !strcmp(given, saved))
		return true;
	for (i = 0; i < sizeof(aliases) / sizeof(*aliases); i++)
		if (!strcmp(given, aliases[i].alias) && !strncmp(saved, aliases[i].prefix, strlen(aliases[i].prefix)))
			return true;
	return false;
}

static int machine_for(const struct gmem_cmdline *cl, const struct gmem_saved *saved, bool override, char **ret)
{
	char *given = NULL;
	int r;

	if (override) {
		r = gmem_cmdline_merged(cl, "machine", "type", "type", &given);
		if (r)
			return r;
	}
	*ret = strdup(may_pin(given, saved->machine) ? saved->machine : given);
	free(given);
	return *ret ? 0 : gmem_err(-ENOMEM, "gmem_qemu: out of memory");
}

static int replace_ram(struct gmem_cmdline *cl, const struct gmem_saved *saved, const int *fds, bool override)
{
	size_t i;
	int r;

	for (i = 0; i < saved->nbackends; i++) {
		const struct gmem_saved_backend *b = &saved->backends[i];

		r = gmem_cmdline_replace_backend(cl, b->id, b->size, fds[i], b->canonical);
		if (r == -ENOENT && override && saved->nbackends == 1)
			r = gmem_cmdline_give_ram(cl, b->id, b->size, fds[i]);
		else if (r == -ENOENT)
			r = gmem_err(-ENOENT,
				     "RAM '%s' is in the image but not on QEMU's command line (was it plugged in while "
				     "running?): give "
				     "the whole command line after --",
				     b->id);
		if (r)
			return r;
	}
	return 0;
}

int gmem_qemu_restore_cmdline(const struct gmem_saved *saved, const struct gmem_cmdline *override, const int *fds,
			      int qmp_fd, struct gmem_cmdline **ret)
{
	struct gmem_cmdline *cl = NULL;
	char **argv, *machine = NULL;
	size_t argc = 0;
	int r;

	/* The override is copied by way of its words. */
	argv = override ? gmem_cmdline_argv(override) : NULL;
	if (override && !argv)
		return gmem_err(-ENOMEM, "gmem_qemu: out of memory");
	while (argv && argv[argc])
		argc++;
	r = override ? gmem_cmdline_parse(argc, (const char *const *)argv, &cl) :
		       gmem_cmdline_parse(saved->argc, (const char *const *)saved->argv, &cl);
	free(argv);
	if (r)
		return r;
	r = replace_ram(cl, saved, fds, override != NULL);
	if (!r)
		r = machine_for(cl, saved, override != NULL, &machine);
	if (!r)
		r = gmem_cmdline_make_incoming(cl, machine, qmp_fd);
	free(machine);
	if (r) {
		gmem_cmdline_free(cl);
		return r;
	}
	*ret = cl;
	return 0;
}
