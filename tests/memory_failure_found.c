/* SPDX-License-Identifier: MIT */
/* Memory that the kernel finds bad: its answers are put on, and where it can be asked to, it gives them itself. */
#define TAP_NO_MAIN
#include "tap.h"

#include "memory_failure_wraps.h"
#include "pager_scene.h"
#include "poison_util.h"
#include "sys/memfd.h"
#include "sys/uapi.h"

uint64_t bad_off;
_Atomic int bad_reads, bad_writes, bad_copies;
int populate_errno, uffd_open_err;

static bool bad(_Atomic int *left, uint64_t off, uint64_t len)
{
	return atomic_load(left) && off < bad_off + P && off + len > bad_off && atomic_fetch_sub(left, 1) > 0;
}

int __real_gmem_pread_all(int fd, void *buf, size_t len, uint64_t off);
int __wrap_gmem_pread_all(int fd, void *buf, size_t len, uint64_t off);

int __wrap_gmem_pread_all(int fd, void *buf, size_t len, uint64_t off)
{
	return bad(&bad_reads, off, len) ? -EIO : __real_gmem_pread_all(fd, buf, len, off);
}

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	return bad(&bad_writes, off, len) ? -EIO : __real_gmem_pwrite_all(fd, buf, len, off);
}

ssize_t __real_gmem_sys_peek(void *to, const void *from, size_t len);
ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len);

ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len)
{
	if (bad_copies && atomic_fetch_sub(&bad_copies, 1) > 0)
		return -EFAULT;
	return __real_gmem_sys_peek(to, from, len);
}

int __real_madvise(void *addr, size_t len, int advice);
int __wrap_madvise(void *addr, size_t len, int advice);

int __wrap_madvise(void *addr, size_t len, int advice)
{
	if (advice == MADV_POPULATE_READ && populate_errno) {
		errno = populate_errno;
		return -1;
	}
	return __real_madvise(addr, len, advice);
}

int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	return uffd_open_err ? uffd_open_err : __real_gmem_sys_uffd_open(features, user_mode_only);
}

static struct gmem_view *scene(struct gmem_file **file, uint32_t flags)
{
	*file = file_on(GMEM_ENGINE_USER, flags);
	for (uint64_t i = 0; i < 8; i++)
		write_page(*file, i, 1 + (int)i);
	bad_off = 4 * P;
	return view_of(*file, 0, N, PROT_READ | PROT_WRITE);
}

static void end(struct gmem_file *file, struct gmem_view *view)
{
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* A read, or a write, finds it; everybody knows it from then on. */
TEST(found_by_the_library)
{
	for (int by_write = 0; by_write < 2; by_write++) {
		struct gmem_file *file;
		struct gmem_view *view = scene(&file, 0);
		char buf[4 * P] = { 0 };

		CHECK_EQ(peek(page_of(view, 4)), 5);
		*(by_write ? &bad_writes : &bad_reads) = INT32_MAX;
		if (by_write)
			CHECK_ERR(gmem_file_write(file, 2 * P, buf, 4 * P), -EHWPOISON);
		else
			CHECK_ERR(gmem_file_read(file, 2 * P, buf, 4 * P), -EHWPOISON);
		CHECK(strstr(gmem_last_error(), "0x4000"));
		bad_reads = bad_writes = 0;
		check_refused(file, 4);
		CHECK_EQ(peek(page_of(view, 4)), -1);
		CHECK_EQ(byte_of(file, 3), by_write ? 0 : 4);
		CHECK_EQ(byte_of(file, 5), 6);
		punch(file, 4, 1);
		CHECK_EQ(byte_of(file, 4), 0);
		CHECK_EQ(peek(page_of(view, 4)), 0);
		end(file, view);
	}
}

/* Whoever punches it in between has made it good. */
TEST(looked_at_twice)
{
	struct gmem_file *file;
	struct gmem_view *view = scene(&file, 0);

	bad_reads = 1;
	CHECK_EQ(byte_of(file, 4), 5);
	bad_writes = 1;
	write_page(file, 4, 50);
	CHECK_EQ(byte_of(file, 4), 50);
	CHECK_EQ(peek(page_of(view, 4)), 50);
	end(file, view);
}

/* An absent page whose memory a view has brought: the part that is not written over would be lost without a word. */
TEST(found_in_a_page_that_a_view_brought)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);

	CHECK_EQ(poke(page_of(view, 4) + 100, 1), 0);
	bad_off = 4 * P;
	bad_writes = INT32_MAX;
	CHECK_ERR(gmem_file_write(file, 4 * P + 8, "x", 1), -EHWPOISON);
	bad_writes = 0;
	check_refused(file, 4);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	end(file, view);
}

/* Bytes that are brought in whole lose nothing: they get other memory. */
TEST(found_where_a_source_is_put)
{
	struct src src = SRC(.id = 3, .nowait = true);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, 0, NULL);
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);

	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	bad_off = 4 * P;
	bad_writes = 1;
	CHECK(page_is(3, 4 * P, page_of(view, 4)));
	CHECK_EQ(bad_writes, 0);
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	for (uint64_t i = 0; i < N; i++)
		CHECK(page_is(3, i * P, page_of(view, i)));
	gmem_pager_free(pager);
	gmem_source_unref(source);
	end(file, view);
}

/* Strict mode reads every page that becomes private. The one that is bad is lost, the others are converted. */
TEST(found_by_a_strict_conversion)
{
	struct gmem_file *file;
	struct gmem_view *view = scene(&file, GMEM_FILE_STRICT);

	bad_reads = INT32_MAX;
	convert(file, 0, 8, PRIVATE);
	bad_reads = 0;
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_POISONED);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	convert(file, 0, 8, 0);
	for (uint64_t i = 0; i < 8; i++)
		CHECK_EQ(peek(page_of(view, i)), i == 4 ? -1 : 1 + (int)i);
	end(file, view);
}

TEST(found_by_populate)
{
	for (int present = 0; present < 2; present++) {
		struct gmem_file *file;
		struct gmem_view *view = scene(&file, 0);
		struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);

		CHECK_OK(set_slot(vm, 0, 0, N * P, file, 0));
		if (!present) {
			bad_off = 12 * P;
			CHECK_EQ(poke(page_of(view, 12), 1), 0);
		}
		convert(file, 0, N, PRIVATE);
		bad_reads = INT32_MAX;
		CHECK_ERR(gmem_populate(vm, bad_off / P, zeroes, 1, 0, NULL, NULL), -EHWPOISON);
		bad_reads = 0;
		CHECK_EQ(gmem_file_page_state(file, bad_off), GMEM_PAGE_POISONED);
		gmem_vm_free(vm);
		end(file, view);
	}
}

TEST(found_by_a_forked_child)
{
	struct gmem_file *file;
	struct gmem_view *view = scene(&file, 0);
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		bad_reads = INT32_MAX;
		CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EHWPOISON);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	/* It does not know the views, so it says nothing of it to others. */
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_UPTODATE);
	end(file, view);
}

/* Nor does a peer know them all: to everybody the page is as bad as the kernel says. */
TEST(found_by_a_peer)
{
	struct gmem_file *file, *peer;
	struct gmem_view *view = scene(&file, 0);

	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &peer));
	bad_reads = INT32_MAX;
	CHECK_ERR(gmem_file_read(peer, 4 * P, &(char){ 0 }, 1), -EHWPOISON);
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_UPTODATE);
	CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EHWPOISON);
	bad_reads = 0;
	check_refused(peer, 4);
	gmem_file_free(peer);
	end(file, view);
}

/* A guest_memfd's bytes are copied; what cannot be is asked about. */
TEST(found_in_a_guest_memfd)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_KERNEL, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);

	write_page(file, 4, 5);
	bad_copies = INT32_MAX;
	CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EIO);
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_UPTODATE);
	populate_errno = ENOMEM;
	CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EIO);
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_UPTODATE);
	populate_errno = EHWPOISON;
	CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EHWPOISON);
	populate_errno = 0;
	bad_copies = 0;
	check_refused(file, 4);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	punch(file, 4, 1);
	CHECK_EQ(byte_of(file, 4), 0);
	CHECK_EQ(peek(page_of(view, 4)), 0);
	end(file, view);
}

/* ---- by the kernel itself */

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

/*
 * Makes the page's memory fail. Whoever touches it gets a signal; on some kernels (Linux 6.12) the thread that asks
 * does, too: it has done what it was to do then.
 */
static void fail_memory(struct gmem_view *view, uint64_t page)
{
	if (!sigsetjmp(bus_jmp, 1) && madvise(page_of(view, page), P, MADV_HWPOISON))
		SKIP("hwpoison", "madvise(MADV_HWPOISON): %s", strerror(errno));
}

static void hardware(enum gmem_engine engine, bool by_write)
{
	struct gmem_file *file = file_on(engine, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *late;

	for (uint64_t i = 0; i < 8; i++)
		write_page(file, i, 1 + (int)i);
	CHECK_EQ(peek(page_of(view, 4)), 5);
	fail_memory(view, 4);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	if (by_write)
		CHECK_ERR(gmem_file_write(file, 4 * P + 1, "x", 1), -EHWPOISON);
	else
		CHECK_ERR(gmem_file_read(file, 4 * P, &(char){ 0 }, 1), -EHWPOISON);
	check_refused(file, 4);
	late = view_of(file, 0, N, PROT_READ);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	CHECK_EQ(peek(page_of(late, 4)), -1);
	CHECK_EQ(peek(page_of(view, 5)), 6);
	punch(file, 4, 1);
	CHECK_EQ(byte_of(file, 4), 0);
	CHECK_EQ(peek(page_of(view, 4)), 0);
	CHECK_EQ(peek(page_of(late, 4)), 0);
	gmem_view_unmap(late);
	end(file, view);
}

TEST(hardware_read_user)
{
	hardware(GMEM_ENGINE_USER, false);
}

TEST(hardware_write_user)
{
	hardware(GMEM_ENGINE_USER, true);
}

TEST(hardware_read_kernel)
{
	hardware(GMEM_ENGINE_KERNEL, false);
}

TEST(hardware_write_kernel)
{
	hardware(GMEM_ENGINE_KERNEL, true);
}
