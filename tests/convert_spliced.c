/* SPDX-License-Identifier: MIT */
/* Strict mode, and a page of a large one that the kernel still holds: it never shows what is written later. */
#include "tap.h"

#include <fcntl.h>
#include <sys/uio.h>

#include "large_util.h"

#define HELD 70ull /* the page of which a pipe has a reference */

struct scene {
	struct gmem_file *file;
	struct gmem_view *view;
	int fds[2];
};

static void set_up(struct scene *s)
{
	struct iovec iov;

	s->file = file_of(2 * LARGE_PAGES, GMEM_FILE_STRICT);
	s->view = aligned_view(s->file);
	memset(gmem_view_addr(s->view), 'o', 2 * LARGE);
	for (int tries = 0; madvise(gmem_view_addr(s->view), LARGE, MADV_COLLAPSE); tries++) {
		if (tries == 20)
			SKIP("thp", "MADV_COLLAPSE of a view: %s", strerror(errno));
		usleep(1000);
	}
	CHECK_EQ(pipe(s->fds), 0);
	iov = (struct iovec){ .iov_base = page_of(s->view, HELD), .iov_len = 1 };
	if (vmsplice(s->fds[1], &iov, 1, 0) != 1)
		SKIP("vmsplice", "vmsplice: %s", strerror(errno));
}

static void tear_down(struct scene *s)
{
	close(s->fds[0]);
	close(s->fds[1]);
	gmem_view_unmap(s->view);
	gmem_file_free(s->file);
}

static void let_go(struct scene *s)
{
	char got;

	CHECK_EQ(read(s->fds[0], &got, 1), 1);
	CHECK_EQ(got, 'o');
}

/* Every page has its byte; those that are private the host does not reach. */
static void check_pages(struct scene *s, uint64_t from, uint64_t npages)
{
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i++) {
		bool private = i >= from && i - from < npages;

		if (peek(page_of(s->view, i)) != (private ? -1 : 'o'))
			FAIL("page %llu of the view reads %d", (unsigned long long)i, peek(page_of(s->view, i)));
		if (*guest(s->file, i) != 'o')
			FAIL("page %llu of the guest is %d", (unsigned long long)i, *guest(s->file, i));
	}
}

/* What the guest writes then does not come out of the pipe. */
static void check_secret(struct scene *s, uint64_t from, uint64_t npages)
{
	check_pages(s, from, npages);
	*guest(s->file, HELD) = 'n';
	let_go(s);
	CHECK_EQ(*guest(s->file, HELD), 'n');
}

static void whole(uint64_t npages)
{
	struct scene s;

	set_up(&s);
	convert(s.file, 0, npages, PRIVATE);
	check_secret(&s, 0, npages);
	tear_down(&s);
}

TEST(large_page_becomes_private)
{
	whole(LARGE_PAGES);
}

TEST(large_page_and_what_follows_become_private)
{
	whole(2 * LARGE_PAGES);
}

/* It may be that the kernel cannot take the part out of the large page as long as it is held: then nothing happens. */
static void part(uint64_t from, uint64_t npages)
{
	unsigned char private[2 * LARGE_PAGES] = { 0 };
	struct scene s;
	uint64_t at = ~0ull;
	int err;

	set_up(&s);
	err = gmem_file_set_attributes(s.file, from * P, npages * P, PRIVATE, &at);
	if (err) {
		printf("%d at page %llu: %s\n", err, (unsigned long long)(at / P), gmem_last_error());
		CHECK_EQ(err, -EAGAIN);
		CHECK(at >= from * P && at < (from + npages) * P);
		check_sides(s.file, private, 2 * LARGE_PAGES);
		check_pages(&s, 0, 0);
		let_go(&s);
		/* Held no more. */
		convert(s.file, from, npages, PRIVATE);
		check_pages(&s, from, npages);
	} else {
		check_secret(&s, from, npages);
	}
	memset(private + from, 1, npages);
	check_sides(s.file, private, 2 * LARGE_PAGES);
	tear_down(&s);
}

TEST(held_page_of_a_large_one_becomes_private)
{
	part(HELD, 1);
}

TEST(part_of_a_large_page_becomes_private)
{
	part(HELD - 20, 100);
	part(0, LARGE_PAGES - 1);
	part(1, LARGE_PAGES);
}

/* The rest of the large page, without the one that is held: its bytes stay. */
TEST(neighbour_of_a_held_page_becomes_private)
{
	struct scene s;
	uint64_t at = ~0ull;
	int err;

	set_up(&s);
	err = gmem_file_set_attributes(s.file, (HELD + 1) * P, P, PRIVATE, &at);
	if (err) {
		CHECK_EQ(err, -EAGAIN);
		CHECK_EQ(at, (HELD + 1) * P);
	}
	check_pages(&s, HELD + 1, !err);
	let_go(&s);
	tear_down(&s);
}
