/* SPDX-License-Identifier: MIT */
/* What measuring refuses, and what it does when it is stopped, or has no memory or no threads. */
#include "tap.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <sys/mman.h>

#include "measure_util.h"

#define PAGE 4096u
#define PAGES 1000u

static const struct image_tables tables = {
	.sev = { { 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },
		 { 0x80d000, 0x1000, GMEM_SEV_SECTION_SECRETS },
		 { 0x80e000, 0x1000, GMEM_SEV_SECTION_CPUID },
		 { 0x810000, 0x1000, GMEM_SEV_SECTION_KERNEL_HASHES } },
	.nsev = 4,
	.reset_eip = 0x80b004,
	.hashes = { 0x810c00, 0x400 },
	.tdvf = { { 0, PAGE * 100, 0xff000000, PAGE * 100, GMEM_TDVF_SECTION_BFV, GMEM_TDVF_MR_EXTEND },
		  { 0, 0, 0x809000, 0x2000, GMEM_TDVF_SECTION_TD_HOB, 0 } },
	.ntdvf = 2,
};

/* The n-th next call fails: of any of these functions, from any thread. 0: none. */
static int fail_at;
static unsigned int calls, fail_threads;

static bool fails(void)
{
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	return __atomic_load_n(&fail_at, __ATOMIC_RELAXED) && !__atomic_sub_fetch(&fail_at, 1, __ATOMIC_RELAXED);
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
EVP_MD_CTX *__real_EVP_MD_CTX_new(void);
EVP_MD_CTX *__wrap_EVP_MD_CTX_new(void);
int __real_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len);
int __wrap_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len);
int __real_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);
int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	if (fail_threads) {
		fail_threads--;
		return EAGAIN;
	}
	return __real_pthread_create(thread, attr, fn, arg);
}

EVP_MD_CTX *__wrap_EVP_MD_CTX_new(void)
{
	return fails() ? NULL : __real_EVP_MD_CTX_new();
}

int __wrap_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len)
{
	return fails() ? 0 : __real_EVP_DigestUpdate(ctx, data, len);
}

int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e)
{
	return fails() ? 0 : __real_EVP_Digest(data, len, md, n, t, e);
}

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return fails() ? MAP_FAILED : __real_mmap(addr, len, prot, flags, fd, off);
}

void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return fails() ? MAP_FAILED : __real_mmap64(addr, len, prot, flags, fd, off);
}

static struct gmem_guest new_guest(void)
{
	return guest_of(new_image(PAGES * PAGE, 1, &tables), PAGES * PAGE, 2);
}

static void free_guest(const struct gmem_guest *guest)
{
	free((void *)(uintptr_t)guest->firmware);
}

TEST(create_refuses)
{
	struct gmem_guest good = new_guest(), g;
	struct gmem_kernel_hashes kernel = { { 0 } };
	struct gmem_measure *m;

	CHECK_ERR(gmem_measure_create(GMEM_VM_DEFAULT, &good, NULL, NULL, &m), -EINVAL);
	CHECK_ERR(gmem_measure_create(GMEM_VM_SNP, NULL, NULL, NULL, &m), -EINVAL);
#define REFUSED(type, change, err)                                                       \
	do {                                                                             \
		g = good;                                                                \
		change;                                                                  \
		CHECK_ERR(gmem_measure_create(GMEM_VM_##type, &g, NULL, NULL, &m), err); \
	} while (0)
	REFUSED(SNP, g.size--, -EINVAL);
	REFUSED(SNP, g.flags = 4, -EINVAL);
	REFUSED(SNP, g.vmm = 5, -EINVAL);
	REFUSED(SNP, g.vmm = -1, -EINVAL);
	REFUSED(SNP, g.firmware = NULL, -EINVAL);
	REFUSED(SNP, g.firmware_len = 0, -EINVAL);
	REFUSED(SNP, g.firmware_len--, -EINVAL);
	REFUSED(SNP, g.firmware_len = 1ull << 32, -EINVAL);
	REFUSED(SNP, g.vmm = GMEM_VMM_SVSM, -EINVAL);
	REFUSED(SNP, (g.vmm = GMEM_VMM_SVSM, g.svsm = g.firmware, g.svsm_len = 1), -EINVAL);
	REFUSED(SNP, (g.vmm = GMEM_VMM_SVSM, g.svsm = g.firmware, g.svsm_len = PAGE, g.vars_len = 1), -EINVAL);
	REFUSED(SNP, (g.vmm = GMEM_VMM_SVSM, g.svsm = g.firmware, g.svsm_len = PAGE, g.vars_len = 0xfffff000), -EINVAL);
	REFUSED(SNP, g.firmware_len = PAGE, -ENOENT);
	REFUSED(TDX, g.firmware_len = PAGE, -ENOENT);
	REFUSED(TDX, g.kernel = &kernel, -EINVAL);
	REFUSED(TDX, g.vmm = GMEM_VMM_EC2, -EINVAL);
	REFUSED(TDX, g.firmware_digest = &kernel, -EINVAL);
	REFUSED(TDX, (g.vmm = GMEM_VMM_SVSM, g.svsm = g.firmware, g.svsm_len = PAGE), -EINVAL);
	gmem_measure_free(NULL);
	free_guest(&good);
}

TEST(sections_where_an_image_lies)
{
	struct image_tables t = { .sev = { { 0xfffff000, PAGE, GMEM_SEV_SECTION_MEM } }, .nsev = 1 };
	uint8_t *image = new_image(2 * PAGE, 1, &t);
	struct gmem_guest g = guest_of(image, 2 * PAGE, 1);
	struct gmem_measure *m;

	CHECK_ERR(gmem_measure_create(GMEM_VM_SNP, &g, NULL, NULL, &m), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "0xfffff000");
	free(image);
}

/* Metadata may ask for more than can be hashed in a lifetime. */
TEST(a_build_of_much_memory)
{
	struct image_tables t = tables;
	struct gmem_measure *m;
	struct gmem_guest g;

	t.tdvf[1].gpa = 1ull << 40;
	t.tdvf[1].len = 1ull << 60;
	g = guest_of(new_image(PAGES * PAGE, 1, &t), PAGES * PAGE, 1);
	CHECK_ERR(gmem_measure_create(GMEM_VM_TDX, &g, NULL, NULL, &m), -EBADMSG);
	free_guest(&g);
	/* Where an address has the bit that means shared, no page is launched. */
	t.tdvf[1].gpa = 1ull << 51;
	t.tdvf[1].len = PAGE;
	g = guest_of(new_image(PAGES * PAGE, 1, &t), PAGES * PAGE, 1);
	CHECK_ERR(gmem_measure_create(GMEM_VM_TDX, &g, NULL, NULL, &m), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "beyond what a TD can address");
	free_guest(&g);
}

TEST(digest_refuses)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN], other[GMEM_LAUNCH_DIGEST_LEN], vmsa[GMEM_PAGE_SIZE];
	struct gmem_guest good = new_guest(), g = good;
	struct gmem_measure *m, *tdx;
	uint8_t *copy = malloc(PAGES * PAGE);

	CHECK(copy);
	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &good, NULL, NULL, &m));
	CHECK_OK(gmem_measure_create(GMEM_VM_TDX, &good, NULL, NULL, &tdx));
#define DIGEST_REFUSED(change, err)                                             \
	do {                                                                    \
		g = good;                                                       \
		change;                                                         \
		CHECK_ERR(gmem_measure_digest(m, &g, NULL, NULL, digest), err); \
		CHECK_ERR(gmem_measure_vmsa(m, &g, 0, vmsa), err);              \
	} while (0)
	DIGEST_REFUSED(g.nvcpus = 0, -EINVAL);
	DIGEST_REFUSED(g.signature = 0, -EINVAL);
	DIGEST_REFUSED(g.flags = 4, -EINVAL);
	DIGEST_REFUSED(g.firmware_len -= PAGE, -EINVAL);
	DIGEST_REFUSED((g.vmm = GMEM_VMM_SVSM, g.svsm = g.firmware, g.svsm_len = PAGE), -EINVAL);
	CHECK_ERR(gmem_measure_vmsa(m, &good, 2, vmsa), -ERANGE);
	CHECK_ERR(gmem_measure_vmsa(tdx, &good, 0, vmsa), -EINVAL);
	/* The same bytes elsewhere are the same firmware; one byte more or less is another. */
	memcpy(copy, good.firmware, PAGES * PAGE);
	g = good;
	g.firmware = copy;
	CHECK_OK(gmem_measure_digest(m, &good, NULL, NULL, digest));
	CHECK_OK(gmem_measure_digest(m, &g, NULL, NULL, other));
	CHECK_MEM(digest, other, sizeof(digest));
	copy[123]++;
	CHECK_ERR(gmem_measure_digest(m, &g, NULL, NULL, digest), -EINVAL);
	CHECK_ERR(gmem_measure_digest(tdx, &g, NULL, NULL, digest), -EINVAL);
	gmem_measure_free(m);
	gmem_measure_free(tdx);
	free(copy);
	free_guest(&good);
}

/* Only vCPUs after the first need the firmware's word where they begin. */
TEST(firmware_without_a_reset_block)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct image_tables t = tables;
	struct gmem_measure *m;
	struct gmem_guest g;

	t.reset_eip = 0;
	g = guest_of(new_image(PAGES * PAGE, 1, &t), PAGES * PAGE, 1);
	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &g, NULL, NULL, &m));
	CHECK_OK(gmem_measure_digest(m, &g, NULL, NULL, digest));
	g.nvcpus = 2;
	CHECK_ERR(gmem_measure_digest(m, &g, NULL, NULL, digest), -ENOENT);
	CHECK_HAS(gmem_last_error(), "00f771de-1a7e-4fcb-890e-68c77e2fb44e");
	gmem_measure_free(m);
	free_guest(&g);
}

struct told {
	unsigned int times, stop_at;
	uint64_t done, total;
};

static int progress(void *opaque, uint64_t done, uint64_t total)
{
	struct told *t = opaque;

	CHECK(done > t->done && done <= total);
	CHECK(!t->total || t->total == total);
	t->done = done;
	t->total = total;
	return ++t->times == t->stop_at ? -EINTR : 0;
}

TEST(progress_is_told_and_stops)
{
	static const struct {
		enum gmem_vm_type type;
		uint64_t total;
	} cases[] = { { GMEM_VM_SNP, PAGES * PAGE }, { GMEM_VM_TDX, 102 * PAGE } };
	/* Long enough to be told of before the end. */
	size_t len = 3000 * PAGE;
	struct gmem_guest small = new_guest(), large = guest_of(new_image(len, 1, &tables), len, 1);
	struct gmem_measure *m;

	for (size_t i = 0; i < 2; i++) {
		struct told told = { 0 };

		CHECK_OK(gmem_measure_create(cases[i].type, &small, progress, &told, &m));
		CHECK_EQ(told.done, told.total);
		CHECK_EQ(told.total, cases[i].total);
		gmem_measure_free(m);
		told = (struct told){ .stop_at = 1 };
		m = NULL;
		CHECK_EQ(gmem_measure_create(cases[i].type, &large, progress, &told, &m), -EINTR);
		CHECK_EQ(told.times, 1);
		CHECK(!m);
	}
	free_guest(&small);
	free_guest(&large);
}

static int stop_after(void *opaque, const struct gmem_measure_range *range)
{
	int *left = opaque;

	return --*left ? 0 : 42;
}

TEST(the_function_ends_the_call)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN], want[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_guest guest = new_guest();
	struct gmem_measure *m;

	for (enum gmem_vm_type type = GMEM_VM_SNP; type <= GMEM_VM_TDX; type++) {
		measure_afresh(type, &guest, want);
		CHECK_OK(gmem_measure_create(type, &guest, NULL, NULL, &m));
		for (int i = 1; i <= (type == GMEM_VM_SNP ? 7 : 2); i++) {
			int left = i;

			memset(digest, 0xee, sizeof(digest));
			CHECK_EQ(gmem_measure_digest(m, &guest, stop_after, &left, digest), 42);
			CHECK_EQ(left, 0);
			CHECK_EQ(digest[0] & digest[47], 0xee);
		}
		CHECK_OK(gmem_measure_digest(m, &guest, NULL, NULL, digest));
		CHECK_MEM(digest, want, sizeof(want));
		gmem_measure_free(m);
	}
	free_guest(&guest);
}

/* Each call that needs memory fails once: the answer is -ENOMEM or the right one, and the object lives on. */
static void fail_each(enum gmem_vm_type type)
{
	struct gmem_guest guest = new_guest(), other = guest;
	uint8_t want[GMEM_LAUNCH_DIGEST_LEN], digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_kernel_hashes kernel = { { 1 } };
	unsigned int failed = 0, step, n;
	struct gmem_measure *m;

	if (type == GMEM_VM_SNP)
		guest.kernel = &kernel;
	other.nvcpus = 1;
	other.flags = GMEM_GUEST_TWO_PASS;
	calls = 0;
	measure_afresh(type, &guest, want);
	n = calls;
	/* All of the first, and some of the many. */
	for (unsigned int i = 1; i <= n; i += i < 40 ? 1 : step) {
		int err;

		step = n / (tap_slow() ? 10 : 60) + 1;
		m = NULL;
		__atomic_store_n(&fail_at, (int)i, __ATOMIC_RELAXED);
		err = gmem_measure_create(type, &guest, NULL, NULL, &m);
		__atomic_store_n(&fail_at, 0, __ATOMIC_RELAXED);
		if (err) {
			CHECK_EQ(err, -ENOMEM);
			CHECK(!m);
			failed++;
			continue;
		}
		for (int k = 1; k < 12; k++) {
			__atomic_store_n(&fail_at, k, __ATOMIC_RELAXED);
			memset(digest, 0xee, sizeof(digest));
			err = gmem_measure_digest(m, k % 2 ? &guest : &other, NULL, NULL, digest);
			__atomic_store_n(&fail_at, 0, __ATOMIC_RELAXED);
			CHECK(!err || err == -ENOMEM);
			CHECK(!err || (digest[0] == 0xee && digest[47] == 0xee));
			failed += err != 0;
		}
		CHECK_OK(gmem_measure_digest(m, &guest, NULL, NULL, digest));
		CHECK_MEM(digest, want, sizeof(want));
		gmem_measure_free(m);
	}
	CHECK(failed);
	free_guest(&guest);
}

TEST_TIMEOUT(no_memory_for_an_snp_guest, 120)
{
	fail_each(GMEM_VM_SNP);
}

TEST_TIMEOUT(no_memory_for_a_tdx_guest, 120)
{
	fail_each(GMEM_VM_TDX);
}

TEST(no_memory_for_kernel_hashes)
{
	struct gmem_kernel_hashes hashes = { { 0xee } };

	for (int i = 1; i <= 3; i++) {
		fail_at = i;
		CHECK_ERR(gmem_kernel_hashes("k", 1, "i", 1, "c", &hashes), -ENOMEM);
		fail_at = 0;
		CHECK_EQ(hashes.cmdline[0], 0xee);
	}
}

/* A thread that cannot be made is work for the others. */
TEST(no_threads)
{
	uint8_t want[GMEM_LAUNCH_DIGEST_LEN], digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_guest guest = new_guest();

	measure_afresh(GMEM_VM_SNP, &guest, want);
	fail_threads = 1;
	measure_afresh(GMEM_VM_SNP, &guest, digest);
	CHECK_MEM(digest, want, sizeof(want));
	free_guest(&guest);
}
