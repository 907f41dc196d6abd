/* SPDX-License-Identifier: MIT */
/*
 * Links that are lost: at every message, at any byte, in silence, for good. Each page and phase comes once all the
 * same.
 */
#include "tap.h"

#include "migrate_util.h"
#include "source/source.h"

/* ---- at every TLS record, which a message begins with */

static void check_section(struct pair *p, const char *name, const void *want, size_t want_len)
{
	void *got;
	size_t len;

	CHECK_OK(gmem_incoming_section(p->incoming, name, -1, &got, &len));
	CHECK_EQ(len, want_len);
	CHECK_MEM(got, want, len);
	free(got);
}

/* A whole migration of little memory, cut once. False if it was over before it could be cut. */
static bool run_with_cut(struct pair *p, uint64_t *seed)
{
	uint8_t state[160000], page[4096];
	bool cut;

	for (size_t i = 0; i < sizeof(state); i += 8)
		memcpy(state + i, &(uint64_t){ tap_rand(seed) }, 8);
	pair_begin(p, seed);
	CHECK_OK(gmem_page_server_section(p->server, "qemu", "{}", 2));
	check_section(p, "qemu", "{}", 2);
	pair_prepared(p);
	CHECK_OK(gmem_page_server_section(p->server, "device-state", state, sizeof(state)));
	pair_stopped(p);
	check_section(p, "device-state", state, sizeof(state));
	pair_go(p);
	for (unsigned int i = 0; i < 8; i++) {
		uint64_t off = tap_rand(seed) % (p->len / 4096) * 4096;

		CHECK_OK(pair_read(p, off, page, 4096));
		CHECK_MEM(page, p->memory + off, 4096);
	}
	pair_compare(p);
	pair_complete(p);
	cut = atomic_load(&p->proxy.cuts);
	pair_end(p);
	return cut;
}

TEST_TIMEOUT(cut_at_every_record, 240)
{
	uint64_t seed = tap_seed();
	int64_t step = tap_slow() ? 7 : 1;
	unsigned int runs = 0;

	for (int64_t k = 1 + (tap_slow() ? (int64_t)(tap_rand(&seed) % 7) : 0);; k += step) {
		struct pair p = { .len = 256 << 10, .proxied = true, .cut_records = k };

		p.source_listens = k % 2;
		runs++;
		if (!run_with_cut(&p, &seed))
			break;
	}
	printf("%u runs\n", runs);
	CHECK(runs > (tap_slow() ? 5 : 50));
}

TEST_TIMEOUT(cut_at_random_bytes, 120)
{
	uint64_t seed = tap_seed();

	for (unsigned int i = 0; i < (tap_slow() ? 6 : 40); i++) {
		struct pair p = { .len = 512 << 10, .proxied = true };

		p.cut_bytes = 1 + (int64_t)(tap_rand(&seed) % (500 << 10));
		p.source_listens = tap_rand(&seed) % 2;
		run_with_cut(&p, &seed);
	}
}

/* ---- again and again, with readers at work */

struct reader {
	struct pair *p;
	uint64_t seed;
	_Atomic bool *stop;
	pthread_t thread;
	uint64_t reads;
};

static void *read_on(void *opaque)
{
	struct reader *r = opaque;
	uint8_t *buf = malloc(1 << 20);

	CHECK(buf);
	while (!atomic_load(r->stop)) {
		uint64_t pages = r->p->len / 4096, off = tap_rand(&r->seed) % pages, n = 1 + tap_rand(&r->seed) % 64;

		n = n > pages - off ? pages - off : n;
		if (tap_rand(&r->seed) % 4 == 0)
			gmem_source_prefetch(r->p->source, off * 4096, n * 4096, tap_rand(&r->seed) % 2);
		CHECK_OK(pair_read(r->p, off * 4096, buf, n * 4096));
		CHECK_MEM(buf, r->p->memory + off * 4096, n * 4096);
		r->reads++;
	}
	free(buf);
	return NULL;
}

TEST_TIMEOUT(cut_again_and_again, 120)
{
	struct pair p = { .len = 16 << 20, .proxied = true, .ahead = 4 << 20 };
	unsigned int cuts = tap_slow() ? 10 : 60;
	uint64_t seed = tap_seed(), reads = 0;
	_Atomic bool stop = false;
	struct reader readers[3];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	pair_go(&p);
	for (unsigned int i = 0; i < 3; i++) {
		readers[i] = (struct reader){ .p = &p, .seed = tap_rand(&seed), .stop = &stop };
		CHECK(!pthread_create(&readers[i].thread, NULL, read_on, &readers[i]));
	}
	for (unsigned int i = 0; i < cuts; i++) {
		uint32_t ups = atomic_load(&p.ups);

		atomic_store(&p.proxy.reset, tap_rand(&seed) % 2);
		atomic_store(&p.proxy.cut_bytes, (int64_t)(tap_rand(&seed) % (8 << 20)));
		/* Until it has happened, and both sides have a link again: readers make the bytes. */
		while (atomic_load(&p.proxy.cut_bytes) >= 0 || atomic_load(&p.ups) < ups + 2)
			usleep(1000);
	}
	atomic_store(&stop, true);
	for (unsigned int i = 0; i < 3; i++) {
		pthread_join(readers[i].thread, NULL);
		reads += readers[i].reads;
	}
	printf("%llu reads, %u links\n", (unsigned long long)reads, atomic_load(&p.ups) / 2);
	CHECK(atomic_load(&p.proxy.cuts) >= cuts);
	pair_compare(&p);
	pair_complete(&p);
	CHECK_EQ(p.refusals, 0);
	pair_end(&p);
}

/* ---- in silence */

TEST_TIMEOUT(a_link_that_falls_silent, 60)
{
	struct pair p = { .len = 2 << 20, .proxied = true, .silence_ms = 400 };
	struct gmem_page_server_stats sent = { .size = sizeof(sent) };
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };
	uint64_t seed = tap_seed();
	uint8_t page[4096];

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	pair_go(&p);
	atomic_store(&p.proxy.hold, true);
	/* Both sides notice by themselves; nobody has told them. */
	do {
		usleep(1000);
		CHECK_OK(gmem_incoming_stats(p.incoming, &stats));
		CHECK_OK(gmem_page_server_stats(p.server, &sent));
	} while (stats.linked || sent.linked);
	CHECK_ERR(gmem_source_read(p.source, 0, page, 4096), -ETIMEDOUT);
	CHECK_EQ(gmem_page_server_phase(p.server), GMEM_MIGRATE_RESUMED);
	CHECK(!gmem_page_server_may_run(p.server));
	atomic_store(&p.proxy.hold, false);
	pair_compare(&p);
	pair_complete(&p);
	pair_end(&p);
}

/* Nothing to say for longer than the silence is no reason to give a link up. */
TEST_TIMEOUT(a_link_with_nothing_to_say, 60)
{
	struct pair p = { .len = 1 << 20, .proxied = true, .silence_ms = 5000 };
	uint64_t seed = tap_seed(), records;

	pair_begin(&p, &seed);
	records = atomic_load(&p.proxy.records);
	/* Each side pings on both connections, four times in that time. */
	while (atomic_load(&p.proxy.records) < records + 24)
		usleep(1000);
	CHECK_EQ(p.losses, 0);
	pair_end(&p);
}

/* ---- for good */

TEST_TIMEOUT(lost_for_good, 60)
{
	struct pair p = { .len = 1 << 20, .proxied = true, .lost_ms = 300 };
	uint64_t seed = tap_seed();

	pair_begin(&p, &seed);
	pair_prepared(&p);
	pair_stopped(&p);
	atomic_store(&p.proxy.refuse, true);
	atomic_store(&p.proxy.cut_bytes, 0);
	CHECK_OK(gmem_page_server_section(p.server, "x", "x", 1) == -EBUSY ? 0 : -1);
	gmem_source_prefetch(p.source, 0, 4096, false); /* something to cut at */
	CHECK_ERR(gmem_page_server_wait(p.server, GMEM_MIGRATE_READY, -1), -ENOLINK);
	CHECK_ERR(gmem_incoming_wait(p.incoming, GMEM_MIGRATE_GO, -1), -ENOLINK);
	/* GO was not said: it is the source's. */
	CHECK(gmem_page_server_may_run(p.server));
	CHECK_ERR(gmem_incoming_ready(p.incoming), -ENOLINK);
	CHECK_ERR(gmem_page_server_go(p.server), -EBUSY);
	CHECK_OK(gmem_page_server_abort(p.server, "no link"));
	CHECK(gmem_page_server_may_run(p.server));
	pair_end(&p);
}

TEST(nobody_there)
{
	struct gmem_channel_opts opts = { .size = sizeof(opts), .first_ms = 200 };
	struct gmem_incoming *in;
	char address[64];
	struct both both;
	uint16_t port;

	both_begin(&both);
	close(listen_any(&port));
	snprintf(address, sizeof(address), "127.0.0.1:%u", port);
	opts.tls = both.beta_ctx;
	opts.address = address;
	CHECK_OK(gmem_incoming_new(&opts, NULL, &in));
	CHECK_ERR(gmem_incoming_wait(in, GMEM_MIGRATE_OPEN, -1), -ENOLINK);
	CHECK_HAS(gmem_last_error(), "Connection refused");
	gmem_incoming_free(in);
	/* Freed while it tries. */
	opts.first_ms = 0;
	CHECK_OK(gmem_incoming_new(&opts, NULL, &in));
	CHECK_ERR(gmem_incoming_wait(in, GMEM_MIGRATE_OPEN, 10), -ETIMEDOUT);
	gmem_incoming_free(in);
	opts.address = "nowhere";
	CHECK_ERR(gmem_incoming_new(&opts, NULL, &in), -EINVAL);
	opts.address = NULL;
	opts.listen_fd = 0; /* /dev/null */
	CHECK_ERR(gmem_incoming_new(&opts, NULL, &in), -EINVAL);
	both_end(&both);
}

/* The wrong certificate: who connects is told at once, who listens goes on waiting for the right one. */
TEST(the_wrong_one_connects)
{
	struct gmem_channel_opts opts = { .size = sizeof(opts) };
	struct gmem_migrate_region region = { .name = "ram", .len = 4096, .page_size = 4096 };
	struct gmem_page_server *server;
	struct gmem_tls_ctx *wrong;
	struct gmem_incoming *in;
	struct identity gamma;
	struct both both;
	char address[64];
	uint16_t port;

	both_begin(&both);
	identity_make(&both.pki, &both.ca, "gamma", "DNS:gamma.test", -3600, 3600, &gamma);
	wrong = identity_ctx(&both.ca, &gamma, "alpha.test", NULL);
	region.fd = memfd_create("source", MFD_CLOEXEC);
	CHECK(region.fd >= 0 && !ftruncate(region.fd, 4096));
	opts.tls = both.alpha_ctx;
	opts.listen_fd = listen_any(&port);
	CHECK_OK(gmem_page_server_new(&opts, &region, 1, &server));
	snprintf(address, sizeof(address), "localhost:%u", port);
	opts.tls = wrong;
	opts.address = address;
	CHECK_OK(gmem_incoming_new(&opts, NULL, &in));
	CHECK_ERR(gmem_incoming_wait(in, GMEM_MIGRATE_OPEN, -1), -EACCES);
	CHECK_HAS(gmem_last_error(), "refuses this side's certificate");
	gmem_incoming_free(in);
	CHECK_EQ(gmem_page_server_phase(server), GMEM_MIGRATE_NEW);
	opts.tls = both.beta_ctx;
	CHECK_OK(gmem_incoming_new(&opts, NULL, &in));
	CHECK_OK(gmem_incoming_wait(in, GMEM_MIGRATE_OPEN, -1));
	gmem_incoming_free(in);
	gmem_page_server_free(server);
	close(opts.listen_fd);
	close(region.fd);
	gmem_tls_ctx_free(wrong);
	both_end(&both);
}
