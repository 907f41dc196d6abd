/* SPDX-License-Identifier: MIT */
#include "file/gate.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/call.h"
#include "sys/uffd.h"

/* As mark.c's: a guest that touches a page all the time comes between its zapping and its marking. */
#define MAX_RACES 100000

/* To meet a barred page is an exit of a guest's: so much passes at once, if it may. As the kernel's fault-around. */
#define AROUND (64u << 10)

#define FEATURES                                                                                       \
	(UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_POISON)
/* To hold a gate: a fault that somebody would be told of is an error, and nobody is told. */
#define HUGE_FEATURES (UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_SIGBUS)

static bool is_huge(const struct gmem_gate *gate)
{
	return gate->file->page_size > GMEM_PAGE_SIZE;
}

/* The file's, before anything depends on it. Markers work through a user-mode-only one too. */
static int open_uffd(struct gmem_file *file)
{
	uint64_t features = FEATURES | (file->page_size > GMEM_PAGE_SIZE ? HUGE_FEATURES : 0);
	bool user_mode_only;
	int fd;

	if (file->gates_uffd >= 0)
		return 0;
	fd = gmem_sys_uffd_open(features, &user_mode_only);
	switch (fd) {
	case -EPERM:
	case -ENOSYS:
	case -EOPNOTSUPP:
		return gmem_err(-EOPNOTSUPP, "a guest on KVM needs userfaultfd with page markers (Linux 6.6)");
	default:
		if (fd < 0)
			return gmem_err_sys(fd, "userfaultfd");
		file->gates_uffd = fd;
		return 0;
	}
}

/* Its first marker. Not before: a registered mapping is touched page by page, without the kernel's fault-around. */
int gmem_gate_make_markable(struct gmem_gate *gate)
{
	int err;

	if (atomic_load(&gate->registered))
		return 0;
	err = gmem_sys_uffd_register(gate->uffd, (uintptr_t)gate->addr, gate->len, GMEM_SYS_UFFD_WP);
	if (err)
		return gmem_err_sys(err, "UFFDIO_REGISTER of a guest's memory");
	atomic_store(&gate->registered, true);
	return 0;
}

/* With the lock: who looks for mappings that are no views finds none that is about to be a gate. */
static int map_locked(struct gmem_gate *gate)
{
	struct gmem_file *file = gate->file;
	void *p = mmap(NULL, gate->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file->fd, (off_t)gate->off);
	int err = 0;

	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "mapping %llu bytes for a guest", (unsigned long long)gate->len);
	gate->addr = p;
	if (madvise(p, gate->len, MADV_DONTFORK))
		err = gmem_err_sys(-errno, "mapping %llu bytes for a guest: MADV_DONTFORK",
				   (unsigned long long)gate->len);
	/* It may have to be held before anything is barred. */
	if (!err && is_huge(gate))
		err = gmem_gate_make_markable(gate);
	if (err) {
		munmap(p, gate->len);
		return err;
	}
	gate->next = file->gates;
	gate->link = &file->gates;
	if (gate->next)
		gate->next->link = &gate->next;
	file->gates = gate;
	gmem_file_advise(file, p, gate->len);
	return 0;
}

/* Once nothing is mapped there. */
static void destroy(struct gmem_gate *gate)
{
	pthread_mutex_destroy(&gate->m);
	gmem_gate_drop_caller(gate);
	free(gate->barred);
	free(gate);
}

static int open_gate(const struct gmem_gate *what, bool bars, struct gmem_gate **ret)
{
	struct gmem_file *file = what->file;
	struct gmem_gate *gate = malloc(sizeof(*gate));
	int err = 0;

	if (!gate)
		return gmem_err_sys(-ENOMEM, "mapping memory for a guest");
	*gate = *what;
	gate->uffd = -1;
	pthread_mutex_init(&gate->m, NULL);
	if (bars) {
		gate->barred = calloc((gate->len / file->page_size + 63) / 64, sizeof(*gate->barred));
		if (!gate->barred) {
			destroy(gate);
			return gmem_err_sys(-ENOMEM, "mapping memory for a guest");
		}
	}
	gmem_rwlock_lock(&file->invalidate_lock);
	if (bars) {
		err = open_uffd(file);
		gate->uffd = file->gates_uffd;
	}
	if (!err)
		err = map_locked(gate);
	gmem_rwlock_unlock(&file->invalidate_lock);
	if (err) {
		destroy(gate);
		return err;
	}
	gmem_file_get(file);
	*ret = gate;
	return 0;
}

int gmem_gate_open(struct gmem_file *file, uint64_t off, uint64_t len, struct gmem_gate_holds *holds,
		   struct gmem_gate **ret)
{
	uint64_t first = gmem_file_unit_off(file, off), end = gmem_file_unit_off(file, off + len + file->page_size - 1);
	struct gmem_gate gate = { .file = file, .holds = holds, .off = first, .len = end - first };

	return open_gate(&gate, true, ret);
}

int gmem_gate_open_plain(struct gmem_file *file, uint64_t off, uint64_t len, struct gmem_gate **ret)
{
	struct gmem_gate gate = { .file = file, .off = off, .len = len };

	return open_gate(&gate, false, ret);
}

/* If not even the second can be had, neighbours are one mapping with it, and there may be no more of those. */
static bool show_nothing(const struct gmem_gate *gate)
{
	return mmap(gate->addr, gate->len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) !=
		       MAP_FAILED ||
	       !mprotect(gate->addr, gate->len, PROT_NONE);
}

void gmem_gate_leave_file(struct gmem_gate *gate)
{
	struct gmem_file *file = gate->file;

	if (!file)
		return;
	gmem_rwlock_lock(&file->invalidate_lock);
	/* What shows the file on is no gate's any more. */
	if (!show_nothing(gate))
		file->torn = true;
	*gate->link = gate->next;
	if (gate->next)
		gate->next->link = gate->link;
	gmem_rwlock_unlock(&file->invalidate_lock);
	gate->file = NULL;
	gmem_file_put(file);
}

void gmem_gate_close(struct gmem_gate *gate)
{
	if (!gate)
		return;
	gmem_gate_leave_file(gate);
	if (!gate->keeps_place)
		munmap(gate->addr, gate->len);
	destroy(gate);
}

void gmem_gate_keep_place(struct gmem_gate *gate)
{
	gate->keeps_place = true;
}

/* ---- markers */

static uint64_t page_of(const struct gmem_gate *gate, uint64_t off)
{
	return (off - gate->off) / gate->file->page_size;
}

/* The first offset from there on that has a marker, or has none; `end`: no such. Both are of pages. */
static uint64_t next(const struct gmem_gate *gate, uint64_t off, uint64_t end, bool barred)
{
	uint64_t page = page_of(gate, off), end_page = page_of(gate, end);

	while (page < end_page) {
		uint64_t word = atomic_load_explicit(&gate->barred[page / 64], memory_order_relaxed);

		word = (barred ? word : ~word) >> page % 64;
		if (word) {
			page += (uint64_t)__builtin_ctzll(word);
			break;
		}
		page = (page | 63) + 1;
	}
	return gate->off + gmem_min_u64(page, end_page) * gate->file->page_size;
}

void gmem_gate_note_barred(struct gmem_gate *gate, uint64_t off, bool barred)
{
	uint64_t page = page_of(gate, off), bit = 1ull << page % 64;

	if (barred)
		atomic_fetch_or_explicit(&gate->barred[page / 64], bit, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(&gate->barred[page / 64], ~bit, memory_order_relaxed);
}

/* Of pages that have no marker: those that are mapped go, and a marker would go with them. */
static int mark(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	unsigned int races = 0;
	bool zapped = false;
	uint64_t done;
	int err = 0;

	while (!err && off < end) {
		err = gmem_sys_uffd_poison(gate->uffd, (uintptr_t)gmem_gate_at(gate, off), end - off, false, &done);
		off += done;
		if (!err)
			break;
		if (done)
			races = 0;
		else if (++races > MAX_RACES)
			break;
		if (err == -EAGAIN) {
			sched_yield();
			err = 0;
		} else if (err == -EEXIST || err == -EFAULT) {
			/* Touched, and with it most likely others: once. Or touched since: that page. */
			err = gmem_gate_drop(gate, off, zapped ? off + gate->file->page_size : end);
			zapped = true;
		}
	}
	return err ? gmem_err_sys(err, "barring 0x%llx to 0x%llx from a guest", (unsigned long long)off,
				  (unsigned long long)end) :
		     0;
}

/* Of pages that have no marker. */
static int bar_run(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	bool aliased = gmem_gate_aliased(gate, off);
	uint64_t to = off;
	int err;

	while (to < end && gmem_gate_aliased(gate, to) == aliased)
		to += gate->file->page_size;
	if (aliased)
		return gmem_gate_cover(gate, off, to);
	err = mark(gate, off, to);
	for (; !err && off < to; off += gate->file->page_size)
		gmem_gate_note_barred(gate, off, true);
	return err;
}

int gmem_gate_bar(struct gmem_gate *gate, uint64_t off, uint64_t len)
{
	uint64_t end = gmem_file_unit_off(gate->file, off + len + gate->file->page_size - 1);
	int err;

	off = gmem_file_unit_off(gate->file, off);
	pthread_mutex_lock(&gate->m);
	err = gmem_gate_make_markable(gate);
	while (!err && (off = next(gate, off, end, false)) < end)
		err = bar_run(gate, off, next(gate, off, end, true));
	pthread_mutex_unlock(&gate->m);
	return err;
}

void gmem_gate_shut(struct gmem_gate *gate)
{
	gate->is_shut = true;
	(void)show_nothing(gate);
}

static bool in_place(uint32_t word)
{
	return (word & (GMEM_WORD_CONTENT | GMEM_WORD_POISONED | GMEM_WORD_LOCKED)) == GMEM_WORD_UPTODATE;
}

uint64_t gmem_gate_around(const struct gmem_gate *gate)
{
	return gmem_max_u64(gate->file->page_size, AROUND);
}

/*
 * Of pages of 4 KiB, that one, and those after it that are in place and on its side: what a guest met one of, it mostly
 * meets in order.
 */
static uint64_t passable(const struct gmem_gate *gate, uint64_t off)
{
	const struct gmem_state *state = &gate->file->state;
	uint64_t end = gmem_min_u64((off | (AROUND - 1)) + 1, gate->off + gate->len);
	uint64_t page = off >> GMEM_PAGE_SHIFT, n = 1;

	end = gmem_state_side_end(state, page, end >> GMEM_PAGE_SHIFT);
	while (page + n < end && in_place(gmem_state_word(state, page + n)))
		n++;
	return n << GMEM_PAGE_SHIFT;
}

static int pass(struct gmem_gate *gate, uint64_t off, bool alone)
{
	uint64_t page_size = gate->file->page_size, done = 0;
	char byte;
	int err = -EEXIST;

	off = gmem_file_unit_off(gate->file, off);
	if (is_huge(gate) && gmem_file_unit(gate->file, off) != GMEM_UNIT_IN_PLACE)
		return -EAGAIN;
	if (atomic_load(&gate->registered))
		err = gmem_sys_uffd_continue(gate->uffd, (uintptr_t)gmem_gate_at(gate, off),
					     alone || is_huge(gate) ? page_size : passable(gate, off), &done);
	/* What is not mapped at once, the guest's touch maps. */
	if (err && !done && err != -EEXIST) {
		err = gmem_gate_drop(gate, off, off + page_size);
		done = err ? 0 : page_size;
	}
	for (uint64_t to = off + done; off < to; off += page_size)
		gmem_gate_note_barred(gate, off, false);
	if (!err || done)
		return 0;
	if (err != -EEXIST)
		return err;
	/* Nothing of ours is in the way. If a look fails all the same, the memory has. */
	return gmem_sys_peek(&byte, gmem_gate_at(gate, off), 1) == 1 ? err : -EHWPOISON;
}

int gmem_gate_pass(struct gmem_gate *gate, uint64_t off, bool alone)
{
	int err;

	/* Where nothing is ever mapped anew, vCPUs need not meet. */
	if (!gate->caller)
		return pass(gate, off, alone);
	pthread_mutex_lock(&gate->m);
	err = pass(gate, off, alone);
	pthread_mutex_unlock(&gate->m);
	return err;
}

/* ---- punching huge pages */

/* All of it: huge mappings that are registered in two ways once never become one again. */
static int hold(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	int err;

	atomic_fetch_add(&gate->holds->now, 1);
	gate->held_off = gmem_max_u64(off, gate->off);
	gate->held_end = gmem_min_u64(end, gate->off + gate->len);
	err = gmem_sys_uffd_register(gate->uffd, (uintptr_t)gate->addr, gate->len,
				     GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
	return err ? gmem_err_sys(err, "UFFDIO_REGISTER of a guest's memory") : 0;
}

/* Nobody touches what is not mapped: what has lost its marker has nothing in its place. */
static int mark_again(struct gmem_gate *gate)
{
	uint64_t off = gate->held_off, end = gate->held_end;
	int err = 0;

	while (!err && off < end && (off = next(gate, off, end, true)) < end) {
		uint64_t to = next(gate, off, end, false);

		err = mark(gate, off, to);
		off = to;
	}
	return err;
}

static void let_go(struct gmem_gate *gate, bool punched)
{
	int err = punched ? mark_again(gate) : 0;

	if (!err)
		err = gmem_sys_uffd_register(gate->uffd, (uintptr_t)gate->addr, gate->len, GMEM_SYS_UFFD_WP);
	if (err) {
		gate->holds->failed(gate->holds);
		gmem_gate_shut(gate);
	}
	gate->held_off = gate->held_end = 0;
	/* In this order: who sees it held no more sees that it was. */
	atomic_fetch_add(&gate->holds->ended, 1);
	atomic_fetch_sub(&gate->holds->now, 1);
}

static bool may_hold(const struct gmem_file *file)
{
	return file->gates && gmem_file_ours(file);
}

int gmem_gates_hold(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = 0;

	if (!may_hold(file))
		return 0;
	pthread_mutex_lock(&file->gates_m);
	for (struct gmem_gate *g = file->gates; g && !err; g = g->next)
		if (!g->is_shut && off < g->off + g->len && g->off < off + len)
			err = hold(g, off, off + len);
	if (err)
		gmem_gates_let_go(file, false);
	return err;
}

void gmem_gates_let_go(struct gmem_file *file, bool punched)
{
	if (!may_hold(file))
		return;
	for (struct gmem_gate *g = file->gates; g; g = g->next)
		if (g->held_off < g->held_end)
			let_go(g, punched);
	pthread_mutex_unlock(&file->gates_m);
}

uint64_t gmem_gates_known_to(const struct gmem_file *file, uint64_t hva, uint64_t off)
{
	for (const struct gmem_gate *g = file->gates; g; g = g->next)
		if (off >= g->off && off - g->off < g->len && hva == (uint64_t)(uintptr_t)gmem_gate_at(g, off))
			return g->off + g->len;
	return off;
}
