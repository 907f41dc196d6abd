/* SPDX-License-Identifier: MIT */
#include "guest_machine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "sys/kvm.h"

#define TAP_NO_MAIN
#include "tap.h"

#define BOOT_GPA (3ull << 30)
#define BOOT_SLOT 400

/* ---- what the guest's checks call */

void tap_fail(const char *file, int line, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	bench_die("%s:%d: %s", file, line, text);
}

void tap_skip(const char *tag, const char *fmt, ...)
{
	va_list ap;

	printf("SKIPPED: %s: ", tag);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	exit(77);
}

/* ---- by hand */

static int make_guest_memfd(int vm, size_t len)
{
	return gmem_kvm_memfd_create(vm, len, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
}

const char *machine_why_not(enum kind kind)
{
	int kvm = gmem_kvm_open(), vm = kvm < 0 ? kvm : gmem_kvm_vm_create(kvm, 0);
	int rc = vm;

	if (vm >= 0 && kind == RAW_GUEST_MEMFD)
		rc = make_guest_memfd(vm, BENCH_PAGE);
	if (rc >= 0 && rc != vm)
		close(rc);
	if (vm >= 0)
		close(vm);
	if (kvm >= 0)
		close(kvm);
	return rc < 0 ? strerror(-rc) : NULL;
}

static void *map(size_t len, int flags, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		bench_die("mmap");
	return p;
}

static void set_raw_slot(struct machine *m)
{
	int err;

	m->fd = m->kind == RAW_MEMFD ? bench_memfd(m->len) : make_guest_memfd(m->vm, m->len);
	if (m->fd < 0)
		bench_die("guest_memfd: %s", strerror(-m->fd));
	m->mem = map(m->len, MAP_SHARED | MAP_NORESERVE, m->fd);
	if (m->kind == RAW_MEMFD)
		err = gmem_kvm_plain_slot_set(m->vm, 0, 0, MACHINE_GPA, m->len, m->mem);
	else
		err = gmem_kvm_slot_set(m->vm, 0, MACHINE_GPA, m->len, m->mem, m->fd, 0);
	if (err)
		bench_die("slot: %s", strerror(-err));
}

static void make_raw(struct machine *m)
{
	m->kvm = gmem_kvm_open();
	m->vm = gmem_kvm_vm_create(m->kvm, 0);
	if (m->vm < 0)
		bench_die("KVM: %s", strerror(-m->vm));
	set_raw_slot(m);
	m->vcpu = gmem_kvm_vcpu_create(m->vm, 0);
	if (m->vcpu < 0)
		bench_die("vCPU: %s", strerror(-m->vcpu));
	m->run_len = (size_t)gmem_kvm_run_len(m->kvm);
	m->run = map(m->run_len, MAP_SHARED, m->vcpu);
}

static void unmake_raw(struct machine *m)
{
	munmap(m->run, m->run_len);
	close(m->vcpu);
	close(m->vm);
	close(m->kvm);
	munmap(m->mem, m->len);
	close(m->fd);
}

/* ---- ours */

static void set_our_slot(struct machine *m)
{
	struct gmem_file_opts user = { .size = sizeof(user), .engine = GMEM_ENGINE_USER };
	struct gmem_file_opts kernel = { .size = sizeof(kernel),
					 .engine = GMEM_ENGINE_KERNEL,
					 .needs = GMEM_NEED_VCPU,
					 .kvm_vm = gmem_vm_kvm_fd(m->gmem) };
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = MACHINE_GPA, .len = m->len };

	if (gmem_file_create(m->len, m->kind == OURS_KERNEL ? &kernel : &user, &m->file))
		bench_die("file");
	slot.file = m->file;
	if (gmem_vm_set_slot(m->gmem, &slot))
		bench_die("slot");
}

static void convert_once(struct machine *m)
{
	size_t off = m->len - BENCH_PAGE;

	if (gmem_file_set_attributes(m->file, off, BENCH_PAGE, GMEM_ATTRIBUTE_PRIVATE, NULL) ||
	    gmem_file_set_attributes(m->file, off, BENCH_PAGE, 0, NULL))
		bench_die("converting");
}

static void make_ours(struct machine *m)
{
	struct gmem_vm_opts vm = { .size = sizeof(vm), .flags = GMEM_VM_KVM };
	struct gmem_vcpu_opts vcpu = { .size = sizeof(vcpu), .kind = GMEM_VCPU_KVM };

	vm.type = m->kind == OURS_SW_PROTECTED ? GMEM_VM_SW_PROTECTED : GMEM_VM_DEFAULT;
	if (gmem_vm_create(&vm, &m->gmem))
		bench_die("machine");
	set_our_slot(m);
	if (gmem_vcpu_create(m->gmem, &vcpu, &m->ours))
		bench_die("vCPU");
	m->vm = gmem_vm_kvm_fd(m->gmem);
	m->vcpu = gmem_vcpu_kvm_fd(m->ours);
	m->run = gmem_vcpu_kvm_run(m->ours);
	if (m->kind == OURS_CONVERTED)
		convert_once(m);
}

static void unmake_ours(struct machine *m)
{
	gmem_vcpu_free(m->ours);
	gmem_vm_free(m->gmem);
	gmem_file_free(m->file);
}

/* ---- either */

static bool is_raw(const struct machine *m)
{
	return m->kind == RAW_MEMFD || m->kind == RAW_GUEST_MEMFD;
}

void machine_make(struct machine *m, enum kind kind, size_t len)
{
	int err;

	*m = (struct machine){ .kind = kind, .len = len };
	if (is_raw(m))
		make_raw(m);
	else
		make_ours(m);
	m->boot = map(GUEST_BOOT_LEN, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	err = gmem_kvm_plain_slot_set(m->vm, BOOT_SLOT, 0, BOOT_GPA, GUEST_BOOT_LEN, m->boot);
	if (err)
		bench_die("slot: %s", strerror(-err));
	guest_init(&m->guest, m->vcpu, m->run, m->boot, BOOT_GPA, GUEST_USER, false);
}

void machine_unmake(struct machine *m)
{
	if (is_raw(m))
		unmake_raw(m);
	else
		unmake_ours(m);
	munmap(m->boot, GUEST_BOOT_LEN);
}

/* A signal is no end. */
static int run(struct machine *m)
{
	int err;

	do
		err = m->ours ? gmem_vcpu_run(m->ours) : guest_run_raw(&m->guest);
	while (err == -EINTR);
	return err;
}

void machine_run(struct machine *m)
{
	int err = run(m);

	if (err || !guest_finished(&m->guest))
		bench_die("the guest: %s; %s", strerror(-err), guest_what(&m->guest));
}

bool machine_run_to_page(struct machine *m)
{
	struct gmem_exit e = { .size = sizeof(e) };
	int err = run(m);

	if (err == -EFAULT && !gmem_vcpu_exit(m->ours, &e) && e.reason == GMEM_EXIT_MEMORY_FAULT)
		return false;
	if (err || !guest_finished(&m->guest))
		bench_die("the guest: %s; %s", strerror(-err), guest_what(&m->guest));
	return true;
}

uint64_t machine_word(const struct machine *m, size_t off)
{
	uint64_t word;

	if (!is_raw(m)) {
		if (gmem_file_read(m->file, off, &word, sizeof(word)))
			bench_die("read");
		return word;
	}
	memcpy(&word, m->mem + off, sizeof(word));
	return word;
}
