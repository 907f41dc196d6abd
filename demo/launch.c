/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-launch: a firmware image of 1,024 pages is launched on an SNP and on a TDX machine, page by page, and
 * measured by software. The digests are compared with those that an independent program computed. Exit status: 0, or 1
 * if a step failed or a digest is another.
 */
#include "common.h"

#include "firmware.h"
#include "firmware_digests.h"

#define LOW_GPA 0x800000ull
#define LOW_LEN 0x20000ull

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
	unsigned int *told = opaque;
	unsigned int percent = (unsigned int)(done * 100 / total);

	while (*told + 10 <= percent)
		printf(" %u %%", *told += 10);
	fflush(stdout);
	return 0;
}

static void add_memory(struct gmem_vm *vm, uint32_t slot, uint64_t gpa, uint64_t len, struct gmem_file **ret)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .flags = GMEM_FILE_INIT_PRIVATE };
	struct gmem_memslot memslot = { .size = sizeof(memslot), .slot = slot, .gpa = gpa, .len = len };

	demo_expect("gmem_file_create", gmem_file_create(len, &opts, ret), 0);
	memslot.file = *ret;
	demo_expect("gmem_vm_set_slot", gmem_vm_set_slot(vm, &memslot), 0);
}

static void check_digest(struct gmem_launch *launch, const char *expected)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	char hex[2 * sizeof(digest) + 1];

	demo_expect("gmem_launch_digest", gmem_launch_digest(launch, digest), 0);
	for (size_t i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	printf("  digest %s\n", hex);
	if (strcmp(hex, expected))
		demo_fail("it should be %s", expected);
	printf("  equal to the value computed independently\n");
}

/* Launched, it can run: it finds the firmware where it lies, which nobody else can read. */
static void check_guest(struct gmem_vm *vm, enum gmem_vm_type type, struct gmem_launch *launch, const void *image)
{
	/* The bit of an SNP guest's address means private, that of a TDX guest's shared. */
	uint64_t gpa = DEMO_FIRMWARE_GPA | (type == GMEM_VM_SNP ? gmem_vm_alias_bit(vm) : 0);
	unsigned char *seen = malloc(DEMO_FIRMWARE_LEN);
	struct gmem_vcpu *vcpu;

	if (!seen)
		demo_fail("no memory");
	demo_expect("gmem_launch_finish", gmem_launch_finish(launch, NULL), 0);
	demo_expect("gmem_vcpu_create", gmem_vcpu_create(vm, NULL, &vcpu), 0);
	demo_expect("gmem_vcpu_load", gmem_vcpu_load(vcpu, gpa, seen, DEMO_FIRMWARE_LEN), 0);
	if (memcmp(seen, image, DEMO_FIRMWARE_LEN))
		demo_fail("the guest reads another firmware");
	printf("  finished: the guest reads its firmware\n");
	gmem_vcpu_free(vcpu);
	free(seen);
}

static void launch(const char *name, enum gmem_vm_type type, const void *image, const char *expected)
{
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = DEMO_FIRMWARE_LEN };
	struct gmem_vm_opts opts = { .size = sizeof(opts), .type = type };
	struct gmem_vm_stats st = { .size = sizeof(st) };
	uint64_t checks = gmem_lock_checks();
	struct gmem_file *high, *low;
	struct gmem_launch *l;
	unsigned int told = 0;
	struct gmem_vm *vm;

	demo_expect("gmem_vm_create", gmem_vm_create(&opts, &vm), 0);
	add_memory(vm, 0, DEMO_FIRMWARE_GPA, DEMO_FIRMWARE_LEN, &high);
	add_memory(vm, 1, LOW_GPA, LOW_LEN, &low);
	demo_expect("gmem_launch_create", gmem_launch_create(vm, NULL, &l), 0);
	printf("%s: firmware of %u pages and the sections of its metadata:", name, DEMO_FIRMWARE_PAGES);
	demo_expect("gmem_launch_firmware", gmem_launch_firmware(l, &guest, on_progress, &told), 0);
	demo_expect("gmem_vm_stats", gmem_vm_stats(vm, &st), 0);
	printf("\n  %llu pages populated, %llu sources brought in before the file's lock, %llu zero pages\n",
	       (unsigned long long)st.populated, (unsigned long long)st.sources,
	       (unsigned long long)(st.populated - st.sources));
	/* KVM maps a TD's pages as they are added, those of an SNP guest when it touches them. */
	if (st.populated < DEMO_FIRMWARE_PAGES || st.private_maps != (type == GMEM_VM_TDX ? st.populated : 0))
		demo_fail("%llu pages populated, %llu mapped", (unsigned long long)st.populated,
			  (unsigned long long)st.private_maps);
	check_digest(l, expected);
	check_guest(vm, type, l, image);
	checks = gmem_lock_checks() - checks;
	/* A violation would have ended the program. */
	if (checks)
		printf("  lock order checked %llu times, violations: 0\n", (unsigned long long)checks);
	else
		printf("  lock order not checked: this is a release build\n");
	gmem_launch_free(l);
	gmem_vm_free(vm);
	gmem_file_free(high);
	gmem_file_free(low);
}

int main(void)
{
	void *image = aligned_alloc(GMEM_PAGE_SIZE, DEMO_FIRMWARE_LEN);

	if (!image)
		demo_fail("no memory");
	demo_firmware_build(image);
	launch("SEV-SNP", GMEM_VM_SNP, image, DEMO_FIRMWARE_SNP_DIGEST);
	launch("TDX", GMEM_VM_TDX, image, DEMO_FIRMWARE_TDX_DIGEST);
	printf("(measured by software; nothing is encrypted, and no such processor was asked)\n");
	free(image);
	return 0;
}
