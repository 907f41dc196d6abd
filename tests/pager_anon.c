/* SPDX-License-Identifier: MIT */
/* Memory of other processes that map it privately: UFFDIO_COPY, removals, huge pages, and what is refused. */
#include "tap.h"

#include "anon_util.h"
#include "pager_scene.h"
#include "sys/hugepages.h"
#include "sys/process.h"

static struct gmem_file *anon_file(const struct anon_program *a, int state_fd)
{
	struct gmem_file *file;

	CHECK_OK(gmem_file_create_anon(a->npages * P, a->unit, state_fd, &file));
	return file;
}

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
	s->file = anon_file(&s->a, -1);
	anon_add(&s->a, s->pager, s->file, s->source, -1);
	atomic_store(&s->a.shared->go, true);
}

static void end(struct anon_scene *s)
{
	anon_finish(&s->a);
	gmem_pager_free(s->pager);
	gmem_source_unref(s->source);
	gmem_file_free(s->file);
}

static void serve(struct anon_program a, struct src src, bool fill)
{
	struct anon_scene s = { .a = a, .src = src };
	struct gmem_pager_stats st;

	s.a.seed = tap_seed();
	begin(&s);
	if (fill) {
		CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
		CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	}
	WAIT_FOR(atomic_load(&s.a.shared->end));
	st = stats_of(s.pager);
	CHECK_EQ(st.poisoned + st.errors, 0);
	CHECK(st.demand_pages + st.fill_pages > 0);
	if (!fill)
		CHECK_EQ(st.removes, atomic_load(&s.a.shared->removals));
	end(&s);
}

#define NOPS (SLOW_BUILD ? 3000u : 20000u)

TEST_TIMEOUT(on_demand, 60)
{
	serve((struct anon_program){ .npages = 512, .nops = NOPS }, (struct src)SRC(.nowait = true), false);
}

TEST_TIMEOUT(by_resolvers, 60)
{
	serve((struct anon_program){ .npages = 512, .nops = NOPS }, (struct src)SRC(.nowait = false), false);
}

TEST_TIMEOUT(two_mappings, 60)
{
	serve((struct anon_program){ .npages = 512, .split = 100, .nops = NOPS }, (struct src)SRC(.nowait = true),
	      false);
}

TEST_TIMEOUT(beside_a_fill, 60)
{
	for (int i = 0; i < 5; i++)
		serve((struct anon_program){ .npages = 4096, .split = 1000, .nops = NOPS / 5 },
		      (struct src)SRC(.nowait = i % 2), true);
}

TEST_TIMEOUT(huge_pages, 60)
{
	serve((struct anon_program){ .npages = 8 * 512, .unit = GMEM_HUGE_SIZE, .nops = 300 },
	      (struct src)SRC(.nowait = true), false);
}

TEST_TIMEOUT(huge_pages_beside_a_fill, 60)
{
	serve((struct anon_program){ .npages = 8 * 512, .unit = GMEM_HUGE_SIZE, .split = 3 * 512, .nops = 300 },
	      (struct src)SRC(.nowait = false), true);
}

/* ---- what is lost */

/* A program of another kind: touches one page, and says what came of it by its end. */
static struct anon_program touch_one(uint64_t npages, uint64_t unit, uint64_t page)
{
	struct anon_program a = { .npages = npages, .unit = unit };
	struct gmem_wire w = { .type = GMEM_WIRE_REGION };
	int fds[GMEM_WIRE_MAX_FDS], sv[2];

	need_uffd();
	need_markers();
	a.shared = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(a.shared != MAP_FAILED);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	a.pid = fork();
	if (!a.pid) {
		int uffd = anon_set_up(&a);

		CHECK_OK(gmem_wire_send(sv[1], &w, &uffd, 1));
		while (!atomic_load(&a.shared->go))
			usleep(300);
		catch_bus();
		_exit(touch(anon_at(&a, page)) ? 2 : page_is(ID, page * P, anon_at(&a, page)) ? 0 : 1);
	}
	close(sv[1]);
	if (gmem_wire_recv(sv[0], &w, fds, NULL)) {
		int status;

		CHECK_EQ(waitpid(a.pid, &status, 0), a.pid);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	a.uffd = fds[0];
	close(sv[0]);
	return a;
}

/* How the program ends: 2 is SIGBUS, -9 killed. */
static int ends(struct anon_program *a)
{
	int status;

	CHECK_EQ(waitpid(a->pid, &status, 0), a->pid);
	close(a->uffd);
	munmap(a->shared, P);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int policy(enum gmem_pager_policy policy, int err, int left, uint64_t unit, struct told *told)
{
	struct gmem_pager_opts o = { .size = sizeof(o), .resolvers = 1, .policy = policy };
	uint64_t npages = unit / P * 4, page = unit > P ? 2 * unit / P + 5 : 2;
	struct src src = SRC(.id = ID, .bad_page = page, .bad_err = err, .bad_left = left);
	struct anon_program a = touch_one(npages, unit, page);
	struct gmem_source *source = source_of(&src);
	int pidfd = gmem_pidfd_open(a.pid), result;
	struct gmem_pager_stats st;
	struct gmem_pager *pager;
	struct gmem_file *file;

	CHECK(pidfd >= 0);
	o.patience_ms = left < INT32_MAX ? 20000 : 50;
	o.event = on_event;
	o.opaque = told;
	CHECK_OK(gmem_pager_create(&o, &pager));
	file = anon_file(&a, -1);
	anon_add(&a, pager, file, source, pidfd);
	atomic_store(&a.shared->go, true);
	result = ends(&a);
	st = stats_of(pager);
	CHECK_EQ(st.gave_up, atomic_load(&told->n[GMEM_PAGER_GAVE_UP]));
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_file_free(file);
	close(pidfd);
	return result;
}

/* A source that says "not now" is waited for, then the page is poisoned, or its process killed. Never zero. */
static void be_patient(uint64_t unit)
{
	struct told told[4] = { { .error = 0 } };

	CHECK_EQ(policy(GMEM_PAGER_POISON, -ETIMEDOUT, INT32_MAX, unit, &told[0]), 2);
	CHECK_EQ(atomic_load(&told[0].n[GMEM_PAGER_GAVE_UP]), 1);
	CHECK_EQ(atomic_load(&told[0].n[GMEM_PAGER_POISONED]), 1);
	CHECK_EQ(policy(GMEM_PAGER_KILL, -ETIMEDOUT, INT32_MAX, unit, &told[1]), -SIGKILL);
	CHECK_EQ(atomic_load(&told[1].n[GMEM_PAGER_GAVE_UP]), 1);
	/* It comes in time, or late and is waited for. */
	CHECK_EQ(policy(GMEM_PAGER_POISON, -ETIMEDOUT, 3, unit, &told[2]), 0);
	CHECK_EQ(policy(GMEM_PAGER_WAIT, -ETIMEDOUT, 14, unit, &told[3]), 0);
	CHECK_EQ(atomic_load(&told[3].n[GMEM_PAGER_GAVE_UP]), 0);
	/* One that will never come is poisoned at once, whatever the policy. */
	CHECK_EQ(policy(GMEM_PAGER_WAIT, -EBADMSG, INT32_MAX, unit, &told[3]), 2);
}

TEST_TIMEOUT(patience, 60)
{
	be_patient(P);
}

TEST_TIMEOUT(patience_with_huge_pages, 60)
{
	munmap(anon_map(GMEM_HUGE_SIZE * 4, true), GMEM_HUGE_SIZE * 4);
	be_patient(GMEM_HUGE_SIZE);
}

/* ---- what is refused */

TEST(no_bytes)
{
	struct gmem_file *file;
	struct gmem_view *view;
	char buf[64];

	CHECK_OK(gmem_file_create_anon(4 * P, P, -1, &file));
	CHECK_EQ(gmem_file_size(file), 4 * P);
	CHECK_EQ(gmem_file_page_state(file, P), GMEM_PAGE_ABSENT);
	CHECK_EQ(gmem_file_read(file, 0, buf, sizeof(buf)), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_write(file, 0, buf, sizeof(buf)), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_punch(file, 0, P), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_fallocate(file, 0, 0, P), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_pin(file, 0, P), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_poison(file, 0, P), -EOPNOTSUPP);
	CHECK_EQ(gmem_view_map(file, 0, P, PROT_READ, &view), -EOPNOTSUPP);
	CHECK_EQ(gmem_file_set_attributes(file, 0, P, GMEM_ATTRIBUTE_PRIVATE, NULL), -EOPNOTSUPP);
	gmem_file_free(file);
}

TEST(arguments)
{
	struct gmem_file *file, *other;
	int fd = memfd_create("states", MFD_CLOEXEC), fd2;

	CHECK(fd >= 0);
	CHECK_EQ(gmem_file_create_anon(0, P, -1, &file), -EINVAL);
	CHECK_EQ(gmem_file_create_anon(P + 1, P, -1, &file), -EINVAL);
	CHECK_EQ(gmem_file_create_anon(P, 8192, -1, &file), -EINVAL);
	CHECK_EQ(gmem_file_create_anon(P, GMEM_HUGE_SIZE, -1, &file), -EINVAL);
	CHECK_OK(gmem_file_create_anon(64 * P, P, fd, &file));
	/* Somebody serves it. */
	CHECK_EQ(gmem_file_create_anon(64 * P, P, fd, &other), -EBUSY);
	gmem_file_free(file);
	/* Another length, another kind, and no table. */
	CHECK_EQ(gmem_file_create_anon(65 * P, P, fd, &file), -EINVAL);
	CHECK_EQ(gmem_file_create_anon(64 * P, P, fd, &file), 0);
	CHECK_EQ(gmem_file_generation(file), 2);
	gmem_file_free(file);
	CHECK_EQ(ftruncate(fd, 100), 0);
	CHECK_EQ(gmem_file_create_anon(64 * P, P, fd, &file), -EINVAL);
	close(fd);
	fd = memfd_create("states", MFD_CLOEXEC);
	fd2 = open("/dev/zero", O_RDWR | O_CLOEXEC);
	CHECK(gmem_file_create_anon(64 * P, P, fd2, &file) < 0);
	CHECK_OK(gmem_file_create_anon(GMEM_HUGE_SIZE, GMEM_HUGE_SIZE, fd, &file));
	gmem_file_free(file);
	CHECK_EQ(gmem_file_create_anon(GMEM_HUGE_SIZE, P, fd, &file), -EINVAL);
	close(fd);
	close(fd2);
}

/* One descriptor, one file: removals of both would be journaled in one. */
TEST(one_descriptor_for_two_files)
{
	struct anon_program a = { .npages = 8, .split = 4 };
	struct src src = SRC(.id = ID);
	struct gmem_source *source = source_of(&src);
	struct gmem_region r = { .size = sizeof(r), .len = 4 * P, .source = source };
	struct gmem_file *file[2];
	struct gmem_pager *pager;

	anon_start(&a);
	pager = new_pager(1, 0, NULL);
	file[0] = anon_file(&a, -1);
	file[1] = anon_file(&a, -1);
	r.uffd = a.uffd;
	r.file = file[0];
	r.hva = a.shared->hva[0];
	CHECK_OK(gmem_pager_add_region(pager, &r));
	r.hva = a.shared->hva[1];
	r.file = file[1];
	CHECK_EQ(gmem_pager_add_region(pager, &r), -EINVAL);
	r.file = file[0];
	r.off = r.source_off = 4 * P;
	CHECK_OK(gmem_pager_add_region(pager, &r));
	/* None, or all. */
	CHECK_EQ(gmem_pager_add_regions(pager, &r, 0), -EINVAL);
	atomic_store(&a.shared->go, true);
	anon_finish(&a);
	gmem_pager_free(pager);
	gmem_file_free(file[0]);
	gmem_file_free(file[1]);
	gmem_source_unref(source);
}
