/* SPDX-License-Identifier: MIT */
/* Mappings of other processes in a gmem_uffd: served, changed, moved, and at their process's end. */
#include "tap.h"

#include "uffd_kid.h"

#define LEN (64 * P)
#define BOTH (GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_MINOR)

static char pages[LEN];

struct foreign {
	struct gmem_file *file;
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	struct kid kid;
};

static void begin(struct foreign *f, uint32_t modes, uint64_t features)
{
	struct gmem_uffd_mapping m;

	need_markers();
	f->file = new_file(LEN, 0);
	f->uffd = new_uffd(0);
	f->kid = new_kid(f->file, features);
	m = mapping_of(&f->kid, f->file, modes);
	m.pidfd = f->kid.pidfd;
	CHECK_OK(gmem_uffd_register_mapping(f->uffd, &m, &f->view));
	for (uint64_t i = 0; i < LEN; i += P)
		fill_page(1, i, pages + i);
}

static void end(struct foreign *f)
{
	gmem_view_unmap(f->view);
	gmem_uffd_free(f->uffd);
	end_kid(&f->kid);
	gmem_file_free(f->file);
}

TEST(served_there)
{
	struct foreign f;
	struct gmem_uffd_event e;

	begin(&f, BOTH, KID_FEATURES);
	CHECK_EQ((uint64_t)(uintptr_t)gmem_view_addr(f.view), f.kid.hva);
	kid_tell(&f.kid, KID_READ, 3 * P + 8, 0);
	e = next_event(f.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_FAULT);
	CHECK(e.view == f.view);
	CHECK_EQ(e.off, 3 * P);
	CHECK_EQ(e.flags, 0);
	CHECK(!kid_has_answered(&f.kid, 20));
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 3 * P, pages + 3 * P, P), P);
	CHECK_EQ(kid_answer(&f.kid), word_at(1, 3 * P + 8));
	CHECK_EQ(gmem_file_page_state(f.file, 3 * P), GMEM_PAGE_UPTODATE);
	/* In place by another way. */
	CHECK_OK(gmem_file_write(f.file, 4 * P, "x", 1));
	kid_tell(&f.kid, KID_READ, 4 * P, 0);
	CHECK_EQ(next_event(f.uffd).flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(gmem_uffd_continue(f.uffd, f.view, 4 * P, P), P);
	CHECK_EQ(kid_answer(&f.kid), 'x');
	kid_tell(&f.kid, KID_WRITE, 5 * P, 0);
	CHECK_EQ(next_event(f.uffd).flags, GMEM_UFFD_FAULT_WRITE);
	CHECK_OK(gmem_uffd_wake(f.uffd, f.view, 0, LEN));
	CHECK_EQ(next_event(f.uffd).off, 5 * P);
	CHECK_EQ(gmem_uffd_zeropage(f.uffd, f.view, 5 * P, P), P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	/* The rest at once. */
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 6 * P, pages + 6 * P, LEN - 6 * P), LEN - 6 * P);
	kid_tell(&f.kid, KID_CHECK, 6 * P, LEN - 6 * P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	CHECK_ERR(gmem_uffd_copy(f.uffd, f.view, 6 * P, pages, P), -EEXIST);
	end(&f);
}

TEST(touching_a_poisoned_page_ends_it)
{
	struct foreign f;
	int status;

	begin(&f, BOTH, KID_FEATURES);
	kid_tell(&f.kid, KID_READ, 0, 0);
	CHECK_EQ(next_event(f.uffd).off, 0);
	CHECK_EQ(gmem_uffd_poison(f.uffd, f.view, 0, P), P);
	CHECK_EQ(waitpid(f.kid.pid, &status, 0), f.kid.pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	f.kid.pid = 0;
	end(&f);
}

TEST(write_protected_there)
{
	struct foreign f;
	struct gmem_uffd_event e;

	begin(&f, BOTH | GMEM_UFFD_MODE_WP, KID_FEATURES);
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 0, pages, 4 * P), 4 * P);
	CHECK_EQ(gmem_uffd_writeprotect(f.uffd, f.view, 0, LEN, true), LEN);
	kid_tell(&f.kid, KID_WRITE, P, 0);
	e = next_event(f.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_WP);
	CHECK_EQ(e.off, P);
	CHECK_EQ(gmem_uffd_writeprotect(f.uffd, f.view, P, P, false), P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	/* Mapped afterwards, protected all the same. */
	kid_tell(&f.kid, KID_WRITE, 8 * P, 0);
	CHECK_EQ(next_event(f.uffd).kind, GMEM_UFFD_EVENT_FAULT);
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 8 * P, pages, P), P);
	CHECK_EQ(next_event(f.uffd).kind, GMEM_UFFD_EVENT_WP);
	CHECK_EQ(gmem_uffd_writeprotect(f.uffd, f.view, 8 * P, P, false), P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	end(&f);
}

/* Two parts of one mapping, by one descriptor; and another process beside them. */
TEST(which_mapping_it_was)
{
	struct gmem_uffd_mapping m;
	struct gmem_view *late, *also;
	struct gmem_uffd_event e;
	struct foreign f;
	struct kid other;

	need_markers();
	f.file = new_file(LEN, 0);
	f.uffd = new_uffd(0);
	f.kid = new_kid(f.file, KID_FEATURES);
	other = new_kid(f.file, KID_FEATURES);
	m = mapping_of(&f.kid, f.file, BOTH);
	m.len = 8 * P;
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &f.view));
	m.hva += 7 * P;
	m.off += 7 * P;
	CHECK_ERR(gmem_uffd_register_mapping(f.uffd, &m, &late), -EEXIST);
	m.hva += P;
	m.off += P;
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &late));
	m = mapping_of(&other, f.file, BOTH);
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &also));
	kid_tell(&f.kid, KID_READ, 9 * P, 0);
	e = next_event(f.uffd);
	CHECK(e.view == late);
	CHECK_EQ(e.off, 9 * P);
	kid_tell(&other, KID_READ, 2 * P, 0);
	CHECK(next_event(f.uffd).view == also);
	CHECK_EQ(gmem_uffd_copy(f.uffd, also, 0, pages, 16 * P), 16 * P);
	kid_answer(&other);
	CHECK_EQ(gmem_uffd_continue(f.uffd, late, 9 * P, P), P);
	kid_answer(&f.kid);
	/* The one goes, and the other stays. */
	gmem_view_unmap(late);
	kid_tell(&f.kid, KID_READ, P, 0);
	CHECK(next_event(f.uffd).view == f.view);
	CHECK_EQ(gmem_uffd_continue(f.uffd, f.view, P, P), P);
	kid_answer(&f.kid);
	/* Registered again: who waits there meanwhile is told of. */
	kid_tell(&f.kid, KID_READ, 10 * P, 0);
	no_event(f.uffd);
	m = mapping_of(&f.kid, f.file, BOTH);
	m.hva += 8 * P;
	m.off += 8 * P;
	m.len = 8 * P;
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &late));
	CHECK_EQ(next_event(f.uffd).off, 10 * P);
	CHECK_EQ(gmem_uffd_continue(f.uffd, late, 10 * P, P), P);
	kid_answer(&f.kid);
	gmem_view_unmap(also);
	gmem_view_unmap(late);
	end_kid(&other);
	end(&f);
}

TEST(no_view_of_this_process)
{
	struct gmem_view *rest;
	struct foreign f;

	begin(&f, BOTH, KID_FEATURES);
	CHECK_ERR(gmem_uffd_register(f.uffd, f.view, BOTH), -EBUSY);
	CHECK_ERR(gmem_view_split(f.view, 8 * P, &rest), -EBUSY);
	CHECK_ERR(gmem_view_remap(f.view, 8 * P, NULL), -EBUSY);
	CHECK_EQ(gmem_view_len(f.view), LEN);
	/* It may outlive the object, and its memory is nobody's meanwhile: its toucher waits. */
	gmem_uffd_free(f.uffd);
	kid_tell(&f.kid, KID_READ, 0, 0);
	CHECK(!kid_has_answered(&f.kid, 50));
	gmem_view_unmap(f.view);
	CHECK(!kid_has_answered(&f.kid, 20));
	f.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register_mapping(f.uffd,
					    &(struct gmem_uffd_mapping){ .size = sizeof(struct gmem_uffd_mapping),
									 .file = f.file,
									 .uffd = f.kid.uffd,
									 .hva = f.kid.hva,
									 .len = LEN,
									 .modes = BOTH },
					    &f.view));
	CHECK_EQ(next_event(f.uffd).off, 0);
	CHECK_EQ(gmem_uffd_zeropage(f.uffd, f.view, 0, P), P);
	kid_answer(&f.kid);
	end(&f);
}

/* Its process is told to wait, and what it wants is refused; a page cannot become private under it. */
TEST(private_pages)
{
	struct gmem_uffd_mapping m;
	struct gmem_uffd_event e;
	struct foreign f;
	uint64_t bad;

	need_markers();
	f.file = new_file(LEN, 0);
	convert(f.file, 0, 2 * P, PRIVATE);
	f.uffd = new_uffd(0);
	f.kid = new_kid(f.file, KID_FEATURES);
	m = mapping_of(&f.kid, f.file, BOTH | GMEM_UFFD_MODE_WP);
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &f.view));
	kid_tell(&f.kid, KID_READ, P, 0);
	e = next_event(f.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_PRIVATE);
	CHECK_ERR(gmem_uffd_copy(f.uffd, f.view, P, pages, P), -EACCES);
	CHECK_ERR(gmem_uffd_zeropage(f.uffd, f.view, P, P), -EACCES);
	CHECK_ERR(gmem_uffd_continue(f.uffd, f.view, P, P), -EACCES);
	CHECK_ERR(gmem_uffd_poison(f.uffd, f.view, P, P), -EACCES);
	CHECK_ERR(gmem_uffd_writeprotect(f.uffd, f.view, P, P, true), -EACCES);
	CHECK(!kid_has_answered(&f.kid, 20));
	convert(f.file, P, P, 0);
	CHECK_EQ(gmem_uffd_zeropage(f.uffd, f.view, P, P), P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	/* It shows the page: whoever could convert it cannot keep that process out. */
	CHECK(gmem_file_set_attributes(f.file, 4 * P, P, PRIVATE, &bad) < 0);
	CHECK_OK(gmem_uffd_zeropage(f.uffd, f.view, 4 * P, P));
	end(&f);
}

/* ---- what it does to its mapping */

TEST(it_unmaps)
{
	struct foreign f;

	begin(&f, BOTH, KID_FEATURES);
	kid_tell(&f.kid, KID_UNMAP, 4 * P, 4 * P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	no_event(f.uffd);
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 0, pages, 8 * P), 4 * P);
	/* The bytes are in the file; nobody has them mapped there. */
	CHECK_ERR(gmem_uffd_continue(f.uffd, f.view, 4 * P, P), -ENOENT);
	CHECK_OK(gmem_file_punch(f.file, 5 * P, P));
	CHECK_ERR(gmem_uffd_continue(f.uffd, f.view, 5 * P, P), -ENOENT);
	CHECK_EQ(gmem_uffd_copy(f.uffd, f.view, 8 * P, pages, P), P);
	kid_tell(&f.kid, KID_UNMAP, 9 * P, P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	CHECK_ERR(gmem_uffd_copy(f.uffd, f.view, 9 * P, pages, P), -ENOENT);
	end(&f);
}

TEST(it_says_that_it_unmaps_and_moves)
{
	struct gmem_uffd_event e;
	struct foreign f;
	uint64_t to = 0;

	begin(&f, BOTH, KID_FEATURES | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP);
	kid_tell(&f.kid, KID_UNMAP, 4 * P, 4 * P);
	e = next_event(f.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_UNMAP);
	CHECK(e.view == f.view);
	CHECK_EQ(e.off, 4 * P);
	CHECK_EQ(e.len, 4 * P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	kid_tell(&f.kid, KID_MOVE, 16 * P, 8 * P);
	/* What it left is unmapped, too. */
	for (int i = 0; i < 2; i++) {
		e = next_event(f.uffd);
		CHECK(e.kind == GMEM_UFFD_EVENT_REMAP || e.kind == GMEM_UFFD_EVENT_UNMAP);
		CHECK_EQ(e.off, 16 * P);
		CHECK_EQ(e.len, 8 * P);
		if (e.kind == GMEM_UFFD_EVENT_REMAP)
			to = e.u.remap.hva;
	}
	CHECK_EQ(kid_answer(&f.kid), to);
	end(&f);
}

/* Several mappings of the descriptor, one call of the program's, few events at a time: each is told its part. */
TEST(it_gives_memory_back)
{
	struct gmem_uffd_event e[4];
	struct gmem_uffd_mapping m;
	struct gmem_view *views[4];
	struct foreign f;
	uint64_t seen = 0;
	int n;

	need_markers();
	f.file = new_file(LEN, 0);
	f.uffd = new_uffd(0);
	f.kid = new_kid(f.file, KID_FEATURES | UFFD_FEATURE_EVENT_REMOVE);
	for (int i = 0; i < 4; i++) {
		m = mapping_of(&f.kid, f.file, BOTH);
		m.off = (uint64_t)i * 16 * P;
		m.hva += m.off;
		m.len = 16 * P;
		CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &views[i]));
		CHECK_EQ(gmem_uffd_copy(f.uffd, views[i], m.off, pages, m.len), m.len);
	}
	kid_tell(&f.kid, KID_REMOVE, 8 * P, 48 * P);
	for (int i = 0; i < 4; i++) {
		e[0] = next_event(f.uffd);
		CHECK_EQ(e[0].kind, GMEM_UFFD_EVENT_REMOVE);
		n = (int)(e[0].off / (16 * P));
		CHECK(e[0].view == views[n]);
		CHECK_EQ(e[0].off, n ? (uint64_t)n * 16 * P : 8 * P);
		CHECK_EQ(e[0].len, n == 0 || n == 3 ? 8 * P : 16 * P);
		seen |= 1ull << n;
	}
	CHECK_EQ(seen, 15);
	CHECK_EQ(kid_answer(&f.kid), 0);
	no_event(f.uffd);
	/* Gone: zero from then on. */
	kid_tell(&f.kid, KID_READ, 20 * P, 0);
	CHECK_EQ(next_event(f.uffd).flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(gmem_uffd_continue(f.uffd, views[1], 20 * P, P), P);
	CHECK_EQ(kid_answer(&f.kid), 0);
	/* Until it is read nothing can be done. */
	kid_tell(&f.kid, KID_DONTNEED, 0, P);
	while (gmem_uffd_continue(f.uffd, views[1], 21 * P, P) != -EAGAIN) {
		CHECK_OK(gmem_file_punch(f.file, 21 * P, P));
		usleep(1000);
	}
	CHECK_EQ(next_event(f.uffd).kind, GMEM_UFFD_EVENT_REMOVE);
	CHECK_EQ(kid_answer(&f.kid), 0);
	CHECK_EQ(gmem_uffd_continue(f.uffd, views[1], 21 * P, P), P);
	for (int i = 1; i < 4; i++)
		gmem_view_unmap(views[i]);
	f.view = views[0];
	end(&f);
}

TEST(it_forks)
{
	struct gmem_uffd_event e;
	struct foreign f;

	begin(&f, BOTH, KID_FEATURES | UFFD_FEATURE_EVENT_FORK);
	kid_tell(&f.kid, KID_FORK, 0, 0);
	e = next_event(f.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_FORK);
	CHECK(e.view == f.view);
	CHECK_EQ(close(e.u.fork.fd), 0);
	CHECK_EQ(kid_answer(&f.kid), 0);
	end(&f);
}

/* ---- its end */

static void check_gone(struct foreign *f)
{
	CHECK_ERR(gmem_uffd_copy(f->uffd, f->view, 0, pages, P), -ESRCH);
	CHECK_OK(gmem_file_punch(f->file, 0, LEN));
	CHECK_ERR(gmem_uffd_continue(f->uffd, f->view, 0, P), -ESRCH);
	CHECK_ERR(gmem_uffd_zeropage(f->uffd, f->view, 0, P), -EEXIST);
	CHECK_ERR(gmem_uffd_poison(f->uffd, f->view, 0, P), -EEXIST);
}

TEST(its_end_is_told)
{
	struct gmem_uffd_event e;
	struct foreign f;

	begin(&f, BOTH | GMEM_UFFD_MODE_WP, KID_FEATURES);
	kid_tell(&f.kid, KID_READ, 0, 0);
	CHECK_EQ(next_event(f.uffd).off, 0);
	kill_kid(&f.kid);
	e = next_event(f.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_GONE);
	CHECK(e.view == f.view);
	CHECK_EQ(e.len, LEN);
	no_event(f.uffd);
	CHECK_ERR(gmem_uffd_writeprotect(f.uffd, f.view, 0, P, true), -ESRCH);
	check_gone(&f);
	/* Told once. */
	no_event(f.uffd);
	end(&f);
}

/* Without a pidfd whoever tries finds it out, and others are told. */
TEST(its_end_is_found)
{
	struct gmem_uffd_mapping m;
	struct foreign f;

	begin(&f, BOTH, KID_FEATURES);
	gmem_view_unmap(f.view);
	m = mapping_of(&f.kid, f.file, BOTH);
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &f.view));
	kill_kid(&f.kid);
	no_event(f.uffd);
	check_gone(&f);
	CHECK_EQ(next_event(f.uffd).kind, GMEM_UFFD_EVENT_GONE);
	no_event(f.uffd);
	/* Nor can it be registered. */
	gmem_view_unmap(f.view);
	CHECK(gmem_uffd_register_mapping(f.uffd, &m, &f.view) < 0);
	gmem_uffd_free(f.uffd);
	end_kid(&f.kid);
	gmem_file_free(f.file);
}

/* At any instant: the loop goes on, for whoever is left. */
TEST_TIMEOUT(killed_at_any_instant, 60)
{
	uint64_t seed = tap_seed();
	int rounds = tap_slow() ? 10 : 40;

	for (int round = 0; round < rounds; round++) {
		struct gmem_uffd_event e[4];
		bool gone = false;
		struct foreign f;
		uint64_t left;

		begin(&f, BOTH, KID_FEATURES);
		kid_tell(&f.kid, KID_CHECK, 0, LEN);
		left = tap_rand(&seed) % 40;
		while (!gone) {
			struct pollfd p = { .fd = gmem_uffd_fd(f.uffd), .events = POLLIN };
			int n;

			if (!left--)
				kill(f.kid.pid, SIGKILL);
			CHECK_EQ(poll(&p, 1, 20000), 1);
			n = (int)CHECK_OK(gmem_uffd_read(f.uffd, e, 4));
			for (int i = 0; i < n; i++) {
				int64_t got;

				if (e[i].kind == GMEM_UFFD_EVENT_GONE) {
					gone = true;
					continue;
				}
				got = gmem_uffd_copy(f.uffd, e[i].view, e[i].off, pages + e[i].off, P);
				CHECK(got == (int64_t)P || got == -ESRCH || got == -EEXIST);
			}
			/* It has read all of it. */
			if (kid_has_answered(&f.kid, 0))
				kill(f.kid.pid, SIGKILL);
		}
		CHECK_EQ(waitpid(f.kid.pid, NULL, 0), f.kid.pid);
		f.kid.pid = 0;
		end(&f);
	}
}

TEST(arguments)
{
	struct gmem_uffd_mapping m;
	struct gmem_view *view = NULL;
	struct gmem_file *anon;
	struct foreign f;
	int pair[2];

	begin(&f, BOTH, KID_FEATURES);
	gmem_view_unmap(f.view);
#define REFUSED(err, ...)                                                      \
	do {                                                                   \
		m = mapping_of(&f.kid, f.file, BOTH);                          \
		__VA_ARGS__;                                                   \
		CHECK_ERR(gmem_uffd_register_mapping(f.uffd, &m, &view), err); \
		CHECK_HAS(gmem_last_error(), "gmem_uffd_register_mapping");    \
		CHECK(!view);                                                  \
	} while (0)
	REFUSED(-EINVAL, m.size--);
	REFUSED(-EINVAL, m.file = NULL);
	REFUSED(-EINVAL, m.uffd = -1);
	REFUSED(-EINVAL, m.modes = 0);
	REFUSED(-EINVAL, m.modes = 32);
	REFUSED(-EINVAL, m.hva++);
	REFUSED(-EINVAL, m.hva = -P);
	REFUSED(-EINVAL, m.len = 0);
	REFUSED(-EINVAL, m.off = 7);
	REFUSED(-ERANGE, m.off = P);
	REFUSED(-EINVAL, m.hva -= LEN);
	CHECK_EQ(pipe2(pair, O_CLOEXEC), 0);
	REFUSED(-EINVAL, m.uffd = pair[0]);
	close(pair[0]);
	close(pair[1]);
	/* Without bytes of its own: a pager's. */
	CHECK_OK(gmem_file_create_anon(LEN, P, -1, &anon));
	REFUSED(-EOPNOTSUPP, m.file = anon);
	gmem_file_free(anon);
	m = mapping_of(&f.kid, f.file, BOTH);
	CHECK_OK(gmem_uffd_register_mapping(f.uffd, &m, &f.view));
	end(&f);
}
