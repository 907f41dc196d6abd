/* SPDX-License-Identifier: MIT */
/* Pages on their way into a file: inserts that fail, locks of the dead, several writers. */
#include "tap.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "file/file.h"
#include "file_util.h"
#include "sys/memfd.h"

/* Faults: the n-th call from now on fails with `fail_err`; 0: none. */
static int fail_in, fail_err;
static bool fail_halfway;

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __real_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	if (fail_in && --fail_in == 0) {
		if (fail_halfway)
			__real_gmem_pwrite_all(fd, buf, len / 2, off);
		return fail_err;
	}
	return __real_gmem_pwrite_all(fd, buf, len, off);
}

int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	if (fail_in && --fail_in == 0) {
		if (fail_halfway)
			__real_gmem_memfd_allocate(fd, off, len / 2);
		return fail_err;
	}
	return __real_gmem_memfd_allocate(fd, off, len);
}

/* Neither a page nor a lock is left of an insert that failed. */
static void nothing_is_left(struct gmem_file *file, uint64_t npages)
{
	struct gmem_file_counts c = query(file);

	CHECK_EQ(c.absent, npages);
	CHECK_EQ(c.resident, 0);
	for (uint64_t i = 0; i < npages; i++)
		CHECK_EQ(gmem_state_word(&file->state, i), GMEM_WORD_ABSENT);
	/* The invalidate lock is free: an exclusive taker would hang. */
	gmem_rwlock_lock(&file->invalidate_lock);
	gmem_rwlock_unlock(&file->invalidate_lock);
}

TEST(failing_write_leaves_nothing)
{
	static const int errs[] = { -ENOSPC, -ENOMEM, -EFBIG };
	struct gmem_file *file = new_file(16 * P);

	for (int half = 0; half < 2; half++) {
		for (int i = 0; i < 3; i++) {
			fail_in = 1;
			fail_err = errs[i];
			fail_halfway = half;
			CHECK_ERR(gmem_file_write(file, 2 * P + 17, "bytes", 5), errs[i]);
			nothing_is_left(file, 16);
		}
	}
	CHECK_OK(gmem_file_write(file, 2 * P + 17, "bytes", 5));
	/* In place and the write fails: the page stays. */
	fail_in = 1;
	CHECK_ERR(gmem_file_write(file, 2 * P, "more", 4), -EFBIG);
	CHECK_EQ(gmem_file_page_state(file, 2 * P), GMEM_PAGE_UPTODATE);
	gmem_file_free(file);
}

/* Between the two the page lock is held, by another process as far as this thread's lock checker goes. */
static int insert(struct gmem_file *file, uint64_t off, uint32_t npages, const void *data, struct gmem_folio *folio)
{
	int err;

	gmem_rwlock_lock_shared(&file->invalidate_lock);
	CHECK_OK(file->ops->alloc(file, off, npages, folio));
	folio->data = data;
	err = file->ops->insert(file, folio);
	if (!err)
		gmem_lockcheck_release(GMEM_LOCK_PAGE, &file->state.words[off / P]);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return err;
}

static void publish(struct gmem_file *file, struct gmem_folio *folio)
{
	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, &file->state.words[folio->off / P]);
	file->ops->publish(file, folio);
}

TEST(failing_insert_leaves_nothing)
{
	static char bytes[8 * 4096];
	struct gmem_file *file = new_file(16 * P);
	struct gmem_folio folio;

	memset(bytes, 'b', sizeof(bytes));
	fail_err = -ENOSPC;
	for (int how = 0; how < 8; how++) {
		fail_halfway = how & 1;
		fail_in = 1;
		if (how & 2) {
			/* A dead server's lock: zeroes are written, not allocated. */
			CHECK_EQ(gmem_state_trylock(&file->state, 5, 9), GMEM_STATE_LOCKED);
			fail_in = how & 4 ? 3 : 1;
		}
		CHECK_ERR(insert(file, 4 * P, 8, how & 4 ? NULL : bytes, &folio), -ENOSPC);
		nothing_is_left(file, 16);
	}
	gmem_file_free(file);
}

TEST(insert_takes_what_is_free)
{
	static char bytes[8 * 4096], buf[4096];
	struct gmem_file *file = new_file(16 * P);
	struct gmem_folio folio;

	memset(bytes, 'b', sizeof(bytes));
	CHECK_OK(gmem_file_write(file, 3 * P, "mine", 4));
	/* Up to the page that somebody else brought in. */
	CHECK_OK(insert(file, 0, 8, bytes, &folio));
	CHECK_EQ(folio.npages, 3);
	CHECK_EQ(gmem_file_page_state(file, 2 * P), GMEM_PAGE_FILLING);
	CHECK_EQ(query(file).filling, 3);
	CHECK_EQ(insert(file, 0, 8, bytes, &(struct gmem_folio){ 0 }), -EBUSY);
	/* One that is removed while it is locked is dropped by publish. */
	gmem_state_remove(&file->state, 1);
	publish(file, &folio);
	CHECK_EQ(gmem_file_page_state(file, 0), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(file, P), GMEM_PAGE_REMOVED);
	CHECK_OK(gmem_file_read(file, P, buf, 1));
	CHECK_EQ(buf[0], 0);
	CHECK_EQ(query(file).resident, 3 * P);
	CHECK_EQ(insert(file, 0, 8, bytes, &folio), -EEXIST);
	CHECK_OK(gmem_file_read(file, 3 * P, buf, 4));
	CHECK_MEM(buf, "mine", 4);
	CHECK_ERR(file->ops->alloc(file, 16 * P, 1, &folio) == -ERANGE ? gmem_err(-ERANGE, "x") : 0, -ERANGE);
	CHECK_OK(file->ops->alloc(file, 15 * P, 8, &folio));
	CHECK_EQ(folio.npages, 1);
	gmem_file_free(file);
}

TEST(lookup_never_allocates)
{
	struct gmem_file *file = new_file(16 * P);
	struct gmem_folio folio;

	CHECK_EQ(file->ops->lookup(file, 0, 4, &folio), -ENOENT);
	CHECK_EQ(query(file).resident, 0);
	CHECK_OK(gmem_file_write(file, 0, "x", 1));
	CHECK_OK(gmem_file_punch(file, P, P));
	CHECK_OK(file->ops->lookup(file, 0, 8, &folio));
	CHECK_EQ(folio.npages, 2);
	CHECK(file->ops->present(file, P));
	CHECK(!file->ops->present(file, 2 * P));
	CHECK_EQ(gmem_state_trylock(&file->state, 3, gmem_file_generation(file)), GMEM_STATE_LOCKED);
	CHECK_EQ(file->ops->lookup(file, 3 * P, 1, &folio), -EBUSY);
	CHECK_EQ(gmem_file_poison_page(file, 3 * P), -EBUSY);
	gmem_state_unlock(&file->state, 3, gmem_file_generation(file));
	CHECK_EQ(gmem_file_poison_page(file, 3 * P), 0);
	CHECK_EQ(gmem_file_poison_page(file, 3 * P), 1);
	CHECK_EQ(gmem_file_poison_page(file, 0), -EEXIST);
	CHECK_EQ(file->ops->lookup(file, 3 * P, 1, &folio), -EHWPOISON);
	gmem_file_free(file);
}

/* Bytes that a mapping has put into pages the table says nothing of. */
TEST(what_a_mapping_has_put_there_is_adopted)
{
	struct gmem_file *file = new_file(16 * P);
	const struct gmem_backing_ops *ops = file->ops;
	struct gmem_view *view;
	char *p;

	CHECK_OK(gmem_view_map(file, 0, 16 * P, PROT_READ | PROT_WRITE, &view));
	p = gmem_view_addr(view);
	CHECK_EQ(ops->adopt(file, 0, 8), 8);
	CHECK_EQ(query(file).absent, 16);
	p[3 * P] = 'x';
	CHECK_EQ(ops->adopt(file, 0, 8), 3);
	CHECK_EQ(ops->adopt(file, 3 * P, 8), 0);
	CHECK_EQ(gmem_file_page_state(file, 3 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(query(file).absent, 15);
	CHECK_EQ(p[3 * P], 'x');
	/* In place before: nothing to do. */
	CHECK_EQ(ops->adopt(file, 3 * P, 1), 0);
	CHECK_OK(gmem_file_punch(file, 4 * P, P));
	CHECK_EQ(ops->adopt(file, 4 * P, 1), 0);
	/* Somebody is at it, with bytes that are not all there yet. */
	p[5 * P] = 'y';
	CHECK_EQ(gmem_state_trylock(&file->state, 5, gmem_file_generation(file)), GMEM_STATE_LOCKED);
	CHECK_EQ(ops->adopt(file, 5 * P, 1), -EBUSY);
	gmem_state_unlock(&file->state, 5, gmem_file_generation(file));
	/* Or was, and died over it: they are nobody's. */
	CHECK_EQ(gmem_state_trylock(&file->state, 5, 9), GMEM_STATE_LOCKED);
	CHECK_EQ(ops->adopt(file, 5 * P, 1), 1);
	CHECK_EQ(gmem_state_word(&file->state, 5), GMEM_WORD_ABSENT);
	CHECK_EQ(p[5 * P], 0);
	/* And given up besides. */
	p[6 * P] = 'z';
	CHECK_EQ(gmem_state_trylock(&file->state, 6, 9), GMEM_STATE_LOCKED);
	gmem_state_remove(&file->state, 6);
	CHECK_EQ(ops->adopt(file, 6 * P, 1), 0);
	CHECK_EQ(gmem_file_page_state(file, 6 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(p[6 * P], 0);
	CHECK_EQ(gmem_file_poison_page(file, 7 * P), 0);
	CHECK_EQ(ops->adopt(file, 7 * P, 1), -EHWPOISON);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(poisoned_page)
{
	struct gmem_file *file = new_file(16 * P);
	char buf[8192];

	CHECK_EQ(gmem_file_poison_page(file, 3 * P), 0);
	CHECK_EQ(gmem_file_page_state(file, 3 * P), GMEM_PAGE_POISONED);
	CHECK_EQ(query(file).poisoned, 1);
	CHECK_ERR(gmem_file_read(file, 3 * P + 1, buf, 1), -EHWPOISON);
	CHECK_ERR(gmem_file_read(file, 2 * P, buf, sizeof(buf)), -EHWPOISON);
	CHECK_ERR(gmem_file_write(file, 3 * P + 1, buf, 1), -EHWPOISON);
	CHECK_OK(gmem_file_read(file, 2 * P, buf, P));
	CHECK_OK(gmem_file_punch(file, 3 * P, P));
	CHECK_OK(gmem_file_read(file, 3 * P, buf, P));
	CHECK_EQ(buf[0], 0);
	gmem_file_free(file);
}

/* What a server that died had half brought in was never seen by anybody, and is not now. */
TEST(bytes_of_the_dead_are_not_read)
{
	struct gmem_file *file = new_file(16 * P);
	static char junk[4096], buf[4096], zero[4096];

	memset(junk, 'j', sizeof(junk));
	for (uint64_t page = 0; page < 3; page++) {
		CHECK_EQ(gmem_state_trylock(&file->state, page, 7), GMEM_STATE_LOCKED);
		CHECK_EQ(__real_gmem_pwrite_all(gmem_file_fd(file), junk, P, page * P), 0);
	}
	/* The generation now is 8. */
	atomic_store(&file->state.header->generation, 8);
	CHECK_OK(gmem_file_read(file, 0, buf, P));
	CHECK_MEM(buf, zero, P);
	CHECK_OK(gmem_file_write(file, P + 1, "w", 1));
	CHECK_OK(gmem_file_read(file, P, buf, P));
	CHECK_EQ(buf[1], 'w');
	buf[1] = 0;
	CHECK_MEM(buf, zero, P);
	CHECK_OK(gmem_file_punch(file, 2 * P, P));
	CHECK_OK(gmem_file_read(file, 2 * P, buf, P));
	CHECK_MEM(buf, zero, P);
	CHECK_OK(gmem_file_write(file, 2 * P + 1, "w", 1));
	CHECK_OK(gmem_file_read(file, 2 * P, buf, P));
	CHECK_EQ(buf[1], 'w');
	buf[1] = 0;
	CHECK_MEM(buf, zero, P);
	gmem_file_free(file);
}

/* A writer in the program and a server in another process: neither takes the other's lock for a dead one's. */
TEST(writer_respects_the_server_at_work)
{
	struct gmem_file *program = new_file(16 * P), *server;
	static char bytes[4096], buf[4096];
	struct gmem_folio folio;

	memset(bytes, 'b', sizeof(bytes));
	CHECK_OK(gmem_file_open(gmem_file_fd(program), gmem_file_state_fd(program), &server));
	atomic_store(&program->state.header->generation, 2);
	gmem_file_set_generation(server, 2);
	CHECK_OK(insert(server, 0, 1, bytes, &folio));
	CHECK_EQ(insert(program, 0, 1, buf, &(struct gmem_folio){ 0 }), -EBUSY);
	publish(server, &folio);
	CHECK_OK(gmem_file_write(program, 1, "w", 1));
	CHECK_OK(gmem_file_read(server, 0, buf, P));
	bytes[1] = 'w';
	CHECK_MEM(buf, bytes, P);
	/* One that was fenced does not touch what its successor has. */
	CHECK_OK(insert(server, P, 1, bytes, &folio));
	atomic_store(&program->state.header->generation, 3);
	CHECK_OK(gmem_file_write(program, P, "successor", 9));
	publish(server, &folio);
	CHECK_EQ(gmem_file_page_state(program, P), GMEM_PAGE_UPTODATE);
	CHECK_OK(gmem_file_read(program, P, buf, 9));
	CHECK_MEM(buf, "successor", 9);
	gmem_file_free(server);
	gmem_file_free(program);
}

#define TORN_PAGES 64

static _Atomic bool stop;

static void *rewriter(void *arg)
{
	static char fill[2][4096];

	memset(fill[0], 'a', P);
	memset(fill[1], 'b', P);
	for (unsigned int i = 0; !atomic_load(&stop); i++) {
		uint64_t page = i % TORN_PAGES;

		CHECK_OK(gmem_file_write(arg, page * P, fill[i / TORN_PAGES & 1], P));
	}
	return arg;
}

static void *puncher(void *arg)
{
	uint64_t seed = 1;

	while (!atomic_load(&stop))
		CHECK_OK(gmem_file_punch(arg, tap_rand(&seed) % TORN_PAGES * P, P));
	return arg;
}

/* A page that comes into being is seen whole or not at all. */
TEST(a_new_page_is_seen_whole)
{
	struct gmem_file *file = new_file(4096 * P);
	static char fill[4096], buf[4096];
	int seen = 0;
	pid_t pid;

	memset(fill, 'f', sizeof(fill));
	pid = fork();
	if (!pid) {
		struct gmem_file *other;

		CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &other));
		for (uint64_t page = 0; page < 4096; page++)
			CHECK_OK(gmem_file_write(other, page * P, fill, P));
		_exit(0);
	}
	for (uint64_t page = 0; page < 4096; page++) {
		do {
			CHECK_OK(gmem_file_read(file, page * P, buf, P));
			for (unsigned int i = 1; i < P; i++)
				if (buf[i] != buf[0])
					FAIL("page %llu is torn at byte %u", (unsigned long long)page, i);
			seen += buf[0] == 'f';
		} while (buf[0] != 'f');
	}
	CHECK_EQ(seen, 4096);
	waitpid(pid, NULL, 0);
	gmem_file_free(file);
}

TEST(write_against_punch)
{
	struct gmem_file *file = new_file(TORN_PAGES * P);
	pthread_t t[3];

	pthread_create(&t[0], NULL, rewriter, file);
	pthread_create(&t[1], NULL, puncher, file);
	pthread_create(&t[2], NULL, puncher, file);
	usleep(500000);
	atomic_store(&stop, true);
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	for (uint64_t page = 0; page < TORN_PAGES; page++)
		CHECK(!(gmem_state_word(&file->state, page) & GMEM_WORD_LOCKED));
	CHECK_OK(gmem_file_punch(file, 0, TORN_PAGES * P));
	CHECK_EQ(query(file).resident, 0);
	CHECK_EQ(query(file).removed, TORN_PAGES);
	gmem_file_free(file);
}
