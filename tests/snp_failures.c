/* SPDX-License-Identifier: MIT */
/*
 * An SNP launch in which each allocation, each hash and the random numbers fail, one after the other: nothing is half
 * done, and to do it again is all that it takes.
 */
#include <openssl/evp.h>
#include <sys/random.h>

#include "snp_util.h"

#define FAR (0x600ull) /* page: another region of the table than the first */

/* The n-th next call fails; 0: none does. */
static unsigned int fail_at;
static bool failed;

static bool fails(void)
{
	if (!fail_at || --fail_at)
		return false;
	failed = true;
	return true;
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
int __real_posix_memalign(void **ret, size_t align, size_t n);
int __wrap_posix_memalign(void **ret, size_t align, size_t n);
ssize_t __real_getrandom(void *buf, size_t len, unsigned int flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags);
int __real_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);
int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);

void *__wrap_malloc(size_t n)
{
	return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	return fails() ? NULL : __real_realloc(p, n);
}

int __wrap_posix_memalign(void **ret, size_t align, size_t n)
{
	return fails() ? ENOMEM : __real_posix_memalign(ret, align, n);
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags)
{
	if (!fails())
		return __real_getrandom(buf, len, flags);
	errno = ENOSYS;
	return -1;
}

int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e)
{
	return fails() ? 0 : __real_EVP_Digest(data, len, md, n, t, e);
}

static _Alignas(4096) unsigned char pages[3 * PG];

struct machine {
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct gmem_launch *launch;
};

static uint64_t gpa_of(uint64_t page)
{
	return LOW_GPA + page * PG;
}

static int create(struct machine *m)
{
	return gmem_launch_create(m->vm, NULL, &m->launch);
}

static int normal(struct machine *m)
{
	return (int)gmem_launch_update(m->launch, gpa_of(0), pages, 1, GMEM_LAUNCH_NORMAL);
}

static int far(struct machine *m)
{
	return (int)gmem_launch_update(m->launch, gpa_of(FAR), pages, 1, GMEM_LAUNCH_UNMEASURED);
}

static int zero(struct machine *m)
{
	return (int)gmem_launch_update(m->launch, gpa_of(1), NULL, 1, GMEM_LAUNCH_ZERO);
}

static int secrets(struct machine *m)
{
	return (int)gmem_launch_update(m->launch, gpa_of(2), pages, 1, GMEM_LAUNCH_SECRETS);
}

static int cpuid(struct machine *m)
{
	static _Alignas(4096) unsigned char empty[PG];

	return (int)gmem_launch_update(m->launch, gpa_of(3), empty, 1, GMEM_LAUNCH_CPUID);
}

static int vcpu(struct machine *m)
{
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	const struct gmem_launch_vcpu v = { .size = sizeof(v), .snp = &snp };

	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, 0xfffffff0, 0x800f12, 1, &snp));
	return gmem_launch_add_vcpu(m->launch, &v);
}

static int finish(struct machine *m)
{
	return gmem_launch_finish(m->launch, NULL);
}

static int (*const steps[])(struct machine *) = { create, normal, far, zero, secrets, cpuid, vcpu, finish };
#define NSTEPS (sizeof(steps) / sizeof(steps[0]))

static void begin(struct machine *m)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = LOW_GPA, .len = 2 * FAR * PG };

	*m = (struct machine){ .file = make_file(slot.len, GMEM_FILE_INIT_PRIVATE), .vm = new_vm(GMEM_VM_SNP) };
	slot.file = m->file;
	CHECK_OK(gmem_vm_set_slot(m->vm, &slot));
}

static void end(struct machine *m, uint8_t digest[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_vcpu *v = new_vcpu(m->vm);
	uint64_t c = gmem_vm_alias_bit(m->vm);

	CHECK_OK(gmem_launch_digest(m->launch, digest));
	CHECK_EQ(load64(v, gpa_of(0) | c), 0x7070707070707070ull);
	CHECK_EQ(load64(v, gpa_of(1) | c), 0);
	CHECK_EQ(load64(v, gpa_of(2) | c), 3);
	CHECK_EQ(load64(v, gpa_of(FAR) | c), 0x7070707070707070ull);
	gmem_vcpu_free(v);
	gmem_launch_free(m->launch);
	gmem_vm_free(m->vm);
	gmem_file_free(m->file);
}

static void digest_of(const struct machine *m, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	memset(ret, 0, GMEM_LAUNCH_DIGEST_LEN);
	if (m->launch)
		CHECK_OK(gmem_launch_digest(m->launch, ret));
}

/* False if so many calls are not made in the step. */
static bool step_fails(struct machine *m, size_t step, unsigned int n)
{
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];
	int err;

	digest_of(m, before);
	failed = false;
	fail_at = n;
	err = steps[step](m);
	fail_at = 0;
	if (!failed) {
		CHECK(err >= 0);
		return false;
	}
	if (err != -ENOMEM && (err != -EIO || (m->launch && !gmem_launch_status(m->launch))))
		FAIL("step %zu, call %u: %d, %s", step, n, err, gmem_last_error());
	digest_of(m, after);
	CHECK_MEM(before, after, sizeof(before));
	return true;
}

TEST_TIMEOUT(each_call, 60)
{
	uint8_t expected[GMEM_LAUNCH_DIGEST_LEN], digest[GMEM_LAUNCH_DIGEST_LEN];
	unsigned int failures = 0;
	struct machine m;

	memset(pages, 'p', sizeof(pages));
	begin(&m);
	for (size_t i = 0; i < NSTEPS; i++)
		CHECK(!step_fails(&m, i, 0));
	end(&m, expected);
	begin(&m);
	for (size_t i = 0; i < NSTEPS; i++) {
		unsigned int n = 1;

		while (step_fails(&m, i, n))
			n++;
		/* Each of them asks for something. */
		CHECK(n > 1);
		failures += n - 1;
	}
	end(&m, digest);
	CHECK_MEM(expected, digest, sizeof(digest));
	printf("%u failures\n", failures);
}

/* What came before it stays: the caller goes on behind it. */
TEST(in_the_middle)
{
	uint8_t expected[GMEM_LAUNCH_DIGEST_LEN], digest[GMEM_LAUNCH_DIGEST_LEN];
	struct snp s, t;
	int64_t n;

	snp_up(&s, NULL, 0);
	snp_up(&t, NULL, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, pages, 3, GMEM_LAUNCH_NORMAL), 3);
	CHECK_OK(gmem_launch_digest(s.launch, expected));
	for (unsigned int at = 1;; at++) {
		fail_at = at;
		failed = false;
		n = gmem_launch_update(t.launch, LOW_GPA, pages, 3, GMEM_LAUNCH_NORMAL);
		fail_at = 0;
		CHECK(n == 3 ? !failed : failed);
		if (n == 3)
			break;
		if (n > 0)
			CHECK_EQ(gmem_launch_update(t.launch, LOW_GPA + (uint64_t)n * PG, pages + (uint64_t)n * PG,
						    3 - n, GMEM_LAUNCH_NORMAL),
				 3 - n);
		if (n > 0) {
			CHECK_OK(gmem_launch_digest(t.launch, digest));
			CHECK_MEM(digest, expected, sizeof(digest));
			snp_down(&t);
			snp_up(&t, NULL, 0);
		}
	}
	snp_down(&t);
	snp_down(&s);
}

/* A slot of such a machine needs more memory than another's. */
TEST(slot)
{
	struct gmem_file *file = make_file(4 * PG, GMEM_FILE_INIT_PRIVATE);
	struct gmem_vm *vm = new_vm(GMEM_VM_SNP);
	unsigned int n = 0;
	int err;

	do {
		failed = false;
		fail_at = ++n;
		err = set_slot(vm, 0, LOW_GPA, 4 * PG, file, 0);
		fail_at = 0;
		CHECK_EQ(err, failed ? -ENOMEM : 0);
	} while (failed);
	CHECK(n > 4);
	gmem_vm_free(vm);
	gmem_file_free(file);
}
