/* SPDX-License-Identifier: MIT */
/*
 * A fuzz target (fuzz/NAME.c) without clang, for a second: its seeds as they are, then changed at random. No coverage
 * leads the way, so bytes that say something are changed more often than the zeros between them. What is tried in round
 * n depends on the seed plus n alone, so what made a round fail can be the first of another run.
 */
#include "tap.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>

#include "base/le.h"
#include "base/range.h"

#define MAX_SEEDS 64u
#define MAX_LEN (1u << 16)
/* Whichever comes last: slow targets get some rounds, fast ones end. */
#define MIN_ROUNDS 100u
#define MAX_ROUNDS 400000u
#define NANOSECONDS (UINT64_C(1) << 30)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Of those targets that have something to prepare. */
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv);

struct input {
	uint8_t *data; /* MAX_LEN bytes */
	size_t len;
};

struct corpus {
	struct input seeds[MAX_SEEDS];
	size_t n;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void add_seed(struct corpus *c, const char *folder, const char *name)
{
	struct input *in = &c->seeds[c->n++];
	char path[1024];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	in->data = malloc(MAX_LEN);
	CHECK(fd >= 0 && in->data);
	n = read(fd, in->data, MAX_LEN);
	CHECK(n > 0);
	in->len = (size_t)n;
	close(fd);
}

/* In the order of their names, so that the same seed picks the same. */
static void read_corpus(struct corpus *c)
{
	const char *source = getenv("GMEM_SOURCE");
	char folder[512], *names[MAX_SEEDS];
	struct dirent *de;
	size_t n = 0;
	DIR *dir;

	memset(c, 0, sizeof(*c));
	if (LLVMFuzzerInitialize)
		CHECK_EQ(LLVMFuzzerInitialize(&(int){ 0 }, &(char **){ NULL }), 0);
	snprintf(folder, sizeof(folder), "%s/fuzz/corpus/" FUZZ_TARGET, source ? source : ".");
	dir = opendir(folder);
	if (!dir)
		FAIL("%s: %s; run it from the source folder, or set GMEM_SOURCE", folder, strerror(errno));
	while ((de = readdir(dir)))
		if (de->d_name[0] != '.' && n < MAX_SEEDS)
			names[n++] = strdup(de->d_name);
	closedir(dir);
	CHECK(n > 0);
	qsort(names, n, sizeof(names[0]), by_name);
	for (size_t i = 0; i < n; i++) {
		add_seed(c, folder, names[i]);
		free(names[i]);
	}
}

static void free_corpus(struct corpus *c)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->seeds[i].data);
}

/* From memory of exactly that length, so that the address sanitizer sees every byte too many. */
static void try(const struct input *in)
{
	uint8_t *data = malloc(in->len ? in->len : 1);

	CHECK(data);
	memcpy(data, in->data, in->len);
	LLVMFuzzerTestOneInput(data, in->len);
	free(data);
}

/* An offset; three times of four the next byte there that is not zero. */
static size_t where(const struct input *in, uint64_t *state)
{
	size_t at = tap_rand(state) % in->len;

	for (size_t i = 0; tap_rand(state) % 4 && i < in->len && !in->data[at]; i++)
		at = (at + 1) % in->len;
	return at;
}

/* Numbers at which programs go wrong. */
static uint64_t interesting(const struct input *in, uint64_t *state)
{
	uint64_t r = tap_rand(state), x;

	switch (r % 8) {
	case 0:
		return 0;
	case 1:
		x = UINT64_C(1) << (r >> 8) % 64;
		break;
	case 2:
		x = UINT64_MAX >> (r >> 8) % 64;
		break;
	case 3:
		x = in->len;
		break;
	case 4:
		x = (r >> 8) % (in->len + 1);
		break;
	case 5:
		x = (r >> 8) % 256;
		break;
	case 6:
		x = (r >> 8) & GMEM_PAGE_MASK;
		break;
	default:
		return r;
	}
	return x + (r >> 3) % 3 - 1; /* or beside it */
}

static void put_number(struct input *in, uint64_t *state)
{
	size_t width = (size_t)1 << tap_rand(state) % 4, at = where(in, state) & ~(width - 1);
	uint64_t x = interesting(in, state);

	for (size_t i = 0; i < width && at + i < in->len; i++)
		in->data[at + i] = (uint8_t)(x >> 8 * i);
}

/* The field there, one more or less, or as much as a page. */
static void add_number(struct input *in, uint64_t *state)
{
	static const uint32_t steps[] = { 1, 12, 16, 18, 32, GMEM_PAGE_SIZE };
	uint64_t r = tap_rand(state);
	size_t at = where(in, state) & ~(size_t)3;
	uint32_t step = steps[r % (sizeof(steps) / sizeof(steps[0]))];

	if (at + 4 <= in->len)
		gmem_put_le32(in->data + at, gmem_get_le32(in->data + at) + (r & 1 << 20 ? step : -step));
}

/* Bytes of another place, of this or of another seed. */
static void copy_bytes(struct input *in, const struct input *from, uint64_t *state)
{
	size_t n = 1 + tap_rand(state) % 64, to = where(in, state), at = where(from, state);

	n = gmem_min_u64(n, gmem_min_u64(in->len - to, from->len - at));
	memmove(in->data + to, from->data + at, n);
}

/* Bytes fewer or more, which moves all that lies behind. */
static void resize(struct input *in, uint64_t *state)
{
	size_t at = tap_rand(state) % 4 ? where(in, state) : 0, n = 1 + tap_rand(state) % 64;

	if (tap_rand(state) & 1) {
		n = gmem_min_u64(n, in->len - at);
		memmove(in->data + at, in->data + at + n, in->len - at - n);
		in->len -= n;
	} else if (in->len + n <= MAX_LEN) {
		memmove(in->data + at + n, in->data + at, in->len - at);
		in->len += n;
	}
}

static void mutate(struct input *in, const struct corpus *c, uint64_t *state)
{
	for (uint64_t n = 1 + tap_rand(state) % 4; n && in->len; n--) {
		switch (tap_rand(state) % 16) {
		case 0 ... 3:
			in->data[where(in, state)] ^= (uint8_t)(1u << tap_rand(state) % 8);
			break;
		case 4 ... 5:
			in->data[where(in, state)] = (uint8_t)tap_rand(state);
			break;
		case 6 ... 9:
			put_number(in, state);
			break;
		case 10 ... 12:
			add_number(in, state);
			break;
		case 13:
			copy_bytes(in, in, state);
			break;
		case 14:
			copy_bytes(in, &c->seeds[tap_rand(state) % c->n], state);
			break;
		default:
			resize(in, state);
		}
	}
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static volatile uint64_t round_seed;

/* Targets end by abort() or a trap. A sanitizer has handlers of its own for what else there is. */
static void died(int sig)
{
	dprintf(STDOUT_FILENO, "GMEM_SEED=%llu has it in the first round\n", (unsigned long long)round_seed);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void tell_the_round(void)
{
	static const int signals[] = { SIGABRT, SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGFPE };

	for (size_t i = 0; i < (tap_slow() ? 3 : 6); i++)
		signal(signals[i], died);
	fflush(stdout);
}

TEST(seeds)
{
	struct corpus c;

	read_corpus(&c);
	for (size_t i = 0; i < c.n; i++)
		try(&c.seeds[i]);
	free_corpus(&c);
}

TEST(mutations)
{
	uint64_t seed = tap_seed(), began = now();
	struct input in = { malloc(MAX_LEN), 0 };
	struct corpus c;
	unsigned int i;

	CHECK(in.data);
	read_corpus(&c);
	tell_the_round();
	for (i = 0; i < MAX_ROUNDS && (i < MIN_ROUNDS || now() - began < NANOSECONDS); i++) {
		uint64_t state = round_seed = seed + i;
		const struct input *from = &c.seeds[tap_rand(&state) % c.n];

		memcpy(in.data, from->data, from->len);
		in.len = from->len;
		mutate(&in, &c, &state);
		try(&in);
	}
	printf("%u rounds\n", i);
	free(in.data);
	free_corpus(&c);
}
