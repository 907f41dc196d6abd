/* SPDX-License-Identifier: MIT */
/* The pool: workers read windows of a memory file and turn them into stored chunks. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "base/err.h"
#include "image/hash.h"
#include "image/writer.h"

struct gmem_image_pool {
	struct gmem_image_pool_opts opts;
	struct gmem_image_job *jobs; /* a ring: number n is jobs[n % njobs] */
	unsigned int njobs, nthreads;
	pthread_t *threads;
	ZSTD_CCtx *inline_cctx; /* for the owner, when no thread could be started */
	pthread_mutex_t lock; /* guards the counters, `stop` and each job's `done` */
	pthread_cond_t work, finished;
	uint64_t submitted, taken, collected; /* collected <= taken <= submitted <= collected + njobs */
	bool stop;
};

static bool page_is_zero(const uint8_t *page)
{
	/* Equal to itself shifted and zero at the start: all zero, at the speed of the C library's memcmp(). */
	static const uint8_t zero[16];

	return memcmp(page, zero, sizeof(zero)) == 0 && memcmp(page, page + 16, GMEM_PAGE_SIZE - 16) == 0;
}

static int read_window(const struct gmem_image_pool *pool, struct gmem_image_job *job)
{
	uint64_t off = pool->opts.fd_off + job->off;
	size_t done = 0;

	/* pread() and not a mapping: what is summed is then what is written, whatever still changes the memory. */
	while (done < job->len) {
		ssize_t n = pread(pool->opts.fd, job->in + done, job->len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gmem_err_sys(-errno, "gmem_image_add_region: cannot read the memory at offset 0x%llx",
					    (unsigned long long)(off + done));
		if (n == 0)
			return gmem_err(
				-EIO, "gmem_image_add_region: the memory ends at offset 0x%llx, it has become shorter",
				(unsigned long long)(off + done));
		done += (size_t)n;
	}
	return 0;
}

/* Moves the pages of one chunk that are not zero to `dst`, without gaps. Returns their mask. `dst` may be in front of
 * `src`, in one buffer. */
static uint64_t pack(uint8_t *dst, const uint8_t *src, uint32_t len)
{
	uint64_t mask = 0;

	for (uint32_t at = 0; at < len; at += GMEM_PAGE_SIZE) {
		if (page_is_zero(src + at))
			continue;
		mask |= UINT64_C(1) << (at / GMEM_PAGE_SIZE);
		if (dst != src + at)
			memmove(dst, src + at, GMEM_PAGE_SIZE);
		dst += GMEM_PAGE_SIZE;
	}
	return mask;
}

static void store_chunk(const struct gmem_image_pool *pool, struct gmem_image_job *job, ZSTD_CCtx *cctx,
			struct gmem_image_chunk *c, uint8_t *in, uint32_t len)
{
	bool zstd = pool->opts.compression == GMEM_COMPRESS_ZSTD;
	/* Packed where it lies when it is to be compressed, else behind the chunk before it. */
	uint8_t *at = zstd ? in : job->in + job->out_len;
	size_t packed, n;

	memset(c, 0, sizeof(*c));
	c->mask = pack(at, in, len);
	if (!c->mask)
		return;
	packed = (size_t)__builtin_popcountll(c->mask) * GMEM_PAGE_SIZE;
	c->off = job->out_len;
	c->stored_len = (uint32_t)packed;
	if (zstd) {
		/* Less than a sixteenth saved is not worth decompressing; a failure of any kind means the pages as they
		 * are. */
		n = cctx ? ZSTD_compressCCtx(cctx, job->packed + job->out_len, packed - packed / 16, at, packed,
					     pool->opts.level) :
			   (size_t)-1;
		if (ZSTD_isError(n)) {
			memcpy(job->packed + job->out_len, at, packed);
		} else {
			c->stored_len = (uint32_t)n;
			c->codec = GMEM_IMAGE_ZSTD;
		}
	}
	c->sum = gmem_image_hash(job->out + job->out_len, c->stored_len);
	job->out_len += c->stored_len;
}

static void run_job(const struct gmem_image_pool *pool, struct gmem_image_job *job, ZSTD_CCtx *cctx)
{
	uint32_t clen = pool->opts.chunk_len;

	job->out = pool->opts.compression == GMEM_COMPRESS_ZSTD ? job->packed : job->in;
	job->out_len = 0;
	job->error = read_window(pool, job);
	if (job->error < 0) {
		snprintf(job->text, sizeof(job->text), "%s", gmem_last_error());
		return;
	}
	for (uint32_t at = 0; at < job->len; at += clen)
		store_chunk(pool, job, cctx, &job->chunk[at / clen], job->in + at,
			    job->len - at < clen ? job->len - at : clen);
}

static void *worker(void *arg)
{
	struct gmem_image_pool *pool = arg;
	ZSTD_CCtx *cctx = pool->opts.compression == GMEM_COMPRESS_ZSTD ? ZSTD_createCCtx() : NULL;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct gmem_image_job *job;

		while (!pool->stop && pool->taken == pool->submitted)
			pthread_cond_wait(&pool->work, &pool->lock);
		if (pool->stop)
			break;
		job = &pool->jobs[pool->taken++ % pool->njobs];
		pthread_mutex_unlock(&pool->lock);
		run_job(pool, job, cctx);
		pthread_mutex_lock(&pool->lock);
		job->done = true;
		pthread_cond_signal(&pool->finished);
	}
	pthread_mutex_unlock(&pool->lock);
	ZSTD_freeCCtx(cctx);
	return NULL;
}

/* Starts what can be started: with no thread at all the owner does the work when it collects. */
static void start(struct gmem_image_pool *pool)
{
	sigset_t all, old;

	/* The caller's signals are for the caller's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (pool->nthreads < pool->opts.threads &&
	       pthread_create(&pool->threads[pool->nthreads], NULL, worker, pool) == 0)
		pool->nthreads++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int gmem_image_pool_create(const struct gmem_image_pool_opts *opts, struct gmem_image_pool **ret)
{
	struct gmem_image_pool *pool = calloc(1, sizeof(*pool));
	bool zstd = opts->compression == GMEM_COMPRESS_ZSTD;
	bool ok = pool != NULL;

	if (!ok)
		return gmem_err(-ENOMEM, "gmem_image_add_region: no memory");
	pool->opts = *opts;
	pool->njobs = opts->threads * 2 + 1;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->finished, NULL);
	pool->jobs = calloc(pool->njobs, sizeof(*pool->jobs));
	pool->threads = calloc(opts->threads, sizeof(*pool->threads));
	ok = pool->jobs && pool->threads;
	for (unsigned int i = 0; ok && i < pool->njobs; i++) {
		pool->jobs[i].in = malloc(GMEM_IMAGE_WINDOW);
		pool->jobs[i].packed = zstd ? malloc(GMEM_IMAGE_WINDOW) : NULL;
		ok = pool->jobs[i].in && (!zstd || pool->jobs[i].packed);
	}
	if (!ok) {
		gmem_image_pool_free(pool);
		return gmem_err(-ENOMEM, "gmem_image_add_region: no memory for %u buffers", pool->njobs);
	}
	start(pool);
	*ret = pool;
	return 0;
}

void gmem_image_pool_free(struct gmem_image_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned int i = 0; i < pool->nthreads; i++)
		pthread_join(pool->threads[i], NULL);
	for (unsigned int i = 0; pool->jobs && i < pool->njobs; i++) {
		free(pool->jobs[i].in);
		free(pool->jobs[i].packed);
	}
	pthread_cond_destroy(&pool->finished);
	pthread_cond_destroy(&pool->work);
	pthread_mutex_destroy(&pool->lock);
	ZSTD_freeCCtx(pool->inline_cctx);
	free(pool->threads);
	free(pool->jobs);
	free(pool);
}

/* Only the owner changes `submitted` and `collected`: it may read them without the lock. */
bool gmem_image_pool_full(const struct gmem_image_pool *pool)
{
	return pool->submitted - pool->collected == pool->njobs;
}

bool gmem_image_pool_empty(const struct gmem_image_pool *pool)
{
	return pool->submitted == pool->collected;
}

void gmem_image_pool_submit(struct gmem_image_pool *pool, uint64_t off, uint32_t len)
{
	struct gmem_image_job *job = &pool->jobs[pool->submitted % pool->njobs];

	job->off = off;
	job->len = len;
	pthread_mutex_lock(&pool->lock);
	job->done = false;
	pool->submitted++;
	pthread_cond_signal(&pool->work);
	pthread_mutex_unlock(&pool->lock);
}

struct gmem_image_job *gmem_image_pool_collect(struct gmem_image_pool *pool)
{
	struct gmem_image_job *job = &pool->jobs[pool->collected % pool->njobs];

	if (pool->nthreads == 0) {
		if (!pool->inline_cctx && pool->opts.compression == GMEM_COMPRESS_ZSTD)
			pool->inline_cctx = ZSTD_createCCtx();
		run_job(pool, job, pool->inline_cctx);
		return job;
	}
	pthread_mutex_lock(&pool->lock);
	while (!job->done)
		pthread_cond_wait(&pool->finished, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
	return job;
}

void gmem_image_pool_release(struct gmem_image_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	pool->collected++;
	pthread_mutex_unlock(&pool->lock);
}
