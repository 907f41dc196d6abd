/* SPDX-License-Identifier: MIT */
#include "sys/scratch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

size_t gmem_scratch_huge_page(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	size_t kib = 0;

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Hugepagesize: %zu kB", &kib) == 1)
			break;
	fclose(f);
	return kib * 1024;
}

/* Some VM type must take a file that can be mapped and starts shared; which one differs by kernel and architecture. */
static int create_gmem(struct gmem_scratch *scratch)
{
	static const unsigned long types[] = { KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM };
	int kvm = gmem_kvm_open();
	int rc = kvm;

	if (kvm < 0)
		return kvm;
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		scratch->vm = gmem_kvm_vm_create(kvm, types[i]);
		if (scratch->vm < 0) {
			rc = i ? rc : scratch->vm;
			continue;
		}
		rc = gmem_kvm_memfd_create(scratch->vm, scratch->len,
					   GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
		if (rc >= 0)
			break;
		close(scratch->vm);
		scratch->vm = -1;
	}
	close(kvm);
	return rc;
}

static int create_memfd(struct gmem_scratch *scratch, unsigned int flags)
{
	int fd = gmem_sys_memfd("gmem-probe", flags);

	if (fd >= 0 && ftruncate(fd, (off_t)scratch->len)) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

int gmem_scratch_map(struct gmem_scratch *scratch, enum gmem_scratch_kind kind, size_t npages)
{
	size_t huge = kind == GMEM_SCRATCH_HUGETLB ? gmem_scratch_huge_page() : 0;
	int flags = MAP_SHARED;
	void *addr;
	int fd;

	*scratch = (struct gmem_scratch){ .fd = -1, .vm = -1 };
	if (kind == GMEM_SCRATCH_HUGETLB && !huge)
		return -ENODEV;
	scratch->page = huge ? huge : (size_t)sysconf(_SC_PAGESIZE);
	scratch->len = npages * scratch->page;

	switch (kind) {
	case GMEM_SCRATCH_SHMEM:
		fd = create_memfd(scratch, 0);
		break;
	case GMEM_SCRATCH_HUGETLB:
		fd = create_memfd(scratch, MFD_HUGETLB);
		flags |= MAP_NORESERVE;
		break;
	case GMEM_SCRATCH_GMEM:
		fd = create_gmem(scratch);
		break;
	default:
		fd = -1;
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
		break;
	}
	if (kind != GMEM_SCRATCH_ANON && fd < 0)
		return fd;
	scratch->fd = fd;

	addr = mmap(NULL, scratch->len, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (addr == MAP_FAILED)
		return -errno;
	scratch->addr = addr;
	/* What is probed is base pages; a huge one would answer for its neighbours. */
	madvise(addr, scratch->len, MADV_NOHUGEPAGE);
	return 0;
}

void gmem_scratch_unmap(struct gmem_scratch *scratch)
{
	if (scratch->addr)
		munmap(scratch->addr, scratch->len);
	if (scratch->fd >= 0)
		close(scratch->fd);
	if (scratch->vm >= 0)
		close(scratch->vm);
	*scratch = (struct gmem_scratch){ .fd = -1, .vm = -1 };
}
