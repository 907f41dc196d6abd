/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "gmem.h"
#include "tools/cmd.h"
#include "tools/ui.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} commands[] = {
	{ "info", cmd_info, "what this machine offers, and what to do about what is missing" },
	{ "run", cmd_run, "start a QEMU whose memory gmem owns" },
	{ "save", cmd_save, "save a running virtual machine to an image" },
	{ "restore", cmd_restore, "start a saved virtual machine, its memory faulted in on demand" },
	{ "migrate", cmd_migrate, "move a running virtual machine to another host" },
	{ "serve", cmd_serve, "serve the memory of many machines, Firecracker's too" },
	{ "inspect", cmd_inspect, "what an image holds" },
	{ "verify", cmd_verify, "read and check every byte of an image" },
	{ "measure", cmd_measure, "the launch digest of an SEV-SNP or TDX guest, from its files" },
	{ "launch", cmd_launch, "launch such a guest's firmware, emulated, and look at its private memory" },
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *out)
{
	fprintf(out, "Usage: gmem COMMAND [ARGUMENT...]\n"
		     "       gmem --help | --version\n"
		     "\n"
		     "The memory of virtual machines: saved, restored lazily, inspected, measured.\n"
		     "\n");
	for (size_t i = 0; i < NCOMMANDS; i++)
		if (commands[i].run)
			fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].what);
	fprintf(out, "\n"
		     "gmem COMMAND --help says more. Exit status: 0 done, 1 failed, 2 wrong usage.\n");
}

/* A result that could not be written is a failure: a full disk must not look like success. */
static int finish(int code)
{
	if ((ferror(stdout) | fflush(stdout)) && !code)
		return gmem_ui_fail("standard output: %s", strerror(errno));
	return code;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
		print_help(stdout);
		return finish(GMEM_UI_OK);
	}
	if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
		printf("gmem %s\n", gmem_version());
		return finish(GMEM_UI_OK);
	}
	if (argc < 2) {
		print_help(stderr);
		return GMEM_UI_USAGE;
	}
	for (size_t i = 0; i < NCOMMANDS; i++) {
		if (strcmp(commands[i].name, name))
			continue;
		if (!commands[i].run)
			return gmem_ui_fail("%s: not in this build", name);
		return finish(commands[i].run(argc - 1, argv + 1));
	}
	return gmem_ui_usage(NULL, name[0] == '-' ? "unknown option '%s'" : "unknown command '%s'", name);
}
