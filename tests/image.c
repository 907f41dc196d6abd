/* SPDX-License-Identifier: MIT */
/* Images written and read back; what is left when writing does not end well. */
#include "tap.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "image/image.h"
#include "image_util.h"

static void check_equal(struct gmem_image *image, size_t region, const uint8_t *want, uint64_t len, uint64_t seed)
{
	uint8_t *got = malloc(len);

	memset(got, 0x5a, len);
	CHECK_OK(gmem_image_read(image, region, 0, got, len));
	CHECK_MEM(got, want, len);
	memset(got, 0x5a, len);
	for (uint64_t off = 0; off < len; off += PAGE)
		CHECK_OK(gmem_image_read(image, region, off, got + off, PAGE));
	CHECK_MEM(got, want, len);
	for (int i = 0; i < 40; i++) {
		uint64_t off = tap_rand(&seed) % (len / PAGE) * PAGE;
		uint64_t n = tap_rand(&seed) % ((len - off) / PAGE + 1) % 1500 * PAGE;

		memset(got, 0x5a, n < len ? n + 1 : n);
		CHECK_OK(gmem_image_read(image, region, off, got, n));
		CHECK_MEM(got, want + off, n);
		CHECK(n == len || got[n] == 0x5a);
	}
	free(got);
}

static void round_trip(enum gmem_compression compression, uint32_t chunk_len, uint64_t npages, uint64_t seed)
{
	struct gmem_image_writer_opts opts = writer_opts(compression, chunk_len);
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	struct gmem_image_region region = { .size = sizeof(region) };
	struct gmem_image_writer *writer;
	struct gmem_image *image;
	uint8_t *copy;
	int fd = make_memory(npages, seed, (unsigned int)(seed % 5), &copy);

	CHECK_OK(gmem_image_create(path, &opts, &writer));
	CHECK_OK(gmem_image_add_region(writer, "ram0", 0x100000, fd, 0, npages * PAGE, NULL, NULL));
	CHECK_OK(gmem_image_commit(writer));
	CHECK_OK(gmem_image_open(path, &image));
	CHECK_EQ(gmem_image_nregions(image), 1);
	CHECK_OK(gmem_image_region(image, 0, &region));
	CHECK_STR(region.name, "ram0");
	CHECK_EQ(region.gpa, 0x100000);
	CHECK_EQ(region.len, npages * PAGE);
	for (uint64_t i = 0; i < npages; i++)
		for (size_t j = 0; j < PAGE; j++)
			if (copy[i * PAGE + j]) {
				region.data_pages--;
				break;
			}
	CHECK_EQ(region.data_pages, 0);
	check_equal(image, 0, copy, npages * PAGE, seed);
	CHECK_OK(gmem_image_verify(image, NULL, NULL, NULL, NULL));
	gmem_image_close(image);
	close(fd);
	free(copy);
	free(path);
	drop_folder(folder);
}

TEST_TIMEOUT(what_is_written_is_read_for_every_chunk_length, 120)
{
	static const uint64_t sizes[] = { 1, 2, 15, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1021, 2500 };
	uint64_t seed = tap_seed();

	for (uint32_t chunk = 4096; chunk <= 256 * 1024; chunk *= 2)
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			round_trip(GMEM_COMPRESS_NONE, chunk, sizes[i], tap_rand(&seed));
			round_trip(GMEM_COMPRESS_ZSTD, chunk, sizes[i], tap_rand(&seed));
		}
}

TEST_TIMEOUT(defaults_and_a_deep_index, 120)
{
	uint64_t seed = tap_seed();

	/* 33000 pages in 4 KiB chunks: 258 leaves, two branches and one above them. */
	round_trip(GMEM_COMPRESS_NONE, 0, 33000, tap_rand(&seed));
	round_trip(GMEM_COMPRESS_ZSTD, 0, 9000, tap_rand(&seed));
}

TEST(regions_and_sections_keep_apart)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	uint64_t seed = tap_seed();
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	struct gmem_image_writer *writer;
	struct gmem_image *image;
	uint8_t *copy[3];
	int fd[3];
	void *data;
	size_t len;

	CHECK_OK(gmem_image_create(path, NULL, &writer));
	CHECK_OK(gmem_image_add_section(writer, "device-state", "state", 5));
	for (int i = 0; i < 3; i++) {
		char name[] = { 'r', 'a', 'm', (char)('0' + i), 0 };

		fd[i] = make_memory(300, tap_rand(&seed), 2, &copy[i]);
		CHECK(lseek(fd[i], 4242, SEEK_SET) == 4242);
		/* From the second page on. */
		CHECK_OK(gmem_image_add_region(writer, name, UINT64_MAX, fd[i], PAGE, 299 * PAGE, NULL, NULL));
		CHECK_EQ(lseek(fd[i], 0, SEEK_CUR), 4242);
		CHECK_ERR(gmem_image_add_region(writer, name, UINT64_MAX, fd[i], 0, PAGE, NULL, NULL), -EEXIST);
	}
	CHECK_OK(gmem_image_add_section(writer, "empty", "", 0));
	CHECK_ERR(gmem_image_add_section(writer, "empty", "", 0), -EEXIST);
	CHECK_ERR(gmem_image_add_section(writer, "", "", 0), -EINVAL);
	CHECK_ERR(gmem_image_add_section(writer, "two words", "", 0), -EINVAL);
	CHECK_ERR(gmem_image_add_region(writer, "ram9", 0, fd[0], 0, 301 * PAGE, NULL, NULL), -EINVAL);
	CHECK_ERR(gmem_image_add_region(writer, "ram9", 0, fd[0], 0, 0, NULL, NULL), -EINVAL);
	CHECK_ERR(gmem_image_add_region(writer, "ram9", 1, fd[0], 0, PAGE, NULL, NULL), -EINVAL);
	CHECK_OK(gmem_image_commit(writer));
	CHECK_OK(gmem_image_open(path, &image));
	CHECK_EQ(gmem_image_nregions(image), 3);
	for (size_t i = 0; i < 3; i++) {
		check_equal(image, i, copy[i] + PAGE, 299 * PAGE, seed);
		CHECK_OK(gmem_image_region(image, i, &region));
		CHECK(region.gpa == UINT64_MAX && region.name[3] == (char)('0' + i));
		close(fd[i]);
		free(copy[i]);
	}
	CHECK_OK(gmem_image_section(image, "device-state", &data, &len));
	CHECK_EQ(len, 5);
	CHECK_MEM(data, "state", 6);
	free(data);
	CHECK_OK(gmem_image_section(image, "empty", &data, &len));
	CHECK_EQ(len, 0);
	free(data);
	CHECK_ERR(gmem_image_section(image, "no", &data, &len), -ENOENT);
	CHECK_ERR(gmem_image_region(image, 3, &region), -ERANGE);
	CHECK_ERR(gmem_image_read(image, 3, 0, &seed, 0), -ERANGE);
	CHECK_ERR(gmem_image_read(image, 0, 299 * PAGE, &seed, PAGE), -ERANGE);
	CHECK_ERR(gmem_image_read(image, 0, 1, &seed, PAGE), -EINVAL);
	CHECK_ERR(gmem_image_read(image, 0, PAGE, &seed, (size_t)-PAGE), -ERANGE);
	gmem_image_close(image);
	free(path);
	drop_folder(folder);
}

TEST(a_tebibyte_of_nothing_is_small_and_quick)
{
	uint64_t len = UINT64_C(1) << 40, last = len - PAGE;
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	int fd = memfd_create("gmem-test", MFD_CLOEXEC);
	struct gmem_image_writer *writer;
	struct gmem_image *image;
	uint8_t page[PAGE];
	struct stat st;

	if (ftruncate(fd, (off_t)len) < 0)
		SKIP("sparse", "no memory file of 1 TiB here: %s", strerror(errno));
	for (int none = 0; none < 2; none++) {
		struct gmem_image_writer_opts opts = writer_opts(none ? GMEM_COMPRESS_NONE : GMEM_COMPRESS_ZSTD, 0);

		CHECK(pwrite(fd, "first", 5, 0) == 5 && pwrite(fd, "last", 4, (off_t)last) == 4);
		CHECK_OK(gmem_image_create(path, &opts, &writer));
		CHECK_OK(gmem_image_add_region(writer, "ram", 0, fd, 0, len, NULL, NULL));
		CHECK_OK(gmem_image_commit(writer));
		CHECK(stat(path, &st) == 0 && st.st_size < 64 * 1024);
		CHECK_OK(gmem_image_open(path, &image));
		CHECK_OK(gmem_image_read(image, 0, 0, page, PAGE));
		CHECK_MEM(page, "first", 6);
		CHECK_OK(gmem_image_read(image, 0, last, page, PAGE));
		CHECK_MEM(page, "last", 5);
		CHECK_OK(gmem_image_read(image, 0, len / 2, page, PAGE));
		CHECK(page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0);
		CHECK_OK(gmem_image_verify(image, NULL, NULL, NULL, NULL));
		gmem_image_close(image);
	}
	close(fd);
	free(path);
	drop_folder(folder);
}

static int stop_at(void *opaque, uint64_t done, uint64_t total)
{
	return done >= *(uint64_t *)opaque ? -ECANCELED : 0;
}

TEST(what_fails_leaves_nothing_and_the_old_image_stays)
{
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem"), *nowhere = file_in(folder, "no/vm.gmem");
	struct gmem_image_writer_opts opts = writer_opts(GMEM_COMPRESS_ZSTD, 0);
	struct gmem_image_writer *writer;
	uint64_t seed = tap_seed(), half = 2000 * PAGE;
	uint8_t *copy, *old, *now;
	size_t old_len, now_len;
	int fd = make_memory(4000, seed, 0, &copy);

	CHECK_OK(gmem_image_create(path, NULL, &writer));
	CHECK_OK(gmem_image_commit(writer));
	old = slurp(path, &old_len);

	CHECK_OK(gmem_image_create(path, NULL, &writer));
	CHECK_EQ(count_files(folder, false), 2);
	gmem_image_abort(writer);
	gmem_image_abort(NULL);
	CHECK_EQ(count_files(folder, false), 1);

	CHECK_OK(gmem_image_create(path, NULL, &writer));
	CHECK_EQ(gmem_image_add_region(writer, "ram", 0, fd, 0, 4000 * PAGE, stop_at, &half), -ECANCELED);
	CHECK_ERR(gmem_image_add_section(writer, "s", "", 0), -ECANCELED);
	CHECK_ERR(gmem_image_commit(writer), -ECANCELED);
	CHECK_EQ(count_files(folder, false), 1);

	CHECK_ERR(gmem_image_create(nowhere, NULL, &writer), -ENOENT);
	CHECK_ERR(gmem_image_create(folder, NULL, &writer), -EISDIR);
	CHECK_ERR(gmem_image_create("/dev/null", NULL, &writer), -EINVAL);
	opts.chunk_len = 12288;
	CHECK_ERR(gmem_image_create(path, &opts, &writer), -EINVAL);
	opts.chunk_len = 0;
	opts.level = 20;
	CHECK_ERR(gmem_image_create(path, &opts, &writer), -EINVAL);

	now = slurp(path, &now_len);
	CHECK_EQ(now_len, old_len);
	CHECK_MEM(now, old, old_len);
	CHECK_EQ(count_files(folder, false), 1);
	close(fd);
	free(copy);
	free(old);
	free(now);
	free(path);
	free(nowhere);
	drop_folder(folder);
}

TEST(an_image_is_for_its_owner_alone_whatever_the_umask)
{
	static const mode_t masks[] = { 0, 022, 077, 0777 };
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	struct gmem_image_writer *writer;
	struct stat st;

	for (size_t i = 0; i < 4; i++) {
		mode_t old = umask(masks[i]);

		CHECK_OK(gmem_image_create(path, NULL, &writer));
		CHECK_OK(gmem_image_commit(writer));
		umask(old);
		CHECK(stat(path, &st) == 0);
		CHECK_EQ(st.st_mode & 07777, 0600);
	}
	free(path);
	drop_folder(folder);
}

/* Saves 16 MiB of random bytes to `folder`, where there is no room for them; `limit`, if not 0, is set before. */
static void fill_up(const char *folder, rlim_t limit, int error)
{
	char *path = file_in(folder, "vm.gmem");
	struct gmem_image_writer *writer;
	uint64_t seed = tap_seed();
	uint8_t page[PAGE];
	struct rlimit rl;
	int fd = memfd_create("gmem-test", MFD_CLOEXEC);

	for (uint64_t i = 0; i < 4096; i++) {
		fill_page(page, &seed, true);
		CHECK(pwrite(fd, page, PAGE, (off_t)(i * PAGE)) == PAGE);
	}
	CHECK(getrlimit(RLIMIT_FSIZE, &rl) == 0);
	if (limit)
		rl.rlim_cur = limit;
	CHECK(setrlimit(RLIMIT_FSIZE, &rl) == 0);
	CHECK_OK(gmem_image_create(path, NULL, &writer));
	CHECK_ERR(gmem_image_add_region(writer, "ram", 0, fd, 0, 4096 * PAGE, NULL, NULL), error);
	CHECK_HAS(gmem_last_error(), "no space left for");
	CHECK_HAS(gmem_last_error(), "of about 17 MiB");
	CHECK_ERR(gmem_image_commit(writer), error);
	CHECK_EQ(count_files(folder, false), 0);
	close(fd);
	free(path);
}

TEST(a_file_size_limit_is_told_as_such)
{
	char *folder = make_folder();

	signal(SIGXFSZ, SIG_IGN);
	fill_up(folder, 3 << 20, -EFBIG);
	drop_folder(folder);
}

TEST(a_full_disk_is_told_as_such)
{
	char *folder = make_folder();

	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", folder, "tmpfs", 0, "size=2m") < 0) {
		int err = errno;

		drop_folder(folder);
		SKIP("root", "cannot mount a small tmpfs: %s", strerror(err));
	}
	fill_up(folder, 0, -ENOSPC);
	CHECK(umount(folder) == 0);
	drop_folder(folder);
}

TEST(killed_while_writing_leaves_nothing_under_the_name)
{
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	uint64_t seed = tap_seed();
	uint8_t *copy;
	int fd = make_memory(8000, seed, 0, &copy), kills = 0;

	for (int i = 0; i < 20; i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			struct gmem_image_writer *writer;

			CHECK_OK(gmem_image_create(path, NULL, &writer));
			for (int n = 0;; n++) {
				char name[16];

				snprintf(name, sizeof(name), "ram%d", n);
				if (n == 200)
					_exit(1);
				CHECK_OK(gmem_image_add_region(writer, name, 0, fd, 0, 8000 * PAGE, NULL, NULL));
			}
		}
		usleep((useconds_t)(1000 + tap_rand(&seed) % 60000));
		kill(pid, SIGKILL);
		CHECK(waitpid(pid, &status, 0) == pid);
		kills += WIFSIGNALED(status);
		CHECK(access(path, F_OK) < 0 && errno == ENOENT);
		count_files(folder, true);
	}
	CHECK_EQ(kills, 20);
	close(fd);
	free(copy);
	free(path);
	drop_folder(folder);
}

TEST(of_two_writers_of_one_name_the_last_wins_whole)
{
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	struct gmem_image_writer *a, *b;
	uint64_t seed = tap_seed();
	struct gmem_image *image;
	uint8_t *copy_a, *copy_b, uuid[16];
	int fd_a = make_memory(500, tap_rand(&seed), 1, &copy_a), fd_b = make_memory(700, tap_rand(&seed), 1, &copy_b);

	CHECK_OK(gmem_image_create(path, NULL, &a));
	CHECK_OK(gmem_image_create(path, NULL, &b));
	CHECK_OK(gmem_image_add_region(b, "b", 0, fd_b, 0, 700 * PAGE, NULL, NULL));
	CHECK_OK(gmem_image_add_region(a, "a", 0, fd_a, 0, 500 * PAGE, NULL, NULL));
	CHECK_OK(gmem_image_commit(b));
	CHECK_OK(gmem_image_open(path, &image));
	check_equal(image, 0, copy_b, 700 * PAGE, seed);
	memcpy(uuid, gmem_image_uuid(image), 16);
	CHECK_OK(gmem_image_commit(a));
	/* The one that is open stays what it was. */
	check_equal(image, 0, copy_b, 700 * PAGE, seed);
	gmem_image_close(image);
	CHECK_OK(gmem_image_open(path, &image));
	check_equal(image, 0, copy_a, 500 * PAGE, seed);
	CHECK(memcmp(uuid, gmem_image_uuid(image), 16) != 0);
	gmem_image_close(image);
	CHECK_EQ(count_files(folder, false), 1);
	close(fd_a);
	close(fd_b);
	free(copy_a);
	free(copy_b);
	free(path);
	drop_folder(folder);
}

struct reader {
	struct gmem_image *image;
	const uint8_t *copy;
	uint64_t npages, seed;
};

static void *read_some(void *arg)
{
	struct reader *r = arg;
	uint8_t *got = malloc(64 * PAGE);

	for (int i = 0; i < 1500; i++) {
		uint64_t page = tap_rand(&r->seed) % r->npages, n = 1 + tap_rand(&r->seed) % 64;

		if (i % 2)
			n = 1;
		if (n > r->npages - page)
			n = r->npages - page;
		CHECK_OK(gmem_image_read(r->image, 0, page * PAGE, got, n * PAGE));
		CHECK_MEM(got, r->copy + page * PAGE, n * PAGE);
	}
	free(got);
	return NULL;
}

TEST_TIMEOUT(many_threads_read_one_image, 90)
{
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	uint64_t seed = tap_seed();
	uint8_t *copy;
	int fd = make_memory(6000, seed, 2, &copy);

	for (int none = 0; none < 2; none++) {
		struct gmem_image_writer_opts opts = writer_opts(none ? GMEM_COMPRESS_NONE : GMEM_COMPRESS_ZSTD, 0);
		struct gmem_image_writer *writer;
		struct reader readers[8];
		pthread_t threads[8];
		struct gmem_image *image;

		CHECK_OK(gmem_image_create(path, &opts, &writer));
		CHECK_OK(gmem_image_add_region(writer, "ram", 0, fd, 0, 6000 * PAGE, NULL, NULL));
		CHECK_OK(gmem_image_commit(writer));
		CHECK_OK(gmem_image_open(path, &image));
		for (int i = 0; i < 8; i++) {
			readers[i] = (struct reader){ image, copy, 6000, tap_rand(&seed) };
			CHECK(pthread_create(&threads[i], NULL, read_some, &readers[i]) == 0);
		}
		for (int i = 0; i < 8; i++)
			pthread_join(threads[i], NULL);
		gmem_image_close(image);
	}
	close(fd);
	free(copy);
	free(path);
	drop_folder(folder);
}
