/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-convert [-f] [-r ROUNDS] [-m MIB] FOLDER: what does it cost to make memory private, and shared again?
 *
 * gmem_file_set_attributes() of one page, of 2 MiB and of all of a file that has one view, beside the two calls that
 * keep the host out and the one that lets it in: MADV_DONTNEED and UFFDIO_POISON on a registered mapping, and
 * MADV_DONTNEED. All memory is in place, and every page is touched before it goes. Also with a machine that has the
 * file in a slot. Whether the host is kept out is looked at by a system call.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFDIO_POISON
struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct poison)
#else
#define poison uffdio_poison
#define updated pages_updated_or_error
#endif

#define LARGE ((size_t)2 << 20)

enum kind { BARE, OURS, OURS_BOUND, NKINDS };

struct memory {
	enum kind kind;
	char *addr;
	int fd, uffd; /* BARE */
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_vm *vm;
};

static size_t len;

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_POISON };
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		printf("SKIPPED: userfaultfd: %s; to run it: see gmem info\n", strerror(errno));
		exit(77);
	}
	if (ioctl(fd, UFFDIO_API, &api)) {
		printf("SKIPPED: no page markers: %s; they need Linux 6.6\n", strerror(errno));
		exit(77);
	}
	return fd;
}

static void set_up_bare(struct memory *m)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };

	m->fd = bench_memfd(len);
	m->addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->fd, 0);
	m->uffd = open_uffd();
	reg.range.start = (uintptr_t)m->addr;
	reg.range.len = len;
	if (m->addr == MAP_FAILED || ioctl(m->uffd, UFFDIO_REGISTER, &reg))
		bench_die("registering");
}

static void set_up(struct memory *m, enum kind kind)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = 1ull << 32, .len = len };

	*m = (struct memory){ .kind = kind };
	if (kind == BARE) {
		set_up_bare(m);
	} else {
		if (gmem_file_create(len, NULL, &m->file) ||
		    gmem_view_map(m->file, 0, len, PROT_READ | PROT_WRITE, &m->view))
			bench_die("file");
		m->addr = gmem_view_addr(m->view);
		slot.file = m->file;
		if (kind == OURS_BOUND && (gmem_vm_create(NULL, &m->vm) || gmem_vm_set_slot(m->vm, &slot)))
			bench_die("machine");
	}
	memset(m->addr, 'x', len);
}

static void tear_down(struct memory *m)
{
	if (m->kind == BARE) {
		munmap(m->addr, len);
		close(m->uffd);
		close(m->fd);
		return;
	}
	gmem_vm_free(m->vm);
	gmem_view_unmap(m->view);
	gmem_file_free(m->file);
}

static void to_private(const struct memory *m, size_t off, size_t n)
{
	struct poison p = { .range = { .start = (uintptr_t)m->addr + off, .len = n } };

	if (m->kind != BARE) {
		if (gmem_file_set_attributes(m->file, off, n, GMEM_ATTRIBUTE_PRIVATE, NULL))
			bench_die("to private");
		return;
	}
	if (madvise(m->addr + off, n, MADV_DONTNEED))
		bench_die("madvise");
	if (ioctl(m->uffd, UFFDIO_POISON, &p) || p.updated != (int64_t)n)
		bench_die("UFFDIO_POISON");
}

static void to_shared(const struct memory *m, size_t off, size_t n)
{
	if (m->kind != BARE && gmem_file_set_attributes(m->file, off, n, 0, NULL))
		bench_die("to shared");
	if (m->kind == BARE && madvise(m->addr + off, n, MADV_DONTNEED))
		bench_die("madvise");
}

/* May the host read it? */
static void check(const struct memory *m, size_t off, bool may)
{
	char byte;
	struct iovec local = { &byte, 1 }, remote = { m->addr + off, 1 };

	if ((process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1) != may || (may && byte != 'x'))
		bench_die("the host reads %#zx: it should be %d", off, may);
}

static void touch_all(const struct memory *m, size_t n, size_t count)
{
	for (size_t at = 0; at < n * count; at += BENCH_PAGE)
		(void)*(volatile char *)(m->addr + at);
}

/* `count` ranges of n bytes, one after the other; microseconds each. */
static void measure(const struct memory *m, size_t n, size_t count, double *private, double *shared)
{
	double start;

	touch_all(m, n, count);
	start = bench_now();
	for (size_t i = 0; i < count; i++)
		to_private(m, i * n, n);
	*private = (bench_now() - start) * 1e6 / (double)count;
	check(m, 0, false);
	check(m, n * count - 1, false);
	start = bench_now();
	for (size_t i = 0; i < count; i++)
		to_shared(m, i * n, n);
	*shared = (bench_now() - start) * 1e6 / (double)count;
	check(m, 0, true);
	check(m, n * count - 1, true);
}

int main(int argc, char **argv)
{
	static const char *const kinds[] = { "bare", "gmem", "gmem, in a machine's slot" };
	struct bench_row *private[3][NKINDS], *shared[3][NKINDS];
	struct memory m[NKINDS];
	static struct bench b;
	char size[3][32];
	size_t n[3], count[3];

	bench_begin(&b, "convert", 1024, argc, argv);
	len = (size_t)b.mib << 20;
	if (len < 2 * LARGE)
		bench_die("at least %zu MiB", 2 * LARGE >> 20);
	for (int i = 0; i < 3; i++) {
		n[i] = i == 0 ? BENCH_PAGE : i == 1 ? LARGE : len;
		count[i] = i == 0 ? 1024 : i == 1 ? len / LARGE : 1;
		snprintf(size[i], sizeof(size[i]), i == 0 ? "one page" : "%zu MiB", n[i] >> 20);
		for (int k = 0; k < NKINDS; k++) {
			const char *call = k ? "" : ": MADV_DONTNEED and UFFDIO_POISON";

			private[i][k] = bench_row(&b, "us", k ? private[i][0] : NULL, "%s to private: %s%s", size[i],
						  kinds[k], call);
		}
		for (int k = 0; k < NKINDS; k++)
			shared[i][k] = bench_row(&b, "us", k ? shared[i][0] : NULL, "%s to shared: %s%s", size[i],
						 kinds[k], k ? "" : ": MADV_DONTNEED");
		bench_target(&b, private[i][OURS], false, 1.3, "%s to private beside the bare calls", size[i]);
		bench_target(&b, shared[i][OURS], false, 1.3, "%s to shared beside the bare call", size[i]);
	}
	for (int k = 0; k < NKINDS; k++)
		set_up(&m[k], (enum kind)k);
	/* The first conversion registers the view, and is not counted. */
	for (unsigned int round = 0; round <= b.rounds; round++) {
		for (int i = 0; i < 3; i++) {
			for (int k = 0; k < NKINDS; k++) {
				double there, back;

				measure(&m[k], n[i], count[i], &there, &back);
				if (!round)
					continue;
				bench_add(private[i][k], there);
				bench_add(shared[i][k], back);
			}
		}
	}
	for (int k = 0; k < NKINDS; k++)
		tear_down(&m[k]);
	return bench_end(&b);
}
