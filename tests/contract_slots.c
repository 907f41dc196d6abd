/* SPDX-License-Identifier: MIT */
/*
 * The contract of a guest memory file in memslots: those of gmem_vm with a file of either engine, and beside them KVM's
 * own with the kernel's file.
 */
#define TAP_NO_MAIN
#include "contract_util.h"

#include "sys/call.h"

#define BASE (16ull << 20)

struct machine {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
};

static struct machine machine(void)
{
	struct machine m;

	CHECK_OK(gmem_vm_create(NULL, &m.vm));
	CHECK_OK(gmem_vcpu_create(m.vm, NULL, &m.vcpu));
	return m;
}

static void machine_free(struct machine *m)
{
	gmem_vcpu_free(m->vcpu);
	gmem_vm_free(m->vm);
}

static int set_slot(struct machine *m, uint32_t id, uint64_t gpa, uint64_t len, struct gmem_file *file, uint64_t off)
{
	struct gmem_memslot slot = {
		.size = sizeof(slot), .slot = id, .gpa = gpa, .len = len, .file = file, .off = off
	};

	return gmem_vm_set_slot(m->vm, &slot);
}

/* ---- the rules, as steps in one machine; each row is asked of gmem_vm, and of KVM where the file is its own */

static const struct step {
	uint32_t slot;
	uint64_t gpa, len, off;
	int ret;
	bool bound; /* EEXIST from Linux 7.2 on, EINVAL before */
} steps[] = {
	{ 0, BASE, 4 * P, 1, -EINVAL },
	{ 0, BASE + 1, 4 * P, 0, -EINVAL },
	{ 0, BASE, P + 1, 0, -EINVAL },
	{ 0, BASE, 9 * P, 0, -EINVAL },
	{ 0, BASE, P, 8 * P, -EINVAL },
	{ 0, BASE, 2 * P, 0 - P, -EINVAL },
	{ 0, 0 - P, 2 * P, 0, -EINVAL },
	{ 0, 1ull << 60, P, 0, -EINVAL },
	{ 32764, BASE, P, 0, -EINVAL },
	{ 0, BASE, 0, 0, -EINVAL },
	{ 0, BASE, 4 * P, 0, 0 },
	{ 0, BASE, 4 * P, 0, -EINVAL },
	{ 0, BASE + P, 4 * P, 0, -EINVAL },
	{ 1, BASE + 3 * P, P, 4 * P, -EEXIST },
	{ 1, BASE - P, 8 * P, 4 * P, -EEXIST },
	/* Two things are wrong with it: the one that KVM sees first. */
	{ 1, BASE, 9 * P, 0, -EEXIST },
	{ 1, BASE + 1, 4 * P, 0, -EINVAL },
	{ 1, BASE + 4 * P, P, 3 * P, -EEXIST, true },
	{ 1, BASE + 4 * P, 4 * P, 4 * P, 0 },
	{ 2, 0, 0, 0, -EINVAL },
	{ 0, BASE + 1, 0, 0, -EINVAL },
	{ 0, BASE, 0, 1, -EINVAL },
	{ 0, BASE, 0, 0, 0 },
	{ 0, BASE, 0, 0, -EINVAL },
	{ 2, BASE, 4 * P, 0, 0 },
	{ 2, 0, 0, 0, 0 },
	{ 1, 0, 0, 0, 0 },
};

CONTRACT(slot_rules, 8, 0)
{
	struct machine m = machine();

	for (size_t i = 0; i < COUNT(steps); i++) {
		const struct step *s = &steps[i];
		int ret = set_slot(&m, s->slot, s->gpa, s->len, c->file, s->off);

		if (ret != s->ret)
			FAIL("step %zu: %d, not %d: %s", i, ret, s->ret, gmem_last_error());
	}
	machine_free(&m);
}

static int set_kvm_slot(const struct contract *c, const struct step *s)
{
	return gmem_kvm_slot_set(gmem_file_kvm_vm(c->file), s->slot, s->gpa, s->len, (void *)(uintptr_t)(1ull << 40),
				 gmem_file_fd(c->file), s->off);
}

/* The oracle of the rules: the same rows, answered by the kernel. */
CONTRACT(slot_rules_of_kvm, 8, 0)
{
	if (c->engine == GMEM_ENGINE_USER)
		return;
	for (size_t i = 0; i < COUNT(steps); i++) {
		const struct step *s = &steps[i];
		int ret = set_kvm_slot(c, s);

		if (ret != s->ret && !(s->bound && ret == -EINVAL))
			FAIL("step %zu: %d, not %d", i, ret, s->ret);
	}
}

/* ---- a guest's accesses */

CONTRACT(guest_and_host_see_one_memory, 4, 0)
{
	struct gmem_view *view = map(c, 0, 4 * P, RW);
	struct machine m = machine();
	char buf[16];

	CHECK_OK(set_slot(&m, 0, BASE, 2 * P, c->file, 2 * P));
	strcpy(at(view, 3 * P - 2), "host");
	CHECK_OK(gmem_vcpu_load(m.vcpu, BASE + P - 2, buf, 5));
	CHECK_STR(buf, "host");
	CHECK_OK(gmem_vcpu_store(m.vcpu, BASE + P - 3, "guest", 6));
	CHECK_STR(at(view, 3 * P - 3), "guest");
	CHECK_OK(gmem_file_read(c->file, 3 * P - 3, buf, 6));
	CHECK_STR(buf, "guest");
	/* What is dropped, the guest reads as zero. */
	CHECK_OK(gmem_file_punch(c->file, 2 * P, 2 * P));
	CHECK_OK(gmem_vcpu_load(m.vcpu, BASE + P - 3, buf, 6));
	CHECK(is_filled(buf, 0, 6));
	CHECK_EQ(madvise(at(view, 0), 4 * P, MADV_DONTNEED), 0);
	CHECK_OK(gmem_vcpu_store(m.vcpu, BASE, "again", 6));
	CHECK_STR(at(view, 2 * P), "again");
	machine_free(&m);
	gmem_view_unmap(view);
}

/* The slot stays, without memory: what is asked of it is a memory fault, and its number is taken. */
CONTRACT(file_freed_before_its_slots, 4, 0)
{
	struct gmem_exit exit = { .size = sizeof(exit) };
	struct gmem_view *view = map(c, 0, 4 * P, RW);
	struct machine m = machine();
	struct gmem_file *other;
	char byte;

	CHECK_OK(contract_create(c, 4 * P, 0, &other));
	CHECK_OK(set_slot(&m, 0, BASE, 4 * P, c->file, 0));
	CHECK_OK(gmem_vcpu_store(m.vcpu, BASE, "kept", 5));
	gmem_file_free(c->file);
	c->file = NULL;
	CHECK_ERR(gmem_vcpu_load(m.vcpu, BASE, &byte, 1), -EFAULT);
	CHECK_OK(gmem_vcpu_exit(m.vcpu, &exit));
	CHECK_EQ(exit.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit.gpa, BASE);
	CHECK_STR(at(view, 0), "kept");
	CHECK_ERR(set_slot(&m, 0, BASE, 4 * P, other, 0), -EINVAL);
	CHECK_ERR(set_slot(&m, 1, BASE, 4 * P, other, 0), -EEXIST);
	CHECK_OK(set_slot(&m, 0, BASE, 0, NULL, 0));
	CHECK_OK(set_slot(&m, 1, BASE, 4 * P, other, 0));
	machine_free(&m);
	gmem_file_free(other);
	gmem_view_unmap(view);
}

/* A slot with the kernel's private pages would be out of reach: a file whose pages are private has none. */
CONTRACT(slot_with_private_pages, 2, GMEM_FILE_INIT_PRIVATE)
{
	struct machine m = machine();

	CHECK_EQ(set_slot(&m, 0, BASE, 2 * P, c->file, 0), BY_ENGINE(c, 0, -EOPNOTSUPP));
	machine_free(&m);
}

/* Closing the last descriptor leaves KVM's slots, whose numbers are taken. */
CONTRACT(file_freed_before_its_kvm_slots, 4, 0)
{
	const struct step whole = { 0, BASE, 4 * P, 0, 0, false }, gone = { 0, BASE, 0, 0, 0, false };
	struct gmem_file *file;
	int vm;

	if (c->engine == GMEM_ENGINE_USER)
		return;
	CHECK_EQ(set_kvm_slot(c, &whole), 0);
	vm = fcntl(gmem_file_kvm_vm(c->file), F_DUPFD_CLOEXEC, 0);
	CHECK(vm >= 0);
	gmem_file_free(c->file);
	c->file = NULL;
	CHECK_OK(gmem_file_create(4 * P,
				  &(struct gmem_file_opts){ .size = sizeof(struct gmem_file_opts),
							    .engine = GMEM_ENGINE_KERNEL,
							    .kvm_vm = vm },
				  &file));
	c->file = file;
	CHECK_EQ(set_kvm_slot(c, &whole), -EINVAL);
	CHECK_EQ(set_kvm_slot(c, &gone), 0);
	CHECK_EQ(set_kvm_slot(c, &whole), 0);
	close(vm);
}
