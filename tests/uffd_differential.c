/* SPDX-License-Identifier: MIT */
/*
 * A gmem_uffd's view and a bare userfaultfd on a bare memfd: random operations on both, the same answers, the same
 * events, the same bytes.
 *
 * What differs, and is kept out of the way: a page that is punched, or poisoned, is so in the file, and not only absent
 * again (punches are followed by a mapping of zeroes, poisoned pages are left alone until they are punched, and only
 * absent ones are poisoned); protection stays when a page is mapped (the bare side says so itself, of a range that is
 * all one or all the other).
 */
#include "tap.h"

#include "uffd_util.h"

#define PAGES 48ull
#define LEN (PAGES * P)

struct both {
	struct scene s;
	struct gmem_view *plain; /* of the same file, which nobody serves */
	int fd, uffd;
	char *p, *bare_plain;
	bool protected[PAGES], lost[PAGES];
	uint64_t seed;
	char src[LEN];
};

static void begin(struct both *b)
{
	need_markers();
	catch_bus();
	b->s.len = LEN;
	b->s.file = new_file(LEN, 0);
	b->plain = new_view(b->s.file, 0, LEN);
	b->s.view = new_view(b->s.file, 0, LEN);
	b->s.p = gmem_view_addr(b->s.view);
	b->s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(b->s.uffd, b->s.view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP));
	b->fd = (int)CHECK_OK(memfd_create("bare", MFD_CLOEXEC));
	CHECK_EQ(ftruncate(b->fd, LEN), 0);
	b->p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	b->bare_plain = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	CHECK(b->p != MAP_FAILED && b->bare_plain != MAP_FAILED);
	b->uffd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
					     UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_POISON,
				     NULL);
	CHECK_OK(b->uffd);
	CHECK_OK(gmem_sys_uffd_register(b->uffd, (uintptr_t)b->p, LEN,
					GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR | GMEM_SYS_UFFD_WP));
}

static void end(struct both *b)
{
	munmap(b->p, LEN);
	munmap(b->bare_plain, LEN);
	close(b->uffd);
	close(b->fd);
	gmem_view_unmap(b->plain);
	tear_down(&b->s);
}

/* Of the bare kernel: how far it got, else why not. */
static int64_t so_far(int err, uint64_t done)
{
	return done ? (int64_t)done : err;
}

static uint64_t hva(const struct both *b, uint64_t off)
{
	return (uint64_t)(uintptr_t)b->p + off;
}

static int64_t bare_copy(struct both *b, uint64_t off, uint64_t len)
{
	uint64_t done;
	int err = gmem_sys_uffd_copy(b->uffd, hva(b, off), (uintptr_t)b->src, len,
				     b->protected[off / P] ? GMEM_SYS_UFFD_PROTECTED : 0, &done);

	return so_far(err, done);
}

static int64_t bare_zeropage(struct both *b, uint64_t off, uint64_t len)
{
	uint64_t done;
	int err = gmem_sys_uffd_zeropage(b->uffd, hva(b, off), len, false, &done);

	/* The kernel has no such mode for it. */
	if (done && b->protected[off / P])
		CHECK_OK(gmem_sys_uffd_writeprotect(b->uffd, hva(b, off), done, true, false));
	CHECK_OK(gmem_sys_uffd_wake(b->uffd, hva(b, off), len));
	return so_far(err, done);
}

static int64_t bare_continue(struct both *b, uint64_t off, uint64_t len)
{
	uint64_t done;
	int err = b->protected[off / P] ? gmem_sys_uffd_continue_protected(b->uffd, hva(b, off), len, &done) :
					  gmem_sys_uffd_continue(b->uffd, hva(b, off), len, &done);

	return so_far(err, done);
}

static int64_t gmem_copy(struct both *b, uint64_t off, uint64_t len)
{
	return gmem_uffd_copy(b->s.uffd, b->s.view, off, b->src, len);
}

static int64_t gmem_zeropage(struct both *b, uint64_t off, uint64_t len)
{
	return gmem_uffd_zeropage(b->s.uffd, b->s.view, off, len);
}

static int64_t gmem_continue(struct both *b, uint64_t off, uint64_t len)
{
	return gmem_uffd_continue(b->s.uffd, b->s.view, off, len);
}

static const struct {
	const char *name;
	int64_t (*gmem)(struct both *b, uint64_t off, uint64_t len);
	int64_t (*bare)(struct both *b, uint64_t off, uint64_t len);
} ops[] = {
	{ "copy", gmem_copy, bare_copy },
	{ "zeropage", gmem_zeropage, bare_zeropage },
	{ "continue", gmem_continue, bare_continue },
};

enum { COPY, ZEROPAGE, CONTINUE, OPS };

static void do_both(struct both *b, unsigned int op, uint64_t off, uint64_t len)
{
	int64_t ours = ops[op].gmem(b, off, len), theirs = ops[op].bare(b, off, len);

	if (ours != theirs)
		FAIL("%s of 0x%llx at 0x%llx: %lld, and bare %lld; %s", ops[op].name, (unsigned long long)len,
		     (unsigned long long)off, (long long)ours, (long long)theirs, gmem_last_error());
}

/* A range of pages that are all protected or all not, and none lost. 0: none there. */
static uint64_t draw(struct both *b, uint64_t *off)
{
	uint64_t first = tap_rand(&b->seed) % PAGES, most = 1 + tap_rand(&b->seed) % 12, n = 0;

	while (n < most && first + n < PAGES && !b->lost[first + n] && b->protected[first + n] == b->protected[first])
		n++;
	*off = first * P;
	return n * P;
}

static void do_op(struct both *b, uint64_t off, uint64_t len)
{
	unsigned int op = (unsigned int)(tap_rand(&b->seed) % OPS);

	for (uint64_t i = 0; i < len / 8; i++)
		((uint64_t *)b->src)[i] = tap_rand(&b->seed);
	do_both(b, op, off, len);
}

static void do_protect(struct both *b, uint64_t off, uint64_t len)
{
	bool on = tap_rand(&b->seed) % 2;

	CHECK_EQ(gmem_uffd_writeprotect(b->s.uffd, b->s.view, off, len, on), len);
	CHECK_OK(gmem_sys_uffd_writeprotect(b->uffd, hva(b, off), len, on, true));
	for (uint64_t page = off / P; page < (off + len) / P; page++)
		b->protected[page] = on;
}

static void do_zap(struct both *b, uint64_t off, uint64_t len)
{
	CHECK_EQ(madvise(b->s.p + off, len, MADV_DONTNEED), 0);
	CHECK_EQ(madvise(b->p + off, len, MADV_DONTNEED), 0);
}

/* By another mapping, which gives the page memory. */
static void do_write_by_plain(struct both *b, uint64_t off)
{
	uint64_t word = tap_rand(&b->seed);

	memcpy((char *)gmem_view_addr(b->plain) + off + 16, &word, 8);
	memcpy(b->bare_plain + off + 16, &word, 8);
}

static void do_write_file(struct both *b, uint64_t off)
{
	char page[P];

	for (unsigned int i = 0; i < P; i++)
		page[i] = (char)tap_rand(&b->seed);
	CHECK_OK(gmem_file_write(b->s.file, off, page, P));
	CHECK_EQ(pwrite(b->fd, page, P, (off_t)off), P);
}

static void do_punch(struct both *b, uint64_t off)
{
	CHECK_OK(gmem_file_punch(b->s.file, off, P));
	CHECK_EQ(fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, P), 0);
	/* The bare one keeps its marker. */
	if (b->lost[off / P])
		CHECK_EQ(madvise(b->p + off, P, MADV_DONTNEED), 0);
	b->lost[off / P] = false;
	CHECK_EQ(gmem_continue(b, off, P), P);
	CHECK_EQ(bare_zeropage(b, off, P), P);
}

/* An absent page without protection, on both sides. */
static void do_poison(struct both *b, uint64_t off)
{
	uint64_t done;

	if (b->protected[off / P] || gmem_file_page_state(b->s.file, off) != GMEM_PAGE_ABSENT ||
	    gmem_file_has_memory(b->s.file, off, P))
		return;
	CHECK_EQ(gmem_uffd_poison(b->s.uffd, b->s.view, off, P), P);
	CHECK_OK(gmem_sys_uffd_poison(b->uffd, hva(b, off), P, true, &done));
	CHECK_ERR(gmem_uffd_poison(b->s.uffd, b->s.view, off, P), -EEXIST);
	CHECK_EQ(gmem_sys_uffd_poison(b->uffd, hva(b, off), P, true, &done), -EEXIST);
	CHECK_EQ(touch(b->s.p + off), SIGBUS);
	CHECK_EQ(touch(b->p + off), SIGBUS);
	b->lost[off / P] = true;
}

/* ---- touches */

enum met { NOTHING, MISSING, MINOR, WP, BUS };

/* What the toucher meets next. */
static enum met meets_gmem(struct both *b, struct toucher *t, uint64_t off)
{
	struct gmem_uffd_event e;

	while (!gmem_uffd_read(b->s.uffd, &e, 1)) {
		if (atomic_load(&t->done))
			return t->done == 1 ? NOTHING : BUS;
		usleep(50);
	}
	CHECK_EQ(e.off, off);
	CHECK_EQ(e.len, P);
	CHECK_EQ(!!(e.flags & GMEM_UFFD_FAULT_WRITE), t->write);
	if (e.kind == GMEM_UFFD_EVENT_WP)
		return WP;
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_FAULT);
	return e.flags & GMEM_UFFD_FAULT_MINOR ? MINOR : MISSING;
}

static enum met meets_bare(struct both *b, struct toucher *t, uint64_t off)
{
	struct uffd_msg m;

	while (!CHECK_OK(gmem_sys_uffd_read(b->uffd, &m, 1))) {
		if (atomic_load(&t->done))
			return t->done == 1 ? NOTHING : BUS;
		usleep(50);
	}
	CHECK_EQ(m.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(gmem_page_round_down(m.arg.pagefault.address), hva(b, off));
	CHECK_EQ(!!(m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE), t->write);
	return m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP	 ? WP :
	       m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ? MINOR :
								   MISSING;
}

static void answer(struct both *b, enum met met, uint64_t off)
{
	if (met == WP) {
		CHECK_EQ(gmem_uffd_writeprotect(b->s.uffd, b->s.view, off, P, false), P);
		CHECK_OK(gmem_sys_uffd_writeprotect(b->uffd, hva(b, off), P, false, true));
		b->protected[off / P] = false;
		return;
	}
	do_both(b, met == MINOR ? CONTINUE : tap_rand(&b->seed) % 2 ? COPY : ZEROPAGE, off, P);
}

static void do_touch(struct both *b, uint64_t off)
{
	bool write = tap_rand(&b->seed) % 2;
	struct toucher ours, theirs;

	start(&ours, b->s.p + off + 24, write);
	start(&theirs, b->p + off + 24, write);
	for (;;) {
		enum met met = meets_gmem(b, &ours, off), bare = meets_bare(b, &theirs, off);

		if (met != bare)
			FAIL("touch at 0x%llx: met %d, and bare %d", (unsigned long long)off, met, bare);
		if (met == NOTHING || met == BUS)
			break;
		answer(b, met, off);
	}
	finish(&ours, b->lost[off / P] ? SIGBUS : 0);
	finish(&theirs, b->lost[off / P] ? SIGBUS : 0);
	CHECK_EQ(ours.word, theirs.word);
}

/* ---- all of it */

static void compare_bytes(struct both *b)
{
	char ours[P], theirs[P];

	for (uint64_t off = 0; off < LEN; off += P) {
		if (b->lost[off / P])
			continue;
		CHECK_OK(gmem_file_read(b->s.file, off, ours, P));
		CHECK_EQ(pread(b->fd, theirs, P, (off_t)off), P);
		if (memcmp(ours, theirs, P))
			FAIL("bytes at 0x%llx differ", (unsigned long long)off);
	}
}

static void step(struct both *b)
{
	uint64_t off, len = draw(b, &off);
	unsigned int what = (unsigned int)(tap_rand(&b->seed) % 100);

	if (!len) {
		/* Lost: touched, or healed. */
		if (what < 50)
			do_touch(b, off);
		else
			do_punch(b, off);
	} else if (what < 40) {
		do_op(b, off, len);
	} else if (what < 55) {
		do_protect(b, off, len);
	} else if (what < 65) {
		do_zap(b, off, len);
	} else if (what < 70) {
		do_write_by_plain(b, off);
	} else if (what < 75) {
		do_write_file(b, off);
	} else if (what < 80) {
		do_punch(b, off);
	} else if (what < 85) {
		do_poison(b, off);
	} else {
		do_touch(b, off);
	}
}

/* A page is absent once only: new files, not longer sequences. */
TEST_TIMEOUT(same_as_the_bare_kernel, 90)
{
	static struct both b;
	uint64_t seed = tap_seed(), until = now_ms() + (tap_slow() ? 6000 : 4000), steps = 0;
	int rounds = 0;

	for (; now_ms() < until || rounds < 3; rounds++) {
		memset(&b, 0, sizeof(b));
		begin(&b);
		b.seed = tap_rand(&seed);
		for (int i = 0; i < 250; i++, steps++)
			step(&b);
		compare_bytes(&b);
		end(&b);
	}
	printf("%d worlds, %llu steps\n", rounds, (unsigned long long)steps);
}
