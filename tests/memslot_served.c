/* SPDX-License-Identifier: MIT */
/* Memory of the caller's in a slot that is itself served by somebody: who waits for it, and who does not. */
#include "slot_util.h"

#include "sys/uffd.h"

#define LEN (16 * PG)

struct scene {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file;
	char *hva;
	int uffd;
};

/* All of the caller's memory is missing. */
static void set_up(struct scene *s, enum gmem_vm_type type)
{
	bool user_mode_only = false;

	s->uffd = gmem_sys_uffd_open(0, &user_mode_only);
	if (s->uffd < 0 || user_mode_only)
		SKIP("uffd", "no userfaultfd that serves system calls");
	s->vm = new_vm(type);
	s->vcpu = new_vcpu(s->vm);
	s->file = make_file(LEN, 0);
	s->hva = plain_memory(LEN, RW);
	CHECK_OK(gmem_sys_uffd_register(s->uffd, (uintptr_t)s->hva, LEN, GMEM_SYS_UFFD_MISSING));
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	close(s->uffd);
	munmap(s->hva, LEN);
}

struct toucher {
	struct gmem_vcpu *vcpu;
	uint64_t gpa, value;
	int err;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->err = gmem_vcpu_load(t->vcpu, t->gpa, &t->value, 8);
	return NULL;
}

struct deleter {
	struct gmem_vm *vm;
	_Atomic bool done;
};

static void *delete_slot(void *arg)
{
	struct deleter *d = arg;

	CHECK_OK(del_slot(d->vm, 0));
	atomic_store(&d->done, true);
	return NULL;
}

/* That a system call raised. */
static uint64_t wait_for_fault(const struct scene *s)
{
	struct uffd_msg msg;

	while (gmem_sys_uffd_read(s->uffd, &msg, 1) < 1)
		usleep(500);
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	return msg.arg.pagefault.address & ~(PG - 1);
}

static void resolve(const struct scene *s, uint64_t at, uint64_t value)
{
	static _Alignas(4096) uint64_t page[PG / 8];
	struct uffdio_copy copy = { .dst = (uintptr_t)s->hva + at, .src = (uintptr_t)page, .len = PG };

	page[0] = value;
	CHECK_EQ(ioctl(s->uffd, UFFDIO_COPY, &copy), 0);
}

/* The deletion waits for the access that began before it; one that begins meanwhile finds no slot. */
TEST(deleted_once_the_access_is_over)
{
	struct toucher t, late;
	struct deleter d;
	pthread_t a, b, c;
	struct scene s;

	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	t = (struct toucher){ .vcpu = s.vcpu, .gpa = PG };
	late = (struct toucher){ .vcpu = new_vcpu(s.vm), .gpa = 2 * PG };
	d = (struct deleter){ .vm = s.vm };
	a = start(touch, &t);
	CHECK_EQ(wait_for_fault(&s), (uintptr_t)s.hva + PG);
	b = start(delete_slot, &d);
	/* Until the slot cannot be found any more. */
	do {
		gmem_mmu_begin_look(late.vcpu);
		late.value = (uintptr_t)gmem_slots_find(atomic_load(&s.vm->mmu.slots), 2);
		gmem_mmu_end_look(late.vcpu);
		usleep(200);
	} while (late.value);
	c = start(touch, &late);
	join(c);
	CHECK_EQ(late.err, -EFAULT);
	CHECK(!atomic_load(&d.done));
	/* Neither a cancellation ends it. */
	gmem_vcpu_cancel(s.vcpu);
	usleep(2000);
	CHECK(!atomic_load(&d.done));
	resolve(&s, PG, 77);
	join(a);
	join(b);
	CHECK_EQ(t.err, 0);
	CHECK_EQ(t.value, 77);
	check_no_slot(late.vcpu, PG);
	/* What was cancelled is the next call that goes anywhere. */
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &t.value, 8), -EINTR);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_EQ(load64(s.vcpu, PG), 77);
	gmem_vcpu_free(late.vcpu);
	tear_down(&s);
}

/* Other slots, and files, are not kept waiting; nor is what the caller's memory waits for. */
TEST(nothing_else_waits_for_a_page_of_the_callers)
{
	struct toucher t;
	struct scene s;
	pthread_t a;
	struct gmem_vcpu *other;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	other = new_vcpu(s.vm);
	CHECK_OK(set_both(s.vm, 0, 0, LEN / 2, s.file, 0, s.hva));
	t = (struct toucher){ .vcpu = s.vcpu, .gpa = PG };
	a = start(touch, &t);
	CHECK_EQ(wait_for_fault(&s), (uintptr_t)s.hva + PG);
	/* The page itself becomes private meanwhile. */
	to_private(s.file, 0, LEN / 2);
	store64(other, PG, 5);
	CHECK_OK(gmem_file_punch(s.file, 0, LEN));
	CHECK_EQ(load64(other, PG), 0);
	CHECK_OK(set_slot(s.vm, 1, LEN, PG, s.file, LEN / 2));
	store64(other, LEN, 6);
	CHECK_OK(del_slot(s.vm, 1));
	resolve(&s, PG, 78);
	join(a);
	CHECK_EQ(t.err, 0);
	CHECK_EQ(t.value, 78);
	gmem_vcpu_free(other);
	tear_down(&s);
}

static void *free_vm(void *arg)
{
	struct deleter *d = arg;

	gmem_vm_free(d->vm);
	atomic_store(&d->done, true);
	return NULL;
}

/* The machine goes when the access is over, which gets what it asked for. */
TEST(machine_freed_once_the_access_is_over)
{
	struct toucher t;
	struct deleter d;
	pthread_t a, b;
	struct scene s;

	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	t = (struct toucher){ .vcpu = s.vcpu, .gpa = PG };
	d = (struct deleter){ .vm = s.vm };
	a = start(touch, &t);
	CHECK_EQ(wait_for_fault(&s), (uintptr_t)s.hva + PG);
	b = start(free_vm, &d);
	usleep(2000);
	CHECK(!atomic_load(&d.done));
	resolve(&s, PG, 79);
	join(a);
	join(b);
	CHECK_EQ(t.err, 0);
	CHECK_EQ(t.value, 79);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &t.value, 8), -EIO);
	s.vm = NULL;
	tear_down(&s);
}

static void *pre_fault(void *arg)
{
	struct toucher *t = arg;

	t->err = gmem_vcpu_pre_fault(t->vcpu, t->gpa, 2 * PG, &t->value);
	return NULL;
}

/* A pre-fault is a touch: it waits, and the page is there then. */
TEST(pre_fault_waits)
{
	struct toucher t;
	struct scene s;
	pthread_t a;

	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	t = (struct toucher){ .vcpu = s.vcpu, .gpa = PG };
	a = start(pre_fault, &t);
	for (uint64_t at = PG; at < 3 * PG; at += PG) {
		CHECK_EQ(wait_for_fault(&s), (uintptr_t)s.hva + at);
		resolve(&s, at, at);
	}
	join(a);
	CHECK_EQ(t.err, 0);
	CHECK_EQ(t.value, 2 * PG);
	CHECK_EQ(load64(s.vcpu, 2 * PG), 2 * PG);
	tear_down(&s);
}
