/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-migrate [-f] [-r ROUNDS] [-m MIB] FOLDER: what does a migration's channel carry, and how long does a fault
 * over it take? Over the loopback interface, both sides on this machine.
 *
 * Pages ahead of a fill, through TLS, beside the same bytes over a bare TCP connection and over a bare TLS one of the
 * same kind, read into the same buffer; then as a pager's fill, into a file another process has mapped. A page that
 * somebody waits for, while nothing else goes on and beside pages in bulk, next to a request and an answer of the same
 * lengths over bare TCP. All bytes are compared.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"
#include "migrate_util.h"
#include "source/source.h"

#define STEP ((size_t)256 << 10)
#define ASK_LEN 32u
#define ANSWER_LEN (BENCH_PAGE + 56u)
#define FAULTS 4000u

static size_t len;
static const char *data;
static int data_fd;

/* What the tests' certificates call when something fails. */
void tap_fail(const char *file, int line, const char *fmt, ...)
{
	bench_die("%s:%d: %s", file, line, fmt);
}

static int listener(uint16_t *port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, n) || listen(fd, 8) ||
	    getsockname(fd, (struct sockaddr *)&addr, &n))
		bench_die("listen");
	*port = ntohs(addr.sin_port);
	return fd;
}

static void tcp_pair(int fds[2])
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int one = 1, fd;
	uint16_t port;

	fd = listener(&port);
	addr.sin_port = htons(port);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(fds[0], (struct sockaddr *)&addr, sizeof(addr)))
		bench_die("connect");
	fds[1] = accept(fd, NULL, NULL);
	close(fd);
	for (int i = 0; i < 2; i++)
		setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void recv_all(int fd, char *buf, size_t n)
{
	for (size_t at = 0; at < n;) {
		ssize_t r = recv(fd, buf + at, n - at, 0);

		if (r <= 0)
			bench_die("recv");
		at += (size_t)r;
	}
}

static void send_all(int fd, const char *buf, size_t n)
{
	for (size_t at = 0; at < n;) {
		ssize_t r = send(fd, buf + at, n - at, MSG_NOSIGNAL);

		if (r <= 0)
			bench_die("send");
		at += (size_t)r;
	}
}

/* ---- baselines */

static void *send_data(void *fd)
{
	char *buf = malloc(STEP);

	for (size_t at = 0; at < len; at += STEP) {
		if (pread(data_fd, buf, STEP, (off_t)at) != (ssize_t)STEP)
			bench_die("pread");
		send_all(*(int *)fd, buf, STEP);
	}
	free(buf);
	return NULL;
}

static double measure_tcp(char *buf)
{
	pthread_t thread;
	double seconds;
	int fds[2];

	tcp_pair(fds);
	seconds = bench_now();
	pthread_create(&thread, NULL, send_data, &fds[1]);
	for (size_t at = 0; at < len; at += STEP) {
		recv_all(fds[0], buf, STEP);
		if (memcmp(buf, data + at, STEP))
			bench_die("wrong bytes");
	}
	seconds = bench_now() - seconds;
	pthread_join(thread, NULL);
	close(fds[0]);
	close(fds[1]);
	return seconds;
}

static void tls_wait(struct gmem_tls *tls)
{
	struct pollfd p = { .fd = gmem_tls_fd(tls), .events = gmem_tls_wants(tls) };

	poll(&p, 1, -1);
}

static void *send_tls(void *opaque)
{
	struct gmem_tls *tls = opaque;
	char *buf = malloc(STEP);
	int err;

	while ((err = gmem_tls_handshake(tls)) == -EAGAIN)
		tls_wait(tls);
	for (size_t at = 0; at < len && !err; at += STEP) {
		if (pread(data_fd, buf, STEP, (off_t)at) != (ssize_t)STEP)
			bench_die("pread");
		for (size_t done = 0; done < STEP;) {
			int64_t n = gmem_tls_write(tls, buf + done, STEP - done);

			if (n == -EAGAIN)
				tls_wait(tls);
			else if (n < 0)
				bench_die("%s", gmem_last_error());
			else
				done += (size_t)n;
		}
	}
	free(buf);
	return NULL;
}

static double measure_tls(const struct both *both, char *buf)
{
	struct gmem_tls *a, *b;
	pthread_t thread;
	double seconds;
	int fds[2], err;

	tcp_pair(fds);
	if (gmem_tls_new(both->beta_ctx, fds[0], false, "source", &a) ||
	    gmem_tls_new(both->alpha_ctx, fds[1], true, "destination", &b))
		bench_die("%s", gmem_last_error());
	pthread_create(&thread, NULL, send_tls, b);
	while ((err = gmem_tls_handshake(a)) == -EAGAIN)
		tls_wait(a);
	seconds = bench_now();
	for (size_t at = 0; at < len; at += STEP) {
		for (size_t done = 0; done < STEP;) {
			int64_t n = gmem_tls_read(a, buf + done, STEP - done);

			if (n == -EAGAIN)
				tls_wait(a);
			else if (n < 0)
				bench_die("%s", gmem_last_error());
			else
				done += (size_t)n;
		}
		if (memcmp(buf, data + at, STEP))
			bench_die("wrong bytes");
	}
	seconds = bench_now() - seconds;
	pthread_join(thread, NULL);
	gmem_tls_free(a);
	gmem_tls_free(b);
	return seconds;
}

static void *answer(void *fd)
{
	char ask[ASK_LEN], page[ANSWER_LEN] = "";

	for (unsigned int i = 0; i < FAULTS; i++) {
		recv_all(*(int *)fd, ask, sizeof(ask));
		if (pread(data_fd, page + ANSWER_LEN - BENCH_PAGE, BENCH_PAGE,
			  (off_t)(i % (len / BENCH_PAGE) * BENCH_PAGE)) != BENCH_PAGE)
			bench_die("pread");
		send_all(*(int *)fd, page, sizeof(page));
	}
	return NULL;
}

static double measure_ping(void)
{
	char ask[ASK_LEN] = "", page[ANSWER_LEN];
	pthread_t thread;
	double seconds;
	int fds[2];

	tcp_pair(fds);
	pthread_create(&thread, NULL, answer, &fds[1]);
	seconds = bench_now();
	for (unsigned int i = 0; i < FAULTS; i++) {
		send_all(fds[0], ask, sizeof(ask));
		recv_all(fds[0], page, sizeof(page));
	}
	seconds = bench_now() - seconds;
	pthread_join(thread, NULL);
	close(fds[0]);
	close(fds[1]);
	return seconds / FAULTS;
}

/* ---- ours */

struct sides {
	struct gmem_page_server *server;
	struct gmem_incoming *incoming;
	struct gmem_source *source;
	int listen_fd;
};

static void must(int err)
{
	if (err)
		bench_die("%s", gmem_last_error());
}

static void sides_begin(struct sides *s, const struct both *both)
{
	struct gmem_migrate_region region = { .name = "ram", .len = len, .page_size = 4096, .fd = data_fd };
	struct gmem_channel_opts opts = { .size = sizeof(opts), .tls = both->alpha_ctx };
	char address[64];
	uint16_t port;

	s->listen_fd = opts.listen_fd = listener(&port);
	must(gmem_page_server_new(&opts, &region, 1, &s->server));
	snprintf(address, sizeof(address), "127.0.0.1:%u", port);
	opts.tls = both->beta_ctx;
	opts.address = address;
	must(gmem_incoming_new(&opts, NULL, &s->incoming));
	must(gmem_incoming_wait(s->incoming, GMEM_MIGRATE_OPEN, -1));
	must(gmem_incoming_source(s->incoming, 0, &s->source));
	must(gmem_incoming_prepared(s->incoming));
	must(gmem_page_server_wait(s->server, GMEM_MIGRATE_PREPARED, -1));
	must(gmem_page_server_stopped(s->server));
	must(gmem_incoming_wait(s->incoming, GMEM_MIGRATE_STOPPED, -1));
}

static void sides_end(struct sides *s)
{
	gmem_incoming_free(s->incoming);
	gmem_page_server_free(s->server);
	gmem_source_unref(s->source);
	close(s->listen_fd);
}

static void fetch_all(struct sides *s, char *buf, _Atomic bool *stop)
{
	for (size_t at = 0; at < len && !(stop && atomic_load(stop)); at += 4 * STEP) {
		if (gmem_source_prefetch(s->source, at, 4 * STEP, true) < 0)
			bench_die("%s", gmem_last_error());
		must(gmem_source_read(s->source, at, buf, 4 * STEP));
		if (memcmp(buf, data + at, 4 * STEP))
			bench_die("wrong bytes");
	}
}

static double measure_bulk(const struct both *both, char *buf)
{
	struct sides s;
	double seconds;

	sides_begin(&s, both);
	seconds = bench_now();
	fetch_all(&s, buf, NULL);
	seconds = bench_now() - seconds;
	sides_end(&s);
	return seconds;
}

static double compare(void *addr, void *arg)
{
	if (memcmp(addr, data, len))
		bench_die("wrong bytes");
	return 0;
}

static double measure_fill(const struct both *both)
{
	struct gmem_region region = { .size = sizeof(region), .len = len };
	struct gmem_pager *pager;
	struct bench_peer peer;
	struct gmem_file *file;
	struct sides s;
	double seconds;

	sides_begin(&s, both);
	must(gmem_file_create(len, NULL, &file));
	bench_peer_start(&peer, gmem_file_fd(file), len, false, compare, NULL);
	region.file = file;
	region.uffd = peer.uffd;
	region.hva = peer.hva;
	region.source = s.source;
	if (gmem_pager_create(NULL, &pager) || gmem_pager_add_region(pager, &region) < 0)
		bench_die("pager");
	seconds = bench_now();
	if (gmem_pager_fill(pager, NULL, NULL) != (int64_t)(len / BENCH_PAGE))
		bench_die("fill");
	seconds = bench_now() - seconds;
	bench_peer_go(&peer);
	gmem_pager_free(pager);
	gmem_file_free(file);
	sides_end(&s);
	return seconds;
}

struct behind {
	struct sides *s;
	_Atomic bool stop;
};

/* Another source of the same bytes would be fetched ahead as well: over and over, by another channel's bulk. */
static void *bulk_on(void *opaque)
{
	struct behind *b = opaque;
	char *buf = malloc(4 * STEP);

	fetch_all(b->s, buf, &b->stop);
	atomic_store(&b->stop, true);
	free(buf);
	return NULL;
}

/* Pages from the end on, which bulk comes to last. */
static double measure_faults(const struct both *both, bool beside_bulk)
{
	struct behind b = { .stop = false };
	char page[BENCH_PAGE];
	unsigned int n = 0;
	pthread_t thread;
	struct sides s;
	double seconds;

	sides_begin(&s, both);
	b.s = &s;
	if (beside_bulk)
		pthread_create(&thread, NULL, bulk_on, &b);
	seconds = bench_now();
	for (; n < FAULTS && n < len / BENCH_PAGE / 4 && !atomic_load(&b.stop); n++) {
		size_t off = len - (n + 1) * (size_t)BENCH_PAGE;

		must(gmem_source_read(s.source, off, page, BENCH_PAGE));
		if (memcmp(page, data + off, BENCH_PAGE))
			bench_die("wrong bytes");
	}
	seconds = bench_now() - seconds;
	atomic_store(&b.stop, true);
	if (beside_bulk)
		pthread_join(thread, NULL);
	sides_end(&s);
	return seconds / n;
}

int main(int argc, char **argv)
{
	struct bench_row *tcp, *tls, *bulk, *fill, *ping, *idle, *beside;
	static struct bench b;
	struct both both;
	char path[4096], *buf;
	double gib;

	bench_begin(&b, "migrate", 512, argc, argv);
	len = (size_t)b.mib << 20;
	gib = (double)len / (1 << 30);
	data_fd = bench_raw_file(&b, "migrate.raw", false, path, sizeof(path));
	data = bench_map_file(data_fd, len);
	unlink(path);
	bench_warm(data_fd);
	buf = malloc(4 * STEP);
	memset(buf, 1, 4 * STEP);
	both_begin(&both);
	tcp = bench_row(&b, "GiB/s", NULL, "bulk: bare TCP");
	tls = bench_row(&b, "GiB/s", tcp, "bulk: bare TLS 1.3");
	bulk = bench_row(&b, "GiB/s", tls, "bulk: source, fetched ahead and read");
	fill = bench_row(&b, "GiB/s", tls, "bulk: gmem_pager_fill()");
	ping = bench_row(&b, "us", NULL, "page: bare TCP, request and answer");
	idle = bench_row(&b, "us", ping, "page: read, nothing else");
	beside = bench_row(&b, "us", idle, "page: read, beside bulk");
	for (unsigned int i = 0; i < b.rounds; i++) {
		bench_add(tcp, gib / measure_tcp(buf));
		bench_add(tls, gib / measure_tls(&both, buf));
		bench_add(bulk, gib / measure_bulk(&both, buf));
		bench_add(fill, gib / measure_fill(&both));
		bench_add(ping, 1e6 * measure_ping());
		bench_add(idle, 1e6 * measure_faults(&both, false));
		bench_add(beside, 1e6 * measure_faults(&both, true));
	}
	bench_target(&b, bulk, true, 0.8, "pages fetched ahead, beside bare TLS");
	both_end(&both);
	free(buf);
	return bench_end(&b);
}
