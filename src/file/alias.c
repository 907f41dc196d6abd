/* SPDX-License-Identifier: MIT */
/*
 * Gates that show the caller's memory where a page is shared, and the file's where it is private.
 *
 * What shows the caller's memory is an *alias*, a second mapping of the same pages: mremap(2) with an old size of 0,
 * which there is for shared memory only. It is put in place whole, over what was there: at no moment is there nothing,
 * or anything else. An alias has no markers. To bar its pages the file is mapped over them again: out of reach
 * (PROT_NONE) until it has its markers, and then opened. A guest that comes in between meets nothing, KVM_RUN is
 * -EFAULT, and it begins again (vm/kvm_exit.c).
 *
 * Each alias may be two mappings more, of which a process has some ten thousands. When there are no more, the file is
 * mapped over all of the gate, which is one, and guests meet its pages anew. Even that takes one for a moment: so each
 * such gate has a few that mean nothing.
 *
 * No userfault of the caller's is raised in an alias, and what is absent there is zero. So where somebody serves the
 * memory when the gate is made, each page is touched at the caller's own address before an alias shows it, alone.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "file/place.h"
#include "sys/uffd.h"

#define BALLAST_LEN (8 * GMEM_PAGE_SIZE)

static void add_ballast(struct gmem_gate *gate)
{
	char *p = mmap(NULL, BALLAST_LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return;
	/* So that no two are one. */
	for (uint64_t off = GMEM_PAGE_SIZE; off < BALLAST_LEN; off += 2 * GMEM_PAGE_SIZE)
		(void)mprotect(p + off, GMEM_PAGE_SIZE, PROT_READ);
	gate->ballast = p;
}

static void drop_ballast(struct gmem_gate *gate)
{
	if (gate->ballast)
		munmap(gate->ballast, BALLAST_LEN);
	gate->ballast = NULL;
}

static char *caller_at(const struct gmem_gate *gate, uint64_t off)
{
	return gate->caller + (off - gate->off);
}

/* The caller's mapping at `hva` or, if there is none, the next one; at the end of all. Errors of looking. */
static int find_mapping(const char *hva, struct gmem_sys_mapping *ret)
{
	int fd = gmem_sys_maps_open(0), err;
	struct gmem_sys_maps maps;

	if (fd < 0)
		return gmem_err_sys(fd, "/proc/self/maps");
	gmem_sys_maps_begin(&maps, fd, (uintptr_t)hva);
	err = gmem_sys_maps_next(&maps, ret);
	close(fd);
	if (err == -ENOENT)
		*ret = (struct gmem_sys_mapping){ .hva = UINT64_MAX };
	return err && err != -ENOENT ? gmem_err_sys(err, "/proc/self/maps") : 0;
}

/* Somebody's userfaults are raised in one mapping of the caller's, or may be: a second descriptor is refused. */
static int is_served(void *opaque, const struct gmem_sys_mapping *m)
{
	const struct gmem_gate *gate = opaque;
	int err = gmem_sys_uffd_register(gate->uffd, m->hva, m->end - m->hva, GMEM_SYS_UFFD_WP);

	if (!err)
		(void)gmem_sys_uffd_unregister(gate->uffd, m->hva, m->end - m->hva);
	return err == -EBUSY || err == -ENOMEM;
}

int gmem_gate_add_caller(struct gmem_gate *gate, char *hva)
{
	uint64_t nwords = ((gate->len >> GMEM_PAGE_SHIFT) + 63) / 64;
	int err;

	if (gate->file->page_size != GMEM_PAGE_SIZE)
		return gmem_err(-EOPNOTSUPP, "a file of huge pages beside memory of the caller's, on KVM");
	gate->aliased = calloc(nwords, sizeof(*gate->aliased));
	if (!gate->aliased)
		return gmem_err_sys(-ENOMEM, "a guest's memory");
	gate->caller = hva;
	add_ballast(gate);
	/* All of the gate is one mapping of the file's now, which can be registered as a whole. */
	err = gmem_gate_make_markable(gate);
	if (err)
		gmem_gate_drop_caller(gate);
	else
		/* In any of it, whatever is to be shown now: a page may be shared later. An error: it may be. */
		gate->served = gmem_mappings_each(hva, gate->len, is_served, gate);
	return err;
}

void gmem_gate_drop_caller(struct gmem_gate *gate)
{
	drop_ballast(gate);
	free(gate->aliased);
	gate->aliased = NULL;
	gate->caller = NULL;
}

static void note_aliased(struct gmem_gate *gate, uint64_t off, uint64_t end, bool aliased)
{
	for (; off < end; off += GMEM_PAGE_SIZE) {
		uint64_t page = (off - gate->off) >> GMEM_PAGE_SHIFT, bit = 1ull << page % 64;

		if (aliased)
			gate->aliased[page / 64] |= bit;
		else
			gate->aliased[page / 64] &= ~bit;
	}
}

/* ---- barring */

/* Nobody can touch what is marked here, so none comes in between. */
static int mark(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	uint64_t done;
	int err = 0;

	for (; off < end && (!err || err == -EAGAIN); off += done) {
		err = gmem_sys_uffd_poison(gate->uffd, (uintptr_t)gmem_gate_at(gate, off), end - off, false, &done);
		if (err == -EAGAIN)
			sched_yield();
	}
	return err;
}

/* The file, with a marker a page. Until all is well nobody reaches the pages, and they count as showing something. */
static int map_file(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	char *at = gmem_gate_at(gate, off);
	uint64_t len = end - off;
	int err;

	gmem_gate_leave(gate, off, end);
	if (mmap(at, len, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, gate->file->fd, (off_t)off) ==
	    MAP_FAILED) {
		err = -errno;
		/* Not as it was, if it has been left. */
		gate->lost |= !!atomic_load(&gate->touched);
		return err;
	}
	note_aliased(gate, off, end, true);
	gmem_file_advise(gate->file, at, len);
	gmem_gate_make_exact(gate, off, end);
	err = madvise(at, len, MADV_DONTFORK) ? -errno : 0;
	if (!err)
		err = gmem_sys_uffd_register(gate->uffd, (uintptr_t)at, len, GMEM_SYS_UFFD_WP);
	if (!err)
		err = mark(gate, off, end);
	if (!err && mprotect(at, len, PROT_READ | PROT_WRITE))
		err = -errno;
	gate->lost |= err;
	if (err)
		return err;
	note_aliased(gate, off, end, false);
	for (; off < end; off += GMEM_PAGE_SIZE)
		gmem_gate_note_barred(gate, off, true);
	return 0;
}

/* All of it is one mapping then. */
static int start_over(struct gmem_gate *gate)
{
	int err;

	drop_ballast(gate);
	err = map_file(gate, gate->off, gate->off + gate->len);
	add_ballast(gate);
	if (!err)
		gate->lost = false;
	return err;
}

/* Nobody would be told which page a guest is kept from, nor show it again: the machine's end. */
static void check_lost(struct gmem_gate *gate)
{
	if (!gate->lost || !gate->in_use)
		return;
	gate->holds->failed(gate->holds);
	gmem_gate_shut(gate);
}

int gmem_gate_cover(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	int err = map_file(gate, off, end);

	if (err == -ENOMEM || gate->lost)
		err = start_over(gate);
	check_lost(gate);
	return err ? gmem_err_sys(err, "barring 0x%llx to 0x%llx from a guest", (unsigned long long)off,
				  (unsigned long long)end) :
		     0;
}

/* ---- showing */

/* [off, end) shows the caller's memory, which is one mapping there. */
static int map_caller(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	uint64_t len = end - off;
	char *p = mremap(caller_at(gate, off), 0, len, MREMAP_MAYMOVE);
	int err = 0;

	if (p == MAP_FAILED)
		return -errno;
	gmem_gate_leave(gate, off, end);
	if (madvise(p, len, MADV_DONTFORK) ||
	    mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, gmem_gate_at(gate, off)) == MAP_FAILED) {
		err = -errno;
		munmap(p, len);
		/* It may have failed with nothing left in its place. */
		gate->lost |= map_file(gate, off, end);
		return err;
	}
	note_aliased(gate, off, end, true);
	gmem_gate_make_exact(gate, off, end);
	for (; off < end; off += GMEM_PAGE_SIZE)
		gmem_gate_note_barred(gate, off, false);
	return 0;
}

/* Where the caller's mapping ends that has the page, or the hole there, or `end`. -EFAULT: a hole. */
static int find_end(const struct gmem_gate *gate, uint64_t off, uint64_t end, uint64_t *ret_end)
{
	const char *hva = caller_at(gate, off);
	struct gmem_sys_mapping m;
	int err = find_mapping(hva, &m);
	bool hole = !err && m.hva > (uintptr_t)hva;

	*ret_end = off + GMEM_PAGE_SIZE;
	if (err)
		return err;
	*ret_end = off + gmem_min_u64(end - off, (hole ? m.hva : m.end) - (uintptr_t)hva);
	if (hole)
		return gmem_err(-EFAULT, "hva %p: nothing is mapped there", (const void *)hva);
	if (!m.shared)
		return gmem_err(-EOPNOTSUPP, "hva %p: a private mapping", (const void *)hva);
	/* An alias has the rights of the moment for good: without this one it would be no use, and nobody told. */
	if (!(m.prot & PROT_READ))
		return gmem_err(-EFAULT, "hva %p: it cannot be read", (const void *)hva);
	return 0;
}

/* [off, end), or the first page of it. */
static int show(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	int err = map_caller(gate, off, end);

	if (err == -ENOMEM || gate->lost) {
		err = start_over(gate);
		if (!err)
			err = map_caller(gate, off, off + GMEM_PAGE_SIZE);
	}
	check_lost(gate);
	/* Of locked memory, beyond RLIMIT_MEMLOCK: not to be tried again and again. */
	if (err == -EAGAIN)
		err = -ENOMEM;
	return err ? gmem_err_sys(err, "hva %p: mapping it for a guest", (void *)caller_at(gate, off)) : 0;
}

/* As far as one mapping goes. */
static bool show_piece(struct gmem_gate *gate, uint64_t off, uint64_t end, uint64_t *ret_end)
{
	bool shown;

	pthread_mutex_lock(&gate->m);
	shown = !find_end(gate, off, end, ret_end) && !gate->served && !show(gate, off, *ret_end);
	pthread_mutex_unlock(&gate->m);
	return shown;
}

int gmem_gate_show_caller(struct gmem_gate *gate)
{
	const struct gmem_state *state = &gate->file->state;
	uint64_t off = gate->off, end = off + gate->len, to;
	int err = 0;

	for (; off < end && !err; off = to) {
		uint64_t page = off >> GMEM_PAGE_SHIFT;
		uint64_t run = gmem_state_side_end(state, page, end >> GMEM_PAGE_SHIFT) << GMEM_PAGE_SHIFT;

		to = run;
		if (!gmem_state_private(state, page) && !show_piece(gate, off, run, &to))
			err = gmem_gate_bar(gate, off, to - off);
	}
	return err;
}

/* The page, and those after it that are shared too and show something else. */
static uint64_t run_end(const struct gmem_gate *gate, uint64_t off)
{
	uint64_t end = gmem_state_side_end(&gate->file->state, off >> GMEM_PAGE_SHIFT,
					   (gate->off + gate->len) >> GMEM_PAGE_SHIFT)
		       << GMEM_PAGE_SHIFT;
	uint64_t to = off + GMEM_PAGE_SIZE;

	while (to < end && !gmem_gate_aliased(gate, to))
		to += GMEM_PAGE_SIZE;
	return to;
}

int gmem_gate_pass_caller(struct gmem_gate *gate, uint64_t off, bool alone)
{
	uint64_t end = off + GMEM_PAGE_SIZE;
	int err;

	pthread_mutex_lock(&gate->m);
	/* One that shows it already and was met all the same may show what the caller has mapped no more: anew. */
	if (!alone && !gate->served && !gmem_gate_aliased(gate, off))
		end = run_end(gate, off);
	err = find_end(gate, off, end, &end);
	if (!err)
		err = show(gate, off, end);
	pthread_mutex_unlock(&gate->m);
	return err;
}
