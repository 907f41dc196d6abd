/* SPDX-License-Identifier: MIT */
/* A machine of KVM's and one of gmem's beside it, what both have been told, and the count of what was compared. */
#ifndef GMEM_TESTS_ORACLE_SCENE_H
#define GMEM_TESTS_ORACLE_SCENE_H

#include <sys/mman.h>

#include "oracle_kvm.h"

#define PAGES 64
#define LEN (PAGES * PG)
#define SLOTS 4
#define WORDS 3 /* of a page, which the guest loads and stores */
#define SIDE_AT (PG - 4) /* the word the host and the guest show each other */
#define GPA_END (1ull << 48)

enum op { ATTRIBUTES, PRE_FAULT, SLOT, DELETE, PUNCH, LOAD, STORE, SIDE, OPS };

static const char *const op_names[] = { "set attributes", "pre-fault", "set slot", "delete slot",
					"punch",	  "load",      "store",	   "side of a page" };

/* For who reads of a failure: what was asked before it. */
#define TOLD 24

struct asked {
	enum op op;
	uint64_t addr, len, arg;
};

struct scene {
	struct kvm_machine k;
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	uint64_t seed;
	unsigned long steps;
	struct asked last[TOLD];
	unsigned long compared[OPS], differ[OPS], no_oracle[OPS];
	/* What both sides were told, and took. */
	bool private[PAGES];
	int slot[PAGES]; /* -1: none */
	bool mmio[PAGES]; /* KVM has remembered, at some time, that nothing is there */
	bool same[PAGES][WORDS]; /* its bytes are as well defined for KVM as for gmem */
};

static inline void set_up(struct scene *s)
{
	*s = (struct scene){ 0 };
	kvm_make(&s->k, LEN);
	s->file = make_file(LEN, 0);
	s->vm = new_vm(GMEM_VM_SW_PROTECTED);
	s->vcpu = new_vcpu(s->vm);
	for (int i = 0; i < PAGES; i++) {
		s->slot[i] = -1;
		memset(s->same[i], true, sizeof(s->same[i]));
	}
}

/* Says what was compared. Nothing: there was no oracle, which is no pass. */
static inline void tear_down(struct scene *s)
{
	unsigned long compared = 0;

	for (int i = 0; i < OPS; i++) {
		compared += s->compared[i];
		if (s->compared[i] || s->differ[i] || s->no_oracle[i])
			printf("%-14s  %6lu compared, %5lu differ by design, %5lu without an oracle\n", op_names[i],
			       s->compared[i], s->differ[i], s->no_oracle[i]);
	}
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	kvm_unmake(&s->k);
	if (!compared)
		SKIP("oracle", "nothing could be compared");
}

static inline void begin(struct scene *s, enum op op, uint64_t addr, uint64_t len, uint64_t arg)
{
	s->last[s->steps++ % TOLD] = (struct asked){ op, addr, len, arg };
}

/* Ends the case. */
static inline void disagree(const struct scene *s, enum op op, uint64_t addr, uint64_t len, long long kvm,
			    long long gmem)
{
	for (unsigned long i = s->steps < TOLD ? 0 : s->steps - TOLD; i < s->steps; i++) {
		const struct asked *a = &s->last[i % TOLD];

		printf("step %lu: %s, address 0x%llx, len 0x%llx, 0x%llx\n", i + 1, op_names[a->op],
		       (unsigned long long)a->addr, (unsigned long long)a->len, (unsigned long long)a->arg);
	}
	FAIL("%s, address 0x%llx, len 0x%llx: KVM gives %lld (0x%llx), gmem %lld (0x%llx), \"%s\"", op_names[op],
	     (unsigned long long)addr, (unsigned long long)len, kvm, (unsigned long long)kvm, gmem,
	     (unsigned long long)gmem, gmem_last_error());
}

static inline void compare(struct scene *s, enum op op, uint64_t addr, uint64_t len, long long kvm, long long gmem)
{
	if (kvm != gmem)
		disagree(s, op, addr, len, kvm, gmem);
	s->compared[op]++;
}

/* Where they differ by design: each as it is known to be. */
static inline void differ(struct scene *s, enum op op, uint64_t addr, long long kvm, long long want_kvm, long long gmem,
			  long long want_gmem)
{
	if (kvm != want_kvm || gmem != want_gmem)
		disagree(s, op, addr, 0, kvm, gmem);
	s->differ[op]++;
}

static inline bool is_range(uint64_t addr, uint64_t len)
{
	return len && addr + len > addr && gmem_page_aligned(addr) && gmem_page_aligned(len);
}

static inline bool in_file(uint64_t addr, uint64_t len)
{
	return addr <= LEN && len <= LEN - addr;
}

#endif
