/* SPDX-License-Identifier: MIT */
/* Slots set and deleted, files freed, machines freed, under accessors that fault all the time. */
#include "mmu_util.h"

#define PAGES 32ull
#define LEN (PAGES * PG)
#define SLOTS 3

void __real_gmem_epoch_wait(struct gmem_epoch *e);
void __wrap_gmem_epoch_wait(struct gmem_epoch *e);

static _Atomic unsigned int waits;

/* Others get into the window that it opens. */
void __wrap_gmem_epoch_wait(struct gmem_epoch *e)
{
	if (atomic_fetch_add(&waits, 1) % 4 == 0)
		usleep(50);
	__real_gmem_epoch_wait(e);
}

struct race {
	struct gmem_vm *vm;
	_Atomic bool stop;
	_Atomic uint64_t loads, stores, faults;
	uint64_t seed;
};

/* Every page of a file says which file of the slot it is of, and which page. */
static uint64_t word_of(unsigned int slot, uint64_t page)
{
	return (slot + 1) << 16 | page;
}

struct accessor {
	struct race *race;
	struct gmem_vcpu *vcpu;
};

static void *access_all(void *arg)
{
	struct race *r = ((struct accessor *)arg)->race;
	struct gmem_vcpu *vcpu = ((struct accessor *)arg)->vcpu;
	uint64_t seed = r->seed + (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		unsigned int slot = (unsigned int)(tap_rand(&seed) % SLOTS);
		uint64_t page = tap_rand(&seed) % PAGES, v = 0, gpa = slot * LEN + page * PG;
		int err;

		if (tap_rand(&seed) % 8 == 0) {
			v = tap_rand(&seed);
			err = gmem_vcpu_store(vcpu, gpa + 512, &v, sizeof(v));
			atomic_fetch_add(&r->stores, !err);
		} else {
			err = gmem_vcpu_load(vcpu, gpa, &v, sizeof(v));
			if (!err && v != word_of(slot, page))
				FAIL("slot %u page %llu reads 0x%llx", slot, (unsigned long long)page,
				     (unsigned long long)v);
			atomic_fetch_add(&r->loads, !err);
		}
		if (err == -EIO)
			break;
		if (err == -EFAULT)
			atomic_fetch_add(&r->faults, 1);
		else
			CHECK_EQ(err, 0);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static struct gmem_file *numbered(unsigned int slot)
{
	struct gmem_file *file = make_file(LEN, 0);

	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t v = word_of(slot, page);

		CHECK_OK(gmem_file_write(file, page * PG, &v, sizeof(v)));
	}
	return file;
}

static void run(uint64_t rounds, bool free_machine)
{
	uint64_t seed = tap_seed(), sum[3] = { 0 };

	for (unsigned int m = 0; m < (free_machine ? rounds : 1); m++) {
		struct race r = { .vm = new_vm(GMEM_VM_SW_PROTECTED), .seed = seed + m };
		struct gmem_file *file[SLOTS];
		bool set[SLOTS] = { false };
		struct accessor a[2];
		pthread_t t[2];

		for (unsigned int i = 0; i < SLOTS; i++)
			file[i] = numbered(i);
		for (int i = 0; i < 2; i++) {
			a[i] = (struct accessor){ &r, new_vcpu(r.vm) };
			t[i] = start(access_all, &a[i]);
		}
		for (uint64_t i = 0; i < (free_machine ? 6 : rounds); i++) {
			unsigned int slot = (unsigned int)(tap_rand(&seed) % SLOTS);

			if (!set[slot]) {
				CHECK_OK(set_slot(r.vm, slot, slot * LEN, LEN, file[slot], 0));
				set[slot] = true;
				usleep(100);
				continue;
			}
			switch (tap_rand(&seed) % 3) {
			case 0:
				to_private(file[slot], 0, LEN / 2);
				to_shared(file[slot], 0, LEN);
				break;
			case 1:
				CHECK_OK(del_slot(r.vm, slot));
				set[slot] = false;
				break;
			default:
				gmem_file_free(file[slot]);
				file[slot] = numbered(slot);
				CHECK_OK(del_slot(r.vm, slot));
				set[slot] = false;
				break;
			}
		}
		if (free_machine)
			gmem_vm_free(r.vm);
		else
			atomic_store(&r.stop, true);
		for (int i = 0; i < 2; i++)
			join(t[i]);
		sum[0] += r.loads;
		sum[1] += r.stores;
		sum[2] += r.faults;
		if (!free_machine)
			gmem_vm_free(r.vm);
		for (unsigned int i = 0; i < SLOTS; i++)
			gmem_file_free(file[i]);
	}
	printf("%llu loads, %llu stores, %llu faults\n", (unsigned long long)sum[0], (unsigned long long)sum[1],
	       (unsigned long long)sum[2]);
}

TEST(slots_and_files_come_and_go)
{
	run(tap_slow() ? 200 : 1000, false);
}

TEST(machines_go)
{
	run(tap_slow() ? 10 : 60, true);
}

/* ---- a file is freed while the slot is deleted, and the machine too */

struct ending {
	struct gmem_vm *vm;
	struct gmem_file *file;
	pthread_barrier_t *barrier;
};

static void *free_file(void *arg)
{
	struct ending *e = arg;

	pthread_barrier_wait(e->barrier);
	gmem_file_free(e->file);
	return NULL;
}

static void *delete_slots(void *arg)
{
	struct ending *e = arg;

	pthread_barrier_wait(e->barrier);
	for (uint32_t i = 0; i < 4; i++)
		CHECK_OK(del_slot(e->vm, i));
	return NULL;
}

static void *free_vm(void *arg)
{
	struct ending *e = arg;

	pthread_barrier_wait(e->barrier);
	gmem_vm_free(e->vm);
	return NULL;
}

TEST(all_end_at_once)
{
	pthread_barrier_t barrier;

	CHECK_EQ(pthread_barrier_init(&barrier, NULL, 3), 0);
	for (unsigned int round = 0; round < (tap_slow() ? 30u : 300u); round++) {
		struct ending a = { new_vm(GMEM_VM_SNP), make_file(LEN, 0), &barrier };
		struct ending b = { new_vm(GMEM_VM_SNP), a.file, &barrier };
		struct gmem_vcpu *vcpu[2] = { new_vcpu(a.vm), new_vcpu(b.vm) };
		pthread_t t[3];

		for (uint32_t i = 0; i < 4; i++) {
			CHECK_OK(set_slot(a.vm, i, i * LEN, 2 * PG, a.file, i * 4 * PG));
			CHECK_OK(set_slot(b.vm, i, i * LEN, 2 * PG, a.file, i * 4 * PG + 2 * PG));
			store64(vcpu[0], i * LEN, 1);
			store64(vcpu[1], i * LEN, 2);
		}
		t[0] = start(free_file, &a);
		t[1] = start(delete_slots, &a);
		t[2] = start(free_vm, &b);
		for (int i = 0; i < 3; i++)
			join(t[i]);
		gmem_vcpu_free(vcpu[0]);
		gmem_vcpu_free(vcpu[1]);
		gmem_vm_free(a.vm);
	}
	pthread_barrier_destroy(&barrier);
}
