/* SPDX-License-Identifier: MIT */
/* gmem migrate send --precopy: memory goes over while the guest runs, and again what it has written. */
#include <errno.h>
#include <string.h>

#include "tools/migrate.h"

/* How long QEMU is given to tell the next piece of what was written. */
#define LOG_WAIT_MS 100

static int on_dirty(void *opaque, size_t backend, uint64_t off, uint64_t npages, const void *bitmap)
{
	struct migrate_send *s = opaque;

	/* Regions are in the order of the backends. */
	return gmem_page_server_dirty(s->server, backend, off, npages, bitmap);
}

/* Until the other side has all of it, or QEMU has stopped the machine. */
static int wait_round(struct migrate_send *s, struct gmem_dirty_log *log, int64_t round,
		      struct gmem_ui_progress *progress)
{
	struct gmem_page_server_stats stats = { .size = sizeof(stats) };
	uint64_t total = 0;
	int err;

	for (size_t i = 0; i < s->machine.ram->n; i++)
		total += s->machine.ram->backends[i].size;
	for (;;) {
		err = gmem_page_server_wait_round(s->server, round, 100);
		if (err != -ETIMEDOUT)
			return err ? gmem_ui_fail_last() : 0;
		if (migrate_interrupted())
			return gmem_ui_fail("interrupted by signal %d", migrate_interrupted());
		if (gmem_dirty_log_wait(log, 0) < 0)
			return gmem_ui_fail_last();
		/* It stands already: what is left follows on demand. */
		if (gmem_dirty_log_ended(log))
			return 0;
		if (!round && !gmem_page_server_stats(s->server, &stats)) {
			uint64_t done = (stats.bulk_pages + stats.urgent_pages) * GMEM_PAGE_SIZE;

			gmem_ui_progress_step(progress, done < total ? done : total, total);
		}
	}
}

/* What QEMU tells until it has told all that was written before: the next round. */
static int one_round(struct migrate_send *s, struct gmem_dirty_log *log, struct gmem_ui_progress *progress)
{
	unsigned int first, now;
	int64_t round;
	int err;

	if (gmem_dirty_log_rounds(log, &first))
		return gmem_ui_fail_last();
	do {
		if (gmem_dirty_log_wait(log, LOG_WAIT_MS) < 0 || gmem_dirty_log_take(log, on_dirty, s))
			return gmem_ui_fail_last();
		round = gmem_page_server_round(s->server);
		if (round < 0)
			return gmem_ui_fail_last();
		err = wait_round(s, log, round, progress);
		if (err)
			return err;
		if (gmem_dirty_log_rounds(log, &now))
			return gmem_ui_fail_last();
	} while (now == first && !gmem_dirty_log_ended(log));
	return 0;
}

static int run(struct migrate_send *s, struct gmem_dirty_log *log)
{
	struct gmem_ui_progress progress;
	char buf[GMEM_UI_TEXT];
	int err;

	gmem_ui_progress_start(&progress, "pre-copy");
	err = gmem_page_server_precopy(s->server) ? gmem_ui_fail_last() : wait_round(s, log, 0, &progress);
	for (unsigned int i = 1; i < s->precopy && !err && !gmem_dirty_log_ended(log); i++)
		err = one_round(s, log, &progress);
	gmem_ui_progress_end(&progress);
	if (!err)
		gmem_ui_note("pre-copy took %s", gmem_ui_time(buf, gmem_ui_now() - s->prepared));
	return err;
}

int migrate_precopy(struct migrate_send *s, void **ret, size_t *ret_len)
{
	struct gmem_dirty_log *log = NULL;
	int err;

	if (gmem_dirty_log_start(s->qmp, s->machine.ram, &s->state, &log))
		return gmem_ui_fail_last();
	err = run(s, log);
	if (!err && gmem_dirty_log_stop(log, ret, ret_len))
		err = gmem_ui_fail_last();
	if (!err && gmem_dirty_log_take(log, on_dirty, s))
		err = gmem_ui_fail_last();
	gmem_dirty_log_free(log);
	return err;
}
