/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "view_util.h"

static struct gmem_file *new_file(uint64_t len)
{
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(len, NULL, &file));
	return file;
}

TEST(map_errors)
{
	struct gmem_file *file = new_file(16 * P);
	struct gmem_view *view = (void *)1;

	CHECK_ERR(gmem_view_map(file, 1, P, PROT_READ, &view), -EINVAL);
	CHECK_ERR(gmem_view_map(file, 0, 1, PROT_READ, &view), -EINVAL);
	CHECK_ERR(gmem_view_map(file, 0, 0, PROT_READ, &view), -EINVAL);
	CHECK_ERR(gmem_view_map(file, 0, P, PROT_EXEC, &view), -EINVAL);
	CHECK_ERR(gmem_view_map(file, 0, P, PROT_READ | 0x100, &view), -EINVAL);
	/* As mmap(2) has it: no such place in the address space; no such offset in any file. */
	CHECK_ERR(gmem_view_map(file, P, -P, PROT_READ, &view), -ENOMEM);
	CHECK_ERR(gmem_view_map(file, 0, 1ull << 62, PROT_READ, &view), -ENOMEM);
	CHECK_ERR(gmem_view_map(file, 1ull << 63, P, PROT_READ, &view), -EOVERFLOW);
	CHECK_ERR(gmem_view_map(file, -P, P, PROT_READ, &view), -EOVERFLOW);
	CHECK(view == (void *)1);
	gmem_file_free(file);
}

TEST(map_without_address_space)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	SKIP("limits", "a sanitizer reserves address space of its own");
#else
	struct gmem_file *file = new_file(1ull << 40);
	struct rlimit limit = { 1ull << 32, 1ull << 32 };
	struct gmem_view *view;

	if (tap_emulator())
		SKIP("limits", "%s does not pass RLIMIT_AS on", tap_emulator());
	CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	CHECK_ERR(gmem_view_map(file, 0, 1ull << 40, PROT_READ, &view), -ENOMEM);
	gmem_file_free(file);
#endif
}

TEST(views_show_the_file)
{
	struct gmem_file *file = new_file(16 * P);
	struct gmem_view *a, *b;
	char buf[8];

	CHECK_OK(gmem_view_map(file, 0, 16 * P, PROT_READ | PROT_WRITE, &a));
	CHECK_OK(gmem_view_map(file, 4 * P, 4 * P, PROT_READ, &b));
	CHECK_EQ(gmem_view_len(a), 16 * P);
	CHECK_EQ(gmem_view_len(b), 4 * P);
	strcpy((char *)gmem_view_addr(a) + 5 * P, "hello");
	CHECK_STR((char *)gmem_view_addr(b) + P, "hello");
	CHECK_OK(gmem_file_read(file, 5 * P, buf, 6));
	CHECK_STR(buf, "hello");
	/* Written by hand, it stays absent; its bytes are kept by a write beside them. */
	CHECK_EQ(gmem_file_page_state(file, 5 * P), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_file_write(file, 5 * P, "J", 1));
	CHECK_STR((char *)gmem_view_addr(b) + P, "Jello");
	CHECK_OK(gmem_file_punch(file, 5 * P, P));
	CHECK_EQ(((char *)gmem_view_addr(b))[P], 0);
	gmem_view_unmap(b);
	/* The memory lives as long as the view. */
	strcpy((char *)gmem_view_addr(a) + 7 * P, "later");
	gmem_file_free(file);
	CHECK_STR((char *)gmem_view_addr(a) + 7 * P, "later");
	gmem_view_unmap(a);
	gmem_view_unmap(NULL);
}

TEST(protection_holds)
{
	struct gmem_file *file = new_file(16 * P);
	struct gmem_view *view;
	int status;
	pid_t pid;

	CHECK_OK(gmem_view_map(file, 0, P, PROT_READ, &view));
	CHECK_EQ(*(volatile char *)gmem_view_addr(view), 0);
	/* The child has no such mapping at all: try here what is not allowed, through the kernel. */
	CHECK(read(0, gmem_view_addr(view), 1) <= 0);
	pid = fork();
	if (!pid) {
		struct gmem_view *own;

		signal(SIGSEGV, SIG_DFL);
		CHECK_OK(gmem_view_map(file, 0, P, PROT_READ, &own));
		*(volatile char *)gmem_view_addr(own) = 1;
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(a_child_does_not_inherit_a_view)
{
	struct gmem_file *file = new_file(16 * P);
	struct gmem_view *view;
	int status;
	pid_t pid;

	if (tap_emulator())
		SKIP("dontfork", "%s ignores MADV_DONTFORK", tap_emulator());
	CHECK_OK(gmem_view_map(file, 0, 16 * P, PROT_READ | PROT_WRITE, &view));
	*(volatile char *)gmem_view_addr(view) = 1;
	for (int write = 0; write < 2; write++) {
		pid = fork();
		if (!pid) {
			volatile char *p = gmem_view_addr(view);

			signal(SIGSEGV, SIG_DFL);
			if (write)
				*p = 2;
			_exit(*p == 100);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	}
	CHECK_EQ(*(volatile char *)gmem_view_addr(view), 1);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* Who unmaps a view by himself, and maps another, is given the same address. */
TEST(a_later_view_at_the_address_of_one)
{
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *a = view_of(file, 0, 16, PROT_READ | PROT_WRITE), *b;
	char *at = gmem_view_addr(a);

	catch_faults();
	for (int i = 0; i < 16; i++)
		at[i * (int)P] = (char)(i + 1);
	for (int round = 0; round < 2; round++) {
		CHECK_EQ(munmap(at + 4 * P, 8 * P), 0);
		b = view_of(file, 4, 4, PROT_READ | PROT_WRITE);
		CHECK_OK(gmem_view_remap(b, 4 * P, at + 4 * P));
		CHECK(gmem_view_addr(b) == at + 4 * P);
		convert(file, 2, 4, PRIVATE);
		for (uint64_t i = 0; i < 8; i++)
			CHECK_EQ(look(at + i * P), i >= 2 && i < 6 ? BUS : (int)i + 1);
		CHECK_EQ(look(at + 8 * P), SEGV);
		convert(file, 2, 4, 0);
		for (uint64_t i = 0; i < 8; i++)
			CHECK_EQ(look(at + i * P), (int)i + 1);
		CHECK_ERR(gmem_view_remap(a, 20 * P, NULL), -EFAULT);
		if (round) {
			gmem_view_unmap(b);
			CHECK_EQ(look(at + 4 * P), SEGV);
			CHECK_EQ(look(at + 3 * P), 4);
			gmem_view_unmap(a);
			break;
		}
		gmem_view_unmap(a);
		CHECK_EQ(look(at + 3 * P), SEGV);
		CHECK_EQ(look(at + 4 * P), 5);
		CHECK_EQ(look(at + 7 * P), 8);
		gmem_view_unmap(b);
		CHECK_EQ(look(at + 4 * P), SEGV);
		a = view_of(file, 0, 16, PROT_READ | PROT_WRITE);
		at = gmem_view_addr(a);
	}
	gmem_file_free(file);
}
