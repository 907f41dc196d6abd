/* SPDX-License-Identifier: MIT */
/*
 * What a launch measures, command by command, and what is measured from the files alone: equal, for any guest. The two
 * have nothing in common but the hash.
 */
#include "mmu_util.h"

#include "guest_image.h"

#define MAX_PAGES 96u

struct inputs {
	enum gmem_vm_type type;
	struct guest_image firmware, svsm;
	struct gmem_kernel_hashes kernel;
	struct gmem_guest guest;
};

static uint64_t rng;

static uint64_t one_of(uint64_t n)
{
	return tap_rand(&rng) % n;
}

static void fill(void *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)p)[i] = (uint8_t)one_of(256);
}

static void make_kernel(struct inputs *in)
{
	char kernel[300], initrd[200], line[64];
	bool has_initrd = one_of(2);

	fill(kernel, sizeof(kernel));
	fill(initrd, sizeof(initrd));
	snprintf(line, sizeof(line), "console=ttyS%llu", (unsigned long long)one_of(100));
	CHECK_OK(gmem_kernel_hashes(kernel, one_of(sizeof(kernel)), has_initrd ? initrd : NULL,
				    has_initrd ? one_of(sizeof(initrd)) : 0, one_of(3) ? line : NULL, &in->kernel));
}

static void make_snp(struct inputs *in)
{
	static const uint32_t signatures[] = { 0x800f12, 0x830f10, 0xa00f11, 0xa10f10, 0xb00f00 };
	struct gmem_guest *g = &in->guest;

	g->vmm = (enum gmem_vmm)one_of(GMEM_VMM_SVSM + 1);
	gi_begin(&in->firmware, 4 + one_of(MAX_PAGES - 4), tap_rand(&rng));
	gi_add_sev(&in->firmware, false);
	gi_end(&in->firmware);
	if (g->vmm == GMEM_VMM_SVSM) {
		gi_begin(&in->svsm, 4 + one_of(MAX_PAGES - 4), tap_rand(&rng));
		gi_add_sev(&in->svsm, true);
		gi_end(&in->svsm);
		g->svsm = in->svsm.bytes;
		g->svsm_len = in->svsm.len;
		g->vars_len = one_of(20) * PG;
	}
	if (g->vmm == GMEM_VMM_EC2 && one_of(2))
		g->flags |= GMEM_GUEST_EC2_RDX_ZERO;
	if (in->firmware.hashes && g->vmm != GMEM_VMM_SVSM && one_of(2)) {
		make_kernel(in);
		g->kernel = &in->kernel;
	}
	g->nvcpus = 1 + (uint32_t)one_of(one_of(4) ? 4 : 70);
	/* Without one, where the VMM gives its vCPUs none. */
	if (g->vmm == GMEM_VMM_QEMU || g->vmm == GMEM_VMM_SVSM || one_of(2))
		g->signature = signatures[one_of(sizeof(signatures) / sizeof(signatures[0]))];
	g->sev_features = (uint64_t[]){ 0, 1, 0x21, 0x201 }[one_of(4)];
	if (g->vmm == GMEM_VMM_SVSM)
		g->sev_features = 0;
}

static void make(struct inputs *in)
{
	*in = (struct inputs){ .type = one_of(2) ? GMEM_VM_SNP : GMEM_VM_TDX, .guest.size = sizeof(in->guest) };
	if (in->type == GMEM_VM_SNP) {
		make_snp(in);
	} else {
		gi_begin(&in->firmware, 4 + one_of(MAX_PAGES - 4), tap_rand(&rng));
		gi_add_tdvf(&in->firmware);
		gi_end(&in->firmware);
		in->guest.flags = one_of(2) ? GMEM_GUEST_TWO_PASS : 0;
		in->guest.nvcpus = 1 + (uint32_t)one_of(3);
	}
	in->guest.firmware = in->firmware.bytes;
	in->guest.firmware_len = in->firmware.len;
}

static void unmake(struct inputs *in)
{
	gi_free(&in->firmware);
	gi_free(&in->svsm);
}

static void launch(const struct inputs *in, uint8_t digest[GMEM_LAUNCH_DIGEST_LEN])
{
	uint64_t high_len = in->guest.firmware_len + in->guest.svsm_len + in->guest.vars_len;
	struct gmem_file *high = make_file(high_len, GMEM_FILE_INIT_PRIVATE);
	struct gmem_file *low = make_file(GI_LOW_LEN, GMEM_FILE_INIT_PRIVATE);
	struct gmem_launch_opts opts = { .size = sizeof(opts), .sev_features = in->guest.sev_features & ~1ull };
	struct gmem_vm *vm = new_vm(in->type);
	struct gmem_launch *l;

	CHECK_OK(set_slot(vm, 0, GI_FOUR_GIB - high_len, high_len, high, 0));
	CHECK_OK(set_slot(vm, 1, 0, GI_LOW_LEN, low, 0));
	CHECK_OK(gmem_launch_create(vm, &opts, &l));
	CHECK_OK(gmem_launch_firmware(l, &in->guest, NULL, NULL));
	CHECK_OK(gmem_launch_finish(l, NULL));
	CHECK_OK(gmem_launch_digest(l, digest));
	gmem_launch_free(l);
	gmem_vm_free(vm);
	gmem_file_free(high);
	gmem_file_free(low);
}

static void measure(const struct inputs *in, uint8_t digest[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_measure *m;

	CHECK_OK(gmem_measure_create(in->type, &in->guest, NULL, NULL, &m));
	CHECK_OK(gmem_measure_digest(m, &in->guest, NULL, NULL, digest));
	gmem_measure_free(m);
}

TEST_TIMEOUT(any_guest, 120)
{
	uint8_t launched[GMEM_LAUNCH_DIGEST_LEN], measured[GMEM_LAUNCH_DIGEST_LEN];
	int rounds = tap_slow() ? 20 : 300;

	rng = tap_seed();
	for (int i = 0; i < rounds; i++) {
		struct inputs in;

		make(&in);
		launch(&in, launched);
		measure(&in, measured);
		if (memcmp(launched, measured, sizeof(launched)))
			FAIL("guest %d: type %d, vmm %d, flags 0x%x, %u vCPUs, features 0x%llx, kernel %d", i,
			     (int)in.type, (int)in.guest.vmm, in.guest.flags, in.guest.nvcpus,
			     (unsigned long long)in.guest.sev_features, !!in.guest.kernel);
		unmake(&in);
	}
}

/* It would not do to be equal because nothing counts: each input that is measured changes the digest. */
TEST_TIMEOUT(every_input_counts, 120)
{
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];
	int rounds = tap_slow() ? 10 : 100;

	rng = tap_seed();
	for (int i = 0; i < rounds; i++) {
		uint64_t at;
		struct inputs in;

		make(&in);
		measure(&in, before);
		/* A byte of the firmware's first page, but for what is variables there. */
		if (in.type == GMEM_VM_SNP) {
			at = one_of(PG);
			in.firmware.bytes[at] ^= 1;
			measure(&in, after);
			CHECK(memcmp(before, after, sizeof(before)));
			in.firmware.bytes[at] ^= 1;
			in.guest.nvcpus++;
			measure(&in, after);
			CHECK(memcmp(before, after, sizeof(before)));
			in.guest.nvcpus--;
			if (in.guest.kernel) {
				in.kernel.initrd[one_of(32)] ^= 4;
				measure(&in, after);
				CHECK(memcmp(before, after, sizeof(before)));
			}
		} else {
			in.guest.flags ^= GMEM_GUEST_TWO_PASS;
			measure(&in, after);
			CHECK(memcmp(before, after, sizeof(before)));
		}
		unmake(&in);
	}
}
