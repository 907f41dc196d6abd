/* SPDX-License-Identifier: MIT */
/* Guests on KVM meet a huge page while it is punched: its marker goes with it, and is not back yet. */
#include <pthread.h>

#include "kvm_huge.h"

static struct {
	_Atomic bool on;
	_Atomic unsigned int punched; /* how often that was */
	_Atomic unsigned int refused; /* KVM_RUNs that met nothing */
	_Atomic bool came_out; /* the guest's thread */
	bool fail;
} window;

int __real_gmem_memfd_punch(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_punch(int fd, uint64_t off, uint64_t len);
int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __real_gmem_kvm_run(int vcpu);
int __wrap_gmem_kvm_run(int vcpu);

/* A huge page has gone: until the guest has been at it, everything stays as it is now. */
int __wrap_gmem_memfd_punch(int fd, uint64_t off, uint64_t len)
{
	int err = __real_gmem_memfd_punch(fd, off, len);

	if (!atomic_load(&window.on) || len < H)
		return err;
	atomic_fetch_add(&window.punched, 1);
	while (!atomic_load(&window.refused) && !atomic_load(&window.came_out))
		usleep(100);
	return err;
}

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	if (window.fail && atomic_load(&window.punched)) {
		*done = 0;
		return -ENOMEM;
	}
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

int __wrap_gmem_kvm_run(int vcpu)
{
	int err = __real_gmem_kvm_run(vcpu);

	if (err == -EFAULT)
		atomic_fetch_add(&window.refused, 1);
	return err;
}

static void window_open(bool fail)
{
	atomic_store(&window.punched, 0);
	atomic_store(&window.refused, 0);
	atomic_store(&window.came_out, false);
	window.fail = fail;
	atomic_store(&window.on, true);
}

static void *run_in_the_window(void *arg)
{
	struct scene *s = arg;
	static int err;

	while (!atomic_load(&window.punched))
		usleep(100);
	err = gmem_vcpu_run(s->vcpu);
	atomic_store(&window.came_out, true);
	return &err;
}

/* The guest makes its access while `change` is at work. What the call says. */
static int touch_meanwhile(struct scene *s, bool fail, int (*change)(struct gmem_file *, uint64_t, uint64_t))
{
	pthread_t thread;
	void *err;

	begin(s, GUEST_load8, GPA + H + 5 * PG);
	window_open(fail);
	thread = start(run_in_the_window, s);
	CHECK_OK(change(s->file, H, H));
	atomic_store(&window.on, false);
	CHECK_EQ(pthread_join(thread, &err), 0);
	CHECK_EQ(atomic_load(&window.punched), 1);
	return *(int *)err;
}

TEST_TIMEOUT(nothing_is_seen_in_a_window, 120)
{
	struct scene s;

	huge_set_up(&s, &ways[0]);
	set_file_word(s.file, H + 5 * PG, 5);
	to_private(s.file, H, H);
	CHECK_EQ(touch_meanwhile(&s, false, gmem_file_punch), -EFAULT);
	check_fault(&s, GPA + H + 5 * PG, 0);
	CHECK(atomic_load(&window.refused));
	CHECK_EQ(resident(s.file), 0);
	to_shared(s.file, H, H);
	CHECK_EQ(run(&s, GUEST_load8, GPA + H + 5 * PG), 0);
	/* Lost. */
	CHECK_EQ(touch_meanwhile(&s, false, gmem_file_poison), -EHWPOISON);
	check_fault(&s, GPA + H + 5 * PG, 0);
	CHECK(atomic_load(&window.refused));
	CHECK_OK(gmem_file_punch(s.file, H, H));
	CHECK_OK(go_on(&s));
	CHECK_EQ(guest_result(&s.guest), 0);
	scene_tear_down(&s);
}

/* Then its guests come out, and it is of no more use. */
TEST_TIMEOUT(a_marker_that_cannot_be_put_back, 120)
{
	struct scene s;

	huge_set_up(&s, &ways[0]);
	to_private(s.file, H, H);
	CHECK_EQ(touch_meanwhile(&s, true, gmem_file_punch), -EIO);
	window.fail = false;
	run_err(&s, -EIO, GUEST_load8, GPA);
	CHECK_HAS(gmem_last_error(), "dead");
	/* The file is none the worse. */
	CHECK_OK(gmem_file_punch(s.file, 0, ALL));
	scene_tear_down(&s);
}

#include "tap_main.h"
