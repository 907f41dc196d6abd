/* SPDX-License-Identifier: MIT */
/*
 * Mappings of a memory that are no views: who has the descriptor can make them, and nothing marks them.
 *
 * The kernel tells of every mapping which file it shows, by device and inode. Ours are known by their addresses: this
 * object's views and window, and the views that peers tell of in their places. A peer's addresses mean something in its
 * process alone, which is known by a mapping of the peer's place: its number would do less, for it is another one in
 * another pid namespace. So a raw mapping in a peer's process is found like any other.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "sys/maps.h"

struct look {
	struct gmem_file *file;
	uint64_t off, len; /* what no other mapping may show */
	uint64_t state_dev, state_ino;
	pid_t pid; /* of the process looked at, 0: this one */
	uint32_t members; /* peers whose process it is */
	uint32_t seen; /* peers whose process was looked at */
	uint32_t incarnation[GMEM_STATE_MAX_PEERS]; /* of their places */
	bool shows; /* it maps some of the range */
	uint64_t hva, at; /* of what was found, in the process and in the file */
};

/* The part of the range that a mapping shows. */
static bool shown(const struct look *l, const struct gmem_sys_mapping *map, uint64_t *off, uint64_t *end)
{
	const struct gmem_state_header *h = l->file->state.header;

	if (map->dev != h->dev || map->ino != h->ino)
		return false;
	*off = gmem_max_u64(map->off, l->off);
	*end = gmem_min_u64(map->off + (map->end - map->hva), l->off + l->len);
	return *off < *end;
}

/* Which peers' places a mapping of the state table is of; the one of the whole table is everybody's. */
static uint32_t places(const struct look *l, const struct gmem_sys_mapping *map)
{
	const struct gmem_state *s = &l->file->state;
	uint64_t base = (uint64_t)(s->peers - (char *)s->header);
	uint32_t found = 0;

	if (map->dev != l->state_dev || map->ino != l->state_ino || map->off < base)
		return 0;
	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++) {
		uint64_t at = base + (uint64_t)n * GMEM_STATE_PEER_LEN;

		if (at >= map->off && at - map->off < map->end - map->hva)
			found |= 1u << n;
	}
	return found;
}

static int survey(void *opaque, const struct gmem_sys_mapping *map)
{
	struct look *l = opaque;
	uint64_t off, end;

	l->shows |= shown(l, map, &off, &end);
	l->members |= places(l, map);
	return 0;
}

/* If [hva, hva + len) shows the file from `off` on and the page at `want` is at `at` there, where it ends; else 0. */
static uint64_t known_until(uint64_t hva, uint64_t off, uint64_t len, uint64_t at, uint64_t want)
{
	return at >= hva && at - hva < len && off + (at - hva) == want ? hva + len : 0;
}

/* The end of the view or window that shows the page `off` at `hva`; 0: it is none. */
static uint64_t known(const struct look *l, uint64_t hva, uint64_t off)
{
	const char *window = gmem_file_window_place(l->file), *lens = gmem_hugetlb_lens_place(l->file);
	uint64_t end = 0;

	if (!l->pid) {
		for (const struct gmem_view *v = l->file->views; v && !end; v = v->next)
			end = known_until((uint64_t)(uintptr_t)v->addr, v->off, v->len, hva, off);
		if (!end) {
			uint64_t to = gmem_gates_known_to(l->file, hva, off);

			end = to > off ? hva + (to - off) : 0;
		}
		if (!end && window)
			end = known_until((uint64_t)(uintptr_t)window, 0, l->file->len, hva, off);
		if (!end && lens)
			end = known_until((uint64_t)(uintptr_t)lens, 0, l->file->len, hva, off);
	}
	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++) {
		const struct gmem_peer_page *page = gmem_peer_page(&l->file->state, n);

		for (unsigned int i = 0; l->members & 1u << n && i < GMEM_PEER_MAX_VIEWS && !end; i++)
			end = known_until(atomic_load(&page->views[i].hva), atomic_load(&page->views[i].off),
					  atomic_load(&page->views[i].len), hva, off);
	}
	return end;
}

/* A mapping may be several views that the kernel has made one, or a view and a neighbour that is none. */
static int compare(void *opaque, const struct gmem_sys_mapping *map)
{
	struct look *l = opaque;
	uint64_t off, end;

	if (!shown(l, map, &off, &end))
		return 0;
	for (uint64_t next; off < end; off += next) {
		uint64_t hva = map->hva + (off - map->off), to = known(l, hva, off);

		if (!to) {
			l->hva = hva;
			l->at = off;
			return -EBUSY;
		}
		next = to - hva;
	}
	return 0;
}

/*
 * Reading /proc keeps the mappings of a process that dies meanwhile, but not its locks: somebody else may be in its
 * place by now, and have wiped what was told there.
 */
static bool places_changed(struct look *l, bool note)
{
	bool changed = false;

	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++) {
		uint32_t now = atomic_load(&gmem_peer_page(&l->file->state, n)->incarnation);

		if (!(l->members & 1u << n))
			continue;
		changed |= !note && now != l->incarnation[n];
		l->incarnation[n] = now;
	}
	return changed;
}

/* -EBUSY: found. Of other processes, what cannot be looked at is skipped. */
static int look_at(void *opaque, pid_t pid)
{
	struct look *l = opaque;
	int err;

	do {
		l->pid = pid;
		l->members = 0;
		l->shows = false;
		err = gmem_sys_maps_each(pid, survey, l);
		if (err)
			return pid ? 0 : err;
		places_changed(l, true);
		err = l->shows ? gmem_sys_maps_each(pid, compare, l) : 0;
	} while (err == -EBUSY && places_changed(l, false));
	l->seen |= l->members;
	return err == -EBUSY || !pid ? err : 0;
}

static int begin(struct look *l, struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct stat st;

	*l = (struct look){ .file = file, .off = off, .len = len };
	if (fstat(file->state.fd, &st))
		return gmem_err_sys(-errno, "gmem_file_set_attributes: state table");
	l->state_dev = st.st_dev;
	l->state_ino = st.st_ino;
	return 0;
}

int gmem_foreign_here(struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct look l;
	int err = begin(&l, file, off, len);

	if (!err)
		err = look_at(&l, 0);
	return err == -EBUSY ? 1 : err;
}

int gmem_foreign_look(struct gmem_file *file, uint64_t off, uint64_t len, uint32_t *ret_seen, uint64_t *ret_error_off)
{
	struct look l;
	int err = begin(&l, file, off, len);

	if (err)
		return err;
	err = look_at(&l, 0);
	if (err != -EBUSY && ret_seen)
		err = gmem_sys_processes_each(look_at, &l);
	if (ret_seen)
		*ret_seen = l.seen;
	/* No /proc, or no more descriptors: there is nothing to see. */
	if (err != -EBUSY)
		return 0;
	*ret_error_off = l.at;
	return gmem_err(-EBUSY,
			"gmem_file_set_attributes: process %d has the page at 0x%llx at 0x%llx in a mapping that is no "
			"view: the host could not be kept out",
			(int)(l.pid ? l.pid : getpid()), (unsigned long long)l.at, (unsigned long long)l.hva);
}
