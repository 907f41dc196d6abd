/* SPDX-License-Identifier: MIT */
/*
 * Servers of another process's own memory that are killed, at random and at the steps that matter: every page is what
 * the program saved, wrote or gave up, whoever serves it next.
 */
#include "tap.h"

#include "anon_util.h"
#include "pager_scene.h"

enum window {
	BEFORE_COPY = 1,
	AFTER_COPY = 2, /* the page is there, and its word does not say so */
	AFTER_READ = 3, /* a removal was read, and nobody knows */
	IN_REMOVAL = 4, /* some of its pages are noted */
};

/* In a server: dies at the n-th time. */
static enum window window;
static _Atomic int calls_left;

static void die_at(enum window w)
{
	if (window != w || atomic_fetch_sub(&calls_left, 1) != 1)
		return;
	raise(SIGKILL);
	for (;;)
		pause();
}

int __real_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done);
int __wrap_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done);
int __real_gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n);
int __wrap_gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n);
bool __real_gmem_state_remove(struct gmem_state *s, uint64_t page);
bool __wrap_gmem_state_remove(struct gmem_state *s, uint64_t page);

int __wrap_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done)
{
	int err;

	die_at(BEFORE_COPY);
	err = __real_gmem_sys_uffd_copy(uffd, hva, from, len, how, done);
	if (!err)
		die_at(AFTER_COPY);
	return err;
}

int __wrap_gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n)
{
	int got = __real_gmem_sys_uffd_read(uffd, msgs, n);

	for (int i = 0; i < got; i++)
		if (msgs[i].event == UFFD_EVENT_REMOVE)
			die_at(AFTER_READ);
	return got;
}

bool __wrap_gmem_state_remove(struct gmem_state *s, uint64_t page)
{
	bool unlocked = __real_gmem_state_remove(s, page);

	die_at(IN_REMOVAL);
	return unlocked;
}

struct stage {
	struct anon_program a;
	int states;
};

static struct gmem_source *saved(void)
{
	static struct src src = SRC(.id = ID, .nowait = true);

	return source_of(&src);
}

static pid_t start_server(const struct stage *s, enum window w, int n, bool fill)
{
	struct gmem_source *source;
	struct gmem_pager *pager;
	struct gmem_file *file;
	pid_t pid = fork();
	int err;

	if (pid)
		return pid;
	window = w;
	atomic_store(&calls_left, n);
	source = saved();
	pager = new_pager(2, 0, NULL);
	err = gmem_file_create_anon(s->a.npages * P, s->a.unit, s->states, &file);
	CHECK_OK(err);
	anon_add(&s->a, pager, file, source, -1);
	if (fill)
		(void)gmem_pager_fill(pager, NULL, NULL);
	for (;;)
		pause();
}

static void start(struct stage *s)
{
	s->a.seed = tap_seed();
	s->states = memfd_create("states", MFD_CLOEXEC);
	CHECK(s->states >= 0);
	anon_start(&s->a);
	atomic_store(&s->a.shared->go, true);
}

static void finish(struct stage *s, bool fill)
{
	pid_t server;

	atomic_store(&s->a.shared->hold_at, 0);
	server = start_server(s, 0, 0, fill);
	WAIT_FOR(atomic_load(&s->a.shared->end));
	kill_and_wait(server);
	anon_finish(&s->a);
	close(s->states);
}

TEST_TIMEOUT(killed_at_random_instants, 200)
{
	unsigned int wanted = getenv("GMEM_KILLS") ? (unsigned int)atoi(getenv("GMEM_KILLS")) : SLOW_BUILD ? 20 : 60;
	uint64_t seed = tap_seed();

	for (unsigned int kills = 0; kills < wanted;) {
		struct stage s = { .a = { .npages = 2048, .nops = SLOW_BUILD ? 3000 : 10000, .split = 700 } };
		unsigned int in_flight = 0, here = 0;

		start(&s);
		while (here < 10 && kills < wanted && !atomic_load(&s.a.shared->done)) {
			uint64_t ops = atomic_load(&s.a.shared->ops), more = tap_rand(&seed) % (s.a.nops / 12);
			pid_t server;

			/* So that something is left for the others. */
			atomic_store(&s.a.shared->hold_at, ops + s.a.nops / 10);
			server = start_server(&s, 0, 0, tap_rand(&seed) % 2);
			WAIT_FOR(atomic_load(&s.a.shared->ops) >= ops + more || atomic_load(&s.a.shared->done));
			kill_and_wait(server);
			for (int i = 0; i < THREADS; i++)
				in_flight += !!atomic_load(&s.a.shared->at[i]);
			kills++;
			here++;
		}
		printf("%u kills, %u threads at a page then, %llu of %llu operations\n", here, in_flight,
		       (unsigned long long)atomic_load(&s.a.shared->ops), (unsigned long long)(2 * s.a.nops));
		finish(&s, tap_rand(&seed) % 2);
	}
}

static void die_in(enum window w, uint64_t unit)
{
	static const int calls[] = { 1, 2, 3, 7, 19 };

	for (int fill = 0; fill < 2; fill++) {
		struct stage s = { .a = { .npages = unit / P * 1024, .nops = SLOW_BUILD ? 1500 : 4000, .unit = unit } };

		if (unit > P) {
			s.a.npages = unit / P * 8;
			s.a.nops = 100;
		}
		start(&s);
		for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]) - (unit > P ? 2 : 0); i++) {
			pid_t server = start_server(&s, w, calls[i], fill);
			int status;

			WAIT_FOR(waitpid(server, &status, WNOHANG) == server);
			if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
				FAIL("window %d, call %d: the server ended with status 0x%x", w, calls[i], status);
		}
		finish(&s, fill);
	}
}

TEST_TIMEOUT(killed_before_the_copy, 60)
{
	die_in(BEFORE_COPY, P);
}

TEST_TIMEOUT(killed_after_the_copy, 60)
{
	die_in(AFTER_COPY, P);
}

TEST_TIMEOUT(killed_with_a_removal_read, 60)
{
	die_in(AFTER_READ, P);
}

TEST_TIMEOUT(killed_in_a_removal, 60)
{
	die_in(IN_REMOVAL, P);
}

TEST_TIMEOUT(killed_with_huge_pages, 100)
{
	munmap(anon_map(2 * (2u << 20), true), 2 * (2u << 20));
	for (int w = BEFORE_COPY; w <= IN_REMOVAL; w++)
		die_in((enum window)w, 2u << 20);
}
