/* SPDX-License-Identifier: MIT */
/* gmem_file_fallocate() on both engines, beside fallocate(2) of the kernel's own guest_memfd. */
#include "tap.h"

#include <fcntl.h>
#include <sys/time.h>

#include "file/file.h"
#include "pager_scene.h"
#include "sys/kvm.h"
#include "sys/memfd.h"
#include "sys/uapi.h"

#define N 64ull
#define KEEP FALLOC_FL_KEEP_SIZE
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static int allocate_err;
static _Atomic unsigned int allocations, allocations_left;

int __real_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);

int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	atomic_fetch_add(&allocations, 1);
	if (allocate_err && !atomic_fetch_sub(&allocations_left, 1))
		return allocate_err;
	return __real_gmem_memfd_allocate(fd, off, len);
}

static struct gmem_file *file_on(enum gmem_engine engine, uint64_t npages, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = engine, .flags = flags };
	struct gmem_file *file;
	int err = gmem_file_create(npages * P, &o, &file);

	if (err && engine == GMEM_ENGINE_KERNEL)
		SKIP("kvm", "%s", gmem_last_error());
	CHECK_EQ(err, 0);
	return file;
}

/* ---- which error, and which of two */

static const int modes[] = {
	0,
	KEEP,
	FALLOC_FL_PUNCH_HOLE,
	PUNCH,
	FALLOC_FL_NO_HIDE_STALE,
	FALLOC_FL_NO_HIDE_STALE | KEEP,
	FALLOC_FL_COLLAPSE_RANGE,
	FALLOC_FL_COLLAPSE_RANGE | KEEP,
	FALLOC_FL_ZERO_RANGE,
	FALLOC_FL_ZERO_RANGE | KEEP,
	FALLOC_FL_INSERT_RANGE,
	FALLOC_FL_INSERT_RANGE | KEEP,
	FALLOC_FL_UNSHARE_RANGE,
	FALLOC_FL_UNSHARE_RANGE | KEEP,
	FALLOC_FL_WRITE_ZEROES,
	FALLOC_FL_WRITE_ZEROES | KEEP,
	FALLOC_FL_ZERO_RANGE | PUNCH,
	0x100,
	0x100 | KEEP,
	-1,
};
#define NMODES (sizeof(modes) / sizeof(modes[0]))

#define MAX INT64_MAX
#define TOP (INT64_MAX - 4095) /* the last page that a file could begin to have */

/* In the order of `modes`: '.' done, 'I' -EINVAL, 'N' -EOPNOTSUPP, 'B' -EFBIG. */
static const struct {
	int64_t off, len;
	char answers[NMODES + 1];
} ranges[] = {
	{ 0, P, "N.N.NNNNNNNNNNNNNNNN" },
	{ 3 * P, 5 * P, "N.N.NNNNNNNNNNNNNNNN" },
	{ 0, N *P, "N.N.NNNNNNNNNNNNNNNN" },
	{ 1, P,
	  "NINI"
	  "NNNNNNNNNNNNNNNN" },
	{ 0, 1,
	  "NINI"
	  "NNNNNNNNNNNNNNNN" },
	{ P, P - 1,
	  "NINI"
	  "NNNNNNNNNNNNNNNN" },
	{ 0, 0, "IIIIIIIIIIIIIIIIIIII" },
	{ 1, 0, "IIIIIIIIIIIIIIIIIIII" },
	{ N * P, 0, "IIIIIIIIIIIIIIIIIIII" },
	{ -1, P, "IIIIIIIIIIIIIIIIIIII" },
	{ -(int64_t)P, P, "IIIIIIIIIIIIIIIIIIII" },
	{ 0, -(int64_t)P, "IIIIIIIIIIIIIIIIIIII" },
	{ INT64_MIN, INT64_MIN, "IIIIIIIIIIIIIIIIIIII" },
	{ N * P, P, "NIN.NNNNNNNNNNNNNNNN" },
	{ (N - 1) * P, 2 * P, "NIN.NNNNNNNNNNNNNNNN" },
	{ 0, 2 * N *P, "NIN.NNNNNNNNNNNNNNNN" },
	{ 2 * N * P, P, "NIN.NNNNNNNNNNNNNNNN" },
	{ N * P + 1, P,
	  "NINI"
	  "NNNNNNNNNNNNNNNN" },
	{ TOP - (int64_t)P, P, "NIN.NNNNNNNNNNNNNNNN" },
	{ 0, TOP, "NIN.NNNNNNNNNNNNNNNN" },
	{ 0, MAX,
	  "NINI"
	  "NNNNNNNNNNNNNNNN" },
	{ TOP, P,
	  "BBNB"
	  "NNBNBBBNBBBNNNNN" },
	{ TOP + 1, P,
	  "BBNB"
	  "NNBNBBBNBBBNNNNN" },
	{ P, TOP,
	  "BBNB"
	  "NNBNBBBNBBBNNNNN" },
	{ 1, MAX,
	  "BBNB"
	  "NNBNBBBNBBBNNNNN" },
	{ MAX, MAX,
	  "BBNB"
	  "NNBNBBBNBBBNNNNN" },
};
#define NRANGES (sizeof(ranges) / sizeof(ranges[0]))

static char letter(int err)
{
	return err == 0 ? '.' : err == -EINVAL ? 'I' : err == -EOPNOTSUPP ? 'N' : err == -EFBIG ? 'B' : '?';
}

static void check_answers(struct gmem_file *file)
{
	for (unsigned int r = 0; r < NRANGES; r++)
		for (unsigned int m = 0; m < NMODES; m++) {
			int err;

			gmem_err(0, "%s", "");
			err = gmem_file_fallocate(file, modes[m], ranges[r].off, ranges[r].len);
			if (letter(err) != ranges[r].answers[m])
				FAIL("off %lld, len %lld, mode 0x%x: %d, not '%c'", (long long)ranges[r].off,
				     (long long)ranges[r].len, (unsigned int)modes[m], err, ranges[r].answers[m]);
			if (err && !strstr(gmem_last_error(), "gmem_file_fallocate: mode"))
				FAIL("%d: text \"%s\"", err, gmem_last_error());
		}
}

TEST(answers_of_the_user_engine)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, N, 0);

	check_answers(file);
	gmem_file_free(file);
}

TEST(answers_of_the_kernel_engine)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_KERNEL, N, 0);

	check_answers(file);
	gmem_file_free(file);
}

/* FALLOC_FL_WRITE_ZEROES is from Linux 6.17; a kernel before it does not look at the range any more. */
TEST(answers_of_the_kernel_itself)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_KERNEL, N, 0);
	int fd = gmem_file_fd(file);

	for (unsigned int r = 0; r < NRANGES; r++)
		for (unsigned int m = 0; m < NMODES; m++) {
			int err = fallocate(fd, modes[m], ranges[r].off, ranges[r].len) ? -errno : 0;

			if (modes[m] == FALLOC_FL_WRITE_ZEROES && letter(err) == 'N')
				continue;
			if (letter(err) != ranges[r].answers[m])
				FAIL("off %lld, len %lld, mode 0x%x: the kernel says %s, the table '%c'",
				     (long long)ranges[r].off, (long long)ranges[r].len, (unsigned int)modes[m],
				     strerror(-err), ranges[r].answers[m]);
		}
	gmem_file_free(file);
}

/* ---- what is done */

static void check_bytes(struct gmem_file *file, uint64_t page, uint64_t npages, unsigned char byte)
{
	unsigned char buf[P];

	for (uint64_t i = page; i < page + npages; i++) {
		CHECK_OK(gmem_file_read(file, i * P, buf, P));
		for (uint64_t at = 0; at < P; at++)
			if (buf[at] != byte)
				FAIL("page %llu, byte %llu: %d, not %d", (unsigned long long)i, (unsigned long long)at,
				     buf[at], byte);
	}
}

static void write_page(struct gmem_file *file, uint64_t page, unsigned char byte)
{
	unsigned char buf[P];

	memset(buf, byte, P);
	CHECK_OK(gmem_file_write(file, page * P, buf, P));
}

static uint64_t blocks(const struct gmem_file *file)
{
	struct gmem_file_counts c = { .size = sizeof(c) };

	CHECK_OK(gmem_file_query(file, &c));
	return c.resident / P;
}

/* Shared memory may come in large pages here; then the count says nothing. */
static void check_blocks(const struct gmem_file *file, uint64_t want)
{
	struct gmem_file *one = file_on(GMEM_ENGINE_USER, 1024, 0);
	bool large;

	write_page(one, 0, 1);
	large = blocks(one) > 1;
	gmem_file_free(one);
	if (!large && gmem_file_engine(file) == GMEM_ENGINE_USER)
		CHECK_EQ(blocks(file), want);
}

static void allocate_and_punch(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, N, 0);

	write_page(file, 3, 30);
	write_page(file, 5, 50);
	CHECK_OK(gmem_file_punch(file, 5 * P, P));
	CHECK_OK(gmem_file_fallocate(file, KEEP, P, 8 * P));
	check_blocks(file, 8);
	CHECK_EQ(gmem_file_page_state(file, P), GMEM_PAGE_ABSENT);
	CHECK_EQ(gmem_file_page_state(file, 3 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(file, 5 * P), GMEM_PAGE_REMOVED);
	check_bytes(file, 0, 3, 0);
	check_bytes(file, 3, 1, 30);
	check_bytes(file, 4, 6, 0);
	write_page(file, 4, 40);
	/* What is inside of it goes. */
	write_page(file, N - 1, 9);
	CHECK_OK(gmem_file_fallocate(file, PUNCH, 4 * P, MAX / (int64_t)P * (int64_t)P - 5 * (int64_t)P));
	check_bytes(file, 3, 1, 30);
	check_bytes(file, 4, N - 4, 0);
	CHECK_EQ(gmem_file_page_state(file, 4 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(file, (N - 1) * P), GMEM_PAGE_REMOVED);
	check_blocks(file, 3);
	CHECK_OK(gmem_file_fallocate(file, PUNCH, N * P, P));
	gmem_file_free(file);
}

TEST(allocate_and_punch_user)
{
	allocate_and_punch(GMEM_ENGINE_USER);
}

TEST(allocate_and_punch_kernel)
{
	allocate_and_punch(GMEM_ENGINE_KERNEL);
}

static void private_pages(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, N, GMEM_FILE_INIT_PRIVATE);
	uint64_t attributes, len;

	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, N * P));
	if (engine == GMEM_ENGINE_USER) {
		check_blocks(file, N);
		CHECK_OK(gmem_file_set_attributes(file, 0, 2 * P, 0, NULL));
		check_bytes(file, 0, 2, 0);
		write_page(file, 1, 7);
		CHECK_OK(gmem_file_set_attributes(file, 0, 2 * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	}
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, N * P));
	CHECK_OK(gmem_file_fallocate(file, PUNCH, 8 * P, P));
	CHECK_OK(gmem_file_attributes(file, 0, &attributes, &len));
	CHECK_EQ(attributes, GMEM_ATTRIBUTE_PRIVATE);
	CHECK_EQ(len, N * P);
	if (engine == GMEM_ENGINE_USER) {
		check_blocks(file, N - 1);
		CHECK_OK(gmem_file_set_attributes(file, P, P, 0, NULL));
		check_bytes(file, 1, 1, 7);
	}
	gmem_file_free(file);
}

TEST(private_pages_user)
{
	private_pages(GMEM_ENGINE_USER);
}

TEST(private_pages_kernel)
{
	private_pages(GMEM_ENGINE_KERNEL);
}

/* A page that was given memory ahead is still its source's. */
TEST(absent_pages_still_come_from_their_source)
{
	struct src s = SRC(.id = 4, .nowait = true);
	struct gmem_source *source;
	struct gmem_pager *pager;
	struct gmem_file *file;
	struct gmem_view *view;
	unsigned char buf[P];
	char *p;

	need_uffd();
	file = file_on(GMEM_ENGINE_USER, N, 0);
	CHECK_OK(gmem_view_map(file, 0, N * P, PROT_READ | PROT_WRITE, &view));
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, 8 * P));
	CHECK_OK(gmem_pager_create(NULL, &pager));
	source = source_of(&s);
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	CHECK_OK(gmem_file_fallocate(file, KEEP, 8 * P, 8 * P));
	CHECK_OK(gmem_file_fallocate(file, KEEP, 4 * P, 8 * P));
	check_blocks(file, 16);
	p = gmem_view_addr(view);
	for (uint64_t i = 0; i < N; i += 3)
		CHECK(page_is(4, i * P, p + i * P));
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	for (uint64_t i = 0; i < N; i++)
		CHECK(page_is(4, i * P, p + i * P));
	/* Bytes that are there stay. */
	p[5 * P] = 'x';
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, N * P));
	CHECK_OK(gmem_file_read(file, 5 * P, buf, P));
	CHECK_EQ(buf[0], 'x');
	gmem_view_unmap(view);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_file_free(file);
}

static void *touch_it(void *p)
{
	return (void *)(uintptr_t) * (volatile unsigned char *)p;
}

/* The kernel calls the fault minor; the event does not, for the page is to be copied in. */
TEST(an_event_of_an_allocated_page_asks_for_its_bytes)
{
	struct gmem_uffd_event e;
	struct gmem_uffd *uffd;
	struct gmem_file *file;
	struct gmem_view *view;
	pthread_t thread;
	char page[P];
	void *got;

	need_markers();
	memset(page, 'k', P);
	file = file_on(GMEM_ENGINE_USER, N, 0);
	CHECK_OK(gmem_view_map(file, 0, N * P, PROT_READ | PROT_WRITE, &view));
	CHECK_OK(gmem_uffd_create(NULL, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	/* Shared memory takes what it is asked for twice for written. */
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, N * P));
	CHECK_OK(gmem_file_fallocate(file, KEEP, P, 4 * P));
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, N * P));
	CHECK_EQ(pthread_create(&thread, NULL, touch_it, (char *)gmem_view_addr(view) + 2 * P), 0);
	while (!CHECK_OK(gmem_uffd_read(uffd, &e, 1)))
		usleep(1000);
	CHECK_EQ(e.off, 2 * P);
	CHECK_EQ(e.flags & GMEM_UFFD_FAULT_MINOR, 0);
	CHECK_ERR(gmem_uffd_continue(uffd, view, 2 * P, P), -EFAULT);
	CHECK_EQ(gmem_uffd_copy(uffd, view, 2 * P, page, P), (int64_t)P);
	CHECK_EQ(pthread_join(thread, &got), 0);
	CHECK_EQ((uintptr_t)got, 'k');
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	gmem_file_free(file);
}

/* ---- what goes wrong */

TEST(without_memory)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 16384, 0);

	allocate_err = -ENOSPC;
	allocations_left = 1;
	CHECK_ERR(gmem_file_fallocate(file, KEEP, 0, 16384 * P), -ENOSPC);
	allocate_err = 0;
	CHECK(strstr(gmem_last_error(), "gmem_file_fallocate: ") == gmem_last_error());
	/* What was given before stays, and nothing is locked. */
	CHECK(blocks(file) > 0 && blocks(file) < 16384);
	check_bytes(file, 0, 1, 0);
	CHECK_OK(gmem_file_punch(file, 0, 16384 * P));
	check_blocks(file, 0);
	gmem_file_free(file);
}

static void on_alarm(int sig)
{
	(void)sig;
}

/* Shared memory gives up, and takes back what it gave, whenever a signal comes. */
TEST(amid_signals)
{
	struct itimerval often = { .it_interval = { .tv_usec = 20000 }, .it_value = { .tv_usec = 20000 } }, off = { 0 };
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 65536, 0);

	CHECK(signal(SIGALRM, on_alarm) != SIG_ERR);
	CHECK_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
	CHECK_OK(gmem_file_fallocate(file, KEEP, 0, 65536 * P));
	CHECK_EQ(setitimer(ITIMER_REAL, &off, NULL), 0);
	check_blocks(file, 65536);
	CHECK_EQ(allocations, 16);
	gmem_file_free(file);
}

/* ---- anything, in any order */

static void random_operations(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, N, 0);
	unsigned char byte[N] = { 0 };
	uint64_t seed = tap_seed();

	for (int i = 0; i < (tap_slow() ? 1000 : 10000); i++) {
		uint64_t page = tap_rand(&seed) % (N + 4), n = 1 + tap_rand(&seed) % 9;

		switch (tap_rand(&seed) % 4) {
		case 0:
			CHECK_EQ(gmem_file_fallocate(file, KEEP, (int64_t)(page * P), (int64_t)(n * P)),
				 page + n > N ? -EINVAL : 0);
			break;
		case 1:
			CHECK_OK(gmem_file_fallocate(file, PUNCH, (int64_t)(page * P), (int64_t)(n * P)));
			for (uint64_t k = page; k < page + n && k < N; k++)
				byte[k] = 0;
			break;
		case 2:
			if (page >= N)
				break;
			byte[page] = (unsigned char)tap_rand(&seed);
			write_page(file, page, byte[page]);
			break;
		default:
			if (page < N)
				check_bytes(file, page, 1, byte[page]);
			break;
		}
	}
	for (uint64_t page = 0; page < N; page++)
		check_bytes(file, page, 1, byte[page]);
	gmem_file_free(file);
}

TEST(random_operations_user)
{
	random_operations(GMEM_ENGINE_USER);
}

TEST(random_operations_kernel)
{
	random_operations(GMEM_ENGINE_KERNEL);
}
