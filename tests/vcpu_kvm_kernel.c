/* SPDX-License-Identifier: MIT */
/* Slots of the kernel engine on KVM: what KVM itself reaches at a slot's address, and what it does not. */
#include <sys/wait.h>

#include "kvm_scene.h"

#include "file/gate.h"
#include "file/place.h"
#include "sys/call.h"

#define CLOCK_MSR 0x4b564d01 /* MSR_KVM_SYSTEM_TIME_NEW */
#define CLOCK_GPA (GPA + PG)
#define SECRET 0x5ec7e7

static int plain_slot_fails;

int __real_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);
int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);

int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva)
{
	if (plain_slot_fails && !--plain_slot_fails)
		return -ENOMEM;
	return __real_gmem_kvm_plain_slot_set(vm, slot, flags, gpa, len, hva);
}

static void set_up(struct scene *s, enum guest_mode mode)
{
	const struct scene_opts o = { .type = GMEM_VM_DEFAULT, .engine = GMEM_ENGINE_KERNEL, .mode = mode };

	scene_set_up(s, &o);
}

#define EACH_MODE(s)                                                             \
	for (enum guest_mode mode_ = GUEST_USER; mode_ <= GUEST_KERNEL; mode_++) \
		for (bool once_ = (set_up(s, mode_), true); once_; once_ = (scene_tear_down(s), false))

/* That KVM has. */
static char *address(struct scene *s)
{
	struct gmem_slot *slot;
	char *addr;

	gmem_vm_lock_slots(s->vm);
	slot = gmem_vm_slot(s->vm, GPA >> GMEM_PAGE_SHIFT);
	CHECK(!slot->gate && slot->plain_gate);
	addr = slot->plain_gate->addr;
	gmem_vm_unlock_slots(s->vm);
	return addr;
}

static bool is_free(char *addr)
{
	void *p = mmap(addr, LEN, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	CHECK(p == addr);
	munmap(p, LEN);
	return true;
}

static bool can_peek(const char *addr)
{
	char byte;

	return gmem_sys_peek(&byte, addr, 1) == 1;
}

/* Frees the file, and maps memory of the host's where it was mapped, if nothing `keeps` it. */
static uint64_t *free_file(struct scene *s, bool keeps)
{
	char *window = gmem_file_window(s->file);
	uint64_t *p;

	gmem_file_free(s->file);
	s->file = NULL;
	p = mmap(keeps ? NULL : window, LEN, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | (keeps ? 0 : MAP_FIXED_NOREPLACE), -1, 0);
	CHECK(p != MAP_FAILED && (keeps || p == (void *)window));
	for (uint64_t i = 0; i < LEN / 8; i++)
		p[i] = SECRET;
	return p;
}

static void check_untouched(uint64_t *p)
{
	for (uint64_t i = 0; i < LEN / 8; i++)
		CHECK_EQ(p[i], SECRET);
	munmap(p, LEN);
}

/* How a guest reaches pages 5 and 6 of the slot. An instruction that came out is not over: one a guest. */
static void touch(struct scene *s, int how)
{
	switch (how / 2) {
	case 0:
		begin(s, GUEST_load8, GPA + 5 * PG);
		break;
	case 1:
		begin(s, GUEST_store8, GPA + 5 * PG + 8, 0xbad);
		break;
	case 2:
		begin(s, GUEST_store8, GPA + 6 * PG - 4, 0xbad);
		break;
	default:
		begin(s, GUEST_cmpxchg8, GPA + 5 * PG, SECRET, 0xbad);
		break;
	}
}

/* The slot stays, without memory: a guest neither reads nor writes what the host maps where the file was. */
TEST_TIMEOUT(file_is_freed, 60)
{
	struct scene s;

	for (int how = 0; how < 8; how++) {
		EACH_MODE(&s)
		{
			char *addr = address(&s);
			struct gmem_view *kept = NULL;
			uint64_t *host;

			/* Views keep the memory, and not for guests. */
			if (how & 1)
				CHECK_OK(gmem_view_map(s.file, 0, LEN, PROT_READ | PROT_WRITE, &kept));
			CHECK_EQ(run(&s, GUEST_touch, GPA, LEN / PG, PG, 7), LEN / PG);
			CHECK(can_peek(addr + 3 * PG));
			CHECK_EQ(*(uint64_t *)(addr + 3 * PG), 10);
			host = free_file(&s, kept);
			CHECK(!is_free(addr));
			CHECK(!can_peek(addr));
			if (kept)
				CHECK_EQ(*(uint64_t *)gmem_view_at(kept, 5 * PG), 12);
			touch(&s, how);
			for (int times = 0; times < 2; times++) {
				CHECK_ERR(gmem_vcpu_run(s.vcpu), -EFAULT);
				CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
				CHECK_EQ(exit_of(s.vcpu).gpa, GPA + 5 * PG);
			}
			if (kept)
				CHECK_EQ(*(uint64_t *)gmem_view_at(kept, 5 * PG), 12);
			check_untouched(host);
			CHECK_OK(del_slot(s.vm, 0));
			CHECK(is_free(addr));
			gmem_view_unmap(kept);
		}
	}
}

#ifdef __x86_64__

static void set_clock(struct scene *s, uint64_t seconds)
{
	struct kvm_clock_data c = { .clock = seconds * 1000000000 };

	CHECK_OK(ioctl(gmem_vm_kvm_fd(s->vm), KVM_SET_CLOCK, &c));
}

/* KVM's own stores, without an instruction of the guest's: they are the file's, and end with it. */
TEST_TIMEOUT(kvmclock, 60)
{
	const uint64_t second = 1000000000;
	struct scene s;

	EACH_MODE(&s)
	{
		struct {
			struct kvm_msrs n;
			struct kvm_msr_entry e;
		} msr = { .n = { .nmsrs = 1 }, .e = { .index = CLOCK_MSR, .data = CLOCK_GPA | 1 } };
		uint64_t *host;

		if (ioctl(gmem_vcpu_kvm_fd(s.vcpu), KVM_SET_MSRS, &msr) != 1)
			SKIP("kvm", "no kvmclock");
		set_clock(&s, 1000);
		CHECK(run(&s, GUEST_load8, CLOCK_GPA + 16) / second >= 1000);
		set_clock(&s, 5000);
		run(&s, GUEST_load8, GPA);
		CHECK(run(&s, GUEST_load8, CLOCK_GPA + 16) / second >= 5000);
		host = free_file(&s, false);
		set_clock(&s, 9000);
		for (int times = 0; times < 2; times++) {
			begin(&s, GUEST_forever, 0);
			gmem_vcpu_cancel(s.vcpu);
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
			run(&s, GUEST_load8, BOOT_GPA);
		}
		check_untouched(host);
	}
}

#endif

/* KVM may go on using it: nobody gets the addresses, and nothing is there. */
TEST(slot_that_kvm_keeps)
{
	for (int freed = 0; freed < 3; freed++) {
		struct scene s;
		char *addr;

		set_up(&s, freed == 2 ? GUEST_KERNEL : GUEST_USER);
		addr = address(&s);
		run(&s, GUEST_store8, GPA, 5);
		plain_slot_fails = 1;
		CHECK_ERR(del_slot(s.vm, 0), -ENOMEM);
		CHECK_EQ(run(&s, GUEST_load8, GPA), 5);
		if (freed) {
			uint64_t *host;

			plain_slot_fails = 1;
			host = free_file(&s, false);
			CHECK_EQ(plain_slot_fails, 0);
			run_err(&s, -EFAULT, GUEST_store8, GPA + 5 * PG, 6);
			check_untouched(host);
		}
		plain_slot_fails = 1;
		gmem_vm_free(s.vm);
		s.vm = NULL;
		CHECK_EQ(plain_slot_fails, 0);
		CHECK(!is_free(addr));
		CHECK(!can_peek(addr));
		scene_tear_down(&s);
		CHECK(!is_free(addr));
	}
}

/* It is no stray mapping of the file, nor a child's. */
TEST(what_it_is_to_others)
{
	struct scene s;
	int status;
	char *addr;
	pid_t pid;
	void *raw;

	set_up(&s, GUEST_USER);
	addr = address(&s);
	run(&s, GUEST_store8, GPA, 5);
	gmem_rwlock_lock(&s.file->invalidate_lock);
	CHECK_EQ(gmem_file_strayed(s.file, NULL, 0, LEN), 0);
	CHECK_EQ(gmem_foreign_here(s.file, 0, LEN), 0);
	raw = mmap(NULL, PG, PROT_READ, MAP_SHARED, s.file->fd, 3 * PG);
	CHECK(raw != MAP_FAILED);
	CHECK_EQ(gmem_file_strayed(s.file, NULL, 0, LEN), 1);
	CHECK_EQ(gmem_foreign_here(s.file, 0, LEN), 1);
	munmap(raw, PG);
	gmem_rwlock_unlock(&s.file->invalidate_lock);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		_exit(can_peek(addr) || !is_free(addr));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	scene_tear_down(&s);
}

#include "tap_main.h"
