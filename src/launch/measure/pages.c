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

/* How far threads are ahead of the chain at most, in chunks: as much memory as stays in a cache. */
#define WINDOW 64u

struct work {
	const uint8_t *bytes;
	uint64_t npages, nchunks;
	uint8_t (*hashes)[GMEM_SHA384_LEN]; /* of WINDOW chunks: chunk i is at i % WINDOW */
	/* Guards what follows, and that a chunk that is hashed is seen with its hashes. */
	pthread_mutex_t lock;
	pthread_cond_t hashed; /* the caller's thread waits for a chunk */
	pthread_cond_t room; /* others wait for the window to move on */
	uint64_t next; /* no thread has taken this chunk, or any after it */
	uint64_t linked; /* all chunks before this one are in the digest: the window begins here */
	bool is_hashed[WINDOW];
	int err; /* of a thread: no more chunks are taken */
};

/* What the caller's thread is at. */
struct linker {
	struct work *w;
	struct gmem_sha384_many many;
	struct gmem_snp_digest *digest;
	uint64_t gpa;
	struct gmem_measure_progress *progress;
	uint64_t linked, known, told; /* pages in the digest; whose hashes are there; that the caller was told of */
	uint8_t info[GMEM_SNP_INFO_LEN];
	bool linking;
	bool behind; /* the others: the chain takes longer than the hashes do */
	uint64_t at, end; /* of a chunk of its own: pages that are not put yet */
	uint64_t
		own[WINDOW]; /* chunks of its own that are not hashed: `nown` from `first_own` on, as they were taken */
	uint32_t left[WINDOW]; /* pages of a chunk of its own that are in lanes */
	uint32_t first_own, nown;
};

/* The next chunk to be hashed. False: there is none now. Under the lock. */
static bool take(struct work *w, uint64_t *ret_chunk)
{
	if (w->err || w->next == gmem_min_u64(w->nchunks, w->linked + WINDOW))
		return false;
	*ret_chunk = w->next++;
	return true;
}

static uint64_t end_of(const struct work *w, uint64_t chunk)
{
	return gmem_min_u64((chunk + 1) * CHUNK, w->npages);
}

/* Where the hash of a page goes. */
static uint8_t *hash_of(struct work *w, uint64_t page)
{
	return w->hashes[page % (WINDOW * CHUNK)];
}

/* Releases the lock while it hashes. */
static void hash_chunk(struct work *w, struct gmem_sha384_many *many, uint64_t chunk)
{
	uint64_t first = chunk * CHUNK;
	int err;

	pthread_mutex_unlock(&w->lock);
	err = gmem_sha384_many(many, w->bytes + first * GMEM_PAGE_SIZE, end_of(w, chunk) - first,
			       w->hashes + first % (WINDOW * CHUNK));
	pthread_mutex_lock(&w->lock);
	if (err)
		w->err = err;
	w->is_hashed[chunk % WINDOW] = !err;
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
	while (!w->err && w->next < w->nchunks) {
		if (take(w, &chunk))
			hash_chunk(w, &many, chunk);
		else
			pthread_cond_wait(&w->room, &w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	gmem_sha384_many_free(&many);
	return NULL;
}

int gmem_measure_went_on(struct gmem_measure_progress *progress, uint64_t bytes)
{
	int err;

	progress->done += bytes;
	err = progress->fn ? progress->fn(progress->opaque, progress->done, progress->total) : 0;
	progress->stopped = err;
	return err;
}

/* The window moves on by a chunk. */
static void chunk_linked(struct work *w)
{
	pthread_mutex_lock(&w->lock);
	w->is_hashed[w->linked++ % WINDOW] = false;
	pthread_cond_signal(&w->room);
	pthread_mutex_unlock(&w->lock);
}

/* The digest has one page more. */
static int page_linked(struct linker *l)
{
	uint64_t pages;

	l->linking = false;
	l->linked++;
	if (l->linked % CHUNK && l->linked < l->w->npages)
		return 0;
	chunk_linked(l->w);
	pages = l->linked - l->told;
	if (pages < CHUNKS_A_REPORT * CHUNK && l->linked < l->w->npages)
		return 0;
	l->told = l->linked;
	return gmem_measure_went_on(l->progress, pages * GMEM_PAGE_SIZE);
}

/* Whether the hash of the next page to be linked is there. */
static bool is_known(struct linker *l)
{
	struct work *w = l->w;
	bool hashed;

	if (l->linked < l->known)
		return true;
	pthread_mutex_lock(&w->lock);
	hashed = w->is_hashed[w->linked % WINDOW];
	l->behind = w->next - w->linked > WINDOW / 2;
	pthread_mutex_unlock(&w->lock);
	if (hashed)
		l->known = end_of(w, l->known / CHUNK);
	return hashed;
}

static int link_page(struct linker *l)
{
	int err = gmem_snp_digest_info(l->digest, GMEM_SNP_PAGE_NORMAL, l->gpa + l->linked * GMEM_PAGE_SIZE,
				       hash_of(l->w, l->linked), l->info);

	l->linking = true;
	return err ? err : gmem_sha384_many_link(&l->many, l->info, sizeof(l->info), !l->behind, l->digest->ld);
}

/* Chunks of its own that came out of the lanes. */
static void own_hashed(struct linker *l)
{
	while (l->nown) {
		uint64_t chunk = l->own[l->first_own];

		/* The last one may not have gone in whole. */
		if (l->left[chunk % WINDOW] || (l->nown == 1 && l->at < l->end))
			return;
		pthread_mutex_lock(&l->w->lock);
		l->w->is_hashed[chunk % WINDOW] = true;
		pthread_mutex_unlock(&l->w->lock);
		l->first_own = (l->first_own + 1) % WINDOW;
		l->nown--;
	}
}

/* A page of its own to be hashed. */
static bool has_page(struct linker *l)
{
	uint64_t chunk;
	bool taken;

	if (l->at < l->end)
		return true;
	pthread_mutex_lock(&l->w->lock);
	taken = take(l->w, &chunk);
	pthread_mutex_unlock(&l->w->lock);
	if (!taken)
		return false;
	l->own[(l->first_own + l->nown++) % WINDOW] = chunk;
	l->at = chunk * CHUNK;
	l->end = end_of(l->w, chunk);
	return true;
}

static int put_page(struct linker *l)
{
	uint64_t page = l->at++;
	int err = gmem_sha384_many_put(&l->many, l->w->bytes + page * GMEM_PAGE_SIZE, hash_of(l->w, page),
				       &l->left[page / CHUNK % WINDOW]);

	own_hashed(l);
	return err;
}

/* Nothing is left to do but what the others have taken. */
static int wait_for_others(struct linker *l)
{
	struct work *w = l->w;
	int err;

	pthread_mutex_lock(&w->lock);
	while (!w->is_hashed[w->linked % WINDOW] && !w->err)
		pthread_cond_wait(&w->hashed, &w->lock);
	err = w->err;
	pthread_mutex_unlock(&w->lock);
	return err ? gmem_err(err, "no memory to hash pages with") : 0;
}

/* What the caller's thread does: links what is hashed; meanwhile, or where nothing is, hashes too. */
static int link_all(struct linker *l)
{
	int err = 0;

	while (!err && l->linked < l->w->npages) {
		if (l->linking && !gmem_sha384_many_linking(&l->many)) {
			err = page_linked(l);
		} else if (!l->linking && is_known(l)) {
			err = link_page(l);
		} else if (has_page(l)) {
			err = put_page(l);
		} else {
			err = gmem_sha384_many_push(&l->many);
			if (err > 0) {
				own_hashed(l);
				err = 0;
			} else if (!err) {
				err = wait_for_others(l);
			}
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

static int run(struct linker *l)
{
	struct work *w = l->w;
	pthread_t threads[MAX_THREADS];
	unsigned int n = start(w, threads, threads_for(w->npages) - 1);
	int err = gmem_sha384_many_init(&l->many, w->npages >= PAGES_A_THREAD);

	if (!err)
		err = link_all(l);
	pthread_mutex_lock(&w->lock);
	w->next = w->nchunks;
	pthread_cond_broadcast(&w->room);
	pthread_mutex_unlock(&w->lock);
	while (n)
		pthread_join(threads[--n], NULL);
	gmem_sha384_many_free(&l->many);
	return err;
}

int gmem_measure_pages(struct gmem_snp_digest *digest, uint64_t gpa, const uint8_t *bytes, uint64_t npages,
		       struct gmem_measure_progress *progress)
{
	struct work w = { .bytes = bytes, .npages = npages, .nchunks = (npages + CHUNK - 1) / CHUNK };
	struct linker l = { .w = &w, .digest = digest, .gpa = gpa, .progress = progress };
	int err;

	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.hashed, NULL);
	pthread_cond_init(&w.room, NULL);
	w.hashes = malloc(gmem_min_u64(w.nchunks, WINDOW) * CHUNK * sizeof(*w.hashes));
	err = w.hashes ? run(&l) : gmem_err_sys(-ENOMEM, "hashes of pages");
	free(w.hashes);
	pthread_cond_destroy(&w.room);
	pthread_cond_destroy(&w.hashed);
	pthread_mutex_destroy(&w.lock);
	return err;
}
