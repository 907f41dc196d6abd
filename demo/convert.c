/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-convert: 64 pages go from shared to private and back in place, with a pinned page in the way once, and with
 * a page under userfault. Exit status: 0, 1 if anything was otherwise, 77 if there is no userfaultfd (the last line
 * says so).
 */
#include "common.h"

#include <sys/mman.h>

#define PAGES 64u
#define PINNED 17u
#define GPA 0x100000ull

static char byte_of(uint64_t page)
{
	return (char)('A' + page % 26);
}

/* How many of the pages can be read through the view, and have the bytes they should. */
static unsigned int readable(const struct gmem_view *view)
{
	unsigned int n = 0;

	for (uint64_t page = 0; page < PAGES; page++) {
		const char *p = (char *)gmem_view_addr(view) + page * PAGE;

		if (demo_touch(p))
			continue;
		if (p[0] != byte_of(page) || p[PAGE - 1] != byte_of(page))
			demo_fail("page %llu has wrong bytes", (unsigned long long)page);
		n++;
	}
	return n;
}

static void expect_readable(const struct gmem_view *view, unsigned int expected)
{
	unsigned int n = readable(view);

	if (n != expected)
		demo_fail("the host can read %u pages, not %u", n, expected);
}

static void check_guest(struct gmem_vcpu *vcpu)
{
	char page[PAGE];

	for (uint64_t i = 0; i < PAGES; i++) {
		demo_expect("gmem_vcpu_load", gmem_vcpu_load(vcpu, GPA + i * PAGE, page, sizeof(page)), 0);
		if (page[0] != byte_of(i) || page[PAGE - 1] != byte_of(i))
			demo_fail("the guest reads wrong bytes in page %llu", (unsigned long long)i);
	}
}

static int convert(struct gmem_file *file, bool private, uint64_t *error_off)
{
	return gmem_file_set_attributes(file, 0, PAGES * PAGE, private ? GMEM_ATTRIBUTE_PRIVATE : 0, error_off);
}

static void there_and_back(struct gmem_file *file, const struct gmem_view *view, struct gmem_vcpu *vcpu)
{
	demo_expect("to private", convert(file, true, NULL), 0);
	expect_readable(view, 0);
	check_guest(vcpu);
	printf("%u pages to private, in place: the guest reads all of its bytes, the host gets %u SIGBUS\n", PAGES,
	       PAGES);
	demo_expect("to shared", convert(file, false, NULL), 0);
	expect_readable(view, PAGES);
	check_guest(vcpu);
	printf("%u pages to shared: bytes kept, host and guest read them\n", PAGES);
}

static void one_pinned(struct gmem_file *file, const struct gmem_view *view)
{
	uint64_t error_off = UINT64_MAX, len;

	demo_expect("gmem_file_pin", gmem_file_pin(file, PINNED * PAGE, PAGE), 0);
	demo_expect("to private with a page pinned", convert(file, true, &error_off), -EAGAIN);
	if (error_off != PINNED * PAGE)
		demo_fail("the pinned page is %u, not at offset 0x%llx", PINNED, (unsigned long long)error_off);
	demo_expect("gmem_file_attributes", gmem_file_attributes(file, 0, NULL, &len), 0);
	expect_readable(view, PAGES);
	if (len != PAGES * PAGE)
		demo_fail("some pages were converted");
	printf("page %u pinned: EAGAIN at offset 0x%llx, none of the %u was converted\n", PINNED,
	       (unsigned long long)error_off, PAGES);
	demo_expect("gmem_file_unpin", gmem_file_unpin(file, PINNED * PAGE, PAGE), 0);
}

/* A view whose pages come by userfault: a private one raises no event, and none can be put there. */
static int under_userfault(void)
{
	static const char bytes[GMEM_PAGE_SIZE] __attribute__((aligned(GMEM_PAGE_SIZE))) = "served";
	struct gmem_uffd_event event;
	struct gmem_uffd *uffd;
	struct gmem_file *file;
	struct gmem_view *view;
	const char *p;
	int err;

	demo_expect("gmem_file_create", gmem_file_create(2 * PAGE, NULL, &file), 0);
	demo_expect("gmem_view_map", gmem_view_map(file, 0, 2 * PAGE, PROT_READ, &view), 0);
	demo_expect("gmem_uffd_create", gmem_uffd_create(NULL, &uffd), 0);
	err = gmem_uffd_add_view(uffd, view);
	if (err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP) {
		printf("SKIPPED: %s; to run it: gmem info says what is missing\n", gmem_last_error());
		return 77;
	}
	demo_expect("gmem_uffd_add_view", err, 0);
	p = gmem_view_addr(view);
	demo_expect("to private", gmem_file_set_attributes(file, 0, PAGE, GMEM_ATTRIBUTE_PRIVATE, NULL), 0);
	demo_expect("resolving a private page", gmem_uffd_copy(uffd, view, 0, bytes, PAGE), -EACCES);
	if (demo_touch(p) != SIGBUS || gmem_uffd_read(uffd, &event, 1) != 0)
		demo_fail("a private page under userfault: no SIGBUS, or an event");
	demo_expect("resolving a shared page", gmem_uffd_copy(uffd, view, PAGE, bytes, PAGE), (int64_t)PAGE);
	if (demo_touch(p + PAGE) || strcmp(p + PAGE, "served"))
		demo_fail("the shared page beside it was not served");
	printf("a private page under userfault: resolving it is refused (EACCES), touching it is SIGBUS and no event;\n"
	       "the shared page beside it is served\n");
	gmem_uffd_free(uffd);
	gmem_view_unmap(view);
	gmem_file_free(file);
	return 0;
}

int main(void)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = GPA, .len = PAGES * PAGE };
	struct gmem_vcpu *vcpu;
	struct gmem_view *view;
	struct gmem_vm *vm;
	int status;

	demo_catch_bus();
	demo_expect("gmem_file_create", gmem_file_create(PAGES * PAGE, NULL, &slot.file), 0);
	demo_expect("gmem_view_map", gmem_view_map(slot.file, 0, slot.len, PROT_READ | PROT_WRITE, &view), 0);
	demo_expect("gmem_vm_create", gmem_vm_create(NULL, &vm), 0);
	demo_expect("gmem_vm_set_slot", gmem_vm_set_slot(vm, &slot), 0);
	demo_expect("gmem_vcpu_create", gmem_vcpu_create(vm, NULL, &vcpu), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		memset((char *)gmem_view_addr(view) + page * PAGE, byte_of(page), PAGE);

	there_and_back(slot.file, view, vcpu);
	one_pinned(slot.file, view);
	status = under_userfault();

	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_view_unmap(view);
	gmem_file_free(slot.file);
	return status;
}
