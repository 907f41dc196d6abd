/* SPDX-License-Identifier: MIT */
/* What every operation of a gmem_uffd says to every state of a page, small or huge, shared or private; and leaves. */
#include "tap.h"

#include "huge_util.h"
#include "uffd_util.h"

enum op { COPY, ZEROPAGE, CONTINUE, POISON, PROTECT, UNPROTECT, OPS };
enum state { ABSENT, IN_PLACE, MAPPED, REMOVED, LOST, BY_A_MAPPING, STATES };

static const char *const op_names[] = { "copy", "zeropage", "continue", "poison", "protect", "unprotect" };
static const char *const state_names[] = { "absent", "in place", "mapped", "removed", "poisoned", "by a mapping" };

/* 0: all of it. */
static const int answers[STATES][OPS] = {
	[ABSENT] = { 0, 0, -EFAULT, 0, 0, 0 },
	[IN_PLACE] = { -EEXIST, -EEXIST, 0, -EEXIST, 0, 0 },
	[MAPPED] = { -EEXIST, -EEXIST, -EEXIST, -EEXIST, 0, 0 },
	[REMOVED] = { -EEXIST, -EEXIST, 0, -EEXIST, 0, 0 },
	[LOST] = { -EHWPOISON, -EHWPOISON, -EHWPOISON, -EEXIST, 0, 0 },
	[BY_A_MAPPING] = { -EEXIST, -EEXIST, 0, -EEXIST, 0, 0 },
};

static char *source; /* two pages of the scene's */

struct ops_scene {
	struct scene s;
	struct gmem_view *plain; /* of a page of its own */
	uint64_t page; /* size */
};

static int64_t do_op(struct ops_scene *o, enum op op, uint64_t off, uint64_t len)
{
	struct gmem_uffd *uffd = o->s.uffd;
	struct gmem_view *view = o->s.view;

	switch (op) {
	case COPY:
		return gmem_uffd_copy(uffd, view, off, source, len);
	case ZEROPAGE:
		return gmem_uffd_zeropage(uffd, view, off, len);
	case CONTINUE:
		return gmem_uffd_continue(uffd, view, off, len);
	case POISON:
		return gmem_uffd_poison(uffd, view, off, len);
	default:
		return gmem_uffd_writeprotect(uffd, view, off, len, op == PROTECT);
	}
}

static void begin(struct ops_scene *o, bool huge)
{
	memset(o, 0, sizeof(*o));
	need_markers();
	catch_bus();
	o->page = huge ? H : P;
	o->s.len = 4 * o->page;
	o->s.file = huge ? huge_file(4, 0) : new_file(o->s.len, 0);
	o->plain = new_view(o->s.file, o->page, o->page);
	o->s.view = new_view(o->s.file, 0, o->s.len);
	o->s.p = gmem_view_addr(o->s.view);
	o->s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(o->s.uffd, o->s.view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP));
	source = realloc(source, 2 * o->page);
	memset(source, 's', 2 * o->page);
}

static void end(struct ops_scene *o)
{
	gmem_view_unmap(o->plain);
	tear_down(&o->s);
}

/* The second page. */
static void make(struct ops_scene *o, enum state state)
{
	uint64_t off = o->page;
	char *bytes;

	switch (state) {
	case ABSENT:
		return;
	case IN_PLACE:
		bytes = malloc(o->page);
		memset(bytes, 'i', o->page);
		CHECK_OK(gmem_file_write(o->s.file, off, bytes, o->page));
		free(bytes);
		return;
	case MAPPED:
		memset(source, 'i', o->page);
		CHECK_EQ(do_op(o, COPY, off, o->page), o->page);
		memset(source, 's', o->page);
		return;
	case REMOVED:
		CHECK_OK(gmem_file_punch(o->s.file, off, o->page));
		return;
	case LOST:
		CHECK_EQ(do_op(o, POISON, off, o->page), o->page);
		return;
	default:
		memset(gmem_view_addr(o->plain), 'i', o->page);
	}
}

static int file_state(const struct ops_scene *o)
{
	return gmem_file_page_state(o->s.file, o->page);
}

/* What it is afterwards, to the library and to who touches it. `was`: its state in the file before. */
static void check_after(struct ops_scene *o, enum op op, enum state state, int err, int was)
{
	const char *p = o->s.p + o->page;

	if (err && state != BY_A_MAPPING) {
		CHECK_EQ(file_state(o), was);
		return;
	}
	if (op == POISON && !err) {
		CHECK_EQ(file_state(o), GMEM_PAGE_POISONED);
		CHECK_EQ(touch(p), SIGBUS);
		CHECK_EQ(touch(p + o->page - 1), SIGBUS);
		/* In the view that nobody serves too. */
		CHECK_EQ(touch(gmem_view_addr(o->plain)), SIGBUS);
		return;
	}
	if (op > CONTINUE || err)
		return;
	CHECK_EQ(file_state(o), op == ZEROPAGE || state == REMOVED ? GMEM_PAGE_REMOVED : GMEM_PAGE_UPTODATE);
	/* Mapped by it, so that no event comes. */
	CHECK_EQ(p[0], op == COPY ? 's' : op == ZEROPAGE || state == REMOVED ? 0 : 'i');
	CHECK_EQ(p[o->page - 1], p[0]);
	no_event(o->s.uffd);
}

static void each_op_on_each_state(bool huge)
{
	for (enum state state = 0; state < STATES; state++) {
		for (enum op op = 0; op < OPS; op++) {
			struct ops_scene o;
			int64_t got;
			int was;

			begin(&o, huge);
			make(&o, state);
			was = file_state(&o);
			got = do_op(&o, op, o.page, o.page);
			if (got != (answers[state][op] ? answers[state][op] : (int64_t)o.page))
				FAIL("%s of a page that is %s: %lld (%s)", op_names[op], state_names[state],
				     (long long)got, gmem_last_error());
			if (got < 0)
				CHECK_HAS(gmem_last_error(), "gmem_uffd_");
			check_after(&o, op, state, answers[state][op], was);
			end(&o);
		}
	}
}

TEST_TIMEOUT(small_pages, 60)
{
	each_op_on_each_state(false);
}

TEST_TIMEOUT(huge_pages, 120)
{
	each_op_on_each_state(true);
}

/* Where the range goes on past what can be done: so far, and then why. */
static void partial(bool huge)
{
	for (enum state state = 0; state < STATES; state++) {
		for (enum op op = 0; op < PROTECT; op++) {
			struct ops_scene o;
			int err = answers[state][op];

			if (!err)
				continue;
			begin(&o, huge);
			make(&o, state);
			if (op == CONTINUE)
				CHECK_OK(gmem_file_punch(o.s.file, 0, o.page));
			CHECK_EQ(do_op(&o, op, 0, 2 * o.page), o.page);
			CHECK_ERR(do_op(&o, op, o.page, 2 * o.page), err);
			end(&o);
		}
	}
}

TEST_TIMEOUT(so_far_and_no_further, 60)
{
	partial(false);
}

TEST_TIMEOUT(so_far_and_no_further_huge, 120)
{
	partial(true);
}

/* Refused whatever it is, and whatever its operation: nothing of it changes, and its touchers are not left behind. */
static void refuses_private(bool huge)
{
	for (enum state state = ABSENT; state <= REMOVED; state++) {
		for (enum op op = 0; op < OPS; op++) {
			struct ops_scene o;
			int was;

			begin(&o, huge);
			make(&o, state);
			was = file_state(&o);
			convert(o.s.file, o.page, o.page, PRIVATE);
			CHECK_ERR(do_op(&o, op, o.page, o.page), -EACCES);
			CHECK_EQ(file_state(&o), was);
			CHECK_EQ(touch(o.s.p + o.page), SIGBUS);
			/* Up to it. */
			if (op == CONTINUE)
				CHECK_OK(gmem_file_punch(o.s.file, 0, o.page));
			CHECK_EQ(do_op(&o, op, 0, 3 * o.page), o.page);
			no_event(o.s.uffd);
			end(&o);
		}
	}
}

TEST_TIMEOUT(private_small_pages, 60)
{
	refuses_private(false);
}

TEST_TIMEOUT(private_huge_pages, 120)
{
	refuses_private(true);
}

/* Somebody waits, and goes on as the answer says: with the page, or at the event that it is now, or not at all. */
static void with_a_toucher(bool huge)
{
	for (enum op op = 0; op < PROTECT; op++) {
		struct ops_scene o;
		struct toucher t;

		begin(&o, huge);
		start(&t, o.s.p + o.page + 8, true);
		CHECK_EQ(next_event(o.s.uffd).off, o.page);
		if (op == CONTINUE)
			CHECK_OK(gmem_file_punch(o.s.file, o.page, o.page));
		CHECK_EQ(do_op(&o, op, o.page, o.page), o.page);
		finish(&t, op == POISON ? SIGBUS : 0);
		if (op != POISON)
			CHECK_EQ(t.word, 0x77);
		end(&o);
	}
}

TEST_TIMEOUT(touchers_go_on, 60)
{
	with_a_toucher(false);
}

TEST_TIMEOUT(touchers_of_huge_pages_go_on, 60)
{
	with_a_toucher(true);
}

/* Zero for whoever has the file, and no memory before somebody maps it. */
TEST(zeropage_is_of_the_file)
{
	struct gmem_file_counts c = { .size = sizeof(c) };
	struct ops_scene o;
	char byte = 1;

	begin(&o, false);
	CHECK_EQ(do_op(&o, ZEROPAGE, 0, 2 * P), 2 * P);
	CHECK_OK(gmem_file_query(o.s.file, &c));
	CHECK_EQ(c.removed, 2);
	CHECK_EQ(*(char *)gmem_view_addr(o.plain), 0);
	CHECK_OK(gmem_file_read(o.s.file, P, &byte, 1));
	CHECK_EQ(byte, 0);
	/* Writable like any other. */
	o.s.p[P] = 7;
	CHECK_EQ(*(char *)gmem_view_addr(o.plain), 7);
	end(&o);
}

/* It is the page that is lost: elsewhere too, and until it is punched. */
TEST(poison_is_of_the_file)
{
	struct ops_scene o;
	struct gmem_view *late;
	char byte;

	begin(&o, false);
	CHECK_EQ(do_op(&o, POISON, P, P), P);
	CHECK_ERR(gmem_file_read(o.s.file, P, &byte, 1), -EHWPOISON);
	late = new_view(o.s.file, 0, 2 * P);
	CHECK_EQ(touch((char *)gmem_view_addr(late) + P), SIGBUS);
	CHECK_OK(gmem_file_punch(o.s.file, P, P));
	CHECK_EQ(touch((char *)gmem_view_addr(late) + P), 0);
	CHECK_EQ(touch(gmem_view_addr(o.plain)), 0);
	CHECK_EQ(do_op(&o, CONTINUE, P, P), P);
	CHECK_EQ(o.s.p[P], 0);
	gmem_view_unmap(late);
	end(&o);
}

/* Another view that is served: its touchers are told, answered with the truth, and get their signal. */
TEST(poison_and_another_served_view)
{
	struct gmem_view *other;
	struct ops_scene o;
	struct toucher t;

	begin(&o, false);
	other = new_view(o.s.file, 0, 4 * P);
	CHECK_OK(gmem_uffd_add_view(o.s.uffd, other));
	start(&t, (char *)gmem_view_addr(other) + 2 * P, false);
	CHECK(next_event(o.s.uffd).view == other);
	CHECK_EQ(do_op(&o, POISON, 2 * P, P), P);
	finish(&t, SIGBUS);
	no_event(o.s.uffd);
	gmem_view_unmap(other);
	end(&o);
}

/* Some of a huge page is in place: the rest is zero, or is lost and takes the page with it. */
TEST(parts_of_a_huge_page)
{
	struct ops_scene o;
	char page[P];

	begin(&o, true);
	memset(page, 'h', P);
	CHECK_OK(gmem_file_write(o.s.file, 9 * P, page, P));
	CHECK_OK(gmem_file_write(o.s.file, H + 9 * P, page, P));
	CHECK_EQ(do_op(&o, ZEROPAGE, 0, H), H);
	CHECK_MEM(o.s.p + 9 * P, page, P);
	CHECK(page_is_zero(o.s.p + 8 * P) && page_is_zero(o.s.p + 10 * P));
	CHECK_EQ(do_op(&o, POISON, H, H), H);
	CHECK_EQ(touch(o.s.p + H + 9 * P), SIGBUS);
	CHECK_EQ(gmem_file_page_state(o.s.file, H + 9 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(o.s.file, H + 8 * P), GMEM_PAGE_POISONED);
	end(&o);
}

TEST(arguments)
{
	struct gmem_uffd *other = new_uffd(0);
	struct ops_scene o;
	struct gmem_view *v;

	begin(&o, false);
	v = new_view(o.s.file, 0, P);
	for (enum op op = 0; op < OPS; op++) {
		CHECK_ERR(do_op(&o, op, 1, P), -EINVAL);
		CHECK_ERR(do_op(&o, op, 0, P + 1), -EINVAL);
		CHECK_ERR(do_op(&o, op, 0, 0), -EINVAL);
		CHECK_ERR(do_op(&o, op, 3 * P, 2 * P), -ERANGE);
		CHECK_ERR(do_op(&o, op, -P, P), -ERANGE);
	}
	CHECK_ERR(gmem_uffd_zeropage(other, o.s.view, 0, P), -EINVAL);
	CHECK_ERR(gmem_uffd_poison(other, o.s.view, 0, P), -EINVAL);
	CHECK_ERR(gmem_uffd_writeprotect(other, o.s.view, 0, P, true), -EINVAL);
	CHECK_ERR(gmem_uffd_register(other, v, 0), -EINVAL);
	CHECK_ERR(gmem_uffd_register(other, v, GMEM_UFFD_MODE_REMOVE), -EINVAL);
	CHECK_ERR(gmem_uffd_register(other, v, 16), -EINVAL);
	CHECK_OK(gmem_uffd_register(other, v, GMEM_UFFD_MODE_MINOR));
	CHECK_ERR(gmem_uffd_register(other, v, GMEM_UFFD_MODE_MINOR), -EBUSY);
	/* It was not asked for that. */
	CHECK_ERR(gmem_uffd_writeprotect(other, v, 0, P, true), -EINVAL);
	CHECK_HAS(gmem_last_error(), "GMEM_UFFD_MODE_WP");
	gmem_view_unmap(v);
	gmem_uffd_free(other);
	end(&o);
}

/* Minor alone: a page without memory is the kernel's business. */
TEST(minor_alone)
{
	struct gmem_uffd *uffd = new_uffd(0);
	struct gmem_file *file;
	struct gmem_view *view;
	struct toucher t;
	char *p;

	need_markers();
	file = new_file(4 * P, 0);
	view = new_view(file, 0, 4 * P);
	p = gmem_view_addr(view);
	CHECK_OK(gmem_uffd_register(uffd, view, GMEM_UFFD_MODE_MINOR));
	CHECK_EQ(p[0], 0);
	no_event(uffd);
	CHECK_OK(gmem_file_write(file, P, "there", 6));
	start(&t, p + P, false);
	CHECK_EQ(next_event(uffd).flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(gmem_uffd_continue(uffd, view, P, P), P);
	finish(&t, 0);
	CHECK_STR(p + P, "there");
	gmem_view_unmap(view);
	gmem_file_free(file);
	gmem_uffd_free(uffd);
}
