/* SPDX-License-Identifier: MIT */
/*
 * Which pages of a gate are touched.
 *
 * Whoever touches one (a guest's processor, KVM for the guest or for itself) has the kernel put an entry into this
 * process's page tables, and nobody else uses the gate's addresses: a page was touched if it has an entry
 * (/proc/self/pagemap). Nothing is barred for it, so no access can fail. To clear pages, exactly those go: then the
 * next touch brings one back. What the library itself takes away is noted first, so no touch is forgotten; what the
 * kernel takes away by itself is not known: a page that it reclaims or joins into a large one is mapped no more.
 *
 * So that no entry comes but by a touch, the mapping is registered with userfaultfd, without the kernel's fault-around,
 * and has no large pages. A file's that userfaultfd has nothing to do with, among a caller's, is touched around.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "sys/call.h"
#include "sys/pagemap.h"
#include "sys/uffd.h"

static bool is_barred(const struct gmem_gate *gate, uint64_t off)
{
	uint64_t page = (off - gate->off) >> GMEM_PAGE_SHIFT;

	return atomic_load_explicit(&gate->barred[page / 64], memory_order_relaxed) >> page % 64 & 1;
}

/* All of them, or those that are not barred: in whose entries stands something else than a marker. */
static void note(const struct gmem_gate *gate, uint64_t off, uint64_t end, bool all)
{
	_Atomic uint64_t *bits = atomic_load(&gate->touched);

	for (; bits && off < end; off += GMEM_PAGE_SIZE) {
		uint64_t page = (off - gate->off) >> GMEM_PAGE_SHIFT;

		if (all || !is_barred(gate, off))
			atomic_fetch_or(&bits[page / 64], 1ull << page % 64);
	}
}

/* What has an entry in [off, end) is noted, and goes if told so. `m` held. */
static int walk(struct gmem_gate *gate, uint64_t off, uint64_t end, bool zap)
{
	struct gmem_sys_pagemap map;
	struct gmem_sys_run run;
	int fd = gmem_sys_pagemap_open(), err;

	if (fd < 0)
		return gmem_err_sys(fd, "/proc/self/pagemap");
	gmem_sys_pagemap_begin(&map, fd, (uintptr_t)gmem_gate_at(gate, off), end - off);
	while (!(err = gmem_sys_pagemap_next(&map, &run))) {
		uint64_t from = gate->off + (run.hva - (uintptr_t)gate->addr), len = run.end - run.hva;

		note(gate, from, from + len, run.present);
		err = zap ? gmem_sys_zap(gmem_gate_at(gate, from), len) : 0;
		if (err)
			break;
	}
	close(fd);
	return err && err != -ENOENT ? gmem_err_sys(err, "/proc/self/pagemap") : 0;
}

void gmem_gate_make_exact(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	char *at = gmem_gate_at(gate, off);

	bool wanted = atomic_load(&gate->touched);

	gate->small |= wanted;
	if (gate->small)
		(void)madvise(at, end - off, MADV_NOHUGEPAGE);
	if (wanted)
		(void)gmem_sys_uffd_register(gate->uffd, (uintptr_t)at, end - off, GMEM_SYS_UFFD_WP);
}

static int check_pagemap(void)
{
	int fd = gmem_sys_pagemap_open();

	if (fd >= 0)
		close(fd);
	else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
		return gmem_err_sys(fd, "/proc/self/pagemap");
	else
		return gmem_err(-EOPNOTSUPP, "what a guest on KVM touches is not seen without /proc/self/pagemap");
	return 0;
}

/* From the first to the last that is not barred, and each run between. */
static int zap(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	uint64_t to = off;
	int err = 0;

	for (; !err && off < end; off = to) {
		bool barred = is_barred(gate, off);

		while (to < end && is_barred(gate, to) == barred)
			to += GMEM_PAGE_SIZE;
		err = barred ? 0 : gmem_sys_zap(gmem_gate_at(gate, off), to - off);
	}
	return err ? gmem_err_sys(err, "a guest's pages") : 0;
}

int gmem_gate_keep_touched(struct gmem_gate *gate, _Atomic uint64_t *bits)
{
	uint64_t end = gate->off + gate->len;
	int err = bits ? check_pagemap() : 0;

	pthread_mutex_lock(&gate->m);
	if (bits && !err)
		err = gmem_gate_make_markable(gate);
	if (!err)
		atomic_store(&gate->touched, bits);
	if (bits && !err) {
		gmem_gate_make_exact(gate, gate->off, end);
		err = zap(gate, gate->off, end);
		if (err)
			atomic_store(&gate->touched, NULL);
	}
	/* What is advised for all of it does not divide it: a range of markers is in one mapping. */
	if (!atomic_load(&gate->touched) && gate->small && (gate->file->flags & GMEM_FILE_THP) && !gate->caller) {
		gmem_file_advise(gate->file, gate->addr, gate->len);
		gate->small = false;
	}
	pthread_mutex_unlock(&gate->m);
	return err;
}

int gmem_gate_note_touched(struct gmem_gate *gate, uint64_t off, uint64_t len)
{
	int err = 0;

	pthread_mutex_lock(&gate->m);
	if (atomic_load(&gate->touched))
		err = walk(gate, off, off + len, false);
	pthread_mutex_unlock(&gate->m);
	return err;
}

int gmem_gate_clear_touched(struct gmem_gate *gate, uint64_t off, uint64_t len)
{
	int err;

	pthread_mutex_lock(&gate->m);
	err = zap(gate, off, off + len);
	pthread_mutex_unlock(&gate->m);
	return err;
}

void gmem_gate_keep_in_mind(struct gmem_gate *gate, uint64_t off, uint64_t len)
{
	pthread_mutex_lock(&gate->m);
	if (atomic_load(&gate->touched) && walk(gate, off, off + len, false))
		note(gate, off, off + len, false);
	pthread_mutex_unlock(&gate->m);
}

int gmem_gate_drop(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	int err;

	if (atomic_load(&gate->touched) && end - off > GMEM_PAGE_SIZE) {
		if (!walk(gate, off, end, true))
			return 0;
		note(gate, off, end, false);
	}
	err = gmem_sys_zap(gmem_gate_at(gate, off), end - off);
	/* After it: another one may have touched the page, and had the bit taken, before it went. */
	if (end - off == GMEM_PAGE_SIZE)
		note(gate, off, end, true);
	return err;
}

void gmem_gate_leave(struct gmem_gate *gate, uint64_t off, uint64_t end)
{
	uint64_t at = off;

	if (!atomic_load(&gate->touched))
		return;
	while (at < end && is_barred(gate, at))
		at += GMEM_PAGE_SIZE;
	if (at < end && (mprotect(gmem_gate_at(gate, off), end - off, PROT_NONE) || walk(gate, off, end, false)))
		note(gate, off, end, false);
}
