/* SPDX-License-Identifier: MIT */
/* All of a guest, given to a KVM that has the hardware: what it hears has the digest measured from the files. */
#define TAP_NO_MAIN
#include "fake_kvm.h"

#include "guest_image.h"
#include "launch/snp_digest.h"
#include "launch/tdx_digest.h"

static struct gmem_snp_digest snp;
static struct gmem_tdx_digest tdx;

static void hear_snp(const struct fake_call *call)
{
	uint64_t gpa = get(call->data, 8) * P, len = get(call->data + 16, 8);
	const uint8_t *from = (const uint8_t *)(uintptr_t)get(call->data + 8, 8);

	CHECK_EQ(get(call->cmd, 4), 101);
	for (uint64_t at = 0; at < len; at += P)
		CHECK_OK(gmem_snp_digest_page(&snp, call->data[24], gpa + at, from ? from + at : NULL));
}

static void hear_tdx(const struct fake_call *call)
{
	const uint8_t *from = (const uint8_t *)(uintptr_t)get(call->data, 8);
	uint64_t gpa = get(call->data + 8, 8), npages = get(call->data + 16, 8);

	if (get(call->cmd, 4) != 3)
		return;
	for (uint64_t at = 0; at < npages * P; at += P) {
		CHECK_OK(gmem_tdx_digest_add(&tdx, gpa + at));
		for (uint64_t c = 0; (get(call->cmd + 4, 4) & 1) && c < P; c += GMEM_TDX_CHUNK_LEN)
			CHECK_OK(gmem_tdx_digest_extend(&tdx, gpa + at + c, from + at + c));
	}
}

/* The digest before the first vCPU: those are measured by KVM itself. */
static int before_vcpus(void *opaque, const struct gmem_measure_range *range)
{
	if (strncmp(range->name, "vmsa", 4))
		memcpy(opaque, range->digest, GMEM_LAUNCH_DIGEST_LEN);
	return 0;
}

static void check_heard(enum gmem_vm_type type, const struct gmem_guest *guest)
{
	uint8_t want[GMEM_LAUNCH_DIGEST_LEN], digest[GMEM_LAUNCH_DIGEST_LEN], last[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_launch *launch = fake_launch(type);
	struct gmem_measure *m;

	gmem_snp_digest_init(&snp);
	CHECK_OK(gmem_tdx_digest_init(&tdx));
	fake.heard = type == GMEM_VM_SNP ? hear_snp : hear_tdx;
	CHECK_OK(gmem_launch_firmware(launch, guest, NULL, NULL));
	memcpy(digest, snp.ld, sizeof(digest));
	if (type == GMEM_VM_TDX)
		CHECK_OK(gmem_tdx_digest_value(&tdx, digest));
	gmem_tdx_digest_free(&tdx);
	CHECK_OK(gmem_measure_create(type, guest, NULL, NULL, &m));
	CHECK_OK(gmem_measure_digest(m, guest, before_vcpus, want, last));
	CHECK_MEM(digest, want, sizeof(want));
	gmem_measure_free(m);
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST_TIMEOUT(firmware_is_told_as_it_is_measured, 60)
{
	uint64_t rng = tap_seed();

	for (int i = 0; i < (tap_slow() ? 8 : 60); i++) {
		enum gmem_vm_type type = i % 2 ? GMEM_VM_SNP : GMEM_VM_TDX;
		struct gmem_guest guest = { .size = sizeof(guest), .signature = 0x800f12, .nvcpus = 2 };
		struct guest_image image;

		gi_begin(&image, 4 + tap_rand(&rng) % 100, tap_rand(&rng));
		if (type == GMEM_VM_SNP)
			gi_add_sev(&image, false);
		else
			gi_add_tdvf(&image);
		gi_end(&image);
		guest.firmware = image.bytes;
		guest.firmware_len = image.len;
		guest.vmm = type == GMEM_VM_SNP ? (enum gmem_vmm)(tap_rand(&rng) % GMEM_VMM_SVSM) : GMEM_VMM_QEMU;
		check_heard(type, &guest);
		gi_free(&image);
	}
}

/* KVM measures a page as it is added, so nothing is added that would have to be measured later. */
TEST(two_passes_are_refused_at_once)
{
	struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);
	struct gmem_guest guest = { .size = sizeof(guest), .nvcpus = 1, .flags = GMEM_GUEST_TWO_PASS };
	struct guest_image image;

	gi_begin(&image, 8, tap_seed());
	gi_add_tdvf(&image);
	gi_end(&image);
	guest.firmware = image.bytes;
	guest.firmware_len = image.len;
	CHECK_ERR(gmem_launch_firmware(launch, &guest, NULL, NULL), -EOPNOTSUPP);
	CHECK_EQ(fake.ncalls, 0);
	gi_free(&image);
	gmem_launch_free(launch);
	fake_tear_down();
}
