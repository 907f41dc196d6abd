/* SPDX-License-Identifier: MIT */
/* One guest on KVM twice: in a machine of gmem's and in a software-protected one of the kernel's, told the same. */
#ifndef GMEM_TESTS_ORACLE_PAIR_H
#define GMEM_TESTS_ORACLE_PAIR_H

#include "kvm_scene.h"
#include "oracle_kvm.h"

#define PAGES (LEN / PG)
#define WORDS (PG / 8)
#define DEVICE (GPA + LEN) /* no slot is ever there, nor an attribute */

struct pair {
	struct scene g;
	struct kvm_machine k;
	struct guest guest; /* of `k` */
	unsigned char *boot;
	struct supplier zeros;
	struct gmem_supply *supply;
	uint64_t seed;
	bool private[PAGES];
	bool slot[PAGES];
	char *hva; /* gmem's shared memory, of slots that have two memories as KVM's have; NULL: the file's own */
	bool known[PAGES]; /* its bytes are the same: one memory keeps them where of two the guest gets the other */
	unsigned long compared, blind, exits; /* results, results of unknown bytes, exits */
};

/* How a run ended. */
struct ended {
	int err;
	uint32_t reason; /* 0: the routine is at its end */
	uint64_t gpa, len, flags, data, result;
};

enum memories { ONE, TWO, TWO_ADOPTED };

struct variant {
	enum gmem_vm_type type;
	enum guest_mode mode;
	uint32_t flags; /* of the file */
	bool supplied; /* all that is absent is brought in, as zero: each page is barred at first */
	enum memories memories; /* of a slot of gmem's; TWO_ADOPTED: the shared one is private anonymous */
};

/* ---- both machines */

static inline int bring_in_zeros(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	static const char zeros[PG];
	struct supplier *s = opaque;

	atomic_fetch_add(&s->calls, 1);
	return supply_page(file, off, zeros);
}

/* memfd -1: plain memory. */
static inline void set_both(struct pair *p, uint32_t slot, uint64_t page, uint64_t npages, int memfd)
{
	uint64_t off = page * PG;
	struct gmem_memslot m = {
		.size = sizeof(m),
		.slot = slot,
		.gpa = GPA + off,
		.len = npages * PG,
		.file = p->g.file,
		.off = off,
		.hva = p->hva ? p->hva + off : NULL,
	};

	CHECK_OK(gmem_kvm_slot_set(p->k.vm, slot, m.gpa, m.len, p->k.shared + off, memfd, off));
	CHECK_OK(gmem_vm_set_slot(p->g.vm, &m));
	memset(p->slot + page, true, npages);
}

static inline void set_up(struct pair *p, const struct variant *v, bool memfd)
{
	struct scene_opts o = { .type = v->type, .mode = v->mode, .flags = v->flags };

	*p = (struct pair){ .seed = tap_seed() };
	kvm_make(&p->k, LEN);
	/* Its own code is where this guest's memory is to be. */
	CHECK_OK(gmem_kvm_slot_set(p->k.vm, CODE_SLOT, CODE_GPA, 0, NULL, -1, 0));
	p->boot = kvm_map(GUEST_BOOT_LEN, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	CHECK_OK(gmem_kvm_slot_set(p->k.vm, BOOT_SLOT, BOOT_GPA, GUEST_BOOT_LEN, p->boot, -1, 0));
	guest_init(&p->guest, p->k.vcpu, p->k.run, p->boot, BOOT_GPA, v->mode, false);
	scene_set_up(&p->g, &o);
	CHECK_OK(del_slot(p->g.vm, 0));
	if (v->supplied)
		p->supply = new_supply(p->g.file, 0, LEN, bring_in_zeros, &p->zeros);
	if (v->memories != ONE)
		p->hva = kvm_map(LEN, MAP_ANONYMOUS | (v->memories == TWO ? MAP_SHARED : MAP_PRIVATE), -1);
	memset(p->known, true, sizeof(p->known));
	set_both(p, 0, 0, PAGES, memfd ? p->k.memfd : -1);
}

static inline void tear_down(struct pair *p)
{
	printf("%lu results compared, %lu of unknown bytes, %lu exits\n", p->compared, p->blind, p->exits);
	CHECK(p->compared && p->exits);
	if (p->supply)
		end_supply(p->g.file, p->supply);
	scene_tear_down(&p->g);
	if (p->hva)
		munmap(p->hva, LEN);
	kvm_unmake(&p->k);
	munmap(p->boot, GUEST_BOOT_LEN);
}

/* ---- a run */

static inline struct ended run_kvm(struct pair *p)
{
	const struct gmem_kvm_memory_fault *fault = (const void *)&p->k.run->mmio;
	const struct kvm_run *run = p->k.run;
	int err;

	do
		err = guest_run_raw(&p->guest);
	while (err == -EINTR);
	if (!err && guest_finished(&p->guest))
		return (struct ended){ .result = guest_result(&p->guest) };
	if (!err && run->exit_reason == KVM_EXIT_MMIO) {
		struct ended e = { 0, KVM_EXIT_MMIO, run->mmio.phys_addr, run->mmio.len, 0, 0, 0 };

		e.flags = run->mmio.is_write ? GMEM_EXIT_FLAG_WRITE : 0;
		if (run->mmio.is_write)
			memcpy(&e.data, run->mmio.data, e.len);
		return e;
	}
	if ((err == -EFAULT || err == -EHWPOISON) && run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return (struct ended){ err, KVM_EXIT_MEMORY_FAULT, fault->gpa, fault->size, fault->flags, 0, 0 };
	FAIL("KVM_RUN: %s, %s", err ? strerror(-err) : "0", guest_what(&p->guest));
}

static inline struct ended run_gmem(struct pair *p)
{
	int err = gmem_vcpu_run(p->g.vcpu);
	struct gmem_exit e = exit_of(p->g.vcpu);
	struct ended ended = { err, e.reason, e.gpa, e.len, e.flags, 0, 0 };

	if (!err && guest_finished(&p->g.guest))
		return (struct ended){ .result = guest_result(&p->g.guest) };
	memcpy(&ended.data, e.data, sizeof(ended.data));
	return ended;
}

static inline void disagree(struct pair *p, const struct ended *k, const struct ended *g)
{
	printf("KVM:  %d, reason %u, gpa 0x%llx, len 0x%llx, flags 0x%llx, data 0x%llx, result 0x%llx; %s\n", k->err,
	       k->reason, (unsigned long long)k->gpa, (unsigned long long)k->len, (unsigned long long)k->flags,
	       (unsigned long long)k->data, (unsigned long long)k->result, guest_what(&p->guest));
	printf("gmem: %d, reason %u, gpa 0x%llx, len 0x%llx, flags 0x%llx, data 0x%llx, result 0x%llx; %s\n", g->err,
	       g->reason, (unsigned long long)g->gpa, (unsigned long long)g->len, (unsigned long long)g->flags,
	       (unsigned long long)g->data, (unsigned long long)g->result, guest_what(&p->g.guest));
	FAIL("they differ: %s", gmem_last_error());
}

/* Both run on until something is to be done. `result`: it is the same, too. */
static inline struct ended both_go(struct pair *p, bool result, uint64_t kvm_flags)
{
	struct ended k = run_kvm(p), g = run_gmem(p);

	/* An attribute is of KVM's addresses, so it tells what kind of access it was; for gmem it was any guest's. */
	if (k.err) {
		CHECK_EQ(k.flags, kvm_flags);
		k.flags = 0;
	}
	if (!result)
		k.result = g.result;
	if (memcmp(&k, &g, sizeof(k)))
		disagree(p, &k, &g);
	p->exits += k.reason != 0;
	p->compared += !k.reason && result;
	p->blind += !k.reason && !result;
	return k;
}

#define both_begin(p, routine, ...) both_begin_args(p, routine, (const uint64_t[5]){ __VA_ARGS__ })
static inline void both_begin_args(struct pair *p, enum guest_routine routine, const uint64_t args[5])
{
	guest_call_args(&p->guest, routine, args);
	guest_call_args(&p->g.guest, routine, args);
}

/* To its end, which nothing comes before. */
#define both_do(p, result, routine, ...) both_do_args(p, result, routine, (const uint64_t[5]){ __VA_ARGS__ })
static inline void both_do_args(struct pair *p, bool result, enum guest_routine routine, const uint64_t args[5])
{
	both_begin_args(p, routine, args);
	CHECK_EQ(both_go(p, result, 0).reason, 0);
}

#endif
