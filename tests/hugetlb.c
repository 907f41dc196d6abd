/* SPDX-License-Identifier: MIT */
/*
 * Files of 2 MiB pages: making one, or not; bytes, holes, conversion, guests, children. The pool of huge pages is the
 * whole machine's, so all that uses it is in this one program, whose cases take turns.
 */
#include "tap.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "convert_util.h"
#include "huge_util.h"
#include "sys/call.h"

#define TOO_MUCH (1ull << 40) /* bytes, no machine has so many huge pages to spare */

static bool no_uffd;
int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	return no_uffd ? -EPERM : __real_gmem_sys_uffd_open(features, user_mode_only);
}

static char *touch_first; /* what a host's thread writes to before the next mark is made */
int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	char *at = touch_first;

	touch_first = NULL;
	if (at)
		CHECK_EQ(poke(at, 'h'), 0);
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

static uint64_t free_pages(void)
{
	struct gmem_huge_pool pool;

	gmem_huge_pool(&pool);
	return pool.free;
}

static int make(uint64_t len, uint32_t flags, struct gmem_file **ret)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags };

	return gmem_file_create(len, &o, ret);
}

TEST(flags_that_do_not_go_together)
{
	struct gmem_file_opts kernel = { .size = sizeof(kernel),
					 .flags = GMEM_FILE_HUGETLB,
					 .engine = GMEM_ENGINE_KERNEL };
	struct gmem_file *file;

	CHECK_ERR(make(H, GMEM_FILE_HUGE_FALLBACK, &file), -EINVAL);
	CHECK_ERR(make(H, GMEM_FILE_HUGE_FALLBACK | GMEM_FILE_THP, &file), -EINVAL);
	CHECK_ERR(make(H, GMEM_FILE_HUGETLB | GMEM_FILE_THP, &file), -EINVAL);
	CHECK_HAS(gmem_last_error(), "GMEM_FILE_THP");
	CHECK_ERR(make(H, GMEM_FILE_HUGETLB | GMEM_FILE_STRICT, &file), -EINVAL);
	CHECK_HAS(gmem_last_error(), "GMEM_FILE_STRICT");
	CHECK_ERR(make(H + P, GMEM_FILE_HUGETLB, &file), -EINVAL);
	CHECK_ERR(make(P, GMEM_FILE_HUGETLB | GMEM_FILE_HUGE_FALLBACK, &file), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	CHECK_ERR(make(H, GMEM_FILE_HUGE_FALLBACK << 1, &file), -EINVAL);
	CHECK_ERR(gmem_file_create(H, &kernel, &file), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "huge pages are the user engine's");
	kernel.flags = GMEM_FILE_THP;
	CHECK_ERR(gmem_file_create(H, &kernel, &file), -EOPNOTSUPP);
}

TEST(too_few_pages_is_an_error_that_says_so)
{
	uint64_t before = free_pages();
	struct gmem_file *file;
	int err = make(TOO_MUCH, GMEM_FILE_HUGETLB, &file);

	if (err == -EOPNOTSUPP) {
		CHECK_HAS(gmem_last_error(), "no huge pages of 2048 kB here");
		SKIP("hugetlb", "%s", gmem_last_error());
	}
	CHECK_EQ(err, -ENOMEM);
	CHECK_HAS(gmem_last_error(), "524288 huge pages of 2048 kB wanted");
	CHECK_HAS(gmem_last_error(), " free: echo ");
	CHECK_HAS(gmem_last_error(), " > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
	CHECK_EQ(free_pages(), before);
}

/* The view's flags in smaps. */
static bool advised(void *addr)
{
	char line[512], at[32];
	bool mine = false, found = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	CHECK(f);
	snprintf(at, sizeof(at), "%lx-", (unsigned long)(uintptr_t)addr);
	while (fgets(line, sizeof(line), f)) {
		if (strchr(line, '-') && strtoul(line, NULL, 16))
			mine = !strncmp(line, at, strlen(at));
		else if (mine && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " hg");
	}
	fclose(f);
	return found;
}

TEST(fall_back_to_small_pages)
{
	struct gmem_file *file;
	struct gmem_view *view;

	catch_bus();
	CHECK_OK(make(TOO_MUCH, GMEM_FILE_HUGETLB | GMEM_FILE_HUGE_FALLBACK, &file));
	CHECK_EQ(gmem_file_page_size(file), P);
	CHECK_HAS(gmem_file_explain(file), "user engine: ");
	CHECK_HAS(gmem_file_explain(file), "; small pages, ");
	CHECK_HAS(gmem_file_explain(file), "shmem_enabled: ");
	if (!strstr(gmem_file_explain(file), "no huge pages of 2048 kB here"))
		CHECK_HAS(gmem_file_explain(file), "524288 huge pages of 2048 kB wanted, ");
	CHECK_OK(gmem_view_map(file, 3 * P, 2 * H, PROT_READ | PROT_WRITE, &view));
	if (access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0 && !tap_emulator())
		CHECK(advised(gmem_view_addr(view)));
	memset(page_of(view, 5), 5, P);
	convert(file, 5, 1, PRIVATE);
	CHECK_EQ(peek(page_of(view, 5)), -1);
	CHECK_EQ(peek(page_of(view, 6)), 0);
	convert(file, 5, 1, 0);
	CHECK_EQ(peek(page_of(view, 5)), 5);
	CHECK_EQ(resident(file), 2 * P);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(advice_alone)
{
	struct gmem_file *file;
	struct gmem_view *view;

	CHECK_OK(make(4 * H, GMEM_FILE_THP, &file));
	CHECK_EQ(gmem_file_page_size(file), P);
	CHECK_HAS(gmem_file_explain(file), "huge pages by advice (shmem_enabled: ");
	CHECK_OK(gmem_view_map(file, H / 2, 3 * H, PROT_READ, &view));
	/* So that a huge page of the file can be one of the view. */
	CHECK_EQ(((uintptr_t)gmem_view_addr(view) - H / 2) % H, 0);
	if (access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0 && !tap_emulator()) {
		CHECK(advised(gmem_view_addr(view)));
		CHECK(advised(gmem_file_window(file)));
	}
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(reserved_at_creation)
{
	uint64_t before = free_pages();
	struct gmem_file *file = huge_file(4, 0);

	CHECK_EQ(free_pages(), before - 4);
	CHECK_EQ(resident(file), 0);
	CHECK_HAS(gmem_file_explain(file), "4 huge pages of 2048 kB, reserved");
	CHECK_EQ(gmem_file_engine(file), GMEM_ENGINE_USER);
	gmem_file_free(file);
	CHECK_EQ(free_pages(), before);
}

/* What nobody else has is taken away: a touch finds a page all the same, also where one was given back. */
TEST(no_touch_finds_no_page)
{
	struct gmem_file *file = huge_file(4, 0), *hog = NULL;
	struct gmem_view *view = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);
	struct gmem_file *none;
	uint64_t rest = free_pages();

	if (rest)
		hog = huge_file(rest, 0);
	catch_bus();
	if (free_pages())
		SKIP("hugetlb", "somebody else uses huge pages");
	CHECK_ERR(make(H, GMEM_FILE_HUGETLB, &none), -ENOMEM);
	for (int round = 0; round < 3; round++) {
		for (uint64_t i = 0; i < 3; i++)
			CHECK_EQ(poke(page_of(view, i * H_PAGES + 7), 1), 0);
		CHECK_OK(gmem_file_write(file, 3 * H + 5, "x", 1));
		CHECK_EQ(resident(file), 4 * H);
		CHECK_OK(gmem_file_punch(file, 0, 4 * H));
		CHECK_EQ(resident(file), 0);
		CHECK_ERR(make(H, GMEM_FILE_HUGETLB, &none), -ENOMEM);
	}
	gmem_view_unmap(view);
	gmem_file_free(hog);
	gmem_file_free(file);
}

TEST(bytes)
{
	struct gmem_file *file = huge_file(3, 0);
	struct gmem_view *view = view_of(file, 0, 3 * H_PAGES, PROT_READ);
	char *in = malloc(H + 3 * P), *out = malloc(H + 3 * P);
	uint64_t off = H - P - 100, len = H + 2 * P;

	for (uint64_t i = 0; i < len; i++)
		in[i] = (char)(i * 7 + i / 251);
	CHECK_OK(gmem_file_read(file, off, out, len));
	for (uint64_t i = 0; i < len; i += P)
		CHECK_EQ(out[i], 0);
	/* A look allocates nothing. */
	CHECK_EQ(resident(file), 0);
	CHECK_EQ(file->ops->next_data(file, 0), -ENXIO);
	CHECK_OK(gmem_file_write(file, off, in, len));
	CHECK_EQ(resident(file), 3 * H);
	CHECK_OK(gmem_file_read(file, off, out, len));
	CHECK_MEM(in, out, len);
	CHECK_MEM((char *)gmem_view_addr(view) + off, in, len);
	CHECK_EQ(gmem_file_page_state(file, H), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(file, 0), GMEM_PAGE_ABSENT);
	CHECK_ERR(gmem_file_write(file, 3 * H - 1, "xx", 2), -ERANGE);
	free(in);
	free(out);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* The kernel says that huge pages are data everywhere. */
TEST(holes_are_told)
{
	struct gmem_file *file = huge_file(4, 0);
	struct gmem_view *view;

	need_uffd();
	view = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);
	CHECK_EQ(file->ops->next_hole(file, 5), 5);
	*page_of(view, 2 * H_PAGES + 9) = 1;
	CHECK_EQ(file->ops->next_data(file, 0), 2 * (int64_t)H);
	CHECK_EQ(file->ops->next_data(file, 2 * H + 3 * P), 2 * (int64_t)H + 3 * (int64_t)P);
	CHECK_EQ(file->ops->next_hole(file, 2 * H + P), 3 * (int64_t)H);
	CHECK_EQ(file->ops->next_data(file, 3 * H), -ENXIO);
	CHECK(gmem_file_has_memory(file, 2 * H + 100 * P, P));
	CHECK(!gmem_file_has_memory(file, 0, 2 * H));
	CHECK_OK(gmem_file_punch(file, 2 * H, H));
	CHECK_EQ(file->ops->next_data(file, 0), -ENXIO);
	CHECK_EQ(resident(file), 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(punch_in_part_and_whole)
{
	struct gmem_file *file = huge_file(4, 0);
	struct gmem_view *view = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);

	memset(gmem_view_addr(view), 'm', 4 * H);
	CHECK_EQ(resident(file), 4 * H);
	CHECK_OK(gmem_file_punch(file, 5 * P, 3 * P));
	CHECK_EQ(resident(file), 4 * H);
	for (uint64_t i = 4; i < 9; i++)
		CHECK_EQ(peek(page_of(view, i)), i >= 5 && i < 8 ? 0 : 'm');
	CHECK_EQ(gmem_file_page_state(file, 5 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(file, 8 * P), GMEM_PAGE_ABSENT);
	/* From within one to within another: those between are given back. */
	CHECK_OK(gmem_file_punch(file, H - P, 2 * H + 2 * P));
	CHECK_EQ(resident(file), 2 * H);
	CHECK_EQ(peek(page_of(view, H_PAGES - 2)), 'm');
	CHECK_EQ(peek(page_of(view, H_PAGES - 1)), 0);
	CHECK_EQ(peek(page_of(view, 3 * H_PAGES)), 0);
	CHECK_EQ(peek(page_of(view, 3 * H_PAGES + 1)), 'm');
	CHECK_EQ(peek(page_of(view, H_PAGES)), 0);
	CHECK_EQ(resident(file), 3 * H);
	CHECK_ERR(gmem_file_punch(file, 100, P), -EINVAL);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(views_are_of_whole_pages)
{
	struct gmem_file *file = huge_file(2, 0);
	struct gmem_view *view, *other;

	catch_bus();
	CHECK_ERR(gmem_view_map(file, P, H, PROT_READ, &view), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	CHECK_ERR(gmem_view_map(file, 0, H + P, PROT_READ, &view), -EINVAL);
	CHECK_OK(gmem_view_map(file, H, H, PROT_READ, &view));
	gmem_view_unmap(view);
	/* Or a part would stay mapped when its view is gone, and show what becomes private. */
	view = view_of(file, 0, 2 * H_PAGES, PROT_READ);
	CHECK_ERR(gmem_view_split(view, P, &other), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	CHECK_ERR(gmem_view_remap(view, H + P, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	CHECK_ERR(gmem_view_remap(view, 2 * H, (char *)gmem_view_addr(view) + 2 * H + P), -EINVAL);
	CHECK_OK(gmem_view_split(view, H, &other));
	CHECK_OK(gmem_file_set_attributes(file, H, H, PRIVATE, NULL));
	CHECK_EQ(peek(gmem_view_addr(other)), -1);
	CHECK_EQ(peek(gmem_view_addr(view)), 0);
	gmem_view_unmap(other);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(a_lost_huge_page_is_no_zero)
{
	struct gmem_file *file = huge_file(4, 0);
	struct gmem_view *view = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);
	char byte;

	need_markers();
	catch_bus();
	memset(gmem_view_addr(view), 'l', 4 * H);
	CHECK_OK(gmem_file_set_attributes(file, 2 * H, H, PRIVATE, NULL));
	/* A huge page fails as a whole, on either side. */
	CHECK_OK(gmem_file_poison(file, 5 * P, P));
	CHECK_OK(gmem_file_poison(file, 2 * H, H));
	for (uint64_t i = 0; i < 4 * H_PAGES; i += 37)
		CHECK_EQ(peek(page_of(view, i)), i / H_PAGES % 2 ? 'l' : -1);
	CHECK_ERR(gmem_file_read(file, H - P, &byte, 1), -EHWPOISON);
	CHECK_OK(gmem_file_set_attributes(file, 2 * H, H, 0, NULL));
	CHECK_OK(gmem_file_punch(file, 5 * P, P));
	CHECK_EQ(peek(page_of(view, 5)), -1);
	CHECK_EQ(peek(page_of(view, 2 * H_PAGES)), -1);
	CHECK_OK(gmem_file_punch(file, 0, 4 * H));
	for (uint64_t i = 0; i < 4 * H_PAGES; i += 37)
		CHECK_EQ(peek(page_of(view, i)), 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

static void check_conversion(void)
{
	struct gmem_file *file = huge_file(4, 0);
	struct gmem_view *view = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);
	struct gmem_view *part = view_of(file, 2 * H_PAGES, H_PAGES, PROT_READ);
	uint64_t off = 1, len;
	char byte;

	catch_bus();
	memset(gmem_view_addr(view), 'c', 4 * H);
	CHECK_ERR(gmem_file_set_attributes(file, H, P, PRIVATE, &off), -EINVAL);
	CHECK_HAS(gmem_last_error(), "huge pages");
	CHECK_ERR(gmem_file_set_attributes(file, H + P, H, PRIVATE, &off), -EINVAL);
	CHECK_EQ(off, 1);
	CHECK_OK(gmem_file_pin(file, 2 * H + 17 * P, P));
	CHECK_ERR(gmem_file_set_attributes(file, H, 2 * H, PRIVATE, &off), -EAGAIN);
	CHECK_EQ(off, 2 * H + 17 * P);
	CHECK_EQ(peek(page_of(view, H_PAGES)), 'c');
	CHECK_OK(gmem_file_unpin(file, 2 * H + 17 * P, P));
	CHECK_OK(gmem_file_set_attributes(file, H, 2 * H, PRIVATE, NULL));
	for (uint64_t i = 0; i < 4 * H_PAGES; i += 31)
		CHECK_EQ(peek(page_of(view, i)), i / H_PAGES == 1 || i / H_PAGES == 2 ? -1 : 'c');
	CHECK_EQ(peek(page_of(part, 2 * H_PAGES + 511)), -1);
	CHECK_EQ(gmem_sys_peek(&byte, page_of(view, H_PAGES + 3), 1), -EFAULT);
	CHECK_ERR(gmem_file_read(file, H + 5 * P, &byte, 1), -EACCES);
	CHECK_OK(gmem_file_attributes(file, H, &off, &len));
	CHECK_EQ(len, 2 * H);
	CHECK_EQ(*guest(file, H_PAGES + 5), 'c');
	/* One back, and absent ones too. */
	CHECK_OK(gmem_file_set_attributes(file, H, H, 0, NULL));
	CHECK_EQ(peek(page_of(view, H_PAGES + 5)), 'c');
	CHECK_EQ(peek(page_of(view, 2 * H_PAGES)), -1);
	CHECK_OK(gmem_file_punch(file, 3 * H, H));
	CHECK_OK(gmem_file_set_attributes(file, 3 * H, H, PRIVATE, NULL));
	CHECK_EQ(peek(page_of(view, 4 * H_PAGES - 1)), -1);
	CHECK_OK(gmem_file_set_attributes(file, 0, 4 * H, 0, NULL));
	for (uint64_t i = 0; i < 4 * H_PAGES; i++)
		CHECK_EQ(peek(page_of(view, i)), i / H_PAGES == 3 ? 0 : 'c');
	gmem_view_unmap(part);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(conversion_is_of_whole_pages)
{
	need_markers();
	check_conversion();
}

TEST(conversion_without_userfaultfd)
{
	no_uffd = true;
	check_conversion();
}

/* With a huge page the kernel drops its markers, which it does not with small ones. */
static void check_punched_private(void)
{
	struct gmem_file *file = huge_file(2, 0);
	struct gmem_view *view = view_of(file, 0, 2 * H_PAGES, PROT_READ | PROT_WRITE);

	catch_bus();
	memset(gmem_view_addr(view), 's', 2 * H);
	CHECK_OK(gmem_file_set_attributes(file, 0, 2 * H, PRIVATE, NULL));
	CHECK_OK(gmem_file_punch(file, 3 * P, P));
	CHECK_EQ(peek(page_of(view, 3)), -1);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	CHECK_EQ(*guest(file, 3), 0);
	CHECK_EQ(*guest(file, 4), 's');
	CHECK_OK(gmem_file_punch(file, 0, H + P));
	CHECK_EQ(resident(file), H);
	for (uint64_t i = 0; i < 2 * H_PAGES; i += 7)
		CHECK_EQ(peek(page_of(view, i)), -1);
	CHECK_OK(gmem_file_set_attributes(file, 0, 2 * H, 0, NULL));
	CHECK_EQ(peek(page_of(view, 9)), 0);
	CHECK_EQ(peek(page_of(view, H_PAGES + 9)), 's');
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(a_punched_private_page_stays_out_of_reach)
{
	need_markers();
	check_punched_private();
}

TEST(a_punched_private_page_without_userfaultfd)
{
	no_uffd = true;
	check_punched_private();
}

TEST(a_punched_private_page_that_is_touched_before_it_is_marked)
{
	struct gmem_file *file = huge_file(1, 0);
	struct gmem_view *view;

	need_markers();
	catch_bus();
	view = view_of(file, 0, H_PAGES, PROT_READ | PROT_WRITE);
	CHECK_OK(gmem_file_set_attributes(file, 0, H, PRIVATE, NULL));
	memset(guest(file, 7), 'g', P);
	touch_first = page_of(view, 7);
	CHECK_OK(gmem_file_punch(file, 0, H));
	CHECK(!touch_first);
	CHECK_EQ(peek(page_of(view, 7)), -1);
	CHECK_EQ(*guest(file, 7), 0);
	CHECK_EQ(resident(file), H);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

struct hammer {
	char *p;
	_Atomic bool stop;
	_Atomic uint64_t hits, misses;
};

static void *hammer_main(void *arg)
{
	struct hammer *h = arg;

	while (!atomic_load(&h->stop))
		atomic_fetch_add(poke(h->p, 0x5a) ? &h->misses : &h->hits, 1);
	return NULL;
}

/* Whatever the host does meanwhile, the guest finds zeroes and the host no way in. */
TEST(a_punched_private_page_under_a_hammer)
{
	struct gmem_file *file = huge_file(1, 0);
	struct gmem_view *view;
	struct hammer h;
	pthread_t thread;

	need_markers();
	catch_bus();
	view = view_of(file, 0, H_PAGES, PROT_READ | PROT_WRITE);
	h = (struct hammer){ .p = page_of(view, 100) };
	CHECK_OK(gmem_file_set_attributes(file, 0, H, PRIVATE, NULL));
	CHECK_EQ(pthread_create(&thread, NULL, hammer_main, &h), 0);
	for (int i = 0; i < (SLOW_BUILD ? 50 : 200); i++) {
		uint64_t misses;

		memset(guest(file, 100), 'g', P);
		CHECK_OK(gmem_file_punch(file, 0, H));
		CHECK_EQ(*guest(file, 100), 0);
		for (misses = atomic_load(&h.misses); atomic_load(&h.misses) < misses + 2;)
			usleep(10);
		CHECK_EQ(*guest(file, 100), 0);
		CHECK_EQ(peek(page_of(view, 101)), -1);
	}
	atomic_store(&h.stop, true);
	pthread_join(thread, NULL);
	printf("# %llu touches between punch and mark\n", (unsigned long long)h.hits);
	gmem_view_unmap(view);
	gmem_file_free(file);
}
