/* SPDX-License-Identifier: MIT */
#include "vm/caller.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/place.h"
#include "sys/call.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

#define CHUNK (2ull << 20) /* a large page */

/* ---- whose it is */

struct shows {
	const struct gmem_state_header *h;
	uint64_t hva, off, ours;
};

static int compare(void *opaque, const struct gmem_sys_mapping *m)
{
	struct shows *s = opaque;

	if (m->dev != s->h->dev || m->ino != s->h->ino)
		return 0;
	if (!m->shared || m->off != s->off + (m->hva - s->hva))
		return gmem_err(-EOPNOTSUPP, "hva 0x%llx shows the file at another offset, or a private copy of it",
				(unsigned long long)m->hva);
	s->ours += m->end - m->hva;
	return 0;
}

int gmem_caller_shows(const char *hva, uint64_t len, const struct gmem_file *file, uint64_t off, uint64_t *ret)
{
	struct shows s = { .h = file->state.header, .hva = (uintptr_t)hva, .off = off };
	int err = gmem_mappings_each(hva, len, compare, &s);

	*ret = s.ours;
	return err;
}

/* ---- adopting */

/* What takes the place of one mapping. */
struct adoption {
	char *hva;
	uint64_t len;
	int prot;
	int fd; /* of the new memory */
	int uffd; /* keeps threads waiting that touch what has been taken away */
	char *bounce; /* CHUNK */
};

static bool is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, GMEM_PAGE_SIZE - 1);
}

/* Zero need not be written: the new memory is. */
static int write_chunk(const struct adoption *a, uint64_t off, uint64_t n)
{
	int err = 0;

	for (uint64_t at = 0, to; at < n && !err; at = to) {
		to = at + GMEM_PAGE_SIZE;
		if (is_zero(a->bounce + at))
			continue;
		while (to < n && !is_zero(a->bounce + to))
			to += GMEM_PAGE_SIZE;
		err = gmem_pwrite_all(a->fd, a->bounce + at, to - at, off + at);
	}
	return err;
}

/*
 * Moves pages back. If there are no mappings for that, copies of them are put there, which needs none; and if there is
 * no memory for those: they are nobody's else, so until there is. What cannot be read was lost before.
 */
static void put_back(const struct adoption *a, char *at, char *old, uint64_t n)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	if (mremap(old, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED)
		return;
	/* A page that is there has no toucher waiting, and may have been written to: from now on it is this way. */
	for (uint64_t done = 0, unused; done < n;) {
		int err = gmem_sys_uffd_copy(a->uffd, (uintptr_t)at + done, (uintptr_t)old + done, GMEM_PAGE_SIZE,
					     GMEM_SYS_UFFD_DONTWAKE, &unused);

		if (!err || err == -EEXIST || err == -EFAULT)
			done += GMEM_PAGE_SIZE;
		else
			nanosleep(&pause, NULL);
	}
	munmap(old, n);
}

/*
 * The pages are moved away, and who touches them waits. If they cannot be copied they are moved back. `wake` comes in
 * either case.
 */
static int adopt_chunk(const struct adoption *a, uint64_t off, uint64_t n)
{
	char *at = a->hva + off, *old = mremap(at, n, n, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ssize_t done;
	int err;

	if (old == MAP_FAILED)
		return -errno;
	done = gmem_sys_peek(a->bounce, old, n);
	err = done == (ssize_t)n ? write_chunk(a, off, n) : done < 0 && done != -EFAULT ? (int)done : -EHWPOISON;
	if (!err && mmap(at, n, a->prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, a->fd, (off_t)off) == MAP_FAILED)
		err = -errno;
	if (!err)
		munmap(old, n);
	else
		put_back(a, at, old, n);
	(void)gmem_sys_uffd_wake(a->uffd, (uintptr_t)at, n);
	return err;
}

static int adopt_chunks(const struct adoption *a)
{
	uint64_t off = 0;
	int err = 0;

	while (off < a->len && !err) {
		uint64_t hva = (uintptr_t)a->hva + off;
		uint64_t n = gmem_min_u64((hva | (CHUNK - 1)) + 1 - hva, a->len - off);

		err = adopt_chunk(a, off, n);
		off += n;
	}
	return err;
}

static int is_private(void *opaque, const struct gmem_sys_mapping *m)
{
	uint64_t *len = opaque;

	*len += m->shared || m->ino ? 0 : m->end - m->hva;
	return 0;
}

/* Since it was looked at another thread may have adopted it. What is registered nobody else adopts. -ESTALE. */
static int check_still_private(const struct adoption *a)
{
	uint64_t len = 0;
	int err = gmem_mappings_each(a->hva, a->len, is_private, &len);

	return !err && len != a->len ? -ESTALE : err;
}

static int adopt(char *hva, uint64_t len, int prot)
{
	struct adoption a = { .hva = hva, .len = len, .prot = prot, .fd = -1, .uffd = -1 };
	bool user_mode_only;
	int err;

	a.uffd = gmem_sys_uffd_open(0, &user_mode_only);
	if (a.uffd < 0)
		return a.uffd == -EMFILE || a.uffd == -ENFILE ? a.uffd : -EOPNOTSUPP;
	a.bounce = malloc(CHUNK);
	err = a.bounce ? 0 : -ENOMEM;
	if (!err)
		a.fd = gmem_memfd_create("gmem-adopted", len);
	if (a.fd < 0 && !err)
		err = a.fd;
	if (!err)
		err = gmem_sys_uffd_register(a.uffd, (uintptr_t)hva, len, GMEM_SYS_UFFD_MISSING);
	if (!err)
		err = check_still_private(&a);
	if (!err)
		err = adopt_chunks(&a);
	/* Whoever waits still goes on. */
	close(a.uffd);
	if (a.fd >= 0)
		close(a.fd);
	free(a.bounce);
	return err;
}

/* 1: another descriptor has it; 0: none has, or there is no userfaultfd at all. */
static int is_registered(char *page)
{
	bool user_mode_only;
	int fd = gmem_sys_uffd_open(0, &user_mode_only), err;

	if (fd < 0)
		return fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM ? fd : 0;
	err = gmem_sys_uffd_register(fd, (uintptr_t)page, GMEM_PAGE_SIZE, GMEM_SYS_UFFD_MISSING);
	close(fd);
	return err == -EBUSY;
}

/*
 * One page mapped twice, and away with it. A server of the memory that asks to be told of what is moved has the second
 * mapping too, and is told of a move; and who moves waits until it listens.
 */
static int try_twice(char *hva)
{
	char *p = mremap(hva, 0, GMEM_PAGE_SIZE, MREMAP_MAYMOVE);
	int told;

	if (p == MAP_FAILED)
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	told = is_registered(p);
	munmap(p, GMEM_PAGE_SIZE);
	return told > 0 ? -EREMCHG : told;
}

static int explain(const struct gmem_sys_mapping *m, int err)
{
	if (!err)
		return 0;
	if (err == -EREMCHG)
		return gmem_err(-EOPNOTSUPP,
				"hva 0x%llx: who serves it asks to be told of moves (UFFD_FEATURE_EVENT_REMAP)",
				(unsigned long long)m->hva);
	return gmem_err(err, "hva 0x%llx to 0x%llx: %s", (unsigned long long)m->hva, (unsigned long long)m->end,
			err == -EBUSY	   ? "private memory that is registered with userfaultfd: map it shared" :
			err == -EOPNOTSUPP ? "memory that cannot be mapped a second time: map it shared" :
			err == -EHWPOISON  ? "some of it is poisoned" :
					     strerror(-err));
}

static int check(void *opaque, const struct gmem_sys_mapping *m)
{
	char *hva = (char *)(uintptr_t)m->hva;
	int err;

	(void)opaque;
	if (m->shared)
		return explain(m, try_twice(hva));
	if (m->ino || !(m->prot & PROT_READ))
		return explain(m, -EOPNOTSUPP);
	err = is_registered(hva);
	return explain(m, err > 0 ? -EBUSY : err);
}

static int make_shared(void *opaque, const struct gmem_sys_mapping *m)
{
	(void)opaque;
	return m->shared ? 0 : explain(m, adopt((char *)(uintptr_t)m->hva, m->end - m->hva, m->prot));
}

/* Threads of this process that have begun to adopt memory, which is registered meanwhile, and that are through. */
static struct {
	_Atomic pid_t pid;
	_Atomic uint64_t begun, ended;
} adoptions;

/* A forked child has none of the threads that were at it. */
static void know_process(void)
{
	pid_t me = getpid(), was = atomic_load(&adoptions.pid);

	if (was != me && atomic_compare_exchange_strong(&adoptions.pid, &was, me))
		atomic_store(&adoptions.ended, atomic_load(&adoptions.begun));
}

/* All that can be known before it is: what is adopted stays so. *ret_others: another thread was at it meanwhile. */
static int try_make_shared(char *hva, uint64_t len, bool *ret_others)
{
	uint64_t ended = atomic_load(&adoptions.ended), number = atomic_fetch_add(&adoptions.begun, 1) + 1;
	int err = gmem_mappings_each(hva, len, check, NULL);

	if (!err)
		err = gmem_mappings_each(hva, len, make_shared, NULL);
	*ret_others = ended < number - 1 || atomic_load(&adoptions.begun) > number;
	atomic_fetch_add(&adoptions.ended, 1);
	return err;
}

int gmem_caller_make_shared(char *hva, uint64_t len)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	bool others;
	int err;

	know_process();
	/* It may be one of the others who has registered it, or has adopted it since. */
	while ((err = try_make_shared(hva, len, &others)) == -ESTALE || (err == -EBUSY && others))
		nanosleep(&pause, NULL);
	return err;
}
