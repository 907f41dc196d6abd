/* SPDX-License-Identifier: MIT */
/*
 * The first message of a page server's client, any bytes in any pieces: the first byte says how long those are, the
 * second with which of them descriptors go, the third how many and what they are. What is accepted must keep the
 * promises of its header, be told again to another receiver, and leave what follows in the socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gmem.h"
#include "link/serve/hello.h"
#include "sys/call.h"
#include "sys/uapi.h"

#define HEAD_LEN 3u
#define MAX_LEN (256u * 1024)
#define MAX_FDS 40u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
	if (!x)
		abort();
}

/* What a client may have. Without userfaultfds, no message is complete. */
struct things {
	int uffd, memory, table;
};

static int sealed(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	must(fd >= 0 && ftruncate(fd, 1 << 30) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	return fd;
}

static void make(struct things *t)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM };

	t->uffd = gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK);
	if (t->uffd < 0)
		t->uffd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	else
		must(gmem_sys_ioctl(t->uffd, UFFDIO_API, &api) == 0);
	t->memory = sealed("memory");
	t->table = sealed("table");
}

static void drop(const struct things *t)
{
	close(t->uffd);
	close(t->memory);
	close(t->table);
}

/* Some userfaultfds, then the other two. */
static size_t choose_fds(const struct things *t, uint8_t how, int fds[MAX_FDS])
{
	size_t n = how % 64 % MAX_FDS;

	for (size_t i = 0; i < n; i++)
		fds[i] = t->uffd;
	if (how & 64 && n >= 2) {
		fds[n - 2] = t->memory;
		fds[n - 1] = t->table;
	}
	return n;
}

static ssize_t say(int sock, const uint8_t *bytes, size_t len, const int *fds, size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static bool meet(uint64_t a, uint64_t b, uint64_t alen, uint64_t blen)
{
	return a < b + blen && b < a + alen;
}

/* The header's promises, the slow way. */
static void check_pair(const struct gmem_hello_message *m, const struct gmem_hello_region *a,
		       const struct gmem_hello_region *b)
{
	bool alias = m->kind == GMEM_HELLO_ATTACH && a->source_off - a->file_off == b->source_off - b->file_off;

	must(!meet(a->hva, b->hva, a->len, b->len));
	must(alias || !meet(a->source_off, b->source_off, a->len, b->len));
	must(alias || !meet(a->file_off, b->file_off, a->len, b->len));
}

static void check(const struct gmem_hello_message *m)
{
	uint64_t total = 0;

	must(m->page_size == GMEM_PAGE_SIZE || m->page_size == GMEM_HELLO_HUGE_PAGE);
	must(m->nregions && m->nregions <= GMEM_HELLO_MAX_REGIONS && m->nuffds);
	for (uint32_t i = 0; i < m->nregions; i++) {
		const struct gmem_hello_region *r = &m->regions[i];

		must(r->len && !((r->hva | r->len | r->source_off | r->file_off) % m->page_size));
		must(r->hva + r->len > r->hva && r->source_off + r->len <= m->source_end);
		must(r->uffd < m->nuffds);
		total += r->len;
		for (uint32_t k = i + 1; k < m->nregions && k < i + 64; k++)
			check_pair(m, r, &m->regions[k]);
	}
	must(total == m->total_len && m->source_end <= INT64_MAX);
	for (uint32_t i = 0; i < m->nuffds; i++)
		must(m->uffds[i] >= 0);
	must(m->kind != GMEM_HELLO_ATTACH || (m->memory_fd >= 0 && m->state_fd >= 0));
}

static int left_in(int sock)
{
	int n = -1;

	must(ioctl(sock, FIONREAD, &n) == 0);
	return n;
}

/* Told again, taken, and nothing left but what follows. */
static void check_again(int sock, struct gmem_hello *first)
{
	const struct gmem_hello_message *m = gmem_hello_message(first);
	int before = left_in(sock);
	struct gmem_hello *second;

	check(m);
	must(gmem_hello_new(sock, &second) == 0);
	/* A part of it may have been taken already, from a sender whose buffer was full. */
	if ((size_t)before >= m->text_len && gmem_hello_feed(second) == 1) {
		must(gmem_hello_message(second)->text_len == m->text_len);
		must(!memcmp(gmem_hello_message(second)->text, m->text, m->text_len));
	}
	gmem_hello_free(second);
	must(gmem_hello_consume(first) == 0);
	must(left_in(sock) <= before);
	must(gmem_hello_answer(first, 0, NULL) == 0);
}

/* What the receiver answers at last; 0: it waits. */
static int feed_in_pieces(struct gmem_hello *hello, int sock, const uint8_t *data, size_t size, const int *fds,
			  size_t nfds)
{
	size_t piece = data[0] ? data[0] * (size_t)data[0] : MAX_LEN, with = data[1] % 16, sent = HEAD_LEN, stuck = 0;
	bool given = false;
	int r = 0;

	for (size_t i = 0; sent < size && !r && stuck < 2; i++) {
		size_t len = size - sent < piece ? size - sent : piece;
		bool now = !given && (i >= with || sent + len == size);
		ssize_t n = say(sock, data + sent, len, fds, now ? nfds : 0);

		given |= now && n > 0;
		stuck = n < 0 ? stuck + 1 : 0;
		sent += n > 0 ? (size_t)n : 0;
		if (n < 0 || data[1] & 16)
			r = gmem_hello_tick(hello);
		else if (data[1] & 32)
			r = gmem_hello_feed(hello);
	}
	return r ? r : gmem_hello_feed(hello);
}

static void through_a_socket(const uint8_t *data, size_t size, const int *fds, size_t nfds)
{
	struct gmem_hello *hello;
	int pair[2], r;

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	r = gmem_hello_new(pair[1], &hello);
	/* Emulators of the kernel do not all have SO_PEEK_OFF. */
	must(r == 0 || r == -ENOPROTOOPT);
	if (!r) {
		r = feed_in_pieces(hello, pair[0], data, size, fds, nfds);
		if (r == 1)
			check_again(pair[1], hello);
		else
			gmem_hello_answer(hello, r, gmem_last_error());
		gmem_hello_free(hello);
	}
	close(pair[0]);
	close(pair[1]);
}

/* As one that was recorded. */
static void parse(const uint8_t *data, size_t size, const int *fds, size_t nfds)
{
	struct gmem_hello_message *m;
	int copies[MAX_FDS];

	for (size_t i = 0; i < nfds; i++)
		copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
	if (gmem_hello_parse((const char *)data + HEAD_LEN, size - HEAD_LEN, copies, nfds, &m) == 0) {
		check(m);
		gmem_hello_message_free(m);
		return;
	}
	for (size_t i = 0; i < nfds; i++)
		must(close(copies[i]) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct things things;
	int fds[MAX_FDS];
	size_t nfds;

	if (size <= HEAD_LEN || size > MAX_LEN)
		return 0;
	make(&things);
	nfds = choose_fds(&things, data[2], fds);
	parse(data, size, fds, nfds);
	through_a_socket(data, size, fds, nfds);
	drop(&things);
	return 0;
}
