/* SPDX-License-Identifier: MIT */
/*
 * Rounds of pages while the guest runs. A thread writes to the source's memory and notes in a log what it wrote; the
 * log is taken and told again and again. What the destination has at the end is what was there when the writer stopped,
 * byte for byte, whatever was sent when, and however often the link was lost.
 */
#include "tap.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "migrate_util.h"
#include "source/source.h"

struct guest {
	struct pair *p;
	uint64_t seed;
	pthread_mutex_t m; /* the log, and that a write and its note are one */
	uint8_t *log;
	_Atomic bool stop;
	pthread_t thread;
	uint64_t writes;
};

static void guest_write(struct guest *g)
{
	uint64_t page = tap_rand(&g->seed) % (g->p->len / 4096), what = tap_rand(&g->seed);
	uint8_t *at = g->p->memory + page * 4096;

	pthread_mutex_lock(&g->m);
	if (what % 8 == 0)
		memset(at, 0, 4096);
	else
		memcpy(at + (what >> 8) % 512 * 8, &what, 8);
	g->log[page / 8] |= (uint8_t)(1u << page % 8);
	g->writes++;
	pthread_mutex_unlock(&g->m);
}

/* The library reads what the guest writes, as it does with a real one: that is no race to be told of. */
__attribute__((no_sanitize("thread"))) static void *guest_run(void *opaque)
{
	struct guest *g = opaque;

	while (!atomic_load(&g->stop)) {
		guest_write(g);
		if (tap_rand(&g->seed) % 16 == 0)
			usleep(20);
	}
	return NULL;
}

/* Takes the log and tells it. How many pages. */
static uint64_t harvest(struct guest *g)
{
	uint64_t npages = g->p->len / 4096, n = 0;
	uint8_t *taken = malloc(npages / 8 + 1);

	CHECK(taken);
	pthread_mutex_lock(&g->m);
	memcpy(taken, g->log, npages / 8 + 1);
	memset(g->log, 0, npages / 8 + 1);
	pthread_mutex_unlock(&g->m);
	for (uint64_t i = 0; i < npages; i++)
		n += taken[i / 8] >> i % 8 & 1;
	CHECK_OK(gmem_page_server_dirty(g->p->server, 0, 0, npages, taken));
	free(taken);
	return n;
}

struct plan {
	bool cuts;
	bool small_store; /* it has no room for all */
	bool stop_early; /* not all has come when it stops */
};

static void check_result(struct pair *p, int store)
{
	printf("%llu of %llu pages were there\n", (unsigned long long)gmem_incoming_stored(p->incoming, 0),
	       (unsigned long long)p->len / 4096);
	pair_compare(p);
	/* Where the store holds bytes they are true: what was dropped has been punched. */
	for (uint64_t off = 0; store >= 0 && off < p->len; off += 4096) {
		uint8_t page[4096];
		off_t data = lseek(store, (off_t)off, SEEK_DATA);

		if (data < 0 || data >= (off_t)off + 4096)
			continue;
		CHECK_EQ(pread(store, page, 4096, (off_t)off), 4096);
		CHECK_MEM(page, p->memory + off, 4096);
	}
}

static void run(const struct plan *plan)
{
	struct pair p = { .len = 12 << 20, .proxied = plan->cuts, .ahead = 4 << 20 };
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };
	struct guest g = { .p = &p };
	uint64_t seed = tap_seed(), dirty = 0;
	unsigned int rounds = tap_slow() ? 3 : 12;
	int store = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(store >= 0 && !ftruncate(store, (off_t)(plan->small_store ? p.len / 2 : p.len)));
	/* A write past the end fails then, as one to a full file system does. */
	if (plan->small_store)
		CHECK(!fcntl(store, F_ADD_SEALS, F_SEAL_GROW));
	pair_begin(&p, &seed);
	CHECK_ERR(gmem_incoming_store(p.incoming, 1, store, 0), -ERANGE);
	CHECK_OK(gmem_incoming_store(p.incoming, 0, store, 0));
	CHECK_ERR(gmem_incoming_store(p.incoming, 0, store, 0), -EBUSY);
	CHECK_ERR((int)gmem_page_server_round(p.server), -EBUSY);
	g.seed = tap_rand(&seed);
	g.log = calloc(1, p.len / 4096 / 8 + 1);
	CHECK(g.log);
	pthread_mutex_init(&g.m, NULL);
	CHECK(!pthread_create(&g.thread, NULL, guest_run, &g));
	CHECK_OK(gmem_page_server_precopy(p.server));
	CHECK_ERR(gmem_page_server_precopy(p.server), -EBUSY);
	pair_prepared(&p);
	CHECK_OK(gmem_page_server_wait_round(p.server, 0, -1));
	for (unsigned int i = 0; i < rounds; i++) {
		int64_t round;

		if (plan->cuts)
			atomic_store(&p.proxy.cut_bytes, (int64_t)(tap_rand(&seed) % (2 << 20)));
		dirty += harvest(&g);
		round = CHECK_OK(gmem_page_server_round(p.server));
		CHECK_EQ(round, i + 1);
		if (!plan->stop_early || tap_rand(&seed) % 2)
			CHECK_OK(gmem_page_server_wait_round(p.server, round, -1));
	}
	CHECK_ERR(gmem_page_server_wait_round(p.server, rounds + 1, 0), -EINVAL);
	atomic_store(&g.stop, true);
	pthread_join(g.thread, NULL);
	dirty += harvest(&g);
	pair_stopped(&p);
	CHECK_ERR(gmem_page_server_dirty(p.server, 0, 0, 1, "\1"), -EBUSY);
	pair_go(&p);
	CHECK_OK(gmem_incoming_stats(p.incoming, &stats));
	printf("%llu writes, %llu dirty pages told, %llu pages stored\n", (unsigned long long)g.writes,
	       (unsigned long long)dirty, (unsigned long long)stats.stored_pages);
	CHECK(stats.stored_pages > 0 && stats.urgent_pages == 0 && dirty > 0);
	if (plan->cuts)
		atomic_store(&p.proxy.cut_bytes, -1);
	check_result(&p, plan->small_store ? -1 : store);
	pair_complete(&p);
	pair_end(&p);
	pthread_mutex_destroy(&g.m);
	free(g.log);
	close(store);
}

TEST_TIMEOUT(rounds, 60)
{
	run(&(struct plan){ 0 });
}

TEST_TIMEOUT(rounds_that_are_not_waited_for, 60)
{
	run(&(struct plan){ .stop_early = true });
}

TEST_TIMEOUT(rounds_with_lost_links, 120)
{
	for (unsigned int i = 0; i < (tap_slow() ? 1 : 4); i++)
		run(&(struct plan){ .cuts = true, .stop_early = i % 2 });
}

TEST_TIMEOUT(a_store_that_is_full, 60)
{
	run(&(struct plan){ .small_store = true });
}

TEST(bitmaps_outside)
{
	struct pair p = { .len = 1 << 20 };
	uint64_t seed = tap_seed();
	uint8_t bits[64];

	memset(bits, 0xff, sizeof(bits));
	pair_begin(&p, &seed);
	CHECK_ERR(gmem_page_server_dirty(p.server, 1, 0, 1, bits), -EINVAL);
	CHECK_ERR(gmem_page_server_dirty(p.server, 0, 1, 1, bits), -EINVAL);
	CHECK_ERR(gmem_page_server_dirty(p.server, 0, 0, 257, bits), -EINVAL);
	CHECK_ERR(gmem_page_server_dirty(p.server, 0, 1 << 20, 1, bits), -EINVAL);
	CHECK_ERR(gmem_page_server_dirty(p.server, 0, 4096, UINT64_MAX, bits), -EINVAL);
	CHECK_OK(gmem_page_server_dirty(p.server, 0, 4096, 255, bits));
	CHECK_OK(gmem_page_server_dirty(p.server, 0, 0, 0, bits));
	pair_end(&p);
}
