/* SPDX-License-Identifier: MIT */
/*
 * A program that knows nothing of gmem, for tests of the attach preload: attach_victim HOW MEMORY-FD SHARED-FD. It
 * maps MEMORY-FD, of VICTIM_PAGES pages, as HOW says. Exit status 0, or 1 with a line on stderr.
 */
#include "attach_victim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN (VICTIM_PAGES * 4096ull)

#define EXPECT(cond)                                                                                                   \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "victim, line %d: not so: %s (%s)\n", __LINE__, #cond, strerror(errno));       \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static struct victim_shared *shared;
static int memory;

static char *map_all(void)
{
	char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);

	EXPECT(p != MAP_FAILED);
	return p;
}

static void say(int n)
{
	atomic_store(&shared->said, n);
}

static void wait_for(int n)
{
	while (atomic_load(&shared->told) < n)
		usleep(500);
}

static int is_saved(const char *p, uint64_t page)
{
	for (uint64_t i = 0; i < 512; i++)
		if (((const volatile uint64_t *)p)[page * 512 + i] != victim_word(page * 4096 + i * 8))
			return 0;
	return 1;
}

static int is_zero(const char *p, uint64_t page)
{
	for (uint64_t i = 0; i < 512; i++)
		if (((const volatile uint64_t *)p)[page * 512 + i])
			return 0;
	return 1;
}

struct part {
	char *p;
	uint64_t first, step;
};

static void *read_part(void *arg)
{
	const struct part *t = arg;

	for (uint64_t i = 0; i < VICTIM_PAGES; i++) {
		uint64_t page = (i * 2654435761u + t->first * 7) % VICTIM_PAGES;

		if (page % t->step != t->first)
			continue;
		EXPECT(is_saved(t->p, page));
		((volatile uint64_t *)t->p)[page * 512] = ~page;
	}
	return NULL;
}

static void read_and_write_all(char *p, uint64_t nthreads)
{
	pthread_t threads[8];
	struct part parts[8];

	for (uint64_t i = 0; i < nthreads; i++) {
		parts[i] = (struct part){ p, i, nthreads };
		EXPECT(!pthread_create(&threads[i], NULL, read_part, &parts[i]));
	}
	for (uint64_t i = 0; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	for (uint64_t page = 0; page < VICTIM_PAGES; page++) {
		uint64_t *w = (uint64_t *)p + page * 512;

		EXPECT(w[0] == ~page);
		w[0] = victim_word(page * 4096);
		EXPECT(is_saved(p, page));
	}
}

static void do_read(void)
{
	read_and_write_all(map_all(), 1);
}

static void do_threads(void)
{
	read_and_write_all(map_all(), 8);
}

/* Several mappings at once, made by several threads, and one of them with mmap64. */
static void *map_and_read(void *arg)
{
	uint64_t quarter = (uint64_t)(uintptr_t)arg, first = quarter * (VICTIM_PAGES / 4);
	char *p = mmap64(NULL, LEN / 4, PROT_READ, MAP_SHARED, memory, (off64_t)(first * 4096));

	EXPECT(p != MAP_FAILED);
	for (uint64_t page = first; page < first + VICTIM_PAGES / 4; page++)
		EXPECT(is_saved(p - first * 4096, page));
	return NULL;
}

static void do_parts(void)
{
	pthread_t threads[4];

	for (uintptr_t i = 0; i < 4; i++)
		EXPECT(!pthread_create(&threads[i], NULL, map_and_read, (void *)i));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

static void expect_refused(int prot, int flags)
{
	errno = 0;
	EXPECT(mmap(NULL, LEN, prot, flags, memory, 0) == MAP_FAILED);
	EXPECT(errno == EPERM);
}

static void do_private(void)
{
	expect_refused(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	say(1);
	wait_for(1);
	do_read();
}

static void do_populate(void)
{
	expect_refused(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE);
	say(1);
	wait_for(1);
	expect_refused(PROT_READ, MAP_SHARED | MAP_LOCKED);
	do_read();
}

static void do_punch(void)
{
	char *p;

	/* Nothing is in place: the server serves no one before it is told. */
	p = map_all();
	EXPECT(!fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * 4096));
	EXPECT(!fallocate64(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 9 * 4096, 4096));
	EXPECT(!madvise(p + 16 * 4096, 8 * 4096, MADV_REMOVE));
	EXPECT(!madvise(p + 25 * 4096, 100, MADV_REMOVE)); /* the kernel takes the whole page */
	/* What fails drops nothing. */
	EXPECT(fallocate(memory, FALLOC_FL_PUNCH_HOLE, 32 * 4096, 4096) < 0);
	EXPECT(madvise(p + 33 * 4096 + 1, 2 * 4096, MADV_REMOVE) < 0);
	EXPECT(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 36 * 4096, -4096) < 0);
	/* Part of a page: zeroed in part by the kernel, if it is there; still the page that was saved. */
	EXPECT(!fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 40 * 4096 + 8, 100));
	say(1);
	wait_for(1);
	for (uint64_t page = 0; page < 64; page++) {
		if (page < 8 || page == 9 || (page >= 16 && page < 24) || page == 25)
			EXPECT(is_zero(p, page));
		else
			EXPECT(is_saved(p, page));
	}
	/* Pages that are in place: DONTNEED keeps the bytes of shared memory, REMOVE drops them. */
	p[50 * 4096] = 'x';
	p[51 * 4096] = 'y';
	p[3 * 4096] = 'z';
	EXPECT(!madvise(p, 64 * 4096, MADV_DONTNEED));
	EXPECT(p[50 * 4096] == 'x' && p[51 * 4096] == 'y' && p[3 * 4096] == 'z');
	EXPECT(!madvise(p + 51 * 4096, 4096, MADV_REMOVE));
	EXPECT(!madvise(p, 60 * 4096, MADV_DONTNEED));
	EXPECT(is_zero(p, 51) && p[50 * 4096] == 'x' && is_saved(p, 52));
	/* One call over the border of two mappings. */
	p = mmap(NULL, LEN + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(p != MAP_FAILED);
	EXPECT(mmap(p, LEN / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, (off_t)LEN / 2) == p);
	EXPECT(mmap(p + LEN / 2, LEN / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) == p + LEN / 2);
	EXPECT(!madvise(p + LEN / 2 - 8192, 2 * 8192, MADV_REMOVE));
	EXPECT(is_zero(p + LEN / 2 - 8192, 0) && is_zero(p + LEN / 2, 1));
}

static char *waiting_page;

static void *touch_waiting(void *arg)
{
	EXPECT(is_zero(waiting_page, 0));
	return arg;
}

/* The server stands between the bytes and their publication. */
static void do_punch_filling(void)
{
	char *p = map_all();
	pthread_t thread;

	waiting_page = p + 5 * 4096;
	EXPECT(!pthread_create(&thread, NULL, touch_waiting, NULL));
	wait_for(1);
	EXPECT(!fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * 4096, 4096));
	say(1);
	pthread_join(thread, NULL);
	EXPECT(is_saved(p, 4) && is_zero(p, 5) && is_saved(p, 6));
}

static void do_env(void)
{
	char line[4096];
	FILE *env;
	int lines = 0;

	EXPECT(!getenv("GMEM_ATTACH_FD"));
	EXPECT(!getenv("LD_PRELOAD") || !strstr(getenv("LD_PRELOAD"), "gmem"));
	env = popen("env; echo \"libs:${LD_PRELOAD}\"; ls -l /proc/self/fd", "r");
	EXPECT(env);
	while (fgets(line, sizeof(line), env)) {
		lines++;
		EXPECT(!strstr(line, "GMEM_ATTACH_FD") && !strstr(line, "libgmem-attach"));
		EXPECT(!strstr(line, "socket:"));
	}
	EXPECT(lines > 3);
	EXPECT(pclose(env) == 0);
	if (!getenv("LD_PRELOAD"))
		return;
	/* Whatever else was preloaded stays. */
	EXPECT(!strcmp(getenv("LD_PRELOAD"), "libm.so.6"));
}

static void do_others(void)
{
	char name[] = "/tmp/gmem-victim-XXXXXX", *p, *q;
	int fd = mkstemp(name);

	EXPECT(fd >= 0 && !unlink(name) && write(fd, "hello", 5) == 5 && !ftruncate(fd, 8192));
	errno = 4711;
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	EXPECT(errno == 4711 && p != MAP_FAILED && !memcmp(p, "hello", 5));
	q = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	EXPECT(errno == 4711 && q != MAP_FAILED && !memcmp(q, "hello", 5));
	q[1] = 'a';
	EXPECT(p[1] == 'a' && q[1] == 'a');
	p[0] = 'H';
	EXPECT(q[0] == 'h');
	EXPECT(mmap(p, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p && p[0] == 0);
	/* An anonymous mapping whose descriptor means nothing. */
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, memory, 0) != MAP_FAILED);
	EXPECT(!madvise(q, 4096, MADV_DONTNEED) && q[1] == 'a');
	EXPECT(!fallocate(fd, 0, 0, 16384) && lseek(fd, 0, SEEK_END) == 16384);
	EXPECT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) && q[1] == 0);
	errno = 0;
	EXPECT(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 0, PROT_READ, MAP_SHARED, memory, 0) == MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, memory, 1) == MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, 987, 0) == MAP_FAILED && errno == EBADF);
	EXPECT(fallocate(987, 0, 0, 1) < 0 && errno == EBADF);
	do_read();
}

/* Unmapped and mapped again, at the same address and elsewhere in the file. */
static void do_again(void)
{
	char *p = map_all();

	EXPECT(is_saved(p, 3));
	for (int i = 0; i < 40; i++) {
		EXPECT(!munmap(p, LEN));
		EXPECT(mmap(p, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) == p);
		EXPECT(is_saved(p, (uint64_t)(4 + i)));
	}
	say(1);
	wait_for(1);
	EXPECT(!munmap(p, LEN));
	errno = 0;
	/* Or right: what is not known by its address cannot be served. */
	p = mmap(p, LEN / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, (off_t)LEN / 2);
	if (p == MAP_FAILED) {
		EXPECT(errno == EPERM);
		return;
	}
	for (uint64_t page = VICTIM_PAGES / 2; page < VICTIM_PAGES; page++)
		EXPECT(is_saved(p - LEN / 2, page));
}

/*
 * A child has no userfaultfd: what it could read would be zero. It may not see the memory, nor map it; the parent
 * goes on.
 */
static void do_fork(void)
{
	char *p = map_all();
	pid_t pid;
	int status;

	EXPECT(is_saved(p, 2));
	pid = fork();
	EXPECT(pid >= 0);
	if (!pid) {
		p[9 * 4096] = 1; /* SIGSEGV is right */
		_exit(9);
	}
	EXPECT(waitpid(pid, &status, 0) == pid);
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	pid = fork();
	EXPECT(pid >= 0);
	if (!pid) {
		expect_refused(PROT_READ, MAP_SHARED);
		EXPECT(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
		_exit(0);
	}
	EXPECT(waitpid(pid, &status, 0) == pid);
	EXPECT(status == 0);
	EXPECT(mmap(NULL, LEN / 2, PROT_READ, MAP_SHARED, memory, 0) != MAP_FAILED);
	read_and_write_all(p, 2);
}

/* The one that maps is not the one that was started. */
static void do_daemon(void)
{
	pid_t pid = fork();

	EXPECT(pid >= 0);
	if (pid)
		return;
	usleep(50000);
	read_and_write_all(map_all(), 1);
	say(1);
	wait_for(1);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} all[] = {
		{ "read", do_read },	   { "threads", do_threads }, { "parts", do_parts },
		{ "private", do_private }, { "populate", do_populate }, { "punch", do_punch },
		{ "punch-filling", do_punch_filling }, { "env", do_env }, { "others", do_others },
		{ "again", do_again },	   { "fork", do_fork }, { "daemon", do_daemon },
	};

	if (argc == 2 && !strcmp(argv[1], "nothing"))
		return 0;
	EXPECT(argc == 4);
	memory = atoi(argv[2]);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
	EXPECT(shared != MAP_FAILED);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (!strcmp(argv[1], all[i].name)) {
			all[i].fn();
			return 0;
		}
	}
	fprintf(stderr, "victim: no way \"%s\"\n", argv[1]);
	return 1;
}
