/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "file/file.h"
#include "file_util.h"
#include "sys/memfd.h"

TEST(create_errors)
{
	struct gmem_file_opts o = { .size = sizeof(o) };
	struct gmem_file *file = (void *)1;
	char name[80];

	CHECK_ERR(gmem_file_create(0, NULL, &file), -EINVAL);
	CHECK_ERR(gmem_file_create(1, NULL, &file), -EINVAL);
	CHECK_ERR(gmem_file_create(4097, NULL, &file), -EINVAL);
	CHECK_ERR(gmem_file_create(UINT64_MAX & ~4095ull, NULL, &file), -EINVAL);
	o.size = 4;
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o = (struct gmem_file_opts){ .size = sizeof(o), .flags = 1u << 31 };
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o = (struct gmem_file_opts){ .size = sizeof(o), .engine = 77 };
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	memset(name, 'n', sizeof(name));
	name[65] = '\0';
	o = (struct gmem_file_opts){ .size = sizeof(o), .name = name };
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o.name = "a/b";
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o.name = "";
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	CHECK(file == (void *)1);
	CHECK_HAS(gmem_last_error(), "gmem_file_create");
}

TEST(create_shows_its_name)
{
	char path[64], link[128], name[65];
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_USER, .name = name };
	struct gmem_file *file;
	ssize_t n;

	memset(name, 'n', 64);
	name[64] = '\0';
	CHECK_OK(gmem_file_create(P, &o, &file));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", gmem_file_fd(file));
	n = readlink(path, link, sizeof(link) - 1);
	CHECK(n > 0);
	link[n] = '\0';
	CHECK_HAS(link, "memfd:gmem-nnnn");
	CHECK_EQ(fcntl(gmem_file_fd(file), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	CHECK_EQ(fcntl(gmem_file_state_fd(file), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	/* Nobody can shrink it under a mapping. */
	CHECK(ftruncate(gmem_file_fd(file), 0) != 0);
	gmem_file_free(file);
	gmem_file_free(NULL);
}

TEST(create_without_descriptors)
{
	struct gmem_file *file = (void *)1;
	int fds[1024], n = 0;

	/* With no descriptor left, then with one: enough for the memory and not for its states. */
	while (n < 1024 && (fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		n++;
	if (n == 1024)
		SKIP("limits", "more than 1024 descriptors are allowed here");
	CHECK_ERR(gmem_file_create(P, NULL, &file), -EMFILE);
	close(fds[--n]);
	CHECK_ERR(gmem_file_create(P, NULL, &file), -EMFILE);
	CHECK(file == (void *)1);
	while (n)
		close(fds[--n]);
}

TEST(open_errors)
{
	struct gmem_file *a = new_file(16 * P), *b = new_file(16 * P), *c = (void *)1;
	int p[2], memory;

	CHECK_ERR(gmem_file_open(gmem_file_fd(a), gmem_file_state_fd(b), &c), -EINVAL);
	CHECK_HAS(gmem_last_error(), "another memory");
	CHECK_ERR(gmem_file_open(-1, gmem_file_state_fd(b), &c), -EBADF);
	CHECK_ERR(gmem_file_open(gmem_file_fd(a), -1, &c), -EBADF);
	CHECK_ERR(gmem_file_open(gmem_file_state_fd(a), gmem_file_state_fd(a), &c), -EINVAL);
	CHECK_ERR(gmem_file_open(gmem_file_fd(a), gmem_file_fd(a), &c), -EINVAL);
	CHECK_EQ(pipe(p), 0);
	CHECK_ERR(gmem_file_open(p[0], gmem_file_state_fd(a), &c), -EINVAL);
	CHECK_ERR(gmem_file_open(gmem_file_fd(a), p[0], &c), -EINVAL);
	close(p[0]);
	close(p[1]);
	/* Of the same size, and of none. */
	memory = gmem_memfd_create("gmem-x", 16 * P);
	CHECK_ERR(gmem_file_open(memory, gmem_file_state_fd(a), &c), -EINVAL);
	close(memory);
	atomic_store(&a->state.header->nregions, 0);
	a->state.header->version++;
	CHECK_ERR(gmem_file_open(gmem_file_fd(a), gmem_file_state_fd(a), &c), -EPROTONOSUPPORT);
	a->state.header->version--;
	a->state.header->npages++;
	CHECK_ERR(gmem_file_open(gmem_file_fd(a), gmem_file_state_fd(a), &c), -EINVAL);
	a->state.header->npages--;
	CHECK(c == (void *)1);
	CHECK_OK(gmem_file_open(gmem_file_fd(a), gmem_file_state_fd(a), &c));
	CHECK_EQ(gmem_file_size(c), 16 * P);
	gmem_file_free(c);
	gmem_file_free(a);
	gmem_file_free(b);
}

TEST(another_process_sees_the_same)
{
	struct gmem_file *file = new_file(16 * P), *other;
	char byte = 'x', buf[2];
	int status;
	pid_t pid;

	CHECK_OK(gmem_file_write(file, 3 * P + 5, &byte, 1));
	pid = fork();
	if (!pid) {
		CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &other));
		CHECK_EQ(gmem_file_page_state(other, 3 * P), GMEM_PAGE_UPTODATE);
		CHECK_EQ(gmem_file_page_state(other, 4 * P), GMEM_PAGE_ABSENT);
		CHECK_OK(gmem_file_read(other, 3 * P + 5, buf, 2));
		CHECK_EQ(buf[0], 'x');
		CHECK_EQ(buf[1], 0);
		CHECK_OK(gmem_file_write(other, 7 * P, "y", 1));
		CHECK_OK(gmem_file_punch(other, 3 * P, P));
		gmem_file_free(other);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(gmem_file_page_state(file, 3 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(file, 7 * P), GMEM_PAGE_UPTODATE);
	CHECK_OK(gmem_file_read(file, 7 * P, buf, 1));
	CHECK_EQ(buf[0], 'y');
	gmem_file_free(file);
}

TEST(ranges_are_checked)
{
	struct gmem_file *file = new_file(16 * P);
	char buf[16];

	CHECK_ERR(gmem_file_punch(file, 1, P), -EINVAL);
	CHECK_ERR(gmem_file_punch(file, 0, 100), -EINVAL);
	CHECK_ERR(gmem_file_punch(file, 0, 0), -EINVAL);
	CHECK_ERR(gmem_file_punch(file, 0, 17 * P), -ERANGE);
	CHECK_ERR(gmem_file_punch(file, 16 * P, P), -ERANGE);
	CHECK_ERR(gmem_file_punch(file, P, -P), -ERANGE);
	CHECK_ERR(gmem_file_read(file, 16 * P - 1, buf, 2), -ERANGE);
	CHECK_ERR(gmem_file_read(file, UINT64_MAX, buf, 2), -ERANGE);
	CHECK_ERR(gmem_file_write(file, 16 * P - 1, buf, 2), -ERANGE);
	CHECK_ERR(gmem_file_write(file, UINT64_MAX - 3, buf, 16), -ERANGE);
	CHECK_EQ(query(file).absent, 16);
	CHECK_OK(gmem_file_read(file, 16 * P, buf, 0));
	CHECK_OK(gmem_file_write(file, 16 * P - 16, buf, 16));
	CHECK_ERR(gmem_file_page_state(file, 16 * P), -ERANGE);
	CHECK_ERR(gmem_file_page_state(file, UINT64_MAX), -ERANGE);
	CHECK_EQ(gmem_file_page_state(file, 16 * P - 1), GMEM_PAGE_UPTODATE);
	CHECK_ERR(gmem_file_query(file, &(struct gmem_file_counts){ .size = 8 }), -EINVAL);
	gmem_file_free(file);
}

TEST(punch_drops_bytes_for_good)
{
	struct gmem_file *file = new_file(64 * P);
	static char ones[8 * 4096], buf[8 * 4096], zero[8 * 4096];
	struct gmem_file_counts c;

	memset(ones, 1, sizeof(ones));
	CHECK_OK(gmem_file_write(file, 0, ones, sizeof(ones)));
	c = query(file);
	CHECK_EQ(c.uptodate, 8);
	CHECK_EQ(c.resident, 8 * P);
	/* Some that are in place, some that never were. */
	CHECK_OK(gmem_file_punch(file, 4 * P, 8 * P));
	c = query(file);
	CHECK_EQ(c.uptodate, 4);
	CHECK_EQ(c.removed, 8);
	CHECK_EQ(c.absent, 52);
	CHECK_EQ(c.resident, 4 * P);
	CHECK_OK(gmem_file_read(file, 0, buf, sizeof(buf)));
	CHECK_MEM(buf, ones, 4 * P);
	CHECK_MEM(buf + 4 * P, zero, 4 * P);
	/* Written again: the rest of the page stays zero. */
	CHECK_OK(gmem_file_write(file, 5 * P + 100, "again", 5));
	CHECK_OK(gmem_file_read(file, 5 * P, buf, P));
	CHECK_MEM(buf, zero, 100);
	CHECK_MEM(buf + 100, "again", 5);
	CHECK_MEM(buf + 105, zero, P - 105);
	gmem_file_free(file);
}

TEST(sparse_tebibyte)
{
	struct gmem_file *file = new_file(1ull << 40);
	struct gmem_file_counts c;
	struct timespec a, b;

	CHECK_OK(gmem_file_write(file, 0, "a", 1));
	CHECK_OK(gmem_file_write(file, (1ull << 39) + 77, "b", 1));
	CHECK_OK(gmem_file_write(file, (1ull << 40) - 1, "c", 1));
	CHECK_OK(gmem_file_punch(file, 1ull << 30, 1 << 20));
	clock_gettime(CLOCK_MONOTONIC, &a);
	c = query(file);
	clock_gettime(CLOCK_MONOTONIC, &b);
	CHECK_EQ(c.uptodate, 3);
	CHECK_EQ(c.removed, 256);
	/* Looking at every word would take a GiB of reads. */
	CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 200);
	gmem_file_free(file);
}

/* To look for the end of a hole once a page took minutes. */
TEST(holes_of_a_large_guest_memfd)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	static char buf[1 << 20], want[1 << 20];
	struct gmem_file *file;
	struct timespec a, b;
	int err = gmem_file_create(1ull << 34, &o, &file);

	if (err)
		SKIP("kvm", "%s", gmem_last_error());
	CHECK_OK(gmem_file_write(file, 5 * P + 7, "here", 4));
	memcpy(want + 5 * P + 7, "here", 4);
	clock_gettime(CLOCK_MONOTONIC, &a);
	CHECK_OK(gmem_file_read(file, 0, buf, sizeof(buf)));
	clock_gettime(CLOCK_MONOTONIC, &b);
	CHECK_MEM(buf, want, sizeof(buf));
	CHECK_EQ(query(file).resident, P);
	CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 2000);
	gmem_file_free(file);
}

/* Random writes, punches and reads against a plain array. */
TEST_TIMEOUT(model, 60)
{
	enum { PAGES = 37 };
	static unsigned char model[PAGES * 4096], buf[PAGES * 4096];
	static bool written[PAGES], punched[PAGES];
	struct gmem_file *file = new_file(sizeof(model)), *other;
	uint64_t seed = tap_seed();

	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &other));
	for (int i = 0; i < 6000; i++) {
		struct gmem_file *f = tap_rand(&seed) & 1 ? file : other;
		uint64_t off = tap_rand(&seed) % sizeof(model);
		uint64_t len = tap_rand(&seed) % (tap_rand(&seed) & 1 ? 200 : 20000);

		if (len > sizeof(model) - off)
			len = sizeof(model) - off;
		switch (tap_rand(&seed) % 4) {
		case 0:
			off &= ~4095ull;
			len = (1 + len / 4096) * 4096;
			if (len > sizeof(model) - off)
				len = sizeof(model) - off;
			CHECK_OK(gmem_file_punch(f, off, len));
			memset(model + off, 0, len);
			for (uint64_t p = off / 4096; p < (off + len) / 4096; p++) {
				punched[p] = true;
				written[p] = false;
			}
			break;
		case 1:
			CHECK_OK(gmem_file_read(f, off, buf, len));
			CHECK_MEM(buf, model + off, len);
			break;
		default:
			for (uint64_t k = 0; k < len; k++)
				buf[k] = (unsigned char)tap_rand(&seed);
			CHECK_OK(gmem_file_write(f, off, buf, len));
			memcpy(model + off, buf, len);
			for (uint64_t p = off / 4096; len && p <= (off + len - 1) / 4096; p++)
				written[p] = true;
			break;
		}
		if (i % 500 == 0) {
			CHECK_OK(gmem_file_read(other, 0, buf, sizeof(model)));
			CHECK_MEM(buf, model, sizeof(model));
			for (uint64_t p = 0; p < PAGES; p++) {
				int state = gmem_file_page_state(file, p * 4096);

				CHECK_EQ(state, punched[p] ? GMEM_PAGE_REMOVED :
						written[p] ? GMEM_PAGE_UPTODATE :
							     GMEM_PAGE_ABSENT);
			}
		}
	}
	gmem_file_free(other);
	gmem_file_free(file);
}
