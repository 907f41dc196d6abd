/* SPDX-License-Identifier: MIT */
/* A forked child frees its copy of a file: nothing that the parent's threads were in the middle of holds it up. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "mmu_util.h"

#define LEN (8 * PG)

struct scene {
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	_Atomic bool inside, go_on;
	int64_t populated;
};

static _Alignas(4096) char page[PG];

static void set_up(struct scene *s, uint32_t flags)
{
	memset(s, 0, sizeof(*s));
	s->file = make_file(LEN, flags);
	s->vm = new_vm(GMEM_VM_SW_PROTECTED);
	CHECK_OK(set_slot(s->vm, 0, 0, LEN, s->file, 0));
	s->vcpu = new_vcpu(s->vm);
	store64(s->vcpu, 0, 77);
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
}

/* Ends within 5 s, or by SIGALRM. */
static void child_frees(struct scene *s)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		alarm(5);
		gmem_file_free(s->file);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		FAIL("the child did not get out of gmem_file_free(): signal %d", WTERMSIG(status));
	CHECK_EQ(status, 0);
}

static void wait_inside(struct scene *s)
{
	while (!atomic_load(&s->inside))
		usleep(100);
}

static void stay_inside(struct scene *s)
{
	atomic_store(&s->inside, true);
	while (!atomic_load(&s->go_on))
		usleep(100);
}

TEST(nobody_inside)
{
	struct scene s;

	set_up(&s, 0);
	child_frees(&s);
	CHECK_EQ(load64(s.vcpu, 0), 77);
	CHECK_OK(gmem_file_punch(s.file, 0, PG));
	CHECK_EQ(load64(s.vcpu, 0), 0);
	tear_down(&s);
}

/* In the middle of an access, as it looks to who waits for accesses to end. */
static void *be_inside_an_access(void *arg)
{
	struct scene *s = arg;

	gmem_epoch_enter(&s->vm->mmu.epoch, &s->vcpu->reader);
	stay_inside(s);
	gmem_epoch_leave(&s->vcpu->reader);
	return NULL;
}

TEST(parents_vcpu_is_inside_an_access)
{
	struct scene s;
	pthread_t t;

	set_up(&s, 0);
	t = start(be_inside_an_access, &s);
	wait_inside(&s);
	child_frees(&s);
	atomic_store(&s.go_on, true);
	join(t);
	CHECK_EQ(load64(s.vcpu, 0), 77);
	tear_down(&s);
}

static void *load_on_and_on(void *arg)
{
	struct scene *s = arg;
	char buf[PG];

	while (!atomic_load(&s->go_on)) {
		CHECK_OK(gmem_vcpu_load(s->vcpu, 0, buf, sizeof(buf)));
		CHECK_EQ(*(uint64_t *)(void *)buf, 77);
		atomic_store(&s->inside, true);
	}
	return NULL;
}

TEST(parents_vcpu_runs)
{
	struct scene s;
	pthread_t t;

	set_up(&s, 0);
	t = start(load_on_and_on, &s);
	wait_inside(&s);
	for (int i = 0; i < 40; i++)
		child_frees(&s);
	atomic_store(&s.go_on, true);
	join(t);
	tear_down(&s);
}

static int stay_in_the_callback(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)vm;
	(void)gfn;
	(void)pfn;
	(void)src;
	stay_inside(opaque);
	return 0;
}

static void *populate(void *arg)
{
	struct scene *s = arg;

	s->populated = gmem_populate(s->vm, 1, page, 1, 0, stay_in_the_callback, s);
	return NULL;
}

/* The VM's slots lock is held, and the file's. */
TEST(parents_populate_is_inside_its_callback)
{
	struct scene s;
	pthread_t t;

	memset(page, 7, sizeof(page));
	set_up(&s, GMEM_FILE_INIT_PRIVATE);
	t = start(populate, &s);
	wait_inside(&s);
	child_frees(&s);
	atomic_store(&s.go_on, true);
	join(t);
	CHECK_EQ(s.populated, 1);
	CHECK_EQ(load64(s.vcpu, PG), 0x0707070707070707ull);
	CHECK_EQ(load64(s.vcpu, 0), 77);
	tear_down(&s);
}

static void *hold_the_slots_lock(void *arg)
{
	struct scene *s = arg;

	gmem_vm_lock_slots(s->vm);
	stay_inside(s);
	gmem_vm_unlock_slots(s->vm);
	return NULL;
}

TEST(parents_slots_lock_is_held)
{
	struct scene s;
	pthread_t t;

	set_up(&s, 0);
	t = start(hold_the_slots_lock, &s);
	wait_inside(&s);
	child_frees(&s);
	atomic_store(&s.go_on, true);
	join(t);
	CHECK_EQ(load64(s.vcpu, 0), 77);
	tear_down(&s);
}

static void *punch(void *arg)
{
	struct scene *s = arg;

	CHECK_OK(gmem_file_punch(s->file, 2 * PG, PG));
	return NULL;
}

/* One that has no reference of its own sleeps in the file's lock, which the populate holds. */
TEST(parents_thread_sleeps_in_the_lock)
{
	struct scene s;
	pthread_t t, sleeper;

	set_up(&s, GMEM_FILE_INIT_PRIVATE);
	t = start(populate, &s);
	wait_inside(&s);
	sleeper = start(punch, &s);
	while (!atomic_load(&s.file->invalidate_lock.sleepers))
		usleep(100);
	usleep(20000);
	child_frees(&s);
	atomic_store(&s.go_on, true);
	join(t);
	join(sleeper);
	tear_down(&s);
}
