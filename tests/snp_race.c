/* SPDX-License-Identifier: MIT */
/* SNP launches and guests, while others convert, punch, delete slots and launch. */
#include <stdatomic.h>

#include "snp_util.h"

#define NPAGES 16u
#define ROUNDS (tap_slow() ? 150 : 1500)

static struct snp s;
static _Atomic bool stop;
static _Atomic unsigned long launched, refused, accesses, denied;

static _Alignas(4096) unsigned char source[4 * PG];
static unsigned char foreign[3 * PG]; /* what the host writes where it may */

static uint64_t at(uint64_t n)
{
	return LOW_GPA + n * PG;
}

static void *run_updates(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		uint64_t n = tap_rand(&seed) % NPAGES;
		bool zero = tap_rand(&seed) % 2;
		int64_t r =
			gmem_launch_update(s.launch, at(n), zero ? NULL : source, 1 + (int64_t)(tap_rand(&seed) % 3),
					   zero ? GMEM_LAUNCH_ZERO : GMEM_LAUNCH_NORMAL);

		CHECK(r > 0 || r == -EEXIST || r == -EINVAL || r == -EIO);
		atomic_fetch_add(r > 0 ? &launched : &refused, 1);
	}
	return NULL;
}

static void *run_guest(void *arg)
{
	struct gmem_vcpu *vcpu = new_vcpu(s.vm);
	uint64_t seed = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		uint64_t n = tap_rand(&seed) % NPAGES, v = 1;
		uint64_t gpa = at(n) | (tap_rand(&seed) % 4 ? s.c : 0);
		int err;

		switch (tap_rand(&seed) % 4) {
		case 0:
			err = gmem_vcpu_accept(vcpu, at(n) | s.c, PG, tap_rand(&seed) % 4, NULL);
			CHECK(err >= 0 || err == -EFAULT);
			break;
		case 1:
			err = gmem_vcpu_store(vcpu, gpa + 8, &v, sizeof(v));
			break;
		default:
			err = gmem_vcpu_load(vcpu, gpa + 8, &v, sizeof(v));
			break;
		}
		CHECK(err >= 0 || err == -EFAULT || err == -EACCES);
		atomic_fetch_add(err < 0 ? &denied : &accesses, 1);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void change_pages(uint64_t *seed)
{
	uint64_t n = tap_rand(seed) % NPAGES, npages = 1 + tap_rand(seed) % 3;

	if (n + npages > NPAGES)
		npages = NPAGES - n;
	switch (tap_rand(seed) % 4) {
	case 0:
		to_shared(s.low, n * PG, npages * PG);
		CHECK_OK(gmem_file_write(s.low, n * PG, foreign, npages * PG));
		break;
	case 1:
		CHECK_OK(gmem_file_punch(s.low, n * PG, npages * PG));
		break;
	default:
		to_private(s.low, n * PG, npages * PG);
		break;
	}
}

static void *run_slots(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop)) {
		CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
		CHECK_OK(set_slot(s.vm, 0, LOW_GPA, LOW_PAGES * PG, s.low, 0));
		/* Most of the time it is there. */
		for (int i = 0; i < 16; i++)
			sched_yield();
	}
	return NULL;
}

/* With all of that going on, this thread changes pages, for so many rounds and until something has come of it. */
static void go(void *(*const *fns)(void *), uint32_t n, const _Atomic unsigned long *wanted)
{
	uint64_t seed = tap_seed();
	pthread_t t[8];

	atomic_store(&stop, false);
	for (uint32_t i = 0; i < n; i++)
		t[i] = start(fns[i], (void *)(uintptr_t)(tap_rand(&seed) | 1));
	for (int i = 0; i < ROUNDS || !atomic_load(wanted); i++)
		change_pages(&seed);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < n; i++)
		join(t[i]);
}

/* Nobody is at it: what is the guest's is private, and what is half done is nobody's. */
static void check_states(bool runs)
{
	for (uint64_t n = 0; n < NPAGES; n++) {
		const char *state;

		/* What happened while no slot showed the page the table finds out when it is asked for. */
		gmem_vm_lock_slots(s.vm);
		CHECK_OK(
			gmem_snp_guest_claim(guest_of(&s), at(n) / PG, ((uintptr_t)gmem_file_window(s.low) >> 12) + n));
		gmem_vm_unlock_slots(s.vm);
		state = state_of(&s, n);
		if (!gmem_file_private(s.low, n * PG))
			CHECK_STR(state, "HYPERVISOR");
		else
			CHECK(!strcmp(state, "HYPERVISOR") || !strcmp(state, "GUEST-VALID") ||
			      (runs && !strcmp(state, "GUEST-INVALID")));
	}
}

/* What was launched has the source's bytes or zeros, all of them. */
static void check_bytes(void)
{
	static const unsigned char zeros[PG];
	unsigned char seen[PG];

	for (uint64_t n = 0; n < NPAGES; n++) {
		if (strcmp(state_of(&s, n), "GUEST-VALID"))
			continue;
		CHECK_OK(gmem_vcpu_load(s.vcpu, at(n) | s.c, seen, PG));
		CHECK(!memcmp(seen, source, PG) || !memcmp(seen, zeros, PG));
	}
}

TEST_TIMEOUT(launching, 60)
{
	static void *(*const fns[])(void *) = { run_updates, run_updates, run_slots };

	memset(source, 's', sizeof(source));
	memset(foreign, 'f', sizeof(foreign));
	snp_up(&s, NULL, 0);
	go(fns, 3, &launched);
	check_states(false);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_bytes();
	printf("%lu launched, %lu refused\n", launched, refused);
	CHECK(launched);
	snp_down(&s);
}

TEST_TIMEOUT(running, 60)
{
	static void *(*const fns[])(void *) = { run_guest, run_guest, run_slots, run_updates };

	memset(source, 's', sizeof(source));
	memset(foreign, 'f', sizeof(foreign));
	snp_up(&s, NULL, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, source, 4, GMEM_LAUNCH_NORMAL), 4);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	go(fns, 4, &accesses);
	check_states(true);
	printf("%lu accesses, %lu denied\n", accesses, denied);
	CHECK(accesses && denied && !launched);
	snp_down(&s);
}

/* Two launch everything at once: each page is launched by one of them. */
static void *launch_all(void *arg)
{
	(void)arg;
	for (uint64_t n = 0; n < LOW_PAGES; n++) {
		int64_t r = gmem_launch_update(s.launch, at(n), source, 1, GMEM_LAUNCH_NORMAL);

		CHECK(r == 1 || r == -EEXIST);
		atomic_fetch_add(r == 1 ? &launched : &refused, 1);
	}
	return NULL;
}

TEST(the_same_pages)
{
	pthread_t t[2];

	snp_up(&s, NULL, 0);
	for (int i = 0; i < 2; i++)
		t[i] = start(launch_all, NULL);
	for (int i = 0; i < 2; i++)
		join(t[i]);
	CHECK_EQ(launched, LOW_PAGES);
	CHECK_EQ(refused, LOW_PAGES);
	for (uint64_t n = 0; n < LOW_PAGES; n++)
		CHECK_STR(state_of(&s, n), "GUEST-VALID");
	snp_down(&s);
}

/* A caller that changes what it has asked for: what is checked is what is done. */
static struct gmem_snp_launch_update asked;

static void *change_asked(void *arg)
{
	(void)arg;
	for (uint32_t i = 0; !atomic_load(&stop); i++) {
		__atomic_store_n(&asked.type, i % 2 ? 3 : 2, __ATOMIC_RELAXED);
		__atomic_store_n(&asked.len, i % 3 ? PG : PG + 1, __ATOMIC_RELAXED);
		__atomic_store_n(&asked.gfn_start, LOW_GPA / PG + i % NPAGES, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST(hostile_caller)
{
	struct gmem_rmp_entry e;
	pthread_t t;

	snp_up(&s, NULL, 0);
	asked.uaddr = (uintptr_t)source;
	t = start(change_asked, NULL);
	for (int i = 0; i < ROUNDS; i++) {
		int err = gmem_launch_command(s.launch, -1, GMEM_SNP_CMD_LAUNCH_UPDATE, 0, &asked, NULL);

		CHECK(!err || err == -EINVAL || err == -EIO);
	}
	atomic_store(&stop, true);
	join(t);
	for (uint64_t n = 0; n < NPAGES; n++) {
		e = gmem_rmp_lookup(&guest_of(&s)->rmp, ((uintptr_t)gmem_file_window(s.low) >> 12) + n);
		CHECK(!e.vmsa && (!e.assigned || e.validated));
	}
	snp_down(&s);
}

/* Everything goes while it is used: the file, the machine, the launch. */
static void *launch_until_gone(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		int64_t r = gmem_launch_update(s.launch, at(tap_rand(&seed) % NPAGES), source, 1, GMEM_LAUNCH_NORMAL);

		CHECK(r == 1 || r == -EEXIST || r == -EINVAL || r == -EIO || r == -EFAULT);
	}
	return NULL;
}

static void *guest_until_gone(void *arg)
{
	uint64_t seed = (uintptr_t)arg, v;

	while (!atomic_load(&stop)) {
		uint64_t gpa = at(tap_rand(&seed) % NPAGES) | s.c;
		int err = tap_rand(&seed) % 2 ? gmem_vcpu_load(s.vcpu, gpa, &v, sizeof(v)) :
						gmem_vcpu_accept(s.vcpu, gpa, PG, true, NULL);

		CHECK(err >= 0 || err == -EFAULT || err == -EACCES || err == -EINVAL || err == -EIO);
	}
	return NULL;
}

static void *finish_and_launch_again(void *arg)
{
	struct gmem_vm *vm = arg;

	while (!atomic_load(&stop)) {
		struct gmem_launch *second;
		int err = gmem_launch_finish(s.launch, NULL);

		CHECK(!err || err == -EIO);
		err = gmem_launch_create(vm, NULL, &second);
		CHECK(err == -EEXIST || err == -EIO);
	}
	return NULL;
}

TEST_TIMEOUT(ends, 60)
{
	uint64_t seed = tap_seed();

	for (int i = 0; i < ROUNDS / 50; i++) {
		pthread_t t[3];
		bool gone;

		snp_up(&s, NULL, 0);
		atomic_store(&stop, false);
		t[0] = start(launch_until_gone, (void *)(uintptr_t)(tap_rand(&seed) | 1));
		t[1] = start(guest_until_gone, (void *)(uintptr_t)(tap_rand(&seed) | 1));
		t[2] = start(finish_and_launch_again, s.vm);
		for (uint64_t n = tap_rand(&seed) % 20; n; n--)
			change_pages(&seed);
		if (tap_rand(&seed) % 2) {
			gmem_file_free(s.low);
			s.low = NULL;
		}
		gone = tap_rand(&seed) % 2;
		if (gone)
			gmem_vm_free(s.vm);
		atomic_store(&stop, true);
		for (int j = 0; j < 3; j++)
			join(t[j]);
		if (gone)
			s.vm = NULL;
		snp_down(&s);
	}
}
