/* SPDX-License-Identifier: MIT */
/* Conversion in place on a kernel whose userfaultfd has no markers, though it says it has. */
#include "tap.h"

#include "convert_cases.h"
#include "fault/pager.h"

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	(void)uffd;
	(void)hva;
	(void)len;
	(void)wake;
	*done = 0;
	return -EINVAL;
}

static int read_id(void *opaque, uint64_t off, void *buf, size_t len)
{
	for (uint64_t at = 0; at < len; at += P)
		fill_page(*(unsigned int *)opaque, off + at, (char *)buf + at);
	return 0;
}

/* A served view takes no empty file: what is mapped there is served by nobody. */
TEST(served_view_cannot_be_kept_out)
{
	const struct gmem_source_ops ops = { .size = sizeof(ops), .read = read_id };
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *plain = view_of(file, 0, 16, PROT_READ), *served = view_of(file, 4, 8, PROT_READ);
	const unsigned char shared[16] = { 0 };
	struct gmem_source *source;
	struct gmem_pager *pager;
	uint64_t error_off = 7;
	unsigned int id = 3;

	need_uffd();
	CHECK_OK(gmem_source_new(&ops, &id, &source));
	CHECK_OK(gmem_pager_create(NULL, &pager));
	CHECK_OK(gmem_pager_add_view(pager, served, source, 4 * P));
	CHECK(page_is(3, 5 * P, page_of(served, 5)));
	CHECK_ERR(gmem_file_set_attributes(file, 2 * P, 6 * P, PRIVATE, &error_off), -EOPNOTSUPP);
	CHECK_EQ(error_off, 2 * P);
	check_sides(file, shared, 16);
	for (uint64_t i = 0; i < 16; i++)
		CHECK(peek(page_of(plain, i)) >= 0);
	for (uint64_t i = 4; i < 12; i++)
		CHECK(page_is(3, i * P, page_of(served, i)));
	/* Where the served view is not, the other one is kept out. */
	convert(file, 13, 1, PRIVATE);
	CHECK_EQ(peek(page_of(plain, 13)), -1);
	CHECK_ERR(gmem_pager_add_view(pager, plain, source, 0), -EOPNOTSUPP);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(plain);
	gmem_view_unmap(served);
	gmem_file_free(file);
}
