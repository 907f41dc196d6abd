/* SPDX-License-Identifier: MIT */
/* What brings guests on KVM out besides their memory: cancellation, signals, the end of the VM. */
#include <signal.h>
#include <sys/wait.h>

#include "kvm_scene.h"

static void *cancel_soon(void *arg)
{
	usleep(20000);
	gmem_vcpu_cancel(arg);
	return NULL;
}

TEST_TIMEOUT(cancel, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .stuck = true };
		struct gmem_supply *supply = new_supply(s.file, 0, PG, bring_in, &sup);
		pthread_t t;

		/* In the guest. */
		t = start(cancel_soon, s.vcpu);
		begin(&s, GUEST_forever, 0);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		join(t);
		/* Before it. */
		gmem_vcpu_cancel(s.vcpu);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		/* Waiting for a page. */
		t = start(cancel_soon, s.vcpu);
		begin(&s, GUEST_load8, GPA + 8);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		join(t);
		atomic_store(&sup.stuck, false);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 9);
		end_supply(s.file, supply);
		gmem_vcpu_cancel(s.vcpu);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
	}
}

static _Atomic int alarms;

static void on_alarm(int sig)
{
	(void)sig;
	atomic_fetch_add(&alarms, 1);
}

static void *signal_soon(void *arg)
{
	usleep(20000);
	pthread_kill(*(pthread_t *)arg, SIGUSR1);
	return NULL;
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	if (info->si_code == SI_QUEUE && info->si_value.sival_int == 77)
		atomic_fetch_add(&alarms, 1);
}

static void *bus_soon(void *arg)
{
	usleep(20000);
	CHECK_EQ(pthread_sigqueue(*(pthread_t *)arg, SIGBUS, (union sigval){ .sival_int = 77 }), 0);
	return NULL;
}

/* The caller's own signals end it, and their handlers run; a SIGBUS that is no guest's is not lost. */
TEST(signals)
{
	struct sigaction usr = { .sa_handler = on_alarm }, bus = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	pthread_t self = pthread_self(), t;
	sigset_t mask;
	struct scene s;

	scene_set_up(&s, &o);
	sigaction(SIGUSR1, &usr, NULL);
	sigaction(SIGBUS, &bus, NULL);
	begin(&s, GUEST_forever, 0);
	t = start(signal_soon, &self);
	CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
	join(t);
	CHECK_EQ(atomic_load(&alarms), 1);
	t = start(bus_soon, &self);
	CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
	join(t);
	CHECK_EQ(atomic_load(&alarms), 2);
	/* A guest at a barred page runs no handler. */
	to_private(s.file, 0, PG);
	run_err(&s, -EFAULT, GUEST_load8, GPA);
	CHECK_EQ(atomic_load(&alarms), 2);
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	CHECK(!sigismember(&mask, SIGBUS));
	s.guest.run->immediate_exit = 1;
	to_shared(s.file, 0, PG);
	CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
	s.guest.run->immediate_exit = 0;
	CHECK_OK(go_on(&s));
	scene_tear_down(&s);
}

TEST_TIMEOUT(vm_is_freed_under_it, 120)
{
	for (int waiting = 0; waiting < 2; waiting++) {
		for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
			struct supplier sup = { .stuck = true };
			struct scene s;
			pthread_t t;

			scene_set_up(&s, &ways[i]);
			if (waiting)
				new_supply(s.file, 0, PG, bring_in, &sup);
			if (waiting)
				begin(&s, GUEST_load8, GPA);
			else
				begin(&s, GUEST_hammer, GPA, 0);
			t = start(free_vm_soon, s.vm);
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
			join(t);
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
			gmem_vcpu_free(s.vcpu);
			gmem_file_free(s.file);
			munmap(s.boot, GUEST_BOOT_LEN);
		}
	}
}

TEST(forked_child)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	struct scene s;
	int status;
	pid_t pid;

	scene_set_up(&s, &o);
	run(&s, GUEST_store8, GPA, 1);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		struct gmem_vcpu *vcpu;

		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
		CHECK_ERR(gmem_vcpu_create(s.vm, NULL, &vcpu), -EIO);
		CHECK_ERR(set_slot(s.vm, 3, 0, PG, s.file, 0), -EIO);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	CHECK_EQ(run(&s, GUEST_load8, GPA), 1);
	scene_tear_down(&s);
}

/* Conversions look for mappings that are no views: a gate is known, a mapping of the descriptor beside it is not. */
TEST(exported_memory)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	struct scene s;
	void *raw;

	scene_set_up(&s, &o);
	run(&s, GUEST_store8, GPA, 1);
	raw = mmap(NULL, LEN, PROT_READ, MAP_SHARED, gmem_file_fd(s.file), 0);
	CHECK(raw != MAP_FAILED);
	CHECK_ERR(gmem_file_set_attributes(s.file, 0, PG, GMEM_ATTRIBUTE_PRIVATE, NULL), -EBUSY);
	munmap(raw, LEN);
	to_private(s.file, 0, PG);
	run_err(&s, -EFAULT, GUEST_load8, GPA);
	scene_tear_down(&s);
}

#include "tap_main.h"
