/* SPDX-License-Identifier: MIT */
/* Working sets of other processes' own memory: brought in by UFFDIO_COPY, and given back meanwhile. */
#include "tap.h"

#include "anon_util.h"
#include "pager_scene.h"
#include "sys/hugepages.h"

#define NOPS (SLOW_BUILD ? 3000u : 20000u)

struct anon_scene {
	struct anon_program a;
	struct src src;
	struct told told;
	struct gmem_source *source;
	struct gmem_file *file;
	struct gmem_pager *pager;
};

static void begin(struct anon_scene *s)
{
	anon_start(&s->a);
	s->src.id = ID;
	s->source = source_of(&s->src);
	s->pager = new_pager(2, 0, &s->told);
	CHECK_OK(gmem_file_create_anon(s->a.npages * P, s->a.unit, -1, &s->file));
	anon_add(&s->a, s->pager, s->file, s->source, -1);
}

static void end(struct anon_scene *s)
{
	anon_finish(&s->a);
	gmem_pager_free(s->pager);
	gmem_source_unref(s->source);
	gmem_file_free(s->file);
}

static struct gmem_workset_stat set_stat(struct gmem_workset *ws)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };

	CHECK_OK(gmem_workset_stat(ws, &st));
	return st;
}

/* One program is recorded; another, which does the same, has it replayed while it runs, and a fill behind that. */
static void record_and_replay(struct anon_program a, struct src src)
{
	struct gmem_replay_opts opts = { .size = sizeof(opts), .flags = GMEM_REPLAY_OBSERVE };
	struct anon_scene s = { .a = a, .src = src };
	struct gmem_workset *ws;
	int64_t n;

	s.a.seed = tap_seed();
	begin(&s);
	CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	atomic_store(&s.a.shared->go, true);
	WAIT_FOR(atomic_load(&s.a.shared->end));
	CHECK_OK(gmem_workset_stop(ws));
	CHECK(set_stat(ws).entries > 0);
	CHECK(set_stat(ws).pages <= s.a.npages);
	end(&s);

	begin(&s);
	atomic_store(&s.a.shared->go, true);
	n = gmem_pager_replay(s.pager, ws, &opts, NULL, NULL);
	CHECK(n >= 0);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	WAIT_FOR(atomic_load(&s.a.shared->end));
	CHECK_OK(gmem_workset_stop(ws));
	/* It is mapped where it is brought in: no touch of it is seen after that, and none is taken for not wanted. */
	CHECK(!set_stat(ws).observed);
	CHECK_EQ(set_stat(ws).unused, 0);
	CHECK_EQ(stats_of(s.pager).replay_pages, (uint64_t)n);
	CHECK_EQ(stats_of(s.pager).errors + stats_of(s.pager).poisoned, 0);
	end(&s);
	gmem_workset_close(ws);
}

TEST_TIMEOUT(anon, 60)
{
	record_and_replay((struct anon_program){ .npages = 512, .nops = NOPS }, (struct src)SRC(.nowait = true));
}

TEST_TIMEOUT(anon_with_known_zeroes, 60)
{
	record_and_replay((struct anon_program){ .npages = 512, .nops = NOPS },
			  (struct src)SRC(.nowait = true, .knows_zero = true));
}

TEST_TIMEOUT(anon_of_two_mappings, 60)
{
	record_and_replay((struct anon_program){ .npages = 512, .nops = NOPS, .split = 200 },
			  (struct src)SRC(.nowait = false));
}
