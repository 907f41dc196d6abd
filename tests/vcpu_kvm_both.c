/* SPDX-License-Identifier: MIT */
/* Guests on KVM in slots of two memories: the file's where a page is private, the program's where it is shared. */
#include "kvm_both.h"

#include "sys/memfd.h"
#include "sys/uffd.h"

TEST(shared_pages_are_the_programs)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		set_hva_word(&b, 2 * PG, 5);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 5);
		run(&b.s, GUEST_store8, GPA + 3 * PG - 4, 0x1122334455667788);
		CHECK_EQ(hva_word(&b, 3 * PG) & 0xffffffff, 0x11223344);
		CHECK_EQ(run(&b.s, GUEST_touch, GPA, b.s.len / PG, PG, 100), b.s.len / PG);
		for (uint64_t off = 0; off < b.s.len; off += PG)
			CHECK_EQ(hva_word(&b, off), 100 + off / PG);
		/* The file has none of it. */
		CHECK_EQ(private_word(&b, 2 * PG), 0);
		CHECK_EQ(gmem_file_page_state(b.s.file, PG), GMEM_PAGE_ABSENT);
	}
}

/* There and back, while each side keeps its bytes. */
TEST(each_side_keeps_its_bytes)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		bool protected = ways[way_].type == GMEM_VM_SW_PROTECTED;

		run(&b.s, GUEST_touch, GPA, 8, PG, 1);
		for (int i = 0; i < 3; i++) {
			to_private(b.s.file, 2 * PG, 3 * PG);
			if (protected) {
				CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), i ? 71 : 0);
				run(&b.s, GUEST_touch, GPA + 2 * PG, 3, PG, 71);
				CHECK_EQ(run(&b.s, GUEST_sum, GPA, 8, PG), 1 + 2 + 71 + 72 + 73 + 6 + 7 + 8);
			} else {
				begin(&b.s, GUEST_load8, GPA + 4 * PG + 8);
				CHECK_ERR(go_on(&b.s), -EFAULT);
				check_fault(&b.s, GPA + 4 * PG, 0);
				to_shared(b.s.file, 4 * PG, PG);
				CHECK_OK(go_on(&b.s));
				CHECK_EQ(run(&b.s, GUEST_load8, GPA + 5 * PG), 6);
			}
			CHECK_EQ(hva_word(&b, 2 * PG), 3);
			to_shared(b.s.file, 2 * PG, 3 * PG);
			CHECK_EQ(run(&b.s, GUEST_sum, GPA, 8, PG), 36);
		}
		if (protected)
			CHECK_EQ(private_word(&b, 3 * PG), 72);
	}
}

TEST(private_before_the_slot_is_set)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		CHECK_OK(del_slot(b.s.vm, 0));
		set_hva_word(&b, PG, 7);
		to_private(b.s.file, 0, PG);
		to_private(b.s.file, 5 * PG, PG);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 7);
		if (ways[way_].type == GMEM_VM_DEFAULT) {
			run_err(&b.s, -EFAULT, GUEST_store8, GPA + 5 * PG, 9);
			check_fault(&b.s, GPA + 5 * PG, 0);
			to_shared(b.s.file, 5 * PG, PG);
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(hva_word(&b, 5 * PG), 9);
		} else {
			run(&b.s, GUEST_store8, GPA + 5 * PG, 9);
			CHECK_EQ(hva_word(&b, 5 * PG), 0);
			CHECK_EQ(private_word(&b, 5 * PG), 9);
		}
	}
}

/* ---- what kind of memory */

TEST(private_anonymous_memory_is_adopted)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_PRIVATE)
	{
		CHECK_OK(del_slot(b.s.vm, 0));
		munmap(b.hva, b.s.len);
		b.hva = map_memory(b.s.len, MAP_PRIVATE);
		for (uint64_t off = 0; off < b.s.len; off += 3 * PG)
			set_hva_word(&b, off + 8, off + 1);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		for (uint64_t off = 0; off < b.s.len; off += PG) {
			CHECK_EQ(hva_word(&b, off + 8), off % (3 * PG) ? 0 : off + 1);
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + off + 8), off % (3 * PG) ? 0 : off + 1);
		}
		run(&b.s, GUEST_store8, GPA + PG, 77);
		CHECK_EQ(hva_word(&b, PG), 77);
		set_hva_word(&b, PG, 78);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 78);
		to_private(b.s.file, PG, PG);
		to_shared(b.s.file, PG, PG);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 78);
	}
}

/* Who touches memory that is being adopted finds it as it was, and writes to what it becomes. */
static struct toucher {
	char *hva;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
} toucher;

/* To a sanitizer, who maps memory anew has written to all of it. */
__attribute__((no_sanitize("thread"))) static void *touch_all(void *arg)
{
	uint64_t n = 0;

	(void)arg;
	while (!atomic_load(&toucher.stop)) {
		n++;
		for (uint64_t off = 0; off < LEN; off += PG) {
			uint64_t *word = (uint64_t *)(toucher.hva + off + 16);

			CHECK_EQ(__atomic_load_n(word, __ATOMIC_RELAXED), n - 1);
			__atomic_store_n(word, n, __ATOMIC_RELAXED);
		}
		atomic_store(&toucher.rounds, n);
	}
	return NULL;
}

TEST_TIMEOUT(adopted_under_a_writer, 120)
{
	static struct both b;

	scene_set_up(&b.s, &ways[0]);
	for (int i = 0; i < 200; i++) {
		uint64_t before;
		pthread_t t;

		CHECK_OK(del_slot(b.s.vm, 0));
		toucher = (struct toucher){ .hva = map_memory(LEN, MAP_PRIVATE) };
		t = start(touch_all, NULL);
		while (!atomic_load(&toucher.rounds))
			sched_yield();
		CHECK_OK(set_memories(&b, toucher.hva, b.s.file));
		before = atomic_load(&toucher.rounds);
		while (atomic_load(&toucher.rounds) < before + 2)
			sched_yield();
		atomic_store(&toucher.stop, true);
		join(t);
		for (uint64_t off = 0; off < LEN; off += PG)
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + off + 16), atomic_load(&toucher.rounds));
		munmap(toucher.hva, LEN);
	}
	scene_tear_down(&b.s);
}

/* hva is a view of the file itself: one memory. */
TEST(in_place)
{
	static struct both b;

	EACH_WAY(&b.s)
	{
		struct gmem_view *view;

		CHECK_OK(gmem_view_map(b.s.file, 0, LEN, RW, &view));
		b.hva = gmem_view_addr(view);
		CHECK_OK(del_slot(b.s.vm, 0));
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		set_hva_word(&b, PG, 5);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 5);
		to_private(b.s.file, PG, PG);
		if (ways[way_].type == GMEM_VM_DEFAULT) {
			run_err(&b.s, -EFAULT, GUEST_load8, GPA + PG);
			check_fault(&b.s, GPA + PG, 0);
		} else {
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + PG), 5);
			run(&b.s, GUEST_store8, GPA + PG, 6);
		}
		to_shared(b.s.file, PG, PG);
		/* The load that came out. */
		if (ways[way_].type == GMEM_VM_DEFAULT)
			CHECK_OK(go_on(&b.s));
		run(&b.s, GUEST_store8, GPA + PG, 7);
		CHECK_EQ(hva_word(&b, PG), 7);
		gmem_view_unmap(view);
	}
}

TEST(not_to_be_had)
{
	struct gmem_file_opts huge = { .size = sizeof(huge), .flags = GMEM_FILE_HUGETLB };
	struct gmem_file *other;
	static struct both b;
	struct gmem_view *view;
	int fd;

	scene_set_up(&b.s, &ways[0]);
	CHECK_OK(del_slot(b.s.vm, 0));
	/* The file, from elsewhere on. */
	CHECK_OK(gmem_file_create(2 * LEN, NULL, &other));
	CHECK_OK(gmem_view_map(other, PG, LEN, RW, &view));
	CHECK_ERR(set_memories(&b, gmem_view_addr(view), other), -EOPNOTSUPP);
	gmem_view_unmap(view);
	/* A part of it. */
	CHECK_OK(gmem_view_map(other, 0, LEN, RW, &view));
	b.hva = gmem_view_addr(view);
	munmap(b.hva, PG);
	CHECK_ERR(set_memories(&b, b.hva, other), -EOPNOTSUPP);
	gmem_view_unmap(view);
	gmem_file_free(other);
	/* A private mapping of a file. */
	fd = gmem_memfd_create("gmem-test", LEN);
	CHECK_OK(fd);
	b.hva = mmap(NULL, LEN, RW, MAP_PRIVATE, fd, 0);
	CHECK(b.hva != MAP_FAILED);
	CHECK_ERR(set_memories(&b, b.hva, b.s.file), -EOPNOTSUPP);
	munmap(b.hva, LEN);
	close(fd);
	/* Private memory that somebody serves. */
	b.hva = map_memory(LEN, MAP_PRIVATE);
	fd = gmem_sys_uffd_open(0, &(bool){ false });
	CHECK_OK(fd);
	CHECK_OK(gmem_sys_uffd_register(fd, (uintptr_t)b.hva, LEN, GMEM_SYS_UFFD_MISSING));
	CHECK_ERR(set_memories(&b, b.hva, b.s.file), -EBUSY);
	close(fd);
	CHECK_OK(set_memories(&b, b.hva, b.s.file));
	CHECK_OK(del_slot(b.s.vm, 0));
	munmap(b.hva, LEN);
	if (!gmem_file_create(2 << 20, &huge, &other)) {
		b.hva = map_memory(2 << 20, MAP_SHARED);
		CHECK_ERR(set_memories(&b, b.hva, other), -EOPNOTSUPP);
		munmap(b.hva, 2 << 20);
		gmem_file_free(other);
	}
	scene_tear_down(&b.s);
}

/* KVM asks for no memory there when the slot is set, nor does the library. */
TEST(nothing_there_at_first)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		CHECK_OK(del_slot(b.s.vm, 0));
		munmap(b.hva, b.s.len);
		/* Where the kernel puts nothing by itself, nor a sanitizer. */
		b.hva = (char *)(1ull << 28);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		run_err(&b.s, -EFAULT, GUEST_store8, GPA + PG, 5);
		CHECK(mmap(b.hva, b.s.len, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == b.hva);
		CHECK_OK(go_on(&b.s));
		CHECK_EQ(hva_word(&b, PG), 5);
	}
}

TEST(file_closed_first)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		run(&b.s, GUEST_store8, GPA + PG, 5);
		gmem_file_free(b.s.file);
		b.s.file = NULL;
		begin(&b.s, GUEST_load8, GPA + PG);
		if (ways[way_].type == GMEM_VM_DEFAULT) {
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(guest_result(&b.s.guest), 5);
		} else {
			CHECK_ERR(go_on(&b.s), -EFAULT);
			check_fault(&b.s, GPA + PG, 0);
		}
	}
}

/* ---- mappings run out */

/* As many mappings as the process may have, but for some. */
static char *use_up_mappings(uint64_t *len)
{
	uint64_t n = 0, room = 100000 * PG;
	char *p;

#ifdef __SANITIZE_THREAD__
	SKIP("limits", "a sanitizer needs mappings of its own");
#endif
	p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(p != MAP_FAILED);
	while (n < room / PG / 2 && !mprotect(p + (2 * n + 1) * PG, PG, PROT_READ))
		n++;
	if (n == room / PG / 2)
		SKIP("limits", "more than %llu mappings are allowed here", (unsigned long long)room / PG);
	/* Room for a few. */
	CHECK_OK(munmap(p, 12 * PG));
	*len = room;
	return p;
}

TEST_TIMEOUT(mappings_run_out, 120)
{
	static struct both b;
	uint64_t len;
	char *p;

	for (size_t way = 4; way < sizeof(ways) / sizeof(ways[0]); way++) {
		set_up_both(&b, &ways[way], MAP_SHARED);
		for (uint64_t off = 0; off < LEN; off += PG)
			set_hva_word(&b, off, off + 1);
		p = use_up_mappings(&len);
		for (int i = 0; i < 3; i++) {
			for (uint64_t off = 0; off < LEN; off += 2 * PG)
				to_private(b.s.file, off, PG);
			for (uint64_t off = 0; off < LEN; off += PG) {
				uint64_t want = off / PG % 2 ? off + 1 : i ? off + 2 : 0;

				CHECK_EQ(run(&b.s, GUEST_load8, GPA + off), want);
				if (off / PG % 2 == 0)
					run(&b.s, GUEST_store8, GPA + off, off + 2);
			}
			for (uint64_t off = 0; off < LEN; off += 4 * PG)
				to_shared(b.s.file, off, PG);
			for (uint64_t off = 0; off < LEN; off += PG)
				CHECK_EQ(run(&b.s, GUEST_load8, GPA + off), off / PG % 4 == 2 ? off + 2 : off + 1);
		}
		munmap(p, len);
		tear_down_both(&b);
	}
}

/* ---- memory of the program's alone, with a bitmap */

static void set_bitmap(struct scene *s, char *hva, uint32_t flags, const uint64_t *bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = s->len, .hva = hva };

	m.flags = flags;
	m.userfault_bitmap = bitmap;
	CHECK_OK(gmem_vm_set_slot(s->vm, &m));
}

static void clear_bit(uint64_t *bitmap, uint64_t page)
{
	__atomic_fetch_and(&bitmap[page / 64], ~(1ull << page % 64), __ATOMIC_RELEASE);
}

TEST(bitmap_of_the_programs_memory)
{
	static uint64_t bitmap[LEN / PG / 64 + 1], other[LEN / PG / 64 + 1];
	static struct both b;

	for (int private = 0; private < 2; private ++) {
		EACH_WAY(&b.s)
		{
			CHECK_OK(del_slot(b.s.vm, 0));
			b.hva = map_memory(LEN, private ? MAP_PRIVATE : MAP_SHARED);
			bitmap[0] = 1ull << 3 | 1ull << 4;
			set_bitmap(&b.s, b.hva, GMEM_SLOT_USERFAULT, bitmap);
			set_hva_word(&b, 3 * PG, 33);
			CHECK_EQ(run(&b.s, GUEST_load8, GPA + 2 * PG), 0);
			run_err(&b.s, -EFAULT, GUEST_load8, GPA + 3 * PG);
			check_fault(&b.s, GPA + 3 * PG, GMEM_EXIT_FLAG_USERFAULT);
			CHECK_ERR(go_on(&b.s), -EFAULT);
			clear_bit(bitmap, 3);
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(guest_result(&b.s.guest), 33);
			run_err(&b.s, -EFAULT, GUEST_store8, GPA + 4 * PG, 44);
			CHECK_EQ(hva_word(&b, 4 * PG), 0);
			clear_bit(bitmap, 4);
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(hva_word(&b, 4 * PG), 44);
			/* Another one, of pages that the guest has had; and none. */
			other[0] = 1ull << 4;
			set_bitmap(&b.s, b.hva, GMEM_SLOT_USERFAULT, other);
			run_err(&b.s, -EFAULT, GUEST_load8, GPA + 4 * PG);
			set_bitmap(&b.s, b.hva, 0, NULL);
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(guest_result(&b.s.guest), 44);
			CHECK_EQ(run(&b.s, GUEST_touch, GPA, LEN / PG, PG, 1), LEN / PG);
			CHECK_EQ(hva_word(&b, LEN - PG), LEN / PG);
			munmap(b.hva, LEN);
		}
	}
}

/* ---- lazily served */

static struct server {
	int uffd;
	char *hva;
	_Atomic bool stop;
	_Atomic uint64_t served;
} server;

/* Each word of a page is the page's number, from 1 on. */
static void *serve(void *arg)
{
	static uint64_t words[PG / 8];

	(void)arg;
	while (!atomic_load(&server.stop)) {
		struct uffd_msg msg;
		struct uffdio_copy copy;
		uint64_t at;

		if (gmem_sys_uffd_read(server.uffd, &msg, 1) < 1) {
			usleep(200);
			continue;
		}
		at = (msg.arg.pagefault.address & ~(PG - 1)) - (uint64_t)(uintptr_t)server.hva;
		for (uint64_t i = 0; i < PG / 8; i++)
			words[i] = at / PG + 1;
		copy = (struct uffdio_copy){ .dst = (uintptr_t)server.hva + at, .src = (uintptr_t)words, .len = PG };
		/* Before: who waits for the page goes on within it. */
		atomic_fetch_add(&server.served, 1);
		if (ioctl(server.uffd, UFFDIO_COPY, &copy))
			atomic_fetch_sub(&server.served, 1);
	}
	return NULL;
}

/* Nothing is shown to a guest that its server has not brought in. */
TEST(lazily_served)
{
	static struct both b;
	bool user_mode_only;

	EACH_WAY(&b.s)
	{
		pthread_t t;

		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(LEN, MAP_SHARED);
		server = (struct server){ .uffd = gmem_sys_uffd_open(0, &user_mode_only), .hva = b.hva };
		if (server.uffd < 0 || user_mode_only)
			SKIP("uffd", "no userfaultfd that serves system calls");
		CHECK_OK(gmem_sys_uffd_register(server.uffd, (uintptr_t)b.hva, LEN, GMEM_SYS_UFFD_MISSING));
		t = start(serve, NULL);
		CHECK_OK(set_memories(&b, b.hva, b.s.file));
		CHECK_EQ(atomic_load(&server.served), 0);
		CHECK_EQ(run(&b.s, GUEST_load8, GPA + 3 * PG + 8), 4);
		CHECK_EQ(atomic_load(&server.served), 1);
		run(&b.s, GUEST_store8, GPA + 9 * PG - 4, 0);
		CHECK_EQ(run(&b.s, GUEST_load4, GPA + 9 * PG + 4), 0);
		CHECK_EQ(run(&b.s, GUEST_load4, GPA + 9 * PG + 8), 10);
		to_private(b.s.file, 3 * PG, PG);
		to_shared(b.s.file, 3 * PG, PG);
		CHECK_EQ(run(&b.s, GUEST_sum, GPA + 16, LEN / PG, PG), LEN / PG * (LEN / PG + 1) / 2);
		CHECK_EQ(atomic_load(&server.served), LEN / PG);
		atomic_store(&server.stop, true);
		join(t);
		close(server.uffd);
		munmap(b.hva, LEN);
	}
}
