/* SPDX-License-Identifier: MIT */
/*
 * What a launch will measure, from the files: values of the distribution's firmware that others have computed, and
 * those that the tests of other tools have.
 */
#include "tap.h"

#include <openssl/evp.h>

#include "measure_util.h"

#define OVMF "/usr/share/ovmf/OVMF.fd"
#define OVMF_CODE "/usr/share/OVMF/OVMF_CODE.fd"
#define OVMF_SECBOOT "/usr/share/OVMF/OVMF_CODE.secboot.fd"
#define OVMF_4M "/usr/share/OVMF/OVMF_CODE_4M.fd"
#define VARS_LEN 0x20000u

static void check_digest(const uint8_t *digest, const char *hex)
{
	char got[HEX_LEN + 1];

	for (unsigned int i = 0; i < GMEM_LAUNCH_DIGEST_LEN; i++)
		snprintf(got + 2 * i, 3, "%02x", digest[i]);
	CHECK_STR(got, hex);
}

/* Skips the case if the file is not the one that the values are of. The caller frees. */
static uint8_t *known_firmware(const char *path, const char *sha256, size_t *ret_len)
{
	uint8_t want[32], md[EVP_MAX_MD_SIZE], *image = read_firmware(path, ret_len);

	unhex(sha256, want, sizeof(want));
	CHECK_EQ(EVP_Digest(image, *ret_len, md, NULL, EVP_sha256(), NULL), 1);
	if (memcmp(md, want, sizeof(want)))
		SKIP("ovmf", "%s: not that of Debian's ovmf 2022.11-6+deb12u2, whose digests are known", path);
	return image;
}

static uint8_t *ovmf(size_t *ret_len)
{
	return known_firmware(OVMF, "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773", ret_len);
}

/* OVMF_CODE and, before it, an empty store of variables. */
static uint8_t *ovmf_with_vars(const char *path, const char *sha256, size_t *ret_len)
{
	uint8_t *code = known_firmware(path, sha256, ret_len), *image = calloc(1, VARS_LEN + *ret_len);

	CHECK(image);
	memcpy(image + VARS_LEN, code, *ret_len);
	*ret_len += VARS_LEN;
	free(code);
	return image;
}

TEST(snp_guests_of_ovmf)
{
	static const struct {
		uint32_t nvcpus;
		uint64_t features;
		const char *digest;
	} cases[] = {
		{ 1, 1,
		  "11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3" },
		{ 1, 0x21,
		  "c32245cb607f82791b60757bf0b344d9030e5b5a107342e69c09e668ff28aca5af9ca1dc41ce74f5a4e81aeaeb5e7b54" },
		{ 2, 1,
		  "a5b54e62ae971b58274dd24cc6c47b842662617036e7bd67d7326c07ac6363f35399ef933330a5ea160cead90a00603f" },
		{ 2, 0x21,
		  "735869e96909943dd1bd046cf281aec588ae12c2c66ee6844e40e93d423722dbe535fd7dd7cb9a5f45a7adf8d6346c89" },
		{ 4, 1,
		  "32ac9d7a17d28f7cd4404a4516d2f00519668c40ada2062351c36767e908eb3f090d66c33ab10f80150e00a4385b6d0f" },
		{ 4, 0x21,
		  "4842cf9f01c38c50535c62e34990ed6c1e8ab4676304545465367358527c359ba164717398516457f8f986cea3e9a221" },
		{ 64, 1,
		  "5639a30a8a52d07ccc971c4debceb92f0976f693a06af17035af8802023588cd7f2e80e96229a6c88a4c89d1f4967351" },
		{ 64, 0x21,
		  "07ce08066ff488cdeb60071671d90f001133641cbbc2394ea67a8668fe0b16facaf3ca46ee5abd1d73eb69a506900775" },
	};
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_measure *m;
	size_t len;
	uint8_t *image = ovmf(&len);
	struct gmem_guest guest = guest_of(image, len, 1);

	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		guest.nvcpus = cases[i].nvcpus;
		guest.sev_features = cases[i].features;
		CHECK_OK(gmem_measure_digest(m, &guest, NULL, NULL, digest));
		check_digest(digest, cases[i].digest);
	}
	guest.nvcpus = 1;
	guest.sev_features = 0;
	CHECK_OK(gmem_measure_digest(m, &guest, NULL, NULL, digest));
	check_digest(digest, cases[0].digest);
	gmem_measure_free(m);
	free(image);
}

static void check_tdx(const uint8_t *image, size_t len, const char *single_pass, const char *two_pass)
{
	struct gmem_guest guest = guest_of(image, len, 0);
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];

	measure_afresh(GMEM_VM_TDX, &guest, digest);
	check_digest(digest, single_pass);
	guest.flags = GMEM_GUEST_TWO_PASS;
	measure_afresh(GMEM_VM_TDX, &guest, digest);
	check_digest(digest, two_pass);
}

TEST(tdx_guests_of_ovmf)
{
	static const char single_pass[] =
		"4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47";
	static const char two_pass[] =
		"acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1";
	size_t len;
	uint8_t *image = ovmf(&len);

	check_tdx(image, len, single_pass, two_pass);
	free(image);
	image = ovmf_with_vars(OVMF_CODE, "d9b568def24088c92f34b5479e0ed7e44d0a4d4cea8a0f5716719180bba48106", &len);
	check_tdx(image, len, single_pass, two_pass);
	free(image);
	image = ovmf_with_vars(OVMF_SECBOOT, "6ee6a5db7a1443d17594f1e00e3cf2a2250bc1c95c8f9101bc49c9977ce11a68", &len);
	check_tdx(image, len,
		  "dd2f721cd5f56f4456047dd8c80c22eb5fc0641ae3966ba0e73244c0d51117c87ed0d270efa1f5958453b0f30b2b258d",
		  "5d8955577e82488bcde5aaf45df41777a619dda9ab46b28eb4a153e1490229592bd026cf4682993f175e9416630de001");
	free(image);
}

static int first_range(void *opaque, const struct gmem_measure_range *range)
{
	*(struct gmem_measure_range *)opaque = *range;
	return 1;
}

/* Code without its store of variables is an SNP guest's firmware, no TDX guest's: its metadata points past its end. */
TEST(ovmf_code_is_for_snp_only)
{
	struct gmem_measure_range range;
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_measure *m;
	size_t len;
	uint8_t *image =
		known_firmware(OVMF_CODE, "d9b568def24088c92f34b5479e0ed7e44d0a4d4cea8a0f5716719180bba48106", &len);
	struct gmem_guest guest = guest_of(image, len, 1);

	CHECK_ERR(gmem_measure_create(GMEM_VM_TDX, &guest, NULL, NULL, &m), -EBADMSG);
	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m));
	CHECK_EQ(gmem_measure_digest(m, &guest, first_range, &range, digest), 1);
	CHECK_STR(range.name, "firmware");
	CHECK_EQ(range.gpa, 0xffe20000);
	CHECK_EQ(range.gpa + range.len, 1ull << 32);
	gmem_measure_free(m);
	free(image);
}

TEST(firmware_without_metadata)
{
	struct gmem_measure *m;
	size_t len;
	uint8_t *image = read_firmware(OVMF_4M, &len);
	struct gmem_guest guest = guest_of(image, len, 1);

	CHECK_ERR(gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m), -ENOENT);
	CHECK_HAS(gmem_last_error(), "dc886566-984a-4798-a75e-5585a7bf67cc");
	CHECK_ERR(gmem_measure_create(GMEM_VM_TDX, &guest, NULL, NULL, &m), -ENOENT);
	CHECK_HAS(gmem_last_error(), "e47a6535-984a-4798-865e-4685a7bf8ec2");
	free(image);
}

/*
 * Firmware that the tests of sev-snp-measure-go (guest/guest_test.go) and of virtee's sev (tests/measurement.rs) and
 * sev-snp-measure (tests/test_guest.py) have: the digest after its own pages is known, and its tables are made again
 * here, so that theirs go on from there.
 */
static const struct image_tables ovmf_x64 = {
	.sev = { { 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },
		 { 0x80a000, 0x3000, GMEM_SEV_SECTION_MEM },
		 { 0x80d000, 0x1000, GMEM_SEV_SECTION_SECRETS },
		 { 0x80e000, 0x1000, GMEM_SEV_SECTION_CPUID },
		 { 0x80f000, 0x11000, GMEM_SEV_SECTION_MEM } },
	.nsev = 5,
	.reset_eip = 0x80b004,
};

static const struct image_tables ovmf_amdsev = {
	.sev = { { 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },
		 { 0x80a000, 0x3000, GMEM_SEV_SECTION_MEM },
		 { 0x80d000, 0x1000, GMEM_SEV_SECTION_SECRETS },
		 { 0x80e000, 0x1000, GMEM_SEV_SECTION_CPUID },
		 { 0x80f000, 0x1000, GMEM_SEV_SECTION_SVSM_CAA },
		 { 0x810000, 0x1000, GMEM_SEV_SECTION_KERNEL_HASHES },
		 { 0x811000, 0xf000, GMEM_SEV_SECTION_MEM } },
	.nsev = 7,
	.reset_eip = 0x80b004,
	.hashes = { 0x810c00, 0x400 },
};

/* Before there was a calling area for an SVSM. */
static const struct image_tables ovmf_amdsev_2022 = {
	.sev = { { 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },
		 { 0x80a000, 0x3000, GMEM_SEV_SECTION_MEM },
		 { 0x80d000, 0x1000, GMEM_SEV_SECTION_SECRETS },
		 { 0x80e000, 0x1000, GMEM_SEV_SECTION_CPUID },
		 { 0x80f000, 0x1000, GMEM_SEV_SECTION_KERNEL_HASHES },
		 { 0x810000, 0x10000, GMEM_SEV_SECTION_MEM } },
	.nsev = 6,
	.reset_eip = 0x80b004,
	.hashes = { 0x80fc00, 0x400 },
};

#define GO_1 "a58211791a556a630a4319dc9e2ea96cc0e9784dd9f20a4fadf81b26c98d163fcdcb6703884bbbb80d7b1de45b3d84d0"
#define GO_2 "2027a27bb9f7acfd280e4c7bd68a73973b94bf0756e5b282e004b9395f597b8d0eb4defa7d8f6549375aa4d2b146f0f3"
#define VIRTEE "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
#define PYTHON "edcf6d1c57ce868a167c990f58c8667c698269ef9e0803246419eea914186343054d557e1f17acd93b032c106bc70d25"

/* `cmdline` NULL: no kernel; else one whose kernel and initrd are empty files. All of EC2 here begin with RDX 0. */
static const struct {
	const struct image_tables *tables;
	const char *firmware_digest;
	enum gmem_vmm vmm;
	uint32_t nvcpus;
	uint64_t features;
	const char *cmdline;
	const char *digest;
} tools[] = {
	{ &ovmf_x64, GO_1, GMEM_VMM_EC2, 2, 1, NULL,
	  "4c6e33087d08fa770259484dddbef367086a15c3e2cf10038dc97229d39c942671c2e22b300178f8de594a3f2fa59303" },
	{ &ovmf_x64, GO_2, GMEM_VMM_EC2, 2, 1, NULL,
	  "c2c84b9364fc9f0f54b04534768c860c6e0e386ad98b96e8b98eca46ac8971d05c531ba48373f054c880cfd1f4a0a84e" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 1, NULL,
	  "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 0x21, NULL,
	  "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 1, "",
	  "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 0x21, "",
	  "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 1, "console=ttyS0 loglevel=7",
	  "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 1, 0x21, "console=ttyS0 loglevel=7",
	  "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 4, 1, "",
	  "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_QEMU, 4, 0x21, "",
	  "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_EC2, 1, 1, "",
	  "7d3756157c805bf6adf617064c8552e8c1688fa1c8756f11cbf56ba5d25c9270fb69c0505c1cbe1c5c66c0e34c6ed3be" },
	{ &ovmf_amdsev, VIRTEE, GMEM_VMM_EC2, 1, 0x21, "",
	  "6ae80856486b1396af8c82a40351d6ed76a20c785e9c7fa4ffa27c22d5d6313b4b3b458cd3c9968e6f89fb5d8450d7a6" },
	{ &ovmf_amdsev_2022, PYTHON, GMEM_VMM_EC2, 1, 1, "",
	  "760b6e51039d2d6c1fc6d38ca5c387967d158e0294883e4522c36f89bd61bfc9cdb975cd1ceedffbe1b23b1daf4e3f42" },
};

TEST(guests_of_the_tests_of_other_tools)
{
	uint8_t image[GMEM_PAGE_SIZE] = { 0 }, firmware_digest[GMEM_LAUNCH_DIGEST_LEN], got[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_kernel_hashes kernel;

	for (size_t i = 0; i < sizeof(tools) / sizeof(tools[0]); i++) {
		struct gmem_guest guest = guest_of(image, sizeof(image), tools[i].nvcpus);

		memset(image, 0, sizeof(image));
		put_tables(image, sizeof(image), tools[i].tables);
		unhex(tools[i].firmware_digest, firmware_digest, sizeof(firmware_digest));
		guest.firmware_digest = firmware_digest;
		guest.vmm = tools[i].vmm;
		guest.flags = GMEM_GUEST_EC2_RDX_ZERO;
		guest.sev_features = tools[i].features;
		if (tools[i].cmdline) {
			CHECK_OK(gmem_kernel_hashes(NULL, 0, NULL, 0, tools[i].cmdline, &kernel));
			guest.kernel = &kernel;
		}
		measure_afresh(GMEM_VM_SNP, &guest, got);
		check_digest(got, tools[i].digest);
	}
}

TEST(kernel_without_a_place_for_its_hashes)
{
	uint8_t image[GMEM_PAGE_SIZE] = { 0 }, digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_guest guest = guest_of(image, sizeof(image), 1);
	struct gmem_kernel_hashes kernel;
	struct gmem_measure *m;

	put_tables(image, sizeof(image), &ovmf_x64);
	CHECK_OK(gmem_kernel_hashes("kernel", 6, NULL, 0, NULL, &kernel));
	guest.kernel = &kernel;
	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m));
	CHECK_ERR(gmem_measure_digest(m, &guest, NULL, NULL, digest), -ENOENT);
	CHECK_HAS(gmem_last_error(), "7255371f-3a3b-4b04-927b-1da6efa8d454");
	guest.kernel = NULL;
	CHECK_OK(gmem_measure_digest(m, &guest, NULL, NULL, digest));
	gmem_measure_free(m);
}

TEST(vmsa_pages_of_qemu)
{
	static const char *const hashes[] = {
		"77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b3856f55378e9518d0da99452d51c553a",
		"8413b852790765a310d95867a8b00bfca3a802b5a80830044b45e253fe96222657e11e53fcf63eb0e0afd722385bf7b4",
	};
	uint8_t image[GMEM_PAGE_SIZE] = { 0 }, page[GMEM_PAGE_SIZE], md[EVP_MAX_MD_SIZE];
	struct gmem_guest guest = guest_of(image, sizeof(image), 3);
	struct gmem_measure *m;

	put_tables(image, sizeof(image), &ovmf_x64);
	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m));
	for (uint32_t vcpu = 0; vcpu < 3; vcpu++) {
		CHECK_OK(gmem_measure_vmsa(m, &guest, vcpu, page));
		CHECK_EQ(EVP_Digest(page, sizeof(page), md, NULL, EVP_sha384(), NULL), 1);
		check_digest(md, hashes[!!vcpu]);
	}
	gmem_measure_free(m);
}
