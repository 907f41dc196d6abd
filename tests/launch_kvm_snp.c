/* SPDX-License-Identifier: MIT */
/* What an SNP launch says to a KVM that has the hardware, every byte of it, and what it makes of each answer. */
#define TAP_NO_MAIN
#include "fake_kvm.h"

static uint8_t src[8 * P] __attribute__((aligned(4096)));

/* struct kvm_sev_snp_launch_update */
static void check_update(unsigned int i, uint64_t gfn, const void *from, uint64_t len, uint8_t type)
{
	uint8_t want[64] = { 0 };

	check_sev_cmd(i, 101);
	put(want + 0, 8, gfn);
	put(want + 8, 8, (uintptr_t)from);
	put(want + 16, 8, len);
	want[24] = type;
	CHECK_MEM(fake.call[i].data, want, sizeof(want));
}

TEST(snp_begins_with_init2_and_start)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts), .policy = 0xb0000, .sev_features = 0x220 };
	struct gmem_launch *launch;
	uint8_t init[48] = { 0 }, start[64] = { 0 };

	fake_set_up(GMEM_VM_SNP);
	opts.sev_fd = fake.fd[FAKE_SEV];
	for (unsigned int i = 0; i < sizeof(opts.gosvw); i++)
		opts.gosvw[i] = start[8 + i] = (uint8_t)(0xa0 + i);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_SNP, &opts, &launch));
	CHECK_EQ(fake.ncalls, 2);
	check_sev_cmd(0, 22);
	put(init, 8, 0x220);
	CHECK_MEM(fake.call[0].data, init, sizeof(init));
	check_sev_cmd(1, 100);
	put(start, 8, 0xb0000);
	CHECK_MEM(fake.call[1].data, start, sizeof(start));
	CHECK_EQ(gmem_launch_status(launch), 0);
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST(snp_begins_with_what_is_not_said)
{
	struct gmem_launch *launch;
	uint8_t init[48] = { 0 }, start[64] = { 0 };

	fake_set_up(GMEM_VM_SNP);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_SNP, NULL, &launch));
	CHECK_EQ(fake.ncalls, 2);
	check_sev_cmd(0, 22); /* with /dev/sev, which nobody gave */
	CHECK_MEM(fake.call[0].data, init, sizeof(init));
	check_sev_cmd(1, 100);
	put(start, 8, 0x30000);
	CHECK_MEM(fake.call[1].data, start, sizeof(start));
	gmem_launch_free(launch);

	fake.sev_err = -ENOENT;
	fake.ncalls = 0;
	CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_SNP, NULL, &launch), -ENOENT);
	CHECK_HAS(gmem_last_error(), "/dev/sev");
	CHECK_EQ(fake.ncalls, 0);
	fake_tear_down();
}

TEST(snp_start_may_be_the_callers)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts), .flags = GMEM_LAUNCH_NOT_STARTED };
	struct gmem_snp_launch_start start = { .policy = 0x30001, .gosvw = { 7 } };
	struct gmem_launch *launch;
	uint64_t status = 1;

	fake_set_up(GMEM_VM_SNP);
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_SNP, &opts, &launch));
	CHECK_EQ(fake.ncalls, 1);
	check_sev_cmd(0, 22);
	CHECK_OK(gmem_launch_command(launch, -1, 100, 0, &start, &status));
	CHECK_EQ(status, 0);
	check_sev_cmd(1, 100);
	CHECK_EQ(fake.call[1].data_at, (uintptr_t)&start);
	CHECK_MEM(fake.call[1].data, &start, 64);
	/* Of vCPUs KVM has none, and the flags are padding there. */
	CHECK_ERR(gmem_launch_command(launch, 0, 101, 0, &start, NULL), -ENOTTY);
	CHECK_EQ(fake.ncalls, 2);
	CHECK_OK(gmem_launch_command(launch, -1, 100, 77, &start, NULL));
	check_sev_cmd(2, 100);
	gmem_launch_free(launch);
	fake_tear_down();
}

/* A beginning that fails leaves nothing behind, whichever of the two it was. */
TEST(snp_beginning_fails)
{
	static const struct {
		struct fake_answer answer;
		const char *text;
	} of[] = {
		{ { .err = -EIO, .status = 0x07 }, "0x7, POLICY_FAILURE" },
		{ { .err = -EIO, .status = 0x17 }, "0x17, RESOURCE_LIMIT" },
		{ { .err = -ENOTTY }, "not of type KVM_X86_SNP_VM" },
		{ { .err = -EINVAL }, "" },
		{ { .err = -EBADF }, "sev_fd is not /dev/sev" },
		{ { .err = -EPERM }, "takes no commands of SEV" },
		{ { .err = -EFAULT }, "Bad address" },
		{ { .err = -ENODEV, .status = 0xffffffff }, "No such device" },
		{ { .err = -EBUSY }, "busy" },
	};
	static const char *const invalid[] = { "sev_features", "policy" };
	const struct fake_answer good = { 0 };
	struct gmem_launch *launch = NULL;

	for (unsigned int at = 0; at < 2; at++) {
		for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
			const struct fake_answer script[2] = { at ? good : of[i].answer, of[i].answer };

			fake_set_up(GMEM_VM_SNP);
			fake_script(2, script);
			CHECK_ERR(gmem_launch_create_kvm(fake.fd[FAKE_VM], GMEM_VM_SNP, NULL, &launch),
				  of[i].answer.err);
			CHECK_EQ(fake.ncalls, at + 1);
			CHECK_HAS(gmem_last_error(), at ? "KVM_SEV_SNP_LAUNCH_START" : "KVM_SEV_INIT2");
			CHECK_HAS(gmem_last_error(), "gmem_launch_create_kvm");
			CHECK_HAS(gmem_last_error(), of[i].answer.err == -EINVAL ? invalid[at] : of[i].text);
			CHECK(!launch);
			fake_tear_down();
		}
	}
}

TEST(snp_every_page_type)
{
	struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);
	static const enum gmem_launch_page types[] = { GMEM_LAUNCH_NORMAL, GMEM_LAUNCH_ZERO, GMEM_LAUNCH_UNMEASURED,
						       GMEM_LAUNCH_SECRETS, GMEM_LAUNCH_CPUID };
	static const uint8_t values[] = { 1, 3, 4, 5, 6 };

	for (unsigned int i = 0; i < 5; i++) {
		const void *from = types[i] == GMEM_LAUNCH_ZERO ? NULL : src + P;

		CHECK_EQ(gmem_launch_update(launch, GPA + i * P, from, 2, types[i]), 2);
		CHECK_EQ(fake.ncalls, i + 1);
		check_update(i, GPA / P + i, from, 2 * P, values[i]);
	}
	/* What is wrong by itself is not said to KVM: it would be -EINVAL there, or not be noticed. */
	CHECK_ERR(gmem_launch_update(launch, GPA + 1, src, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src + 16, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 0, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, (enum gmem_launch_page)2), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_ZERO), -EINVAL);
	CHECK_ERR(gmem_launch_update(launch, GPA, NULL, 1, GMEM_LAUNCH_SECRETS), -EINVAL);
	CHECK_EQ(fake.ncalls, 5);
	CHECK_ERR(gmem_launch_extend(launch, GPA, P), -EOPNOTSUPP);
	CHECK_ERR(gmem_launch_digest(launch, src), -EOPNOTSUPP);
	CHECK_EQ(fake.ncalls, 5);
	gmem_launch_free(launch);
	fake_tear_down();
}

/* KVM stops after any number of pages, once or twice, and is asked for the rest, which it left in the structure. */
TEST(snp_progress_in_every_position)
{
	for (unsigned int zero = 0; zero < 2; zero++) {
		const void *from = zero ? NULL : src;
		enum gmem_launch_page type = zero ? GMEM_LAUNCH_ZERO : GMEM_LAUNCH_NORMAL;

		for (uint64_t a = 1; a < 8; a++) {
			for (uint64_t b = 1; a + b <= 8; b++) {
				const struct fake_answer script[2] = { { .done = a }, { .done = b } };
				struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

				fake_script(2, script);
				CHECK_EQ(gmem_launch_update(launch, GPA, from, 8, type), 8);
				CHECK_EQ(fake.ncalls, a + b < 8 ? 3 : 2);
				check_update(0, GPA / P, from, 8 * P, (uint8_t)type);
				check_update(1, GPA / P + a, zero ? NULL : src + a * P, (8 - a) * P, (uint8_t)type);
				if (a + b < 8)
					check_update(2, GPA / P + a + b, zero ? NULL : src + (a + b) * P,
						     (8 - a - b) * P, (uint8_t)type);
				CHECK_EQ(gmem_launch_status(launch), 0);
				gmem_launch_free(launch);
				fake_tear_down();
			}
		}
	}
}

/* KVM folds all it has into -EIO, and only of the first page: what is done stays told. */
TEST(snp_refused_in_every_position)
{
	for (uint64_t k = 0; k < 8; k++) {
		const struct fake_answer script[2] = { { .done = k }, { .err = -EIO, .status = 0x1a } };
		struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

		fake_script(k ? 2 : 1, k ? script : script + 1);
		if (k) {
			CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), k);
		} else {
			CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), -EIO);
			CHECK_HAS(gmem_last_error(), "gpa 0x7654000");
			CHECK_HAS(gmem_last_error(), "0x1a, INVALID_PAGE_STATE");
		}
		CHECK_EQ(fake.ncalls, k ? 2 : 1);
		CHECK_EQ(gmem_launch_status(launch), 0x1a);
		gmem_launch_free(launch);
		fake_tear_down();
	}
}

TEST(snp_firmware_not_asked)
{
	static const struct fake_answer script[] = {
		{ .err = -EIO, .status = 0x16 },
		{ .err = -EIO },
		{ .err = -EIO, .status = 0xffffffff },
		{ .err = -EINVAL },
		{ .err = -EFAULT },
		{ .err = -EIO, .status = 0x4242 },
	};
	static const char *const text[] = { "INVALID_PARAM", "not asked",   "not asked",
					    "guest_memfd",   "Bad address", "0x4242, unknown" };
	static const uint64_t status[] = { 0x16, 0, 0, 0, 0, 0x4242 };
	struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

	fake_script(6, script);
	for (unsigned int i = 0; i < 6; i++) {
		CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), script[i].err);
		CHECK_HAS(gmem_last_error(), text[i]);
		CHECK_HAS(gmem_last_error(), "KVM_SEV_SNP_LAUNCH_UPDATE");
		CHECK_EQ(gmem_launch_status(launch), status[i]);
	}
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST(snp_busy_is_asked_again)
{
	const struct fake_answer script[] = {
		{ .err = -EAGAIN }, { .err = -EAGAIN }, { .done = 3 }, { .err = -EAGAIN }
	};
	struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

	fake_script(4, script);
	CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), 8);
	CHECK_EQ(fake.ncalls, 5);
	check_update(2, GPA / P, src, 8 * P, 1);
	check_update(4, GPA / P + 3, src + 3 * P, 5 * P, 1);

	/* Not for ever. */
	fake_script(1, script + 2);
	fake.for_ever.err = -EAGAIN;
	CHECK_EQ(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), 3);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 8, GMEM_LAUNCH_NORMAL), -EAGAIN);
	gmem_launch_free(launch);
	fake_tear_down();
}

static void more_left(uint8_t *data)
{
	put(data, 8, get(data, 8) - 2);
	put(data + 8, 8, get(data + 8, 8) - 2 * P);
	put(data + 16, 8, get(data + 16, 8) + 2 * P);
}

static void less_than_none(uint8_t *data)
{
	put(data + 16, 8, -P);
}

static void half_a_page(uint8_t *data)
{
	put(data + 8, 8, get(data + 8, 8) - 8);
	put(data + 16, 8, get(data + 16, 8) + 8);
}

static void another_gfn(uint8_t *data)
{
	put(data, 8, get(data, 8) + 1);
}

static void another_source(uint8_t *data)
{
	put(data + 8, 8, get(data + 8, 8) - P);
}

static void nothing(uint8_t *data)
{
}

/* A KVM that is mad: no answer may count backwards, go on for ever, or launch what was not asked for. */
TEST(snp_progress_that_cannot_be)
{
	const fake_change mad[] = { more_left, less_than_none, half_a_page, another_gfn, another_source, nothing };

	for (size_t i = 0; i < sizeof(mad) / sizeof(mad[0]); i++) {
		struct fake_answer script[2] = { { .done = 2 }, { .done = mad[i] == nothing ? 0 : 1, .then = mad[i] } };
		struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

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

static void correct(uint8_t *data)
{
	memset((void *)(uintptr_t)get(data + 8, 8), 0x3c, P);
}

TEST(snp_cpuid_table_is_corrected)
{
	const struct fake_answer script[] = { { .err = -EIO, .status = 0x16, .then = correct } };
	struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);

	memset(src, 0xff, 2 * P);
	fake_script(1, script);
	CHECK_ERR(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_CPUID), -EIO);
	CHECK_HAS(gmem_last_error(), "INVALID_PARAM: the CPUID table, which now is what it takes");
	CHECK_EQ(gmem_launch_status(launch), 0x16);
	CHECK(src[0] == 0x3c && src[P - 1] == 0x3c && src[P] == 0xff);
	CHECK_EQ(gmem_launch_update(launch, GPA, src, 1, GMEM_LAUNCH_CPUID), 1);
	check_update(0, GPA / P, src, P, 6);
	check_update(1, GPA / P, src, P, 6);
	gmem_launch_free(launch);
	fake_tear_down();
}

TEST(snp_finish)
{
	struct gmem_launch_finish finish = { .size = sizeof(finish), .id_block = src, .id_auth = src + P };
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };
	struct gmem_launch *launch = fake_launch(GMEM_VM_SNP);
	const struct fake_answer busy[] = { { .err = -EBUSY }, { .err = -EIO, .status = 0x0b } };
	uint8_t want[88] = { 0 }, none[88] = { 0 };

	vcpu.kvm_vcpu = fake.fd[FAKE_VCPU0];
	CHECK_OK(gmem_launch_add_vcpu(launch, &vcpu));
	CHECK_EQ(fake.ncalls, 0);
	fake_script(2, busy);
	CHECK_ERR(gmem_launch_finish(launch, NULL), -EBUSY);
	CHECK_HAS(gmem_last_error(), "a vCPU is being made");
	check_sev_cmd(0, 102);
	CHECK_MEM(fake.call[0].data, none, 88);

	for (unsigned int i = 0; i < 32; i++)
		finish.host_data[i] = want[19 + i] = (uint8_t)(i + 1);
	CHECK_ERR(gmem_launch_finish(launch, &finish), -EIO);
	CHECK_HAS(gmem_last_error(), "0xb, BAD_MEASUREMENT");
	CHECK_EQ(gmem_launch_status(launch), 0x0b);
	check_sev_cmd(1, 102);
	put(want, 8, (uintptr_t)src);
	put(want + 8, 8, (uintptr_t)src + P);
	want[16] = 1;
	CHECK_MEM(fake.call[1].data, want, 88);

	finish.auth_key_en = finish.vcek_disabled = true;
	CHECK_OK(gmem_launch_finish(launch, &finish));
	want[17] = want[18] = 1;
	check_sev_cmd(2, 102);
	CHECK_MEM(fake.call[2].data, want, 88);
	CHECK_ERR(gmem_launch_add_vcpu(launch, &vcpu), -EBUSY);
	finish.id_auth = NULL;
	CHECK_ERR(gmem_launch_finish(launch, &finish), -EINVAL);
	CHECK_EQ(fake.ncalls, 3);
	gmem_launch_free(launch);
	fake_tear_down();
}
