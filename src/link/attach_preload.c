/* SPDX-License-Identifier: MIT */
/*
 * libgmem-attach.so: preloaded into a program whose memory gmem restores.
 *
 * Enters: the program's own calls. Every mapping of the guest memory is registered with userfaultfd before the
 * program gets its address, so before its first touch, and handed to the keeper; every hole the program punches is
 * noted in the page-state table, because a memory file sends no event for it. Leaves: the calls' own results. A
 * mapping that cannot be served safely fails with the reason told to the keeper, and the program sees EPERM: it must
 * not run on memory that would read as zero. Guarded by `lock`.
 *
 * GMEM_ATTACH_FD is the socket to the keeper. The variables of this preload are removed from the environment at once,
 * so that programs started by this one are not attached.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/attach.h"

#define PUBLIC __attribute__((visibility("default")))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards `attach` and what is sent through it */
static struct gmem_attach attach;
static bool attached; /* set once, before main() */
static bool forked; /* in a child: the userfault descriptor serves its parent */

static void *(*real_mmap)(void *, size_t, int, int, int, off64_t);
static void *(*real_mremap)(void *, size_t, size_t, int, ...);
static int (*real_munmap)(void *, size_t);
static int (*real_fallocate)(int, int, off64_t, off64_t);
static int (*real_madvise)(void *, size_t, int);

/* Our own constructor may run after another library's has mapped something. */
static void find_real(void)
{
	if (real_mmap)
		return;
	real_fallocate = (int (*)(int, int, off64_t, off64_t))dlsym(RTLD_NEXT, "fallocate64");
	real_madvise = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
	real_mremap = (void *(*)(void *, size_t, size_t, int, ...))dlsym(RTLD_NEXT, "mremap");
	real_munmap = (int (*)(void *, size_t))dlsym(RTLD_NEXT, "munmap");
	real_mmap = (void *(*)(void *, size_t, int, int, int, off64_t))dlsym(RTLD_NEXT, "mmap64");
}

static void drop_from_preload(void)
{
	const char *list = getenv("LD_PRELOAD");
	char *kept, *out, *word, *save = NULL, *copy;

	if (!list)
		return;
	copy = strdup(list);
	kept = calloc(1, strlen(list) + 2);
	if (copy && kept) {
		out = kept;
		for (word = strtok_r(copy, ": ", &save); word; word = strtok_r(NULL, ": ", &save)) {
			if (strstr(word, "libgmem-attach.so"))
				continue;
			if (out != kept)
				*out++ = ':';
			out = stpcpy(out, word);
		}
		if (*kept)
			setenv("LD_PRELOAD", kept, 1);
		else
			unsetenv("LD_PRELOAD");
	}
	free(kept);
	free(copy);
}

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
	pthread_mutex_unlock(&lock);
}

/* A program that becomes a daemon before it maps anything is still the one. */
static void in_child(void)
{
	forked = attach.uffd >= 0;
	pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void)
{
	const char *number = getenv("GMEM_ATTACH_FD");
	int sock;

	find_real();
	drop_from_preload();
	if (!number)
		return;
	sock = atoi(number);
	unsetenv("GMEM_ATTACH_FD");
	if (sock < 3 || fcntl(sock, F_SETFD, FD_CLOEXEC) || pthread_atfork(before_fork, in_parent, in_child) ||
	    gmem_attach_open(sock, &attach)) {
		/* Unattached, the program would run on memory that reads as zero. */
		dprintf(STDERR_FILENO, "libgmem-attach: no keeper at descriptor %d (GMEM_ATTACH_FD); giving up\n",
			sock);
		_exit(126);
	}
	attached = true;
}

/* The file that descriptor fd is of, if it is guest memory. */
static struct gmem_attach_file *guest_memory(int fd)
{
	struct stat st;

	if (!attached || fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return NULL;
	return gmem_attach_find(&attach, st.st_dev, st.st_ino);
}

static int attach_mapping(struct gmem_attach_file *file, int fd, void *addr, size_t len, int flags, off64_t off)
{
	uint64_t pages = gmem_page_round_down((uint64_t)len + GMEM_PAGE_SIZE - 1);
	int err;

	if ((flags & MAP_TYPE) == MAP_PRIVATE)
		err = gmem_err(-EINVAL,
			       "a private mapping of guest memory (share=off): writes would not reach the file");
	else if (flags & (MAP_POPULATE | MAP_LOCKED))
		err = gmem_err(
			-EINVAL,
			"a mapping of guest memory with MAP_POPULATE or MAP_LOCKED: touched before it can be served");
	/* What a child touched of it would not be served: better that it does not have it. */
	else if (real_madvise(addr, len, MADV_DONTFORK))
		err = gmem_err_sys(-errno, "a mapping of guest memory: MADV_DONTFORK");
	else
		err = gmem_attach_region(&attach, file, fd, (uint64_t)(uintptr_t)addr, (uint64_t)off, pages);
	if (err)
		gmem_attach_failed(&attach, err);
	return err;
}

static void *map(void *hint, size_t len, int prot, int flags, int fd, off64_t off)
{
	struct gmem_attach_file *file;
	int saved = errno;
	void *addr;
	int err;

	find_real();
	file = (flags & MAP_ANONYMOUS) ? NULL : guest_memory(fd);
	errno = saved;
	if (!file)
		return real_mmap(hint, len, prot, flags, fd, off);
	if (forked) {
		errno = EPERM;
		return MAP_FAILED;
	}
	/* What is refused must not be touched by the kernel either. */
	/*
	 * Closed until it is registered: mlockall(MCL_FUTURE), or a thread that knows a fixed address, would touch
	 * it.
	 */
	addr = real_mmap(hint, len, PROT_NONE, flags & ~(MAP_POPULATE | MAP_LOCKED), fd, off);
	if (addr == MAP_FAILED)
		return addr;
	pthread_mutex_lock(&lock);
	err = attach_mapping(file, fd, addr, len, flags, off);
	pthread_mutex_unlock(&lock);
	if (!err && mprotect(addr, len, prot)) {
		saved = errno;
		real_munmap(addr, len);
		errno = saved;
		return MAP_FAILED;
	}
	if (err) {
		real_munmap(addr, len);
		errno = EPERM;
		return MAP_FAILED;
	}
	errno = saved;
	return addr;
}

PUBLIC void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return map(addr, len, prot, flags, fd, off);
}

PUBLIC void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	return map(addr, len, prot, flags, fd, off);
}

/* The one thing fallocate() can drop pages of a memory file by; anything else fails, and drops none. */
static bool punches(int fd, int mode, off64_t off, off64_t len)
{
	return mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) && off >= 0 && len > 0 && off <= INT64_MAX - len &&
	       (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
}

/*
 * Before the bytes go: a page that is noted as removed and still has them reads as whichever comes first, as it would
 * without us.
 */
static void note_removed(struct gmem_attach_file *file, uint64_t off, uint64_t len)
{
	uint64_t end = gmem_range_inside(off, len, file->len) ? off + len : file->len;
	/* A page that goes in part is zeroed in part and keeps the rest: it is not unwanted. */
	uint64_t first = (off + GMEM_PAGE_SIZE - 1) >> GMEM_PAGE_SHIFT;

	for (uint64_t page = first; page < end >> GMEM_PAGE_SHIFT; page++)
		gmem_state_remove(&file->state, page);
}

static int do_fallocate(int fd, int mode, off64_t off, off64_t len)
{
	struct gmem_attach_file *file;
	int saved = errno;

	find_real();
	file = punches(fd, mode, off, len) ? guest_memory(fd) : NULL;
	errno = saved;
	if (file)
		note_removed(file, (uint64_t)off, (uint64_t)len);
	return real_fallocate(fd, mode, off, len);
}

PUBLIC int fallocate(int fd, int mode, off_t off, off_t len)
{
	return do_fallocate(fd, mode, off, len);
}

PUBLIC int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return do_fallocate(fd, mode, off, len);
}

/* What [start, end) covers of the mappings of one file. */
static void note_removed_mapped(struct gmem_attach_file *file, uint64_t start, uint64_t end)
{
	struct gmem_state_header *h = file->state.header;
	uint32_t n = (uint32_t)gmem_min_u64(atomic_load(&h->nregions), GMEM_STATE_MAX_REGIONS);

	for (uint32_t i = 0; i < n; i++) {
		const struct gmem_state_region *r = &h->regions[i];
		uint64_t from = gmem_max_u64(start, r->hva), to = gmem_min_u64(end, r->hva + r->len);

		if (from < to)
			note_removed(file, r->off + (from - r->hva), to - from);
	}
}

/*
 * What is mapped at [start, end) from now on is not what was noted there. Parts are left: their pages are the file's
 * still.
 */
static void forget(uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; attached && i < attach.nfiles; i++) {
		struct gmem_state_header *h = attach.files[i].state.header;
		uint32_t n = (uint32_t)gmem_min_u64(atomic_load(&h->nregions), GMEM_STATE_MAX_REGIONS);

		for (uint32_t k = 0; k < n; k++) {
			struct gmem_state_region *r = &h->regions[k];

			if (!r->len || r->hva < start || r->hva + r->len > end)
				continue;
			r->len = 0;
			close(r->fd);
		}
	}
}

PUBLIC int munmap(void *addr, size_t len)
{
	uint64_t start = (uint64_t)(uintptr_t)addr;

	find_real();
	if (attached) {
		pthread_mutex_lock(&lock);
		forget(start, gmem_page_round_down(start + len + GMEM_PAGE_SIZE - 1));
		pthread_mutex_unlock(&lock);
	}
	return real_munmap(addr, len);
}

/* The kernel drops the registration of a mapping that moves, and one that grows holds pages nobody serves. */
PUBLIC void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
	uint64_t start = (uint64_t)(uintptr_t)addr;
	void *new_addr = NULL;
	va_list ap;

	find_real();
	for (uint32_t i = 0; attached && i < attach.nfiles; i++) {
		const struct gmem_state_header *h = attach.files[i].state.header;
		uint32_t n = (uint32_t)gmem_min_u64(atomic_load(&h->nregions), GMEM_STATE_MAX_REGIONS);

		for (uint32_t k = 0; k < n; k++) {
			if (!gmem_range_overlaps(start, old_len, h->regions[k].hva, h->regions[k].len))
				continue;
			errno = EPERM;
			return MAP_FAILED;
		}
	}
	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(ap, flags);
		new_addr = va_arg(ap, void *);
		va_end(ap);
	}
	return real_mremap(addr, old_len, new_len, flags, new_addr);
}

PUBLIC int madvise(void *addr, size_t len, int advice)
{
	uint64_t start = (uint64_t)(uintptr_t)addr;
	uint64_t end = start + gmem_page_round_down((uint64_t)len + GMEM_PAGE_SIZE - 1);

	find_real();
	/* A child has no mapping of guest memory; what is not aligned fails. */
	if (attached && !forked && advice == MADV_REMOVE && gmem_page_aligned(start))
		for (uint32_t i = 0; i < attach.nfiles; i++)
			note_removed_mapped(&attach.files[i], start, end);
	return real_madvise(addr, len, advice);
}
