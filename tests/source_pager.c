/* SPDX-License-Identifier: MIT */
/* Pagers over real sources: an NBD server that is slow, fails and is killed; layers of diffs; a file that changes. */
#include "tap.h"

#include <sys/stat.h>

#include "nbd_util.h"
#include "pager_scene.h"

#define NPAGES (SLOW_BUILD ? 1500ull : 6000ull)

struct guest {
	struct told told;
	struct gmem_pager *pager;
	struct gmem_file *file;
	struct gmem_view *view;
	const char *p;
	const uint8_t *want;
};

static void guest_new(struct guest *g, struct gmem_source *source, const uint8_t *want, unsigned int resolvers)
{
	memset(g, 0, sizeof(*g));
	g->pager = new_pager(resolvers, 0, &g->told);
	g->file = new_file(NPAGES * P);
	g->p = map_view(g->file, 0, NPAGES * P, &g->view);
	g->want = want;
	CHECK_OK(gmem_pager_add_view(g->pager, g->view, source, 0));
	gmem_source_unref(source);
}

static void guest_free(struct guest *g)
{
	gmem_pager_free(g->pager);
	gmem_view_unmap(g->view);
	gmem_file_free(g->file);
}

struct vcpu {
	pthread_t thread;
	const struct guest *g;
	uint64_t seed, touches;
};

static void *run(void *arg)
{
	struct vcpu *v = arg;

	for (uint64_t i = 0; i < v->touches; i++) {
		uint64_t page = tap_rand(&v->seed) % NPAGES;

		CHECK_MEM(v->g->p + page * P, v->g->want + page * P, P);
	}
	return NULL;
}

static void start(struct vcpu *v, int n, const struct guest *g, uint64_t *seed)
{
	for (int i = 0; i < n; i++) {
		v[i] = (struct vcpu){ .g = g, .seed = tap_rand(seed), .touches = NPAGES / 4 };
		CHECK(pthread_create(&v[i].thread, NULL, run, &v[i]) == 0);
	}
}

static void finish(struct vcpu *v, int n, struct guest *g)
{
	for (int i = 0; i < n; i++)
		CHECK(pthread_join(v[i].thread, NULL) == 0);
	CHECK_OK(gmem_pager_fill(g->pager, NULL, NULL));
	CHECK_MEM(g->p, g->want, NPAGES * P);
	CHECK_EQ(g->told.n[GMEM_PAGER_POISONED], 0);
	CHECK_EQ(stats_of(g->pager).poisoned, 0);
}

static void serve(struct nbd_server *server, const char *path)
{
	nbdkit(server, "--filter=error", "--filter=delay", "file", path, "error-rate=10%", "rdelay=1ms",
	       "delay-extents=1ms", NULL);
}

TEST_TIMEOUT(every_page_comes_from_a_bad_server, 120)
{
	uint64_t seed = tap_seed();
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t *bytes, *data;
	struct guest g;
	struct vcpu v[3];
	char path[96];

	need_nbd("nbdkit");
	need_markers();
	nbd_folder(&server);
	nbd_memory(&server, path, NPAGES, tap_rand(&seed), &bytes, &data);
	serve(&server, path);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	guest_new(&g, s, bytes, 3);
	start(v, 3, &g, &seed);
	for (int i = 0; i < 3; i++) {
		nbd_pause_ms((long)(tap_rand(&seed) % 100));
		nbd_kill(&server);
		nbd_pause_ms((long)(tap_rand(&seed) % 100));
		serve(&server, path);
	}
	finish(v, 3, &g);
	printf("%llu attempts failed\n", (unsigned long long)stats_of(g.pager).errors);
	guest_free(&g);
	nbd_end(&server);
	free(bytes);
	free(data);
}

/* A server that is away before the first touch: the toucher waits, the error is told, and then the page comes. */
TEST_TIMEOUT(a_toucher_waits_for_the_server, 60)
{
	uint64_t seed = tap_seed();
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t *bytes, *data;
	struct guest g;
	struct vcpu v[2];
	char path[96];

	need_nbd("nbdkit");
	need_markers();
	nbd_folder(&server);
	nbd_memory(&server, path, NPAGES, tap_rand(&seed), &bytes, &data);
	nbdkit(&server, "file", path, NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	guest_new(&g, s, bytes, 2);
	nbd_kill(&server);
	start(v, 2, &g, &seed);
	while (!g.told.n[GMEM_PAGER_ERROR])
		nbd_pause_ms(1);
	CHECK_HAS(g.told.text, "NBD: ");
	nbdkit(&server, "file", path, NULL);
	finish(v, 2, &g);
	guest_free(&g);
	nbd_end(&server);
	free(bytes);
	free(data);
}

/* A base of one pattern and two diffs; pages of none are zero. */
static void layers_new(int fds[3], uint8_t *bytes, uint64_t *seed)
{
	const struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
	struct stat st;

	for (unsigned int layer = 0; layer < 3; layer++) {
		fds[layer] = memfd_create("layer", MFD_CLOEXEC);
		CHECK(fds[layer] >= 0 && ftruncate(fds[layer], (off_t)(NPAGES * P)) == 0);
		CHECK(fstat(fds[layer], &st) == 0);
		if (st.st_blksize > (blksize_t)P)
			SKIP("holes", "memory files come %ld bytes at a time here", (long)st.st_blksize);
		for (uint64_t i = 1; i < NPAGES; i++) {
			if (tap_rand(seed) % (2 + 2 * layer))
				continue;
			fill_page(layer, i * P, bytes + i * P);
			CHECK(pwrite(fds[layer], bytes + i * P, P, (off_t)(i * P)) == (ssize_t)P);
		}
		CHECK(futimens(fds[layer], old) == 0);
	}
}

TEST_TIMEOUT(every_page_comes_from_its_layer, 60)
{
	uint8_t *bytes = calloc(NPAGES, P);
	uint64_t seed = tap_seed();
	struct gmem_source *s;
	struct guest g;
	struct vcpu v[3];
	int fds[3];

	need_markers();
	layers_new(fds, bytes, &seed);
	CHECK_OK(gmem_source_new_layers(fds, 3, &s));
	guest_new(&g, s, bytes, 2);
	start(v, 3, &g, &seed);
	finish(v, 3, &g);
	CHECK(stats_of(g.pager).zero_pages > 0);
	guest_free(&g);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	free(bytes);
}

/* Bytes that are not those of the snapshot any more must not reach a guest. */
TEST(a_layer_that_is_changed_poisons)
{
	uint8_t *bytes = calloc(NPAGES, P);
	uint64_t seed = tap_seed(), lost = 0;
	struct gmem_source *s;
	struct guest g;
	int fds[3];

	need_markers();
	catch_bus();
	layers_new(fds, bytes, &seed);
	CHECK_OK(gmem_source_new_layers(fds, 3, &s));
	guest_new(&g, s, bytes, 2);
	CHECK(pwrite(fds[1], bytes, P, 0) == (ssize_t)P);
	for (uint64_t i = 0; i < 300; i++) {
		if (touch(g.p + i * P) == SIGBUS)
			lost++;
		else
			CHECK_MEM(g.p + i * P, bytes + i * P, P);
	}
	CHECK(lost > 0 && lost < 300);
	CHECK_EQ(g.told.n[GMEM_PAGER_POISONED], lost);
	CHECK_HAS(g.told.text, "source layer 1: it has been changed");
	guest_free(&g);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	free(bytes);
}

/* A server that stays away: after so long the touchers get what the pager's policy says, which is no page of zeros. */
TEST_TIMEOUT(a_server_that_stays_away_runs_out_of_patience, 60)
{
	struct guest g = { 0 };
	struct gmem_pager_opts opts = { .size = sizeof(opts),
					.event = on_event,
					.opaque = &g.told,
					.patience_ms = 100,
					.policy = GMEM_PAGER_POISON };
	uint64_t seed = tap_seed(), page = 0;
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t *bytes, *data;
	char path[96], got[4096];

	need_nbd("nbdkit");
	need_markers();
	catch_bus();
	nbd_folder(&server);
	nbd_memory(&server, path, NPAGES, tap_rand(&seed), &bytes, &data);
	nbdkit(&server, "file", path, NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	CHECK_OK(gmem_pager_create(&opts, &g.pager));
	g.file = new_file(NPAGES * P);
	g.p = map_view(g.file, 0, NPAGES * P, &g.view);
	CHECK_OK(gmem_pager_add_view(g.pager, g.view, s, 0));
	while (!data[page])
		page++;
	nbd_kill(&server);
	CHECK_EQ(touch(g.p + page * P), SIGBUS);
	CHECK(g.told.n[GMEM_PAGER_GAVE_UP] > 0);
	/* Lost is what was waited for, and nothing else, once the server has been found again. */
	nbdkit(&server, "file", path, NULL);
	while (gmem_source_read(s, 0, got, P) < 0)
		nbd_pause_ms(1);
	gmem_source_unref(s);
	while (++page < NPAGES)
		CHECK_MEM(g.p + page * P, bytes + page * P, P);
	guest_free(&g);
	nbd_end(&server);
	free(bytes);
	free(data);
}
