/* SPDX-License-Identifier: MIT */
/* Firmware launched as a TDX guest: MRTD in one pass and in two, what is in memory then, and the vCPUs. */
#include "tap.h"

#include "../demo/firmware.h"
#include "../demo/firmware_digests.h"
#include "base/le.h"
#include "launch/sha384.h"
#include "launch/tdx/tables.h"
#include "launch_util.h"
#include "mmu_util.h"

#define LOW_GPA 0x800000ull
#define LOW_LEN 0x20000ull
#define FOUR_GIB (1ull << 32)
#define HOB_GPA 0x809000ull /* of both firmwares */

/* Debian 12 (2022.11-6+deb12u2). The code alone is padded to what its metadata tells of. */
#define OVMF "/usr/share/ovmf/OVMF.fd"
#define OVMF_SHA "fa0dd56f4e3156e03cb377d56b5785bda51999a9c01fcf4e3d00e8848d6fe02a94d95e2c1fab707a000bb08674a7ce6a"
#define OVMF_MRTD "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
#define OVMF_MRTD_TWO_PASS \
	"acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1"
#define CODE "/usr/share/OVMF/OVMF_CODE.fd"
#define CODE_SHA "85887f9ca3eaade21eae6e3cf2b843773f144278261407d6bcf5e47913473043c887cbe88cc80c809d1a68bb017594ef"
#define SECBOOT "/usr/share/OVMF/OVMF_CODE.secboot.fd"
#define SECBOOT_SHA "b57372c430d94017c88039e5200614e5ff8de861f24c25dc73848a9de37b926e85481fafc6c62f49c5beb9e58df757fa"
#define SECBOOT_MRTD "dd2f721cd5f56f4456047dd8c80c22eb5fc0641ae3966ba0e73244c0d51117c87ed0d270efa1f5958453b0f30b2b258d"
#define SECBOOT_MRTD_TWO_PASS \
	"5d8955577e82488bcde5aaf45df41777a619dda9ab46b28eb4a153e1490229592bd026cf4682993f175e9416630de001"
#define PADDING 0x20000u

struct machine {
	struct gmem_file *high, *low;
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct gmem_vcpu *vcpu;
	struct gmem_tdx_tables *tables;
};

static void set_up(struct machine *m, uint64_t len)
{
	m->high = make_file(len, GMEM_FILE_INIT_PRIVATE);
	m->low = make_file(LOW_LEN, GMEM_FILE_INIT_PRIVATE);
	m->vm = new_vm(GMEM_VM_TDX);
	CHECK_OK(set_slot(m->vm, 0, FOUR_GIB - len, len, m->high, 0));
	CHECK_OK(set_slot(m->vm, 1, LOW_GPA, LOW_LEN, m->low, 0));
	CHECK_OK(gmem_launch_create(m->vm, NULL, &m->launch));
	m->vcpu = new_vcpu(m->vm);
	m->tables = (struct gmem_tdx_tables *)atomic_load(&m->vm->mmu.external);
}

static void tear_down(struct machine *m)
{
	gmem_launch_free(m->launch);
	gmem_vcpu_free(m->vcpu);
	gmem_vm_free(m->vm);
	gmem_file_free(m->high);
	gmem_file_free(m->low);
}

static void to_hex(const uint8_t *bytes, char *hex)
{
	for (unsigned int i = 0; i < GMEM_LAUNCH_DIGEST_LEN; i++)
		snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

static void check_digest(struct machine *m, const char *expected)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	char hex[97];

	CHECK_OK(gmem_launch_digest(m->launch, digest));
	to_hex(digest, hex);
	CHECK_STR(hex, expected);
}

static int load(struct machine *m, const void *image, uint64_t len, uint32_t flags, uint32_t nvcpus)
{
	const struct gmem_guest guest = {
		.size = sizeof(guest), .firmware = image, .firmware_len = len, .flags = flags, .nvcpus = nvcpus
	};

	return gmem_launch_firmware(m->launch, &guest, NULL, NULL);
}

static void launch(const void *image, uint64_t len, uint32_t flags, const char *mrtd)
{
	unsigned char *seen = malloc(len);
	struct machine m;

	CHECK(seen);
	set_up(&m, len);
	CHECK_OK(load(&m, image, len, flags, 0));
	check_digest(&m, mrtd);
	CHECK_OK(gmem_launch_finish(m.launch, NULL));
	check_digest(&m, mrtd);
	/* The guest has it, without asking. */
	CHECK_OK(gmem_vcpu_load(m.vcpu, FOUR_GIB - len, seen, len));
	CHECK_MEM(seen, image, len);
	CHECK_EQ(m.tables->td.vps[0].rcx, HOB_GPA);
	CHECK_EQ(m.tables->td.nvcpus, 1);
	tear_down(&m);
	free(seen);
}

/* The file, behind `padding` zeros; skips if it is another. */
static uint8_t *read_known(const char *path, const char *sha, size_t padding, size_t *ret_len)
{
	uint8_t md[GMEM_SHA384_LEN], *file = read_firmware(path, ret_len), *image;
	char hex[97];

	CHECK_OK(gmem_sha384(file, *ret_len, md));
	to_hex(md, hex);
	if (strcmp(hex, sha)) {
		free(file);
		SKIP("ovmf", "%s: not the one of Debian 12 (2022.11-6+deb12u2), whose digests are known", path);
	}
	image = calloc(1, padding + *ret_len);
	CHECK(image);
	memcpy(image + padding, file, *ret_len);
	free(file);
	*ret_len += padding;
	return image;
}

static void known(const char *path, const char *sha, size_t padding, uint32_t flags, const char *mrtd)
{
	size_t len;
	uint8_t *image = read_known(path, sha, padding, &len);

	launch(image, len, flags, mrtd);
	free(image);
}

TEST(ovmf)
{
	known(OVMF, OVMF_SHA, 0, 0, OVMF_MRTD);
}

TEST(ovmf_two_pass)
{
	known(OVMF, OVMF_SHA, 0, GMEM_GUEST_TWO_PASS, OVMF_MRTD_TWO_PASS);
}

TEST(ovmf_code)
{
	known(CODE, CODE_SHA, PADDING, 0, OVMF_MRTD);
}

TEST(ovmf_code_two_pass)
{
	known(CODE, CODE_SHA, PADDING, GMEM_GUEST_TWO_PASS, OVMF_MRTD_TWO_PASS);
}

TEST(ovmf_secboot)
{
	known(SECBOOT, SECBOOT_SHA, PADDING, 0, SECBOOT_MRTD);
}

TEST(ovmf_secboot_two_pass)
{
	known(SECBOOT, SECBOOT_SHA, PADDING, GMEM_GUEST_TWO_PASS, SECBOOT_MRTD_TWO_PASS);
}

/* Its metadata tells of what is in front of it. */
TEST(ovmf_code_alone)
{
	struct machine m;
	size_t len;
	uint8_t *image = read_known(CODE, CODE_SHA, 0, &len);

	set_up(&m, len);
	CHECK_ERR(load(&m, image, len, 0, 0), -EBADMSG);
	CHECK_EQ(m.tables->td.nvcpus, 0);
	tear_down(&m);
	free(image);
}

/* ---- the demo's */

static unsigned char *demo(void)
{
	unsigned char *image = malloc(DEMO_FIRMWARE_LEN);

	CHECK(image);
	demo_firmware_build(image);
	return image;
}

TEST(demo_firmware)
{
	unsigned char *image = demo();

	launch(image, DEMO_FIRMWARE_LEN, 0, DEMO_FIRMWARE_TDX_DIGEST);
	free(image);
}

TEST(as_many_vcpus_as_are_said)
{
	const struct gmem_launch_vcpu v = { .size = sizeof(v), .rcx = 5 };
	unsigned char *image = demo();
	struct machine m;

	set_up(&m, DEMO_FIRMWARE_LEN);
	/* Those that there are count. */
	CHECK_OK(gmem_launch_add_vcpu(m.launch, &v));
	CHECK_OK(load(&m, image, DEMO_FIRMWARE_LEN, 0, 3));
	CHECK_EQ(m.tables->td.nvcpus, 3);
	CHECK_EQ(m.tables->td.vps[0].rcx, 5);
	CHECK_EQ(m.tables->td.vps[2].rcx, HOB_GPA);
	check_digest(&m, DEMO_FIRMWARE_TDX_DIGEST);
	tear_down(&m);
	free(image);
}

TEST(what_is_not_a_td)
{
	const struct gmem_kernel_hashes hashes = { .kernel = { 1 } };
	unsigned char *image = demo();
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = DEMO_FIRMWARE_LEN };
	struct machine m;

	set_up(&m, DEMO_FIRMWARE_LEN);
	CHECK_ERR(load(&m, image, DEMO_FIRMWARE_LEN, GMEM_GUEST_EC2_RDX_ZERO, 0), -EINVAL);
	CHECK_ERR(load(&m, image, DEMO_FIRMWARE_LEN, 1u << 31, 0), -EINVAL);
	guest.vmm = GMEM_VMM_EC2;
	CHECK_ERR(gmem_launch_firmware(m.launch, &guest, NULL, NULL), -EINVAL);
	guest.vmm = GMEM_VMM_QEMU;
	guest.kernel = &hashes;
	CHECK_ERR(gmem_launch_firmware(m.launch, &guest, NULL, NULL), -EINVAL);
	CHECK_EQ(m.tables->td.nvcpus, 0);
	tear_down(&m);
	free(image);
}

/* The first section of the table. */
static unsigned char *section(unsigned char *image, unsigned int i)
{
	return image + DEMO_FIRMWARE_LEN - DEMO_FIRMWARE_TDVF + 16 + 32 * i;
}

/* Memory that the guest accepts itself is not added, and waits for that. */
TEST(a_section_that_is_augmented)
{
	unsigned char *image = demo();
	const uint64_t gpa = 0x810000;
	struct machine m;
	char byte;

	CHECK_EQ(gmem_get_le64(section(image, 2) + 8), gpa);
	gmem_put_le32(section(image, 2) + 28, 2);
	set_up(&m, DEMO_FIRMWARE_LEN);
	CHECK_OK(load(&m, image, DEMO_FIRMWARE_LEN, 0, 0));
	CHECK_OK(gmem_launch_finish(m.launch, NULL));
	CHECK_OK(gmem_vcpu_load(m.vcpu, HOB_GPA, &byte, 1));
	CHECK_ERR(gmem_vcpu_load(m.vcpu, gpa, &byte, 1), -EACCES);
	CHECK_EQ(gmem_vcpu_accept(m.vcpu, gpa, 0x10000, true, NULL), 0);
	CHECK_OK(gmem_vcpu_load(m.vcpu, gpa, &byte, 1));
	tear_down(&m);
	free(image);
}

/* QEMU knows no more than four types. */
TEST(a_section_that_qemu_does_not_know)
{
	unsigned char *image = demo();
	struct machine m;

	gmem_put_le32(section(image, 2) + 24, 4);
	set_up(&m, DEMO_FIRMWARE_LEN);
	CHECK_ERR(load(&m, image, DEMO_FIRMWARE_LEN, 0, 0), -EOPNOTSUPP);
	tear_down(&m);
	free(image);
}
