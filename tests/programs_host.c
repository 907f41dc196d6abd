/* SPDX-License-Identifier: MIT */
/* The machines that programs run in, and the steps of the host. */
#define TAP_NO_MAIN
#include "programs_machine.h"

#include "slot_util.h"

static int put_slot(struct machine *m, uint32_t slot)
{
	const uint64_t half = P(PAGES / 2);

	switch (slot) {
	case 0:
	case 1:
		return set_slot(m->vm, slot, GPA + slot * half, half, m->file, slot * half);
	case 2:
		return set_hva_slot(m->vm, 2, 0, GPA + HVA, P(HVA_PAGES), m->hva);
	case 4:
		return set_hva_slot(m->vm, 4, 0, BOOT_GPA, GUEST_BOOT_LEN, m->boot);
	case 5:
		return set_both(m->vm, 5, GPA + TWO, P(HVA_PAGES), m->two, 0, m->two_hva);
	default:
		return set_hva_slot(m->vm, 3, GMEM_SLOT_READONLY, GPA + HVA_READONLY, P(HVA_PAGES),
				    m->hva + P(HVA_PAGES));
	}
}

static struct gmem_file *file_of_way(struct machine *m)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = m->way->engine };
	struct gmem_file *file;

	if (m->way->huge)
		return huge_file(1, 0);
	if (m->way->engine == GMEM_ENGINE_KERNEL) {
		o.needs = GMEM_NEED_VCPU;
		o.kvm_vm = m->way->kvm ? gmem_vm_kvm_fd(m->vm) : 0;
		if (gmem_file_create(P(PAGES), &o, &file))
			SKIP("guest_memfd", "%s", gmem_last_error());
	} else {
		CHECK_OK(gmem_file_create(P(PAGES), &o, &file));
	}
	CHECK_EQ(gmem_file_engine(file), m->way->engine);
	return file;
}

/* Its hypercalls are exits, if KVM has any. */
static struct gmem_vm *new_kvm_machine(enum gmem_vm_type type)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = type, .flags = GMEM_VM_KVM | GMEM_VM_HYPERCALLS };
	struct gmem_vm *vm;
	int err;

	need_kvm();
	err = gmem_vm_create(&o, &vm);
	if (err == -EOPNOTSUPP)
		return new_kvm_vm(type);
	CHECK_OK(err);
	return vm;
}

void machine_set_up(struct machine *m, const struct way *way, enum gmem_vm_type type)
{
	*m = (struct machine){ .way = way, .vm = way->kvm ? new_kvm_machine(type) : new_vm(type) };
	m->file = file_of_way(m);
	m->hva = plain_memory(2 * P(HVA_PAGES), RW);
	CHECK_OK(gmem_file_create(P(HVA_PAGES), NULL, &m->two));
	m->two_hva = mmap(NULL, P(HVA_PAGES), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(m->two_hva != MAP_FAILED);
	for (uint32_t slot = 0; slot < 4; slot++)
		CHECK_OK(put_slot(m, slot));
	CHECK_OK(put_slot(m, 5));
	if (!way->kvm) {
		m->vcpu = new_vcpu(m->vm);
		return;
	}
	m->vcpu = new_kvm_vcpu(m->vm, 0);
	m->boot = (unsigned char *)plain_memory(GUEST_BOOT_LEN, RW);
	CHECK_OK(put_slot(m, 4));
	guest_init(&m->guest, gmem_vcpu_kvm_fd(m->vcpu), gmem_vcpu_kvm_run(m->vcpu), m->boot, BOOT_GPA, way->mode,
		   false);
}

void machine_tear_down(struct machine *m)
{
	if (m->supply)
		end_supply(m->file, m->supply);
	gmem_vcpu_free(m->vcpu);
	gmem_vm_free(m->vm);
	gmem_file_free(m->file);
	gmem_file_free(m->two);
	munmap(m->two_hva, P(HVA_PAGES));
	munmap(m->hva, 2 * P(HVA_PAGES));
	if (m->boot)
		munmap(m->boot, GUEST_BOOT_LEN);
}

/* ---- the host */

static char *hva_at(struct machine *m, uint64_t at)
{
	if (at >= TWO)
		return m->two_hva + (at - TWO);
	return at >= HVA_READONLY ? m->hva + P(HVA_PAGES) + (at - HVA_READONLY) : m->hva + (at - HVA);
}

/* Where a word is in a file, if it is in one: then `at` is the offset there. */
static struct gmem_file *file_at(struct machine *m, uint64_t *at)
{
	if (*at < P(PAGES))
		return m->file;
	if (*at < TWO_FILE)
		return NULL;
	*at -= TWO_FILE;
	return m->two;
}

static int convert(struct machine *m, uint64_t at, uint64_t n, uint64_t attributes)
{
	if (at >= TWO)
		return gmem_file_set_attributes(m->two, at - TWO, P(n), attributes, NULL);
	return gmem_file_set_attributes(m->file, at, P(n), attributes, NULL);
}

static int host_word(struct machine *m, enum op op, uint64_t at, uint64_t *word)
{
	struct gmem_file *file = file_at(m, &at);

	if (file)
		return op == READ ? gmem_file_read(file, at, word, 8) : gmem_file_write(file, at, word, 8);
	memcpy(op == READ ? (void *)word : hva_at(m, at), op == READ ? hva_at(m, at) : (void *)word, 8);
	return 0;
}

int host_do(struct machine *m, enum op op, uint64_t at, uint64_t n, uint64_t *value)
{
	switch (op) {
	case NOTHING:
		return 0;
	case WRITE:
	case READ:
		return host_word(m, op, at, value);
	case PRIVATE:
		return convert(m, at, n, GMEM_ATTRIBUTE_PRIVATE);
	case SHARED:
		return convert(m, at, n, 0);
	case PUNCH:
		return gmem_file_punch(m->file, at, P(n));
	case POISON:
		return gmem_file_poison(m->file, at, P(n));
	case FREE_FILE:
		gmem_file_free(m->file);
		m->file = NULL;
		return 0;
	case DELETE:
		return del_slot(m->vm, (uint32_t)n);
	case SET:
		return put_slot(m, (uint32_t)n);
	case SUPPLY:
		m->supply = new_supply(m->file, at, P(n), bring_in, &m->supplier);
		return 0;
	case SUPPLIED:
		*value = atomic_load(&m->supplier.calls);
		return 0;
	case END_SUPPLY:
		end_supply(m->file, m->supply);
		m->supply = NULL;
		return 0;
	case HIDE:
	case SHOW:
		return mprotect(hva_at(m, at), P(n), op == HIDE ? PROT_NONE : RW) ? -errno : 0;
	default:
		FAIL("op %d is not the host's", (int)op);
	}
}
