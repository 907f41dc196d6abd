/* SPDX-License-Identifier: MIT */
/* A TDX VM with a launch, a vCPU of it and one accessor. */
#ifndef GMEM_TESTS_TDX_UTIL_H
#define GMEM_TESTS_TDX_UTIL_H

#include "tap.h"

#include "mmu_util.h"

#include "launch/launch.h"
#include "launch/tdx/tables.h"

#define GPA 0x200000ull
#define GFN (GPA / PG)
#define NPAGES 16ull
#define SHARED (1ull << 47)

#define TDX_ADDED "fcdabf6fdf38b87d2e3a89b1ab68c242abb261dffa70ef6f1dc2220c2752d2729cdf1be92afc2e0e4297f04e2b629552"
#define TDX_ZERO "ca76d5541328afef8bc9364261c515aebef90412ebc56ca0c2260ec531a14462cfc0c11de61d84292ddf8ca871da1ff1"
#define TDX_PATTERN "1d6a39508485f397068c05784a4b63a370570e76aece69da8d9803c7ec110b31872fb82a115e9bb2ba454fad78293be6"

struct scene {
	struct gmem_file *file; /* private, at GPA; its page NPAGES at 0x1000 */
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct gmem_vcpu *vcpu;
	struct gmem_tdx_tables *tables; /* the VM's */
	unsigned char *src; /* NPAGES, none like another */
};

static inline void set_up_without_vcpu(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	s->file = make_file((NPAGES + 1) * PG, GMEM_FILE_INIT_PRIVATE);
	s->vm = new_vm(GMEM_VM_TDX);
	CHECK_OK(set_slot(s->vm, 0, GPA, NPAGES * PG, s->file, 0));
	CHECK_OK(set_slot(s->vm, 1, 0x1000, PG, s->file, NPAGES * PG));
	CHECK_OK(gmem_launch_create(s->vm, NULL, &s->launch));
	s->vcpu = new_vcpu(s->vm);
	s->tables = (struct gmem_tdx_tables *)atomic_load(&s->vm->mmu.external);
	s->src = aligned_alloc(PG, NPAGES * PG);
	CHECK(s->src && s->tables);
	for (uint64_t i = 0; i < NPAGES * PG; i++)
		s->src[i] = (unsigned char)(7 * (i % PG) + 3 + i / PG);
}

static inline void add_vcpu(struct scene *s)
{
	const struct gmem_launch_vcpu v = { .size = sizeof(v), .rcx = 0x809000 };

	CHECK_OK(gmem_launch_add_vcpu(s->launch, &v));
}

static inline void set_up(struct scene *s)
{
	set_up_without_vcpu(s);
	add_vcpu(s);
}

static inline void tear_down(struct scene *s)
{
	gmem_launch_free(s->launch);
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	free(s->src);
}

static inline void hex_of(struct gmem_launch *launch, char hex[97])
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];

	CHECK_OK(gmem_launch_digest(launch, digest));
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

static inline void check_digest(struct scene *s, const char *expected)
{
	char hex[97];

	hex_of(s->launch, hex);
	CHECK_STR(hex, expected);
}

/* The state of a page's entry; FREE too where there is no table. */
static inline enum gmem_sept_state sept_at(struct scene *s, uint64_t gpa)
{
	enum gmem_sept_state state = GMEM_SEPT_FREE;
	struct gmem_sept_walk w;

	gmem_tdx_lock(&s->tables->td);
	if (gmem_sept_walk(&s->tables->td.sept, gpa, GMEM_SEPT_PT, &w))
		state = gmem_sept_state(*w.entry);
	gmem_tdx_unlock(&s->tables->td);
	return state;
}

static inline bool dead(struct scene *s)
{
	return gmem_mmu_dead(&s->vm->mmu);
}

#endif
