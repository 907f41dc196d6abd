/* SPDX-License-Identifier: MIT */
/* Files that may have large pages: where KVM maps 2 MiB at once for a guest, barring is by 4 KiB all the same. */
#include "kvm_scene.h"

#include "sys/uapi.h"

#define MIB2 (2ull << 20)
#define FILE_LEN (8 * MIB2)
#define PAGES (FILE_LEN / PG)

/* KVM's own count of the large mappings that a guest has. */
static uint64_t count_large(struct gmem_vm *vm)
{
	int fd = ioctl(gmem_vm_kvm_fd(vm), KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header head;
	uint64_t value = 0;
	char *descs;

	if (fd < 0)
		SKIP("kvm", "KVM does not tell its counts: %s", strerror(errno));
	CHECK_EQ(pread(fd, &head, sizeof(head), 0), (ssize_t)sizeof(head));
	size_t each = sizeof(struct kvm_stats_desc) + head.name_size;

	descs = malloc(head.num_desc * each);
	CHECK(descs);
	CHECK_EQ(pread(fd, descs, head.num_desc * each, head.desc_offset), (ssize_t)(head.num_desc * each));
	for (uint32_t i = 0; i < head.num_desc; i++) {
		const struct kvm_stats_desc *d = (const void *)(descs + i * each);

		if (!strcmp(d->name, "pages_2m"))
			CHECK_EQ(pread(fd, &value, sizeof(value), head.data_offset + d->offset),
				 (ssize_t)sizeof(value));
	}
	free(descs);
	close(fd);
	return value;
}

/* Word 0 of page i is i and something; each page is met in order, but for one that may be missing. */
static void check_all(struct scene *s, uint64_t zero)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		sum += i == zero ? 0 : 7 + i;
	CHECK_EQ(run(s, GUEST_sum, GPA, PAGES, PG), sum);
}

static void one_page_of_a_large_one(struct scene *s, uint64_t page)
{
	to_private(s->file, page * PG, PG);
	/* Its neighbours in the large page go on. */
	CHECK_EQ(run(s, GUEST_load8, GPA + (page - 1) * PG), 7 + page - 1);
	CHECK_EQ(run(s, GUEST_load8, GPA + (page + 1) * PG), 7 + page + 1);
	run_err(s, -EFAULT, GUEST_store8, GPA + page * PG + 8, 1);
	check_fault(s, GPA + page * PG, 0);
	to_shared(s->file, page * PG, PG);
	CHECK_OK(go_on(s));
	check_all(s, PAGES);
}

static void large(enum guest_mode mode)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = mode, .len = FILE_LEN, .flags = GMEM_FILE_THP };
	uint64_t bitmap[PAGES / 64], n;
	struct scene s;

	scene_set_up(&s, &o);
	CHECK_EQ(run(&s, GUEST_touch, GPA, PAGES, PG, 7), PAGES);
	n = count_large(s.vm);
	printf("%s; KVM has %llu large mappings\n", gmem_file_explain(s.file), (unsigned long long)n);
	check_all(&s, PAGES);
	one_page_of_a_large_one(&s, 700);
	one_page_of_a_large_one(&s, 512);
	CHECK_OK(gmem_file_punch(s.file, 3000 * PG, PG));
	check_all(&s, 3000);
	run(&s, GUEST_store8, GPA + 3000 * PG, 3007);
	check_all(&s, PAGES);
	/* Logged by the page, though they were mapped at once. */
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
	CHECK_OK(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, PAGES, bitmap, GMEM_LOG_CLEAR));
	run(&s, GUEST_store8, GPA + 1234 * PG + 8, 1);
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, PAGES, bitmap, 0), 1);
	CHECK_EQ(bitmap[1234 / 64], 1ull << 1234 % 64);
	check_all(&s, PAGES);
	scene_tear_down(&s);
	if (!n)
		SKIP("thp", "KVM has made no large mapping");
}

TEST_TIMEOUT(large_mappings_user, 60)
{
	large(GUEST_USER);
}

TEST_TIMEOUT(large_mappings_kernel, 60)
{
	large(GUEST_KERNEL);
}

#include "tap_main.h"
