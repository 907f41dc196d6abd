/* SPDX-License-Identifier: MIT */
#include "link/migrate/dirty_log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "gmem.h"
#include "link/migrate/ram_stream.h"
#include "link/qmp.h"

#define FD_NAME "gmem-dirty-log"
/* QEMU stops the machine by itself when what is left takes it no longer than this. */
#define RUNNING_LIMIT_MS 1
#define STOPPED_LIMIT_MS 2000000
/* So many pages are told before the reader waits for gmem_dirty_log_take(). */
#define TAKE_PAGES 2048u

struct gmem_dirty_log {
	struct gmem_qmp *qmp;
	struct gmem_device_state *state; /* borrowed */
	struct gmem_ram_stream_block *blocks;
	size_t nblocks;
	uint64_t *walked; /* of the first walk: bits of all blocks, one after the other; the reader's own */
	uint64_t to_walk; /* pages; the reader's own */
	int64_t limit; /* downtime limit to set back, -1: none */
	int sock;
	bool started, completed;
	pthread_t thread;
	pthread_mutex_t m; /* guards all that follows */
	pthread_cond_t changed;
	uint64_t **bits; /* a bitmap for each block */
	uint64_t count; /* of bits set */
	bool begun; /* the first walk is over */
	bool flowing; /* the reader does not wait: the machine is stopped */
	bool given_up;
	int ended; /* 1, or its error */
	char text[512]; /* of the error */
	char *kept;
	size_t kept_len, kept_room;
};

/* ---- the reader */

static void wait_turn(struct gmem_dirty_log *log)
{
	while (!log->flowing && !log->given_up && log->count >= TAKE_PAGES)
		pthread_cond_wait(&log->changed, &log->m);
}

/* Every page comes once whatever was written: that says nothing. */
static bool walk(struct gmem_dirty_log *log, size_t block, uint64_t page)
{
	if (!log->to_walk)
		return false;
	for (size_t i = 0; i < block; i++)
		page += log->blocks[i].len >> GMEM_PAGE_SHIFT;
	if (log->walked[page / 64] & 1ull << page % 64)
		return true;
	log->walked[page / 64] |= 1ull << page % 64;
	if (--log->to_walk)
		return true;
	pthread_mutex_lock(&log->m);
	log->begun = true;
	/* As if there were much to take: nothing more is read until the caller wants to know. */
	log->count = TAKE_PAGES;
	pthread_cond_broadcast(&log->changed);
	pthread_mutex_unlock(&log->m);
	return true;
}

static int on_page(void *opaque, size_t block, uint64_t off)
{
	struct gmem_dirty_log *log = opaque;
	uint64_t page = off >> GMEM_PAGE_SHIFT, bit = 1ull << page % 64;
	bool given_up;

	if (walk(log, block, page))
		return 0;
	pthread_mutex_lock(&log->m);
	wait_turn(log);
	if (!(log->bits[block][page / 64] & bit)) {
		log->bits[block][page / 64] |= bit;
		if (++log->count == TAKE_PAGES)
			pthread_cond_broadcast(&log->changed);
	}
	given_up = log->given_up;
	pthread_mutex_unlock(&log->m);
	return given_up ? gmem_err(-ECANCELED, "dirty log: given up") : 0;
}

static int on_keep(void *opaque, const void *bytes, size_t len)
{
	struct gmem_dirty_log *log = opaque;
	bool given_up;

	/* Here too: QEMU must not come to the end of a round before its pages were taken. */
	pthread_mutex_lock(&log->m);
	wait_turn(log);
	given_up = log->given_up;
	pthread_mutex_unlock(&log->m);
	if (given_up)
		return gmem_err(-ECANCELED, "dirty log: given up");
	if (log->kept_len + len > log->kept_room) {
		size_t room = log->kept_room ? log->kept_room : 1u << 20;
		char *kept;

		if (log->kept_len + len > GMEM_STATE_MAX)
			return gmem_err(-EFBIG, "QEMU sends more than %llu MiB of device state", GMEM_STATE_MAX >> 20);
		while (room < log->kept_len + len)
			room *= 2;
		kept = realloc(log->kept, room);
		if (!kept)
			return gmem_err(-ENOMEM, "device state: out of memory");
		log->kept = kept;
		log->kept_room = room;
	}
	memcpy(log->kept + log->kept_len, bytes, len);
	log->kept_len += len;
	return 0;
}

static void *read_stream(void *arg)
{
	struct gmem_dirty_log *log = arg;
	struct gmem_ram_stream stream = { .fd = log->sock,
					  .blocks = log->blocks,
					  .nblocks = log->nblocks,
					  .page = on_page,
					  .keep = on_keep,
					  .opaque = log };
	int err = gmem_ram_stream_read(&stream);

	/* QEMU must not wait for a reader that is gone. */
	shutdown(log->sock, SHUT_RDWR);
	pthread_mutex_lock(&log->m);
	snprintf(log->text, sizeof(log->text), "%s", err ? gmem_last_error() : "");
	log->ended = err ? err : 1;
	pthread_cond_broadcast(&log->changed);
	pthread_mutex_unlock(&log->m);
	return NULL;
}

/* ---- starting */

static int oom(void)
{
	return gmem_err(-ENOMEM, "dirty log: out of memory");
}

static int name_blocks(struct gmem_dirty_log *log, const struct gmem_ram *ram)
{
	uint64_t npages = 0;

	log->blocks = calloc(ram->n, sizeof(*log->blocks));
	log->bits = calloc(ram->n, sizeof(*log->bits));
	if (!log->blocks || !log->bits)
		return oom();
	for (; log->nblocks < ram->n; log->nblocks++) {
		const struct gmem_ram_backend *b = &ram->backends[log->nblocks];
		char *name;

		if (asprintf(&name, "%s%s", b->canonical ? "/objects/" : "", b->id) < 0)
			return oom();
		log->blocks[log->nblocks] = (struct gmem_ram_stream_block){ .name = name, .len = b->size };
		log->bits[log->nblocks] = calloc((b->size >> GMEM_PAGE_SHIFT) / 64 + 1, 8);
		npages += b->size >> GMEM_PAGE_SHIFT;
		if (!log->bits[log->nblocks]) {
			free(name);
			return oom();
		}
	}
	log->to_walk = npages;
	log->walked = calloc(npages / 64 + 1, 8);
	return log->walked ? 0 : oom();
}

static int check_accel(struct gmem_qmp *qmp)
{
	json_t *info;
	bool kvm;
	int err = gmem_qmp_exec(qmp, "query-kvm", NULL, &info);

	if (err && err != -EOPNOTSUPP)
		return err;
	kvm = !err && json_is_true(json_object_get(info, "enabled"));
	if (!err)
		json_decref(info);
	return kvm ? 0 :
		     gmem_err(-EOPNOTSUPP,
			      "%s: the machine runs without KVM, and QEMU's log of what an emulated CPU "
			      "writes is not reliable: migrate without pre-copy",
			      gmem_qmp_name(qmp));
}

static int note_status(struct gmem_dirty_log *log)
{
	struct gmem_device_state *state = log->state;
	const char *status;
	json_t *info;
	int err = gmem_qmp_exec(log->qmp, "query-status", NULL, &info);

	if (err)
		return err;
	status = json_string_value(json_object_get(info, "status"));
	snprintf(state->status, sizeof(state->status), "%s", status ? status : "?");
	json_decref(info);
	state->was_running = !strcmp(state->status, "running");
	if (state->was_running)
		return 0;
	return gmem_err(-EBUSY, "the machine is not running but in state '%s': pre-copy is for one that runs",
			state->status);
}

static int set_limit(struct gmem_qmp *qmp, int64_t ms)
{
	return gmem_qmp_execf(qmp, NULL, "migrate-set-parameters", "{s:I}", "downtime-limit", (json_int_t)ms);
}

/* What is put back later is noted first. */
static int lower_limit(struct gmem_dirty_log *log)
{
	json_t *params, *limit;
	int err;

	err = gmem_qmp_exec(log->qmp, "query-migrate-parameters", NULL, &params);
	if (err)
		return err;
	limit = json_object_get(params, "downtime-limit");
	if (json_is_integer(limit))
		log->limit = json_integer_value(limit);
	json_decref(params);
	return set_limit(log->qmp, RUNNING_LIMIT_MS);
}

static int migrate(struct gmem_dirty_log *log)
{
	int sv[2], len = 32 << 10, err;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return gmem_err_sys(-errno, "dirty log: socketpair");
	log->sock = sv[0];
	/* What is on its way is read ahead of the caller's wish: a little of it. */
	(void)setsockopt(sv[1], SOL_SOCKET, SO_SNDBUF, &len, sizeof(len));
	err = gmem_qmp_getfd(log->qmp, FD_NAME, sv[1]);
	close(sv[1]);
	if (!err)
		err = gmem_qmp_execf(log->qmp, NULL, "migrate", "{s:s}", "uri", "fd:" FD_NAME);
	if (err)
		return err;
	err = -pthread_create(&log->thread, NULL, read_stream, log);
	if (err)
		return gmem_err_sys(err, "dirty log: thread");
	log->started = true;
	pthread_mutex_lock(&log->m);
	while (!log->begun && !log->ended)
		pthread_cond_wait(&log->changed, &log->m);
	err = log->ended < 0 ? gmem_err(log->ended, "%s", log->text) : 0;
	pthread_mutex_unlock(&log->m);
	return err;
}

int gmem_dirty_log_start(struct gmem_qmp *qmp, const struct gmem_ram *ram, struct gmem_device_state *state,
			 struct gmem_dirty_log **ret)
{
	struct gmem_dirty_log *log = calloc(1, sizeof(*log));
	int err;

	if (!log)
		return oom();
	*state = (struct gmem_device_state){ .bandwidth = -1 };
	log->qmp = qmp;
	log->state = state;
	log->limit = -1;
	log->sock = -1;
	pthread_mutex_init(&log->m, NULL);
	pthread_cond_init(&log->changed, NULL);
	err = check_accel(qmp);
	if (!err)
		err = note_status(log);
	if (!err)
		err = name_blocks(log, ram);
	if (!err)
		err = gmem_device_state_caps(qmp, false, &state->caps);
	if (!err)
		err = lower_limit(log);
	if (!err) {
		gmem_device_state_lift_bandwidth(qmp, state);
		err = migrate(log);
	}
	if (err) {
		gmem_dirty_log_free(log);
		return err;
	}
	*ret = log;
	return 0;
}

/* ---- the caller's side */

int64_t gmem_dirty_log_wait(struct gmem_dirty_log *log, int timeout_ms)
{
	struct timespec until;
	int64_t n;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&log->m);
	while (!log->ended && log->count < TAKE_PAGES)
		if (pthread_cond_timedwait(&log->changed, &log->m, &until))
			break;
	n = log->ended < 0 ? gmem_err(log->ended, "%s", log->text) : (int64_t)log->count;
	pthread_mutex_unlock(&log->m);
	return n;
}

bool gmem_dirty_log_ended(struct gmem_dirty_log *log)
{
	bool ended;

	pthread_mutex_lock(&log->m);
	ended = log->ended > 0;
	pthread_mutex_unlock(&log->m);
	return ended;
}

int gmem_dirty_log_rounds(struct gmem_dirty_log *log, unsigned int *ret)
{
	json_t *info;
	int64_t n;
	int err = gmem_qmp_exec(log->qmp, "query-migrate", NULL, &info);

	if (err)
		return err;
	/* The first count comes before the first page, the second after the first walk. */
	n = json_integer_value(json_object_get(json_object_get(info, "ram"), "dirty-sync-count"));
	*ret = n > 2 ? (unsigned int)n - 2 : 0;
	json_decref(info);
	return 0;
}

/* The words of a block with a bit set: first and end. False: none has. */
static bool stretch(const uint64_t *bits, uint64_t nwords, uint64_t *first, uint64_t *end)
{
	*first = 0;
	*end = nwords;
	while (*first < *end && !bits[*first])
		++*first;
	while (*end > *first && !bits[*end - 1])
		--*end;
	return *first < *end;
}

static int take_block(struct gmem_dirty_log *log, size_t i, const uint64_t *bits, gmem_dirty_log_each_fn each,
		      void *opaque)
{
	uint64_t npages = log->blocks[i].len >> GMEM_PAGE_SHIFT, first, end;

	if (!stretch(bits, npages / 64 + 1, &first, &end))
		return 0;
	return each(opaque, i, first * 64 << GMEM_PAGE_SHIFT, gmem_min_u64(end * 64, npages) - first * 64,
		    bits + first);
}

int gmem_dirty_log_take(struct gmem_dirty_log *log, gmem_dirty_log_each_fn each, void *opaque)
{
	int err = 0;

	for (size_t i = 0; i < log->nblocks && !err; i++) {
		uint64_t nwords = (log->blocks[i].len >> GMEM_PAGE_SHIFT) / 64 + 1;
		uint64_t *fresh = calloc(nwords, 8), *bits;

		if (!fresh)
			return oom();
		pthread_mutex_lock(&log->m);
		bits = log->bits[i];
		log->bits[i] = fresh;
		/* The last block: what came to those before it meanwhile counts again when it is told next. */
		if (i + 1 == log->nblocks) {
			log->count = 0;
			pthread_cond_broadcast(&log->changed);
		}
		pthread_mutex_unlock(&log->m);
		err = take_block(log, i, bits, each, opaque);
		free(bits);
	}
	return err;
}

static void join(struct gmem_dirty_log *log)
{
	if (log->started)
		pthread_join(log->thread, NULL);
	log->started = false;
}

int gmem_dirty_log_stop(struct gmem_dirty_log *log, void **ret, size_t *ret_len)
{
	int err;

	log->state->stop_ns = gmem_now_ns();
	err = gmem_qmp_exec(log->qmp, "stop", NULL, NULL);
	if (err)
		return err;
	log->state->stopped = true;
	err = set_limit(log->qmp, STOPPED_LIMIT_MS);
	if (err)
		return err;
	pthread_mutex_lock(&log->m);
	log->flowing = true;
	pthread_cond_broadcast(&log->changed);
	pthread_mutex_unlock(&log->m);
	join(log);
	if (log->ended < 0)
		return gmem_err(log->ended, "%s", log->text);
	err = gmem_device_state_wait(log->qmp);
	if (err)
		return err;
	log->completed = true;
	log->state->migrated = true;
	*ret = log->kept;
	*ret_len = log->kept_len;
	log->kept = NULL;
	return 0;
}

static void give_up(struct gmem_dirty_log *log)
{
	char *text = strdup(gmem_last_error());

	pthread_mutex_lock(&log->m);
	log->given_up = true;
	pthread_cond_broadcast(&log->changed);
	pthread_mutex_unlock(&log->m);
	shutdown(log->sock, SHUT_RDWR);
	gmem_device_state_cancel(log->qmp, -ECANCELED);
	join(log);
	/* QEMU may have stopped the machine just before: it is told to go on, whether it does or not. */
	log->state->stopped = true;
	gmem_err(-ECANCELED, "%s", text ? text : "dirty log: given up");
	free(text);
}

void gmem_dirty_log_free(struct gmem_dirty_log *log)
{
	if (!log)
		return;
	if (log->sock >= 0 && !log->completed)
		give_up(log);
	if (log->limit >= 0)
		(void)set_limit(log->qmp, log->limit);
	for (size_t i = 0; i < log->nblocks; i++) {
		free((char *)log->blocks[i].name);
		free(log->bits[i]);
	}
	free(log->blocks);
	free(log->bits);
	free(log->walked);
	free(log->kept);
	if (log->sock >= 0)
		close(log->sock);
	pthread_cond_destroy(&log->changed);
	pthread_mutex_destroy(&log->m);
	free(log);
}
