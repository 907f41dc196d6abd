/* SPDX-License-Identifier: MIT */
#include "sys/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "sys/call.h"

#define PAGE 4096u
/* Of an entry of /proc/PID/pagemap. */
#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)

int gmem_sys_pagemap_open(void)
{
	return gmem_sys_open("/proc/self/pagemap", O_RDONLY);
}

void gmem_sys_pagemap_begin(struct gmem_sys_pagemap *map, int fd, uint64_t hva, uint64_t len)
{
	map->fd = fd;
	map->entries = false;
	map->at = hva;
	map->end = hva + len;
	map->pos = map->filled = 0;
}

/* More regions, if there are any. */
static int scan(struct gmem_sys_pagemap *map)
{
	struct gmem_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = map->at,
		.end = map->end,
		.vec = (uintptr_t)map->region,
		.vec_len = GMEM_PAGEMAP_REGIONS,
		.category_anyof_mask = GMEM_PAGE_IS_PRESENT | GMEM_PAGE_IS_SWAPPED,
		.return_mask = GMEM_PAGE_IS_PRESENT,
	};
	int n = gmem_sys_ioctl(map->fd, GMEM_PAGEMAP_SCAN, &arg);

	if (n < 0)
		return n;
	map->pos = 0;
	map->filled = (size_t)n;
	map->at = arg.walk_end;
	return 0;
}

static int next_region(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret)
{
	const struct gmem_page_region *r;
	int err;

	while (map->pos == map->filled) {
		if (map->at >= map->end)
			return -ENOENT;
		err = scan(map);
		if (err)
			return err;
	}
	r = &map->region[map->pos++];
	*ret = (struct gmem_sys_run){ .hva = r->start, .end = r->end, .present = r->categories & GMEM_PAGE_IS_PRESENT };
	return 0;
}

static int read_entries(struct gmem_sys_pagemap *map)
{
	uint64_t left = (map->end - map->at) / PAGE;
	size_t want = left < GMEM_PAGEMAP_ENTRIES ? (size_t)left : GMEM_PAGEMAP_ENTRIES;
	ssize_t n = pread(map->fd, map->entry, want * 8, (off_t)(map->at / PAGE * 8));

	if (n < 8)
		return n < 0 ? -errno : -EIO;
	map->pos = 0;
	map->filled = (size_t)n / 8;
	return 0;
}

/* 0: nothing is there; else the bit that says what. */
static uint64_t what(const struct gmem_sys_pagemap *map)
{
	uint64_t e = map->entry[map->pos];

	return e & PRESENT ? PRESENT : e & SWAPPED;
}

/* `at` is the address of entry `pos`. */
static int next_entries(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret)
{
	uint64_t found;
	int err;

	for (;; map->pos++, map->at += PAGE) {
		if (map->at >= map->end)
			return -ENOENT;
		err = map->pos == map->filled ? read_entries(map) : 0;
		if (err)
			return err;
		found = what(map);
		if (found)
			break;
	}
	ret->hva = map->at;
	ret->present = found & PRESENT;
	while (map->pos < map->filled && what(map) == found) {
		map->pos++;
		map->at += PAGE;
	}
	ret->end = map->at;
	return 0;
}

int gmem_sys_pagemap_next(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret)
{
	int err = map->entries ? -ENOTTY : next_region(map, ret);

	/* Linux before 6.7, an emulator, a filter of system calls. */
	if (err && err != -ENOENT) {
		if (!map->entries)
			map->pos = map->filled = 0;
		map->entries = true;
		err = next_entries(map, ret);
	}
	return err;
}
