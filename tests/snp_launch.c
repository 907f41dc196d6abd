/* SPDX-License-Identifier: MIT */
/* KVM's part in an SNP launch: its checks, what it folds into EIO, how far it says it came. */
#include "snp_util.h"

#include <sys/mman.h>
#include <sys/wait.h>

#define START GMEM_SNP_CMD_LAUNCH_START
#define UPDATE GMEM_SNP_CMD_LAUNCH_UPDATE
#define FINISH GMEM_SNP_CMD_LAUNCH_FINISH
#define GFN (LOW_GPA / PG)

static const struct gmem_launch_opts not_started = { .size = sizeof(not_started), .flags = GMEM_LAUNCH_NOT_STARTED };

static _Alignas(4096) unsigned char pages[8 * PG];

/* The command's errno; `*status` is what the firmware answered. */
static int command(struct snp *s, uint32_t id, void *data, uint64_t *status)
{
	*status = 0xdead;
	return gmem_launch_command(s->launch, -1, id, 0, data, status);
}

#define CHECK_COMMAND(s, id, data, err, st)                       \
	do {                                                      \
		uint64_t tap_status;                              \
		CHECK_EQ(command(s, id, data, &tap_status), err); \
		CHECK_EQ(tap_status, st);                         \
	} while (0)

static struct gmem_snp_launch_update update(uint64_t page, uint64_t npages, uint8_t type)
{
	return (struct gmem_snp_launch_update){
		.gfn_start = GFN + page, .uaddr = (uintptr_t)pages, .len = npages * PG, .type = type
	};
}

/* ---- LAUNCH_START */

TEST(launch_start)
{
	struct gmem_snp_launch_start p = { .policy = 0x30000 };
	struct gmem_snp_launch_update u = update(0, 1, 1);
	struct gmem_snp_launch_finish f = { .flags = 0 };
	struct snp s;

	snp_up(&s, &not_started, 0);
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	CHECK_COMMAND(&s, FINISH, &f, -EINVAL, 0);
	CHECK_COMMAND(&s, START, NULL, -EFAULT, 0);
	p.flags = 1;
	CHECK_COMMAND(&s, START, &p, -EINVAL, 0);
	p.flags = 0;
	/* A migration agent; bits of newer firmware; the bit that must be one. */
	p.policy = 0x30000 | 1 << 18;
	CHECK_COMMAND(&s, START, &p, -EINVAL, 0);
	p.policy = 0x30000 | 1 << 21;
	CHECK_COMMAND(&s, START, &p, -EINVAL, 0);
	p.policy = 0x10000;
	CHECK_COMMAND(&s, START, &p, -EINVAL, 0);
	/* What KVM lets pass, and the firmware refuses: an interface that it has not; no SMT. Nothing is left of it. */
	p.policy = 0x30000 | 1 << 8 | 56;
	CHECK_COMMAND(&s, START, &p, -EIO, GMEM_SEV_RET_POLICY_FAILURE);
	p.policy = 0x20000;
	CHECK_COMMAND(&s, START, &p, -EIO, GMEM_SEV_RET_POLICY_FAILURE);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_POLICY_FAILURE);
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	p.policy = 0x30000 | 1 << 19 | 1 << 20 | 1 << 8 | 55;
	CHECK_COMMAND(&s, START, &p, 0, 0);
	CHECK_COMMAND(&s, START, &p, -EINVAL, 0);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	snp_down(&s);
}

TEST(launch_create)
{
	struct gmem_launch_opts o = { .size = sizeof(o), .sev_features = 1 };
	struct gmem_launch *launch = NULL;
	struct gmem_vm *vm = new_vm(GMEM_VM_SNP);

	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EINVAL);
	o.sev_features = 2;
	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EINVAL);
	o.sev_features = 0x220;
	o.policy = 0x20000;
	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EIO);
	CHECK_HAS(gmem_last_error(), "POLICY_FAILURE");
	o.policy = 1;
	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EINVAL);
	o.policy = 0;
	o.flags = 2;
	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EINVAL);
	CHECK(!launch);
	o.flags = 0;
	CHECK_OK(gmem_launch_create(vm, &o, &launch));
	CHECK_ERR(gmem_launch_create(vm, &o, &launch), -EEXIST);
	gmem_launch_free(launch);
	CHECK_ERR(gmem_launch_create(vm, NULL, &launch), -EEXIST);
	gmem_vm_free(vm);
}

TEST(other_commands)
{
	uint64_t status;
	struct snp s;

	snp_up(&s, NULL, 0);
	for (uint32_t id = 0; id < 100; id++)
		CHECK_COMMAND(&s, id, pages, -EPERM, 0);
	CHECK_COMMAND(&s, 103, pages, -EINVAL, 0);
	CHECK_COMMAND(&s, UINT32_MAX, pages, -EINVAL, 0);
	CHECK_EQ(gmem_launch_command(s.launch, 0, UPDATE, 0, pages, &status), -ENOTTY);
	gmem_vm_free(s.vm);
	CHECK_COMMAND(&s, UPDATE, pages, -EIO, 0);
	s.vm = NULL;
	snp_down(&s);
}

/* ---- LAUNCH_UPDATE */

TEST(update_checks)
{
	struct gmem_snp_launch_update u = update(0, 1, 1), *read_only;
	char *hva = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct gmem_memslot m = { .size = sizeof(m), .slot = 9, .gpa = 0x100000, .len = PG, .hva = hva };
	struct snp s;

	CHECK(hva != MAP_FAILED);
	snp_up(&s, NULL, 0);
	CHECK_OK(gmem_vm_set_slot(s.vm, &m));
	CHECK_COMMAND(&s, UPDATE, NULL, -EFAULT, 0);
	u.len = 0;
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	u.len = PG + 1;
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	u.len = PG;
	u.flags = 1;
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	u.flags = 0;
	for (int type = 0; type < 256; type++) {
		u.type = (uint8_t)type;
		if (type != 1 && (type < 3 || type > 6))
			CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	}
	for (uint8_t type = 1; type < 7; type++) {
		u.type = type;
		u.uaddr = 0;
		if (type != 3)
			CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
		u.uaddr = (uintptr_t)pages + 8;
		if (type != 3)
			CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	}
	u = update(LOW_PAGES, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	u.gfn_start = UINT64_MAX;
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	/* A slot without a file; in one with, the last page. */
	u.gfn_start = 0x100;
	CHECK_COMMAND(&s, UPDATE, &u, -EINVAL, 0);
	u = update(LOW_PAGES - 1, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	/* What was done is done, whether or not it can be told. */
	read_only = (struct gmem_snp_launch_update *)hva;
	*read_only = update(0, 1, 1);
	CHECK_EQ(mprotect(hva, PG, PROT_READ), 0);
	CHECK_COMMAND(&s, UPDATE, read_only, -EFAULT, 0);
	CHECK_STR(state_of(&s, 0), "GUEST-VALID");
	snp_down(&s);
	munmap(hva, PG);
}

/* The source of a ZERO page is not looked at, and does not go on. */
TEST(zero_has_no_source)
{
	struct gmem_snp_launch_update u = update(0, 3, 3);
	struct snp s;

	snp_up(&s, NULL, 0);
	u.uaddr = 0x123;
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.uaddr, 0x123);
	CHECK_EQ(u.len, 0);
	CHECK_EQ(u.gfn_start, GFN + 3);
	snp_down(&s);
}

/* Whatever happens to the first page is EIO, and the firmware's status says whether it was asked. */
TEST(first_page_folds)
{
	struct gmem_snp_launch_update u;
	struct snp s;

	snp_up(&s, NULL, 0);
	u = update(0, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	/* Launched before. */
	u = update(0, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, pages, 1, GMEM_LAUNCH_NORMAL), -EEXIST);
	/* Shared. */
	to_shared(s.low, PG, PG);
	u = update(1, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, pages, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	/* A source that cannot be read. */
	u = update(2, 1, 1);
	u.uaddr = PG;
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + 2 * PG, (void *)PG, 1, GMEM_LAUNCH_NORMAL), -EFAULT);
	/* A signal. */
	u = update(2, 1, 1);
	gmem_vm_cancel(s.vm);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	gmem_vm_cancel(s.vm);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + 2 * PG, pages, 1, GMEM_LAUNCH_NORMAL), -EINTR);
	CHECK_STR(state_of(&s, 2), "HYPERVISOR");
	/* The firmware: the guest runs. */
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	u = update(2, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, GMEM_SEV_RET_INVALID_GUEST_STATE);
	CHECK_EQ(u.len, PG);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + 2 * PG, pages, 1, GMEM_LAUNCH_NORMAL), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_INVALID_GUEST_STATE);
	CHECK_STR(state_of(&s, 2), "HYPERVISOR");
	/* The file is closed. */
	gmem_file_free(s.low);
	s.low = NULL;
	u = update(3, 1, 1);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + 3 * PG, pages, 1, GMEM_LAUNCH_NORMAL), -EFAULT);
	snp_down(&s);
}

/* A later page's failure is told by the next call. */
TEST(progress)
{
	struct gmem_snp_launch_update u = update(0, 5, 1);
	struct snp s;

	snp_up(&s, NULL, 0);
	to_shared(s.low, 3 * PG, PG);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.gfn_start, GFN + 3);
	CHECK_EQ(u.len, 2 * PG);
	CHECK_EQ(u.uaddr, (uintptr_t)pages + 3 * PG);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(u.gfn_start, GFN + 3);
	to_private(s.low, 3 * PG, PG);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.len, 0);
	CHECK_EQ(u.gfn_start, GFN + 5);
	snp_down(&s);
}

/* One call goes to the end of a slot: its caller goes on until nothing is left. */
TEST(slots_end)
{
	struct gmem_snp_launch_update u = update(LOW_PAGES - 2, 5, 1);
	struct gmem_file *more = make_file(4 * PG, GMEM_FILE_INIT_PRIVATE);
	uint8_t one[GMEM_LAUNCH_DIGEST_LEN], two[GMEM_LAUNCH_DIGEST_LEN];
	struct snp s, other;
	int calls = 0;

	for (size_t i = 0; i < sizeof(pages); i++)
		pages[i] = (unsigned char)(i / PG + i);
	snp_up(&s, NULL, 0);
	CHECK_OK(set_slot(s.vm, 7, LOW_GPA + LOW_PAGES * PG, 4 * PG, more, 0));
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.len, 3 * PG);
	CHECK_EQ(u.gfn_start, GFN + LOW_PAGES);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.len, 0);
	CHECK_OK(gmem_launch_digest(s.launch, one));
	snp_down(&s);
	gmem_file_free(more);
	more = make_file(4 * PG, GMEM_FILE_INIT_PRIVATE);
	snp_up(&other, NULL, 0);
	CHECK_OK(set_slot(other.vm, 7, LOW_GPA + LOW_PAGES * PG, 4 * PG, more, 0));
	CHECK_EQ(gmem_launch_update(other.launch, LOW_GPA + (LOW_PAGES - 2) * PG, pages, 5, GMEM_LAUNCH_NORMAL), 5);
	CHECK_OK(gmem_launch_digest(other.launch, two));
	CHECK_MEM(one, two, sizeof(one));
	/* To where no slot is any more. */
	u = update(LOW_PAGES + 3, 1, 4);
	u.len = UINT64_MAX & ~(PG - 1);
	while (u.len && !gmem_launch_command(other.launch, -1, UPDATE, 0, &u, NULL))
		calls++;
	CHECK_EQ(calls, 1);
	CHECK_EQ(u.gfn_start, GFN + LOW_PAGES + 4);
	snp_down(&other);
	gmem_file_free(more);
}

/* ---- CPUID pages */

static void wrong_table(void)
{
	uint32_t *words = (uint32_t *)pages;

	memset(pages, 0, PG);
	words[0] = 1;
	words[4] = 0xfff0; /* a leaf that there is not */
	words[4 + 6] = 1;
}

TEST(cpuid_that_could_not_be_corrected)
{
	struct gmem_snp_launch_update u = update(0, 1, 6);
	struct snp s;

	if (tap_emulator())
		SKIP("kernel", "%s does not ask the kernel whether memory can be written to", tap_emulator());
	snp_up(&s, NULL, 0);
	wrong_table();
	CHECK_EQ(mprotect(pages, PG, PROT_READ), 0);
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, pages, 1, GMEM_LAUNCH_CPUID), -EFAULT);
	CHECK_EQ(mprotect(pages, PG, PROT_READ | PROT_WRITE), 0);
	snp_down(&s);
}

TEST(cpuid)
{
	struct gmem_snp_launch_update u = update(0, 1, 6);
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];
	struct snp s;

	snp_up(&s, NULL, 0);
	wrong_table();
	CHECK_OK(gmem_launch_digest(s.launch, before));
	CHECK_COMMAND(&s, UPDATE, &u, -EIO, GMEM_SEV_RET_INVALID_PARAM);
	CHECK_OK(gmem_launch_digest(s.launch, after));
	CHECK_MEM(before, after, sizeof(before));
	CHECK_STR(state_of(&s, 0), "HYPERVISOR");
	CHECK_EQ(((uint32_t *)pages)[0], 1);
	CHECK_EQ(((uint32_t *)pages)[4 + 6], 0);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_STR(state_of(&s, 0), "GUEST-VALID");
	/* Two in a row: the first is launched, the second refused, and only that one corrected. */
	memcpy(pages + PG, pages, PG);
	((uint32_t *)(pages + PG))[4 + 6] = 1;
	u = update(1, 2, 6);
	CHECK_COMMAND(&s, UPDATE, &u, 0, 0);
	CHECK_EQ(u.len, PG);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_INVALID_PARAM);
	CHECK_EQ(((uint32_t *)(pages + PG))[4 + 6], 0);
	snp_down(&s);
}

/* ---- SECRETS pages */

TEST(secrets)
{
	unsigned char one[PG], two[PG], other[PG];
	struct gmem_launch_opts opts = { .size = sizeof(opts) };
	struct snp s, t;

	memset(opts.gosvw, 'w', sizeof(opts.gosvw));
	snp_up(&s, &opts, 0);
	snp_up(&t, NULL, 0);
	memset(pages, 's', PG);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, pages, 1, GMEM_LAUNCH_SECRETS), 1);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, pages, 1, GMEM_LAUNCH_SECRETS), 1);
	CHECK_EQ(gmem_launch_update(t.launch, LOW_GPA, pages, 1, GMEM_LAUNCH_SECRETS), 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_launch_finish(t.launch, NULL));
	CHECK_OK(gmem_vcpu_load(s.vcpu, LOW_GPA | s.c, one, PG));
	CHECK_OK(gmem_vcpu_load(s.vcpu, (LOW_GPA + PG) | s.c, two, PG));
	CHECK_OK(gmem_vcpu_load(t.vcpu, LOW_GPA | t.c, other, PG));
	CHECK_EQ(one[0], 3);
	CHECK_MEM(one + 0x10, opts.gosvw, sizeof(opts.gosvw));
	CHECK_MEM(one, two, PG);
	/* TSC_FACTOR of an EPYC 9004 is 200. */
	CHECK_EQ(one[0x160], 200);
	/* Its keys are this guest's. */
	for (int i = 0; i < 4; i++)
		CHECK(memcmp(one + 0x20 + 32 * i, other + 0x20 + 32 * i, 32));
	/* The source told nobody, and the host is not told. */
	for (size_t i = 0; i < PG; i++)
		CHECK_EQ(pages[i], 's');
	CHECK_ERR(gmem_file_read(s.low, 0, two, PG), -EACCES);
	snp_down(&t);
	snp_down(&s);
}

/* ---- fork(2) */

static int in_child(struct snp *s)
{
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .snp = &snp };
	struct gmem_snp_launch_update u = update(1, 1, 1);
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_launch *launch;

	(void)gmem_snp_vcpu_reset(GMEM_VMM_QEMU, 0xfffffff0, 0x800f12, 1, &snp);
	if (gmem_launch_update(s->launch, LOW_GPA + PG, pages, 1, GMEM_LAUNCH_NORMAL) != -EIO)
		return 1;
	if (gmem_launch_command(s->launch, -1, UPDATE, 0, &u, NULL) != -EIO)
		return 2;
	if (gmem_launch_add_vcpu(s->launch, &vcpu) != -EIO)
		return 3;
	if (gmem_launch_digest(s->launch, digest) != -EIO)
		return 4;
	if (gmem_launch_finish(s->launch, NULL) != -EIO)
		return 5;
	return gmem_launch_create(s->vm, NULL, &launch) == -EIO ? 0 : 6;
}

/* A child is refused, also while another thread of its parent's is at the launch: then what it has is locked. */
TEST(child)
{
	int status;
	pid_t pid;
	struct snp s;

	snp_up(&s, NULL, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, pages, 1, GMEM_LAUNCH_NORMAL), 1);
	gmem_vm_lock_slots(s.vm);
	pid = fork();
	if (!pid)
		_exit(in_child(&s));
	gmem_vm_unlock_slots(s.vm);
	CHECK(pid > 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, pages, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	snp_down(&s);
}
