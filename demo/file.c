/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-file: one memory, two engines. The same calls are put to a memfd with the library's rules and to KVM's own
 * guest_memfd, and what each answers is shown beside the other. Exit status: 0, 1 if they differ, 77 if this machine
 * has no guest_memfd to ask (the last line says so).
 */
#include "common.h"

#include <sys/mman.h>

#define LEN (64 * PAGE)

#define KEEP_SIZE 1 /* FALLOC_FL_* of linux/falloc.h */
#define PUNCH_HOLE 2

struct memory {
	struct gmem_file *file;
	struct gmem_view *view; /* of twice the file */
};

static char *at(const struct memory *m, uint64_t off)
{
	return (char *)gmem_view_addr(m->view) + off;
}

static int64_t write_hello(struct memory *m)
{
	return gmem_file_write(m->file, PAGE + 100, "hello", 6);
}

static int64_t view_shows_it(struct memory *m)
{
	return strcmp(at(m, PAGE + 100), "hello");
}

static int64_t touch_past_the_end(struct memory *m)
{
	return demo_touch(at(m, LEN));
}

static int64_t allocate_ahead(struct memory *m)
{
	return gmem_file_fallocate(m->file, KEEP_SIZE, 8 * (int64_t)PAGE, 8 * (int64_t)PAGE);
}

static int64_t allocate_past_the_end(struct memory *m)
{
	return gmem_file_fallocate(m->file, KEEP_SIZE, (int64_t)LEN, (int64_t)PAGE);
}

static int64_t another_mode(struct memory *m)
{
	return gmem_file_fallocate(m->file, 0, 0, (int64_t)PAGE);
}

static int64_t punch(struct memory *m)
{
	return gmem_file_fallocate(m->file, KEEP_SIZE | PUNCH_HOLE, (int64_t)PAGE, (int64_t)PAGE);
}

static int64_t view_shows_zero(struct memory *m)
{
	return *(volatile char *)at(m, PAGE + 100);
}

static int64_t memory_fails(struct memory *m)
{
	return gmem_file_poison(m->file, 2 * PAGE, PAGE);
}

static int64_t read_it(struct memory *m)
{
	char byte;

	return gmem_file_read(m->file, 2 * PAGE, &byte, 1);
}

static int64_t convert_unaligned(struct memory *m)
{
	return gmem_file_set_attributes(m->file, 1, PAGE, GMEM_ATTRIBUTE_PRIVATE, NULL);
}

static const struct {
	const char *what;
	int64_t (*ask)(struct memory *m);
	int64_t expected;
} table[] = {
	{ "write six bytes with the library", write_hello, 0 },
	{ "a view shows them", view_shows_it, 0 },
	{ "touch a view behind the file's end: signal", touch_past_the_end, SIGBUS },
	{ "give memory ahead", allocate_ahead, 0 },
	{ "give memory behind the end", allocate_past_the_end, -EINVAL },
	{ "fallocate(2) that may change the size", another_mode, -EOPNOTSUPP },
	{ "punch the page of the six bytes", punch, 0 },
	{ "the view shows zero", view_shows_zero, 0 },
	{ "a page's memory fails", memory_fails, 0 },
	{ "read that page", read_it, -EHWPOISON },
	{ "convert what is not a page", convert_unaligned, -EINVAL },
};

static bool make(struct memory *m, enum gmem_engine engine)
{
	const struct gmem_file_opts opts = { .size = sizeof(opts), .engine = engine };

	if (gmem_file_create(LEN, &opts, &m->file))
		return false;
	demo_expect("gmem_view_map", gmem_view_map(m->file, 0, 2 * LEN, PROT_READ | PROT_WRITE, &m->view), 0);
	return true;
}

static void end(struct memory *m)
{
	gmem_view_unmap(m->view);
	gmem_file_free(m->file);
}

static void choose(const char *what, uint32_t needs)
{
	const struct gmem_file_opts opts = { .size = sizeof(opts), .needs = needs };
	struct gmem_file *file;

	if (gmem_file_create(LEN, &opts, &file)) {
		printf("  %-34s %s\n", what, gmem_last_error());
		return;
	}
	printf("  %-34s %s\n", what, gmem_file_explain(file));
	gmem_file_free(file);
}

static const char *word(int64_t answer)
{
	return answer == SIGBUS ? "SIGBUS" : answer < 0 ? strerrorname_np((int)-answer) : answer ? "1" : "0";
}

int main(void)
{
	struct memory user, kernel;
	bool both;

	demo_catch_bus();
	printf("what GMEM_ENGINE_AUTO takes here, by what is needed of the memory:\n");
	choose("everything", 0);
	choose("pages converted in place", GMEM_NEED_CONVERSION);
	choose("userfaults", GMEM_NEED_USERFAULT);
	choose("vCPUs of the library, all shared", GMEM_NEED_VCPU);
	choose("KVM slots", GMEM_NEED_KVM_SLOT);

	if (!make(&user, GMEM_ENGINE_USER))
		demo_fail("%s", gmem_last_error());
	both = make(&kernel, GMEM_ENGINE_KERNEL);
	printf("\n%-46s %-12s %s\n", "the same calls to both engines", "memfd", both ? "guest_memfd" : "");
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		int64_t ours = table[i].ask(&user), theirs = both ? table[i].ask(&kernel) : ours;

		printf("  %-44s %-12s %s\n", table[i].what, word(ours), both ? word(theirs) : "");
		demo_expect(table[i].what, ours, table[i].expected);
		demo_expect(table[i].what, theirs, table[i].expected);
	}
	end(&user);
	if (both) {
		end(&kernel);
		return 0;
	}
	printf("SKIPPED: %s; to run it: gmem info, kvm and guest_memfd, says what is missing\n", gmem_last_error());
	return 77;
}
