/* SPDX-License-Identifier: MIT */
/*
 * Processes that die, or are stopped, in the middle of a conversion: the others go on, and no page is private and
 * within reach.
 *
 * The functions wrapped here are the steps of a conversion: who is told to dies at one of them.
 */
#include "tap.h"

#include <sys/mman.h>

#include "peer_util.h"

#define N 8u

enum where {
	NOWHERE,
	/* in a peer */
	BEFORE_HOLDING,
	HOLDING,
	HALF_MARKED,
	MARKED,
	ANSWERED,
	RELEASING,
	/* in the owner */
	ALL_HOLD,
	ALL_MARKED,
	BEFORE_STORING,
	STORED,
	NOT_RELEASED,
	NWHERE,
};

static struct shared {
	_Atomic int where;
	_Atomic pid_t who, reached; /* 0: not yet */
	_Atomic int sig;
	_Atomic int fail; /* so many times letting in fails in the other process */
} * sh;

static void come_to(enum where where)
{
	if (!sh || atomic_load(&sh->where) != (int)where || atomic_load(&sh->who) != getpid())
		return;
	atomic_store(&sh->where, NOWHERE);
	atomic_store(&sh->reached, getpid());
	/* To this thread, which goes no further. */
	pthread_kill(pthread_self(), atomic_load(&sh->sig));
}

#define WRAP(ret, f, args)   \
	ret __real_##f args; \
	ret __wrap_##f args; \
	ret __wrap_##f args

WRAP(int, gmem_convert_check_pins, (struct gmem_file * file, uint64_t off, uint64_t len, uint64_t *error_off))
{
	come_to(HOLDING);
	return __real_gmem_convert_check_pins(file, off, len, error_off);
}

WRAP(int, gmem_convert_mark, (struct gmem_file * file, uint64_t off, uint64_t len))
{
	int err = __real_gmem_convert_mark(file, off, len);

	come_to(MARKED);
	return err;
}

WRAP(int, gmem_convert_let_in, (struct gmem_file * file, uint64_t off, uint64_t len))
{
	come_to(RELEASING);
	if (sh && atomic_load(&sh->fail) && atomic_load(&sh->who) == getpid() && atomic_fetch_sub(&sh->fail, 1))
		return gmem_err(-ENOMEM, "told to fail");
	return __real_gmem_convert_let_in(file, off, len);
}

WRAP(int, gmem_sys_uffd_poison, (int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done))
{
	int err = __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);

	come_to(HALF_MARKED);
	return err;
}

WRAP(void, gmem_futex_wake, (_Atomic uint32_t *word))
{
	come_to(ANSWERED);
	__real_gmem_futex_wake(word);
}

WRAP(void, gmem_rwlock_lock, (struct gmem_rwlock * l))
{
	come_to(BEFORE_HOLDING);
	__real_gmem_rwlock_lock(l);
}

WRAP(int, gmem_round_hold, (struct gmem_file * file, uint64_t off, uint64_t len, uint64_t *error_off))
{
	int err = __real_gmem_round_hold(file, off, len, error_off);

	come_to(ALL_HOLD);
	return err;
}

WRAP(int, gmem_round_mark, (struct gmem_file * file, uint64_t off, uint64_t len, uint64_t *error_off))
{
	int err = __real_gmem_round_mark(file, off, len, error_off);

	come_to(ALL_MARKED);
	return err;
}

WRAP(void, gmem_state_set_side, (struct gmem_state * s, uint64_t first, uint64_t end, bool private))
{
	come_to(BEFORE_STORING);
	__real_gmem_state_set_side(s, first, end, private);
	come_to(STORED);
}

WRAP(void, gmem_round_release, (struct gmem_file * file, uint64_t off, uint64_t len, bool wait))
{
	come_to(NOT_RELEASED);
	__real_gmem_round_release(file, off, len, wait);
}

static void set_up(void)
{
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(sh != MAP_FAILED);
}

static void arm(const struct other *o, enum where where, int sig)
{
	atomic_store(&sh->reached, 0);
	atomic_store(&sh->sig, sig);
	atomic_store(&sh->who, o->pid);
	atomic_store(&sh->where, where);
}

static void fill(struct gmem_file *file)
{
	for (uint64_t page = 0; page < N; page++)
		CHECK_OK(gmem_file_write(file, page * P, &(char){ (char)(10 + page) }, 1));
}

static void wait_dead(struct other *o)
{
	int status;

	CHECK_EQ(waitpid(o->pid, &status, 0), o->pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	close(o->sock);
}

/* Kills one of two peers at a step of a conversion, which goes on without it. */
static void kill_peer_at(enum where where, uint64_t attributes)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = file_of(N, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ);
	uint64_t before;

	fill(file);
	join_in(&a, file);
	join_in(&b, file);
	if (!attributes)
		convert(file, 2, 4, PRIVATE);
	/* Its last answer is out, or it would die of that. */
	usleep(20000);
	arm(&a, where, SIGKILL);
	before = now_ms();
	convert(file, 2, 4, attributes);
	CHECK_EQ(peek(page_of(view, 3)), attributes ? -1 : 13);
	CHECK_EQ(its(&b, 3), attributes ? -1 : 13);
	CHECK_EQ(its(&b, 6), 16);
	/* A private conversion does not wait for those who let go. */
	wait_dead(&a);
	CHECK_EQ(atomic_load(&sh->reached), a.pid);
	CHECK(now_ms() - before < (SLOW_BUILD ? 20000 : 1500));
	convert(file, 0, N, attributes ? 0 : PRIVATE);
	CHECK_EQ(its(&b, 3), attributes ? 13 : -1);
	CHECK_EQ(__builtin_popcount(atomic_load(&file->state.header->peers)), 1);
	end_other(&b);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST_TIMEOUT(a_peer_dies_at_each_step, 60)
{
	need_markers();
	set_up();
	for (int where = BEFORE_HOLDING; where <= RELEASING; where++)
		kill_peer_at((enum where)where, PRIVATE);
	kill_peer_at(BEFORE_HOLDING, 0);
	kill_peer_at(RELEASING, 0);
	kill_peer_at(ANSWERED, 0);
}

/* The owner is another process, this one a peer; one more peer beside it. */
static void kill_owner_at(enum where where, uint64_t attributes)
{
	struct other owner = other_process(), b = other_process();
	bool private = attributes ? where > BEFORE_STORING : where < STORED;
	struct gmem_file *file;
	struct gmem_view *view, *later;
	struct gmem_wire w;
	uint64_t before;
	int fds[2];

	ask_only(&owner, OP_CREATE, 0, N * P, 0);
	CHECK_EQ(answer_of(&owner, &w, fds), 0);
	CHECK_OK(gmem_file_open(fds[0], fds[1], &file));
	fill(file);
	view = view_of(file, 0, N, PROT_READ);
	join_in(&b, file);
	tell_ok(&owner, OP_MAP, 0, N * P);
	if (!attributes)
		CHECK_EQ(tell(&owner, OP_CONVERT, 2 * P, 4 * P, PRIVATE), 0);
	arm(&owner, where, SIGKILL);
	before = now_ms();
	ask_only(&owner, OP_CONVERT, 2 * P, 4 * P, (uint32_t)attributes);
	wait_dead(&owner);
	CHECK_EQ(atomic_load(&sh->reached), owner.pid);
	/* What takes the lock gets it when the agent has seen it. */
	later = view_of(file, 0, N, PROT_READ);
	tell_ok(&b, OP_MAP, 0, P);
	CHECK(now_ms() - before < (SLOW_BUILD ? 20000 : 1500));
	for (uint64_t page = 0; page < N; page++) {
		bool out = private && page >= 2 && page < 6;

		CHECK_EQ(gmem_file_private(file, page * P), out);
		/* A dead owner tells nobody that pages are shared: they stay out of reach of views that were there. */
		if (!out && attributes) {
			CHECK_EQ(peek(page_of(view, page)), 10 + (int)page);
			CHECK_EQ(its(&b, page), 10 + (int)page);
		}
		if (out) {
			CHECK_EQ(peek(page_of(view, page)), -1);
			CHECK_EQ(its(&b, page), -1);
		}
		CHECK_EQ(peek(page_of(later, page)), out ? -1 : 10 + (int)page);
	}
	gmem_view_unmap(later);
	gmem_view_unmap(view);
	end_other(&b);
	gmem_file_free(file);
	close(fds[0]);
	close(fds[1]);
}

TEST_TIMEOUT(the_owner_dies_at_each_step, 60)
{
	need_markers();
	set_up();
	for (int where = ALL_HOLD; where <= NOT_RELEASED; where++)
		kill_owner_at((enum where)where, PRIVATE);
	kill_owner_at(BEFORE_STORING, 0);
	kill_owner_at(STORED, 0);
}

/* Stopped at each step of its agent: refused in time, by name, and as if nothing had been. */
static void stop_peer_at(enum where where)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = file_of(N, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ);
	uint64_t before, took, error_off = 0;
	char text[32];

	fill(file);
	join_in(&a, file);
	join_in(&b, file);
	if (where == NOWHERE)
		stop_other(&a);
	else
		arm(&a, where, SIGSTOP);
	before = now_ms();
	CHECK_ERR(gmem_file_set_attributes(file, 2 * P, 4 * P, PRIVATE, &error_off), -EBUSY);
	took = now_ms() - before;
	if (took < 1900 || (!SLOW_BUILD && took > 3500))
		FAIL("refused after %llu ms", (unsigned long long)took);
	snprintf(text, sizeof(text), "process %d ", (int)a.pid);
	CHECK_HAS(gmem_last_error(), text);
	CHECK_EQ(error_off, 2 * P);
	for (uint64_t page = 0; page < N; page++) {
		CHECK_EQ(peek(page_of(view, page)), 10 + (int)page);
		CHECK_EQ(its(&b, page), 10 + (int)page);
	}
	CHECK(!gmem_file_private(file, 2 * P));
	/* What it has to do, it does late. */
	CHECK_EQ(kill(a.pid, SIGCONT), 0);
	tell_ok(&a, OP_MAP, 0, P);
	for (uint64_t page = 0; page < N; page++)
		for (int i = 0; its(&a, page) != 10 + (int)page; i++) {
			CHECK(i < 2000);
			usleep(1000);
		}
	convert(file, 2, 4, PRIVATE);
	CHECK_EQ(its(&a, 3), -1);
	CHECK_EQ(its(&b, 3), -1);
	end_other(&a);
	end_other(&b);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST_TIMEOUT(a_peer_that_is_stopped, 120)
{
	need_markers();
	set_up();
	stop_peer_at(NOWHERE);
	stop_peer_at(BEFORE_HOLDING);
	stop_peer_at(HOLDING);
	stop_peer_at(HALF_MARKED);
	stop_peer_at(MARKED);
}

/* Pages are made shared in spite of it: it follows when it runs. */
TEST(stopped_while_pages_become_shared)
{
	struct other a = other_process();
	struct gmem_file *file;

	need_markers();
	file = file_of(N, 0);
	fill(file);
	join_in(&a, file);
	convert(file, 0, N, PRIVATE);
	usleep(20000);
	stop_other(&a);
	convert(file, 2, 4, 0);
	CHECK_EQ(kill(a.pid, SIGCONT), 0);
	for (int i = 0; its(&a, 3) != 13; i++) {
		CHECK(i < 2000);
		usleep(1000);
	}
	CHECK_EQ(its(&a, 6), -1);
	end_other(&a);
	gmem_file_free(file);
}

/* No memory to let the host in with: pages are shared all the same, and it tries again until it can. */
TEST(letting_in_fails)
{
	struct gmem_file *file;
	struct other a;

	need_markers();
	set_up();
	a = other_process();
	file = file_of(N, 0);
	fill(file);
	join_in(&a, file);
	convert(file, 2, 4, PRIVATE);
	usleep(20000);
	arm(&a, NOWHERE, 0);
	atomic_store(&sh->fail, 3);
	convert(file, 3, 2, 0);
	CHECK_EQ(its(&a, 3), -1);
	for (int i = 0; its(&a, 3) != 13; i++) {
		CHECK(i < 2000);
		usleep(1000);
	}
	CHECK_EQ(atomic_load(&sh->fail), 0);
	CHECK_EQ(its(&a, 4), 14);
	CHECK_EQ(its(&a, 2), -1);
	end_other(&a);
	gmem_file_free(file);
}

/* Its child has the descriptor whose lock says that it lives; its number says that it does not. */
TEST(a_child_does_not_keep_a_peer_alive)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = file_of(N, 0);
	struct gmem_wire w;
	uint64_t before;
	pid_t child;
	int fds[2];

	fill(file);
	join_in(&a, file);
	ask_only(&a, OP_FORK, 0, 0, 0);
	CHECK_EQ(answer_of(&a, &w, fds), 0);
	child = w.pid;
	kill_and_wait(a.pid);
	close(a.sock);
	before = now_ms();
	convert(file, 0, N, PRIVATE);
	CHECK(now_ms() - before < (SLOW_BUILD ? 10000 : 1000));
	/* The place is the dead one's while its child has it; another one is taken. */
	join_in(&b, file);
	CHECK_EQ(its(&b, 1), -1);
	convert(file, 0, N, 0);
	CHECK_EQ(its(&b, 1), 11);
	end_other(&b);
	kill(child, SIGKILL);
	gmem_file_free(file);
}
