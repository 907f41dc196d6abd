/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-fault [-f] [-r ROUNDS] [-m MIB] FOLDER: what does it cost to have a page served?
 *
 * One thread touches pages: all in order, all in random order, or a random tenth. They are served by the
 * simplest loop that is good (poll, read, pread of 4 KiB of a page-cached file into a second mapping,
 * UFFDIO_CONTINUE), by two variants of it, or by a pager. The toucher's time is told a page; every page it
 * touched is compared with the file afterwards. Toucher and server are kept on one processor, then on two:
 * to wake a sleeping processor may cost more than all the rest, and left alone they would change between
 * the two as chance has it.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

enum handler { BARE, BARE_BLOCKING, BARE_COPY, OURS_FD, OURS_NONE, OURS_ZSTD, NHANDLERS };
enum order { SEQUENTIAL, RANDOM, SPARSE, NORDERS };

static const char *const handler_names[] = {
	"bare loop",	   "bare loop without poll", "bare loop, COPY",
	"pager, raw file", "pager, image none",	     "pager, image zstd",
};
static const char *const order_names[] = { "sequential", "random", "random 10 %" };

static struct {
	size_t len;
	uint32_t npages, ntouch;
	uint32_t *order;
	const char *raw; /* mapped and populated: for comparing */
	int raw_fd;
	struct gmem_source *sources[NHANDLERS];
	int toucher_cpu;
} all;

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		bench_die("processor %d", cpu);
}

/* ---- the toucher */

static double touch(void *addr, void *arg)
{
	const char *base = addr;
	uint32_t wrong = 0;
	double begun;

	stay_on(all.toucher_cpu);
	begun = bench_now();
	for (uint32_t i = 0; i < all.ntouch; i++) {
		uint32_t page = all.order[i];

		wrong += *(const volatile uint64_t *)(base + (size_t)page * BENCH_PAGE) != bench_first_word(page);
	}
	begun = bench_now() - begun;
	for (uint32_t i = 0; i < all.ntouch; i++) {
		size_t at = (size_t)all.order[i] * BENCH_PAGE;

		wrong += memcmp(base + at, all.raw + at, BENCH_PAGE) != 0;
	}
	if (wrong)
		bench_die("%u pages had wrong bytes", wrong);
	return begun;
}

static void set_order(enum order order)
{
	uint64_t x = 42;

	all.ntouch = order == SPARSE ? all.npages / 10 : all.npages;
	for (uint32_t i = 0; i < all.npages; i++)
		all.order[i] = i;
	for (uint32_t i = all.npages; order != SEQUENTIAL && i > 1; i--) {
		uint32_t k, t = all.order[i - 1];

		x = x * 6364136223846793005u + 1442695040888963407u;
		k = (uint32_t)((x >> 33) % i);
		all.order[i - 1] = all.order[k];
		all.order[k] = t;
	}
}

/* ---- the bare loops */

struct bare {
	enum handler kind;
	int uffd;
	uint64_t hva;
	char *second; /* another mapping of the same memory, or a page to copy from */
	uint64_t faults;
	_Atomic bool stop;
	pthread_t thread;
};

static void resolve(struct bare *b, uint64_t address)
{
	uint64_t at = (address & ~(uint64_t)(BENCH_PAGE - 1)) - b->hva;
	int rc;

	if (b->kind == BARE_COPY) {
		struct uffdio_copy copy = { .dst = b->hva + at, .src = (uintptr_t)b->second, .len = BENCH_PAGE };

		if (pread(all.raw_fd, b->second, BENCH_PAGE, (off_t)at) != BENCH_PAGE)
			bench_die("pread");
		rc = ioctl(b->uffd, UFFDIO_COPY, &copy);
	} else {
		struct uffdio_continue cont = { .range = { .start = b->hva + at, .len = BENCH_PAGE } };

		if (pread(all.raw_fd, b->second + at, BENCH_PAGE, (off_t)at) != BENCH_PAGE)
			bench_die("pread");
		rc = ioctl(b->uffd, UFFDIO_CONTINUE, &cont);
	}
	if (rc)
		bench_die("resolving 0x%llx", (unsigned long long)at);
	b->faults++;
}

static void *bare_loop(void *arg)
{
	struct bare *b = arg;
	struct uffd_msg msgs[16];

	while (!atomic_load_explicit(&b->stop, memory_order_relaxed)) {
		struct pollfd p = { .fd = b->uffd, .events = POLLIN };
		ssize_t n;

		if (b->kind != BARE_BLOCKING && poll(&p, 1, -1) != 1)
			continue;
		n = read(b->uffd, msgs, sizeof(msgs));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msgs[0]); i++)
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				resolve(b, msgs[i].arg.pagefault.address);
	}
	return NULL;
}

static void on_signal(int sig)
{
}

static void bare_start(struct bare *b, enum handler kind, int uffd, uint64_t hva, int memfd)
{
	struct sigaction sa = { .sa_handler = on_signal };

	*b = (struct bare){ .kind = kind, .uffd = uffd, .hva = hva };
	b->second = kind == BARE_COPY ? mmap(NULL, BENCH_PAGE, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0) :
					mmap(NULL, all.len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (b->second == MAP_FAILED || sigaction(SIGUSR1, &sa, NULL) || pthread_create(&b->thread, NULL, bare_loop, b))
		bench_die("starting the bare loop");
}

static void bare_stop(struct bare *b)
{
	atomic_store(&b->stop, true);
	/* Until it is out of poll() or read(): it may not have been there yet. */
	do {
		pthread_kill(b->thread, SIGUSR1);
		usleep(1000);
	} while (pthread_tryjoin_np(b->thread, NULL));
	munmap(b->second, b->kind == BARE_COPY ? BENCH_PAGE : all.len);
}

/* ---- one measurement: returns seconds, and how many faults were read */

static double measure_bare(enum handler kind, bool other, uint64_t *faults)
{
	int memfd = bench_memfd(all.len), uffd = -1;
	struct bench_peer peer;
	void *addr = NULL;
	double seconds;
	struct bare b;

	if (other) {
		bench_peer_start(&peer, memfd, all.len, kind == BARE_BLOCKING, touch, NULL);
		bare_start(&b, kind, peer.uffd, peer.hva, memfd);
		bench_peer_go(&peer);
		seconds = peer.seconds;
	} else {
		addr = mmap(NULL, all.len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		if (addr == MAP_FAILED)
			bench_die("mmap");
		uffd = bench_uffd_open(kind == BARE_BLOCKING);
		bench_uffd_register(uffd, addr, all.len);
		bare_start(&b, kind, uffd, (uintptr_t)addr, memfd);
		seconds = touch(addr, NULL);
	}
	bare_stop(&b);
	if (addr)
		munmap(addr, all.len);
	if (uffd >= 0)
		close(uffd);
	close(memfd);
	*faults = b.faults;
	return seconds;
}

static double measure_pager(enum handler kind, bool other, uint64_t *faults)
{
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	struct gmem_view *view = NULL;
	struct gmem_pager *pager;
	struct bench_peer peer;
	struct gmem_file *file;
	double seconds;

	if (gmem_file_create(all.len, NULL, &file))
		bench_die("file");
	if (other)
		bench_peer_start(&peer, gmem_file_fd(file), all.len, false, touch, NULL);
	if (gmem_pager_create(NULL, &pager))
		bench_die("pager");
	if (other) {
		struct gmem_region region = {
			.size = sizeof(region),
			.file = file,
			.uffd = peer.uffd,
			.hva = peer.hva,
			.len = all.len,
			.source = all.sources[kind],
		};

		if (gmem_pager_add_region(pager, &region) < 0)
			bench_die("region");
		bench_peer_go(&peer);
		seconds = peer.seconds;
	} else {
		if (gmem_view_map(file, 0, all.len, PROT_READ | PROT_WRITE, &view) ||
		    gmem_pager_add_view(pager, view, all.sources[kind], 0) < 0)
			bench_die("view");
		seconds = touch(gmem_view_addr(view), NULL);
	}
	gmem_pager_stats(pager, &stats);
	*faults = stats.missing + stats.minor;
	gmem_pager_free(pager);
	gmem_view_unmap(view);
	gmem_file_free(file);
	return seconds;
}

/* ---- */

static struct gmem_source *image_source(const struct bench *b, enum gmem_compression compression,
					struct gmem_image **ret)
{
	struct gmem_image_writer_opts opts = { .size = sizeof(opts), .compression = compression };
	struct gmem_image_writer *writer;
	struct gmem_source *source;
	char path[4096];

	snprintf(path, sizeof(path), "%s/fault-%s.gmem", b->dir, compression == GMEM_COMPRESS_NONE ? "none" : "zstd");
	if (gmem_image_create(path, &opts, &writer) ||
	    gmem_image_add_region(writer, "ram", UINT64_MAX, all.raw_fd, 0, all.len, NULL, NULL) ||
	    gmem_image_commit(writer) || gmem_image_open(path, ret) || gmem_source_new_image(*ret, 0, &source))
		bench_die("image");
	bench_warm(gmem_image_fd(*ret));
	unlink(path);
	return source;
}

struct group {
	int cpu;
	bool other;
	enum order order;
	struct bench_row *us_page[NHANDLERS], *us_fault[NHANDLERS];
};

static void make_rows(struct bench *b, struct group *g)
{
	char name[64];

	snprintf(name, sizeof(name), "%s, %s, %s", g->cpu ? "two CPUs" : "one CPU",
		 g->other ? "other process" : "same process", order_names[g->order]);
	for (enum handler h = 0; h < NHANDLERS; h++)
		g->us_page[h] = bench_row(b, "us/page", h ? g->us_page[BARE] : NULL, "%s: %s", name, handler_names[h]);
	/* The bare loops serve a page a fault; who brings in more with one is told by faults too. */
	for (enum handler h = OURS_FD; h < NHANDLERS; h++)
		g->us_fault[h] = bench_row(b, "us/fault", NULL, "%s: %s, a fault", name, handler_names[h]);
	if (g->order != SPARSE)
		bench_target(b, g->us_page[OURS_FD], false, 1.05, "fault service, %s, beside the bare loop", name);
}

static void run_group(struct group *g, bool keep)
{
	all.toucher_cpu = g->cpu;
	set_order(g->order);
	for (enum handler h = 0; h < NHANDLERS; h++) {
		uint64_t faults;
		double s;

		/* Where the server's threads are born. */
		stay_on(0);
		s = h >= OURS_FD ? measure_pager(h, g->other, &faults) : measure_bare(h, g->other, &faults);
		if (!keep)
			continue;
		bench_add(g->us_page[h], s * 1e6 / all.ntouch);
		if (h >= OURS_FD)
			bench_add(g->us_fault[h], s * 1e6 / (double)faults);
	}
}

int main(int argc, char **argv)
{
	struct group groups[2 * 2 * NORDERS];
	struct gmem_image *images[2];
	unsigned int ngroups = 0;
	static struct bench b;
	char path[4096];

	bench_begin(&b, "fault", 32, argc, argv);
	all.len = (size_t)b.mib << 20;
	all.npages = b.mib << 8;
	all.order = calloc(all.npages, sizeof(*all.order));
	all.raw_fd = bench_raw_file(&b, "fault.raw", true, path, sizeof(path));
	all.raw = bench_map_file(all.raw_fd, all.len);
	unlink(path);
	if (gmem_source_new_fd(all.raw_fd, 0, all.len, &all.sources[OURS_FD]))
		bench_die("source");
	all.sources[OURS_NONE] = image_source(&b, GMEM_COMPRESS_NONE, &images[0]);
	all.sources[OURS_ZSTD] = image_source(&b, GMEM_COMPRESS_ZSTD, &images[1]);

	for (int cpu = 0; cpu < 2 && cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
		for (int other = 0; other < 2; other++) {
			for (enum order o = 0; o < NORDERS; o++) {
				groups[ngroups] = (struct group){ .cpu = cpu, .other = other, .order = o };
				make_rows(&b, &groups[ngroups++]);
			}
		}
	}
	run_group(&groups[0], false);
	for (unsigned int i = 0; i < b.rounds; i++)
		for (unsigned int g = 0; g < ngroups; g++)
			run_group(&groups[g], true);
	for (enum handler h = OURS_FD; h < NHANDLERS; h++)
		gmem_source_unref(all.sources[h]);
	gmem_image_close(images[0]);
	gmem_image_close(images[1]);
	free(all.order);
	return bench_end(&b);
}
