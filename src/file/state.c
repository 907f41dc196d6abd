/* SPDX-License-Identifier: MIT */
#include "file/state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/memfd.h"

static uint64_t round_up(uint64_t len)
{
	return gmem_page_round_down(len + GMEM_PAGE_SIZE - 1);
}

/* Pages of their own, so that pages nobody converts need no memory for it. */
static uint64_t flips_at(uint64_t npages)
{
	return round_up(GMEM_STATE_HEADER_LEN + npages * sizeof(uint32_t));
}

static uint64_t given_at(uint64_t npages)
{
	return flips_at(npages) + round_up((npages + 63) / 64 * sizeof(uint64_t));
}

static uint64_t peers_at(uint64_t npages)
{
	return given_at(npages) + round_up((npages + 63) / 64 * sizeof(uint64_t));
}

static uint64_t table_len(uint64_t npages)
{
	return peers_at(npages) + GMEM_STATE_MAX_PEERS * GMEM_STATE_PEER_LEN;
}

static int map(struct gmem_state *s, int fd, uint64_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "page-state table of %llu bytes", (unsigned long long)len);
	s->header = p;
	s->words = (_Atomic uint32_t *)((char *)p + GMEM_STATE_HEADER_LEN);
	s->map_len = len;
	s->fd = fd;
	return 0;
}

static void set_pages(struct gmem_state *s, uint64_t npages)
{
	s->npages = npages;
	s->init_private = s->header->init_private;
	s->flips = (_Atomic uint64_t *)((char *)s->header + flips_at(npages));
	s->given = (_Atomic uint64_t *)((char *)s->header + given_at(npages));
	s->peers = (char *)s->header + peers_at(npages);
}

/* Takes fd, on success. */
static int begin(struct gmem_state *s, int fd, uint64_t npages, bool init_private)
{
	uint64_t cookie;
	int err;

	if (getrandom(&cookie, sizeof(cookie), 0) != sizeof(cookie))
		return gmem_err_sys(-errno, "page-state table: random number");
	err = map(s, fd, table_len(npages));
	if (err)
		return err;
	s->header->init_private = init_private;
	set_pages(s, npages);
	s->header->magic = GMEM_STATE_MAGIC;
	s->header->version = GMEM_STATE_VERSION;
	s->header->page_shift = GMEM_PAGE_SHIFT;
	s->header->npages = npages;
	s->header->cookie = cookie;
	atomic_store(&s->header->uses, init_private ? GMEM_USE_PRIVATE : 0);
	return 0;
}

int gmem_state_create(struct gmem_state *s, uint64_t npages, bool init_private)
{
	uint64_t len = table_len(npages);
	int fd, err;

	fd = gmem_memfd_create("gmem-state", len);
	if (fd < 0)
		return gmem_err_sys(fd, "page-state table of %llu bytes", (unsigned long long)len);
	err = begin(s, fd, npages, init_private);
	if (err)
		close(fd);
	return err;
}

int gmem_state_create_in(struct gmem_state *s, int fd, uint64_t npages)
{
	uint64_t len = table_len(npages);

	if (ftruncate(fd, (off_t)len))
		return gmem_err_sys(-errno, "page-state table of %llu bytes", (unsigned long long)len);
	return begin(s, fd, npages, false);
}

/* Takes fd, on success. */
static int take_up(struct gmem_state *s, int fd, uint64_t size)
{
	int err = map(s, fd, size);

	if (err)
		return err;
	err = -EINVAL;
	if (s->header->magic != GMEM_STATE_MAGIC) {
		gmem_err(err, "page-state table: no magic number");
		goto out_unmap;
	}
	if (s->header->version != GMEM_STATE_VERSION || s->header->page_shift != GMEM_PAGE_SHIFT) {
		err = gmem_err(-EPROTONOSUPPORT, "page-state table: layout %u, this gmem knows %u", s->header->version,
			       GMEM_STATE_VERSION);
		goto out_unmap;
	}
	s->npages = s->header->npages;
	if (s->npages > size / sizeof(uint32_t) || table_len(s->npages) != size) {
		gmem_err(err, "page-state table: says %llu pages in %llu bytes", (unsigned long long)s->npages,
			 (unsigned long long)size);
		goto out_unmap;
	}
	set_pages(s, s->npages);
	return 0;

out_unmap:
	munmap(s->header, s->map_len);
	*s = (struct gmem_state){ .fd = -1 };
	return err;
}

static int size_of(int fd, uint64_t *ret)
{
	struct stat st;

	if (fstat(fd, &st))
		return gmem_err_sys(-errno, "page-state table");
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)(GMEM_STATE_HEADER_LEN + sizeof(uint32_t)))
		return gmem_err(-EINVAL, "page-state table: not one (%lld bytes)", (long long)st.st_size);
	*ret = (uint64_t)st.st_size;
	return 0;
}

int gmem_state_open(struct gmem_state *s, int fd)
{
	uint64_t size;
	int own, err = size_of(fd, &size);

	if (err)
		return err;
	/* Without these seals the other side could shrink it under us: SIGBUS. */
	if ((fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) != F_SEAL_SHRINK)
		return gmem_err(-EINVAL, "page-state table: not a sealed memory file");
	own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (own < 0)
		return gmem_err_sys(-errno, "page-state table");
	err = take_up(s, own, size);
	if (err)
		close(own);
	return err;
}

int gmem_state_open_in(struct gmem_state *s, int fd)
{
	uint64_t size;
	int err = size_of(fd, &size);

	return err ? err : take_up(s, fd, size);
}

void gmem_state_close(struct gmem_state *s)
{
	if (!s->header)
		return;
	munmap(s->header, s->map_len);
	close(s->fd);
	*s = (struct gmem_state){ .fd = -1 };
}

enum gmem_state_lock gmem_state_trylock(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	uint32_t old = gmem_state_word(s, page);
	uint32_t mine = GMEM_WORD_LOCKED | generation << GMEM_WORD_GEN_SHIFT;

	for (;;) {
		uint32_t new = mine | (old & GMEM_WORD_DOOMED);

		if (gmem_word_content(old) != GMEM_WORD_ABSENT)
			return GMEM_STATE_IN_PLACE;
		if (old & GMEM_WORD_POISONED)
			return GMEM_STATE_BAD;
		if (gmem_word_locked(old, generation))
			return GMEM_STATE_BUSY;
		if (atomic_compare_exchange_weak_explicit(&s->words[page], &old, new, memory_order_acq_rel,
							  memory_order_acquire))
			break;
	}
	if (old & GMEM_WORD_DOOMED)
		return GMEM_STATE_ABANDONED;
	return old & GMEM_WORD_LOCKED ? GMEM_STATE_STALE : GMEM_STATE_LOCKED;
}

bool gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	uint32_t old = GMEM_WORD_LOCKED | generation << GMEM_WORD_GEN_SHIFT;

	/* Release: pairs with gmem_state_word(). Only DOOMED can have come in between. */
	return atomic_compare_exchange_strong_explicit(&s->words[page], &old, GMEM_WORD_UPTODATE, memory_order_release,
						       memory_order_relaxed);
}

bool gmem_state_owns(const struct gmem_state *s, uint64_t page, uint32_t generation)
{
	return gmem_word_locked(gmem_state_word(s, page), generation);
}

void gmem_state_unlock(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	uint32_t old = gmem_state_word(s, page);
	uint32_t new;

	do {
		if (!gmem_word_locked(old, generation))
			return;
		new = old &GMEM_WORD_DOOMED ? GMEM_WORD_REMOVED : old &GMEM_WORD_POISONED;
	} while (!atomic_compare_exchange_weak_explicit(&s->words[page], &old, new, memory_order_release,
							memory_order_relaxed));
}

/* Before the page's word says so: who sees the word by way of this flag must not miss it. */
static void set_lost(struct gmem_state *s)
{
	if (!atomic_load(&s->header->lost))
		atomic_store(&s->header->lost, 1);
}

bool gmem_state_poison(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	uint32_t old = GMEM_WORD_LOCKED | generation << GMEM_WORD_GEN_SHIFT;

	set_lost(s);
	return atomic_compare_exchange_strong_explicit(&s->words[page], &old, GMEM_WORD_POISONED, memory_order_release,
						       memory_order_relaxed);
}

bool gmem_state_remove(struct gmem_state *s, uint64_t page)
{
	uint32_t old = gmem_state_word(s, page);
	uint32_t new;

	/* A balloon removes the same pages again and again. */
	if (old == GMEM_WORD_REMOVED)
		return true;
	do {
		new = old &GMEM_WORD_LOCKED ? (old | GMEM_WORD_DOOMED) & ~GMEM_WORD_POISONED : GMEM_WORD_REMOVED;
	} while (!atomic_compare_exchange_weak_explicit(&s->words[page], &old, new, memory_order_acq_rel,
							memory_order_acquire));
	return !(new &GMEM_WORD_LOCKED);
}

void gmem_state_fill(struct gmem_state *s, uint64_t page)
{
	uint32_t old = GMEM_WORD_REMOVED;

	atomic_compare_exchange_strong_explicit(&s->words[page], &old, GMEM_WORD_UPTODATE, memory_order_release,
						memory_order_relaxed);
}

void gmem_state_lose(struct gmem_state *s, uint64_t page)
{
	set_lost(s);
	atomic_store_explicit(&s->words[page], GMEM_WORD_POISONED, memory_order_release);
}

void gmem_state_fail(struct gmem_state *s, uint64_t page)
{
	uint32_t old = gmem_state_word(s, page), new;

	set_lost(s);
	do {
		new = old &GMEM_WORD_LOCKED ? (old | GMEM_WORD_POISONED) & ~GMEM_WORD_DOOMED : GMEM_WORD_POISONED;
	} while (!atomic_compare_exchange_weak_explicit(&s->words[page], &old, new, memory_order_acq_rel,
							memory_order_acquire));
}

uint64_t gmem_state_next_used(const struct gmem_state *s, uint64_t page)
{
	off_t at = (off_t)(GMEM_STATE_HEADER_LEN + page * sizeof(uint32_t)), data = lseek(s->fd, at, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? s->npages : page;
	return data <= at ? page : ((uint64_t)data - GMEM_STATE_HEADER_LEN) / sizeof(uint32_t);
}

uint64_t gmem_state_next_poisoned(const struct gmem_state *s, uint64_t page, uint64_t end)
{
	bool first = true;

	if (!atomic_load(&s->header->lost))
		return end;
	for (; page < end; page++, first = false) {
		if (first || page % (GMEM_PAGE_SIZE / sizeof(uint32_t)) == 0)
			page = gmem_state_next_used(s, page);
		if (page < end && gmem_state_poisoned(s, page))
			return page;
	}
	return end;
}

bool gmem_state_zero(struct gmem_state *s, uint64_t page)
{
	uint32_t old = GMEM_WORD_ABSENT;

	return atomic_compare_exchange_strong_explicit(&s->words[page], &old, GMEM_WORD_REMOVED, memory_order_acq_rel,
						       memory_order_acquire);
}

void gmem_state_forget_region(struct gmem_state *s, uint64_t hva, int uffd)
{
	struct gmem_state_header *h = s->header;
	uint32_t n = (uint32_t)gmem_min_u64(atomic_load(&h->nregions), GMEM_STATE_MAX_REGIONS);

	for (uint32_t i = 0; i < n; i++) {
		struct gmem_state_region *r = &h->regions[i];

		if (!r->len || r->hva != hva || r->uffd != uffd)
			continue;
		r->len = 0;
		close(r->fd);
	}
}
