/* SPDX-License-Identifier: MIT */
/*
 * Views in any mix of map, unmap, split, remap and of the program's own calls on their addresses, against a model: what
 * each page of each view's place shows is known, and each is touched after each step.
 */
#include "tap.h"

#include "sys/uapi.h"
#include "view_util.h"

#define N 48u /* pages of the file */
#define SPAN 64u /* pages a view may show: more than there are */
#define VIEWS 6u
#define ROOMS (SPAN * 4)

/* What is at a page of a view's place. */
enum { SHOWN, HOLE, FOREIGN };

struct shown {
	struct gmem_view *view;
	bool writable;
	uint64_t page, npages;
	char *at;
	unsigned char what[2 * SPAN];
	unsigned char byte[2 * SPAN]; /* of what is FOREIGN */
	int prot[2 * SPAN];
};

enum {
	MAP,
	UNMAP,
	SPLIT,
	SHRINK,
	GROW,
	MOVE,
	MOVE_FIXED,
	RAW_UNMAP,
	RAW_OVER,
	RAW_PROTECT,
	CONVERT,
	PUNCH,
	STORE,
	FORK,
	OPS
};
static const char *const names[] = { "map",	  "unmap",   "split",	    "shrink",  "grow",	"move",	 "move fixed",
				     "raw unmap", "raw map", "raw protect", "convert", "punch", "store", "fork" };

static struct gmem_file *file;
static struct shown views[VIEWS];
static unsigned char private[N], byte[N];
static uint64_t seed, done[OPS], compared, refused;

static uint64_t below(uint64_t n)
{
	return tap_rand(&seed) % n;
}

static int expected(const struct shown *v, uint64_t i)
{
	uint64_t page = v->page + i;

	if (v->what[i] == HOLE || v->prot[i] == PROT_NONE)
		return SEGV;
	if (v->what[i] == FOREIGN)
		return v->byte[i];
	return page >= N || private[page] ? BUS : byte[page];
}

static void compare(const char *after)
{
	for (struct shown *v = views; v < views + VIEWS; v++) {
		for (uint64_t i = 0; v->view && i < v->npages; i++) {
			int got = look(v->at + i * P), want = expected(v, i);

			if (got != want)
				FAIL("after %s: page %llu of the view at page %llu: %d, not %d", after,
				     (unsigned long long)i, (unsigned long long)v->page, got, want);
			compared++;
		}
	}
	for (uint64_t i = 0; i < N; i++)
		CHECK_EQ((unsigned char)*guest(file, i), byte[i]);
}

static struct shown *some_view(bool used)
{
	uint64_t from = below(VIEWS);

	for (uint64_t i = 0; i < VIEWS; i++)
		if (!views[(from + i) % VIEWS].view == !used)
			return &views[(from + i) % VIEWS];
	return NULL;
}

static bool is_whole(const struct shown *v)
{
	for (uint64_t i = 0; i < v->npages; i++)
		if (v->what[i] != SHOWN)
			return false;
	return true;
}

/* All of it, or from `from` on, is the library's own again. */
static void anew(struct shown *v, uint64_t from)
{
	memset(v->what + from, SHOWN, sizeof(v->what) - from);
	for (uint64_t i = from; i < 2 * SPAN; i++)
		v->prot[i] = v->writable ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* What the library leaves alone goes by the test's own hand, when nobody would look at it any more. */
static void drop_foreign(const struct shown *v, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		int want = v->what[i] == FOREIGN && v->prot[i] ? v->byte[i] : SEGV;

		CHECK_EQ(look(v->at + i * P), want);
		if (v->what[i] == FOREIGN)
			CHECK_EQ(munmap(v->at + i * P, P), 0);
	}
}

static void op_map(void)
{
	struct shown *v = some_view(false);

	if (!v)
		return;
	v->page = below(N + 4);
	v->npages = 1 + below(SPAN / 2);
	v->writable = below(3) > 0;
	v->view = view_of(file, v->page, v->npages, v->writable ? PROT_READ | PROT_WRITE : PROT_READ);
	v->at = gmem_view_addr(v->view);
	anew(v, 0);
	done[MAP]++;
}

static void op_unmap(struct shown *v)
{
	gmem_view_unmap(v->view);
	v->view = NULL;
	drop_foreign(v, 0, v->npages);
	done[UNMAP]++;
}

static void op_split(struct shown *v)
{
	struct shown *rest = some_view(false);
	uint64_t n;

	if (!rest || v->npages < 2)
		return;
	n = 1 + below(v->npages - 1);
	*rest = *v;
	CHECK_OK(gmem_view_split(v->view, n * P, &rest->view));
	memmove(rest->what, v->what + n, sizeof(v->what) - n);
	memmove(rest->byte, v->byte + n, sizeof(v->byte) - n);
	memmove(rest->prot, v->prot + n, sizeof(v->prot) - n * sizeof(v->prot[0]));
	rest->at += n * P;
	rest->page += n;
	rest->npages -= n;
	v->npages = n;
	CHECK(gmem_view_addr(rest->view) == rest->at && gmem_view_len(rest->view) == rest->npages * P);
	done[SPLIT]++;
}

static void op_shrink(struct shown *v)
{
	uint64_t n = 1 + below(v->npages);

	CHECK_OK(gmem_view_remap(v->view, n * P, below(2) ? v->at : NULL));
	CHECK(gmem_view_addr(v->view) == v->at);
	drop_foreign(v, n, v->npages);
	v->npages = n;
	done[SHRINK]++;
}

/* Grows where it is or elsewhere; or moves, to a place of its own or to one that is full. */
static void op_move(struct shown *v, unsigned int op)
{
	uint64_t n = op == GROW ? v->npages + 1 + below(SPAN / 4) : 1 + below(SPAN);
	char *old = v->at, *to = NULL;
	bool stays;
	int err;

	n = n > SPAN ? SPAN : n;
	if (op == MOVE_FIXED) {
		to = mmap(NULL, n * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(to != MAP_FAILED);
		*to = 'f';
	}
	stays = !to && n <= v->npages;
	err = gmem_view_remap(v->view, n * P, to);
	if (!stays && !is_whole(v)) {
		CHECK_EQ(err, -EFAULT);
		CHECK(gmem_view_addr(v->view) == old && gmem_view_len(v->view) == v->npages * P);
		if (to)
			CHECK_EQ(munmap(to, n * P), 0);
		refused++;
		return;
	}
	CHECK_EQ(err, 0);
	v->at = gmem_view_addr(v->view);
	CHECK(!to || v->at == to);
	if (v->at != old) {
		for (uint64_t i = 0; i < v->npages; i++)
			CHECK_EQ(look(old + i * P), SEGV);
		anew(v, 0);
	} else if (stays) {
		drop_foreign(v, n, v->npages);
	} else {
		anew(v, v->npages);
	}
	v->npages = n;
	done[op]++;
}

static void op_convert(void)
{
	uint64_t page = below(N), n = 1 + below(below(2) ? N : 3), side = below(2);

	n = n > N - page ? N - page : n;
	convert(file, page, n, side ? PRIVATE : 0);
	memset(private + page, (int)side, n);
	/* What the guest writes there is nobody else's to see. */
	for (uint64_t i = page; side && i < page + n; i++)
		*guest(file, i) = (char)(byte[i] = (unsigned char)(128 + below(128)));
	done[CONVERT]++;
}

/* A hole is looked at as long as the kernel has nothing to put into it; from then on somebody's memory is there. */
static void reserve_holes(struct shown *v, uint64_t from, uint64_t to)
{
	for (unsigned int i = 0; i < 3; i++) {
		op_convert();
		compare("raw unmap");
	}
	for (uint64_t i = from; i < to; i++) {
		void *at = v->at + i * P;

		CHECK(mmap(at, P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
		v->what[i] = FOREIGN;
		v->prot[i] = PROT_NONE;
		v->byte[i] = 0;
	}
}

static void op_raw(struct shown *v, unsigned int op)
{
	uint64_t i = below(v->npages), n = 1 + below(4), prot = below(3);

	n = n > v->npages - i ? v->npages - i : n;
	for (uint64_t k = i; k < i + n; k++) {
		if (op == RAW_PROTECT) {
			if (v->what[k] == HOLE || (v->what[k] == SHOWN && !v->writable && prot == 2))
				continue;
			v->prot[k] = prot == 0 ? PROT_NONE : prot == 1 ? PROT_READ : PROT_READ | PROT_WRITE;
			CHECK_EQ(mprotect(v->at + k * P, P, v->prot[k]), 0);
		} else if (op == RAW_UNMAP) {
			CHECK_EQ(munmap(v->at + k * P, P), 0);
			v->what[k] = HOLE;
		} else {
			CHECK(mmap(v->at + k * P, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				   -1, 0) == v->at + k * P);
			v->what[k] = FOREIGN;
			v->prot[k] = PROT_READ | PROT_WRITE;
			v->byte[k] = (unsigned char)(1 + below(255));
			v->at[k * P] = (char)v->byte[k];
		}
	}
	if (op == RAW_UNMAP)
		reserve_holes(v, i, i + n);
	done[op]++;
}

static void op_punch(void)
{
	uint64_t page = below(N);

	CHECK_OK(gmem_file_punch(file, page * P, P));
	byte[page] = 0;
	done[PUNCH]++;
}

static void op_store(struct shown *v)
{
	uint64_t i = below(v->npages), page = v->page + i;
	unsigned char value = (unsigned char)below(128);
	int want = expected(v, i);

	if (want >= 0)
		want = v->prot[i] & PROT_WRITE ? 0 : SEGV;
	/* Which of two reasons is told is the kernel's choice. */
	else if (!(v->prot[i] & PROT_WRITE))
		want = SEGV;
	CHECK_EQ(put(v->at + i * P, value), want);
	if (!want && v->what[i] == FOREIGN)
		v->byte[i] = value;
	else if (!want)
		byte[page] = value;
	done[STORE]++;
}

/* A child has no view, and gets none: it reads no byte of the file that is private, whatever it tries. */
static void op_fork(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid) {
		wait_ok(pid);
		done[FORK]++;
		return;
	}
	for (struct shown *v = views; v < views + VIEWS; v++) {
		struct gmem_view *other;

		if (!v->view)
			continue;
		for (uint64_t i = 0; i < v->npages; i++) {
			int got = look(v->at + i * P), want = v->what[i] == FOREIGN ? expected(v, i) : SEGV;

			if (got != want)
				FAIL("in a child: page %llu of the view at page %llu: %d, not %d",
				     (unsigned long long)i, (unsigned long long)v->page, got, want);
		}
		CHECK_ERR(gmem_view_split(v->view, P, &other), -EIO);
		CHECK_ERR(gmem_view_remap(v->view, P, NULL), -EIO);
		CHECK_ERR(gmem_view_map(file, 0, P, PROT_READ, &other), -EBUSY);
	}
	for (uint64_t i = 0; i < N; i++) {
		char got = 'x';

		if (private[i])
			CHECK_ERR(gmem_file_read(file, i * P, &got, 1), -EACCES);
		CHECK_ERR(gmem_file_set_attributes(file, i * P, P, 0, NULL), -EIO);
	}
	_exit(0);
}

static unsigned int step(void)
{
	unsigned int op = (unsigned int)below(OPS);
	struct shown *v = some_view(true);

	/* Forks are slow, conversions what it is about. */
	if (op == FORK && below(20))
		op = CONVERT;
	if (op == MAP)
		op_map();
	else if (op == CONVERT)
		op_convert();
	else if (op == PUNCH)
		op_punch();
	else if (op == FORK)
		op_fork();
	else if (!v)
		op_map();
	else if (op == UNMAP)
		op_unmap(v);
	else if (op == SPLIT)
		op_split(v);
	else if (op == SHRINK)
		op_shrink(v);
	else if (op == STORE)
		op_store(v);
	else if (op >= RAW_UNMAP)
		op_raw(v, op);
	else
		op_move(v, op);
	return op;
}

TEST_TIMEOUT(any_mix, 60)
{
	unsigned int steps = tap_slow() ? 500 : 5000;

	if (tap_emulator())
		SKIP("mappings", "%s ignores MADV_DONTFORK", tap_emulator());
	seed = tap_seed();
	file = file_of(N, 0);
	catch_faults();
	for (uint64_t i = 0; i < N; i++)
		*guest(file, i) = (char)(byte[i] = (unsigned char)(i + 1));
	/* From here on no child gets a view. */
	convert(file, 0, 1, PRIVATE);
	private[0] = 1;
	for (unsigned int i = 0; i < steps; i++)
		compare(names[step()]);
	op_fork();
	check_sides(file, private, N);
	for (unsigned int op = 0; op < OPS; op++) {
		printf("%s %llu%s", names[op], (unsigned long long)done[op], op + 1 < OPS ? ", " : "");
		CHECK(done[op] > 0);
	}
	printf("; refused %llu; %llu pages compared\n", (unsigned long long)refused, (unsigned long long)compared);
	for (struct shown *v = views; v < views + VIEWS; v++)
		if (v->view)
			op_unmap(v);
	gmem_file_free(file);
}
