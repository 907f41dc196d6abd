/* SPDX-License-Identifier: MIT */
/* A whole migration's channel: phases, sections, pages; which pages go first; and thousands of random operations. */
#include "tap.h"

#include "migrate_util.h"
#include "source/source.h"

static void sections(struct pair *p, uint64_t *seed)
{
	static const char text[] = "{\"argv\": []}";
	uint8_t *state = malloc(1 << 20), *got;
	void *ret;
	size_t len;

	CHECK(state);
	for (size_t i = 0; i < 1 << 20; i += 8)
		memcpy(state + i, &(uint64_t){ tap_rand(seed) }, 8);
	CHECK_OK(gmem_page_server_section(p->server, "qemu", text, sizeof(text) - 1));
	CHECK_OK(gmem_page_server_section(p->server, "empty", "", 0));
	CHECK_OK(gmem_page_server_section(p->server, "device-state", state, (1 << 20) - 5));
	CHECK_ERR(gmem_page_server_section(p->server, "qemu", text, 1), -EEXIST);
	CHECK_ERR(gmem_page_server_section(p->server, "", text, 1), -EINVAL);
	CHECK_ERR(gmem_page_server_section(p->server, "a\nb", text, 1), -EINVAL);
	CHECK_OK(gmem_incoming_section(p->incoming, "device-state", -1, &ret, &len));
	got = ret;
	CHECK_EQ(len, (1 << 20) - 5);
	CHECK_MEM(got, state, len);
	CHECK_EQ(got[len], 0);
	free(ret);
	CHECK_OK(gmem_incoming_section(p->incoming, "qemu", -1, &ret, &len));
	CHECK_STR(ret, text);
	free(ret);
	CHECK_OK(gmem_incoming_section(p->incoming, "empty", -1, &ret, &len));
	CHECK_EQ(len, 0);
	free(ret);
	CHECK_ERR(gmem_incoming_section(p->incoming, "none", 0, &ret, &len), -ETIMEDOUT);
	free(state);
}

static void whole(bool source_listens)
{
	struct pair p = { .len = 9 << 20 | 0x5000, .source_listens = source_listens };
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };
	struct gmem_page_server_stats sent = { .size = sizeof(sent) };
	struct gmem_migrate_region region;
	uint64_t seed = tap_seed();
	void *none;
	size_t len;

	pair_begin(&p, &seed);
	CHECK_OK(gmem_incoming_region(p.incoming, 0, &region));
	CHECK_STR(region.name, "ram");
	CHECK_EQ(region.len, p.len);
	CHECK_EQ(region.page_size, 4096);
	CHECK_ERR(gmem_incoming_region(p.incoming, 1, &region), -ERANGE);
	sections(&p, &seed);
	CHECK_ERR(gmem_page_server_stopped(p.server), -EBUSY);
	CHECK_ERR(gmem_incoming_ready(p.incoming), -EBUSY);
	pair_prepared(&p);
	CHECK_ERR(gmem_page_server_go(p.server), -EBUSY);
	CHECK(gmem_page_server_may_run(p.server));
	pair_stopped(&p);
	CHECK_ERR(gmem_page_server_section(p.server, "late", "x", 1), -EBUSY);
	CHECK_ERR(gmem_incoming_section(p.incoming, "none", -1, &none, &len), -ENOENT);
	CHECK_ERR(gmem_incoming_complete(p.incoming, 0), -EBUSY);
	pair_go(&p);
	CHECK_ERR(gmem_page_server_abort(p.server, "no"), -EBUSY);
	CHECK_ERR(gmem_incoming_abort(p.incoming, "no"), -EBUSY);
	pair_compare(&p);
	pair_compare(&p);
	CHECK_OK(gmem_incoming_stats(p.incoming, &stats));
	CHECK_OK(gmem_page_server_stats(p.server, &sent));
	CHECK(stats.bulk_pages >= p.len / 4096);
	CHECK(sent.zero_pages > 0 && sent.bytes > 0 && stats.links == 1);
	pair_complete(&p);
	CHECK_OK(gmem_page_server_wait(p.server, GMEM_MIGRATE_CLOSED, -1));
	CHECK(!gmem_page_server_may_run(p.server));
	CHECK_ERR(gmem_page_server_wait(p.server, GMEM_MIGRATE_ABORTED, 10000), -ENOLINK);
	CHECK_EQ(p.ups, 2);
	CHECK_EQ(p.losses, 0);
	pair_end(&p);
}

TEST(whole_migration_source_connects)
{
	whole(false);
}

TEST(whole_migration_source_listens)
{
	whole(true);
}

/* A fault, while the bulk connection carries nothing at all towards the destination. */
TEST(a_fault_does_not_wait_for_bulk)
{
	struct pair p = { .len = 16 << 20, .proxied = true, .source_listens = true };
	uint64_t seed = tap_seed(), before;
	uint8_t page[4096];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	pair_go(&p);
	atomic_store(&p.proxy.hold_bulk, true);
	/* Bulk requests are on their way, and their answers stay in the proxy. */
	CHECK_OK(gmem_source_prefetch(p.source, 0, 1 << 20, false));
	before = atomic_load(&p.proxy.down_bytes[1]);
	for (unsigned int i = 0; i < 200; i++) {
		uint64_t off = tap_rand(&seed) % (p.len / 4096) * 4096;

		CHECK_OK(pair_read(&p, off, page, 4096));
		CHECK_MEM(page, p.memory + off, 4096);
	}
	/* Some bytes may have been on their way through the proxy when it was held. */
	CHECK(atomic_load(&p.proxy.down_bytes[1]) - before <= 1 << 20);
	atomic_store(&p.proxy.hold_bulk, false);
	pair_compare(&p);
	pair_complete(&p);
	pair_end(&p);
}

/* Reading what was fetched ahead asks for nothing. */
TEST(what_is_at_hand_is_not_asked_for)
{
	struct pair p = { .len = 8 << 20 };
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };
	uint64_t seed = tap_seed(), start, len;
	uint8_t *buf = malloc(1 << 20);

	CHECK(buf);
	pair_begin(&p, &seed);
	pair_prepared(&p);
	CHECK_OK(gmem_incoming_source(p.incoming, 0, &p.source));
	CHECK_ERR(gmem_source_read(p.source, 0, buf, 4096), -ETIMEDOUT);
	CHECK_ERR(gmem_source_prefetch(p.source, 0, 4096, true), -ETIMEDOUT);
	CHECK_ERR(gmem_source_read_nowait(p.source, 0, buf, 4096), -EAGAIN);
	CHECK_EQ(gmem_source_is_zero(p.source, 0, 4096, false), false);
	CHECK_OK(gmem_page_server_stopped(p.server));
	CHECK_OK(gmem_incoming_wait(p.incoming, GMEM_MIGRATE_STOPPED, -1));
	while (gmem_source_prefetch(p.source, 0, 1 << 20, true) < 0)
		;
	for (uint64_t off = 0; off < 1 << 20; off += 4096) {
		bool zero = !memcmp(p.memory + off, (uint8_t[4096]){ 0 }, 4096);

		CHECK_EQ(gmem_source_is_zero(p.source, off, 4096, true), zero);
	}
	start = 0x40000 + 5 * 4096;
	len = 4096;
	gmem_source_extent(p.source, &start, &len);
	CHECK_EQ(start, 0x40000);
	CHECK_EQ(len, 0x40000);
	CHECK_OK(gmem_source_read_nowait(p.source, 0, buf, 1 << 20));
	CHECK_MEM(buf, p.memory, 1 << 20);
	CHECK_OK(gmem_source_read(p.source, 0, buf, 1 << 20));
	CHECK_OK(gmem_incoming_stats(p.incoming, &stats));
	CHECK_EQ(stats.urgent_pages, 0);
	CHECK_ERR(gmem_source_read(p.source, p.len, buf, 4096), -EINVAL);
	pair_go(&p);
	pair_end(&p);
	free(buf);
}

/* The source outlives what it came from. */
TEST(a_source_that_is_kept)
{
	struct pair p = { .len = 1 << 20 };
	uint64_t seed = tap_seed();
	uint8_t page[4096];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	gmem_incoming_free(p.incoming);
	CHECK_ERR(gmem_source_read(p.source, 0, page, 4096), -ESHUTDOWN);
	CHECK_ERR(gmem_source_prefetch(p.source, 0, 4096, true), -ESHUTDOWN);
	p.incoming = NULL;
	pair_end(&p);
}

/* ---- abort */

TEST(the_source_aborts)
{
	struct pair p = { .len = 1 << 20 };
	uint64_t seed = tap_seed();

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	CHECK_OK(gmem_page_server_abort(p.server, "changed my\nmind"));
	CHECK(gmem_page_server_may_run(p.server));
	CHECK_ERR(gmem_incoming_wait(p.incoming, GMEM_MIGRATE_GO, -1), -ECANCELED);
	CHECK_HAS(gmem_last_error(), "changed my mind");
	CHECK_ERR(gmem_page_server_go(p.server), -ECANCELED);
	CHECK_ERR(gmem_incoming_ready(p.incoming), -ECANCELED);
	CHECK_OK(gmem_incoming_abort(p.incoming, "me too"));
	pair_end(&p);
}

TEST(the_destination_aborts_after_go)
{
	struct pair p = { .len = 1 << 20 };
	uint64_t seed = tap_seed();

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	CHECK_OK(gmem_incoming_ready(p.incoming));
	CHECK_OK(gmem_page_server_wait(p.server, GMEM_MIGRATE_READY, -1));
	CHECK_OK(gmem_page_server_go(p.server));
	CHECK(!gmem_page_server_may_run(p.server));
	CHECK_OK(gmem_incoming_wait(p.incoming, GMEM_MIGRATE_GO, -1));
	CHECK_OK(gmem_incoming_abort(p.incoming, "it does not run here"));
	CHECK_ERR(gmem_incoming_resumed(p.incoming), -ECANCELED);
	CHECK_ERR(gmem_page_server_wait(p.server, GMEM_MIGRATE_RESUMED, -1), -ECANCELED);
	CHECK_HAS(gmem_last_error(), "it does not run here");
	CHECK(gmem_page_server_may_run(p.server));
	pair_end(&p);
}

/* A page the source's machine cannot read is lost, and only that one. */
TEST(a_page_that_cannot_be_read)
{
	struct pair p = { .len = 1 << 20 };
	uint64_t seed = tap_seed();
	uint8_t page[4096];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	/* The file has become shorter: its last page cannot be read. */
	CHECK(!ftruncate(p.memfd, (1 << 20) - 4096));
	CHECK_OK(gmem_source_prefetch(p.source, (1 << 20) - 0x40000, 0x40000, true));
	CHECK_OK(pair_read(&p, (1 << 20) - 8192, page, 4096));
	CHECK_MEM(page, p.memory + (1 << 20) - 8192, 4096);
	pair_end(&p);
}

/* ---- random operations */

struct reader {
	struct pair *p;
	uint64_t seed;
	unsigned int rounds;
	pthread_t thread;
};

static void one_operation(struct reader *r, uint8_t *buf)
{
	uint64_t pages = r->p->len / 4096, x = tap_rand(&r->seed), off = x % pages, n;

	n = (x >> 32) % 8 == 0 ? 1 + (x >> 40) % 512 : 1 + (x >> 40) % 4;
	n = n > pages - off ? pages - off : n;
	off *= 4096;
	n *= 4096;
	switch (tap_rand(&r->seed) % 8) {
	case 0:
		gmem_source_prefetch(r->p->source, off, n, false);
		break;
	case 1:
		gmem_source_prefetch(r->p->source, off, n, true);
		break;
	case 2:
		if (gmem_source_is_zero(r->p->source, off, n, false))
			for (uint64_t i = 0; i < n; i++)
				CHECK_EQ(r->p->memory[off + i], 0);
		break;
	case 3:
		gmem_source_extent(r->p->source, &off, &n);
		CHECK(off + n <= r->p->len && n <= 1 << 22);
		/* fall through */
	case 4:
		if (!gmem_source_read_nowait(r->p->source, off, buf, n))
			CHECK_MEM(buf, r->p->memory + off, n);
		break;
	default:
		CHECK_OK(pair_read(r->p, off, buf, n));
		CHECK_MEM(buf, r->p->memory + off, n);
	}
}

static void *reader_run(void *opaque)
{
	struct reader *r = opaque;
	uint8_t *buf = malloc(1 << 22);

	CHECK(buf);
	for (unsigned int i = 0; i < r->rounds; i++)
		one_operation(r, buf);
	free(buf);
	return NULL;
}

TEST_TIMEOUT(random_operations, 120)
{
	struct pair p = { .len = 24 << 20, .proxied = true, .ahead = 4 << 20 };
	uint64_t seed = tap_seed();
	struct reader readers[4];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	pair_go(&p);
	for (unsigned int i = 0; i < 4; i++) {
		readers[i] = (struct reader){ .p = &p, .seed = tap_rand(&seed), .rounds = tap_slow() ? 150 : 1500 };
		CHECK(!pthread_create(&readers[i].thread, NULL, reader_run, &readers[i]));
	}
	for (unsigned int i = 0; i < 4; i++)
		pthread_join(readers[i].thread, NULL);
	pair_compare(&p);
	pair_complete(&p);
	CHECK_EQ(p.losses, 0);
	pair_end(&p);
}
