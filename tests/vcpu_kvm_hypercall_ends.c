/* SPDX-License-Identifier: MIT */
/* What comes between a guest's hypercall and its answer, or before it. */
#define TAP_NO_MAIN
#include <signal.h>

#include "vcpu_kvm_hypercall.h"

#ifdef __x86_64__

static int next_after(struct scene *s, const struct kvm_vcpu_events *events)
{
	const struct kvm_vcpu_events none = { .flags = KVM_VCPUEVENT_VALID_SHADOW };
	struct gmem_kvm_next next;
	int err;

	CHECK_OK(ioctl(s->guest.vcpu, KVM_SET_VCPU_EVENTS, events));
	err = gmem_kvm_next(s->guest.vcpu, &next);
	CHECK_OK(ioctl(s->guest.vcpu, KVM_SET_VCPU_EVENTS, &none));
	return err;
}

/* An event that is on its way in comes first, and setting registers would drop some. */
TEST(events_before_it)
{
	struct kvm_vcpu_events exception = { .exception = { .injected = 1, .nr = 6 } };
	struct kvm_vcpu_events interrupt = { .interrupt = { .injected = 1, .nr = 20 } };
	struct kvm_vcpu_events shadow = { .flags = KVM_VCPUEVENT_VALID_SHADOW, .interrupt = { .shadow = 1 } };
	struct kvm_vcpu_events nmi = { .nmi = { .injected = 1 } }, none = { .flags = KVM_VCPUEVENT_VALID_SHADOW };
	struct scene s;

	EACH_HC_WAY(&s)
	{
		begin(&s, GUEST_vmcall, NR, GPA, 1, PRIVATE);
		CHECK_OK(next_after(&s, &none));
		CHECK_EQ(next_after(&s, &exception), -EAGAIN);
		CHECK_EQ(next_after(&s, &interrupt), -EAGAIN);
		CHECK_EQ(next_after(&s, &shadow), -EAGAIN);
		CHECK_EQ(next_after(&s, &nmi), -EAGAIN);
		CHECK_OK(next_after(&s, &none));
	}
}

/* One that comes while the program thinks about it is taken behind it, and the answer is there. */
TEST(interrupted_while_open)
{
	struct scene s;
	uint64_t at;

	hc_set_up(&s, &hc_ways[0]);
	s.guest.interrupts = true;
	begin(&s, GUEST_vmcall, NR, GPA, 1, PRIVATE);
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	check_asked(&s, GPA, 1, PRIVATE);
	at = guest_hypercall_gpa(&s.guest, GUEST_vmcall) - s.guest.code_gpa;
	CHECK_OK(ioctl(s.guest.vcpu, KVM_INTERRUPT, &(struct kvm_interrupt){ 20 }));
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 5));
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	CHECK(!guest_finished(&s.guest));
	printf("%s\n", guest_what(&s.guest));
	CHECK(strstr(guest_what(&s.guest), "exception 20, "));
	CHECK_EQ(guest_result(&s.guest), 5);
	CHECK_EQ(guest_exception_rip(&s.guest), GPA + CODE + at + GMEM_HYPERCALL_LEN);
	scene_tear_down(&s);
}

/* ---- what else ends a run */

TEST(cancelled)
{
	struct scene s;

	EACH_HC_WAY(&s)
	{
		/* The answer is given all the same, once. */
		begin(&s, GUEST_vmcalls, GPA, 1, GPA + PG, PRIVATE);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		check_asked(&s, GPA + PG, 1, PRIVATE);
		CHECK_OK(gmem_vcpu_answer(s.vcpu, 9));
		gmem_vcpu_cancel(s.vcpu);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		CHECK_ERR(gmem_vcpu_answer(s.vcpu, 1), -EINVAL);
		s.guest.run->immediate_exit = 1;
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		s.guest.run->immediate_exit = 0;
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 9);
	}
}

static _Atomic bool over;

static void on_signal(int sig)
{
	(void)sig;
}

static void *signal_often(void *arg)
{
	while (!atomic_load(&over)) {
		usleep(300);
		pthread_kill(*(pthread_t *)arg, SIGUSR1);
	}
	return NULL;
}

/* A program that has signals all the time gets its exits as well, and each once. */
TEST_TIMEOUT(signals, 120)
{
	struct sigaction usr = { .sa_handler = on_signal };
	const uint64_t n = tap_slow() ? 10 : 50;
	pthread_t self = pthread_self(), t;
	uint64_t asked = 0, interrupted = 0, counts[2];
	struct scene s;

	hc_set_up(&s, &hc_ways[0]);
	sigaction(SIGUSR1, &usr, NULL);
	t = start(signal_often, &self);
	begin(&s, GUEST_vmcalls, GPA, 0, GPA + PG, 0);
	while (asked < n || interrupted < 10) {
		int err = gmem_vcpu_run(s.vcpu);

		if (err) {
			CHECK_EQ(err, -EINTR);
			interrupted++;
			continue;
		}
		check_asked(&s, GPA + PG, 1, asked++ % 2 * PRIVATE);
		CHECK_OK(gmem_vcpu_answer(s.vcpu, asked));
		CHECK_OK(gmem_file_read(s.file, 0, counts, sizeof(counts)));
		CHECK_EQ(counts[0], asked);
		CHECK_EQ(counts[1], asked * (asked - 1) / 2);
	}
	atomic_store(&over, true);
	join(t);
	scene_tear_down(&s);
}

TEST_TIMEOUT(vm_is_freed_under_it, 120)
{
	for (size_t i = 0; i < sizeof(hc_ways) / sizeof(hc_ways[0]); i++) {
		struct scene s;
		pthread_t t;
		int err;

		hc_set_up(&s, &hc_ways[i]);
		begin(&s, GUEST_vmcalls, GPA, 0, GPA + PG, 0);
		t = start(free_vm_soon, s.vm);
		while (!(err = gmem_vcpu_run(s.vcpu)))
			CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_HYPERCALL);
		CHECK_EQ(err, -EIO);
		join(t);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
		gmem_vcpu_free(s.vcpu);
		gmem_file_free(s.file);
		munmap(s.boot, GUEST_BOOT_LEN);
	}
}

/* Who sets registers while the hypercall is open has the guest go on from there. */
TEST(moved_elsewhere)
{
	struct scene s;

	hc_set_up(&s, &hc_ways[0]);
	if (!s.vm->watch.on) {
		scene_tear_down(&s);
		SKIP("kvm", "KVM makes the exits itself, and ends the instruction first");
	}
	CHECK_OK(gmem_file_write(s.file, 0, &(uint64_t){ 8 }, 8));
	begin(&s, GUEST_vmcall, NR, GPA, 1, 0);
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 5));
	CHECK_EQ(run(&s, GUEST_load8, GPA), 8);
	scene_tear_down(&s);
}

#endif
