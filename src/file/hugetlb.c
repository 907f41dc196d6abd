/* SPDX-License-Identifier: MIT */
/*
 * The user engine's memory as huge pages of 2 MiB: a memfd of hugetlbfs, all of them reserved when it is made.
 *
 * State words are of 4 KiB, memory comes and goes by 2 MiB. So a page without a word in place may have memory all the
 * same, zero or what a mapping has put there, because a neighbour has. hugetlbfs reads and allocates by system call and
 * writes by mapping alone: bytes go into the file's window, by process_vm_writev(2), over memory that is there already.
 * Which pages have memory it does not say (mincore(2) looks at page tables, lseek(2) says everywhere); the *lens* does,
 * a mapping registered with a userfault descriptor that answers every touch of a hole with an error.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/backing.h"
#include "file/gate.h"
#include "file/hugetlb.h"
#include "file/protect.h"
#include "sys/call.h"
#include "sys/hugepages.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

#define UNIT GMEM_HUGE_SIZE
#define MAX_TRIES 100 /* to reserve what was just given up: a reference to it may last a moment */

struct gmem_huge_lens {
	char *addr; /* read-only */
	int uffd;
};

static uint64_t unit_of(uint64_t off)
{
	return off & ~(UNIT - 1);
}

static uint64_t unit_up(uint64_t off)
{
	return unit_of(off + UNIT - 1);
}

/* ---- making one */

int gmem_hugetlb_check(uint64_t len, uint32_t flags)
{
	if ((flags & GMEM_FILE_HUGE_FALLBACK) && !(flags & GMEM_FILE_HUGETLB))
		return gmem_err(-EINVAL, "gmem_file_create: GMEM_FILE_HUGE_FALLBACK without GMEM_FILE_HUGETLB");
	if (!(flags & GMEM_FILE_HUGETLB))
		return 0;
	if (flags & (GMEM_FILE_THP | GMEM_FILE_STRICT))
		return gmem_err(-EINVAL, "gmem_file_create: GMEM_FILE_HUGETLB together with %s",
				flags & GMEM_FILE_THP ? "GMEM_FILE_THP" : "GMEM_FILE_STRICT");
	if (len & (UNIT - 1))
		return gmem_err(-EINVAL, "gmem_file_create: length %llu: not a multiple of the huge page, %llu",
				(unsigned long long)len, (unsigned long long)UNIT);
	return 0;
}

/* "8 huge pages of 2048 kB wanted, 3 of 4 free: ..." */
static void say_lack(uint64_t wanted, char *text, size_t len)
{
	struct gmem_huge_pool pool;
	int n;

	gmem_huge_pool(&pool);
	n = snprintf(text, len, "%llu huge pages of 2048 kB wanted, %llu of %llu free", (unsigned long long)wanted,
		     (unsigned long long)pool.free, (unsigned long long)pool.total);
	if (pool.free < wanted)
		snprintf(text + n, len - (size_t)n, ": echo %llu > " GMEM_HUGE_DIR "/nr_hugepages",
			 (unsigned long long)(pool.total + wanted - pool.free));
	else
		snprintf(text + n, len - (size_t)n, ": a control group's limit (hugetlb.2MB.rsvd.max), or no room");
}

void gmem_huge_note_advice(char *note, size_t len)
{
	char word[32];

	gmem_huge_shmem(word, sizeof(word));
	snprintf(note, len, "; huge pages by advice (shmem_enabled: %s)", word);
}

/* Huge pages there are none of: small ones, if that was asked for. */
static int fall_back(struct gmem_file *file, const char *name, int why, char *note, size_t len)
{
	char lack[192], advice[64];
	int fd;

	if (why == -ENOMEM)
		say_lack(file->len >> GMEM_HUGE_SHIFT, lack, sizeof(lack));
	else
		snprintf(lack, sizeof(lack), "no huge pages of 2048 kB here (%s)", strerror(-why));
	if (!(file->flags & GMEM_FILE_HUGE_FALLBACK))
		return gmem_err(why == -ENOMEM ? why : -EOPNOTSUPP, "gmem_file_create: %s", lack);
	fd = gmem_memfd_create(name, file->len);
	if (fd < 0)
		return gmem_err_sys(fd, "gmem_file_create: memory file of %llu bytes", (unsigned long long)file->len);
	file->fd = fd;
	file->flags = (file->flags & ~GMEM_FILE_HUGETLB) | GMEM_FILE_THP | GMEM_FILE_COARSE;
	gmem_huge_note_advice(advice, sizeof(advice));
	snprintf(note, len, "; small pages, %s%s", lack, advice);
	return 0;
}

int gmem_hugetlb_make(struct gmem_file *file, const char *name, char *note, size_t len)
{
	int fd = gmem_memfd_create_huge(name, file->len), err;

	if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
		return gmem_err_sys(fd, "gmem_file_create");
	if (fd < 0)
		return fall_back(file, name, fd, note, len);
	err = gmem_memfd_reserve(fd, 0, file->len);
	if (err) {
		close(fd);
		return fall_back(file, name, -ENOMEM, note, len);
	}
	file->fd = fd;
	snprintf(note, len, "; %llu huge pages of 2048 kB, reserved",
		 (unsigned long long)(file->len >> GMEM_HUGE_SHIFT));
	return 0;
}

/* ---- which pages have memory */

static void free_lens(struct gmem_huge_lens *lens, uint64_t len)
{
	if (lens->addr)
		munmap(lens->addr, len);
	close(lens->uffd);
	free(lens);
}

static struct gmem_huge_lens *new_lens(const struct gmem_file *file)
{
	struct gmem_huge_lens *lens = malloc(sizeof(*lens));
	bool user_mode_only;
	void *p;

	if (!lens)
		return NULL;
	*lens = (struct gmem_huge_lens){
		.uffd = gmem_sys_uffd_open(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_HUGETLBFS, &user_mode_only)
	};
	if (lens->uffd < 0) {
		free(lens);
		return NULL;
	}
	p = mmap(NULL, file->len, PROT_READ, MAP_SHARED | MAP_NORESERVE, file->fd, 0);
	if (p != MAP_FAILED)
		lens->addr = p;
	if (p == MAP_FAILED || madvise(p, file->len, MADV_DONTFORK) ||
	    gmem_sys_uffd_register(lens->uffd, (uint64_t)(uintptr_t)p, file->len, GMEM_SYS_UFFD_MISSING)) {
		free_lens(lens, file->len);
		return NULL;
	}
	return lens;
}

/*
 * NULL: no userfaultfd; or a forked child, which has not got it; or a peer, whose mapping the one who converts would
 * take for a stranger's.
 */
static struct gmem_huge_lens *lens_of(struct gmem_file *file)
{
	struct gmem_huge_lens *lens = atomic_load(&file->lens), *none = NULL;

	if (!gmem_file_ours(file) || file->opened)
		return NULL;
	if (lens)
		return lens;
	lens = new_lens(file);
	if (lens && !atomic_compare_exchange_strong(&file->lens, &none, lens)) {
		free_lens(lens, file->len);
		return none;
	}
	return lens;
}

char *gmem_hugetlb_lens_place(const struct gmem_file *file)
{
	const struct gmem_huge_lens *lens = gmem_file_ours(file) ? atomic_load(&file->lens) : NULL;

	return lens ? lens->addr : NULL;
}

void gmem_hugetlb_destroy(struct gmem_file *file)
{
	struct gmem_huge_lens *lens = atomic_load(&file->lens);

	if (!lens)
		return;
	/* A child has no such mapping: something else may be there. */
	if (!gmem_file_ours(file))
		lens->addr = NULL;
	free_lens(lens, file->len);
}

/* Where nothing can tell, all is data: who asks then reads zeroes, and spares no memory. */
static int64_t next(const struct gmem_file *file, uint64_t off, bool data)
{
	struct gmem_huge_lens *lens = lens_of((struct gmem_file *)file);
	char byte;

	if (!lens)
		return data && off < file->len ? (int64_t)off : -ENXIO;
	for (uint64_t at = unit_of(off); at < file->len; at += UNIT)
		if ((gmem_sys_peek(&byte, lens->addr + at, 1) == 1) == data)
			return (int64_t)gmem_max_u64(off, at);
	return -ENXIO;
}

static int64_t next_data(const struct gmem_file *file, uint64_t off)
{
	return next(file, off, true);
}

static int64_t next_hole(const struct gmem_file *file, uint64_t off)
{
	return next(file, off, false);
}

static bool has_memory(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	return gmem_file_has_memory(file, unit_of(off), unit_up(off + len) - unit_of(off));
}

/* ---- the bytes */

static int read_bytes(struct gmem_file *file, uint64_t off, void *buf, uint64_t len)
{
	return gmem_pread_all(file->fd, buf, len, off);
}

static int poke(char *to, const void *buf, uint64_t len)
{
	ssize_t n = gmem_sys_poke(to, buf, len);

	return n == (ssize_t)len ? 0 : n < 0 && n != -EFAULT ? (int)n : -EIO;
}

/* A forked child, and a peer, have no window: a mapping for this once. */
static int write_for_once(const struct gmem_file *file, uint64_t off, const void *buf, uint64_t len)
{
	uint64_t first = unit_of(off), map_len = unit_up(off + len) - first;
	char *p = mmap(NULL, map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file->fd, (off_t)first);
	int err;

	if (p == MAP_FAILED)
		return -errno;
	err = poke(p + (off - first), buf, len);
	munmap(p, map_len);
	return err;
}

static int write_bytes(struct gmem_file *file, uint64_t off, const void *buf, uint64_t len)
{
	/* Memory that runs out is an error here, and would be one without a name there. */
	int err = gmem_hugetlb_allocate(file, off, len);
	char *window;

	if (err)
		return err;
	if (!gmem_file_ours(file) || file->opened)
		return write_for_once(file, off, buf, len);
	window = gmem_file_window(file);
	return window ? poke(window + off, buf, len) : -ENOMEM;
}

static int reserve_again(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err;

	for (int i = 0; (err = gmem_memfd_reserve(file->fd, off, len)) && i < MAX_TRIES; i++)
		sched_yield();
	return err;
}

/*
 * The kernel zeroes what is part of a huge page, and gives back whole ones, with their reservation: that is taken
 * again, or the next touch might find no page. Gates are held meanwhile: no guest touches one then.
 */
static int punch(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t from = unit_up(off), to = unit_of(off + len);
	int err;

	if (from >= to)
		return gmem_memfd_punch(file->fd, off, len);
	err = gmem_gates_hold(file, from, to - from);
	if (err)
		return err;
	err = gmem_memfd_punch(file->fd, off, len);
	if (!err)
		err = reserve_again(file, from, to - from);
	gmem_gates_let_go(file, true);
	return err;
}

/* ---- markers that went with a punched page */

/* What the host has put into a private page between punch and mark is zeroed, in halves: that keeps the mark. */
static int zero_unit(struct gmem_file *file, uint64_t off)
{
	int err = gmem_memfd_punch(file->fd, off, UNIT / 2);

	return err ? err : gmem_memfd_punch(file->fd, off + UNIT / 2, UNIT / 2);
}

static int mark_unit(struct gmem_file *file, uint64_t off)
{
	bool marked = false;
	int err = 0;

	for (struct gmem_view *view = file->views; view && !err; view = view->next) {
		uint64_t part = off, len = UNIT;

		/* An empty file that is mapped over the page is still there. */
		if (view->by_mapping || !gmem_view_part(view, &part, &len))
			continue;
		err = gmem_view_mark(view, part, len);
		marked = true;
	}
	return err || !marked || !has_memory(file, off, UNIT) ? err : zero_unit(file, off);
}

int gmem_hugetlb_mark_again(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = 0;

	for (uint64_t at = unit_up(off); at < unit_of(off + len) && !err; at += UNIT)
		if (gmem_file_private(file, at))
			err = mark_unit(file, at);
	/* Those of write-protected pages have gone too. */
	for (struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t first = unit_up(off), n = unit_of(off + len) - first;

		if (unit_of(off + len) > first && gmem_view_part(view, &first, &n))
			gmem_view_protect_again(view, first, n);
	}
	return err;
}

const struct gmem_backing_ops gmem_hugetlb_backing = {
	.can_userfault = gmem_backing_can_userfault,
	.present = gmem_backing_present,
	.lookup = gmem_backing_lookup,
	.adopt = gmem_unit_adopt,
	.alloc = gmem_backing_alloc,
	.insert = gmem_unit_insert,
	.publish = gmem_backing_publish,
	.remove = gmem_unit_remove,
	.read = read_bytes,
	.write = write_bytes,
	.allocate = gmem_hugetlb_allocate,
	.punch = punch,
	.next_data = next_data,
	.next_hole = next_hole,
};
