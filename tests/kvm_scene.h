/* SPDX-License-Identifier: MIT */
/* A machine of the library's with a guest on KVM in it: for tests of GMEM_VCPU_KVM. */
#ifndef GMEM_TESTS_KVM_SCENE_H
#define GMEM_TESTS_KVM_SCENE_H

#include <sys/mman.h>

#include "mmu_util.h"

#include "guest.h"
#include "huge_util.h"
#include "supply_util.h"
#include "sys/kvm.h"

#define LEN (64 * PG)
#define GPA (1ull << 30)
#define BOOT_GPA (3ull << 30)
#define BOOT_SLOT 400 /* set by hand: not the library's */

struct scene_opts {
	enum gmem_vm_type type;
	enum gmem_engine engine; /* AUTO: the user engine */
	enum guest_mode mode;
	bool irqchip, interrupts;
	uint64_t len; /* 0: LEN */
	uint32_t flags; /* of the file */
	uint32_t vm_flags;
};

struct scene {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
	struct guest guest;
	unsigned char *boot;
	uint64_t len;
};

static inline void need_kvm(void)
{
	int kvm = gmem_kvm_open(), vm = kvm < 0 ? kvm : gmem_kvm_vm_create(kvm, 0);

	if (vm < 0)
		SKIP("kvm", "KVM: %s", strerror(-vm));
	close(vm);
	close(kvm);
}

/* GMEM_VM_HYPERCALLS: skips the case where KVM has none. */
static inline struct gmem_vm *new_kvm_vm_with(enum gmem_vm_type type, uint32_t flags)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = type, .flags = GMEM_VM_KVM | flags };
	struct gmem_vm *vm;
	int err;

	need_kvm();
	err = gmem_vm_create(&o, &vm);
	if (err == -EOPNOTSUPP && flags)
		SKIP("kvm", "%s", gmem_last_error());
	CHECK_OK(err);
	return vm;
}

static inline struct gmem_vm *new_kvm_vm(enum gmem_vm_type type)
{
	return new_kvm_vm_with(type, 0);
}

static inline struct gmem_vcpu *new_kvm_vcpu(struct gmem_vm *vm, uint32_t id)
{
	struct gmem_vcpu_opts o = { .size = sizeof(o), .kind = GMEM_VCPU_KVM, .id = id };
	struct gmem_vcpu *vcpu;

	CHECK_OK(gmem_vcpu_create(vm, &o, &vcpu));
	return vcpu;
}

/* A second guest of the same machine has a second boot range. */
static inline unsigned char *boot_range(struct gmem_vm *vm, uint32_t number)
{
	void *p = mmap(NULL, GUEST_BOOT_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	CHECK_OK(gmem_kvm_plain_slot_set(gmem_vm_kvm_fd(vm), BOOT_SLOT + number, 0, BOOT_GPA + number * GUEST_BOOT_LEN,
					 GUEST_BOOT_LEN, p));
	return p;
}

/* The kernel engine's file, of this VM's; skips the case where there is none. */
static inline struct gmem_file *kernel_file(struct gmem_vm *vm, uint64_t len)
{
	struct gmem_file_opts o = {
		.size = sizeof(o), .engine = GMEM_ENGINE_KERNEL, .kvm_vm = gmem_vm_kvm_fd(vm), .needs = GMEM_NEED_VCPU
	};
	struct gmem_file *file;

	if (gmem_file_create(len, &o, &file))
		SKIP("guest_memfd", "%s", gmem_last_error());
	return file;
}

static inline void scene_set_up(struct scene *s, const struct scene_opts *o)
{
	*s = (struct scene){ .len = o->len ? o->len : LEN };
	s->vm = new_kvm_vm_with(o->type, o->vm_flags);
	if (o->irqchip && ioctl(gmem_vm_kvm_fd(s->vm), KVM_CREATE_IRQCHIP, 0))
		SKIP("kvm", "interrupt controllers in the kernel: %s", strerror(errno));
	s->file = o->engine == GMEM_ENGINE_KERNEL ? kernel_file(s->vm, s->len) :
		  o->flags & GMEM_FILE_HUGETLB	  ? huge_file(s->len / H, o->flags) :
						    make_file(s->len, o->flags);
	CHECK_OK(set_slot(s->vm, 0, GPA, s->len, s->file, 0));
	s->vcpu = new_kvm_vcpu(s->vm, 0);
	s->boot = boot_range(s->vm, 0);
	guest_init(&s->guest, gmem_vcpu_kvm_fd(s->vcpu), gmem_vcpu_kvm_run(s->vcpu), s->boot, BOOT_GPA, o->mode,
		   o->interrupts);
}

static inline void scene_tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	munmap(s->boot, GUEST_BOOT_LEN);
}

/* The routine that was called runs on: 0 at its end, else what gmem_vcpu_run() says. */
static inline int go_on(struct scene *s)
{
	int err = gmem_vcpu_run(s->vcpu);

	if (!err && !guest_finished(&s->guest))
		FAIL("the guest came out: exit %d, %s", (int)exit_of(s->vcpu).reason, guest_what(&s->guest));
	return err;
}

#define begin(s, routine, ...) guest_call(&(s)->guest, routine, __VA_ARGS__)

static inline uint64_t faults_of(struct gmem_vm *vm)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };

	CHECK_OK(gmem_vm_stats(vm, &st));
	return st.faults;
}

static inline void *free_vm_soon(void *arg)
{
	usleep(20000);
	gmem_vm_free(arg);
	return NULL;
}

/* A routine to its end; its result. */
#define run(s, routine, ...)                    \
	({                                      \
		begin(s, routine, __VA_ARGS__); \
		CHECK_OK(go_on(s));             \
		guest_result(&(s)->guest);      \
	})

/* A routine that comes out at a page. */
#define run_err(s, err, routine, ...)           \
	do {                                    \
		begin(s, routine, __VA_ARGS__); \
		CHECK_ERR(go_on(s), err);       \
	} while (0)

static inline void check_fault(struct scene *s, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e = exit_of(s->vcpu);

	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, gpa & ~(PG - 1));
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
}

/* Every way a guest can be run here. */
static const struct scene_opts ways[] = {
	{ .type = GMEM_VM_DEFAULT, .mode = GUEST_USER },
	{ .type = GMEM_VM_DEFAULT, .mode = GUEST_USER, .irqchip = true, .interrupts = true },
	{ .type = GMEM_VM_DEFAULT, .mode = GUEST_KERNEL },
	{ .type = GMEM_VM_DEFAULT, .mode = GUEST_KERNEL, .irqchip = true, .interrupts = true },
	{ .type = GMEM_VM_SW_PROTECTED, .mode = GUEST_USER, .interrupts = true },
	{ .type = GMEM_VM_SW_PROTECTED, .mode = GUEST_KERNEL, .irqchip = true },
};

#define EACH_WAY(s)                                                          \
	for (size_t way_ = 0; way_ < sizeof(ways) / sizeof(ways[0]); way_++) \
		for (bool once_ = (scene_set_up(s, &ways[way_]), true); once_; once_ = (scene_tear_down(s), false))

/* DEFAULT alone: where private pages are out of a guest's reach. */
#define EACH_DEFAULT_WAY(s) EACH_WAY(s) if (ways[way_].type == GMEM_VM_DEFAULT)

/* ---- what is brought in */

struct supplier {
	_Atomic uint64_t calls;
	_Atomic bool stuck;
};

/* Each word of the page is its offset, and something. */
static inline int bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct supplier *s = opaque;
	uint64_t words[PG / 8];

	while (atomic_load(&s->stuck)) {
		if (gmem_wait_over(wait))
			return -EINTR;
		usleep(100);
	}
	atomic_fetch_add(&s->calls, 1);
	for (uint64_t i = 0; i < PG / 8; i++)
		words[i] = off + i * 8 + 1;
	return supply_page(file, off, words);
}

static inline void end_supply(struct gmem_file *file, struct gmem_supply *supply)
{
	gmem_file_end_supply(file, supply);
}

#endif
