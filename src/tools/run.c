/* SPDX-License-Identifier: MIT */
/*
 * gmem run: starts a QEMU whose RAM is a guest memory file. gmem makes the file, passes it down and becomes QEMU, so
 * that whoever started gmem has QEMU as its child.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem.h"
#include "link/qemu.h"
#include "tools/cmd.h"
#include "tools/ui.h"

static const char help[] =
	"Usage: gmem run [--qmp PATH] -- qemu-system-x86_64 [QEMU OPTION]...\n"
	"\n"
	"Starts QEMU with RAM that `gmem save` can read and `gmem restore` can bring back on demand.\n"
	"\n"
	"  --qmp PATH   also give QEMU a control monitor on the UNIX socket PATH, for gmem save\n"
	"  --help       this text\n";

static int add_monitor(struct gmem_cmdline *cl, const char *path)
{
	char *text, *o;
	const char *s;
	int r;

	text = malloc(2 * strlen(path) + 64);
	if (!text)
		return -ENOMEM;
	o = stpcpy(text, "unix:");
	for (s = path; *s; s++) {
		*o++ = *s;
		if (*s == ',')
			*o++ = ',';
	}
	strcpy(o, ",server=on,wait=off");
	r = gmem_cmdline_append(cl, "qmp", text);
	free(text);
	return r;
}

/* The descriptor that stays open in QEMU. The file's own is close-on-exec. */
static int make_ram(uint64_t size, struct gmem_file **ret_file, int *ret_fd)
{
	struct gmem_file *file = NULL;
	int fd = -1, r;

	r = gmem_file_create(size, NULL, &file);
	if (r)
		return gmem_ui_fail_last();
	fd = fcntl(gmem_file_fd(file), F_DUPFD, 3);
	if (fd < 0) {
		r = gmem_ui_fail("duplicating the memory's descriptor: %s", strerror(errno));
		gmem_file_free(file);
		return r;
	}
	*ret_file = file;
	*ret_fd = fd;
	return 0;
}

static int start(struct gmem_cmdline *cl, const char *monitor)
{
	struct gmem_file *file = NULL;
	uint64_t size;
	char **argv;
	int fd = -1, r;

	if (gmem_cmdline_ram_size(cl, &size))
		return gmem_ui_fail_last();
	r = make_ram(size, &file, &fd);
	if (r)
		return r;
	if (gmem_cmdline_give_ram(cl, GMEM_QEMU_RAM_ID, size, fd) || (monitor && add_monitor(cl, monitor))) {
		r = gmem_ui_fail_last();
		goto out;
	}
	argv = gmem_cmdline_argv(cl);
	if (!argv) {
		r = gmem_ui_fail("out of memory");
		goto out;
	}
	execvp(argv[0], argv);
	if (errno == ENOENT)
		r = gmem_ui_fail(
			"%s: not found: install it (Debian, Ubuntu: apt-get install qemu-system-x86), or give its path",
			argv[0]);
	else
		r = gmem_ui_fail("%s: %s", argv[0], strerror(errno));
	free(argv);
out:
	close(fd);
	gmem_file_free(file);
	return r;
}

int cmd_run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "qmp", required_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	const char *monitor = NULL;
	struct gmem_cmdline *cl;
	int c, r;

	optind = 1;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		switch (c) {
		case 'q':
			monitor = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return GMEM_UI_OK;
		default:
			return gmem_ui_usage("run", "unknown option or missing value: '%s'", argv[optind - 1]);
		}
	}
	if (optind >= argc)
		return gmem_ui_usage("run", "no program given: gmem run -- qemu-system-x86_64 ...");
	if (gmem_cmdline_parse((size_t)(argc - optind), (const char *const *)argv + optind, &cl))
		return gmem_ui_fail_last();
	r = start(cl, monitor);
	gmem_cmdline_free(cl);
	return r;
}
