/* SPDX-License-Identifier: MIT */
/* What a program's memory beside a file's may be, and what may become of it while a guest on KVM has it. */
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kvm_both.h"
#include "poison_util.h"

#include "sys/call.h"
#include "sys/hugepages.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

static unsigned int mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	int c;

	CHECK(maps);
	while ((c = fgetc(maps)) != EOF)
		n += c == '\n';
	fclose(maps);
	return n;
}

static void write_words(char *hva, uint64_t len, uint64_t from)
{
	for (uint64_t off = 0; off < len; off += PG)
		__atomic_store_n((uint64_t *)(hva + off + 8), from + off, __ATOMIC_RELAXED);
}

/* Both the program and the guest find them. */
static void check_words(struct both *b, uint64_t len, uint64_t from)
{
	for (uint64_t off = 0; off < len; off += PG) {
		CHECK_EQ(hva_word(b, off + 8), from + off);
		CHECK_EQ(run(&b->s, GUEST_load8, GPA + off + 8), from + off);
	}
}

static void set_up_without(struct both *b, const struct scene_opts *o)
{
	scene_set_up(&b->s, o);
	CHECK_OK(del_slot(b->s.vm, 0));
}

/* Another process's file, a disk's: shared memory that userfaultfd does not take. */
static int disk_file(uint64_t len)
{
	char path[] = "/var/tmp/gmem-test-XXXXXX";
	int fd = mkstemp(path);

	CHECK_OK(fd);
	unlink(path);
	CHECK_OK(ftruncate(fd, (off_t)len));
	return fd;
}

/* ---- what cannot be had */

/* Of pages of 2 MiB a second mapping is of 2 MiB too, whatever is asked for. */
TEST(huge_pages)
{
	static struct both b;
	unsigned int before;
	char *place;

	set_up_without(&b, &ways[0]);
	place = mmap(NULL, 2 * GMEM_HUGE_SIZE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (place == MAP_FAILED)
		SKIP("hugetlb", "MAP_HUGETLB: %s", strerror(errno));
	before = mappings();
	for (uint64_t off = 0; off < 2 * PG; off += PG) {
		CHECK_ERR(set_memories(&b, place + off, b.s.file), -EOPNOTSUPP);
		CHECK_EQ(mappings(), before);
	}
	munmap(place, 2 * GMEM_HUGE_SIZE);
	scene_tear_down(&b.s);
}

/* A slot of the program's memory alone is KVM's, and a bitmap cannot come with a move either. */
TEST(bitmap_with_a_move)
{
	static uint64_t bitmap[LEN / PG / 64] = { ~0ull };
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = LEN };
	static struct both b;

	set_up_without(&b, &ways[0]);
	b.hva = map_memory(LEN, MAP_SHARED);
	m.hva = b.hva;
	CHECK_OK(gmem_vm_set_slot(b.s.vm, &m));
	m.gpa = GPA + LEN;
	m.flags = GMEM_SLOT_USERFAULT;
	m.userfault_bitmap = bitmap;
	CHECK_ERR(gmem_vm_set_slot(b.s.vm, &m), -EOPNOTSUPP);
	CHECK_EQ(run(&b.s, GUEST_load8, GPA), 0);
	scene_tear_down(&b.s);
	munmap(b.hva, LEN);
}

/* ---- what is out of reach */

TEST(nothing_there_is_a_memory_fault)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_SHARED);
		munmap(b.hva + PG, PG);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		run_err(&b.s, -EFAULT, GUEST_load8, GPA + PG);
		check_fault(&b.s, GPA + PG, 0);
		CHECK_ERR(go_on(&b.s), -EFAULT);
		check_fault(&b.s, GPA + PG, 0);
		CHECK(mmap(b.hva + PG, PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == b.hva + PG);
		set_hva_word(&b, PG, 5);
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 5);
		munmap(b.hva, LEN);
	}
}

/* What could not be read when the slot was set was not shown: it is, when it can be. */
TEST(protected_at_first)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_SHARED);
		set_hva_word(&b, 2 * PG, 5);
		CHECK_OK(mprotect(b.hva + PG, 2 * PG, PROT_NONE));
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		run(&b.s, GUEST_store8, GPA, 4);
		run_err(&b.s, -EFAULT, GUEST_load8, GPA + 2 * PG);
		check_fault(&b.s, GPA + 2 * PG, 0);
		CHECK_OK(mprotect(b.hva + PG, 2 * PG, PROT_READ));
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 5);
		munmap(b.hva, LEN);
	}
}

static _Atomic bool stopped;

static void *tell_to_stop(void *arg)
{
	struct scene *s = arg;

	/* It may be told before it goes in. */
	while (!atomic_load(&stopped)) {
		usleep(50000);
		gmem_vcpu_cancel(s->vcpu);
	}
	return NULL;
}

/*
 * At memory that is mapped and cannot be had. KVM says -EFAULT, and not where; or, with interrupt controllers of its
 * own, it goes on asking for the page, and the guest has to be told to come out.
 */
static void run_at_nothing(struct scene *s, uint64_t gpa)
{
	pthread_t t;
	int err;

	atomic_store(&stopped, false);
	t = start(tell_to_stop, s);
	begin(s, GUEST_store8, gpa, 3);
	err = go_on(s);
	atomic_store(&stopped, true);
	join(t);
	CHECK(err == -EFAULT || err == -EINTR);
	if (exit_of(s->vcpu).reason != GMEM_EXIT_NONE)
		check_fault(s, gpa, 0);
}

/* The program's file gets shorter under its guest, and longer. */
TEST(truncated)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		int err, fd = gmem_sys_memfd("gmem-test", 0);

		CHECK_OK(fd);
		CHECK_OK(ftruncate(fd, LEN));
		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = mmap(NULL, LEN, RW, MAP_SHARED, fd, 0);
		CHECK(b.hva != MAP_FAILED);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		run(&b.s, GUEST_touch, GPA, LEN / PG, PG, 1);
		CHECK_OK(ftruncate(fd, 4 * PG));
		CHECK_EQ(run(&b.s, GUEST_sum, GPA, 4, PG), 10);
		run_at_nothing(&b.s, GPA + 5 * PG);
		CHECK_OK(ftruncate(fd, LEN));
		while ((err = go_on(&b.s)) == -EINTR)
			;
		CHECK_OK(err);
		CHECK_EQ(hva_word(&b, 5 * PG), 3);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 4 * PG), 0);
		/* A hole. */
		CHECK_OK(madvise(b.hva, PG, MADV_REMOVE));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA), 0);
		CHECK_OK(madvise(b.hva + PG, PG, MADV_DONTNEED));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 2);
		close(fd);
		munmap(b.hva, LEN);
	}
}

/* A guest keeps what it was shown. */
TEST(unmapped_and_mapped_over)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		run(&b.s, GUEST_touch, GPA, 8, PG, 1);
		munmap(b.hva, 2 * PG);
		CHECK(mmap(b.hva + 2 * PG, PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		CHECK(mmap(b.hva + 3 * PG, PG, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		if (ways[way_].mode == GUEST_USER)
			CHECK_EQ(run(&b.s, GUEST_sum, GPA, 8, PG), 36);
		/* From now on it is what is there now. */
		to_private(b.s.file, 0, 4 * PG);
		to_shared(b.s.file, 0, 4 * PG);
		set_hva_word(&b, 2 * PG, 9);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 9);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 4 * PG), 5);
		run_err(&b.s, -EFAULT, GUEST_load8, GPA);
		check_fault(&b.s, GPA, 0);
		CHECK(mmap(b.hva, PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 0);
		/* Private memory is not adopted any more. */
		begin(&b.s, GUEST_load8, GPA + 3 * PG);
		if (ways[way_].mode == GUEST_USER)
			CHECK_ERR(gmem_vcpu_run(b.s.vcpu), -EOPNOTSUPP);
	}
}

/* A page that is lost, as its server says. */
TEST(page_that_is_lost)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		int uffd = gmem_sys_uffd_open(UFFD_FEATURE_POISON, NULL);
		uint64_t done;

		if (uffd < 0)
			SKIP("uffd", "no userfaultfd that serves system calls");
		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_SHARED);
		set_hva_word(&b, 2 * PG, 5);
		CHECK_OK(gmem_sys_uffd_register(uffd, (uintptr_t)b.hva, LEN, GMEM_SYS_UFFD_MISSING));
		CHECK_OK(gmem_sys_uffd_poison(uffd, (uintptr_t)b.hva + PG, PG, true, &done));
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 5);
		run_err(&b.s, -EHWPOISON, GUEST_load8, GPA + PG);
		check_fault(&b.s, GPA + PG, 0);
		CHECK_ERR(go_on(&b.s), -EHWPOISON);
		close(uffd);
		CHECK_OK(madvise(b.hva + PG, PG, MADV_DONTNEED));
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 0);
		munmap(b.hva, LEN);
	}
}

/* ---- which private memory */

TEST(memory_of_many_kinds)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		int fd = disk_file(LEN);

		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_PRIVATE);
		write_words(b.hva, LEN, 1);
		/* Some in one's own memory, some of it shared, some advised, some locked, some in a file. */
		CHECK(mmap(b.hva + 3 * PG, 2 * PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		CHECK(mmap(b.hva + 9 * PG, 3 * PG, RW, MAP_SHARED | MAP_FIXED, fd, PG) != MAP_FAILED);
		CHECK_OK(madvise(b.hva + 5 * PG, PG, MADV_DONTFORK));
		CHECK_OK(madvise(b.hva + 16 * PG, PG, MADV_WIPEONFORK));
		CHECK_OK(madvise(b.hva + 20 * PG, PG, MADV_NOHUGEPAGE));
		CHECK_OK(mlock(b.hva + 24 * PG, 2 * PG));
		write_words(b.hva, LEN, 1);
		CHECK_OK(mprotect(b.hva + 28 * PG, PG, PROT_READ));
		CHECK_OK(mprotect(b.hva + 29 * PG, PG, RW | PROT_EXEC));
		munmap(b.hva + 40 * PG, PG);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		for (uint64_t off = 0; off < LEN; off += PG) {
			if (off == 40 * PG)
				continue;
			CHECK_EQ(hva_word(&b, off + 8), 1 + off);
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + off + 8), 1 + off);
			if (off == 28 * PG)
				continue;
			run(&b.s, GUEST_store8, GPA + off, 2 + off);
			CHECK_EQ(hva_word(&b, off), 2 + off);
			set_hva_word(&b, off, 3 + off);
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + off), 3 + off);
		}
		close(fd);
		munmap(b.hva, LEN);
	}
}

/* Memory of the stack, and of the heap, which goes on being that. */
TEST(stack_and_heap)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		char stack[(LEN / PG + 1) * PG], *first = stack + (-(uintptr_t)stack & (PG - 1)), *brk = sbrk(0);

		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = first;
		write_words(b.hva, LEN, 1);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		check_words(&b, LEN, 1);
		CHECK_OK(del_slot(b.s.vm, 0));
		write_words(b.hva, LEN, 5);
		CHECK(sbrk(4 * LEN) == brk);
		b.hva = brk + (-(uintptr_t)brk & (PG - 1)) + LEN;
		write_words(b.hva, LEN, 9);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		check_words(&b, LEN, 9);
		CHECK_OK(del_slot(b.s.vm, 0));
		for (uint64_t off = 0; off < LEN; off += PG)
			CHECK_EQ(*(uint64_t *)(first + off + 8), 5 + off);
		CHECK(mmap(first, LEN, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == first);
		CHECK(mmap(b.hva, LEN, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == b.hva);
	}
}

/* Across large pages, from the middle of one to the middle of another. */
TEST(large_pages)
{
	struct scene_opts o = ways[0];
	static struct both b;
	char *place;

	o.len = 5 * GMEM_HUGE_SIZE;
	set_up_without(&b, &o);
	place = map_memory(8 * GMEM_HUGE_SIZE, MAP_PRIVATE);
	(void)madvise(place, 8 * GMEM_HUGE_SIZE, MADV_HUGEPAGE);
	write_words(place, 8 * GMEM_HUGE_SIZE, 1);
	b.hva = place + GMEM_HUGE_SIZE + 7 * PG;
	CHECK_OK(set_memories(&b, b.hva, b.s.file));
	for (uint64_t off = 0; off < 8 * GMEM_HUGE_SIZE; off += PG)
		CHECK_EQ(*(uint64_t *)(place + off + 8), 1 + off);
	for (uint64_t off = 0; off < o.len; off += 97 * PG)
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + off + 8), 1 + off + GMEM_HUGE_SIZE + 7 * PG);
	scene_tear_down(&b.s);
	munmap(place, 8 * GMEM_HUGE_SIZE);
}

/* A child that was there before has what there was then; one that comes later shares it, and has no guest's memory. */
TEST(children)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		int to[2], status;
		pid_t pid;

		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_PRIVATE);
		write_words(b.hva, LEN, 1);
		CHECK_OK(pipe2(to, O_CLOEXEC));
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			char c;
			bool good = read(to[0], &c, 1) == 1;

			for (uint64_t off = 0; off < LEN; off += PG)
				good &= hva_word(&b, off + 8) == 1 + off;
			_exit(!good);
		}
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		run(&b.s, GUEST_touch, GPA + 8, LEN / PG, PG, 7);
		CHECK_EQ(write(to[1], "", 1), 1);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			bool good = hva_word(&b, 8) == 7;

			set_hva_word(&b, 16, 5);
			_exit(!good);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 16), 5);
		to_private(b.s.file, 0, LEN);
		to_shared(b.s.file, 0, LEN);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 16), 5);
		close(to[0]);
		close(to[1]);
		munmap(b.hva, LEN);
	}
}

/* ---- nothing is left behind */

static void count_fd(int fd, void *opaque)
{
	(void)fd;
	(*(unsigned int *)opaque)++;
}

TEST_TIMEOUT(nothing_is_left, 120)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		unsigned int maps = 0, fds = 0;

		for (int i = 0; i < 60; i++) {
			unsigned int now = 0;

			CHECK_OK(del_slot(b.s.vm, 0));
			tap_each_number("/proc/self/fd", count_fd, &now);
			if (i == 2) {
				maps = mappings();
				fds = now;
			}
			if (i > 2)
				CHECK_EQ(now, fds);
			/* A sanitizer has its own, some more now and then. */
			CHECK(i <= 2 || mappings() < maps + 20);
			CHECK_OK(set_memories(&b, b.hva, b.s.file));
			for (uint64_t off = 0; off < LEN; off += 4 * PG) {
				to_private(b.s.file, off, (1 + (uint64_t)i % 3) * PG);
				if (ways[way_].type != GMEM_VM_DEFAULT)
					run(&b.s, GUEST_store8, GPA + off, 1);
				to_shared(b.s.file, off, PG);
				run(&b.s, GUEST_store8, GPA + off, 1);
			}
			to_shared(b.s.file, 0, LEN);
		}
	}
}

#include "tap_main.h"
