/* SPDX-License-Identifier: MIT */
/* Between the files of gmem serve: its arguments, and what it does besides serving. */
#ifndef GMEM_TOOLS_SERVE_H
#define GMEM_TOOLS_SERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "gmem.h"

#define SERVE_MAX 64u /* sources, sockets, users */

struct serve_pair {
	char *name, *value; /* pointers into one argument, cut at its '=' */
};

struct serve_args {
	struct gmem_service_opts opts;
	char state_dir[256], socket[256], metrics[256];
	struct serve_pair sources[SERVE_MAX], listens[SERVE_MAX], worksets[SERVE_MAX];
	size_t nsources, nlistens, nworksets;
	const char *default_source;
	uid_t users[SERVE_MAX];
	bool no_keeper, no_metrics;
};

/* 0; -1: help was asked for and given; else an exit code. */
int serve_take_options(struct serve_args *args, int argc, char **argv);
/* Where a server of this user keeps its state if nothing is said. False: nowhere. */
bool serve_default_dir(char *dir, size_t len);

/* A line on standard error, with the time; at most so many a second, and how many were left out. Any thread. */
void serve_log_event(void *opaque, const struct gmem_service_event *event);
void serve_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

int serve_status(int argc, char **argv);
int serve_upgrade(int argc, char **argv);

#endif
