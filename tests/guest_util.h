/* SPDX-License-Identifier: MIT */
/* A machine of KVM with a guest in it, made by raw ioctls: a memfd is its memory, at both ends of what it can reach. */
#ifndef GMEM_TESTS_GUEST_UTIL_H
#define GMEM_TESTS_GUEST_UTIL_H

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include "tap.h"

#include "guest.h"
#include "sys/kvm.h"

#define PG 4096ull
#define RAM_LEN (64 * PG)
#define RAM_GPA (GUEST_MAPPED - RAM_LEN)
#define LOW_GPA 0ull /* the same memory once more */
#define BOOT_GPA (3ull << 30)

enum { MACHINE_IRQCHIP = 1, MACHINE_IF = 2 };

struct machine {
	int kvm, vm, vcpu, memfd;
	size_t run_len;
	struct kvm_run *run;
	unsigned char *ram; /* what the slot of RAM_GPA has */
	unsigned char *low; /* what that of LOW_GPA has: another mapping of the same file, never marked */
	unsigned char *boot;
	struct guest guest;
};

static inline void *machine_map(size_t len, int flags, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		FAIL("mmap of %zu bytes: %s", len, strerror(errno));
	return p;
}

static inline void machine_make(struct machine *m, enum guest_mode mode, int flags)
{
	m->kvm = gmem_kvm_open();
	if (m->kvm < 0)
		SKIP("kvm", "/dev/kvm: %s", strerror(-m->kvm));
	m->vm = gmem_kvm_vm_create(m->kvm, 0);
	if (m->vm < 0)
		SKIP("kvm", "a virtual machine: %s", strerror(-m->vm));
	if (flags & MACHINE_IRQCHIP && ioctl(m->vm, KVM_CREATE_IRQCHIP, 0) < 0)
		SKIP("kvm", "interrupt controllers in the kernel: %s", strerror(errno));
	m->memfd = (int)CHECK_OK(memfd_create("guest", MFD_CLOEXEC));
	CHECK_OK(ftruncate(m->memfd, (off_t)RAM_LEN));
	m->ram = machine_map(RAM_LEN, MAP_SHARED, m->memfd);
	m->low = machine_map(RAM_LEN, MAP_SHARED, m->memfd);
	m->boot = machine_map(GUEST_BOOT_LEN, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	CHECK_OK(gmem_kvm_slot_set(m->vm, 0, BOOT_GPA, GUEST_BOOT_LEN, m->boot, -1, 0));
	CHECK_OK(gmem_kvm_slot_set(m->vm, 1, RAM_GPA, RAM_LEN, m->ram, -1, 0));
	CHECK_OK(gmem_kvm_slot_set(m->vm, 2, LOW_GPA, RAM_LEN, m->low, -1, 0));
	m->vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(m->vm, 0));
	m->run_len = (size_t)CHECK_OK(ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	m->run = machine_map(m->run_len, MAP_SHARED, m->vcpu);
	guest_init(&m->guest, m->vcpu, m->run, m->boot, BOOT_GPA, mode, flags & MACHINE_IF);
}

static inline void machine_unmake(struct machine *m)
{
	munmap(m->run, m->run_len);
	close(m->vcpu);
	close(m->vm);
	close(m->kvm);
	munmap(m->boot, GUEST_BOOT_LEN);
	munmap(m->low, RAM_LEN);
	munmap(m->ram, RAM_LEN);
	close(m->memfd);
}

static inline uint64_t ram_word(const struct machine *m, uint64_t off)
{
	return __atomic_load_n((const uint64_t *)(m->low + off), __ATOMIC_SEQ_CST);
}

static inline void ram_set_word(struct machine *m, uint64_t off, uint64_t value)
{
	__atomic_store_n((uint64_t *)(m->low + off), value, __ATOMIC_SEQ_CST);
}

/* ---- signals: SIGBUS ends KVM_RUN and is nowhere else delivered */

/* The calling thread is to be the one in KVM_RUN. */
static inline void machine_signals(struct machine *m)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t none; /* blocked in KVM_RUN */
	} __attribute__((packed)) mask = { .head = { .len = sizeof(mask.none) } };
	sigset_t bus;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &bus, NULL), 0);
	CHECK_OK(ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, &mask));
}

/* Takes the SIGBUS that is pending for this thread; false: none is. */
static inline bool take_bus(siginfo_t *info)
{
	const struct timespec now = { 0 };
	sigset_t bus;
	int sig;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	do
		sig = sigtimedwait(&bus, info, &now);
	while (sig < 0 && errno == EINTR);
	if (sig < 0)
		CHECK_EQ(errno, EAGAIN);
	return sig == SIGBUS;
}

static inline bool bus_pending(void)
{
	sigset_t pending;

	CHECK_EQ(sigpending(&pending), 0);
	return sigismember(&pending, SIGBUS);
}

/*
 * Sends SIGBUS to a thread in KVM_RUN, every 10 ms, until told to stop: a kick that comes before KVM_RUN is as good as
 * one in it, and a test in which one gets lost does not hang.
 */
struct kicker {
	pthread_t thread, target;
	bool stop;
};

static inline void *kicker_main(void *arg)
{
	struct kicker *k = arg;

	while (!__atomic_load_n(&k->stop, __ATOMIC_ACQUIRE)) {
		usleep(10000);
		pthread_kill(k->target, SIGBUS);
	}
	return NULL;
}

static inline void kicker_start(struct kicker *k)
{
	*k = (struct kicker){ .target = pthread_self() };
	CHECK_EQ(pthread_create(&k->thread, NULL, kicker_main, k), 0);
}

/* Afterwards none of its kicks is pending. */
static inline void kicker_stop(struct kicker *k)
{
	siginfo_t info;

	__atomic_store_n(&k->stop, true, __ATOMIC_RELEASE);
	CHECK_EQ(pthread_join(k->thread, NULL), 0);
	while (take_bus(&info))
		;
}

#endif
