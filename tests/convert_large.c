/* SPDX-License-Identifier: MIT */
/* Markers in a view under which the kernel makes one large page of 512: it may drop the view's page tables then. */
#include "tap.h"

#include "large_util.h"
#include "pager_scene.h"

/* A toucher that meets no marker reads, or waits for ever. */
static void check_marked(struct gmem_view *view, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		if (peek(page_of(view, i)) != -1)
			FAIL("private page %llu is within reach", (unsigned long long)i);
}

TEST(markers_of_a_plain_view_stay)
{
	struct gmem_file *file = file_of(2 * LARGE_PAGES, 0);
	struct gmem_view *view = aligned_view(file);

	memset(gmem_view_addr(view), 'o', 2 * LARGE);
	convert(file, 0, 2 * LARGE_PAGES, PRIVATE);
	collapse(file);
	check_marked(view, 0, 2 * LARGE_PAGES);
	convert(file, 100, 10, 0);
	collapse(file);
	check_marked(view, 0, 100);
	check_marked(view, 110, 2 * LARGE_PAGES);
	CHECK_EQ(peek(page_of(view, 105)), 'o');
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/*
 * Served, let go of, and without a pager: large pages are made at one moment of the three, for the second time nothing
 * would be done.
 */
static void served_view(int moment)
{
	struct gmem_file *file = file_of(2 * LARGE_PAGES, 0);
	struct gmem_pager *pager = new_pager(2, 0, NULL);
	struct gmem_view *view = aligned_view(file);
	struct src src = SRC(.id = 2);
	struct gmem_source *source = source_of(&src);

	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	convert(file, 0, LARGE_PAGES, PRIVATE);
	if (moment == 0)
		collapse(file);
	check_marked(view, 0, LARGE_PAGES);
	convert(file, 10, LARGE_PAGES - 10, 0);
	CHECK_EQ(gmem_pager_unregister(pager), 0);
	if (moment == 1)
		collapse(file);
	check_marked(view, 0, 10);
	gmem_pager_free(pager);
	convert(file, LARGE_PAGES - 1, 2, PRIVATE);
	if (moment == 2)
		collapse(file);
	check_marked(view, 0, 10);
	check_marked(view, LARGE_PAGES - 1, LARGE_PAGES + 1);
	convert(file, 0, 2 * LARGE_PAGES, 0);
	for (uint64_t i = 0; i < 2 * LARGE_PAGES; i++)
		CHECK(page_is(2, i * P, page_of(view, i)));
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(markers_of_a_served_view_stay)
{
	served_view(0);
}

TEST(markers_of_a_view_that_was_let_go_of_stay)
{
	served_view(1);
}

TEST(markers_of_a_view_without_its_pager_stay)
{
	served_view(2);
}
