/* SPDX-License-Identifier: MIT */
/*
 * Random operations on the kernel's guest_memfd and on the user engine at once: every return value, errno, signal and
 * byte is compared. What may differ has a name in the table below and a reason in gmem_file(3).
 *
 *	GMEM_SEED=N		the operations of a run that was
 *	GMEM_DIFF_OPS=N		how many; 100,000 without, a tenth of it where the machine is slow
 *
 * `test-differential random_operations` runs without a time limit.
 */
#include "differential.h"

#include <fcntl.h>

#include "tap.h"

#define OPS_A_WORLD 400u
#define ATTEMPTS 24u
#define HISTORY 20u
#define SHRINK_SECONDS 30

static const struct {
	const char *name, *reason;
} differences[NDIFFERENCES] = {
	[DIFF_SIZE] = { "size", "a file has a table with the states of its pages, which has to be mapped" },
	[DIFF_DESCRIPTOR_IO] = { "descriptor-io", "a memfd cannot refuse read(2), write(2), lseek(2) and splice(2)" },
	[DIFF_RESIZE] = { "setattr", "a sealed memfd refuses another size with EPERM, and takes a new mode or time" },
	[DIFF_FALLOCATE_FD] = { "fallocate-fd", "a memfd takes more modes, any alignment, and lengths past its end" },
	[DIFF_PRIVATE_MAPPING] = { "map-private", "a memfd cannot refuse MAP_PRIVATE" },
	[DIFF_RAW_MAPPING] = { "raw-mapping", "what the library did not map it cannot mark, nor refuse" },
	[DIFF_EXEC] = { "exec", "the kernel's file is on a file system that nothing is executed from" },
	[DIFF_SYNC] = { "sync", "a memfd can be synchronised, with no effect" },
	[DIFF_COLLAPSE] = { "large-pages", "shared memory has large pages" },
	[DIFF_MARKERS] = { "markers", "private pages are kept out by markers in the mapping" },
	[DIFF_MAPPED_PAGES] = { "mapped-pages", "which pages a mapping has translations of is not the same" },
	[DIFF_RESIDENT] = { "resident", "the kernel does not say which of its pages are allocated but not written" },
	[DIFF_BOUND_TWICE] = { "bound-twice", "EEXIST from Linux 7.2 on, EINVAL before" },
	[DIFF_OUT_OF_REACH] = { "out-of-reach", "the library does not reach pages that the kernel lets nobody map" },
	[DIFF_NEEDS] = { "needs", "the user engine has what the running kernel lacks, but no KVM slots" },
};

/* One operation of a sequence. */
struct step {
	uint32_t number, attempt;
};

struct tally {
	uint64_t compared, no_oracle, excused[NDIFFERENCES];
};

#define MAX_OPS 96
static const struct operation *ops[MAX_OPS];
static struct tally tallies[MAX_OPS];
static unsigned int nops, total_weight;

static char history[HISTORY][320], mismatch[400];
static uint64_t history_at;

static void collect(const struct operation *table)
{
	for (; table->name; table++) {
		CHECK(nops < MAX_OPS);
		total_weight += table->weight;
		ops[nops++] = table;
	}
}

static void collect_all(void)
{
	collect(diff_file_ops);
	collect(diff_view_ops);
	collect(diff_fd_ops);
	collect(diff_map_ops);
	collect(diff_slot_ops);
}

static unsigned int pick(uint64_t seed, const struct step *step)
{
	uint64_t rng = seed + step->number * 0x2545f4914f6cdd1dull + step->attempt * 0x632be59bd9b4e019ull, r;
	unsigned int i = 0;

	(void)tap_rand(&rng);
	for (r = tap_rand(&rng) % total_weight; r >= ops[i]->weight; i++)
		r -= ops[i]->weight;
	return i;
}

static bool ready(const struct operation *op, const struct world *w, const struct args *a)
{
	return op->ready ? op->ready(w, a) : w->side[KERNEL].file && w->side[USER].file;
}

static int print_answer(char *to, size_t size, const char *who, const struct answer *r)
{
	int n = snprintf(to, size, " | %s %ld", who, r->ret);

	if (r->sig)
		n += snprintf(to + n, size - (size_t)n, " signal %d code %d", r->sig, r->code);
	for (int i = 0; i < 4; i++)
		if (r->value[i])
			n += snprintf(to + n, size - (size_t)n, " [%d]=0x%llx", i, (unsigned long long)r->value[i]);
	if (r->sum)
		n += snprintf(to + n, size - (size_t)n, " sum %llx", (unsigned long long)r->sum);
	return n;
}

static void remember(const struct step *step, const char *name, const struct args *a, const struct answer *r)
{
	char *to = history[history_at++ % HISTORY];
	int n = snprintf(to, sizeof(history[0]),
			 "%u.%u %s off 0x%llx len 0x%llx at 0x%llx n 0x%llx which %u kind %u prot %d", step->number,
			 step->attempt, name, (unsigned long long)a->off, (unsigned long long)a->len,
			 (unsigned long long)a->at, (unsigned long long)a->n, a->which, a->kind, a->prot);

	for (int i = 0; i < SIDES; i++)
		n += print_answer(to + n, sizeof(history[0]) - (size_t)n, i == KERNEL ? "kernel" : "user", &r[i]);
}

static void heal(struct world *w, const struct args *a, unsigned int what)
{
	for (int i = 0; i < SIDES; i++) {
		struct side *s = &w->side[i];

		if ((what & HEAL_BYTES) && s->file)
			CHECK_OK(fallocate(gmem_file_fd(s->file), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
					   (off_t)(w->npages * P)));
		if ((what & HEAL_STATES) && s->file)
			CHECK_OK(gmem_file_punch(s->file, 0, w->npages * P));
		if (what & HEAL_VIEW) {
			gmem_view_unmap(s->view[a->which % NVIEWS]);
			s->view[a->which % NVIEWS] = NULL;
		}
		if (what & HEAL_MAP)
			diff_map_reset(&s->map[a->which % NMAPS]);
	}
}

static bool differ(const struct answer *a, const struct answer *b)
{
	return a->ret != b->ret || a->sig != b->sig || a->code != b->code || a->sum != b->sum ||
	       memcmp(a->value, b->value, sizeof(a->value)) != 0;
}

/* Runs an operation on both sides and compares. False: a mismatch, told in `mismatch`. */
static bool perform(struct world *w, unsigned int i, const struct step *step, const struct args *a)
{
	const struct operation *op = ops[i];
	struct answer r[SIDES] = { 0 };
	enum difference d = SAME;
	unsigned int mend = 0;
	const char *bad;

	if (op->no_oracle && op->no_oracle(w, a)) {
		tallies[i].no_oracle++;
		return true;
	}
	for (int s = 0; s < SIDES; s++)
		op->run(w, &w->side[s], a, &r[s]);
	remember(step, op->name, a, r);
	if (differ(&r[KERNEL], &r[USER])) {
		d = op->excuse ? op->excuse(w, a, &r[KERNEL], &r[USER], &mend) : SAME;
		if (d == SAME) {
			snprintf(mismatch, sizeof(mismatch), "%s: the answers differ", op->name);
			return false;
		}
		tallies[i].excused[d]++;
		heal(w, a, mend);
	} else {
		tallies[i].compared++;
	}
	if (w->npages <= 64 || step->number % 16 == 0)
		bad = diff_compare_bytes(w, 0, w->npages * P);
	else
		bad = diff_compare_bytes(w, a->off & ~(P - 1), a->len);
	if (bad)
		snprintf(mismatch, sizeof(mismatch), "%s: afterwards %s", op->name, bad);
	return !bad;
}

/* The first of the operations that this number stands for that can be done now. 0: none; -1: a mismatch. */
static int attempt(struct world *w, uint64_t seed, struct step *step)
{
	for (step->attempt = 0; step->attempt < ATTEMPTS; step->attempt++) {
		unsigned int i = pick(seed, step);
		struct args a = diff_draw(seed + step->attempt, step->number, w->npages);

		if (ready(ops[i], w, &a))
			return perform(w, i, step, &a) ? 1 : -1;
	}
	return 0;
}

/* These and no others, in a world of their own. True if they end in a mismatch. */
static bool replay(uint64_t seed, uint64_t world, const struct step *steps, unsigned int n)
{
	struct world w;
	bool bad = false;

	if (!diff_world_begin(&w, seed, world))
		return false;
	for (unsigned int i = 0; i < n && !bad; i++) {
		unsigned int op = pick(seed, &steps[i]);
		struct args a = diff_draw(seed + steps[i].attempt, steps[i].number, w.npages);

		bad = ready(ops[op], &w, &a) && !perform(&w, op, &steps[i], &a);
	}
	diff_world_end(&w);
	return bad;
}

/* Leaves out what the mismatch does not need. Returns how many are left. */
static unsigned int shrink(uint64_t seed, uint64_t world, struct step *steps, unsigned int n)
{
	struct step *fewer = calloc(n + 1, sizeof(*fewer));
	time_t end = time(NULL) + SHRINK_SECONDS;

	CHECK(fewer);
	for (unsigned int chunk = n / 2 ? n / 2 : 1; chunk && time(NULL) < end; chunk /= 2) {
		for (unsigned int at = 0; at < n && time(NULL) < end;) {
			unsigned int cut = at + chunk < n ? chunk : n - at, left = n - cut;

			memcpy(fewer, steps, at * sizeof(*steps));
			memcpy(fewer + at, steps + at + cut, (n - at - cut) * sizeof(*steps));
			if (left && replay(seed, world, fewer, left)) {
				memcpy(steps, fewer, left * sizeof(*steps));
				n = left;
			} else {
				at += cut;
			}
		}
	}
	free(fewer);
	return n;
}

static void print_history(void)
{
	uint64_t first = history_at > HISTORY ? history_at - HISTORY : 0;

	for (uint64_t i = first; i < history_at; i++)
		printf("  %s\n", history[i % HISTORY]);
}

static void report(uint64_t seed, uint64_t world, struct step *steps, unsigned int n)
{
	printf("mismatch: GMEM_SEED=%llu operation %u: %s\nthe last operations:\n", (unsigned long long)seed,
	       steps[n - 1].number, mismatch);
	print_history();
	n = shrink(seed, world, steps, n);
	history_at = 0;
	if (replay(seed, world, steps, n))
		printf("%u of them are enough: %s\n", n, mismatch);
	else
		printf("it does not come again\n");
	print_history();
}

/* One world's operations. How many were done; a mismatch ends the case. */
static unsigned int run_world(uint64_t seed, uint64_t number)
{
	struct step steps[OPS_A_WORLD];
	unsigned int n = 0;
	bool bad = false;
	struct world w;

	if (!diff_world_begin(&w, seed, number))
		SKIP("kvm", "%s", gmem_last_error());
	for (unsigned int i = 0; i < OPS_A_WORLD && !bad; i++) {
		int done;

		steps[n].number = (uint32_t)(number * OPS_A_WORLD + i);
		done = attempt(&w, seed, &steps[n]);
		n += done != 0;
		bad = done < 0;
	}
	diff_world_end(&w);
	if (bad) {
		report(seed, number, steps, n);
		FAIL("GMEM_SEED=%llu: the engines differ", (unsigned long long)seed);
	}
	return n;
}

static uint64_t print_tallies(void)
{
	uint64_t compared = 0;

	printf("%-20s %10s %10s  %s\n", "operation", "compared", "no oracle", "excused");
	for (unsigned int i = 0; i < nops; i++) {
		const struct tally *t = &tallies[i];

		printf("%-20s %10llu %10llu ", ops[i]->name, (unsigned long long)t->compared,
		       (unsigned long long)t->no_oracle);
		for (int d = 0; d < NDIFFERENCES; d++)
			if (t->excused[d])
				printf(" %s %llu", differences[d].name, (unsigned long long)t->excused[d]);
		printf("\n");
		compared += t->compared;
	}
	printf("%-20s %10llu\n", "all", (unsigned long long)compared);
	return compared;
}

TEST_TIMEOUT(random_operations, 200)
{
	const char *env = getenv("GMEM_DIFF_OPS");
	uint64_t want = env ? strtoull(env, NULL, 0) : tap_slow() ? 10000 : 100000, done = 0, compared;
	uint64_t seed = tap_seed();

	collect_all();
	for (uint64_t world = 0; done < want; world++)
		done += run_world(seed, world);
	printf("%llu operations\n", (unsigned long long)done);
	compared = print_tallies();
	if (!compared)
		SKIP("kvm", "the kernel's guest_memfd answered nothing that could be compared");
}

/* Each difference that is excused is told to the user, and each that is told is excused. */
TEST(differences_are_in_the_manual)
{
	const char *source = getenv("GMEM_SOURCE");
	bool inside = false, seen[NDIFFERENCES] = { false };
	char path[4096], line[1024];
	FILE *file;

	if (!source)
		SKIP("source", "GMEM_SOURCE is not set");
	snprintf(path, sizeof(path), "%s/man/gmem_file.3.scd", source);
	file = fopen(path, "re");
	if (!file)
		FAIL("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		int which = SAME;

		if (line[0] == '#')
			inside = !strcmp(line, "## Differences from the kernel's guest_memfd\n");
		if (!inside || line[0] != '*')
			continue;
		line[strcspn(line + 1, "*") + 1] = 0;
		for (int d = SAME + 1; d < NDIFFERENCES; d++)
			if (!strcmp(line + 1, differences[d].name))
				which = d;
		if (which == SAME)
			FAIL("gmem_file(3) has a difference that is not excused: %s", line + 1);
		seen[which] = true;
	}
	fclose(file);
	for (int d = SAME + 1; d < NDIFFERENCES; d++)
		if (!seen[d])
			FAIL("gmem_file(3) does not have: %s: %s", differences[d].name, differences[d].reason);
}
