/* SPDX-License-Identifier: MIT */
/* A machine with an SNP guest that is being launched: some private memory low, and some that ends at 4 GiB. */
#ifndef GMEM_TESTS_SNP_UTIL_H
#define GMEM_TESTS_SNP_UTIL_H

#include "launch/snp/guest.h"
#include "mmu_util.h"

#define LOW_GPA 0x800000ull
#define LOW_PAGES 0x40ull
#define FOUR_GIB (1ull << 32)

struct snp {
	struct gmem_file *low, *high; /* `high`: of the firmware's length; NULL: none */
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct gmem_vcpu *vcpu;
	uint64_t c; /* what a private address has set */
};

static inline void snp_up(struct snp *s, const struct gmem_launch_opts *opts, uint64_t firmware_len)
{
	memset(s, 0, sizeof(*s));
	s->low = make_file(LOW_PAGES * PG, GMEM_FILE_INIT_PRIVATE);
	s->vm = new_vm(GMEM_VM_SNP);
	CHECK_OK(set_slot(s->vm, 0, LOW_GPA, LOW_PAGES * PG, s->low, 0));
	if (firmware_len) {
		s->high = make_file(firmware_len, GMEM_FILE_INIT_PRIVATE);
		CHECK_OK(set_slot(s->vm, 1, FOUR_GIB - firmware_len, firmware_len, s->high, 0));
	}
	CHECK_OK(gmem_launch_create(s->vm, opts, &s->launch));
	s->vcpu = new_vcpu(s->vm);
	s->c = gmem_vm_alias_bit(s->vm);
}

static inline void snp_down(struct snp *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_launch_free(s->launch);
	gmem_vm_free(s->vm);
	gmem_file_free(s->high);
	gmem_file_free(s->low);
}

static inline struct gmem_snp_guest *guest_of(struct snp *s)
{
	return (struct gmem_snp_guest *)atomic_load(&s->vm->mmu.external);
}

/* The state in the reverse map table of a page of `low`, by name. */
static inline const char *state_of(struct snp *s, uint64_t page)
{
	uint64_t pfn = ((uintptr_t)gmem_file_window(s->low) >> 12) + page;
	struct gmem_rmp_entry e = gmem_rmp_lookup(&guest_of(s)->rmp, pfn);

	return gmem_rmp_state_text(gmem_rmp_entry_state(&e));
}

static inline void check_digest(struct snp *s, const char *expected)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	char hex[2 * sizeof(digest) + 1];

	CHECK_OK(gmem_launch_digest(s->launch, digest));
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	CHECK_STR(hex, expected);
}

static inline void add_vcpu(struct snp *s, uint32_t eip, uint64_t sev_features)
{
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .snp = &snp };

	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, eip, 0x800f12, sev_features, &snp));
	CHECK_OK(gmem_launch_add_vcpu(s->launch, &vcpu));
}

#endif
