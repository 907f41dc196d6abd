/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-guest [-f] [-r ROUNDS] [-m MIB] FOLDER: what does a guest on KVM pay for its memory being gmem's?
 *
 * User code in a guest writes a word into each page of fresh memory, and reads them all again, eight times. Its memory
 * is a memfd, or a guest_memfd, in a slot set by hand, with KVM_RUN called by hand; or a file of ours in a slot of
 * gmem_vm, run by gmem_vcpu_run(). Then what comes out: `out` instructions, private pages that are converted when the
 * guest meets them, absent pages that a pager brings in, beside a thread that reads them through a view. Everything is
 * kept on one processor. What the guest has read is checked, and what it wrote is looked at from outside.
 *
 * But for the pager, one thread does it all, and it is the thread's time on its processor that is told, the guest's
 * included: a kernel that takes a real-time thread off for 50 ms in each second would be a sixth of a run otherwise.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

#include "bench.h"
#include "guest_machine.h"

#define SECOND_PASSES 8u
#define EXITS 20000u
#define PAGES_OUT 4096u /* private, or absent */

enum { FIRST, SECOND, NPASSES };

static const char *const names[NKINDS] = {
	[RAW_MEMFD] = "a memfd, KVM_RUN",
	[OURS_DEFAULT] = "gmem, user, DEFAULT",
	[OURS_SW_PROTECTED] = "gmem, user, SW_PROTECTED",
	[OURS_CONVERTED] = "gmem, user, DEFAULT, a page converted before",
	[RAW_GUEST_MEMFD] = "a guest_memfd, KVM_RUN",
	[OURS_KERNEL] = "gmem, kernel, DEFAULT",
};

static bool guest_memfd; /* this KVM has guest_memfds whose pages begin shared */

static double cpu_now(void) /* seconds */
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- touching */

static uint64_t sum_of(uint64_t value, uint64_t n)
{
	return value * n + n * (n - 1) / 2;
}

static void measure_touch(enum kind kind, struct bench_row *const rows[NPASSES], size_t len, bool count)
{
	const uint64_t n = len / BENCH_PAGE, value = 0x1234567;
	double begun, first, second = 0;
	struct machine m;

	machine_make(&m, kind, len);
	machine_begin(&m, GUEST_touch, MACHINE_GPA, n, BENCH_PAGE, value);
	begun = cpu_now();
	machine_run(&m);
	first = cpu_now() - begun;
	for (unsigned int i = 0; i < SECOND_PASSES; i++) {
		machine_begin(&m, GUEST_sum, MACHINE_GPA, n, BENCH_PAGE);
		begun = cpu_now();
		machine_run(&m);
		second += cpu_now() - begun;
	}
	if (guest_result(&m.guest) != sum_of(value, n) || machine_word(&m, len - BENCH_PAGE) != value + n - 1)
		bench_die("%s: wrong bytes", names[kind]);
	machine_unmake(&m);
	if (!count)
		return;
	bench_add(rows[FIRST], first * 1e9 / (double)n);
	bench_add(rows[SECOND], second * 1e9 / SECOND_PASSES / (double)n);
}

/* ---- exits */

enum { EXIT_RAW, EXIT_OURS, EXIT_OURS_BLOCKED, NEXITS };

/* Every KVM_RUN after a routine's end comes out at the same instruction. */
static double measure_exits(int how)
{
	struct machine m;
	sigset_t bus;
	double begun;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	machine_make(&m, how == EXIT_RAW ? RAW_MEMFD : OURS_DEFAULT, BENCH_PAGE);
	if (how == EXIT_OURS_BLOCKED)
		sigprocmask(SIG_BLOCK, &bus, NULL);
	machine_begin(&m, GUEST_store8, MACHINE_GPA, 1);
	machine_run(&m);
	begun = cpu_now();
	for (unsigned int i = 0; i < EXITS; i++)
		machine_run(&m);
	begun = cpu_now() - begun;
	sigprocmask(SIG_UNBLOCK, &bus, NULL);
	machine_unmake(&m);
	return begun * 1e6 / EXITS;
}

/* ---- private pages */

/* The guest comes out at each; the page becomes shared, and the guest goes on. Microseconds a page. */
static void measure_private(struct bench_row *all, struct bench_row *converting)
{
	const size_t len = PAGES_OUT * (size_t)BENCH_PAGE;
	double begun, before, conversions = 0;
	unsigned int n = 0;
	struct machine m;

	machine_make(&m, OURS_DEFAULT, len);
	machine_begin(&m, GUEST_touch, MACHINE_GPA, PAGES_OUT, BENCH_PAGE, 1);
	machine_run(&m);
	if (gmem_file_set_attributes(m.file, 0, len, GMEM_ATTRIBUTE_PRIVATE, NULL))
		bench_die("to private");
	machine_begin(&m, GUEST_sum, MACHINE_GPA, PAGES_OUT, BENCH_PAGE);
	begun = cpu_now();
	while (!machine_run_to_page(&m)) {
		struct gmem_exit e = { .size = sizeof(e) };

		gmem_vcpu_exit(m.ours, &e);
		before = bench_now();
		if (gmem_file_set_attributes(m.file, e.gpa - MACHINE_GPA, BENCH_PAGE, 0, NULL))
			bench_die("to shared");
		conversions += bench_now() - before;
		n++;
	}
	begun = cpu_now() - begun;
	if (n != PAGES_OUT || guest_result(&m.guest) != sum_of(1, PAGES_OUT))
		bench_die("%u exits, sum %llu", n, (unsigned long long)guest_result(&m.guest));
	machine_unmake(&m);
	bench_add(all, begun * 1e6 / PAGES_OUT);
	bench_add(converting, conversions * 1e6 / PAGES_OUT);
}

/* ---- absent pages */

static struct {
	struct gmem_source *source;
	uint64_t sum;
} served;

static void make_source(void)
{
	int fd = bench_memfd(PAGES_OUT * (size_t)BENCH_PAGE);
	char page[BENCH_PAGE];

	for (uint64_t i = 0; i < PAGES_OUT; i++) {
		bench_page(i, false, page);
		served.sum += bench_first_word(i);
		if (pwrite(fd, page, sizeof(page), (off_t)(i * BENCH_PAGE)) != (ssize_t)sizeof(page))
			bench_die("pwrite");
	}
	if (gmem_source_new_fd(fd, 0, PAGES_OUT * (size_t)BENCH_PAGE, &served.source))
		bench_die("source");
	close(fd);
}

static uint64_t sum_of_view(const char *addr)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < PAGES_OUT; i++)
		sum += *(const volatile uint64_t *)(addr + i * BENCH_PAGE);
	return sum;
}

/* Microseconds a page. */
static double measure_absent(bool by_guest)
{
	const size_t len = PAGES_OUT * (size_t)BENCH_PAGE;
	struct gmem_pager *pager;
	struct gmem_view *view;
	struct machine m;
	double begun;
	uint64_t sum;

	machine_make(&m, OURS_DEFAULT, len);
	if (gmem_pager_create(NULL, &pager) || gmem_view_map(m.file, 0, len, PROT_READ | PROT_WRITE, &view) ||
	    gmem_pager_add_view(pager, view, served.source, 0) < 0)
		bench_die("pager");
	machine_begin(&m, GUEST_sum, MACHINE_GPA, PAGES_OUT, BENCH_PAGE);
	begun = bench_now();
	if (by_guest)
		machine_run(&m);
	sum = by_guest ? 0 : sum_of_view(gmem_view_addr(view));
	begun = bench_now() - begun;
	if ((by_guest ? guest_result(&m.guest) : sum) != served.sum)
		bench_die("wrong bytes");
	gmem_pager_free(pager);
	gmem_view_unmap(view);
	machine_unmake(&m);
	return begun * 1e6 / PAGES_OUT;
}

/* ---- rounds */

struct rows {
	struct bench_row *touch[NKINDS][NPASSES];
	struct bench_row *exits[NEXITS], *private, *converting, *by_thread, *by_guest;
};

static bool can(enum kind kind)
{
	return guest_memfd || (kind != RAW_GUEST_MEMFD && kind != OURS_KERNEL);
}

static void add_touch_rows(struct bench *b, struct rows *r, int pass)
{
	static const char *const passes[] = { "first touch", "second pass" };

	for (int k = 0; k < NKINDS; k++) {
		int base = k < RAW_GUEST_MEMFD ? RAW_MEMFD : RAW_GUEST_MEMFD;

		if (can((enum kind)k))
			r->touch[k][pass] = bench_row(b, "ns/page", k == base ? NULL : r->touch[base][pass],
						      "%s of %u MiB: %s", passes[pass], b->mib, names[k]);
	}
	for (int k = OURS_DEFAULT; k <= OURS_SW_PROTECTED; k++)
		bench_target(b, r->touch[k][pass], false, 1.1, "%s, %s, beside a memfd by hand", passes[pass],
			     names[k]);
	if (guest_memfd)
		bench_target(b, r->touch[OURS_KERNEL][pass], false, 1.05, "%s, %s, beside a guest_memfd by hand",
			     passes[pass], names[OURS_KERNEL]);
}

static void add_rows(struct bench *b, struct rows *r)
{
	add_touch_rows(b, r, FIRST);
	add_touch_rows(b, r, SECOND);
	r->exits[EXIT_RAW] = bench_row(b, "us", NULL, "exit by an out instruction: KVM_RUN");
	r->exits[EXIT_OURS] = bench_row(b, "us", r->exits[EXIT_RAW], "exit by an out instruction: gmem_vcpu_run");
	r->exits[EXIT_OURS_BLOCKED] =
		bench_row(b, "us", r->exits[EXIT_RAW], "exit by an out instruction: gmem_vcpu_run, SIGBUS blocked");
	r->private = bench_row(b, "us/page", NULL, "private page: out, made shared, on");
	r->converting = bench_row(b, "us/page", NULL, "private page: of it gmem_file_set_attributes");
	r->by_thread = bench_row(b, "us/page", NULL, "absent page, a pager of a memfd: a thread reads a view");
	r->by_guest = bench_row(b, "us/page", r->by_thread, "absent page, a pager of a memfd: a guest reads");
}

/* Every other round backwards. */
static void round_of(struct rows *r, size_t len, unsigned int round)
{
	bool back = round & 1, count = round;

	for (int i = 0; i < NKINDS; i++) {
		enum kind kind = (enum kind)(back ? NKINDS - 1 - i : i);

		if (can(kind))
			measure_touch(kind, r->touch[kind], len, count);
	}
	if (!count)
		return;
	for (int i = 0; i < NEXITS; i++) {
		int how = back ? NEXITS - 1 - i : i;

		bench_add(r->exits[how], measure_exits(how));
	}
	measure_private(r->private, r->converting);
	bench_add(back ? r->by_guest : r->by_thread, measure_absent(back));
	bench_add(back ? r->by_thread : r->by_guest, measure_absent(!back));
}

static void stay_on_this_processor(void)
{
	cpu_set_t set;
	int cpu = sched_getcpu();

	CPU_ZERO(&set);
	CPU_SET(cpu < 0 ? 0 : cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		bench_die("processor %d", cpu);
}

int main(int argc, char **argv)
{
	static struct bench b;
	struct rows r;
	const char *why;

	bench_begin(&b, "guest", 256, argc, argv);
	why = machine_why_not(RAW_MEMFD);
	if (why) {
		printf("SKIPPED: KVM: %s\n", why);
		return 77;
	}
	close(bench_uffd_open(false));
	why = machine_why_not(RAW_GUEST_MEMFD);
	guest_memfd = !why;
	if (why)
		printf("  without the kernel engine: guest_memfd: %s\n", why);
	stay_on_this_processor();
	make_source();
	add_rows(&b, &r);
	/* The first round is not counted. */
	for (unsigned int round = 0; round <= b.rounds; round++)
		round_of(&r, (size_t)b.mib << 20, round);
	gmem_source_unref(served.source);
	return bench_end(&b);
}
