/* SPDX-License-Identifier: MIT */
/*
 * Populate and lazily served memory. The source of a populate is a view that a pager serves at that moment, and what
 * that pager serves from reads the very file that is populated: it needs its lock.
 *
 * This file makes three programs. In the second and third, populate.c is built anew with GMEM_TEST_SOURCE_UNDER_LOCK,
 * which brings the source in under the file's lock: the second must be stopped by the lock checker, the third, whose
 * populate.c asks no checker, must hang.
 */
#include "tap.h"

#include "pager_scene.h"
#include "vm/vm.h"

#define GFN 0x40ull
#define NPAGES 8ull
#define SHARED 16ull /* a page of the target that stays shared, and holds the key */
#define KEY 0x5eedull

/* How far it came; shared with the parent, which may be the only one left. */
struct marks {
	_Atomic unsigned int entered, returned; /* reads of the source */
	_Atomic int64_t populated;
};

struct keyed {
	struct gmem_file *target;
	struct marks *marks;
};

/* Pages of a memory that only who has read the target's key can make. */
static int keyed_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct keyed *k = opaque;
	uint64_t key = 0;

	atomic_fetch_add(&k->marks->entered, 1);
	CHECK_OK(gmem_file_read(k->target, SHARED * P, &key, sizeof(key)));
	atomic_fetch_add(&k->marks->returned, 1);
	for (uint64_t at = 0; at < len; at += 8)
		*(uint64_t *)((char *)buf + at) = (off + at) ^ key;
	return 0;
}

static void set_slot(struct gmem_vm *vm, struct gmem_file *file)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = GFN * P, .len = NPAGES * P, .file = file };

	CHECK_OK(gmem_vm_set_slot(vm, &slot));
}

/* System calls that touch the view must be served: the caller's memory is read by one. */
static void need_full_uffd(struct gmem_pager *pager)
{
	if (stats_of(pager).user_mode_only)
		SKIP("uffd", "only a user-mode-only userfaultfd: system calls on served memory fail here");
}

/* The populate itself; it ends only if the source is brought in without the target's lock. */
static void populate_from_a_served_view(struct marks *marks)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = keyed_read };
	struct gmem_file *target = new_file((SHARED + 1) * P), *lazy = new_file(NPAGES * P);
	struct keyed keyed = { .target = target, .marks = marks };
	uint64_t key = KEY, got[P / 8];
	struct gmem_source *source;
	struct gmem_vcpu *vcpu;
	struct gmem_pager *pager;
	struct gmem_view *view;
	struct gmem_vm *vm;
	char *src;

	pager = new_pager(1, 0, NULL);
	CHECK_OK(gmem_source_new(&ops, &keyed, &source));
	src = map_view(lazy, 0, NPAGES * P, &view);
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	need_full_uffd(pager);
	CHECK_OK(gmem_file_write(target, SHARED * P, &key, sizeof(key)));
	CHECK_OK(gmem_file_set_attributes(target, 0, NPAGES * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	set_slot(vm, target);

	atomic_store(&marks->populated, gmem_populate(vm, GFN, src, (int64_t)NPAGES, 0, NULL, NULL));

	for (uint64_t at = 0; at < NPAGES * P; at += 8) {
		if (at % P == 0)
			CHECK_OK(gmem_vcpu_load(vcpu, GFN * P + at, got, P));
		CHECK_EQ(got[at % P / 8], at ^ KEY);
	}
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(lazy);
	gmem_file_free(target);
}

#if !defined(GMEM_TEST_SOURCE_UNDER_LOCK) || defined(GMEM_TEST_UNCHECKED)

/* From memory that nobody serves. What counts is what was brought in with no lock of a file held. */
static void count_sources(uint64_t want)
{
	static char src[NPAGES * P] __attribute__((aligned(4096)));
	struct gmem_vm_stats st = { .size = sizeof(st) };
	struct gmem_file *target = new_file(NPAGES * P);
	struct gmem_vm *vm;

	CHECK_OK(gmem_file_set_attributes(target, 0, NPAGES * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_OK(gmem_vm_create(NULL, &vm));
	set_slot(vm, target);
	CHECK_EQ(gmem_populate(vm, GFN, src, (int64_t)NPAGES, 0, NULL, NULL), (int64_t)NPAGES);
	CHECK_OK(gmem_vm_stats(vm, &st));
	CHECK_EQ(st.populated, NPAGES);
	CHECK_EQ(st.sources, want);
	gmem_vm_free(vm);
	gmem_file_free(target);
}

#endif

#ifdef GMEM_TEST_SOURCE_UNDER_LOCK

/* Runs it in a child, whose standard error can be read from the returned descriptor. */
static pid_t start(struct marks **ret_marks, int *ret_err)
{
	struct marks *marks = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int p[2];
	pid_t pid;

	CHECK(marks != MAP_FAILED);
	CHECK_EQ(pipe(p), 0);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		dup2(p[1], STDERR_FILENO);
		close(p[0]);
		close(p[1]);
		populate_from_a_served_view(marks);
		_exit(0);
	}
	close(p[1]);
	*ret_marks = marks;
	*ret_err = p[0];
	return pid;
}

/* A SKIP in a child ends it with 0 before it came as far. */
static void need_it_to_run(void)
{
	struct gmem_pager *pager;
	struct gmem_source *source;
	struct gmem_file *file;
	struct gmem_view *view;

	pager = new_pager(1, 0, NULL);
	file = new_file(P);
	CHECK_OK(gmem_source_new_zero(&source));
	map_view(file, 0, P, &view);
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	need_full_uffd(pager);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

#endif

#if defined(GMEM_TEST_SOURCE_UNDER_LOCK) && !defined(GMEM_TEST_UNCHECKED)

#ifndef GMEM_LOCKCHECK
#define NEEDS_CHECKER() SKIP("lockcheck", "this build has no lock checker")
#else
#define NEEDS_CHECKER()
#endif

/* Frames of a stack, up to the next line of words. */
static unsigned int frames_after(const char *text, const char *mark)
{
	const char *p = strstr(text, mark);
	unsigned int n = 0;

	for (p = p ? strchr(p, '\n') : NULL; p && p[1] && strncmp(p + 1, "while", 5); p = strchr(p + 1, '\n'))
		n++;
	return n;
}

TEST(source_under_the_lock_is_seen_by_the_checker)
{
	static char text[32768];
	struct marks *marks;
	int err, status;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	NEEDS_CHECKER();
	need_it_to_run();
	pid = start(&marks, &err);
	while (n < sizeof(text) - 1 && (got = read(err, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)got;
	close(err);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (!status)
		FAIL("no violation was seen; it said: %s", text);
	CHECK_HAS(text, "lock order violation: the caller's memory is touched, here:\n");
	CHECK_HAS(text, "while holding the invalidate lock, taken here:\n");
	CHECK(frames_after(text, "touched, here:\n") >= 2);
	CHECK(frames_after(text, "taken here:\n") >= 2);
	/* It did not come as far as touching it. */
	CHECK_EQ(marks->entered, 0);
	munmap(marks, P);
}

#elif defined(GMEM_TEST_SOURCE_UNDER_LOCK)

TEST(source_under_the_lock_hangs)
{
	const struct timespec some = { .tv_sec = 3 };
	struct marks *marks;
	int err, status;
	pid_t pid;

	need_it_to_run();
	pid = start(&marks, &err);
	while (!marks->entered) {
		CHECK_EQ(waitpid(pid, &status, WNOHANG), 0);
		usleep(1000);
	}
	nanosleep(&some, NULL);
	/* The pager's read waits for the lock of a populate that waits for the pager. */
	CHECK_EQ(waitpid(pid, &status, WNOHANG), 0);
	CHECK_EQ(marks->entered, 1);
	CHECK_EQ(marks->returned, 0);
	CHECK_EQ(marks->populated, 0);
	kill_and_wait(pid);
	close(err);
	munmap(marks, P);
}

TEST(sources_under_the_lock_are_not_counted)
{
	count_sources(0);
}

#else

TEST(sources_are_counted)
{
	count_sources(NPAGES);
}

TEST(source_served_by_a_pager_that_needs_the_target)
{
	struct marks marks = { .populated = 0 };

	populate_from_a_served_view(&marks);
	CHECK_EQ(marks.populated, (int64_t)NPAGES);
	CHECK(marks.entered > 0);
	CHECK_EQ(marks.returned, marks.entered);
}

/* ---- a pager on the target */

struct guest {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
};

static void guest_up(struct guest *g, struct gmem_file *file)
{
	CHECK_OK(gmem_file_set_attributes(file, 0, NPAGES * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_OK(gmem_vm_create(NULL, &g->vm));
	CHECK_OK(gmem_vcpu_create(g->vm, NULL, &g->vcpu));
	set_slot(g->vm, file);
}

static void guest_down(struct guest *g)
{
	gmem_vcpu_free(g->vcpu);
	gmem_vm_free(g->vm);
}

static void check_page(struct guest *g, unsigned int id, uint64_t page)
{
	char got[P];

	CHECK_OK(gmem_vcpu_load(g->vcpu, (GFN + page) * P, got, P));
	if (!page_is(id, page * P, got))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

static int count_calls(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	/* In place, and there already. */
	CHECK(!src);
	CHECK(page_is(4, (gfn - GFN) * P, gmem_pfn_addr(pfn)));
	++*(unsigned int *)opaque;
	return 0;
}

TEST(in_place_absent_pages_come_from_the_pager)
{
	unsigned int calls = 0;
	struct guest g;
	struct scene s;

	set_up(&s, (struct src)SRC(.id = 4), 2, 0, (SHARED + 1) * P);
	catch_bus();
	CHECK_EQ(touch(s.p + 2 * P), 0);
	guest_up(&g, s.file);
	CHECK_EQ(gmem_populate(g.vm, GFN, NULL, (int64_t)NPAGES, 0, count_calls, &calls), (int64_t)NPAGES);
	CHECK_EQ(calls, NPAGES);
	for (uint64_t page = 0; page < NPAGES; page++) {
		check_page(&g, 4, page);
		CHECK_EQ(gmem_file_page_state(s.file, page * P), GMEM_PAGE_UPTODATE);
		CHECK_EQ(touch(s.p + page * P), SIGBUS);
	}
	/* Shared again, the view shows them. */
	CHECK_OK(gmem_file_set_attributes(s.file, 0, NPAGES * P, 0, NULL));
	check_all(s.p, 4, SHARED + 1);
	guest_down(&g);
	tear_down(&s);
}

/* With a source, the pager is not asked; what it would have brought does not come later. */
TEST(with_a_source_the_pager_of_the_target_is_not_asked)
{
	static char src[NPAGES * P] __attribute__((aligned(4096)));
	struct guest g;
	struct scene s;

	for (uint64_t page = 0; page < NPAGES; page++)
		fill_page(6, page * P, src + page * P);
	set_up(&s, (struct src)SRC(.id = 4), 2, 0, (SHARED + 1) * P);
	guest_up(&g, s.file);
	CHECK_EQ(gmem_populate(g.vm, GFN, src, (int64_t)NPAGES, 0, NULL, NULL), (int64_t)NPAGES);
	CHECK_EQ(s.src.reads, 0);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	for (uint64_t page = 0; page < NPAGES; page++)
		check_page(&g, 6, page);
	guest_down(&g);
	tear_down(&s);
}

/* A page whose bytes are lost: in place, and as a source. */
TEST(lost_pages)
{
	struct scene s;
	struct guest g;
	struct gmem_file *target = new_file(NPAGES * P);

	set_up(&s, (struct src)SRC(.id = 4, .bad_page = 3, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 2, 0,
	       (SHARED + 1) * P);
	need_full_uffd(s.pager);
	guest_up(&g, target);
	CHECK_EQ(gmem_populate(g.vm, GFN, s.p, (int64_t)NPAGES, 0, NULL, NULL), 3);
	CHECK_ERR(gmem_populate(g.vm, GFN + 3, s.p + 3 * P, 1, 0, NULL, NULL), -EFAULT);
	guest_down(&g);
	guest_up(&g, s.file);
	CHECK_EQ(gmem_populate(g.vm, GFN, NULL, (int64_t)NPAGES, 0, NULL, NULL), 3);
	CHECK_ERR(gmem_populate(g.vm, GFN + 3, NULL, 1, 0, NULL, NULL), -EHWPOISON);
	CHECK_EQ(gmem_populate(g.vm, GFN + 4, NULL, (int64_t)NPAGES, 0, NULL, NULL), (int64_t)NPAGES - 4);
	guest_down(&g);
	gmem_file_free(target);
	tear_down(&s);
}

struct canceller {
	struct scene *s;
	struct gmem_vm *vm;
};

static void *cancel_when_blocked(void *arg)
{
	struct canceller *c = arg;

	while (!atomic_load(&c->s->src.blocked))
		usleep(1000);
	gmem_vm_cancel(c->vm);
	return NULL;
}

/* In place, the wait for a pager that does not answer can be cancelled; told of once. */
TEST(cancelled_while_it_waits_for_the_pager)
{
	struct canceller c = { .vm = NULL };
	struct scene s;
	struct guest g;
	pthread_t t;

	set_up(&s, (struct src)SRC(.id = 4, .block_page = 5), 1, 0, (SHARED + 1) * P);
	guest_up(&g, s.file);
	c = (struct canceller){ .s = &s, .vm = g.vm };
	CHECK_EQ(pthread_create(&t, NULL, cancel_when_blocked, &c), 0);
	CHECK_ERR(gmem_populate(g.vm, GFN + 5, NULL, 1, 0, NULL, NULL), -EINTR);
	pthread_join(t, NULL);
	atomic_store(&s.src.release, true);
	CHECK_EQ(gmem_populate(g.vm, GFN + 5, NULL, 1, 0, NULL, NULL), 1);
	check_page(&g, 4, 5);
	guest_down(&g);
	tear_down(&s);
}

#endif
