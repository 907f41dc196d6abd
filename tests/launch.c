/* SPDX-License-Identifier: MIT */
/* A launch from firmware to digest, on an SNP and on a TDX VM, and what it refuses. */
#include "tap.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include "../demo/firmware.h"
#include "../demo/firmware_digests.h"
#include "base/le.h"
#include "file/file.h"
#include "launch_util.h"

#define P 4096ull
#define LOW_GPA 0x800000ull
#define LOW_LEN 0x20000ull
#define LEN DEMO_FIRMWARE_LEN

/* From the empty digest, a page of zeros at 0x1000: NORMAL, ZERO, UNMEASURED; added only, added and measured. */
#define SNP_NORMAL "e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6"
#define SNP_ZERO "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061"
#define SNP_UNMEASURED \
	"81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad"
#define TDX_ADD "fcdabf6fdf38b87d2e3a89b1ab68c242abb261dffa70ef6f1dc2220c2752d2729cdf1be92afc2e0e4297f04e2b629552"
#define TDX_MEASURED "ca76d5541328afef8bc9364261c515aebef90412ebc56ca0c2260ec531a14462cfc0c11de61d84292ddf8ca871da1ff1"

/* A machine with memory for the firmware below 4 GiB and for its sections, all of it private. */
struct scene {
	struct gmem_file *high, *low;
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct gmem_vcpu *vcpu;
	uint64_t private; /* what a private address has set */
	unsigned char *image, *page;
};

static void set_slot(struct gmem_vm *vm, uint32_t slot, uint64_t gpa, uint64_t len, struct gmem_file *file,
		     uint64_t off)
{
	struct gmem_memslot s = { .size = sizeof(s), .slot = slot, .gpa = gpa, .len = len, .file = file, .off = off };

	CHECK_OK(gmem_vm_set_slot(vm, &s));
}

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	struct gmem_file_opts fo = { .size = sizeof(fo), .flags = GMEM_FILE_INIT_PRIVATE };
	struct gmem_vm_opts vo = { .size = sizeof(vo), .type = type };

	CHECK_OK(gmem_file_create(LEN, &fo, &s->high));
	CHECK_OK(gmem_file_create(LOW_LEN + P, &fo, &s->low));
	CHECK_OK(gmem_vm_create(&vo, &s->vm));
	set_slot(s->vm, 0, DEMO_FIRMWARE_GPA, LEN, s->high, 0);
	set_slot(s->vm, 1, LOW_GPA, LOW_LEN, s->low, 0);
	CHECK_OK(gmem_launch_create(s->vm, NULL, &s->launch));
	CHECK_OK(gmem_vcpu_create(s->vm, NULL, &s->vcpu));
	s->private = type == GMEM_VM_SNP ? gmem_vm_alias_bit(s->vm) : 0;
	s->image = aligned_alloc(P, LEN);
	s->page = aligned_alloc(P, P);
	CHECK(s->image && s->page);
	demo_firmware_build(s->image);
	memset(s->page, 0, P);
}

static void tear_down(struct scene *s)
{
	free(s->image);
	free(s->page);
	gmem_vcpu_free(s->vcpu);
	gmem_launch_free(s->launch);
	gmem_vm_free(s->vm);
	gmem_file_free(s->high);
	gmem_file_free(s->low);
}

static void check_digest(struct scene *s, const char *expected)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	char hex[2 * sizeof(digest) + 1];

	CHECK_OK(gmem_launch_digest(s->launch, digest));
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	CHECK_STR(hex, expected);
}

static struct gmem_vm_stats stats_of(struct scene *s)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };

	CHECK_OK(gmem_vm_stats(s->vm, &st));
	return st;
}

struct told {
	uint64_t calls, done, total, stop_at;
};

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct told *t = opaque;

	CHECK(done > t->done && done <= total && (!t->total || total == t->total));
	t->calls++;
	t->done = done;
	t->total = total;
	return t->stop_at && done >= t->stop_at ? -ECANCELED : 0;
}

/* A guest's private access to the whole of what was launched finds the image, and zeros in the sections. */
static void check_guest_sees(struct scene *s)
{
	unsigned char *seen = malloc(LEN);

	CHECK(seen);
	CHECK_OK(gmem_vcpu_load(s->vcpu, DEMO_FIRMWARE_GPA | s->private, seen, LEN));
	CHECK_MEM(seen, s->image, LEN);
	CHECK_OK(gmem_vcpu_load(s->vcpu, (LOW_GPA + 0x10000) | s->private, seen, 0x10000));
	for (size_t i = 0; i < 0x10000; i++)
		CHECK_EQ(seen[i], 0);
	free(seen);
}

static _Thread_local sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

static void check_host_is_kept_out(struct scene *s)
{
	struct gmem_view *view;

	signal(SIGBUS, on_bus);
	CHECK_OK(gmem_view_map(s->high, 0, LEN, PROT_READ, &view));
	for (uint64_t off = 0; off < LEN; off += 64 * P) {
		int sig = sigsetjmp(bus, 1);

		if (!sig)
			FAIL("the host reads %d at 0x%llx", ((volatile char *)gmem_view_addr(view))[off],
			     (unsigned long long)off);
		CHECK_EQ(sig, SIGBUS);
	}
	CHECK_ERR(gmem_file_read(s->high, 0, s->page, 1), -EACCES);
	gmem_view_unmap(view);
}

static void launch_whole(enum gmem_vm_type type, const char *digest, uint64_t pages)
{
	struct told told = { 0 };
	struct scene s;

	set_up(&s, type);
	CHECK_OK(launch_image(s.launch, s.image, LEN, on_progress, &told));
	check_digest(&s, digest);
	CHECK_EQ(told.done, pages * P);
	CHECK_EQ(told.total, pages * P);
	CHECK(told.calls >= pages / 64);
	CHECK_EQ(stats_of(&s).populated, pages);
	CHECK_EQ(stats_of(&s).lookups, 0);
	/* TDX's launch gives pages to the MMU; as KVM has it, SNP's leaves that to the guest's first access. */
	CHECK_EQ(stats_of(&s).private_maps, type == GMEM_VM_TDX ? pages : 0);
	/* There is none before the end. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, DEMO_FIRMWARE_GPA | s.private, s.page, 1), -EINVAL);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_guest_sees(&s);
	check_host_is_kept_out(&s);
	/* Nothing is launched twice; by a TD that is finalized nothing at all. */
	CHECK_ERR(gmem_launch_update(s.launch, DEMO_FIRMWARE_GPA, s.page, 1, GMEM_LAUNCH_NORMAL),
		  type == GMEM_VM_TDX ? -EINVAL : -EEXIST);
	check_digest(&s, digest);
	check_guest_sees(&s);
	tear_down(&s);
}

TEST(snp_firmware)
{
	launch_whole(GMEM_VM_SNP, DEMO_FIRMWARE_SNP_DIGEST, 1024 + 9 + 17);
}

TEST(tdx_firmware)
{
	launch_whole(GMEM_VM_TDX, DEMO_FIRMWARE_TDX_DIGEST, 1024 + 16 + 2);
}

TEST(an_image_of_any_alignment)
{
	struct scene s;
	unsigned char *odd = malloc(LEN + 1);

	CHECK(odd);
	set_up(&s, GMEM_VM_TDX);
	memcpy(odd + 1, s.image, LEN);
	CHECK_OK(launch_image(s.launch, odd + 1, LEN, NULL, NULL));
	check_digest(&s, DEMO_FIRMWARE_TDX_DIGEST);
	free(odd);
	tear_down(&s);
}

/* One page of zeros at 0x1000, as one type. */
static void one_page(enum gmem_vm_type vm, enum gmem_launch_page type, const char *digest)
{
	struct scene s;

	set_up(&s, vm);
	set_slot(s.vm, 2, 0x1000, P, s.low, LOW_LEN);
	CHECK_EQ(gmem_launch_update(s.launch, 0x1000, type == GMEM_LAUNCH_ZERO ? NULL : s.page, 1, type), 1);
	check_digest(&s, digest);
	tear_down(&s);
}

TEST(unit_values)
{
	one_page(GMEM_VM_SNP, GMEM_LAUNCH_NORMAL, SNP_NORMAL);
	one_page(GMEM_VM_SNP, GMEM_LAUNCH_ZERO, SNP_ZERO);
	one_page(GMEM_VM_SNP, GMEM_LAUNCH_UNMEASURED, SNP_UNMEASURED);
	one_page(GMEM_VM_TDX, GMEM_LAUNCH_UNMEASURED, TDX_ADD);
	one_page(GMEM_VM_TDX, GMEM_LAUNCH_NORMAL, TDX_MEASURED);
}

/* Bytes that were in the page before do not show. */
TEST(a_zero_page_is_zero)
{
	char bytes[P];
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	CHECK_OK(gmem_file_set_attributes(s.low, 0, P, 0, NULL));
	CHECK_OK(gmem_file_write(s.low, 0, "bytes", 5));
	CHECK_OK(gmem_file_set_attributes(s.low, 0, P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, NULL, 1, GMEM_LAUNCH_ZERO), 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_vcpu_load(s.vcpu, LOW_GPA | s.private, bytes, P));
	for (size_t i = 0; i < P; i++)
		CHECK_EQ(bytes[i], 0);
	tear_down(&s);
}

TEST(update_errors)
{
	struct gmem_launch *none = (void *)1;
	struct gmem_vm *plain;
	struct scene s;

	CHECK_OK(gmem_vm_create(NULL, &plain));
	CHECK_ERR(gmem_launch_create(plain, NULL, &none), -EINVAL);
	CHECK(none == (void *)1);
	gmem_vm_free(plain);
	set_up(&s, GMEM_VM_TDX);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA + 1, s.page, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, s.page + 1, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, NULL, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, NULL, 1, GMEM_LAUNCH_ZERO), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, s.page, 0, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, s.page, -1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, s.page, 1, 2), -EINVAL);
	CHECK_ERR(gmem_launch_update(s.launch, 0x1000, s.page, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_OK(gmem_file_set_attributes(s.low, P, P, 0, NULL));
	/* As many as are private. */
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, s.image, 2, GMEM_LAUNCH_NORMAL), 1);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA + P, s.page, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	/* The guest cannot be there before. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, LOW_GPA + 2 * P, s.page, 1), -EINVAL);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + 2 * P, s.page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA + 2 * P, s.page, 1, GMEM_LAUNCH_NORMAL), -EEXIST);
	gmem_file_free(s.low);
	s.low = NULL;
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA + 3 * P, s.page, 1, GMEM_LAUNCH_NORMAL), -EFAULT);
	tear_down(&s);
}

TEST(firmware_errors)
{
	struct told told = { .stop_at = 100 * P };
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	CHECK_ERR(launch_image(s.launch, s.image, LEN - 1, NULL, NULL), -EINVAL);
	CHECK_ERR(launch_image(s.launch, s.image, 0, NULL, NULL), -EINVAL);
	CHECK_ERR(launch_image(s.launch, s.image, P, NULL, NULL), -ENOENT);
	s.image[LEN - DEMO_FIRMWARE_SEV] = 'B';
	CHECK_ERR(launch_image(s.launch, s.image, LEN, NULL, NULL), -EBADMSG);
	CHECK_EQ(stats_of(&s).populated, 0);
	demo_firmware_build(s.image);
	CHECK_EQ(launch_image(s.launch, s.image, LEN, on_progress, &told), -ECANCELED);
	CHECK_EQ(stats_of(&s).populated, 128);
	tear_down(&s);
}

static int cancel_at_half(void *opaque, uint64_t done, uint64_t total)
{
	struct scene *s = opaque;

	if (done >= total / 2)
		gmem_vm_cancel(s->vm);
	return 0;
}

static void *cancel_in_the_middle(void *opaque)
{
	struct scene *s = opaque;

	/* Of a batch, unless this thread was kept waiting. */
	while (stats_of(s).populated < 100)
		;
	gmem_vm_cancel(s->vm);
	return NULL;
}

/* A launch that another thread cancels; false if it was too late for that. */
static bool cancelled_in_the_middle(void)
{
	struct scene s;
	pthread_t t;
	int err;

	set_up(&s, GMEM_VM_SNP);
	CHECK_EQ(pthread_create(&t, NULL, cancel_in_the_middle, &s), 0);
	err = launch_image(s.launch, s.image, LEN, NULL, NULL);
	pthread_join(t, NULL);
	CHECK(err == -EINTR || (!err && stats_of(&s).populated >= 1024));
	tear_down(&s);
	return err;
}

TEST(cancelled)
{
	struct scene s;
	int tries = 0;

	set_up(&s, GMEM_VM_SNP);
	CHECK_ERR(launch_image(s.launch, s.image, LEN, cancel_at_half, &s), -EINTR);
	CHECK(stats_of(&s).populated >= 512 && stats_of(&s).populated < 1024);
	tear_down(&s);
	while (!cancelled_in_the_middle())
		CHECK(++tries < 50);
}

/* The launch keeps what it needs of a VM that was freed. */
TEST(vm_freed_first)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	gmem_vm_free(s.vm);
	CHECK_ERR(gmem_launch_update(s.launch, LOW_GPA, s.page, 1, GMEM_LAUNCH_NORMAL), -EIO);
	CHECK_OK(gmem_launch_digest(s.launch, digest));
	s.vm = NULL;
	tear_down(&s);
}
