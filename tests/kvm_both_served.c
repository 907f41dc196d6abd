/* SPDX-License-Identifier: MIT */
/*
 * Memory of the program's beside a file's that somebody else looks after: another file of the library's, a server that
 * hears of every change, a guest of another machine while it is being adopted.
 */
#include <sys/resource.h>
#include <sys/wait.h>

#include "kvm_both.h"

#include "sys/call.h"
#include "sys/futex.h"
#include "sys/uffd.h"

static void set_up_without(struct both *b, const struct scene_opts *o)
{
	scene_set_up(&b->s, o);
	CHECK_OK(del_slot(b->s.vm, 0));
}

/* ---- another file's view */

/*
 * Its private pages are out of this guest's reach too; and, once its descriptor was asked for, it makes none private
 * that a guest has.
 */
TEST(view_of_another_file)
{
	for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
		struct gmem_file *other;
		struct gmem_view *view;
		static struct both b;
		int err;

		set_up_without(&b, &ways[way]);
		CHECK_OK(gmem_file_create(LEN, NULL, &other));
		CHECK_OK(gmem_file_fd(other));
		CHECK_OK(gmem_view_map(other, 0, LEN, RW, &view));
		b.hva = gmem_view_addr(view);
		set_hva_word(&b, 2 * PG, 2);
		set_hva_word(&b, 3 * PG, 3);
		to_private(other, 3 * PG, PG);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 2);
		begin(&b.s, GUEST_load8, GPA + 3 * PG);
		err = go_on(&b.s);
		CHECK(err == -EFAULT || err == -EHWPOISON);
		check_fault(&b.s, GPA + 3 * PG, 0);
		to_shared(other, 3 * PG, PG);
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 3);
		/* What the guest was shown. */
		CHECK_ERR(gmem_file_set_attributes(other, 2 * PG, PG, GMEM_ATTRIBUTE_PRIVATE, NULL), -EBUSY);
		to_private(b.s.file, 2 * PG, PG);
		to_private(other, 2 * PG, PG);
		to_shared(b.s.file, 2 * PG, PG);
		begin(&b.s, GUEST_load8, GPA + 2 * PG);
		err = go_on(&b.s);
		CHECK(err == -EFAULT || err == -EHWPOISON);
		to_shared(other, 0, LEN);
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 2);
		scene_tear_down(&b.s);
		gmem_view_unmap(view);
		gmem_file_free(other);
	}
}

/* ---- a server */

static struct server {
	int uffd;
	char *hva;
	_Atomic bool stop, slow, stuck;
	_Atomic uint64_t served, others;
} server;

static void serve_page(uint64_t address)
{
	_Alignas(8) static char page[PG];
	uint64_t at = (address & ~(PG - 1)) - (uint64_t)(uintptr_t)server.hva, word = at / PG + 1;
	struct uffdio_copy copy = { .src = (uintptr_t)page, .len = PG };

	while (atomic_load(&server.stuck))
		usleep(500);
	if (atomic_load(&server.slow))
		usleep(2000);
	copy.dst = (uintptr_t)server.hva + at;
	for (uint64_t i = 0; i < PG; i += 8)
		memcpy(page + i, &word, 8);
	if (!ioctl(server.uffd, UFFDIO_COPY, &copy))
		atomic_fetch_add(&server.served, 1);
}

static void *serve(void *arg)
{
	(void)arg;
	while (!atomic_load(&server.stop)) {
		struct uffd_msg msg;

		if (gmem_sys_uffd_read(server.uffd, &msg, 1) < 1)
			usleep(200);
		else if (msg.event == UFFD_EVENT_PAGEFAULT)
			serve_page(msg.arg.pagefault.address);
		else
			atomic_fetch_add(&server.others, 1);
	}
	return NULL;
}

static pthread_t start_server(struct both *b, uint64_t features)
{
	bool user_mode_only = false;

	b->hva = map_memory(LEN, MAP_SHARED);
	server = (struct server){ .uffd = gmem_sys_uffd_open(features, &user_mode_only), .hva = b->hva };
	if (server.uffd < 0 || user_mode_only)
		SKIP("uffd", "no userfaultfd that serves system calls, and tells");
	CHECK_OK(gmem_sys_uffd_register(server.uffd, (uintptr_t)b->hva, LEN, GMEM_SYS_UFFD_MISSING));
	return start(serve, NULL);
}

static void end_server(struct both *b, pthread_t t)
{
	scene_tear_down(&b->s);
	atomic_store(&server.stop, true);
	join(t);
	close(server.uffd);
	munmap(b->hva, LEN);
}

/* To a server that asks to be told of moves a second mapping would be one. */
TEST(server_that_is_told)
{
	static const uint64_t others = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

	for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
		static struct both b;
		uint64_t told;
		pthread_t t;

		set_up_without(&b, &ways[way]);
		t = start_server(&b, UFFD_FEATURE_EVENT_REMAP);
		CHECK_ERR(set_memories(&b, b.hva, b.s.file), -EOPNOTSUPP);
		end_server(&b, t);
		set_up_without(&b, &ways[way]);
		t = start_server(&b, others);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		told = atomic_load(&server.others);
		for (int i = 0; i < 3; i++) {
			CHECK_EQ(run(&b.s, GUEST_sum, GPA + 16, LEN / PG, PG), LEN / PG * (LEN / PG + 1) / 2);
			to_private(b.s.file, 3 * PG, 4 * PG);
			to_shared(b.s.file, 0, LEN);
		}
		CHECK_EQ(atomic_load(&server.served), LEN / PG);
		CHECK_EQ(atomic_load(&server.others), told);
		end_server(&b, t);
	}
}

static _Atomic bool out;

static void *run_stuck(void *arg)
{
	struct scene *s = arg;
	int err;

	while (!(err = gmem_vcpu_run(s->vcpu)) || err == -EINTR)
		if (!err && guest_finished(&s->guest))
			break;
	CHECK_OK(err);
	atomic_store(&out, true);
	return NULL;
}

/* Conversions and cancellations do not wait for a page that is being brought in, and the guest gets it at last. */
TEST(slow_server)
{
	for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
		static struct both b;
		pthread_t t, guest;

		set_up_without(&b, &ways[way]);
		t = start_server(&b, 0);
		atomic_store(&server.slow, true);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 3);
		atomic_store(&server.stuck, true);
		atomic_store(&out, false);
		begin(&b.s, GUEST_load8, GPA + 7 * PG);
		guest = start(run_stuck, &b.s);
		for (int i = 0; i < 50; i++) {
			to_private(b.s.file, 9 * PG, PG);
			to_shared(b.s.file, 9 * PG, PG);
			gmem_vcpu_cancel(b.s.vcpu);
			usleep(200);
		}
		CHECK(!atomic_load(&out));
		atomic_store(&server.stuck, false);
		join(guest);
		CHECK_EQ(guest_result(&b.s.guest), 8);
		end_server(&b, t);
	}
}

/* ---- adopted under others */

static struct {
	char *hva;
	int pipe[2];
	_Atomic bool stop;
	_Atomic uint64_t increments, moved;
} users;

static void *count(void *arg)
{
	uint64_t n = 0;

	(void)arg;
	for (; !atomic_load(&users.stop); n++)
		__atomic_fetch_add((uint64_t *)(users.hva + PG + 8 + n % 8 * 4 * PG), 1, __ATOMIC_RELAXED);
	atomic_fetch_add(&users.increments, n);
	return NULL;
}

/* System calls that read there; one that is writing there has the memory of before. */
static void *call(void *arg)
{
	uint64_t word = 0;

	(void)arg;
	for (; !atomic_load(&users.stop); atomic_fetch_add(&users.moved, 1)) {
		CHECK_EQ(write(users.pipe[1], users.hva + 5 * PG + 512, 8), 8);
		CHECK_EQ(read(users.pipe[0], &word, 8), 8);
		CHECK_EQ(word, 77);
	}
	return NULL;
}

/* A guest of another machine, whose slot has the memory at the program's address. */
static void *run_hammer(void *arg)
{
	struct scene *s = arg;
	uint64_t n = 0;

	for (; !atomic_load(&users.stop); n += 100) {
		int err;

		begin(s, GUEST_hammer, GPA + PG + 8, 100);
		while ((err = gmem_vcpu_run(s->vcpu)) == -EINTR)
			;
		CHECK_OK(err);
		CHECK(guest_finished(&s->guest));
	}
	atomic_fetch_add(&users.increments, n);
	return NULL;
}

TEST_TIMEOUT(adopted_under_guests_and_threads, 240)
{
	uint64_t enough = gmem_futex_now() + 10000000000ull;

	for (int i = 0; i < 60 && (i < 6 || gmem_futex_now() < enough); i++) {
		static struct both b, plain;
		uint64_t before, all = 0;
		pthread_t t[3];

		set_up_without(&b, &ways[4]);
		set_up_without(&plain, &ways[i % 2 ? 4 : 2]);
		users.hva = b.hva = map_memory(LEN, MAP_PRIVATE);
		set_hva_word(&b, 5 * PG + 512, 77);
		CHECK_OK(set_hva_slot(plain.s.vm, 0, 0, GPA, LEN, b.hva));
		CHECK_OK(pipe2(users.pipe, O_CLOEXEC));
		atomic_store(&users.stop, false);
		atomic_store(&users.increments, 0);
		t[0] = start(count, NULL);
		t[1] = start(call, NULL);
		t[2] = start(run_hammer, &plain.s);
		before = atomic_load(&users.moved);
		while (atomic_load(&users.moved) < before + 3)
			sched_yield();
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		before = atomic_load(&users.moved);
		while (atomic_load(&users.moved) < before + 3)
			sched_yield();
		run(&b.s, GUEST_hammer, GPA + PG + 8, 100);
		atomic_store(&users.stop, true);
		for (int k = 0; k < 3; k++)
			join(t[k]);
		for (uint64_t k = 0; k < 8; k++)
			all += hva_word(&b, PG + 8 + k * 4 * PG);
		CHECK_EQ(all, atomic_load(&users.increments) + 100);
		close(users.pipe[0]);
		close(users.pipe[1]);
		scene_tear_down(&plain.s);
		scene_tear_down(&b.s);
		munmap(b.hva, LEN);
	}
}

/* ---- that somebody serves it is seen, whatever of it is to be shown when the slot is set */

enum hidden { PRIVATE_AT_FIRST, BITMAP_AT_FIRST, BITMAP_WITHOUT_FILE, PROTECTED_AT_FIRST, HIDINGS };

static void set_hidden(struct both *b, enum hidden how)
{
	static const uint64_t bitmap[LEN / PG / 64 + 1];
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = LEN, .hva = b->hva };

	if (how != BITMAP_WITHOUT_FILE)
		m.file = b->s.file;
	if (how == BITMAP_AT_FIRST || how == BITMAP_WITHOUT_FILE)
		m.flags = GMEM_SLOT_USERFAULT;
	m.userfault_bitmap = bitmap;
	if (how == PRIVATE_AT_FIRST)
		to_private(b->s.file, 0, LEN);
	if (how == PROTECTED_AT_FIRST)
		CHECK_OK(mprotect(b->hva, LEN, PROT_NONE));
	CHECK_OK(gmem_vm_set_slot(b->s.vm, &m));
	if (how == PRIVATE_AT_FIRST)
		to_shared(b->s.file, 0, LEN);
	if (how == PROTECTED_AT_FIRST)
		CHECK_OK(mprotect(b->hva, LEN, RW));
	if (m.flags) {
		m.flags = 0;
		CHECK_OK(gmem_vm_set_slot(b->s.vm, &m));
	}
}

TEST_TIMEOUT(served_and_not_shown_at_first, 120)
{
	for (size_t way = 0; way < HIDINGS * sizeof(ways) / sizeof(ways[0]); way++) {
		static struct both b;
		pthread_t t;

		set_up_without(&b, &ways[way / HIDINGS]);
		t = start_server(&b, 0);
		set_hidden(&b, (enum hidden)(way % HIDINGS));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 3);
		CHECK_EQ(run(&b.s, GUEST_sum, GPA, LEN / PG, PG), LEN / PG * (LEN / PG + 1) / 2);
		end_server(&b, t);
	}
}

/* What cannot be found out for want of a descriptor is not taken for "nobody". */
TEST(server_that_is_told_and_no_descriptors)
{
	struct rlimit old, few;
	static struct both b;
	pthread_t t;
	int fd;

	set_up_without(&b, &ways[0]);
	t = start_server(&b, UFFD_FEATURE_EVENT_REMAP);
	/* The file has its descriptor for guests from now on. */
	CHECK_OK(set_slot(b.s.vm, 7, 2 * GPA, PG, b.s.file, 0));
	CHECK_OK(del_slot(b.s.vm, 7));
	CHECK_OK(getrlimit(RLIMIT_NOFILE, &old));
	for (int left = 0; left < 4; left++) {
		fd = dup(0);
		CHECK_OK(fd);
		close(fd);
		few = old;
		few.rlim_cur = (rlim_t)fd + (rlim_t)left;
		CHECK_OK(setrlimit(RLIMIT_NOFILE, &few));
		fd = set_memories(&b, b.hva, b.s.file);
		CHECK_OK(setrlimit(RLIMIT_NOFILE, &old));
		CHECK(fd == -EMFILE || fd == -EOPNOTSUPP);
	}
	CHECK_EQ(fd, -EOPNOTSUPP);
	end_server(&b, t);
}

/* A part that cannot be had: the rest is not adopted for nothing. */
TEST(refused_and_left_alone)
{
	static struct both b;
	int fd = gmem_sys_memfd("gmem-test", 0);

	set_up_without(&b, &ways[0]);
	CHECK_OK(fd);
	CHECK_OK(ftruncate(fd, LEN));
	b.hva = map_memory(LEN, MAP_PRIVATE);
	set_hva_word(&b, 0, 5);
	CHECK(mmap(b.hva + LEN / 2, PG, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == b.hva + LEN / 2);
	CHECK_ERR(set_memories(&b, b.hva, b.s.file), -EOPNOTSUPP);
	/* Private memory is copied to a child that writes to it. */
	if (!fork()) {
		set_hva_word(&b, 0, 6);
		_exit(0);
	}
	CHECK(wait(NULL) > 0);
	CHECK_EQ(hva_word(&b, 0), 5);
	close(fd);
	munmap(b.hva, LEN);
	scene_tear_down(&b.s);
}

#include "tap_main.h"
