/* SPDX-License-Identifier: MIT */
/* Instants inside the library at which the server of serve_server.c can be killed. */
#define TAP_NO_MAIN
#include "serve_server.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

int __real_renameat(int from, const char *a, int to, const char *b);
int __wrap_renameat(int from, const char *a, int to, const char *b);
int __real_unlinkat(int dir, const char *name, int flags);
int __wrap_unlinkat(int dir, const char *name, int flags);

/* The ledger is written, and has not its name yet. */
int __wrap_renameat(int from, const char *a, int to, const char *b)
{
	serve_step("rename");
	return __real_renameat(from, a, to, b);
}

/* The ledger is gone, its table is not. */
int __wrap_unlinkat(int dir, const char *name, int flags)
{
	if (strstr(name, ".state"))
		serve_step("unlink");
	return __real_unlinkat(dir, name, flags);
}
