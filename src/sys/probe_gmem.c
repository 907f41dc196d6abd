/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

static const char *const type_names[] = { "default", "sw-protected", "sev", "sev-es", "snp", "tdx" };

/* What one try over all VM types found: the types it worked on, and the error of the last it did not. */
struct tried {
	char types[128];
	int rc;
};

/* `word` is the type's name, perhaps with what was found on it. */
static void note(struct tried *tried, int rc, const char *word)
{
	size_t at = strlen(tried->types);

	if (rc < 0) {
		if (!at)
			tried->rc = rc;
		return;
	}
	snprintf(tried->types + at, sizeof(tried->types) - at, "%s%s", at ? " " : "", word);
	tried->rc = 0;
}

struct gmem_tries {
	struct tried create, flags, mmap, init_shared, punch, convert;
};

static int try_map(int fd, size_t len)
{
	void *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int err = -errno;

	if (addr == MAP_FAILED)
		return err;
	munmap(addr, len);
	return 0;
}

/* Is the page the host's from the start? A private one is SIGBUS to touch and -EFAULT to look at. */
static int try_touch(int fd, size_t len)
{
	void *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int rc = -errno;
	char byte = 1;

	if (addr == MAP_FAILED)
		return rc;
	rc = (int)gmem_sys_peek(&byte, addr, 1);
	munmap(addr, len);
	return rc < 0 ? rc : byte ? -EIO : 0;
}

static int try_punch(int fd, size_t len)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)len) ? -errno : 0;
}

static void try_type(struct gmem_probe *probe, int vm, const char *type, struct gmem_tries *t)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int valid = gmem_kvm_check(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	char word[48];
	int fd;

	snprintf(word, sizeof(word), "%s:0x%x", type, (unsigned int)valid);
	note(&t->flags, valid > 0 ? 0 : valid ? valid : -EOPNOTSUPP, word);

	fd = gmem_probe_fd(probe, gmem_kvm_memfd_create(vm, 2 * page, 0));
	note(&t->create, fd, type);
	note(&t->punch, fd < 0 ? fd : try_punch(fd, page), type);
	note(&t->convert, fd < 0 ? fd : gmem_kvm_memfd_attributes_set(fd, 0, page, KVM_MEMORY_ATTRIBUTE_PRIVATE, NULL),
	     type);
	if (fd >= 0)
		close(fd);

	fd = gmem_probe_fd(probe, gmem_kvm_memfd_create(vm, 2 * page, GUEST_MEMFD_FLAG_MMAP));
	note(&t->mmap, fd < 0 ? fd : try_map(fd, 2 * page), type);
	if (fd >= 0)
		close(fd);

	fd = gmem_probe_fd(probe,
			   gmem_kvm_memfd_create(vm, 2 * page, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED));
	note(&t->init_shared, fd < 0 ? fd : try_touch(fd, 2 * page), type);
	if (fd >= 0)
		close(fd);
}

static void add(struct gmem_probe *probe, const char *name, const struct tried *tried, const char *what,
		const char *advice, bool kvm)
{
	gmem_probe_add(probe, name, gmem_probe_status(tried->rc), what,
		       kvm ? advice : "needs a KVM machine: see kvm.open and kvm.vm.default", "%s",
		       tried->rc ? gmem_probe_why(tried->rc) : tried->types);
}

void gmem_probe_gmem(struct gmem_probe *probe)
{
	int kvm = gmem_probe_fd(probe, gmem_kvm_open());
	struct gmem_tries t = { 0 };
	struct gmem_scratch mem;
	struct tried numa = { 0 };
	bool any = false;

	struct tried *all[] = { &t.create, &t.flags, &t.mmap, &t.init_shared, &t.punch, &t.convert };
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		all[i]->rc = kvm < 0 ? kvm : -ENODEV;

#if defined(__x86_64__)
	size_t ntypes = sizeof(type_names) / sizeof(type_names[0]);
#else
	size_t ntypes = 1;
#endif
	for (size_t i = 0; kvm >= 0 && i < ntypes; i++) {
		int vm = gmem_probe_fd(probe, gmem_kvm_vm_create(kvm, i));

		if (vm < 0)
			continue;
		any = true;
		try_type(probe, vm, type_names[i], &t);
		close(vm);
	}
	if (kvm >= 0)
		close(kvm);

	numa.rc = gmem_probe_fd(probe, gmem_scratch_map(&mem, GMEM_SCRATCH_GMEM, 2));
	if (!numa.rc)
		numa.rc = gmem_probe_policy(&mem);
	gmem_scratch_unmap(&mem);

	add(probe, "guest_memfd.create", &t.create, "memory of the kernel's own that the host cannot map",
	    "Linux 6.8 or newer with CONFIG_KVM_GUEST_MEMFD=y; gmem's user engine stands in", any);
	add(probe, "guest_memfd.flags", &t.flags, "creation flags by machine type (1 mmap, 2 starts shared)",
	    "Linux 6.18 or newer; flags are tried one by one below", any);
	add(probe, "guest_memfd.mmap", &t.mmap, "its shared pages can be mapped by the host",
	    "Linux 6.18 or newer; gmem's user engine stands in", any);
	add(probe, "guest_memfd.init_shared", &t.init_shared, "it starts shared: the host may touch it at once",
	    "Linux 6.18 or newer; gmem's user engine stands in", any);
	add(probe, "guest_memfd.punch", &t.punch, "pages can be taken out",
	    "Linux 6.8 or newer; gmem's user engine stands in", any);
	add(probe, "guest_memfd.convert", &t.convert, "pages change between private and shared in place",
	    "a kernel with in-place conversion of guest_memfd; gmem's user engine stands in", any);
	add(probe, "guest_memfd.numa", &numa, "mbind(2) on a mapping sets the file's NUMA policy",
	    "a newer kernel with CONFIG_NUMA; gmem's user engine stands in", any);
}
