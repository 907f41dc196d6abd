/* SPDX-License-Identifier: MIT */
/* Private pages of a memory that several processes have open: what each of them sees, and what is in the way. */
#include "tap.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "peer_util.h"
#include "sys/life.h"
#include "sys/maps.h"

#define N 8u

static bool nobody_to_see, no_proc;

int __real_gmem_sys_processes_each(int (*fn)(void *opaque, pid_t pid), void *opaque);
int __wrap_gmem_sys_processes_each(int (*fn)(void *opaque, pid_t pid), void *opaque);
int __real_gmem_life_open(int fd);
int __wrap_gmem_life_open(int fd);

int __wrap_gmem_sys_processes_each(int (*fn)(void *opaque, pid_t pid), void *opaque)
{
	return nobody_to_see ? 0 : __real_gmem_sys_processes_each(fn, opaque);
}

int __wrap_gmem_life_open(int fd)
{
	return no_proc ? -ENOENT : __real_gmem_life_open(fd);
}

/* A file of N pages with 10, 11, ... in them. */
static struct gmem_file *numbered(void)
{
	struct gmem_file *file = file_of(N, 0);

	for (uint64_t page = 0; page < N; page++)
		CHECK_OK(gmem_file_write(file, page * P, &(char){ (char)(10 + page) }, 1));
	return file;
}

static void check_its(struct other *o, uint64_t first, uint64_t end, bool private)
{
	for (uint64_t page = 0; page < N; page++) {
		int got = its(o, page), want = private && page >= first && page < end ? -1 : 10 + (int)page;

		if (got != want)
			FAIL("page %llu reads %d there, not %d", (unsigned long long)page, got, want);
	}
}

static int to_private(struct gmem_file *file, uint64_t page, uint64_t npages, uint64_t *error_off)
{
	*error_off = 99;
	return gmem_file_set_attributes(file, page * P, npages * P, PRIVATE, error_off);
}

TEST(peers_views_are_marked)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered();

	join_in(&a, file);
	join_in(&b, file);
	tell_ok(&a, OP_MAP, 2 * P, 4 * P);
	convert(file, 2, 3, PRIVATE);
	check_its(&a, 2, 5, true);
	check_its(&b, 2, 5, true);
	CHECK_EQ(tell(&a, OP_POKE, 3 * P, 0, 1), -1);
	CHECK_EQ(tell(&a, OP_READ, 3 * P, 0, 0), -EACCES);
	CHECK_EQ(tell(&a, OP_PIN, 3 * P, P, 0), -EACCES);
	CHECK_EQ(tell(&a, OP_READ, 5 * P, 0, 0), 15);
	*guest(file, 3) = 77;
	convert(file, 3, 1, 0);
	CHECK_EQ(its(&a, 3), 77);
	CHECK_EQ(its(&b, 3), 77);
	CHECK_EQ(its(&a, 2), -1);
	*guest(file, 3) = 13;
	convert(file, 0, N, 0);
	check_its(&a, 0, 0, false);
	check_its(&b, 0, 0, false);
	CHECK_EQ(tell(&b, OP_POKE, 2 * P, 0, 12), 0);
	for (int i = 0; i < 100; i++) {
		convert(file, (uint64_t)i % 5, 1 + (uint64_t)i % 3, i & 1 ? 0 : PRIVATE);
		CHECK_EQ(its(&a, (uint64_t)i % 5), i & 1 ? 10 + i % 5 : -1);
	}
	end_other(&a);
	end_other(&b);
	convert(file, 0, N, PRIVATE);
	gmem_file_free(file);
}

TEST(a_peer_comes_when_pages_are_private)
{
	struct other a = other_process();
	struct gmem_file *file = numbered(), *again;
	struct gmem_view *view;

	convert(file, 2, 3, PRIVATE);
	join_in(&a, file);
	check_its(&a, 2, 5, true);
	CHECK_EQ(tell(&a, OP_READ, 2 * P, 0, 0), -EACCES);
	convert(file, 0, 4, 0);
	check_its(&a, 4, 5, true);
	/* In this process too; and gone again. */
	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &again));
	view = view_of(again, 0, N, PROT_READ);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	convert(file, 0, 1, PRIVATE);
	CHECK_EQ(peek(page_of(view, 0)), -1);
	CHECK_EQ(peek(page_of(view, 1)), 11);
	gmem_file_free(again);
	gmem_view_unmap(view);
	convert(file, 0, N, 0);
	check_its(&a, 0, 0, false);
	tell_ok(&a, OP_UNMAP, 0, 0);
	tell_ok(&a, OP_FREE, 0, 0);
	CHECK_EQ(atomic_load(&file->state.header->peers), 0);
	convert(file, 0, N, PRIVATE);
	end_other(&a);
	gmem_file_free(file);
}

TEST(pages_that_begin_private)
{
	struct other a = other_process();
	struct gmem_file *file = file_of(N, GMEM_FILE_INIT_PRIVATE);

	join_in(&a, file);
	CHECK_EQ(its(&a, 3), -1);
	convert(file, 3, 1, 0);
	CHECK_EQ(its(&a, 3), 0);
	CHECK_EQ(its(&a, 4), -1);
	end_other(&a);
	gmem_file_free(file);
}

TEST(only_its_maker_converts)
{
	struct other a = other_process();
	struct gmem_file *file = numbered();

	join_in(&a, file);
	CHECK_EQ(tell(&a, OP_CONVERT, 0, P, PRIVATE), -EPERM);
	CHECK_EQ(tell(&a, OP_CONVERT, 0, P, 0), -EPERM);
	CHECK_HAS(a.text, "the one that made");
	end_other(&a);
	gmem_file_free(file);
}

TEST(peers_pins_hold_pages_shared)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered();
	struct gmem_view *view = view_of(file, 0, N, PROT_READ);
	uint64_t error_off;

	join_in(&a, file);
	join_in(&b, file);
	tell_ok(&b, OP_PIN, 3 * P, 2 * P);
	CHECK_ERR(to_private(file, 1, 6, &error_off), -EAGAIN);
	CHECK_EQ(error_off, 3 * P);
	CHECK_HAS(gmem_last_error(), "pinned");
	CHECK_OK(to_private(file, 5, 3, &error_off));
	CHECK_OK(gmem_file_set_attributes(file, 5 * P, 3 * P, 0, NULL));
	tell_ok(&b, OP_UNPIN, 3 * P, P);
	CHECK_ERR(to_private(file, 1, 6, &error_off), -EAGAIN);
	CHECK_EQ(error_off, 4 * P);
	check_its(&b, 0, 0, false);
	CHECK_EQ(peek(page_of(view, 1)), 11);
	tell_ok(&b, OP_UNPIN, 4 * P, P);
	CHECK_OK(to_private(file, 1, 6, &error_off));
	end_other(&a);
	end_other(&b);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* It is heard of before any view is marked: nobody who touches the pages notices. */
TEST(a_refusal_disturbs_nobody)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered();
	uint64_t error_off;

	join_in(&a, file);
	join_in(&b, file);
	tell_ok(&b, OP_PIN, 6 * P, P);
	tell_ok(&a, OP_TOUCH, 0, 0);
	for (int i = 0; i < 200; i++)
		CHECK_ERR(to_private(file, 0, N, &error_off), -EAGAIN);
	CHECK_EQ(tell(&a, OP_REST, 0, 0, 0), 0);
	end_other(&a);
	end_other(&b);
	gmem_file_free(file);
}

/* A view that cannot be marked, in one of two: nothing is marked in the other. */
TEST(one_peers_error_is_everybodys)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file;
	struct gmem_view *view;
	uint64_t error_off;

	need_uffd();
	file = numbered();
	view = view_of(file, 0, N, PROT_READ);
	join_in(&a, file);
	join_in(&b, file);
	tell_ok(&b, OP_SPOIL, 0, 0);
	CHECK_ERR(to_private(file, 1, 3, &error_off), -EOPNOTSUPP);
	CHECK_EQ(error_off, P);
	CHECK_HAS(gmem_last_error(), "descriptor of its own");
	check_its(&a, 0, 0, false);
	CHECK_EQ(peek(page_of(view, 2)), 12);
	CHECK(!gmem_file_private(file, 2 * P));
	end_other(&b);
	CHECK_OK(to_private(file, 1, 3, &error_off));
	check_its(&a, 1, 4, true);
	end_other(&a);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(a_peers_served_view)
{
	struct other a = other_process();
	struct gmem_file *file;
	int got;

	need_markers();
	file = file_of(N, 0);
	CHECK_EQ(give(&a, gmem_file_fd(file), gmem_file_state_fd(file)), 0);
	tell_ok(&a, OP_MAP, 0, N * P);
	tell_ok(&a, OP_SERVE, 0, 0);
	CHECK_EQ(tell(&a, OP_COPY, 2 * P, 0, 0), P);
	CHECK_EQ(its(&a, 2), 'c');
	convert(file, 1, 3, PRIVATE);
	CHECK_EQ(its(&a, 1), -1);
	CHECK_EQ(its(&a, 2), -1);
	CHECK_EQ(tell(&a, OP_COPY, 3 * P, 0, 0), -EACCES);
	CHECK_EQ(its(&a, 3), -1);
	convert(file, 1, 3, 0);
	/* Where shared memory comes in large pages, this one came with page 2. */
	got = tell(&a, OP_COPY, 3 * P, 0, 0);
	CHECK(got == (int)P || got == -EEXIST);
	if (got != -EEXIST)
		CHECK_EQ(its(&a, 3), 'c');
	end_other(&a);
	gmem_file_free(file);
}

/* ---- mappings that are no views */

TEST(a_foreign_mapping_is_in_the_way)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered();
	char text[32];
	uint64_t error_off;

	/* One is a peer and maps more than its views; the other has a descriptor and nothing else of the library's. */
	join_in(&a, file);
	CHECK_EQ(give(&b, gmem_file_fd(file), gmem_file_state_fd(file)), 0);
	tell_ok(&b, OP_FREE, 0, 0);
	for (int i = 0; i < 2; i++) {
		struct other *o = i ? &a : &b;

		tell_ok(o, OP_RAW, 3 * P, 2 * P);
		tell_ok(&a, OP_TOUCH, 0, 0);
		CHECK_ERR(to_private(file, 2, 6, &error_off), -EBUSY);
		CHECK_EQ(error_off, 3 * P);
		snprintf(text, sizeof(text), "process %d ", (int)o->pid);
		CHECK_HAS(gmem_last_error(), text);
		CHECK_HAS(gmem_last_error(), "no view");
		CHECK_ERR(to_private(file, 4, 1, &error_off), -EBUSY);
		CHECK_EQ(error_off, 4 * P);
		CHECK_EQ(tell(&a, OP_REST, 0, 0, 0), 0);
		check_its(&a, 0, 0, false);
		CHECK_OK(to_private(file, 5, 3, &error_off));
		CHECK_OK(to_private(file, 0, 3, &error_off));
		tell_ok(o, OP_UNRAW, 0, 0);
		CHECK_OK(to_private(file, 0, N, &error_off));
		check_its(&a, 0, N, true);
		convert(file, 0, N, 0);
	}
	end_other(&a);
	end_other(&b);
	gmem_file_free(file);
}

/* Of a peer whose process the owner may not look at: it looks itself. */
TEST(a_peer_looks_itself)
{
	struct other a = other_process();
	struct gmem_file *file = numbered();
	uint64_t error_off;

	join_in(&a, file);
	tell_ok(&a, OP_RAW, 3 * P, 2 * P);
	nobody_to_see = true;
	CHECK_ERR(to_private(file, 2, 6, &error_off), -EBUSY);
	CHECK_EQ(error_off, 3 * P);
	CHECK_HAS(gmem_last_error(), "no view");
	check_its(&a, 0, 0, false);
	tell_ok(&a, OP_UNRAW, 0, 0);
	CHECK_OK(to_private(file, 2, 6, &error_off));
	check_its(&a, 2, N, true);
	end_other(&a);
	gmem_file_free(file);
}

TEST(a_mapping_of_ones_own_is_in_the_way)
{
	struct gmem_file *file = numbered(), *again;
	struct gmem_view *view = view_of(file, 1, 4, PROT_READ), *other, *third;
	char *raw, text[32];
	uint64_t error_off;

	raw = mmap(NULL, 2 * P, PROT_READ, MAP_PRIVATE, gmem_file_fd(file), 2 * P);
	CHECK(raw != MAP_FAILED);
	CHECK(guest(file, 0) != NULL);
	snprintf(text, sizeof(text), "process %d ", (int)getpid());
	CHECK_ERR(to_private(file, 0, N, &error_off), -EBUSY);
	CHECK_EQ(error_off, 2 * P);
	CHECK_HAS(gmem_last_error(), text);
	snprintf(text, sizeof(text), "at 0x%llx in", (unsigned long long)(uintptr_t)raw);
	CHECK_HAS(gmem_last_error(), text);
	CHECK_EQ(peek(page_of(view, 2)), 12);
	/* Over a part of a view's address, and beside it. */
	CHECK_EQ(munmap(raw, 2 * P), 0);
	CHECK_OK(to_private(file, 0, N, &error_off));
	convert(file, 0, N, 0);
	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &again));
	other = view_of(again, 0, N, PROT_READ);
	third = view_of(file, 5, 3, PROT_READ);
	CHECK_OK(to_private(file, 0, N, &error_off));
	CHECK_EQ(peek(page_of(other, 3)), -1);
	convert(file, 0, N, 0);
	/* At the address of a view, and of another page. */
	raw = mmap(page_of(third, 6), P, PROT_READ, MAP_SHARED | MAP_FIXED, gmem_file_fd(file), 3 * P);
	CHECK(raw != MAP_FAILED);
	CHECK_ERR(to_private(file, 2, 2, &error_off), -EBUSY);
	CHECK_EQ(error_off, 3 * P);
	/* The page that was there is mapped where another object's view is, and that is marked. */
	CHECK_OK(to_private(file, 4, 4, &error_off));
	CHECK_EQ(peek(page_of(other, 6)), -1);
	CHECK_EQ(peek(raw), 13);
	/* What is not the view's stays. */
	gmem_view_unmap(third);
	CHECK_ERR(to_private(file, 0, N, &error_off), -EBUSY);
	CHECK_EQ(munmap(raw, P), 0);
	CHECK_OK(to_private(file, 0, N, &error_off));
	gmem_view_unmap(view);
	gmem_view_unmap(other);
	gmem_file_free(again);
	gmem_file_free(file);
}

/* Nobody asked for the descriptor: nothing is looked for. */
TEST(who_did_not_ask_pays_nothing)
{
	struct gmem_file *file = numbered();
	char *raw = mmap(NULL, P, PROT_READ, MAP_SHARED, file->fd, 0);
	uint64_t error_off;

	CHECK(raw != MAP_FAILED);
	CHECK_OK(to_private(file, 0, N, &error_off));
	convert(file, 0, N, 0);
	CHECK(gmem_file_fd(file) == file->fd);
	CHECK_ERR(to_private(file, 0, N, &error_off), -EBUSY);
	munmap(raw, P);
	gmem_file_free(file);
}

static int is_of_a_file(void *opaque, const struct gmem_sys_mapping *map)
{
	CHECK(map->ino != 0);
	++*(int *)opaque;
	return 0;
}

/* Of a process with ten thousands of other mappings each would be a turn at its lock. */
TEST(only_mappings_of_files_are_looked_at)
{
	int n = 0;

	CHECK_OK(gmem_sys_maps_each(0, is_of_a_file, &n));
	CHECK(n > 0);
}

/* ---- who comes in the middle of a conversion, to a place that was another one's */

static _Atomic bool has_come, has_mapped;

static void *go_and_come(void *peer)
{
	const struct gmem_file *old = peer;
	int memory = fcntl(old->fd, F_DUPFD_CLOEXEC, 0), state = fcntl(old->state.fd, F_DUPFD_CLOEXEC, 0);
	struct gmem_file *file;
	struct gmem_view *view;

	gmem_file_free(peer);
	CHECK_OK(gmem_file_open(memory, state, &file));
	atomic_store(&has_come, true);
	view = view_of(file, 0, N, PROT_READ);
	atomic_store(&has_mapped, true);
	gmem_view_unmap(view);
	gmem_file_free(file);
	close(memory);
	close(state);
	return NULL;
}

TEST(who_takes_ones_place_is_not_asked)
{
	struct gmem_file *file = numbered(), *peer;
	uint32_t incarnation;
	uint64_t error_off;
	pthread_t t;

	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &peer));
	gmem_rwlock_lock(&file->invalidate_lock);
	CHECK_OK(gmem_round_enter(file, "gmem_file_set_attributes"));
	incarnation = file->round.incarnation[0];
	CHECK_EQ(pthread_create(&t, NULL, go_and_come, peer), 0);
	/* It is there when its agent is, and sets its bit then. */
	while (atomic_load(&gmem_peer_page(&file->state, 0)->incarnation) == incarnation ||
	       !atomic_load(&file->state.header->peers))
		usleep(100);
	CHECK_OK(gmem_round_hold(file, 0, P, &error_off));
	CHECK(!atomic_load(&has_come));
	gmem_round_release(file, 0, P, true);
	gmem_round_leave(file);
	gmem_rwlock_unlock(&file->invalidate_lock);
	for (uint64_t end = now_ms() + 5000; !atomic_load(&has_mapped) && now_ms() < end;)
		usleep(1000);
	CHECK(atomic_load(&has_mapped));
	pthread_join(t, NULL);
	gmem_file_free(file);
}

/* ---- limits */

TEST(places_and_views)
{
	struct gmem_file *file = numbered(), *peers[GMEM_STATE_MAX_PEERS], *one = NULL;
	struct gmem_view *views[GMEM_PEER_MAX_VIEWS], *view = NULL;

	for (unsigned int i = 0; i < GMEM_STATE_MAX_PEERS; i++)
		CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &peers[i]));
	CHECK_ERR(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &one), -ENOSPC);
	convert(file, 1, 2, PRIVATE);
	for (unsigned int i = 1; i < GMEM_STATE_MAX_PEERS; i++)
		gmem_file_free(peers[i]);
	convert(file, 1, 2, 0);
	for (unsigned int i = 0; i < GMEM_PEER_MAX_VIEWS; i++)
		views[i] = view_of(peers[0], i % N, 1, PROT_READ);
	CHECK_ERR(gmem_view_map(peers[0], 0, P, PROT_READ, &view), -ENOSPC);
	CHECK(!view && !one);
	gmem_view_unmap(views[5]);
	views[5] = view_of(peers[0], 1, 1, PROT_READ);
	convert(file, 1, 2, PRIVATE);
	for (unsigned int i = 0; i < GMEM_PEER_MAX_VIEWS; i++) {
		unsigned int page = i == 5 ? 1 : i % N;

		CHECK_EQ(peek(page_of(views[i], page)), page == 1 || page == 2 ? -1 : 10 + (int)page);
		gmem_view_unmap(views[i]);
	}
	gmem_file_free(peers[0]);
	gmem_file_free(file);
}

/* Nobody could tell the owner from a dead one: there are conversions, or peers. */
TEST(without_proc)
{
	struct other a = other_process();
	struct gmem_file *file = numbered(), *other = NULL;
	uint64_t error_off;

	no_proc = true;
	CHECK_OK(to_private(file, 0, 2, &error_off));
	CHECK_ERR(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &other), -ENOENT);
	CHECK_EQ(give(&a, gmem_file_fd(file), gmem_file_state_fd(file)), -EBUSY);
	CHECK_HAS(a.text, "/proc");
	CHECK_OK(gmem_file_set_attributes(file, 0, N * P, 0, NULL));
	gmem_file_free(file);
	file = numbered();
	CHECK_EQ(give(&a, gmem_file_fd(file), gmem_file_state_fd(file)), 0);
	CHECK_ERR(to_private(file, 0, 2, &error_off), -EBUSY);
	CHECK_HAS(gmem_last_error(), "/proc");
	no_proc = false;
	CHECK_OK(to_private(file, 0, 2, &error_off));
	CHECK(!other);
	end_other(&a);
	gmem_file_free(file);
}
