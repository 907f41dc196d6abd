/* SPDX-License-Identifier: MIT */
/* What a page server prints: a line an event, with the time, the machine, what happened and what is to be done. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tools/serve.h"

#define A_SECOND 20u /* lines; what a broken or hostile client can fill a disk with is bounded */

static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; /* guards what follows, and the order of lines */
static time_t second;
static unsigned int lines, left_out;

/* m is held. */
static bool may_print(const struct timespec *now)
{
	if (now->tv_sec != second) {
		if (left_out)
			fprintf(stderr, "gmem serve: %u lines more than %u a second were left out\n", left_out,
				A_SECOND);
		second = now->tv_sec;
		lines = left_out = 0;
	}
	if (lines++ < A_SECOND)
		return true;
	left_out++;
	return false;
}

void serve_log(const char *fmt, ...)
{
	struct timespec now;
	char text[1024], at[32];
	struct tm tm;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* A line is a line: names and texts have passed through others' hands. */
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &tm);
	strftime(at, sizeof(at), "%Y-%m-%dT%H:%M:%S", &tm);
	pthread_mutex_lock(&m);
	if (may_print(&now))
		fprintf(stderr, "%s.%03ld gmem serve: %s\n", at, now.tv_nsec / 1000000, text);
	pthread_mutex_unlock(&m);
}

static const struct {
	const char *what, *todo;
} kinds[] = {
	[GMEM_SERVICE_CONNECTED] = { "connected", NULL },
	[GMEM_SERVICE_RESUMED] = { "taken up again", NULL },
	[GMEM_SERVICE_SERVING] = { "is served from", NULL },
	[GMEM_SERVICE_COMPLETE] = { "complete", NULL },
	[GMEM_SERVICE_DEGRADED] = { "source fails", "the guest waits, and it is tried again: look at the source" },
	[GMEM_SERVICE_POISONED] = { "page lost",
				    "touching it is SIGBUS: end the machine, restore it from a good copy" },
	[GMEM_SERVICE_GAVE_UP] = { "waited too long", "the policy was followed (--policy, --patience)" },
	[GMEM_SERVICE_LOST] = { "cannot be served", "the guest waits, and it is tried again" },
	[GMEM_SERVICE_ENDED] = { "ended", NULL },
	[GMEM_SERVICE_REFUSED] = { "refused", NULL },
	[GMEM_SERVICE_TROUBLE] = { "trouble", NULL },
};

void serve_log_event(void *opaque, const struct gmem_service_event *e)
{
	size_t n = sizeof(kinds) / sizeof(kinds[0]);
	const char *what = e->kind < n && kinds[e->kind].what ? kinds[e->kind].what : "event";
	const char *todo = e->kind < n ? kinds[e->kind].todo : NULL;
	char who[256] = "";

	if (*e->vm)
		snprintf(who, sizeof(who), "vm %s%s%s (pid %d): ", e->vm, *e->name ? " " : "", e->name, (int)e->pid);
	else if (e->pid)
		snprintf(who, sizeof(who), "client (pid %d, user %u): ", (int)e->pid, (unsigned int)e->uid);
	serve_log("%s%s: %s%s%s", who, what, e->text, todo ? ": " : "", todo ? todo : "");
}
