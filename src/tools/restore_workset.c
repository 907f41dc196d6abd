/* SPDX-License-Identifier: MIT */
/* gmem restore --record, --replay, --learn: which pages the guest wants first. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/restore.h"

static void identity_of(const struct restore *r, uint8_t identity[GMEM_WORKSET_IDENTITY_LEN])
{
	memset(identity, 0, GMEM_WORKSET_IDENTITY_LEN);
	memcpy(identity, gmem_image_uuid(r->image), 16);
}

int restore_workset_open(struct restore *r)
{
	struct gmem_workset_opts opts = { .size = sizeof(opts) };
	struct gmem_workset_stat st = { .size = sizeof(st) };

	identity_of(r, opts.identity);
	if (r->replay_path) {
		if (gmem_workset_open(r->replay_path, &r->replayed) || gmem_workset_stat(r->replayed, &st))
			return gmem_ui_fail_last();
		if (memcmp(st.identity, opts.identity, sizeof(st.identity)))
			return gmem_ui_fail("%s: the working set of another image", r->replay_path);
	}
	if (r->record_path && gmem_workset_create(r->record_path, &opts, &r->recorded))
		return gmem_ui_fail_last();
	return 0;
}

static void *replay(void *arg)
{
	struct restore *r = arg;
	struct gmem_replay_opts opts = { .size = sizeof(opts), .flags = r->learn ? GMEM_REPLAY_OBSERVE : 0 };

	identity_of(r, opts.identity);
	r->replay_result = gmem_pager_replay(gmem_server_pager(r->server), r->replayed, &opts, NULL, NULL);
	/* The text is the thread's. */
	if (r->replay_result < 0)
		snprintf(r->replay_error, sizeof(r->replay_error), "%s", gmem_last_error());
	r->replay_end = gmem_ui_now();
	return NULL;
}

int restore_workset_begin(struct restore *r)
{
	int err;

	if (r->recorded && gmem_pager_record(gmem_server_pager(r->server), r->recorded, NULL, 0))
		return gmem_ui_fail_last();
	if (!r->replayed)
		return 0;
	err = pthread_create(&r->replayer, NULL, replay, r);
	if (err)
		return gmem_ui_fail("a thread for the working set: %s", strerror(err));
	r->replaying = true;
	return 0;
}

/* Where it is cut depends on how fast the rest came. */
static void learn(struct restore *r, uint64_t filled_pages, uint64_t fill_end)
{
	struct gmem_workset_cut cut = { .size = sizeof(cut) };
	struct gmem_pager_stats s = { .size = sizeof(s) };

	if (filled_pages && fill_end > r->replay_end)
		cut.fill_bytes_per_s =
			(uint64_t)((double)filled_pages * GMEM_PAGE_SIZE * 1e9 / (double)(fill_end - r->replay_end));
	if (!gmem_pager_stats(gmem_server_pager(r->server), &s) && s.latency_count)
		cut.fault_ns = s.latency_sum_ns / s.latency_count;
	if (gmem_workset_cut(r->replayed, &cut) || gmem_workset_save(r->replayed, r->replay_path)) {
		gmem_ui_note("%s", gmem_last_error());
		return;
	}
	gmem_ui_note("%s: %llu entries are worth replaying", r->replay_path, (unsigned long long)cut.ret_keep);
}

static void tell(const struct restore *r)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };
	char buf[GMEM_UI_TEXT];

	if (gmem_workset_stat(r->replayed, &st))
		return;
	gmem_ui_note("working set: %lld pages in %s; of %llu entries %llu came in time, %llu too late%s",
		     (long long)r->replay_result, gmem_ui_time(buf, st.replay_ns), (unsigned long long)st.entries,
		     (unsigned long long)st.hits, (unsigned long long)st.late,
		     st.observed ? "" : ", as far as can be seen");
	if (st.observed)
		gmem_ui_note("working set: %llu entries were not wanted, %llu pages wanted are in none",
			     (unsigned long long)st.unused, (unsigned long long)st.missed);
}

void restore_workset_end(struct restore *r, uint64_t filled_pages)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };
	uint64_t now = gmem_ui_now();

	if (r->replaying) {
		pthread_join(r->replayer, NULL);
		r->replaying = false;
		gmem_workset_stop(r->replayed);
		if (r->replay_result < 0) {
			gmem_ui_note("the working set was not replayed: %s", r->replay_error);
		} else {
			tell(r);
			if (r->learn)
				learn(r, filled_pages, now);
		}
	}
	if (!r->recorded)
		return;
	if (gmem_workset_stop(r->recorded) || gmem_workset_stat(r->recorded, &st))
		gmem_ui_note("the working set was not recorded to its end: %s", gmem_last_error());
	else
		gmem_ui_note("%s: a working set of %llu pages", r->record_path, (unsigned long long)st.pages);
	gmem_workset_close(r->recorded);
	r->recorded = NULL;
}

void restore_workset_close(struct restore *r)
{
	if (r->replaying)
		pthread_join(r->replayer, NULL);
	gmem_workset_close(r->replayed);
	if (!r->recorded)
		return;
	/* It came to nothing. The next attempt may have the name. */
	gmem_workset_close(r->recorded);
	unlink(r->record_path);
}
