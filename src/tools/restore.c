/* SPDX-License-Identifier: MIT */
/* gmem restore: starts a saved machine again, lets it run at once and brings its memory in behind it. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cmd.h"
#include "tools/restore.h"

static const char help[] =
	"Usage: gmem restore [OPTION]... FILE [-- qemu-system-x86_64 [QEMU OPTION]...]\n"
	"       gmem restore --reattach SOCKET|PID [OPTION]...\n"
	"\n"
	"Starts the QEMU that was saved to the image FILE, resumes its guest at once and brings pages in as they are\n"
	"touched, then all the others. The command line kept in the image is used unless one is given after --.\n"
	"\n"
	"  --eager            bring everything in before the guest runs; needs no userfaultfd\n"
	"  --no-fill          bring in only what is touched\n"
	"  --record FILE      note which pages the guest touches first, in a new FILE\n"
	"  --replay FILE      bring those in first that were noted in FILE, ahead of the guest\n"
	"  --learn            with --replay: see which of them are wanted, and cut FILE to what it is worth\n"
	"  --detach           end when the memory is complete; the machine runs on\n"
	"  --socket PATH      where to make the keeper's socket, through which another process can carry on\n"
	"  --reattach SOCKET  carry on for a server that died; a PID does it where the keeper died too\n"
	"  --take-over        with --reattach: end a server that still lives\n"
	"  --help             this text\n"
	"\n"
	"The exit code is QEMU's, or 1 if the restore failed.\n";

void restore_clean_up(struct restore *r)
{
	/* With a keeper it goes when QEMU does. */
	if (r->eager && !r->vm && *r->qmp_path)
		unlink(r->qmp_path);
	if (r->process >= 0)
		close(r->process);
	restore_workset_close(r);
	gmem_server_free(r->server);
	gmem_keeper_free(r->keeper);
	gmem_qmp_close(r->qmp);
	for (size_t i = 0; i < r->nfiles; i++)
		gmem_file_free(r->files[i]);
	gmem_saved_free(r->saved);
	gmem_image_close(r->image);
	gmem_cmdline_free(r->override);
}

/* What follows the options: an image, and a command line behind "--", which getopt has left in place. */
static int take_operands(struct restore *r, int argc, char **argv, int separator)
{
	int end = separator ? separator : argc;

	if (separator && separator + 1 == argc)
		return gmem_ui_usage("restore", "no program after --");
	if (r->reattach && r->eager)
		return gmem_ui_usage("restore", "--eager and --reattach exclude each other: the guest runs already");
	if ((r->record_path || r->replay_path) && (r->eager || r->reattach))
		return gmem_ui_usage("restore", "--record and --replay go with neither --eager nor --reattach");
	if (r->learn && !r->replay_path)
		return gmem_ui_usage("restore", "--learn goes with --replay");
	if (r->reattach)
		return optind < end || separator ?
			       gmem_ui_usage("restore", "--reattach takes no FILE and no command line") :
			       0;
	if (r->take_over)
		return gmem_ui_usage("restore", "--take-over goes with --reattach");
	if (optind + 1 != end)
		return gmem_ui_usage("restore", optind >= end ? "no image FILE given" : "more than one FILE given");
	r->path = argv[optind];
	if (r->eager && r->no_fill)
		return gmem_ui_usage("restore", "--eager and --no-fill exclude each other");
	if (separator &&
	    gmem_cmdline_parse((size_t)(argc - separator - 1), (const char *const *)argv + separator + 1, &r->override))
		return gmem_ui_fail_last();
	return 0;
}

static int find_separator(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--"))
			return i;
	return 0;
}

static int take_options(struct restore *r, int argc, char **argv)
{
	static const struct option options[] = {
		{ "eager", no_argument, NULL, 'e' },
		{ "no-fill", no_argument, NULL, 'n' },
		{ "detach", no_argument, NULL, 'd' },
		{ "socket", required_argument, NULL, 's' },
		{ "reattach", required_argument, NULL, 'r' },
		{ "take-over", no_argument, NULL, 't' },
		{ "record", required_argument, NULL, 'R' },
		{ "replay", required_argument, NULL, 'P' },
		{ "learn", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int separator = find_separator(argc, argv);
	int c;

	optind = 1;
	opterr = 0;
	while ((c = getopt_long(separator ? separator : argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'e':
			r->eager = true;
			break;
		case 'n':
			r->no_fill = true;
			break;
		case 'd':
			r->detach = true;
			break;
		case 's':
			r->socket = optarg;
			break;
		case 'r':
			r->reattach = optarg;
			break;
		case 't':
			r->take_over = true;
			break;
		case 'R':
			r->record_path = optarg;
			break;
		case 'P':
			r->replay_path = optarg;
			break;
		case 'l':
			r->learn = true;
			break;
		case 'h':
			fputs(help, stdout);
			return -1;
		default:
			return gmem_ui_usage("restore", "unknown option or missing value: '%s'", argv[optind - 1]);
		}
	}
	return take_operands(r, argc, argv, separator);
}

int cmd_restore(int argc, char **argv)
{
	struct restore *r = calloc(1, sizeof(*r));
	int code;

	if (!r)
		return gmem_ui_fail("out of memory");
	r->begun = gmem_ui_now();
	r->process = -1;
	code = take_options(r, argc, argv);
	if (!code) {
		restore_catch_signals();
		code = r->reattach ? restore_join(r) : restore_start(r);
		if (!code)
			code = restore_serve(r);
	}
	restore_clean_up(r);
	free(r);
	return code < 0 ? GMEM_UI_OK : code;
}
