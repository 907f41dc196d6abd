/* SPDX-License-Identifier: MIT */
/* More cases of conversion in place: views, references, processes. Included by convert_cases.h. */
#ifndef GMEM_TESTS_CONVERT_VIEWS_H
#define GMEM_TESTS_CONVERT_VIEWS_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "convert_util.h"

TEST(every_view_keeps_the_host_out)
{
	static const uint64_t at[][2] = { { 0, 16 }, { 3, 1 }, { 2, 5 }, { 7, 9 }, { 4, 4 }, { 5, 3 } };
	unsigned char private[16] = { 0 }, byte[16];
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *views[6];

	for (int i = 0; i < 4; i++)
		views[i] = view_of(file, at[i][0], at[i][1], i == 2 ? PROT_READ : PROT_READ | PROT_WRITE);
	for (uint64_t i = 0; i < 16; i++)
		*page_of(views[0], i) = (char)(byte[i] = (unsigned char)(i + 1));
	convert(file, 3, 6, PRIVATE);
	memset(private + 3, 1, 6);
	/* Mapped later. */
	for (int i = 4; i < 6; i++)
		views[i] = view_of(file, at[i][0], at[i][1], PROT_READ);
	for (int i = 0; i < 6; i++)
		check_view(views[i], private, byte);
	convert(file, 5, 1, 0);
	private[5] = 0;
	for (int i = 0; i < 6; i++)
		check_view(views[i], private, byte);
	/* Those that go first, with their marks. */
	for (int i = 5; i > 0; i--)
		gmem_view_unmap(views[i]);
	check_view(views[0], private, byte);
	convert(file, 0, 16, 0);
	memset(private, 0, 16);
	check_view(views[0], private, byte);
	gmem_view_unmap(views[0]);
	gmem_file_free(file);
}

TEST(view_outlives_the_file)
{
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ | PROT_WRITE);

	*page_of(view, 1) = 1;
	convert(file, 2, 2, PRIVATE);
	gmem_file_free(file);
	CHECK_EQ(peek(page_of(view, 1)), 1);
	CHECK_EQ(peek(page_of(view, 2)), -1);
	gmem_view_unmap(view);
}

/* Locked, in part and whole; its protection changed in the middle. */
TEST(view_that_the_program_has_split)
{
	unsigned char private[16] = { 0 }, byte[16];
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ | PROT_WRITE);

	for (uint64_t i = 0; i < 16; i++)
		*page_of(view, i) = (char)(byte[i] = (unsigned char)(i + 1));
	for (int round = 0; round < 3; round++) {
		if (round == 0)
			CHECK_EQ(mlock(page_of(view, 3), 2 * P), 0);
		if (round == 1)
			CHECK_EQ(mprotect(page_of(view, 6), P, PROT_READ), 0);
		if (round == 2)
			CHECK_EQ(mlock(page_of(view, 0), 16 * P), 0);
		convert(file, 1, 14, PRIVATE);
		memset(private + 1, 1, 14);
		check_view(view, private, byte);
		convert(file, 4, 8, 0);
		memset(private + 4, 0, 8);
		check_view(view, private, byte);
		convert(file, 0, 16, 0);
		memset(private, 0, 16);
		check_view(view, private, byte);
	}
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(system_calls_answer_efault)
{
	struct gmem_file *file = file_of(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, PROT_READ | PROT_WRITE);
	char secret = 's', got = 0, *p = page_of(view, 2);
	struct iovec local = { .iov_base = &got, .iov_len = 1 }, remote = { .iov_base = p, .iov_len = 1 };
	int fds[2], zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	CHECK(zero >= 0);
	CHECK_EQ(pipe(fds), 0);
	convert(file, 2, 1, PRIVATE);
	*guest(file, 2) = secret;
	errno = 0;
	CHECK_EQ(write(fds[1], p, 1), -1);
	CHECK_EQ(errno, EFAULT);
	CHECK_EQ(read(zero, p, 1), -1);
	CHECK_EQ(errno, EFAULT);
	if (!tap_emulator()) {
		CHECK_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), -1);
		CHECK_EQ(errno, EFAULT);
		CHECK_EQ(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), -1);
		CHECK_EQ(errno, EFAULT);
	}
	CHECK_EQ(got, 0);
	CHECK_EQ(*guest(file, 2), secret);
	convert(file, 2, 1, 0);
	CHECK_EQ(write(fds[1], p, 1), 1);
	CHECK_EQ(read(zero, p, 1), 1);
	close(fds[0]);
	close(fds[1]);
	close(zero);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* What the kernel still holds of a page: the new byte shows, unless strict mode gave the page new memory. */
static void spliced_page(uint32_t flags, char want)
{
	struct gmem_file *file = file_of(200, flags);
	struct gmem_view *view = view_of(file, 0, 200, PROT_READ | PROT_WRITE);
	struct iovec iov = { .iov_base = page_of(view, 70), .iov_len = 1 };
	int fds[2];
	char got;

	for (uint64_t i = 0; i < 200; i++)
		*page_of(view, i) = 'o';
	CHECK_EQ(pipe(fds), 0);
	if (vmsplice(fds[1], &iov, 1, 0) != 1)
		SKIP("vmsplice", "vmsplice: %s", strerror(errno));
	convert(file, 2, 190, PRIVATE);
	CHECK_EQ(*guest(file, 70), 'o');
	*guest(file, 70) = 'n';
	CHECK_EQ(read(fds[0], &got, 1), 1);
	CHECK_EQ(got, want);
	close(fds[0]);
	close(fds[1]);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(spliced_page_shows_what_is_written_later)
{
	spliced_page(0, 'n');
}

TEST(spliced_page_shows_nothing_in_strict_mode)
{
	spliced_page(GMEM_FILE_STRICT, 'o');
}

TEST(strict_mode_keeps_bytes_and_holes)
{
	struct gmem_file *file = file_of(1000, GMEM_FILE_STRICT);
	uint64_t seed = tap_seed(), resident;
	struct gmem_file_counts c = { .size = sizeof(c) };
	unsigned char have[1000];
	static char page[P];

	for (uint64_t i = 0; i < 1000; i++) {
		/* Long runs of each, so that runs are longer than what is moved at once. */
		have[i] = tap_rand(&seed) % 16 ? (i ? have[i - 1] : 1) : tap_rand(&seed) & 1;
		if (i >= 500 && i < 700)
			have[i] = 1;
		fill_page(1, i * P, page);
		if (have[i])
			CHECK_OK(gmem_file_write(file, i * P, page, P));
	}
	CHECK_OK(gmem_file_query(file, &c));
	resident = c.resident;
	convert(file, 3, 990, PRIVATE);
	CHECK_OK(gmem_file_query(file, &c));
	CHECK_EQ(c.resident, resident);
	for (uint64_t i = 0; i < 1000; i++)
		CHECK_EQ(gmem_file_page_state(file, i * P), have[i] ? GMEM_PAGE_UPTODATE : GMEM_PAGE_ABSENT);
	convert(file, 0, 1000, 0);
	for (uint64_t i = 0; i < 1000; i++) {
		CHECK_OK(gmem_file_read(file, i * P, page, P));
		if (have[i] ? !page_is(1, i * P, page) : !page_is_zero(page))
			FAIL("page %llu is wrong", (unsigned long long)i);
	}
	gmem_file_free(file);
}

/* ---- other processes and objects */

static void child_finds(struct gmem_file *file)
{
	struct gmem_view *view = NULL;
	char buf[1] = { 0 };

	CHECK_ERR(gmem_file_set_attributes(file, 0, P, 0, NULL), -EIO);
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EIO);
	CHECK_ERR(gmem_file_pin(file, 4 * P, P), -EIO);
	CHECK_ERR(gmem_file_read(file, 2 * P, buf, 1), -EACCES);
	CHECK_ERR(gmem_file_write(file, 2 * P, "x", 1), -EIO);
	CHECK_ERR(gmem_view_map(file, 0, 8 * P, PROT_READ, &view), -EBUSY);
	CHECK(!view && !buf[0]);
	CHECK_OK(gmem_file_read(file, 4 * P, buf, 1));
	CHECK_EQ(buf[0], 4);
}

TEST(forked_child_sees_nothing)
{
	struct gmem_file *file = file_of(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, PROT_READ | PROT_WRITE);
	int status;
	pid_t pid;

	*page_of(view, 4) = 4;
	convert(file, 2, 1, PRIVATE);
	*guest(file, 2) = 's';
	pid = fork();
	if (!pid) {
		child_finds(file);
		_exit(0);
	}
	wait_ok(pid);
	for (uint64_t page = 2; page < 5 && !tap_emulator(); page += 2) {
		pid = fork();
		if (!pid) {
			signal(SIGSEGV, SIG_DFL);
			_exit(peek(page_of(view, page)) == -1 ? 0 : 1);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	}
	/* Nothing of that was the parent's. */
	CHECK_EQ(peek(page_of(view, 4)), 4);
	CHECK_EQ(peek(page_of(view, 2)), -1);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* The other way round: where a child has a view, nothing becomes private. */
TEST(forked_childs_view_excludes_private_pages)
{
	struct gmem_file *file = file_of(8, 0);
	pid_t pid = fork();

	if (!pid) {
		gmem_view_unmap(view_of(file, 0, 8, PROT_READ));
		_exit(0);
	}
	wait_ok(pid);
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EBUSY);
	CHECK_EQ(gmem_file_set_attributes(file, 0, P, 0, NULL), 0);
	gmem_file_free(file);
}

/* A keeper and its servers are no peers: none of them, or no private pages. */
TEST(keeper_or_private_pages)
{
	struct gmem_file *file = file_of(8, 0), *other = NULL;

	convert(file, 0, 1, PRIVATE);
	convert(file, 0, 1, 0);
	CHECK_ERR(gmem_file_open_kept(file->fd, file->state.fd, &other), -EBUSY);
	CHECK(!other);
	gmem_file_free(file);
	file = file_of(8, 0);
	CHECK_OK(gmem_file_open_kept(file->fd, file->state.fd, &other));
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EBUSY);
	CHECK_ERR(gmem_file_set_attributes(other, 0, P, PRIVATE, NULL), -EPERM);
	gmem_file_free(other);
	/* It stays so: the memory may be anywhere by now. */
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EBUSY);
	gmem_file_free(file);
}

/* ---- second stages */

struct stage {
	struct gmem_binding b;
	struct gmem_view *view;
	char log[200];
	bool fails;
};

static int stage_begin(struct gmem_binding *b, uint64_t off, uint64_t len, uint32_t sides)
{
	struct stage *s = (struct stage *)b;
	bool may_fail = sides & GMEM_SIDE_MAY_FAIL;
	size_t n = strlen(s->log);

	sides &= ~GMEM_SIDE_MAY_FAIL;
	/* What a guest can still reach here, no host thread reaches. */
	if (sides == GMEM_SIDE_SHARED)
		CHECK_EQ(peek(gmem_view_at(s->view, off)), -1);
	snprintf(s->log + n, sizeof(s->log) - n, "%d:%d+%d%s ", (int)sides, (int)(off / P), (int)(len / P),
		 gmem_file_private(b->file, off) ? "p" : "s");
	return may_fail && s->fails ? gmem_err(-ENOMEM, "injected") : 0;
}

static void stage_end(struct gmem_binding *b)
{
	struct stage *s = (struct stage *)b;
	size_t n = strlen(s->log);

	snprintf(s->log + n, sizeof(s->log) - n, "end%s ", gmem_file_private(b->file, b->off) ? "p" : "s");
}

TEST(second_stages_are_told)
{
	static const struct gmem_binding_ops ops = { .invalidate_begin = stage_begin, .invalidate_end = stage_end };
	struct gmem_file *file = file_of(16, 0);
	struct stage s = { .b = { .off = 4 * P, .len = 4 * P, .ops = &ops } }, t = s;

	s.view = view_of(file, 0, 16, PROT_READ | PROT_WRITE);
	CHECK_OK(gmem_file_bind(file, &s.b));
	CHECK_ERR(gmem_file_bind(file, &t.b), -EEXIST);
	convert(file, 0, 4, PRIVATE);
	convert(file, 8, 8, PRIVATE);
	CHECK_STR(s.log, "");
	convert(file, 2, 4, PRIVATE);
	CHECK_STR(s.log, "1:4+2s endp ");
	s.log[0] = '\0';
	convert(file, 4, 1, PRIVATE);
	CHECK_STR(s.log, "");
	CHECK_OK(gmem_file_punch(file, 0, 16 * P));
	CHECK_STR(s.log, "3:4+4p endp ");
	s.log[0] = '\0';
	CHECK_OK(gmem_file_pin(file, 7 * P, P));
	CHECK_ERR(gmem_file_set_attributes(file, 0, 16 * P, PRIVATE, NULL), -EAGAIN);
	CHECK_STR(s.log, "");
	convert(file, 0, 16, 0);
	CHECK_STR(s.log, "2:4+4p ends ");
	/* One that cannot keep its guests out: all is as before. */
	CHECK_OK(gmem_file_unpin(file, 7 * P, P));
	s.log[0] = '\0';
	s.fails = true;
	CHECK_ERR(gmem_file_set_attributes(file, 2 * P, 4 * P, PRIVATE, NULL), -ENOMEM);
	CHECK_STR(gmem_last_error(), "gmem_file_set_attributes: injected");
	CHECK_STR(s.log, "1:4+2s ends ");
	for (uint64_t page = 0; page < 16; page++)
		CHECK(!gmem_file_private(file, page * P) && peek(page_of(s.view, page)) == 0);
	s.fails = false;
	convert(file, 2, 4, PRIVATE);
	CHECK(gmem_file_unbind(&s.b));
	CHECK(!gmem_file_unbind(&s.b));
	gmem_view_unmap(s.view);
	gmem_file_free(file);
}

/* ---- size */

TEST_TIMEOUT(far_apart_pages_of_a_large_file_are_cheap, 60)
{
	const uint64_t npages = 1ull << 28, step = npages / 64;
	struct gmem_file *file = file_of(npages, GMEM_FILE_STRICT);
	struct gmem_view *view = view_of(file, 0, tap_slow() ? 8 : npages, PROT_READ);
	struct gmem_view *last = view_of(file, npages - 3, 3, PROT_READ | PROT_WRITE);
	uint64_t attributes, len;
	struct stat st;

	CHECK_OK(gmem_file_attributes(file, 0, &attributes, &len));
	CHECK(!attributes && len == npages * P);
	for (uint64_t page = step - 1; page < npages; page += step)
		convert(file, page, 1, PRIVATE);
	for (uint64_t page = 0; page < npages; page += step) {
		CHECK_OK(gmem_file_attributes(file, page * P, &attributes, &len));
		CHECK(!attributes && len == (step - 1) * P);
		CHECK_OK(gmem_file_attributes(file, page * P + len, &attributes, &len));
		CHECK(attributes == PRIVATE && len == P);
	}
	CHECK_EQ(peek(page_of(last, npages - 1)), -1);
	CHECK_EQ(peek(page_of(last, npages - 2)), 0);
	gmem_view_unmap(view);
	view = view_of(file, 0, tap_slow() ? 8 : npages, PROT_READ);
	if (!tap_slow())
		CHECK_EQ(peek(page_of(view, step - 1)), -1);
	/* A page of the bitmap each, and as many of the table. */
	CHECK_EQ(fstat(gmem_file_state_fd(file), &st), 0);
	if (st.st_blocks * 512 > 4 << 20)
		FAIL("the table takes %lld bytes", (long long)st.st_blocks * 512);
	gmem_view_unmap(view);
	gmem_view_unmap(last);
	gmem_file_free(file);
}

#endif
