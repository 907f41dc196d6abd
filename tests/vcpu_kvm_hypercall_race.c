/* SPDX-License-Identifier: MIT */
/* Hypercalls are counted while everything else goes on. */
#define TAP_NO_MAIN
#include "vcpu_kvm_hypercall.h"

#ifdef __x86_64__

static void *hammer(void *arg)
{
	struct scene *s = arg;
	uint64_t n = tap_slow() ? 20000 : 200000;

	for (int i = 0; i < 3; i++)
		run(s, GUEST_hammer, GPA, n);
	CHECK_EQ(run(s, GUEST_load8, GPA), 3 * n);
	return NULL;
}

/* A guest that makes none is looked at again and again, and does not know. */
TEST_TIMEOUT(none_made, 120)
{
	for (size_t i = 0; i < sizeof(hc_ways) / sizeof(hc_ways[0]); i++) {
		struct scene s;

		hc_set_up(&s, &hc_ways[i]);
		hammer(&s);
		scene_tear_down(&s);
	}
}

struct asker {
	struct scene s; /* the machine is the first one's */
	bool converts;
	uint64_t n, page, asked;
	pthread_t thread;
};

/* Converts what it is asked to, if the guest reaches it then; answers with how many it was. */
static void *serve(void *arg)
{
	struct asker *a = arg;
	uint64_t gpa = GPA + a->page * PG;
	int err;

	begin(&a->s, GUEST_vmcalls, GPA + (a->page + 1) * PG, a->n, gpa, PRIVATE);
	for (;;) {
		err = gmem_vcpu_run(a->s.vcpu);
		/* It will be shared again. */
		if (err == -EINTR || (err == -EFAULT && !a->converts))
			continue;
		CHECK_OK(err);
		if (guest_finished(&a->s.guest))
			return NULL;
		check_asked(&a->s, gpa, 1, a->asked++ % 2 ? 0 : PRIVATE);
		if (a->converts && a->asked % 2)
			to_private(a->s.file, gpa - GPA, PG);
		else if (a->converts)
			to_shared(a->s.file, gpa - GPA, PG);
		CHECK_OK(gmem_vcpu_answer(a->s.vcpu, a->asked));
	}
}

static _Atomic bool over;

/* Other pages, the code's among them: instructions that KVM is at are barred, and read, all the time. */
static void *convert(void *arg)
{
	struct asker *a = arg;

	for (uint64_t i = 0; !atomic_load(&over); i++) {
		uint64_t off = i % 4 ? (8 + i % 16) * PG : CODE;

		to_private(a->s.file, off, PG);
		to_shared(a->s.file, off, PG);
		if (i % 8 == 0)
			gmem_vcpu_cancel(a->s.vcpu);
	}
	return NULL;
}

static uint64_t file_word(struct gmem_file *file, uint64_t off)
{
	uint64_t word;

	CHECK_OK(gmem_file_read(file, off, &word, 8));
	return word;
}

static void check_counts(struct asker *a)
{
	uint64_t n = a->n, page = a->page * PG;

	CHECK_EQ(a->asked, n);
	CHECK_EQ(file_word(a->s.file, page), n);
	CHECK_EQ(file_word(a->s.file, page + PG), n);
	CHECK_EQ(file_word(a->s.file, page + PG + 8), n * (n + 1) / 2);
}

static void two(const struct scene_opts *o)
{
	struct asker a = { .n = tap_slow() ? 20 : 200, .converts = o->type == GMEM_VM_SW_PROTECTED }, b = a;
	pthread_t t;

	atomic_store(&over, false);
	hc_set_up(&a.s, o);
	b.page = 4;
	b.s = a.s;
	b.s.vcpu = new_kvm_vcpu(a.s.vm, 1);
	b.s.boot = boot_range(a.s.vm, 1);
	guest_init(&b.s.guest, gmem_vcpu_kvm_fd(b.s.vcpu), gmem_vcpu_kvm_run(b.s.vcpu), b.s.boot,
		   BOOT_GPA + GUEST_BOOT_LEN, GUEST_KERNEL, false);
	b.s.guest.code_gpa = a.s.guest.code_gpa;
	t = start(convert, &a);
	a.thread = start(serve, &a);
	b.thread = start(serve, &b);
	join(a.thread);
	join(b.thread);
	atomic_store(&over, true);
	join(t);
	check_counts(&a);
	check_counts(&b);
	gmem_vcpu_free(b.s.vcpu);
	munmap(b.s.boot, GUEST_BOOT_LEN);
	scene_tear_down(&a.s);
}

/* None is lost and none comes twice, by what the guests, the host and memory have counted. */
TEST_TIMEOUT(two_at_once, 180)
{
	two(&hc_ways[2]);
}

/*
 * To go on behind a hypercall an SVM without NRIPS reads the instruction a second time, when its answer is in RAX: if
 * the page is barred then, the guest makes another hypercall, of that number. No processor with nested paging is like
 * that; QEMU's is.
 */
static bool reads_twice(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	bool svm = false, nrips = false;
	char word[64];

	while (f && fscanf(f, "%63s", word) == 1) {
		svm |= !strcmp(word, "svm");
		nrips |= !strcmp(word, "nrip_save");
	}
	if (f)
		fclose(f);
	return svm && !nrips;
}

/* A guest's instructions are kept from it, too. */
TEST_TIMEOUT(two_at_once_at_private_code, 180)
{
	if (reads_twice())
		SKIP("kvm", "KVM reads a hypercall twice here (SVM without NRIPS)");
	two(&hc_ways[0]);
}

#endif
