/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-restore [MIB]: a guest memory file is filled with bytes that can be checked, saved, and restored lazily
 * in another process. The page server is killed when 37 % is in place and a fault is in flight; the program waits; a
 * new server carries on, and every page is compared. Exit status: 0, 1 (a byte was wrong or a step failed), 77
 * (cannot run here; the last line says why).
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gmem.h"

#define KILL_AT_PERCENT 37
#define WORDS (GMEM_PAGE_SIZE / sizeof(uint64_t))

/* What the processes tell each other. */
struct shared {
	_Atomic uint64_t touched; /* pages the program has read and compared */
	_Atomic uint64_t touching; /* the page it is at now */
	_Atomic uint64_t wrong; /* pages with a wrong byte */
	_Atomic int attached, slowly;
	_Atomic uint64_t faults, demand, behind, longest_ns;
	_Atomic unsigned int generation;
};

static struct shared *shared;
static uint64_t npages, seed;
static char image_path[256], socket_path[100];

static _Noreturn void die(const char *what)
{
	printf("FAILED: %s: %s\n", what, *gmem_last_error() ? gmem_last_error() : strerror(errno));
	fflush(stdout);
	_exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_ms(unsigned int ms)
{
	usleep(ms * 1000);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* A quarter of the pages is zero, a quarter text-like, half random: as memory is. All follow from seed and number. */
static void make_page(uint64_t page, uint64_t *words)
{
	uint64_t kind = mix(seed ^ page) & 3;

	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = kind == 0 ? 0 :
			   kind == 1 ? mix(seed + page) & 0x0f0f0f0f0f0f0f0f :
				       mix(seed + page * WORDS + i);
}

static void fill_file(struct gmem_file *file)
{
	uint64_t words[WORDS];

	for (uint64_t page = 0; page < npages; page++) {
		make_page(page, words);
		if (gmem_file_write(file, page * GMEM_PAGE_SIZE, words, sizeof(words)))
			die("filling the file");
	}
}

static void save(void)
{
	struct gmem_image_writer *writer;
	struct gmem_image_region region = { .size = sizeof(region) };
	struct gmem_image *image;
	struct gmem_file *file;
	double begun;

	if (gmem_file_create(npages * GMEM_PAGE_SIZE, NULL, &file))
		die("creating the file");
	fill_file(file);
	begun = now();
	if (gmem_image_create(image_path, NULL, &writer) ||
	    gmem_image_add_region(writer, "ram", UINT64_MAX, gmem_file_fd(file), 0, npages * GMEM_PAGE_SIZE, NULL,
				  NULL) ||
	    gmem_image_commit(writer))
		die("saving");
	gmem_file_free(file);
	if (gmem_image_open(image_path, &image) || gmem_image_region(image, 0, &region))
		die("opening the image");
	printf("saved %llu MiB in %.0f ms: %llu of %llu pages have bytes, %.1f MiB stored\n",
	       (unsigned long long)(npages * GMEM_PAGE_SIZE >> 20), (now() - begun) * 1e3,
	       (unsigned long long)region.data_pages, (unsigned long long)npages,
	       (double)region.stored_bytes / (1 << 20));
	gmem_image_close(image);
}

/* ---- the program whose memory it is: touches every page once, in random order, and compares it whole */

static void touch_page(struct gmem_view *view, uint64_t page)
{
	uint64_t expected[WORDS];

	make_page(page, expected);
	atomic_store(&shared->touching, page);
	if (memcmp((char *)gmem_view_addr(view) + page * GMEM_PAGE_SIZE, expected, sizeof(expected)))
		atomic_fetch_add(&shared->wrong, 1);
	atomic_fetch_add(&shared->touched, 1);
}

static void program(int attach_fd, struct gmem_file *file)
{
	uint64_t *order = malloc(npages * sizeof(*order)), state = seed;
	struct gmem_view *view;
	int err;

	if (!order || gmem_view_map(file, 0, npages * GMEM_PAGE_SIZE, PROT_READ | PROT_WRITE, &view))
		die("mapping");
	err = gmem_attach_view(attach_fd, view);
	if (err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP) {
		printf("%s\n", gmem_last_error());
		fflush(stdout);
		_exit(77);
	}
	if (err)
		die("attaching");
	atomic_store(&shared->attached, 1);
	for (uint64_t i = 0; i < npages; i++)
		order[i] = i;
	for (uint64_t i = npages - 1; i > 0; i--) {
		uint64_t k = mix(state++) % (i + 1), t = order[i];

		order[i] = order[k];
		order[k] = t;
	}
	for (uint64_t i = 0; i < npages; i++) {
		touch_page(view, order[i]);
		/* Slower than the fill, so that there is always a page of which nobody knows who brings it first. */
		if (i % 8 == 0)
			usleep(50);
	}
	_exit(0);
}

/* ---- a page server */

static int server_progress(void *opaque, uint64_t done, uint64_t total)
{
	(void)opaque;
	(void)done;
	(void)total;
	if (atomic_load(&shared->slowly))
		pause_ms(3);
	return 0;
}

static void server(void)
{
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	struct gmem_server_status status = { .size = sizeof(status) };
	struct gmem_server *s;

	if (gmem_server_connect(socket_path, NULL, &s))
		die("connecting to the keeper");
	/* A restored program may start before its server knows of it. */
	do {
		pause_ms(1);
		gmem_server_status(s, &status);
	} while (!status.nregions);
	atomic_store(&shared->generation, status.generation);
	if (gmem_pager_fill(gmem_server_pager(s), server_progress, NULL) < 0)
		die("filling");
	if (gmem_pager_unregister(gmem_server_pager(s)))
		die("letting go");
	gmem_pager_stats(gmem_server_pager(s), &stats);
	atomic_store(&shared->faults, stats.missing + stats.minor);
	atomic_store(&shared->demand, stats.demand_pages);
	atomic_store(&shared->behind, stats.fill_pages);
	atomic_store(&shared->longest_ns, stats.latency_max_ns);
	gmem_server_free(s);
	_exit(0);
}

/* ---- the whole */

static pid_t start(void (*fn)(void))
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		fn();
		_exit(0);
	}
	return pid;
}

static struct gmem_keeper *keeper;
static struct gmem_file *ram;

static void run_program(void)
{
	program(gmem_keeper_attach_fd(keeper), ram);
}

static void run_keeper(void)
{
	gmem_file_free(ram);
	if (gmem_keeper_run(keeper))
		die("keeper");
	gmem_keeper_free(keeper);
}

static void make_keeper(void)
{
	struct gmem_image *image;

	if (gmem_image_open(image_path, &image) || gmem_file_create(npages * GMEM_PAGE_SIZE, NULL, &ram) ||
	    gmem_keeper_create(socket_path, &keeper) || gmem_keeper_add_file(keeper, ram, 0) ||
	    gmem_keeper_set_image(keeper, gmem_image_fd(image), image_path))
		die("making the keeper");
	gmem_image_close(image);
}

static void wait_until(const _Atomic int *flag, pid_t child, const char *what)
{
	double begun = now();
	int status;

	while (!atomic_load(flag)) {
		if (waitpid(child, &status, WNOHANG) == child) {
			if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
				printf("SKIPPED: no userfaultfd here; to run it: gmem info says what is missing\n");
				unlink(image_path);
				unlink(socket_path);
				exit(77);
			}
			printf("FAILED: %s: a process ended early\n", what);
			exit(1);
		}
		if (now() - begun > 60) {
			printf("FAILED: %s: nothing happened for 60 s\n", what);
			exit(1);
		}
		pause_ms(1);
	}
}

static uint64_t unserved(void)
{
	struct gmem_file_counts counts = { .size = sizeof(counts) };

	gmem_file_query(ram, &counts);
	return counts.absent + counts.filling;
}

static void wait_until_partly_served(void)
{
	double begun = now();

	while (unserved() * 100 > npages * (100 - KILL_AT_PERCENT)) {
		if (now() - begun > 60) {
			printf("FAILED: nothing was served for 60 s\n");
			exit(1);
		}
	}
}

/*
 * Stops the server where it is and waits until the program hangs in a fault that nobody serves: only then is the
 * server killed.
 */
static void kill_with_a_fault_in_flight(pid_t pid)
{
	uint64_t touched, page, left;
	int state;

	kill(pid, SIGSTOP);
	do {
		touched = atomic_load(&shared->touched);
		pause_ms(100);
	} while (touched != atomic_load(&shared->touched));
	page = atomic_load(&shared->touching);
	state = gmem_file_page_state(ram, page * GMEM_PAGE_SIZE);
	left = unserved();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	printf("server %u killed at %.0f %%: %llu of %llu pages unserved, the program hangs in its fault on page %llu "
	       "(%s)\n",
	       atomic_load(&shared->generation), (double)(npages - left) * 100 / (double)npages,
	       (unsigned long long)left, (unsigned long long)npages, (unsigned long long)page,
	       state == GMEM_PAGE_ABSENT  ? "unfilled" :
	       state == GMEM_PAGE_FILLING ? "half filled" :
					    "filled, not yet mapped");
	if (touched == npages || left < npages / 10 || left > npages * 9 / 10) {
		printf("FAILED: the kill was too early or too late to show anything\n");
		exit(1);
	}
	pause_ms(300);
	if (touched != atomic_load(&shared->touched)) {
		printf("FAILED: the program went on without a server\n");
		exit(1);
	}
	printf("for 400 ms the program waited: no zero, no stale byte, %llu pages compared so far\n",
	       (unsigned long long)touched);
}

static int finish(pid_t program_pid, pid_t server_pid, pid_t keeper_pid)
{
	int status, failed = 0;

	waitpid(program_pid, &status, 0);
	failed |= status;
	waitpid(server_pid, &status, 0);
	failed |= status;
	waitpid(keeper_pid, &status, 0);
	failed |= status;
	printf("server %u: %llu faults, %llu pages on demand, %llu behind them; longest fault %.0f us\n",
	       atomic_load(&shared->generation), (unsigned long long)shared->faults, (unsigned long long)shared->demand,
	       (unsigned long long)shared->behind, (double)shared->longest_ns / 1e3);
	printf("%llu of %llu pages compared, %llu wrong\n", (unsigned long long)shared->touched,
	       (unsigned long long)npages, (unsigned long long)shared->wrong);
	return failed || shared->wrong || shared->touched != npages;
}

int main(int argc, char **argv)
{
	const char *folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
	unsigned long mib = argc > 1 ? strtoul(argv[1], NULL, 0) : 256;
	pid_t program_pid, server_pid, keeper_pid;
	int failed;

	if (argc > 2 || !mib || mib > 1 << 20) {
		fprintf(stderr, "usage: gmem-demo-restore [MIB]\n");
		return 2;
	}
	npages = (uint64_t)mib << 20 >> 12;
	seed = getenv("GMEM_SEED") ? strtoull(getenv("GMEM_SEED"), NULL, 0) : (uint64_t)time(NULL);
	snprintf(image_path, sizeof(image_path), "%.200s/gmem-demo-%d.gmem", folder, (int)getpid());
	snprintf(socket_path, sizeof(socket_path), "%.60s/gmem-demo-%d.keeper", folder, (int)getpid());
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("shared memory");
	alarm(300);
	printf("seed %llu\n", (unsigned long long)seed);
	save();
	make_keeper();
	atomic_store(&shared->slowly, 1);
	keeper_pid = start(run_keeper);
	program_pid = start(run_program);
	server_pid = start(server);
	wait_until(&shared->attached, program_pid, "attaching");
	gmem_keeper_free(keeper);
	wait_until_partly_served();
	kill_with_a_fault_in_flight(server_pid);
	atomic_store(&shared->slowly, 0);
	server_pid = start(server);
	failed = finish(program_pid, server_pid, keeper_pid);
	gmem_file_free(ram);
	unlink(image_path);
	return failed ? 1 : 0;
}
