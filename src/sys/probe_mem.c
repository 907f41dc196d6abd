/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

#define HUGE_DIR "/sys/kernel/mm/hugepages"
#define THP_DIR "/sys/kernel/mm/transparent_hugepage"
#define MAX_SIZES 16

static int by_size(const void *a, const void *b)
{
	const unsigned long *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* Sizes in KiB, ascending. */
static size_t huge_sizes(unsigned long *kib, size_t max)
{
	DIR *dir = opendir(HUGE_DIR);
	struct dirent *entry;
	size_t n = 0;

	if (!dir)
		return 0;
	while (n < max && (entry = readdir(dir)))
		if (sscanf(entry->d_name, "hugepages-%lukB", &kib[n]) == 1)
			n++;
	closedir(dir);
	qsort(kib, n, sizeof(*kib), by_size);
	return n;
}

static unsigned long pool_number(unsigned long kib, const char *file)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), HUGE_DIR "/hugepages-%lukB/%s", kib, file);
	return gmem_probe_read(path, text, sizeof(text)) ? 0 : strtoul(text, NULL, 10);
}

/* A shared mapping reserves its page when it is made, so nothing need be touched. */
static int try_huge(struct gmem_probe *probe, unsigned long kib)
{
	size_t len = (size_t)kib << 10;
	unsigned int shift = (unsigned int)__builtin_ctzl(kib) + 10;
	int fd = gmem_probe_fd(probe, gmem_sys_memfd("gmem-probe", MFD_HUGETLB | shift << MFD_HUGE_SHIFT));
	void *addr;
	int rc = 0;

	if (fd < 0)
		return fd;
	if (ftruncate(fd, (off_t)len)) {
		rc = -errno;
	} else {
		addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (addr == MAP_FAILED)
			rc = -errno;
		else
			munmap(addr, len);
	}
	close(fd);
	return rc;
}

static void probe_huge(struct gmem_probe *probe)
{
	unsigned long kib[MAX_SIZES];
	size_t n = huge_sizes(kib, MAX_SIZES);
	size_t page = gmem_scratch_huge_page();

	gmem_probe_add(probe, "hugepages.hugetlb", n && page ? GMEM_HOST_YES : GMEM_HOST_NO,
		       "pools of huge pages; the value is the default size",
		       "a kernel with CONFIG_HUGETLBFS=y, and /sys mounted", n && page ? "%zu KiB" : "%.0zu",
		       n ? page >> 10 : 0);
	for (size_t i = 0; i < n; i++) {
		bool giga = kib[i] >= 1UL << 20, mega = !giga && kib[i] >= 1UL << 10;
		unsigned long size = giga ? kib[i] >> 20 : mega ? kib[i] >> 10 : kib[i];
		const char *unit = giga ? "G" : mega ? "M" : "K";
		char name[64], advice[192];
		int rc = try_huge(probe, kib[i]);

		snprintf(name, sizeof(name), "hugepages.%lu%s", size, unit);
		snprintf(advice, sizeof(advice),
			 "as root: echo COUNT > " HUGE_DIR
			 "/hugepages-%lukB/nr_hugepages, or boot with hugepagesz=%lu%s hugepages=COUNT",
			 kib[i], size, unit);
		gmem_probe_add(probe, name, gmem_probe_status(rc), "a memfd of such pages can be mapped", advice,
			       "%lu free of %lu", pool_number(kib[i], "free_hugepages"),
			       pool_number(kib[i], "nr_hugepages"));
	}
}

static void probe_thp(struct gmem_probe *probe, const char *name, const char *file, const char *what,
		      const char *advice)
{
	char path[128], text[96];
	int rc;

	snprintf(path, sizeof(path), THP_DIR "/%s", file);
	rc = gmem_probe_read(path, text, sizeof(text));
	gmem_probe_bracket(text);
	gmem_probe_add(probe, name,
		       rc || !strcmp(text, "never") || !strcmp(text, "deny") ? GMEM_HOST_NO : GMEM_HOST_YES, what,
		       rc ? "a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y, and /sys mounted" : advice, "%s",
		       rc ? gmem_probe_why(rc) : text);
}

/* Counts the members of a list such as "0-3,8". */
static unsigned long count_list(const char *text)
{
	unsigned long count = 0;

	while (*text) {
		char *end;
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (end == text)
			break;
		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		count += last - first + 1;
		text = *end == ',' ? end + 1 : end;
	}
	return count;
}

int gmem_probe_policy(const struct gmem_scratch *mem)
{
	unsigned long mask[16] = { 1 };
	int mode = -1, rc;
	void *second;

	rc = gmem_sys_mbind(mem->addr, mem->len, MPOL_BIND, mask, 8 * sizeof(mask), 0);
	if (rc)
		return rc;
	second = mmap(NULL, mem->len, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd, 0);
	if (second == MAP_FAILED)
		return -errno;
	rc = gmem_sys_get_mempolicy(&mode, NULL, 0, second, MPOL_F_ADDR);
	munmap(second, mem->len);
	return rc ? rc : mode == MPOL_BIND ? 0 : -EOPNOTSUPP;
}

static void probe_numa(struct gmem_probe *probe)
{
	struct gmem_scratch mem;
	char text[128];
	int rc = gmem_probe_read("/sys/devices/system/node/online", text, sizeof(text));
	unsigned long nodes = count_list(text);

	gmem_probe_add(probe, "numa.nodes", rc ? GMEM_HOST_NO : GMEM_HOST_YES, "memory nodes online",
		       "a kernel with CONFIG_NUMA=y, and /sys mounted", rc ? "%.0lu" : "%lu", rc ? 0 : nodes);
	rc = gmem_probe_fd(probe, gmem_scratch_map(&mem, GMEM_SCRATCH_SHMEM, 2));
	if (!rc)
		rc = gmem_probe_policy(&mem);
	gmem_scratch_unmap(&mem);
	gmem_probe_add(probe, "numa.mbind", gmem_probe_status(rc), "mbind(2) on a mapping sets a memfd's NUMA policy",
		       rc == -EPERM ? "in a container: --cap-add SYS_NICE, or a seccomp profile that allows mbind" :
				      "a kernel with CONFIG_NUMA=y",
		       "%s", gmem_probe_why(rc));
}

void gmem_probe_mem(struct gmem_probe *probe)
{
	probe_huge(probe);
	probe_thp(probe, "hugepages.thp", "enabled", "transparent huge pages, anonymous memory",
		  "as root: echo madvise > " THP_DIR "/enabled");
	probe_thp(probe, "hugepages.thp_shmem", "shmem_enabled", "transparent huge pages, memfd and shared memory",
		  "as root: echo advise > " THP_DIR "/shmem_enabled");
	probe_numa(probe);
}
