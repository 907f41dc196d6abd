/* SPDX-License-Identifier: MIT */
/*
 * Which engine a file gets, and why. Nothing is derived from a version: the kernel's own file is made, and what is
 * needed of it is tried, on the file where that changes nothing, else on a scratch one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "file/file.h"
#include "sys/hugepages.h"
#include "sys/kvm.h"
#include "sys/memfd.h"
#include "sys/probe.h"
#include "sys/scratch.h"
#include "sys/uapi.h"
#include "sys/uffd.h"

#define NEED_ALL (GMEM_NEED_CONVERSION | GMEM_NEED_USERFAULT | GMEM_NEED_NUMA | GMEM_NEED_VCPU)

/* What the kernel engine lacks, and the error of the first of it. */
struct lacks {
	char text[512];
	int err;
};

__attribute__((format(printf, 3, 4))) static void lack(struct lacks *l, int err, const char *fmt, ...)
{
	size_t at = strlen(l->text);
	va_list ap;

	if (!l->err)
		l->err = err;
	if (at)
		at += (size_t)snprintf(l->text + at, sizeof(l->text) - at, "; ");
	if (at >= sizeof(l->text))
		return;
	va_start(ap, fmt);
	vsnprintf(l->text + at, sizeof(l->text) - at, fmt, ap);
	va_end(ap);
}

void gmem_file_set_backing(struct gmem_file *file)
{
	bool huge = file->flags & GMEM_FILE_HUGETLB;

	file->page_size = huge ? GMEM_HUGE_SIZE : GMEM_PAGE_SIZE;
	file->ops = file->flags & GMEM_FILE_ANON       ? &gmem_anon_backing :
		    file->engine == GMEM_ENGINE_KERNEL ? &gmem_guest_memfd_backing :
		    huge			       ? &gmem_hugetlb_backing :
		    file->flags & GMEM_FILE_COARSE     ? &gmem_coarse_memfd_backing :
							 &gmem_memfd_backing;
}

static bool takes_memfds(int vm)
{
	return gmem_kvm_check(vm, KVM_CAP_GUEST_MEMFD) > 0;
}

/* The first type whose memslots take guest_memfds: before Linux 6.18 ordinary ones make some, and do not. */
static int make_vm(int kvm)
{
	static const unsigned long types[] = { KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM };
	int first = -ENODEV;

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		int vm = gmem_kvm_vm_create(kvm, types[i]);

		if (vm >= 0 && takes_memfds(vm)) {
			if (first >= 0)
				close(first);
			return vm;
		}
		if (first < 0)
			first = vm;
		else if (vm >= 0)
			close(vm);
	}
	return first;
}

/* A VM to make a guest_memfd of: the caller's, or a new one. */
static int open_vm(const struct gmem_file_opts *opts)
{
	int kvm, vm;

	if (opts && opts->kvm_vm) {
		vm = fcntl(opts->kvm_vm, F_DUPFD_CLOEXEC, 0);
		return vm < 0 ? -errno : vm;
	}
	kvm = gmem_kvm_open();
	if (kvm < 0)
		return kvm;
	vm = make_vm(kvm);
	close(kvm);
	return vm;
}

/* KVM says -EINVAL to a flag that this kind of machine does not know, and to much else. */
static bool lack_flags(const struct gmem_file *file, uint64_t flags, struct lacks *l)
{
	int known = gmem_kvm_check(file->kvm_vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	uint64_t missing = flags & ~(uint64_t)(known < 0 ? 0 : known);

	if (missing & GUEST_MEMFD_FLAG_MMAP)
		lack(l, -EOPNOTSUPP, "guest_memfds of such a machine cannot be mapped here (GUEST_MEMFD_FLAG_MMAP)");
	else if (missing)
		lack(l, -EOPNOTSUPP, "guest_memfds of such a machine begin private (GUEST_MEMFD_FLAG_INIT_SHARED)");
	return missing;
}

static int open_guest_memfd(struct gmem_file *file, const struct gmem_file_opts *opts, struct lacks *l)
{
	uint64_t flags = (file->flags & GMEM_FILE_NO_MMAP ? 0 : GUEST_MEMFD_FLAG_MMAP) |
			 (file->flags & GMEM_FILE_INIT_PRIVATE ? 0 : GUEST_MEMFD_FLAG_INIT_SHARED);

	file->kvm_vm = open_vm(opts);
	if (file->kvm_vm < 0) {
		if (opts && opts->kvm_vm)
			lack(l, file->kvm_vm, "kvm_vm %d: %s", opts->kvm_vm, strerror(-file->kvm_vm));
		else
			lack(l, file->kvm_vm, "no KVM machine: %s", strerror(-file->kvm_vm));
		return file->kvm_vm;
	}
	file->fd = gmem_kvm_memfd_create(file->kvm_vm, file->len, flags);
	if (file->fd >= 0)
		return 0;
	if (file->fd == -EINVAL && lack_flags(file, flags, l))
		return l->err;
	if (opts && opts->kvm_vm)
		lack(l, file->fd, "kvm_vm %d makes no guest_memfd of %llu bytes with flags 0x%llx: %s", opts->kvm_vm,
		     (unsigned long long)file->len, (unsigned long long)flags, strerror(-file->fd));
	else
		lack(l, file->fd, "no guest_memfd of %llu bytes with flags 0x%llx: %s", (unsigned long long)file->len,
		     (unsigned long long)flags, strerror(-file->fd));
	return file->fd;
}

/* Converting a page to what it is changes nothing. */
static int try_conversion(const struct gmem_file *file)
{
	uint64_t now = file->flags & GMEM_FILE_INIT_PRIVATE ? GMEM_ATTRIBUTE_PRIVATE : 0;

	return gmem_kvm_memfd_attributes_set(file->fd, 0, GMEM_PAGE_SIZE, now, NULL);
}

static int try_userfault(const struct gmem_scratch *mem)
{
	int uffd = gmem_sys_uffd_open(0, NULL), err = uffd;

	if (uffd < 0)
		return err;
	err = gmem_sys_uffd_register(uffd, (uint64_t)(uintptr_t)mem->addr, mem->len,
				     GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
	close(uffd);
	return err;
}

static void try_on_scratch(struct gmem_file *file, uint32_t needs, struct lacks *l)
{
	struct gmem_scratch mem;
	int err = gmem_scratch_map(&mem, GMEM_SCRATCH_GMEM, 1);
	int numa = err ? err : gmem_probe_policy(&mem), fault = err ? err : try_userfault(&mem);

	gmem_scratch_unmap(&mem);
	if ((needs & GMEM_NEED_NUMA) && numa)
		lack(l, -EOPNOTSUPP, "it takes no memory policy: %s", strerror(-numa));
	if ((needs & GMEM_NEED_USERFAULT) && fault)
		lack(l, -EOPNOTSUPP, "it takes no userfaults: %s", strerror(-fault));
	file->kernel_userfaults = !fault;
}

/* What is needed that no guest_memfd has, on whatever kernel. */
static void rule_out(const struct gmem_file *file, uint32_t needs, struct lacks *l)
{
	if (file->flags & GMEM_FILE_STRICT)
		lack(l, -EOPNOTSUPP, "strict mode is the user engine's");
	if (file->flags & (GMEM_FILE_HUGETLB | GMEM_FILE_THP))
		lack(l, -EOPNOTSUPP, "huge pages are the user engine's");
	if ((needs & GMEM_NEED_VCPU) && ((needs & GMEM_NEED_CONVERSION) || (file->flags & GMEM_FILE_INIT_PRIVATE)))
		lack(l, -EOPNOTSUPP, "the kernel's private pages are out of reach of this library's own vCPUs");
	if ((needs & GMEM_NEED_VCPU) && (file->flags & GMEM_FILE_NO_MMAP))
		lack(l, -EOPNOTSUPP, "without a mapping this library's own vCPUs do not reach it");
	if ((needs & GMEM_NEED_USERFAULT) && (file->flags & (GMEM_FILE_INIT_PRIVATE | GMEM_FILE_NO_MMAP)))
		lack(l, -EOPNOTSUPP, "no userfaults where pages begin private or are not mapped");
}

static void close_kernel(struct gmem_file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	if (file->kvm_vm >= 0)
		close(file->kvm_vm);
	file->fd = file->kvm_vm = -1;
}

/* 0, or what is lacking. */
static int make_kernel(struct gmem_file *file, const struct gmem_file_opts *opts, uint32_t needs, struct lacks *l)
{
	int converts;

	rule_out(file, needs, l);
	if (l->err)
		return l->err;
	if (open_guest_memfd(file, opts, l)) {
		close_kernel(file);
		return l->err;
	}
	if ((needs & GMEM_NEED_KVM_SLOT) && !takes_memfds(file->kvm_vm))
		lack(l, -EOPNOTSUPP, "memslots of such a machine take no guest_memfd here (KVM_CAP_GUEST_MEMFD)");
	converts = try_conversion(file);
	file->kernel_converts = !converts;
	if ((needs & GMEM_NEED_CONVERSION) && converts)
		lack(l, -EOPNOTSUPP, "it does not convert pages in place: %s", strerror(-converts));
	if (needs & (GMEM_NEED_NUMA | GMEM_NEED_USERFAULT))
		try_on_scratch(file, needs, l);
	if (l->err)
		close_kernel(file);
	return l->err;
}

/* `note`: what there is to say of its pages, begins with "; " or is empty. */
static int make_user(struct gmem_file *file, const char *name, char *note, size_t len)
{
	int fd;

	if (file->flags & GMEM_FILE_HUGETLB)
		return gmem_hugetlb_make(file, name, note, len);
	if (file->flags & GMEM_FILE_THP)
		gmem_huge_note_advice(note, len);
	fd = gmem_memfd_create(name, file->len);
	if (fd < 0)
		return gmem_err_sys(fd, "gmem_file_create: memory file of %llu bytes", (unsigned long long)file->len);
	file->fd = fd;
	if ((file->flags & GMEM_FILE_THP) || gmem_memfd_coarse(fd, file->len))
		file->flags |= GMEM_FILE_COARSE;
	return 0;
}

/* The engine, and why. */
static int settle(struct gmem_file *file, enum gmem_engine engine, const char *why, const char *note)
{
	file->engine = engine;
	gmem_file_set_backing(file);
	if (asprintf(&file->why, "%s engine: %s%s", engine == GMEM_ENGINE_KERNEL ? "kernel" : "user", why, note) >= 0)
		return 0;
	file->why = NULL;
	return gmem_err_sys(-ENOMEM, "gmem_file_create");
}

int gmem_engine_make(struct gmem_file *file, const struct gmem_file_opts *opts, const char *name)
{
	enum gmem_engine wanted = opts ? opts->engine : GMEM_ENGINE_AUTO;
	uint32_t asked = opts ? opts->needs : 0, needs = asked ? asked : NEED_ALL;
	struct lacks l = { 0 };
	char note[256] = "";
	int err;

	/* Who names the engine, and no needs, takes it as it is. */
	if (wanted == GMEM_ENGINE_KERNEL && !asked)
		needs = 0;
	if (wanted != GMEM_ENGINE_USER && !make_kernel(file, opts, needs, &l))
		return settle(
			file, GMEM_ENGINE_KERNEL,
			wanted == GMEM_ENGINE_KERNEL ? "asked for" : "the guest_memfd here has all that is needed", "");
	if (wanted == GMEM_ENGINE_KERNEL)
		return gmem_err(l.err, "gmem_file_create: kernel engine: %s", l.text);
	if (asked & GMEM_NEED_KVM_SLOT)
		return gmem_err(-EOPNOTSUPP, "gmem_file_create: KVM slots need the kernel engine%s%s",
				wanted == GMEM_ENGINE_USER ? "" : ": ", l.text);
	err = make_user(file, name, note, sizeof(note));
	if (err)
		return err;
	return settle(file, GMEM_ENGINE_USER, wanted == GMEM_ENGINE_USER ? "asked for" : l.text, note);
}
