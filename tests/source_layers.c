/* SPDX-License-Identifier: MIT */
/* Sparse memory files and the diffs above them, against a naive array; what would hide or change bytes is refused. */
#include "tap.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "image_util.h"
#include "source/source.h"

#define MOST_LAYERS 6u
#define WINDOW (64u * 1024)

struct model {
	uint64_t npages;
	size_t n;
	int fds[MOST_LAYERS];
	uint8_t *bytes;
	uint8_t *top; /* of each page: 1 + the highest layer that has it, 0: none */
};

/* Its time of change is long ago: a file system's clock may be slower than a test. */
static void age(int fd)
{
	const struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000, .tv_nsec = 5 } };

	CHECK(futimens(fd, old) == 0);
}

static void write_page(struct model *m, size_t layer, uint64_t i, uint64_t *seed)
{
	/* Zeros that were written are bytes as any. */
	if (tap_rand(seed) % 5 == 0)
		memset(m->bytes + i * PAGE, 0, PAGE);
	else
		fill_page(m->bytes + i * PAGE, seed, false);
	m->top[i] = (uint8_t)(layer + 1);
	CHECK(pwrite(m->fds[layer], m->bytes + i * PAGE, PAGE, (off_t)(i * PAGE)) == PAGE);
}

static void make_layers(struct model *m, uint64_t npages, size_t n, uint64_t *seed, const char *folder)
{
	*m = (struct model){ .npages = npages, .n = n, .bytes = calloc(npages, PAGE), .top = calloc(npages, 1) };
	for (size_t layer = 0; layer < n; layer++) {
		unsigned int holes = (unsigned int)(tap_rand(seed) % 8);
		uint64_t i = 0;

		/* In memory, or on a disk. */
		m->fds[layer] = folder ? open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600) :
					 memfd_create("layer", MFD_CLOEXEC);
		if (m->fds[layer] < 0 && folder)
			SKIP("disk", "a file without a name in %s: %s", folder, strerror(errno));
		CHECK(m->fds[layer] >= 0 && ftruncate(m->fds[layer], (off_t)(npages * PAGE)) == 0);
		while (i < npages) {
			uint64_t run = 1 + tap_rand(seed) % (tap_rand(seed) % 4 ? 5 : 100);
			bool hole = tap_rand(seed) % 8 < holes;

			/* The first page of a diff is one that did not change: it has a hole. */
			if (!i && layer) {
				hole = true;
				run = 1;
			}
			for (; run-- && i < npages; i++)
				if (!hole)
					write_page(m, layer, i, seed);
		}
		age(m->fds[layer]);
	}
}

static void drop_layers(struct model *m)
{
	for (size_t i = 0; i < m->n; i++)
		close(m->fds[i]);
	free(m->bytes);
	free(m->top);
}

/* Where the file system keeps pages together, what was not written may be there all the same. */
static void need_pages(const struct model *m)
{
	struct stat st;

	CHECK(fstat(m->fds[0], &st) == 0);
	if (st.st_blksize > PAGE)
		SKIP("holes", "memory files come %ld bytes at a time here (shmem_enabled)", (long)st.st_blksize);
}

static void check_extent(const struct model *m, struct gmem_source *s, uint64_t off, uint64_t len, bool cold)
{
	uint64_t start = off, n = len, end;

	gmem_source_extent(s, &start, &n);
	end = start + n;
	if (!cold) {
		CHECK(start == off && n == len);
		return;
	}
	CHECK(start <= off && end >= off + len && end <= m->npages * PAGE);
	CHECK(start >= off / WINDOW * WINDOW && end <= (off + len + WINDOW - 1) / WINDOW * WINDOW);
	/* What was added is of the same file as what it was added to, and all that is. */
	for (uint64_t i = start / PAGE; i < off / PAGE; i++)
		CHECK_EQ(m->top[i], m->top[off / PAGE]);
	for (uint64_t i = (off + len) / PAGE; i < end / PAGE; i++)
		CHECK_EQ(m->top[i], m->top[(off + len) / PAGE - 1]);
	if (start > off / WINDOW * WINDOW)
		CHECK(!m->top[off / PAGE] || m->top[start / PAGE - 1] != m->top[off / PAGE]);
	if (end < m->npages * PAGE && end % WINDOW)
		CHECK(!m->top[end / PAGE - 1] || m->top[end / PAGE] != m->top[end / PAGE - 1]);
}

static void check_some(const struct model *m, struct gmem_source *s, uint64_t seed, int rounds)
{
	uint8_t *got = malloc(64 * PAGE);

	for (int k = 0; k < rounds; k++) {
		uint64_t i = tap_rand(&seed) % m->npages, n = 1 + tap_rand(&seed) % (tap_rand(&seed) % 2 ? 2 : 64);
		bool zero = true;
		int r;

		if (n > m->npages - i)
			n = m->npages - i;
		for (uint64_t j = i; j < i + n; j++)
			zero = zero && !m->top[j];
		CHECK_EQ(gmem_source_is_zero(s, i * PAGE, n * PAGE, k % 2), zero);
		check_extent(m, s, i * PAGE, n * PAGE, false);
		memset(got, 0xee, n * PAGE);
		CHECK_OK(gmem_source_read(s, i * PAGE, got, n * PAGE));
		CHECK_MEM(got, m->bytes + i * PAGE, n * PAGE);
		memset(got, 0xee, n * PAGE);
		r = gmem_source_read_nowait(s, i * PAGE, got, n * PAGE);
		CHECK(r == 0 || r == -EAGAIN);
		if (r == 0)
			CHECK_MEM(got, m->bytes + i * PAGE, n * PAGE);
	}
	free(got);
}

TEST_TIMEOUT(layers_are_what_an_array_is, 60)
{
	uint64_t seed = tap_seed();

	for (int round = 0; round < (tap_slow() ? 6 : 40); round++) {
		uint64_t npages = 1 + tap_rand(&seed) % 700;
		struct gmem_source *s;
		struct model m;

		make_layers(&m, npages, 1 + tap_rand(&seed) % MOST_LAYERS, &seed, NULL);
		need_pages(&m);
		CHECK(lseek(m.fds[0], 17, SEEK_SET) == 17);
		CHECK_OK(gmem_source_new_layers(m.fds, m.n, &s));
		CHECK_EQ(lseek(m.fds[0], 0, SEEK_CUR), 17);
		CHECK_EQ(gmem_source_len(s), npages * PAGE);
		check_some(&m, s, tap_rand(&seed), 200);
		gmem_source_unref(s);
		drop_layers(&m);
	}
}

TEST_TIMEOUT(a_sparse_file_is_what_an_array_is, 60)
{
	uint64_t seed = tap_seed();

	for (int round = 0; round < (tap_slow() ? 6 : 40); round++) {
		struct gmem_source *s, *part;
		struct model m, rest;
		uint64_t first;

		make_layers(&m, 2 + tap_rand(&seed) % 700, 1, &seed, NULL);
		need_pages(&m);
		CHECK_OK(gmem_source_new_fd(m.fds[0], 0, UINT64_MAX, &s));
		check_some(&m, s, tap_rand(&seed), 200);
		CHECK(gmem_source_is_zero(s, m.npages * PAGE, 1 << 30, true));
		/* From its middle on. */
		first = 1 + tap_rand(&seed) % (m.npages - 1);
		CHECK_OK(gmem_source_new_fd(m.fds[0], first * PAGE, UINT64_MAX, &part));
		rest = (struct model){ .npages = m.npages - first,
				       .bytes = m.bytes + first * PAGE,
				       .top = m.top + first };
		check_some(&rest, part, tap_rand(&seed), 100);
		gmem_source_unref(s);
		gmem_source_unref(part);
		drop_layers(&m);
	}
}

/* What is not in memory any more comes with its neighbours. */
TEST_TIMEOUT(what_waits_for_a_disk_comes_together, 60)
{
	const char *tmp = getenv("TMPDIR");
	uint64_t seed = tap_seed();

	for (int round = 0; round < (tap_slow() ? 4 : 20); round++) {
		uint64_t i = 0, n = 1 + tap_rand(&seed) % (round ? 4 : 1);
		struct gmem_source *s;
		uint8_t page[PAGE];
		struct model m;

		make_layers(&m, 20 + tap_rand(&seed) % 700, n, &seed, tmp && *tmp ? tmp : "/tmp");
		need_pages(&m);
		CHECK_OK(gmem_source_new_layers(m.fds, m.n, &s));
		while (i < m.npages && !m.top[i])
			i++;
		if (i < m.npages) {
			struct iovec iov = { .iov_base = page, .iov_len = PAGE };
			int fd = m.fds[m.top[i] - 1];

			/* Out of memory for certain; the file has been changed then, but nothing of it is read here. */
			CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(i * PAGE), PAGE) == 0);
			if (preadv2(fd, &iov, 1, (off_t)(i * PAGE), RWF_NOWAIT) >= 0 || errno != EAGAIN)
				SKIP("disk", "reading without waiting is not what %s can do", tmp ? tmp : "/tmp");
			check_extent(&m, s, i * PAGE, PAGE, false);
			CHECK_ERR(gmem_source_read_nowait(s, i * PAGE, page, PAGE), -EAGAIN);
			for (int k = 0; k < 100; k++) {
				uint64_t first = tap_rand(&seed) % m.npages, len = 1 + tap_rand(&seed) % 20;

				len = len > m.npages - first ? m.npages - first : len;
				check_extent(&m, s, first * PAGE, len * PAGE, true);
			}
		}
		gmem_source_unref(s);
		drop_layers(&m);
	}
}

struct job {
	pthread_t thread;
	const struct model *m;
	struct gmem_source *s;
	uint64_t seed;
};

static void *read_some(void *arg)
{
	struct job *job = arg;

	check_some(job->m, job->s, job->seed, tap_slow() ? 200 : 2000);
	return NULL;
}

TEST_TIMEOUT(threads_read_layers_at_once, 60)
{
	uint64_t seed = tap_seed();
	struct job jobs[4];
	struct gmem_source *s;
	struct model m;

	make_layers(&m, 2000, 4, &seed, NULL);
	need_pages(&m);
	CHECK_OK(gmem_source_new_layers(m.fds, m.n, &s));
	for (int i = 0; i < 4; i++) {
		jobs[i] = (struct job){ .m = &m, .s = s, .seed = tap_rand(&seed) };
		CHECK(pthread_create(&jobs[i].thread, NULL, read_some, &jobs[i]) == 0);
	}
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(jobs[i].thread, NULL) == 0);
	gmem_source_unref(s);
	drop_layers(&m);
}

/* A base and a diff of 8 pages: data in pages 0 to 3 of the one and 2 to 5 of the other. */
static void two(int *fds)
{
	uint8_t page[PAGE];

	for (int i = 0; i < 2; i++) {
		fds[i] = memfd_create("layer", MFD_CLOEXEC);
		CHECK(fds[i] >= 0 && ftruncate(fds[i], 8 * PAGE) == 0);
		memset(page, 1 + i, PAGE);
		for (int k = 0; k < 4; k++)
			CHECK(pwrite(fds[i], page, PAGE, (2 * i + k) * (off_t)PAGE) == PAGE);
		age(fds[i]);
	}
}

TEST(a_file_that_changes_is_an_error)
{
	enum { SHRINK, GROW, WRITE, PUNCH, HOW };
	uint8_t got[8 * PAGE], one = 9;
	int fds[2];

	for (int which = 0; which < 2; which++) {
		for (int how = 0; how < HOW; how++) {
			/* Bytes of the other file are good still, and so are zeros. */
			uint64_t bad = which ? 2 : 0, good = which ? 0 : 4;
			struct gmem_source *s;
			struct stat st;
			int r;

			two(fds);
			CHECK(fstat(fds[0], &st) == 0);
			if (st.st_blksize > PAGE)
				SKIP("holes", "memory files come %ld bytes at a time here", (long)st.st_blksize);
			CHECK_OK(gmem_source_new_layers(fds, 2, &s));
			CHECK_OK(gmem_source_read(s, 0, got, 8 * PAGE));
			CHECK(got[0] == 1 && got[2 * PAGE] == 2 && got[5 * PAGE] == 2 && got[6 * PAGE] == 0);
			if (how == SHRINK)
				CHECK(ftruncate(fds[which], PAGE) == 0);
			else if (how == GROW)
				CHECK(ftruncate(fds[which], 9 * PAGE) == 0);
			else if (how == WRITE)
				CHECK(pwrite(fds[which], &one, 1, 7 * PAGE) == 1);
			else
				CHECK(fallocate(fds[which], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE) ==
				      0);
			CHECK_ERR(gmem_source_read(s, bad * PAGE, got, PAGE), -EIO);
			CHECK_HAS(gmem_last_error(), which ? "layer 1" : "layer 0");
			r = gmem_source_read_nowait(s, bad * PAGE, got, PAGE);
			CHECK(r == -EIO || r == -EAGAIN);
			CHECK_ERR(gmem_source_read(s, 0, got, 8 * PAGE), -EIO);
			CHECK_OK(gmem_source_read(s, good * PAGE, got, PAGE));
			CHECK_EQ(got[5], which ? 1 : 2);
			CHECK_OK(gmem_source_read(s, 7 * PAGE, got, PAGE));
			CHECK_EQ(got[0], 0);
			gmem_source_unref(s);
			close(fds[0]);
			close(fds[1]);
		}
	}
}

TEST(layers_that_do_not_fit_are_refused)
{
	int fds[3], other = memfd_create("other", MFD_CLOEXEC), dir = open("/", O_RDONLY | O_CLOEXEC), many[257];
	uint8_t *all = calloc(8, PAGE);
	struct gmem_source *s;

	two(fds);
	fds[2] = other;
	CHECK_ERR(gmem_source_new_layers(fds, 0, &s), -EINVAL);
	for (int i = 0; i < 257; i++)
		many[i] = fds[0];
	CHECK_ERR(gmem_source_new_layers(many, 257, &s), -EINVAL);
	CHECK(ftruncate(other, 7 * PAGE) == 0);
	CHECK_ERR(gmem_source_new_layers(fds, 3, &s), -EINVAL);
	CHECK_HAS(gmem_last_error(), "layer 2 has 28672 bytes, the lowest 32768");
	/* A copy that filled the holes. */
	CHECK(pwrite(other, all, 8 * PAGE, 0) == 8 * PAGE);
	CHECK_ERR(gmem_source_new_layers(fds, 3, &s), -EINVAL);
	CHECK_HAS(gmem_last_error(), "layer 2 has no holes");
	fds[2] = dir;
	CHECK_ERR(gmem_source_new_layers(fds, 3, &s), -EINVAL);
	fds[2] = -1;
	CHECK_ERR(gmem_source_new_layers(fds, 3, &s), -EBADF);
	/* The lowest one may well have all. */
	fds[2] = fds[1];
	fds[1] = fds[0];
	fds[0] = other;
	CHECK_OK(gmem_source_new_layers(fds, 3, &s));
	gmem_source_unref(s);
	/* And one that has nothing hides nothing. */
	CHECK(ftruncate(other, 0) == 0 && ftruncate(other, 8 * PAGE) == 0);
	fds[0] = fds[1];
	fds[1] = other;
	CHECK_OK(gmem_source_new_layers(fds, 3, &s));
	CHECK_OK(gmem_source_read(s, 0, all, 8 * PAGE));
	CHECK(all[0] == 1 && all[2 * PAGE] == 2);
	gmem_source_unref(s);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	close(dir);
	free(all);
}

/* A file system of one's own, in a mount namespace of one's own. */
static char *mount_own(const char *type, const char *options)
{
	char *folder = make_folder();

	if (unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNS : CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount(type, folder, type, 0, options) < 0) {
		int err = errno;

		rmdir(folder);
		SKIP("mount", "a mount of %s: %s", type, strerror(err));
	}
	return folder;
}

static void refused_there(const char *type, const char *options, const char *why)
{
	char *folder = mount_own(type, options), *path = file_in(folder, "layer");
	struct gmem_source *s;
	struct stat st;
	int fds[2];

	two(fds);
	close(fds[1]);
	fds[1] = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fds[1] >= 0 && ftruncate(fds[0], 4 << 20) == 0 && ftruncate(fds[1], 4 << 20) == 0);
	CHECK(pwrite(fds[1], "x", 1, 3 * PAGE) == 1 && fstat(fds[1], &st) == 0);
	age(fds[0]);
	age(fds[1]);
	if (options && st.st_blksize <= (blksize_t)PAGE) {
		close(fds[0]);
		close(fds[1]);
		umount(folder);
		drop_folder(folder);
		SKIP("thp", "no large pages in tmpfs");
	}
	CHECK_ERR(gmem_source_new_layers(fds, 2, &s), -EINVAL);
	CHECK_HAS(gmem_last_error(), why);
	close(fds[0]);
	close(fds[1]);
	unlink(path);
	free(path);
	CHECK(umount(folder) == 0);
	drop_folder(folder);
}

TEST(a_file_system_without_holes_is_refused)
{
	refused_there("ramfs", NULL, "layer 1 has no holes");
}

TEST(a_file_system_with_large_units_is_refused)
{
	refused_there("tmpfs", "huge=always", "in units of 2097152 bytes");
}
