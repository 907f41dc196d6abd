/* SPDX-License-Identifier: MIT */
/* The end of an SNP launch: vCPUs are measured, an ID block is verified, and what comes after. */
#include "snp_util.h"

#include "snp_id.h"

#define FINISH GMEM_SNP_CMD_LAUNCH_FINISH
#define POLICY 0x30000ull
#define BSP_EIP 0xfffffff0u
#define AP_EIP 0x80b004u

/* From the empty digest: the VMSA of QEMU's first vCPU, an EPYC. */
#define SNP_VMSA "108432463da76821f35c5daf2f7aecc0ce9ce88652de5f70f638c7a0345c11f2f80025654b80e7be10a9fe0ee1b75f33"

static _Alignas(4096) unsigned char page[PG];

static int finish(struct snp *s, const struct gmem_snp_launch_finish *f, uint64_t *status)
{
	struct gmem_snp_launch_finish copy = *f;

	*status = 0xdead;
	return gmem_launch_command(s->launch, -1, FINISH, 0, &copy, status);
}

#define CHECK_FINISH(s, f, err, st)                       \
	do {                                              \
		uint64_t tap_status;                      \
		CHECK_EQ(finish(s, f, &tap_status), err); \
		CHECK_EQ(tap_status, st);                 \
	} while (0)

static const struct gmem_snp_context *context(struct snp *s)
{
	return guest_of(s)->context;
}

/* They are measured when the launch ends, in their order. */
TEST(vcpus)
{
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	static const uint8_t none[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_rmp_entry e;
	struct snp s;

	snp_up(&s, NULL, 0);
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &vcpu), -EINVAL);
	vcpu.snp = &snp;
	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, BSP_EIP, 0x800f12, 1, &snp));
	snp.size--;
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &vcpu), -EINVAL);
	snp.size++;
	snp.sev_features = 0x21;
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &vcpu), -EINVAL);
	CHECK_HAS(gmem_last_error(), "sev_features");
	snp.sev_features = 1;
	vcpu.size--;
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &vcpu), -EINVAL);
	vcpu.size++;
	CHECK_OK(gmem_launch_add_vcpu(s.launch, &vcpu));
	CHECK_OK(gmem_launch_digest(s.launch, digest));
	CHECK_MEM(digest, none, sizeof(none));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_digest(&s, SNP_VMSA);
	/* Its page is no memory of the guest's, nor of the host's. */
	e = gmem_rmp_lookup(&guest_of(&s)->rmp, gmem_snp_pfn(guest_of(&s)->vmsas[0].page));
	CHECK(e.vmsa && e.validated && !e.immutable);
	CHECK_EQ(e.gpa, 0xfffffffffull);
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &vcpu), -EBUSY);
	snp_down(&s);
}

TEST(vcpus_in_order)
{
	uint8_t one[GMEM_LAUNCH_DIGEST_LEN], two[GMEM_LAUNCH_DIGEST_LEN];
	struct snp s, t;

	snp_up(&s, NULL, 0);
	snp_up(&t, NULL, 0);
	add_vcpu(&s, BSP_EIP, 1);
	add_vcpu(&s, AP_EIP, 1);
	add_vcpu(&t, AP_EIP, 1);
	add_vcpu(&t, BSP_EIP, 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_launch_finish(t.launch, NULL));
	CHECK_OK(gmem_launch_digest(s.launch, one));
	CHECK_OK(gmem_launch_digest(t.launch, two));
	CHECK(memcmp(one, two, sizeof(one)));
	snp_down(&t);
	snp_down(&s);
}

TEST(checks)
{
	struct gmem_snp_launch_finish f = { .flags = 1 };
	struct gmem_launch_finish opts = { .size = sizeof(opts) };
	struct snp s;

	snp_up(&s, NULL, 0);
	CHECK_EQ(gmem_launch_command(s.launch, -1, FINISH, 0, NULL, NULL), -EFAULT);
	CHECK_FINISH(&s, &f, -EINVAL, 0);
	f.flags = 0;
	f.id_block_en = 1;
	CHECK_FINISH(&s, &f, -EINVAL, 0);
	f.id_block_uaddr = PG;
	CHECK_FINISH(&s, &f, -EFAULT, 0);
	f.id_block_uaddr = (uintptr_t)page;
	CHECK_FINISH(&s, &f, -EINVAL, 0);
	f.id_auth_uaddr = PG;
	CHECK_FINISH(&s, &f, -EFAULT, 0);
	opts.id_block = page;
	CHECK_ERR(gmem_launch_finish(s.launch, &opts), -EINVAL);
	opts.id_block = NULL;
	opts.auth_key_en = true;
	CHECK_ERR(gmem_launch_finish(s.launch, &opts), -EINVAL);
	opts.size--;
	CHECK_ERR(gmem_launch_finish(s.launch, &opts), -EINVAL);
	/* None of it has ended the launch. */
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	snp_down(&s);
}

/* The digest at the end, which the owner knows before. */
static void know(uint8_t *ret)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	add_vcpu(&s, BSP_EIP, 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_launch_digest(s.launch, ret));
	snp_down(&s);
}

static void up_with_page(struct snp *s, bool vcpu)
{
	snp_up(s, NULL, 0);
	CHECK_EQ(gmem_launch_update(s->launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	if (vcpu)
		add_vcpu(s, BSP_EIP, 1);
}

TEST(id_block)
{
	EVP_PKEY *key = snp_id_new_key(), *author = snp_id_new_key();
	uint8_t ld[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_launch_finish opts = { .size = sizeof(opts), .vcek_disabled = true };
	struct snp_id id;
	struct snp s;

	know(ld);
	snp_id_make(&id, ld, POLICY, key, author);
	opts.id_block = id.block;
	opts.id_auth = id.auth;
	opts.auth_key_en = true;
	memset(opts.host_data, 'h', sizeof(opts.host_data));
	up_with_page(&s, true);
	CHECK_OK(gmem_launch_finish(s.launch, &opts));
	CHECK(context(&s)->id_block_en && context(&s)->author_key_en && context(&s)->vcek_dis);
	CHECK_EQ(context(&s)->id.guest_svn, 0x51110077);
	CHECK_MEM(context(&s)->host_data, opts.host_data, sizeof(opts.host_data));
	snp_down(&s);
	/* The author's signature is looked at only if it is said to be there. */
	id.auth[0x680] ^= 1;
	up_with_page(&s, true);
	CHECK_ERR(gmem_launch_finish(s.launch, &opts), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_BAD_SIGNATURE);
	snp_down(&s);
	opts.auth_key_en = false;
	up_with_page(&s, true);
	CHECK_OK(gmem_launch_finish(s.launch, &opts));
	CHECK(!context(&s)->author_key_en);
	snp_down(&s);
	EVP_PKEY_free(key);
	EVP_PKEY_free(author);
}

static void refused(const struct snp_id *id, uint64_t status)
{
	struct gmem_snp_launch_finish f = { .id_block_en = 1,
					    .id_block_uaddr = (uintptr_t)id->block,
					    .id_auth_uaddr = (uintptr_t)id->auth };
	struct snp s;

	up_with_page(&s, true);
	CHECK_FINISH(&s, &f, -EIO, status);
	/* No guest comes of it; its vCPUs are measured once. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, LOW_GPA | s.c, page, 1), -EINVAL);
	CHECK_FINISH(&s, &f, -EINVAL, 0);
	snp_down(&s);
}

TEST(id_block_refused)
{
	EVP_PKEY *key = snp_id_new_key();
	uint8_t ld[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_snp_launch_finish f = { .id_block_en = 1 };
	struct snp_id id;
	struct snp s;

	know(ld);
	ld[47] ^= 1;
	snp_id_make(&id, ld, POLICY + 1, key, NULL);
	refused(&id, GMEM_SEV_RET_BAD_MEASUREMENT);
	ld[47] ^= 1;
	snp_id_make(&id, ld, POLICY + 1, key, NULL);
	refused(&id, GMEM_SEV_RET_POLICY_FAILURE);
	snp_id_make(&id, ld, POLICY, key, NULL);
	id.auth[0] = 2;
	refused(&id, GMEM_SEV_RET_INVALID_PARAM);
	snp_id_make(&id, ld, POLICY, key, NULL);
	id.block[0x30] ^= 1;
	refused(&id, GMEM_SEV_RET_BAD_SIGNATURE);
	/* Without vCPUs one may try again. */
	up_with_page(&s, false);
	snp_id_make(&id, ld, POLICY, key, NULL);
	f.id_block_uaddr = (uintptr_t)id.block;
	f.id_auth_uaddr = (uintptr_t)id.auth;
	CHECK_FINISH(&s, &f, -EIO, GMEM_SEV_RET_BAD_MEASUREMENT);
	CHECK_OK(gmem_launch_digest(s.launch, ld));
	snp_id_make(&id, ld, POLICY, key, NULL);
	CHECK_FINISH(&s, &f, 0, 0);
	snp_down(&s);
	EVP_PKEY_free(key);
}

/* What the firmware and KVM answer once the guest can run. */
TEST(afterwards)
{
	struct gmem_snp_launch_start start = { .policy = POLICY };
	struct gmem_snp_launch_finish f = { .flags = 0 };
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];
	struct snp s;

	up_with_page(&s, false);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_launch_digest(s.launch, before));
	CHECK_EQ(gmem_launch_command(s.launch, -1, GMEM_SNP_CMD_LAUNCH_START, 0, &start, NULL), -EINVAL);
	CHECK_FINISH(&s, &f, -EIO, GMEM_SEV_RET_INVALID_GUEST_STATE);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, page, 1, GMEM_LAUNCH_NORMAL), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_INVALID_GUEST_STATE);
	/* It is the host's as before, and the guest may take it. */
	CHECK_STR(state_of(&s, 1), "HYPERVISOR");
	CHECK_ERR(gmem_vcpu_load(s.vcpu, (LOW_GPA + PG) | s.c, page, 1), -EACCES);
	CHECK_STR(state_of(&s, 1), "GUEST-INVALID");
	CHECK_OK(gmem_launch_digest(s.launch, after));
	CHECK_MEM(before, after, sizeof(before));
	/* The launch goes, the guest stays. */
	gmem_launch_free(s.launch);
	s.launch = NULL;
	CHECK_OK(gmem_vcpu_load(s.vcpu, LOW_GPA | s.c, page, 1));
	snp_down(&s);
}
