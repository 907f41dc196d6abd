/* SPDX-License-Identifier: MIT */
/* The secrets page, byte by byte, and its keys. */
#include "tap.h"

#include <sys/random.h>

#include "launch/snp/secrets.h"

#define PAGE 4096u

/* What getrandom(2) is to answer next, -errno or a length; 0: the truth. */
static ssize_t answers[4];

ssize_t __real_getrandom(void *buf, size_t len, unsigned int flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags);

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags)
{
	ssize_t answer = answers[0];

	memmove(answers, answers + 1, sizeof(answers) - sizeof(answers[0]));
	answers[3] = 0;
	if (!answer)
		return __real_getrandom(buf, len, flags);
	errno = answer < 0 ? (int)-answer : 0;
	return answer < 0 ? -1 : answer;
}

TEST(every_field_has_its_place)
{
	struct gmem_snp_secrets s = { .imi_en = true, .fms = 0x04030201, .tsc_factor = 0x14131211 };
	static const uint8_t head[16] = { 3, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4 };
	static const uint8_t factor[4] = { 0x11, 0x12, 0x13, 0x14 };
	uint8_t page[PAGE], zero[PAGE] = { 0 };
	uint64_t seed = tap_seed();

	for (unsigned int i = 0; i < sizeof(s.vmpck); i++)
		s.vmpck[i / 32][i % 32] = (uint8_t)(tap_rand(&seed) | 1);
	for (unsigned int i = 0; i < sizeof(s.gosvw); i++)
		s.gosvw[i] = (uint8_t)(0x20 + i);
	for (unsigned int i = 0; i < sizeof(s.vmsa_tweak_bitmap); i++)
		s.vmsa_tweak_bitmap[i] = (uint8_t)(0x80 + i);
	memset(page, 0xa5, PAGE);
	gmem_snp_secrets_build(&s, page);
	CHECK_MEM(page, head, 16);
	CHECK_MEM(page + 0x10, s.gosvw, 16);
	CHECK_MEM(page + 0x20, s.vmpck[0], 32);
	CHECK_MEM(page + 0x40, s.vmpck[1], 32);
	CHECK_MEM(page + 0x60, s.vmpck[2], 32);
	CHECK_MEM(page + 0x80, s.vmpck[3], 32);
	CHECK_MEM(page + 0xa0, zero, 0x60);
	CHECK_MEM(page + 0x100, s.vmsa_tweak_bitmap, 64);
	CHECK_MEM(page + 0x140, zero, 0x20);
	CHECK_MEM(page + 0x160, factor, 4);
	CHECK_MEM(page + 0x164, zero, PAGE - 0x164);
}

TEST(what_is_not_said_is_zero)
{
	static const struct gmem_snp_secrets s;
	uint8_t page[PAGE], want[PAGE] = { 3 };

	memset(page, 0xa5, PAGE);
	gmem_snp_secrets_build(&s, page);
	CHECK_MEM(page, want, PAGE);
}

TEST(keys_are_random)
{
	struct gmem_snp_secrets a = { .fms = 1 }, b = { .fms = 2 };

	CHECK_OK(gmem_snp_secrets_make_keys(&a));
	answers[0] = -EINTR;
	answers[1] = -EINTR;
	CHECK_OK(gmem_snp_secrets_make_keys(&b));
	/* Two of eight keys are equal once in 2^250 runs. */
	for (unsigned int i = 0; i < 4; i++) {
		for (unsigned int j = 0; j < 4; j++)
			CHECK(memcmp(a.vmpck[i], b.vmpck[j], 32));
		for (unsigned int j = 0; j < i; j++)
			CHECK(memcmp(a.vmpck[i], a.vmpck[j], 32));
	}
	CHECK_EQ(a.fms, 1);
	CHECK_EQ(b.fms, 2);
}

TEST(without_random_numbers_there_are_no_keys)
{
	struct gmem_snp_secrets s, was;

	memset(&s, 7, sizeof(s));
	memcpy(&was, &s, sizeof(s));
	answers[0] = -ENOSYS;
	CHECK_ERR(gmem_snp_secrets_make_keys(&s), -ENOSYS);
	answers[0] = 127;
	CHECK_ERR(gmem_snp_secrets_make_keys(&s), -EIO);
	CHECK_MEM(&s, &was, sizeof(s));
}
