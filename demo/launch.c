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
	printf("\n  %llu pages populated and mapped, %llu sources brought in before the file's lock, %llu zero pages\n",
	       (unsigned long long)st.populated, (unsigned long long)st.sources,
	       (unsigned long long)(st.populated - st.sources));
	checks = gmem_lock_checks() - checks;
	/* A violation would have ended the program. */
	if (checks)
		printf("  lock order checked %llu times, violations: 0\n", (unsigned long long)checks);
	else
		printf("  lock order not checked: this is a release build\n");
	if (st.populated < DEMO_FIRMWARE_PAGES || st.private_maps != st.populated)
		demo_fail("%llu pages populated, %llu mapped", (unsigned long long)st.populated,
			  (unsigned long long)st.private_maps);
	check_digest(l, expected);
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
