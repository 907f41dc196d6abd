/* SPDX-License-Identifier: MIT */
/* What a TDX launch says to a KVM that has the hardware, every byte of it, and what it makes of each answer. */
#define TAP_NO_MAIN
#include "fake_kvm.h"

#define NENT 3u

static uint8_t src[8 * P] __attribute__((aligned(4096)));

/* struct kvm_tdx_init_mem_region, on the first vCPU */
static void check_region(unsigned int i, uint32_t flags, const void *from, uint64_t gpa, uint64_t npages)
{
	uint8_t want[24];

	check_tdx_cmd(i, FAKE_VCPU0, 3, flags);
	put(want, 8, (uintptr_t)from);
	put(want + 8, 8, gpa);
	put(want + 16, 8, npages);
	CHECK_MEM(fake.call[i].data, want, sizeof(want));
}

/* struct kvm_tdx_capabilities, with room for `nent` */
static void check_capabilities(unsigned int i, uint32_t nent)
{
	uint8_t want[2056] = { 0 };

	check_tdx_cmd(i, FAKE_VM, 0, 0);
	put(want + 2048, 4, nent);
	CHECK_MEM(fake.call[i].data, want, sizeof(want));
}

TEST(tdx_begins_with_capabilities_and_init_vm)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts), .attributes = 0x10000000, .xfam = 0x2e7 };
	uint8_t cpuid[8 + NENT * 40], want[264 + NENT * 40] = { 0 };
	struct gmem_launch *launch;

	fake_set_up(GMEM_VM_TDX);
	for (unsigned int i = 0; i < sizeof(cpuid); i++)
		cpuid[i] = (uint8_t)(i * 7);
	put(cpuid, 8, NENT);
	for (unsigned int i = 0; i < 48; i++) {
		opts.mrconfigid[i] = want[16 + i] = (uint8_t)(1 + i);
		opts.mrowner[i] = want[64 + i] = (uint8_t)(101 + i);
		opts.mrownerconfig[i] = want[112 + i] = (uint8_t)(201 + i);
	}
	opts.cpuid = cpuid;
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, &opts, &launch));
	CHECK_EQ(fake.ncalls, 2);
	check_capabilities(0, 6);
	check_tdx_cmd(1, FAKE_VM, 1, 0);
	put(want, 8, 0x10000000);
	put(want + 8, 8, 0x2e7);
	memcpy(want + 256, cpuid, sizeof(cpuid));
	CHECK_MEM(fake.call[1].data, want, sizeof(want));
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST(tdx_begins_with_what_is_not_said)
{
	uint8_t want[264] = { 0 };
	struct gmem_launch *launch;

	fake_set_up(GMEM_VM_TDX);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch));
	check_tdx_cmd(1, FAKE_VM, 1, 0);
	put(want + 8, 8, 3);
	CHECK_MEM(fake.call[1].data, want, sizeof(want));
	gmem_launch_free(launch);
	fake_tear_down();
}

/* The table's room doubles until KVM is content, but not for ever. */
TEST(tdx_capabilities_want_room)
{
	static const uint32_t nent[] = { 6, 7, 12, 13, 96, 100, 256 };
	static const unsigned int asked[] = { 1, 2, 2, 3, 5, 6, 7 };
	struct gmem_launch *launch;

	for (unsigned int i = 0; i < 7; i++) {
		fake_set_up(GMEM_VM_TDX);
		fake.cpuid_nent = nent[i];
		CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch));
		CHECK_EQ(fake.ncalls, asked[i] + 1);
		for (unsigned int j = 0; j < asked[i]; j++)
			check_capabilities(j, 6u << j);
		gmem_launch_free(launch);
		fake_tear_down();
	}
	fake_set_up(GMEM_VM_TDX);
	fake.for_ever.err = -E2BIG;
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch), -E2BIG);
	CHECK_EQ(fake.ncalls, 7);
	CHECK_HAS(gmem_last_error(), "KVM_TDX_CAPABILITIES");
	fake_tear_down();
}

TEST(tdx_what_the_host_lacks)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts), .attributes = 0x30000000 };
	uint8_t cpuid[8] = { 0 };
	struct gmem_launch *launch;

	fake_set_up(GMEM_VM_TDX);
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, &opts, &launch), -EINVAL);
	CHECK_HAS(gmem_last_error(), "attributes 0x30000000: this host has 0x10000000");
	opts.attributes = 0;
	opts.xfam = 0x603ff;
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, &opts, &launch), -EINVAL);
	CHECK_HAS(gmem_last_error(), "xfam 0x603ff: this host has 0x602e7");
	opts.xfam = 0;
	opts.cpuid = cpuid;
	put(cpuid, 4, 257);
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, &opts, &launch), -E2BIG);
	/* INIT_VM was not said. */
	for (unsigned int i = 0; i < fake.ncalls; i++)
		check_capabilities(i, 6);
	fake_tear_down();
}

TEST(tdx_init_vm_waits_for_entropy)
{
	const struct fake_answer none = { .err = -EAGAIN, .status = 0x8000020300000000ull };
	struct fake_answer script[9] = { { 0 } };
	struct gmem_launch *launch;

	for (unsigned int i = 1; i < 9; i++)
		script[i] = none;
	fake_set_up(GMEM_VM_TDX);
	fake_script(9, script);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch));
	CHECK_EQ(fake.ncalls, 10);
	/* KVM wants hw_error 0, whatever it left there the last time. */
	for (unsigned int i = 1; i < 10; i++)
		check_tdx_cmd(i, FAKE_VM, 1, 0);
	gmem_launch_free(launch);

	fake_script(1, script);
	fake.for_ever = none;
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch), -EAGAIN);
	CHECK_EQ(fake.ncalls, 10001);
	CHECK_HAS(gmem_last_error(), "KVM_TDX_INIT_VM: the TDX module answers 0x8000020300000000, ");
	fake_tear_down();
}

TEST(tdx_beginning_fails)
{
	static const struct {
		struct fake_answer answer;
		const char *text[2];
	} of[] = {
		{ { .err = -EINVAL }, { "not of type KVM_X86_TDX_VM", "0x80000008" } },
		{ { .err = -ENOTTY }, { "no TDX", "no TDX" } },
		{ { .err = -EIO }, { "dead", "dead" } },
		{ { .err = -EIO, .status = 0xc000010000000006 }, { "0xc000010000000006", "0xc000010000000006" } },
		{ { .err = -EBUSY }, { "busy", "busy" } },
		{ { .err = -EFAULT }, { "Bad address", "Bad address" } },
		{ { .err = -ENOMEM }, { "memory", "memory" } },
	};
	const struct fake_answer good = { 0 };
	struct gmem_launch *launch = NULL;

	for (unsigned int at = 0; at < 2; at++) {
		for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
			const struct fake_answer script[2] = { at ? good : of[i].answer, of[i].answer };

			fake_set_up(GMEM_VM_TDX);
			fake_script(2, script);
			CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch),
				  of[i].answer.err);
			CHECK_EQ(fake.ncalls, at + 1);
			CHECK_HAS(gmem_last_error(), at ? "KVM_TDX_INIT_VM" : "KVM_TDX_CAPABILITIES");
			CHECK_HAS(gmem_last_error(), of[i].text[at]);
			CHECK(!launch);
			fake_tear_down();
		}
	}
}

TEST(tdx_vcpus)
{
	const struct fake_answer no[] = { { .err = -EIO, .status = 0xc000030000000000 } };
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .rcx = 0x809000 };
	struct gmem_tdx_init_mem_region region = { .source_addr = (uintptr_t)src, .gpa = GPA, .nr_pages = 1 };
	const struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	struct gmem_launch *launch;
	uint64_t status;

	fake_set_up(GMEM_VM_TDX);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_TDX, NULL, &launch));
	fake.ncalls = 0;
	/* Pages are a vCPU's to launch. */
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "vCPU 0 has not been added");
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EINVAL);
	vcpu.kvm_vcpu = 1000;
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EBADF);
	vcpu.kvm_vcpu = fake.fd[FAKE_VCPU0];
	vcpu.snp = &snp;
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EINVAL);
	vcpu.snp = NULL;
	CHECK_EQ(fake.ncalls, 0);

	fake_script(1, no);
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EIO);
	CHECK_EQ(gmem_launch_status(launch), 0xc000030000000000);
	CHECK_OK(gmem_launch_add_vcpu(launch, &vcpu));
	vcpu.kvm_vcpu = fake.fd[FAKE_VCPU1];
	CHECK_OK(gmem_launch_add_vcpu(launch, &vcpu));
	CHECK_EQ(fake.ncalls, 3);
	check_tdx_cmd(0, FAKE_VCPU0, 2, 0);
	check_tdx_cmd(1, FAKE_VCPU0, 2, 0);
	check_tdx_cmd(2, FAKE_VCPU1, 2, 0);
	CHECK_EQ(fake.call[2].data_at, 0x809000); /* a number, no pointer */

	/* They count in that order. */
	CHECK_OK(gmem_launch_command(launch, 1, 3, 1, &region, &status));
	check_tdx_cmd(3, FAKE_VCPU1, 3, 1);
	CHECK_EQ(fake.call[3].data_at, (uintptr_t)&region);
	CHECK(region.nr_pages == 0 && region.gpa == GPA + P && region.source_addr == (uintptr_t)src + P);
	CHECK_ERR(gmem_launch_command(launch, 2, 3, 1, &region, &status), -EINVAL);
	CHECK_ERR(gmem_launch_command(launch, -2, 3, 1, &region, &status), -EINVAL);
	CHECK_EQ(fake.ncalls, 4);
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST(tdx_every_page_type)
{
	struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

	CHECK_EQ(gmem_launch_update(launch, GPA, src, 2, GMEM_LAUNCH_NORMAL), 2);
	check_region(0, 1, src, GPA, 2);
	CHECK_EQ(gmem_launch_update(launch, GPA + 2 * P, src + P, 3, GMEM_LAUNCH_UNMEASURED), 3);
	check_region(1, 0, src + P, GPA + 2 * P, 3);
	CHECK_ERR(gmem_launch_update(launch, GPA, NULL, 1, GMEM_LAUNCH_ZERO), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_SECRETS), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_CPUID), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src + 8, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, NULL, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_EQ(fake.ncalls, 2);
	CHECK_ERR(gmem_launch_extend(launch, GPA, P), -EOPNOTSUPP);
	CHECK_ERR(gmem_launch_digest(launch, src), -EOPNOTSUPP);
	CHECK_EQ(fake.ncalls, 2);
	gmem_launch_free(launch);
	fake_tear_down();
}

/* KVM leaves its progress in the structure also when it fails; a signal and a busy module are no failures. */
TEST(tdx_progress_in_every_position)
{
	static const int errs[] = { 0, -EINTR, -EAGAIN };

	for (unsigned int e = 0; e < 3; e++) {
		for (uint64_t k = e ? 0 : 1; k < 8; k++) {
			const struct fake_answer script[] = { { .err = errs[e], .done = k, .status = e ? 0x99 : 0 } };
			struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

			fake_script(1, script);
			CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), 8);
			CHECK_EQ(fake.ncalls, 2);
			check_region(0, 1, src, GPA, 8);
			check_region(1, 1, src + k * P, GPA + k * P, 8 - k);
			gmem_launch_free(launch);
			fake_tear_down();
		}
	}
}

TEST(tdx_refused_in_every_position)
{
	static const struct {
		int err;
		uint64_t status;
		const char *text;
	} of[] = {
		{ -EBUSY, 0x8000020000000080, "OPERAND_BUSY: busy, again" },
		{ -EBUSY, 0, "busy" },
		{ -EIO, 0xc0000b0d00000001, "0xc0000b0d00000001, EPT_ENTRY_STATE_INCORRECT" },
		{ -EINVAL, 0, "guest_memfd" },
		{ -EFAULT, 0, "Bad address" },
		{ -EOPNOTSUPP, 0, "source" },
		{ -ENOMEM, 0, "memory" },
	};

	for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
		for (uint64_t k = 0; k < 8; k++) {
			const struct fake_answer script[] = { { .err = of[i].err, .status = of[i].status, .done = k } };
			struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

			fake_script(1, script);
			if (k) {
				CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), k);
			} else {
				CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), of[i].err);
				CHECK_HAS(gmem_last_error(), of[i].text);
				CHECK_HAS(gmem_last_error(), "KVM_TDX_INIT_MEM_REGION");
			}
			CHECK_EQ(fake.ncalls, 1);
			CHECK_EQ(gmem_launch_status(launch), of[i].status);
			gmem_launch_free(launch);
			fake_tear_down();
		}
	}
}

/* A page is done at every 6000th command. */
static void seldom(uint8_t *data)
{
	if (fake.ncalls % 6000)
		return;
	put(data, 8, get(data, 8) + P);
	put(data + 8, 8, get(data + 8, 8) + P);
	put(data + 16, 8, get(data + 16, 8) - 1);
}

TEST(tdx_asked_again_not_for_ever)
{
	static const int errs[] = { -EAGAIN, -EINTR };

	for (unsigned int e = 0; e < 2; e++) {
		struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

		fake.for_ever.err = errs[e];
		CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), errs[e]);
		CHECK_EQ(fake.ncalls, 10000);
		/* As long as something is done it goes on. */
		fake.for_ever.then = seldom;
		fake.ncalls = 0;
		CHECK_EQ(gmem_launch_update(launch, GPA, src, 3, GMEM_LAUNCH_NORMAL), 3);
		CHECK_EQ(fake.ncalls, 18000);
		fake.for_ever.then = NULL;
		fake.for_ever.done = 1;
		fake.ncalls = 0;
		CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), 8);
		CHECK_EQ(fake.ncalls, 8);
		gmem_launch_free(launch);
		fake_tear_down();
	}
}

static void more_left(uint8_t *data)
{
	put(data, 8, get(data, 8) - 2 * P);
	put(data + 8, 8, get(data + 8, 8) - 2 * P);
	put(data + 16, 8, get(data + 16, 8) + 2);
}

static void less_than_none(uint8_t *data)
{
	put(data + 16, 8, -1ull);
}

static void another_gpa(uint8_t *data)
{
	put(data + 8, 8, get(data + 8, 8) + P);
}

static void another_source(uint8_t *data)
{
	put(data, 8, get(data, 8) + 1);
}

static void nothing(uint8_t *data)
{
}

/* A KVM that is mad: no answer may count backwards, go on for ever, or launch what was not asked for. */
TEST(tdx_progress_that_cannot_be)
{
	const fake_change mad[] = { more_left, less_than_none, another_gpa, another_source, nothing };

	for (size_t i = 0; i < sizeof(mad) / sizeof(mad[0]); i++) {
		struct fake_answer script[2] = { { .done = 2 }, { .done = mad[i] == nothing ? 0 : 1, .then = mad[i] } };
		struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

		fake_script(1, script + 1);
		CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), -EIO);
		CHECK_EQ(fake.ncalls, 1);
		fake_script(2, script);
		CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), 2);
		CHECK_EQ(fake.ncalls, 2);
		gmem_launch_free(launch);
		fake_tear_down();
	}
}

TEST(tdx_finish)
{
	const struct fake_answer script[] = { { .err = -EBUSY }, { .err = -EINVAL } };
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };
	struct gmem_launch *launch = fake_launch(GMEM_VM_TDX);

	vcpu.kvm_vcpu = fake.fd[FAKE_VCPU1];
	fake_script(2, script);
	CHECK_ERR(gmem_launch_finish(launch, NULL), -EBUSY);
	CHECK_ERR(gmem_launch_finish(launch, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "KVM_TDX_FINALIZE_VM");
	CHECK_OK(gmem_launch_add_vcpu(launch, &vcpu));
	CHECK_OK(gmem_launch_finish(launch, NULL));
	for (unsigned int i = 0; i < 4; i++) {
		if (i == 2)
			continue;
		check_tdx_cmd(i, FAKE_VM, 4, 0);
		CHECK_EQ(fake.call[i].data_at, 0);
	}
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EBUSY);
	CHECK_EQ(fake.ncalls, 4);
	gmem_launch_free(launch);
	fake_tear_down();
}
