/* SPDX-License-Identifier: MIT */
/*
 * Files of small pages that the kernel has made large ones of: everything is by 4 KiB all the same. MADV_COLLAPSE makes
 * them also where shmem_enabled says never.
 */
#include "tap.h"

#include "huge_util.h"
#include "large_util.h"

/* 2 MiB of shared memory that are mapped as one: the window, once more after whatever split it. */
static bool large(struct gmem_file *file)
{
	char line[256], at[32];
	unsigned long kib = 0;
	bool mine = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	CHECK(f);
	snprintf(at, sizeof(at), "%lx-", (unsigned long)(uintptr_t)gmem_file_window(file));
	while (fgets(line, sizeof(line), f)) {
		if (strchr(line, '-') && strtoul(line, NULL, 16))
			mine = !strncmp(line, at, strlen(at));
		else if (mine)
			sscanf(line, "ShmemPmdMapped: %lu kB", &kib);
	}
	fclose(f);
	return kib >= LARGE / 1024;
}

struct scene {
	struct gmem_file *file;
	struct gmem_view *view;
};

/* Two large pages, each page of them with a byte of its own. */
static struct scene collapsed(uint32_t flags)
{
	struct scene s = { .file = file_of(2 * LARGE_PAGES, flags) };

	s.view = view_of(s.file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i++)
		memset(page_of(s.view, i), (int)(i % 251) + 1, P);
	collapse(s.file);
	if (!large(s.file))
		SKIP("thp", "the kernel says it has made large pages, and maps none");
	return s;
}

static void end(struct scene *s)
{
	gmem_view_unmap(s->view);
	gmem_file_free(s->file);
}

static int byte_of(uint64_t page)
{
	return (int)(page % 251) + 1;
}

/* What each page reads through the view: its byte; 0 for a punched one; -1 for a private one. */
static void check_view_of(const struct scene *s, const signed char *what)
{
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i++) {
		int got = peek(page_of(s->view, i)), want = what[i] == 'b' ? byte_of(i) : what[i] == 'z' ? 0 : -1;

		if (got != want)
			FAIL("page %llu reads %d, not %d", (unsigned long long)i, got, want);
	}
}

static void conversion(uint32_t flags)
{
	struct scene s = collapsed(flags);
	signed char what[2 * LARGE_PAGES];

	need_markers();
	memset(what, 'b', sizeof(what));
	/* One in the middle, the last of one large page with the first of the next, and the rest of one. */
	convert(s.file, 100, 1, PRIVATE);
	what[100] = 'p';
	check_view_of(&s, what);
	convert(s.file, LARGE_PAGES - 1, 2, PRIVATE);
	memset(what + LARGE_PAGES - 1, 'p', 2);
	check_view_of(&s, what);
	CHECK_EQ((unsigned char)*guest(s.file, LARGE_PAGES), byte_of(LARGE_PAGES));
	/* Stores of both sides, and the large page made again in between. */
	CHECK_EQ(poke(page_of(s.view, 99), byte_of(99)), 0);
	collapse(s.file);
	check_view_of(&s, what);
	convert(s.file, 100, 1, 0);
	what[100] = 'b';
	convert(s.file, LARGE_PAGES + 1, LARGE_PAGES - 1, PRIVATE);
	memset(what + LARGE_PAGES, 'p', LARGE_PAGES);
	check_view_of(&s, what);
	convert(s.file, 0, 2 * LARGE_PAGES, 0);
	memset(what, 'b', sizeof(what));
	check_view_of(&s, what);
	end(&s);
}

TEST(conversion_of_parts)
{
	conversion(0);
}

TEST(conversion_of_parts_advised)
{
	conversion(GMEM_FILE_THP);
}

/* New memory for a part of a large page: the kernel splits it, and the rest keeps its bytes. */
TEST(conversion_of_parts_strict)
{
	conversion(GMEM_FILE_STRICT | GMEM_FILE_THP);
}

TEST(punch_of_parts)
{
	struct scene s = collapsed(GMEM_FILE_THP);
	signed char what[2 * LARGE_PAGES];

	memset(what, 'b', sizeof(what));
	CHECK_EQ(resident(s.file), 2 * LARGE);
	CHECK_OK(gmem_file_punch(s.file, 7 * P, P));
	what[7] = 'z';
	CHECK_EQ(gmem_file_page_state(s.file, 7 * P), GMEM_PAGE_REMOVED);
	/* A large page that nobody else has is split, and the part of it given back. */
	CHECK_EQ(resident(s.file), 2 * LARGE - P);
	check_view_of(&s, what);
	CHECK_OK(gmem_file_punch(s.file, LARGE - 2 * P, 4 * P));
	memset(what + LARGE_PAGES - 2, 'z', 4);
	check_view_of(&s, what);
	CHECK_OK(gmem_file_punch(s.file, LARGE, LARGE));
	memset(what + LARGE_PAGES, 'z', LARGE_PAGES);
	check_view_of(&s, what);
	/* A private one stays private. */
	convert(s.file, 20, 2, PRIVATE);
	CHECK_OK(gmem_file_punch(s.file, 21 * P, P));
	memset(what + 20, 'p', 2);
	check_view_of(&s, what);
	CHECK_EQ(*guest(s.file, 21), 0);
	CHECK_EQ((unsigned char)*guest(s.file, 20), byte_of(20));
	end(&s);
}

/* A view of a file whose memory is large: each page is mapped by itself, and its neighbours are not let in. */
TEST(faults_of_parts)
{
	struct gmem_uffd_opts o = { .size = sizeof(o) };
	struct scene s = collapsed(GMEM_FILE_THP);
	struct gmem_uffd_event e;
	struct gmem_view *served;
	struct gmem_uffd *uffd;
	char buf[P];

	need_markers();
	memset(buf, 'x', P);
	served = view_of(s.file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);
	CHECK_OK(gmem_uffd_create(&o, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, served));
	/* In place, every one: not to be copied over, to be continued one at a time. */
	CHECK_ERR(gmem_uffd_copy(uffd, served, 9 * P, buf, P), -EEXIST);
	CHECK_EQ(gmem_uffd_continue(uffd, served, 9 * P, P), P);
	CHECK_EQ(gmem_uffd_continue(uffd, served, 11 * P, P), P);
	CHECK_EQ(peek(page_of(served, 9)), byte_of(9));
	CHECK_EQ(peek(page_of(served, 11)), byte_of(11));
	/* Punched, one is zero and its neighbours are not. */
	CHECK_OK(gmem_file_punch(s.file, 12 * P, P));
	CHECK_EQ(gmem_uffd_continue(uffd, served, 12 * P, 2 * P), 2 * P);
	CHECK_EQ(peek(page_of(served, 12)), 0);
	CHECK_EQ(peek(page_of(served, 13)), byte_of(13));
	/* Nobody was let in at page 10: mapping it now is the first time. */
	CHECK_EQ(gmem_uffd_continue(uffd, served, 10 * P, P), P);
	CHECK_EQ(gmem_uffd_read(uffd, &e, 1), 0);
	gmem_uffd_free(uffd);
	gmem_view_unmap(served);
	end(&s);
}

/*
 * Absent pages stay so, whatever has memory: the kernel fills the holes of what it makes large with zeroes, and those
 * are not taken for what a mapping has put there.
 */
TEST(absent_parts)
{
	struct gmem_file *file = file_of(2 * LARGE_PAGES, GMEM_FILE_THP);
	struct gmem_uffd_opts o = { .size = sizeof(o) };
	struct gmem_folio folio;
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	char buf[P];

	need_markers();
	memset(buf, 'x', P);
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i += 2)
		CHECK_OK(gmem_file_write(file, i * P, buf, P));
	collapse(file);
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i++) {
		CHECK_EQ(gmem_file_page_state(file, i * P), i % 2 ? GMEM_PAGE_ABSENT : GMEM_PAGE_UPTODATE);
		CHECK_EQ(file->ops->lookup(file, i * P, 1, &folio), i % 2 ? -ENOENT : 0);
		CHECK_EQ(*guest(file, i), i % 2 ? 0 : 'x');
	}
	view = view_of(file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);
	CHECK_OK(gmem_uffd_create(&o, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	memset(buf, 'y', P);
	for (uint64_t i = 1; i < 2 * LARGE_PAGES; i += 2) {
		CHECK_ERR(gmem_uffd_continue(uffd, view, i * P, P), -EFAULT);
		CHECK_EQ(gmem_uffd_copy(uffd, view, i * P, buf, P), P);
		CHECK_EQ(peek(page_of(view, i)), 'y');
	}
	CHECK_ERR(gmem_uffd_copy(uffd, view, 0, buf, P), -EEXIST);
	CHECK_EQ(gmem_uffd_continue(uffd, view, 0, P), P);
	CHECK_EQ(peek(page_of(view, 0)), 'x');
	gmem_uffd_free(uffd);
	gmem_view_unmap(view);
	gmem_file_free(file);
}
