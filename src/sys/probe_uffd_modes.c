/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

static const struct {
	uint64_t mode;
	const char *name;
} modes[] = {
	{ UFFDIO_REGISTER_MODE_MISSING, "missing" },
	{ UFFDIO_REGISTER_MODE_MINOR, "minor" },
	{ UFFDIO_REGISTER_MODE_WP, "wp" },
};
#define NMODES (sizeof(modes) / sizeof(modes[0]))

static const struct {
	enum gmem_scratch_kind kind;
	const char *name, *what;
	const char *unmapped; /* advice where the memory itself cannot be had */
	const char *refused[NMODES]; /* advice where it takes no such registration */
} kinds[] = {
	{ GMEM_SCRATCH_ANON,
	  "anon",
	  "anonymous memory",
	  "free some memory",
	  { "Linux 4.11 or newer with CONFIG_USERFAULTFD=y", "minor faults exist on shared memory only: use a memfd",
	    "Linux 5.7 or newer (arm64: 6.11)" } },
	{ GMEM_SCRATCH_SHMEM,
	  "shmem",
	  "memfd and shared memory",
	  "a kernel with CONFIG_MEMFD_CREATE and CONFIG_SHMEM",
	  { "Linux 4.11 or newer with CONFIG_USERFAULTFD=y", "Linux 5.14 or newer, 64-bit x86 or arm",
	    "Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP=y" } },
	{ GMEM_SCRATCH_HUGETLB,
	  "hugetlb",
	  "huge pages",
	  "a kernel with CONFIG_HUGETLBFS",
	  { "Linux 4.11 or newer with CONFIG_USERFAULTFD=y", "Linux 5.14 or newer, 64-bit x86 or arm",
	    "Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP=y" } },
	{ GMEM_SCRATCH_GMEM,
	  "guest_memfd",
	  "mappable guest_memfd",
	  "see guest_memfd.init_shared",
	  { "no change needed: gmem's user engine serves faults on a memfd instead",
	    "no change needed: gmem's user engine serves faults on a memfd instead",
	    "no change needed: gmem's user engine serves faults on a memfd instead" } },
};

/* The commands the kernel offers on a range, by name. */
static void command_names(uint64_t mask, char *buf, size_t len)
{
	static const struct {
		int bit;
		const char *name;
	} commands[] = {
		{ _UFFDIO_COPY, "copy" },
		{ _UFFDIO_CONTINUE, "continue" },
		{ _UFFDIO_ZEROPAGE, "zeropage" },
		{ _UFFDIO_POISON, "poison" },
		{ _UFFDIO_WRITEPROTECT, "writeprotect" },
		{ _UFFDIO_MOVE, "move" },
		{ _UFFDIO_WAKE, "wake" },
	};
	size_t at = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]) && at < len; i++)
		if (mask & (1ULL << commands[i].bit))
			at += (size_t)snprintf(buf + at, len - at, "%s%s", at ? " " : "", commands[i].name);
}

static int try_mode(struct gmem_probe *probe, const struct gmem_scratch *mem, uint64_t mode, uint64_t *ret_commands)
{
	struct uffdio_register reg = { .range = { .start = (uintptr_t)mem->addr, .len = mem->len }, .mode = mode };
	int fd = gmem_probe_uffd_open(probe, 0, NULL);
	int rc;

	if (fd < 0)
		return fd;
	rc = gmem_sys_ioctl(fd, UFFDIO_REGISTER, &reg);
	close(fd);
	if (!rc)
		*ret_commands = reg.ioctls;
	return rc;
}

void gmem_probe_uffd_modes(struct gmem_probe *probe)
{
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		struct gmem_scratch mem;
		int mapped = gmem_probe_fd(probe, gmem_scratch_map(&mem, kinds[k].kind, 1));

		for (size_t m = 0; m < NMODES; m++) {
			char name[64], what[80], commands[96];
			uint64_t mask = 0;
			int rc = mapped ? mapped : try_mode(probe, &mem, modes[m].mode, &mask);

			command_names(mask, commands, sizeof(commands));
			snprintf(name, sizeof(name), "userfaultfd.%s.%s", kinds[k].name, modes[m].name);
			snprintf(what, sizeof(what), "%s faults on %s", modes[m].name, kinds[k].what);
			gmem_probe_add(probe, name, gmem_probe_status(rc), what,
				       mapped	       ? kinds[k].unmapped :
				       probe->uffd_how ? kinds[k].refused[m] :
							 "see userfaultfd.full",
				       "%s", rc ? gmem_probe_why(rc) : commands);
		}
		gmem_scratch_unmap(&mem);
	}
}
