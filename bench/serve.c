/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-serve [-f] [-r ROUNDS] [-m MIB] FOLDER: what does a page server for many machines cost?
 *
 * 1, 2 and 4 processes with private memory, registered as Firecracker does it, touch all of their pages in random
 * order at once. They are served by gmem_service, from a memory file in the page cache, each by its own session, or by
 * the bare loop (poll, read, pread of 4 KiB, UFFDIO_COPY), a thread each. Told is the time from the first touch to the
 * last, a page of all machines. Then the p99 of one machine's faults, without the fill and while it runs. Every page
 * that was touched is compared.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

#define MAX_VMS 4
/* A touch that took less met a page that was there. */
#define FAULT_S 1.5e-6

/* Seen by all processes. */
static struct shared {
	_Atomic int ready, go, filled;
	double begun[MAX_VMS], ended[MAX_VMS];
	uint64_t hva[MAX_VMS], faults;
	uint32_t nlatencies;
	double latencies[1 << 20]; /* of the first machine's faults */
} * shared;

static struct {
	size_t len;
	uint32_t npages, ntouch;
	const char *raw, *dir;
	char raw_path[4096], sock[4200];
	int raw_fd;
} all;

/* ---- a machine */

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		bench_die("userfaultfd");
	return fd;
}

static void send_fd(int sock, const char *text, size_t len, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)text, len };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	if (sendmsg(sock, &msg, 0) != (ssize_t)len)
		bench_die("sendmsg");
}

static int recv_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	int fd;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&msg))
		bench_die("recvmsg");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

static void say_hello(int uffd, const char *memory)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char text[256];

	if (strlen(all.sock) >= sizeof(sa.sun_path))
		bench_die("%s: too long for a socket", all.sock);
	memcpy(sa.sun_path, all.sock, strlen(all.sock));
	if (connect(sock, (struct sockaddr *)&sa, sizeof(sa)))
		bench_die("%s", all.sock);
	snprintf(text, sizeof(text),
		 "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
		 (unsigned long long)(uintptr_t)memory, all.len);
	send_fd(sock, text, strlen(text), uffd);
}

/* `pair`: to the bare loop, or -1. */
static void machine(int number, int pair)
{
	char *m = mmap(NULL, all.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register reg = { .range = { (uintptr_t)m, all.len }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	uint32_t *order = malloc(all.npages * sizeof(*order)), wrong = 0, n = 0;
	uint64_t x = 42 + (uint64_t)number;
	int uffd = open_uffd();

	if (m == MAP_FAILED || !order || ioctl(uffd, UFFDIO_REGISTER, &reg))
		bench_die("a machine");
	for (uint32_t i = 0; i < all.npages; i++)
		order[i] = i;
	for (uint32_t i = all.npages; i > 1; i--) {
		uint32_t k, t = order[i - 1];

		x = x * 6364136223846793005u + 1442695040888963407u;
		k = (uint32_t)((x >> 33) % i);
		order[i - 1] = order[k];
		order[k] = t;
	}
	shared->hva[number] = (uintptr_t)m;
	if (pair >= 0)
		send_fd(pair, "", 1, uffd);
	else
		say_hello(uffd, m);
	/* From here on it is served: the last page waits until it is. */
	wrong += *(const volatile uint64_t *)(m + (size_t)order[all.npages - 1] * BENCH_PAGE) !=
		 bench_first_word(order[all.npages - 1]);
	atomic_fetch_add(&shared->ready, 1);
	while (!atomic_load(&shared->go))
		usleep(100);
	shared->begun[number] = bench_now();
	for (uint32_t i = 0; i < all.ntouch; i++) {
		double t = number ? 0 : bench_now();

		wrong += *(const volatile uint64_t *)(m + (size_t)order[i] * BENCH_PAGE) != bench_first_word(order[i]);
		if (!number) {
			t = bench_now() - t;
			if (t > FAULT_S && n < sizeof(shared->latencies) / sizeof(shared->latencies[0]))
				shared->latencies[n++] = t;
		}
	}
	shared->ended[number] = bench_now();
	if (!number)
		shared->nlatencies = n;
	for (uint32_t i = 0; i < all.ntouch; i++)
		wrong += memcmp(m + (size_t)order[i] * BENCH_PAGE, all.raw + (size_t)order[i] * BENCH_PAGE,
				BENCH_PAGE) != 0;
	if (wrong)
		bench_die("%u pages had wrong bytes", wrong);
	_exit(0);
}

/* ---- who serves */

struct bare {
	pthread_t thread;
	int uffd;
	uint64_t hva;
};

static void *bare_loop(void *arg)
{
	struct bare *b = arg;
	static _Thread_local char page[BENCH_PAGE] __attribute__((aligned(4096)));
	struct uffd_msg msgs[16];

	for (;;) {
		struct pollfd p = { .fd = b->uffd, .events = POLLIN };
		ssize_t n;

		poll(&p, 1, -1);
		n = read(b->uffd, msgs, sizeof(msgs));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msgs[0]); i++) {
			uint64_t at = (msgs[i].arg.pagefault.address & ~(uint64_t)(BENCH_PAGE - 1)) - b->hva;
			struct uffdio_copy copy = { .dst = b->hva + at, .src = (uintptr_t)page, .len = BENCH_PAGE };

			if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
				continue;
			if (pread(all.raw_fd, page, BENCH_PAGE, (off_t)at) != BENCH_PAGE)
				bench_die("pread");
			ioctl(b->uffd, UFFDIO_COPY, &copy);
		}
	}
	return NULL;
}

static void bare_server(const int *pairs, int nvms)
{
	static struct bare b[MAX_VMS];

	for (int i = 0; i < nvms; i++) {
		b[i].uffd = recv_fd(pairs[i]);
		b[i].hva = shared->hva[i];
		if (pthread_create(&b[i].thread, NULL, bare_loop, &b[i]))
			bench_die("thread");
	}
	pause();
}

static struct gmem_service *running;

static void on_term(int sig)
{
	gmem_service_stop(running);
}

static void on_event(void *opaque, const struct gmem_service_event *e)
{
	if (e->kind == GMEM_SERVICE_COMPLETE)
		atomic_store(&shared->filled, 1);
}

static uint64_t faults_of(struct gmem_service *service)
{
	uint64_t n = 0;
	char *text;

	if (gmem_service_metrics(service, &text))
		return 0;
	for (char *p = text; (p = strstr(p, "\ngmem_serve_faults_total{")); p++)
		n += strtoull(strstr(p, "} ") + 2, NULL, 10);
	free(text);
	return n;
}

static void *look(void *service)
{
	/* The machines' ends take their numbers with them: they are read as long as they are there. */
	for (;;) {
		uint64_t n = faults_of(service);

		if (n > shared->faults)
			shared->faults = n;
		usleep(20000);
	}
	return NULL;
}

static void our_server(bool fill, int ready)
{
	struct gmem_service_opts opts = {
		.size = sizeof(opts), .flags = fill ? 0 : GMEM_SERVICE_NO_FILL, .event = on_event, .resolvers = 2
	};
	char spec[4200];
	pthread_t t;

	snprintf(spec, sizeof(spec), "raw:%s", all.raw_path);
	if (gmem_service_create(&opts, &running) || gmem_service_add_source(running, "raw", spec) ||
	    gmem_service_listen(running, all.sock, NULL))
		bench_die("%s", gmem_last_error());
	signal(SIGTERM, on_term);
	if (pthread_create(&t, NULL, look, running) || write(ready, "", 1) != 1)
		bench_die("server");
	gmem_service_run(running);
	_exit(0);
}

/* ---- one measurement: seconds from the first touch to the last */

static double measure(bool ours, bool fill, int nvms)
{
	pid_t server, vms[MAX_VMS];
	int pairs[MAX_VMS][2], ready[2];
	double begun, ended;
	char c;

	atomic_store(&shared->ready, 0);
	atomic_store(&shared->go, 0);
	atomic_store(&shared->filled, 0);
	shared->faults = 0;
	if (pipe2(ready, O_CLOEXEC))
		bench_die("pipe");
	server = ours ? fork() : 0;
	if (ours && !server)
		our_server(fill, ready[1]);
	if (ours && read(ready[0], &c, 1) != 1)
		bench_die("the server did not start");
	for (int i = 0; i < nvms; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]))
			bench_die("socketpair");
		vms[i] = fork();
		if (!vms[i])
			machine(i, ours ? -1 : pairs[i][1]);
	}
	if (!ours) {
		server = fork();
		if (!server)
			bare_server((int[]){ pairs[0][0], pairs[1][0], pairs[2][0], pairs[3][0] }, nvms);
	}
	while (atomic_load(&shared->ready) < nvms)
		usleep(100);
	atomic_store(&shared->go, 1);
	for (int i = 0; i < nvms; i++) {
		int status;

		if (waitpid(vms[i], &status, 0) != vms[i] || status)
			bench_die("a machine ended with status 0x%x", status);
		close(pairs[i][0]);
		close(pairs[i][1]);
	}
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	close(ready[0]);
	close(ready[1]);
	begun = shared->begun[0];
	ended = shared->ended[0];
	for (int i = 1; i < nvms; i++) {
		begun = shared->begun[i] < begun ? shared->begun[i] : begun;
		ended = shared->ended[i] > ended ? shared->ended[i] : ended;
	}
	return ended - begun;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double percentile(double p)
{
	uint32_t n = shared->nlatencies;

	qsort(shared->latencies, n, sizeof(double), by_value);
	return n ? shared->latencies[(uint32_t)((n - 1) * p)] : 0;
}

int main(int argc, char **argv)
{
	static const int counts[] = { 1, 2, 4 };
	struct bench_row *bare[3], *ours[3], *per_fault[3], *idle[2], *filling[2];
	static struct bench b;

	bench_begin(&b, "serve", 64, argc, argv);
	all.len = (size_t)b.mib << 20;
	all.npages = b.mib << 8;
	all.dir = b.dir;
	all.raw_fd = bench_raw_file(&b, "serve.raw", false, all.raw_path, sizeof(all.raw_path));
	all.raw = bench_map_file(all.raw_fd, all.len);
	snprintf(all.sock, sizeof(all.sock), "%s/serve.sock", b.dir);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		bench_die("mmap");
	for (int i = 0; i < 3; i++) {
		bare[i] = bench_row(&b, "us/page", NULL, "%d VMs: bare loop", counts[i]);
		ours[i] = bench_row(&b, "us/page", bare[i], "%d VMs: gmem_service", counts[i]);
		per_fault[i] = bench_row(&b, "us/fault", bare[i], "%d VMs: gmem_service, a fault", counts[i]);
		bench_target(&b, ours[i], false, 1.05, "fault service, %d VMs, beside the bare loop", counts[i]);
	}
	for (int i = 0; i < 2; i++) {
		idle[i] = bench_row(&b, "us", NULL, "1 VM, no fill: fault p%d", i ? 99 : 50);
		filling[i] = bench_row(&b, "us", idle[i], "1 VM, fill running: fault p%d", i ? 99 : 50);
	}
	bench_target(&b, filling[1], false, 2, "p99 of a fault while the fill runs, beside its idle p99");
	for (unsigned int round = 0; round < b.rounds; round++) {
		for (int i = 0; i < 3; i++) {
			double total = (double)all.npages * counts[i];

			all.ntouch = all.npages - 1;
			bench_add(bare[i], measure(false, false, counts[i]) * 1e6 / total);
			bench_add(ours[i], measure(true, false, counts[i]) * 1e6 / total);
			bench_add(per_fault[i],
				  ours[i]->v[round] * total / (double)(shared->faults ? shared->faults : 1));
			if (i)
				continue;
			bench_add(idle[1], percentile(0.99) * 1e6);
			bench_add(idle[0], percentile(0.5) * 1e6);
			measure(true, true, 1);
			bench_add(filling[1], percentile(0.99) * 1e6);
			bench_add(filling[0], percentile(0.5) * 1e6);
		}
	}
	unlink(all.sock);
	unlink(all.raw_path);
	return bench_end(&b);
}
