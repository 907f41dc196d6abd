/* SPDX-License-Identifier: MIT */
#include "launch/measure/pages.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/sha384_many.h"

/* A thread takes so many pages at once, and the caller's links so many before it looks again. */
#define CHUNK 32u
/* Fewer pages than this are not worth another thread, or lanes. */
#define PAGES_A_THREAD 128u
#define MAX_THREADS 64u
/* How often the caller is told: every 4 MiB. */
#define CHUNKS_A_REPORT 32u

struct work {
	const uint8_t *bytes;
	uint64_t npages, nchunks;
	uint8_t (*hashes)[GMEM_SHA384_LEN]; /* of each page */
	/* Guards what follows, and that a chunk that is hashed is seen with its hashes. */
	pthread_mutex_t lock;
	pthread_cond_t hashed; /* the caller's thread waits for a chunk */
	uint64_t next; /* no thread has taken this chunk, or any after it */
	bool *is_hashed; /* of each chunk */
	int err; /* of a thread: no more chunks are taken */
};

/* The next chunk to be hashed. False: there is none. Under the lock. */
static bool take(struct work *w, uint64_t *ret_chunk)
{
	if (w->err || w->next == w->nchunks)
		return false;
	*ret_chunk = w->next++;
	return true;
}

/* Releases the lock while it hashes. */
static void hash_chunk(struct work *w, struct gmem_sha384_many *many, uint64_t chunk)
{
	uint64_t first = chunk * CHUNK;
	int err;

	pthread_mutex_unlock(&w->lock);
	err = gmem_sha384_many(many, w->bytes + first * GMEM_PAGE_SIZE, gmem_min_u64(CHUNK, w->npages - first),
			       w->hashes + first);
	pthread_mutex_lock(&w->lock);
	if (err)
		w->err = err;
	w->is_hashed[chunk] = !err;
	pthread_cond_signal(&w->hashed);
}

static void *hasher(void *arg)
{
	struct gmem_sha384_many many;
	struct work *w = arg;
	uint64_t chunk;
	int err = gmem_sha384_many_init(&many, true);

	/* One that has no memory leaves the work to the others; the caller's thread is always there. */
	if (err)
		return NULL;
	pthread_mutex_lock(&w->lock);
	while (take(w, &chunk))
		hash_chunk(w, &many, chunk);
	pthread_mutex_unlock(&w->lock);
	gmem_sha384_many_free(&many);
	return NULL;
}

/* Until the chunk is hashed, by whomever. */
static int wait_for(struct work *w, struct gmem_sha384_many *many, uint64_t chunk)
{
	uint64_t other;
	int err;

	pthread_mutex_lock(&w->lock);
	while (!w->is_hashed[chunk] && !w->err) {
		if (take(w, &other))
			hash_chunk(w, many, other);
		else
			pthread_cond_wait(&w->hashed, &w->lock);
	}
	err = w->err;
	pthread_mutex_unlock(&w->lock);
	return err ? gmem_err(err, "no memory to hash pages with") : 0;
}

int gmem_measure_went_on(struct gmem_measure_progress *progress, uint64_t bytes)
{
	int err;

	progress->done += bytes;
	err = progress->fn ? progress->fn(progress->opaque, progress->done, progress->total) : 0;
	progress->stopped = err;
	return err;
}

/* What the caller's thread does: links what is hashed, hashes where nothing is. */
static int link_all(struct work *w, struct gmem_sha384_many *many, struct gmem_snp_digest *digest, uint64_t gpa,
		    struct gmem_measure_progress *progress)
{
	uint64_t told = 0;
	int err = 0;

	for (uint64_t chunk = 0; !err && chunk < w->nchunks; chunk++) {
		uint64_t end = gmem_min_u64((chunk + 1) * CHUNK, w->npages);

		err = wait_for(w, many, chunk);
		for (uint64_t i = chunk * CHUNK; !err && i < end; i++)
			err = gmem_snp_digest_link(digest, many->ctx, GMEM_SNP_PAGE_NORMAL, gpa + i * GMEM_PAGE_SIZE,
						   w->hashes[i]);
		if (!err && ((chunk + 1) % CHUNKS_A_REPORT == 0 || end == w->npages)) {
			err = gmem_measure_went_on(progress, (end - told) * GMEM_PAGE_SIZE);
			told = end;
		}
	}
	return err;
}

static unsigned int threads_for(uint64_t npages)
{
	uint64_t n = gmem_min_u64(npages / PAGES_A_THREAD, MAX_THREADS);
	cpu_set_t cpus;

	if (!sched_getaffinity(0, sizeof(cpus), &cpus))
		n = gmem_min_u64(n, (unsigned int)CPU_COUNT(&cpus));
	return n ? (unsigned int)n : 1;
}

/* As many as can be made, without the caller's; none is no error. Signals are the program's other threads'. */
static unsigned int start(struct work *w, pthread_t *threads, unsigned int wanted)
{
	unsigned int n = 0;
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (n < wanted && !pthread_create(&threads[n], NULL, hasher, w))
		n++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return n;
}

static int run(struct work *w, struct gmem_snp_digest *digest, uint64_t gpa, struct gmem_measure_progress *progress)
{
	pthread_t threads[MAX_THREADS];
	struct gmem_sha384_many many;
	unsigned int n = start(w, threads, threads_for(w->npages) - 1);
	int err = gmem_sha384_many_init(&many, w->npages >= PAGES_A_THREAD);

	if (!err)
		err = link_all(w, &many, digest, gpa, progress);
	pthread_mutex_lock(&w->lock);
	w->next = w->nchunks;
	pthread_mutex_unlock(&w->lock);
	while (n)
		pthread_join(threads[--n], NULL);
	gmem_sha384_many_free(&many);
	return err;
}

int gmem_measure_pages(struct gmem_snp_digest *digest, uint64_t gpa, const uint8_t *bytes, uint64_t npages,
		       struct gmem_measure_progress *progress)
{
	struct work w = { .bytes = bytes, .npages = npages, .nchunks = (npages + CHUNK - 1) / CHUNK };
	int err;

	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.hashed, NULL);
	w.hashes = malloc((npages ? npages : 1) * sizeof(*w.hashes));
	w.is_hashed = calloc(w.nchunks ? w.nchunks : 1, sizeof(*w.is_hashed));
	if (w.hashes && w.is_hashed)
		err = run(&w, digest, gpa, progress);
	else
		err = gmem_err_sys(-ENOMEM, "hashes of pages");
	free(w.is_hashed);
	free(w.hashes);
	pthread_cond_destroy(&w.hashed);
	pthread_mutex_destroy(&w.lock);
	return err;
}
