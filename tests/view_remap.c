/* SPDX-License-Identifier: MIT */
/* Views that are split, moved, grown and shrunk, and whose addresses the program uses for something else. */
#include "tap.h"

#include "file_util.h"
#include "sys/kvm.h"
#include "sys/maps.h"
#include "sys/uapi.h"
#include "view_util.h"

#define MANY 200000ull

#define RW (PROT_READ | PROT_WRITE)

static struct gmem_file *filled(uint64_t npages, uint32_t flags)
{
	struct gmem_file *file = file_of(npages, flags);

	catch_faults();
	for (uint64_t i = 0; i < npages; i++)
		*guest(file, i) = (char)(i + 1);
	return file;
}

/* Pages of [page, page + n) of the view read as they are; `private` has bits. */
static void check_pages(const struct gmem_view *view, uint64_t npages, uint64_t private)
{
	CHECK_EQ(gmem_view_len(view), view->len);
	for (uint64_t page = view->off / P; page < (view->off + view->len) / P; page++) {
		int want = page >= npages || private >> page & 1 ? BUS : (int)page + 1, got;

		got = look(page_of(view, page));
		if (got != want)
			FAIL("page %llu of the view at page %llu: %d, not %d", (unsigned long long)page,
			     (unsigned long long)(view->off / P), got, want);
	}
}

/* Room for n pages with nothing in it. */
static char *room_for(uint64_t n)
{
	char *at = mmap(NULL, n * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(at != MAP_FAILED);
	CHECK_EQ(munmap(at, n * P), 0);
	return at;
}

TEST(longer_than_the_file)
{
	struct gmem_file *file = filled(8, 0);
	struct gmem_view *view = view_of(file, 0, 20, RW), *past = view_of(file, 8, 2, PROT_READ);
	struct gmem_view *far = view_of(file, 1ull << 40, 1, RW);

	check_pages(view, 8, 0);
	check_pages(past, 8, 0);
	check_pages(far, 8, 0);
	convert(file, 2, 6, PRIVATE);
	check_pages(view, 8, 0xfc);
	check_pages(past, 8, 0xfc);
	gmem_view_unmap(past);
	past = view_of(file, 6, 4, PROT_READ);
	check_pages(past, 8, 0xfc);
	convert(file, 0, 8, 0);
	check_pages(view, 8, 0);
	check_pages(past, 8, 0);
	gmem_view_unmap(view);
	gmem_view_unmap(past);
	gmem_view_unmap(far);
	gmem_file_free(file);
}

/* The kernel's guest_memfd says what the answers are. */
TEST(answers_of_a_guest_memfd)
{
	static const struct {
		uint64_t off, len;
	} at[] = { { 0, 4 * P },
		   { 0, 8 * P },
		   { 4 * P, P },
		   { 64 * P, P },
		   { 1, P },
		   { 0, 0 },
		   { 1ull << 62, P },
		   { 1ull << 63, P },
		   { -P, P },
		   { -P, 2 * P },
		   { P, -P },
		   { 0, 1ull << 47 },
		   { 0, 1ull << 62 },
		   { INT64_MAX - P + 1, P },
		   { INT64_MAX - P + 1, 2 * P } };
	struct gmem_kvm_create_guest_memfd create = { .size = 4 * P };
	struct gmem_file *file[2];
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = -1, fd;

	if (kvm >= 0)
		vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_DEFAULT_VM);
	create.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	fd = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
	if (fd < 0)
		SKIP("kvm", "no guest_memfd that can be mapped: %s", strerror(errno));
	file[0] = file_of(4, 0);
	file[1] = file_of(4, GMEM_FILE_NO_MMAP);
	for (int flags = 0; flags < 2; flags++) {
		if (flags) {
			close(fd);
			create.flags = 0;
			fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
			CHECK(fd >= 0);
		}
		for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
			void *p = mmap(NULL, at[i].len, RW, MAP_SHARED, fd, (off_t)at[i].off);
			int kernel = p == MAP_FAILED ? -errno : 0, ours;
			struct gmem_view *view = NULL;

			ours = gmem_view_map(file[flags], at[i].off, at[i].len, RW, &view);
			if (ours != kernel)
				FAIL("off 0x%llx, len 0x%llx, flags %d: %d, not %d", (unsigned long long)at[i].off,
				     (unsigned long long)at[i].len, flags, ours, kernel);
			if (!kernel)
				munmap(p, at[i].len);
			gmem_view_unmap(view);
		}
	}
	gmem_file_free(file[0]);
	gmem_file_free(file[1]);
	close(fd);
	close(vm);
	close(kvm);
}

TEST(never_mapped)
{
	struct gmem_file *file = file_of(4, GMEM_FILE_NO_MMAP);
	struct gmem_view *view;
	char byte = 'x';

	CHECK_ERR(gmem_view_map(file, 0, P, PROT_READ, &view), -ENODEV);
	CHECK_ERR(gmem_view_map(file, 0, 0, PROT_READ, &view), -EINVAL);
	CHECK_OK(gmem_file_write(file, 5, &byte, 1));
	convert(file, 0, 4, PRIVATE);
	gmem_file_free(file);
}

TEST(split)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *a = view_of(file, 2, 12, RW), *b, *c;

	convert(file, 4, 2, PRIVATE);
	b = (void *)1;
	CHECK_ERR(gmem_view_split(a, 0, &b), -EINVAL);
	CHECK_ERR(gmem_view_split(a, 1, &b), -EINVAL);
	CHECK_ERR(gmem_view_split(a, 12 * P, &b), -EINVAL);
	CHECK(b == (void *)1);
	CHECK_OK(gmem_view_split(a, 3 * P, &b));
	CHECK_OK(gmem_view_split(b, 4 * P, &c));
	CHECK(gmem_view_len(a) == 3 * P && gmem_view_len(b) == 4 * P && gmem_view_len(c) == 5 * P);
	CHECK((char *)gmem_view_addr(b) == (char *)gmem_view_addr(a) + 3 * P);
	for (int i = 0; i < 3; i++) {
		check_pages(a, 16, 0x30);
		check_pages(b, 16, 0x30);
		check_pages(c, 16, 0x30);
		convert(file, 2, 12, 0);
		check_pages(b, 16, 0);
		convert(file, 4, 2, PRIVATE);
	}
	/* Whoever goes first, the registration of the others stays. */
	gmem_view_unmap(a);
	convert(file, 0, 16, PRIVATE);
	check_pages(b, 16, 0xffff);
	check_pages(c, 16, 0xffff);
	gmem_view_unmap(b);
	convert(file, 0, 16, 0);
	convert(file, 10, 1, PRIVATE);
	check_pages(c, 16, 1 << 10);
	gmem_view_unmap(c);
	gmem_file_free(file);
}

TEST(remap_errors)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *view = view_of(file, 0, 4, RW), before = *view;
	char *at = gmem_view_addr(view);

	CHECK_ERR(gmem_view_remap(view, 0, NULL), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, P + 1, NULL), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, P, at + 1), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, P, at + P), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, 2 * P, at - P), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, 2 * P, (void *)-P), -EINVAL);
	CHECK_ERR(gmem_view_remap(view, 1ull << 62, NULL), -ENOMEM);
	CHECK(!memcmp(view, &before, sizeof(before)));
	check_pages(view, 16, 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(remap)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *view = view_of(file, 2, 6, RW);
	char *room = room_for(40), *at, *wall;

	convert(file, 3, 2, PRIVATE);
	convert(file, 9, 1, PRIVATE);
	/* To a place of its own choice, growing. */
	CHECK_OK(gmem_view_remap(view, 10 * P, room));
	CHECK(gmem_view_addr(view) == room && gmem_view_len(view) == 10 * P);
	check_pages(view, 16, 0x218);
	/* In place; past the end of the file. */
	CHECK_OK(gmem_view_remap(view, 18 * P, room));
	check_pages(view, 16, 0x218);
	CHECK_OK(gmem_view_remap(view, 20 * P, NULL));
	CHECK(gmem_view_addr(view) == room);
	convert(file, 8, 8, PRIVATE);
	check_pages(view, 16, 0xff18);
	convert(file, 0, 16, 0);
	check_pages(view, 16, 0);
	convert(file, 9, 1, PRIVATE);
	CHECK_OK(gmem_view_remap(view, 9 * P, NULL));
	CHECK(gmem_view_addr(view) == room);
	check_pages(view, 16, 0x200);
	CHECK_EQ(look(room + 9 * P), SEGV);
	/* What is behind it is somebody's. */
	wall = mmap(room + 9 * P, P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(wall == room + 9 * P);
	*wall = 'w';
	CHECK_ERR(gmem_view_remap(view, 10 * P, room), -ENOMEM);
	CHECK_EQ(gmem_view_len(view), 9 * P);
	check_pages(view, 16, 0x200);
	CHECK_OK(gmem_view_remap(view, 12 * P, NULL));
	at = gmem_view_addr(view);
	CHECK(at != room);
	CHECK_EQ(look(room), SEGV);
	CHECK_EQ(*wall, 'w');
	check_pages(view, 16, 0x200);
	convert(file, 4, 10, PRIVATE);
	check_pages(view, 16, 0x3ff0);
	/* Over whatever is there, and shrinking. */
	CHECK_OK(gmem_view_remap(view, 3 * P, room + 8 * P));
	CHECK_EQ(look(room + 9 * P), 4);
	check_pages(view, 16, 0x3ff0);
	CHECK_EQ(look(at), SEGV);
	gmem_view_unmap(view);
	CHECK_EQ(look(room + 9 * P), SEGV);
	gmem_file_free(file);
}

/* Private pages that nobody had marked a view of yet. */
TEST(remap_of_a_view_without_marks)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *view = view_of(file, 0, 4, PROT_READ);
	char *room = room_for(16);

	convert(file, 6, 2, PRIVATE);
	CHECK_OK(gmem_view_remap(view, 4 * P, room));
	CHECK_OK(gmem_view_remap(view, 12 * P, room));
	check_pages(view, 16, 0xc0);
	convert(file, 0, 3, PRIVATE);
	check_pages(view, 16, 0xc7);
	CHECK_EQ(put(page_of(view, 4), 1), SEGV);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- the program's own calls on a view's addresses */

TEST(parts_unmapped_and_mapped_over)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, RW);
	char *at = gmem_view_addr(view), *own;

	for (int round = 0; round < 2; round++) {
		/* Registered already, in the second round. */
		if (round)
			convert(file, 0, 16, 0);
		CHECK_EQ(munmap(at + 2 * P, P), 0);
		own = mmap(at + 5 * P, 3 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		CHECK(own == at + 5 * P);
		memset(own, 'o', 3 * P);
		CHECK_EQ(mprotect(at + 10 * P, P, PROT_READ), 0);
		convert(file, 0, 16, PRIVATE);
		for (uint64_t i = 0; i < 16; i++)
			CHECK_EQ(look(at + i * P), i == 2 ? SEGV : i >= 5 && i < 8 ? 'o' : BUS);
		convert(file, 6, 1, 0);
		convert(file, 9, 3, 0);
		for (uint64_t i = 0; i < 16; i++)
			CHECK_EQ(look(at + i * P), i == 2	    ? SEGV :
						   i >= 5 && i < 8  ? 'o' :
						   i >= 9 && i < 12 ? (int)i + 1 :
								      BUS);
		CHECK_EQ(put(at + 10 * P, 11), SEGV);
		convert(file, 6, 1, PRIVATE);
		CHECK_EQ(own[P], 'o');
		CHECK_ERR(gmem_view_remap(view, 20 * P, NULL), -EFAULT);
	}
	/* Of the file, at its place: the view's again, marks and all. */
	own = mmap(own, 3 * P, RW, MAP_SHARED | MAP_FIXED, gmem_file_fd(file), 5 * P);
	CHECK(own == at + 5 * P);
	convert(file, 0, 16, 0);
	CHECK_EQ(look(own), 6);
	convert(file, 4, 4, PRIVATE);
	CHECK_EQ(look(own), BUS);
	own = mmap(own, P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	*own = 'o';
	/* To cut off, and to unmap, leaves it alone. */
	CHECK_OK(gmem_view_remap(view, 4 * P, NULL));
	CHECK_EQ(*own, 'o');
	CHECK_EQ(look(at + 6 * P), SEGV);
	own = mmap(at + P, P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	*own = 'p';
	gmem_view_unmap(view);
	CHECK_EQ(*own, 'p');
	CHECK_EQ(look(at), SEGV);
	munmap(own, P);
	munmap(at + 5 * P, P);
	gmem_file_free(file);
}

TEST(part_moved_away_cannot_become_private)
{
	struct gmem_file *file = filled(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, RW);
	char *at = gmem_view_addr(view), *room = room_for(4);
	unsigned char private[16] = { 0 };
	uint64_t error_off = 7;

	if (tap_emulator())
		SKIP("mremap", "%s has mappings of its own", tap_emulator());
	convert(file, 6, 1, PRIVATE);
	private[6] = 1;
	CHECK(mremap(at + 4 * P, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	CHECK_EQ(look(room), 5);
	/* Its mark went with it. */
	CHECK_EQ(look(room + 2 * P), BUS);
	CHECK_ERR(gmem_file_set_attributes(file, 0, 16 * P, PRIVATE, &error_off), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "mapped elsewhere");
	CHECK_EQ(error_off, 0);
	check_sides(file, private, 16);
	CHECK_ERR(gmem_file_set_attributes(file, 7 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(look(at + i * P), i >= 4 && i < 8 ? SEGV : (int)i + 1);
	convert(file, 8, 8, PRIVATE);
	convert(file, 0, 4, PRIVATE);
	CHECK_ERR(gmem_view_remap(view, 16 * P, room_for(16)), -EFAULT);
	/* Nor when the view is gone. */
	gmem_view_unmap(view);
	CHECK_ERR(gmem_file_set_attributes(file, 4 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	CHECK_EQ(look(room), 5);
	CHECK_EQ(munmap(room, 4 * P), 0);
	convert(file, 0, 16, PRIVATE);
	gmem_file_free(file);
}

/* As many mappings as a process may have. */
static void map_until_full(char **ret, uint64_t *ret_len)
{
	char *p = mmap(NULL, MANY * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t i = 1;

	CHECK(p != MAP_FAILED);
	while (i < MANY && !mprotect(p + i * P, P, PROT_READ))
		i += 2;
	*ret = p;
	*ret_len = MANY * P;
	if (i >= MANY)
		SKIP("mappings", "more than %llu mappings are allowed here", (unsigned long long)MANY);
	/* The last one or two: at the end of a mapping that is there. */
	while (mmap(NULL, P, i++ % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED &&
	       i < 2 * MANY)
		;
}

TEST(a_part_that_cannot_be_unmapped_cannot_become_private)
{
	struct gmem_file *file = filled(8, 0);
	struct gmem_view *a = view_of(file, 0, 8, RW), *b, *c;
	uint64_t len;
	char *room;

	if (tap_emulator())
		SKIP("mappings", "%s counts its own", tap_emulator());
	convert(file, 0, 8, PRIVATE);
	convert(file, 0, 8, 0);
	CHECK_OK(gmem_view_split(a, 2 * P, &b));
	CHECK_OK(gmem_view_split(b, 2 * P, &c));
	map_until_full(&room, &len);
	/* One mapping of three views, which would become two. */
	gmem_view_unmap(b);
	munmap(room, len);
	if (look(page_of(a, 3)) == SEGV)
		SKIP("mappings", "there was one left");
	CHECK_ERR(gmem_file_set_attributes(file, 0, 8 * P, PRIVATE, NULL), -EOPNOTSUPP);
	CHECK_EQ(look(page_of(a, 3)), 4);
	convert(file, 4, 4, PRIVATE);
	CHECK_EQ(munmap(page_of(a, 2), 2 * P), 0);
	convert(file, 0, 8, PRIVATE);
	gmem_view_unmap(a);
	gmem_view_unmap(c);
	gmem_file_free(file);
}

TEST(whole_view_moved_away)
{
	struct gmem_file *file = filled(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, RW), *rest;
	char *room = room_for(8);

	if (tap_emulator())
		SKIP("mremap", "%s has mappings of its own", tap_emulator());
	convert(file, 0, 1, PRIVATE);
	CHECK(mremap(gmem_view_addr(view), 8 * P, 8 * P, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	CHECK_ERR(gmem_file_set_attributes(file, 3 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	CHECK_OK(gmem_view_split(view, 4 * P, &rest));
	CHECK_ERR(gmem_file_set_attributes(file, 5 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	convert(file, 0, 1, 0);
	/* A page too few, never one too many. */
	CHECK(look(room) == BUS || look(room) == 1);
	CHECK_EQ(look(room + P), 2);
	gmem_view_unmap(view);
	gmem_view_unmap(rest);
	CHECK_EQ(look(room + P), 2);
	munmap(room, 8 * P);
	gmem_file_free(file);
}

#ifndef GMEM_TEST_NO_UFFD
TEST(served_views_stay_as_they_are)
{
	struct gmem_file *file = filled(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, RW), *longer = view_of(file, 0, 9, RW), *other;
	struct gmem_view *holed = view_of(file, 0, 8, RW);
	struct gmem_uffd *uffd;

	need_markers();
	CHECK_OK(gmem_uffd_create(NULL, &uffd));
	CHECK_ERR(gmem_uffd_add_view(uffd, longer), -EINVAL);
	CHECK_EQ(munmap(page_of(holed, 3), P), 0);
	CHECK_ERR(gmem_uffd_add_view(uffd, holed), -EINVAL);
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	CHECK_ERR(gmem_view_split(view, P, &other), -EBUSY);
	CHECK_ERR(gmem_view_remap(view, P, NULL), -EBUSY);
	CHECK_ERR(gmem_view_remap(view, 8 * P, room_for(8)), -EBUSY);
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	gmem_view_unmap(longer);
	gmem_view_unmap(holed);
	gmem_file_free(file);
}

#endif

TEST(in_a_child)
{
	struct gmem_file *file = filled(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, RW), *other;
	pid_t pid = fork();
	char *at;

	CHECK(pid >= 0);
	if (!pid) {
		CHECK_ERR(gmem_view_split(view, P, &other), -EIO);
		CHECK_ERR(gmem_view_remap(view, P, NULL), -EIO);
		/* One of its own is the child's: what it looks at is its own address space. */
		CHECK_OK(gmem_view_map(file, 0, 4 * P, RW, &other));
		CHECK_EQ(munmap(gmem_view_addr(other), P), 0);
		CHECK_EQ(look(page_of(other, 1)), 2);
		CHECK_OK(gmem_view_remap(other, 2 * P, NULL));
		CHECK_EQ(look(page_of(other, 3)), SEGV);
		at = gmem_view_addr(other);
		gmem_view_unmap(other);
		CHECK_EQ(look(at + P), SEGV);
		_exit(0);
	}
	wait_ok(pid);
	check_pages(view, 8, 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}
