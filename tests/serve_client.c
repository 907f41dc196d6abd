/* SPDX-License-Identifier: MIT */
/*
 * The stand-in for Firecracker against a handler of some forty lines: it must see what it is served, and say when that
 * is wrong. Servers are tested with it elsewhere.
 */
#include "tap.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "fc_client.h"
#include "link/serve/hello.h"
#include "sys/call.h"
#include "sys/uapi.h"
#include "sys/uffd.h"

#define MB (UINT64_C(1) << 20)

enum mistake { NONE, WRONG_BYTE, POISONS, FORGETS_REMOVES };

struct handler {
	int listening, bytes;
	enum mistake mistake;
	struct gmem_hello_message *m;
	char *source; /* a copy, with zeroes where pages were removed */
	char *page; /* what is about to be copied */
};

/* A snapshot whose every word says where it is, but that the last quarter of it is a hole. */
static int make_snapshot(uint64_t len)
{
	int fd = memfd_create("snapshot", MFD_CLOEXEC);
	uint64_t words[512];

	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, (off_t)len), 0);
	for (uint64_t off = 0; off < len / 4 * 3; off += sizeof(words)) {
		for (unsigned int i = 0; i < 512; i++)
			words[i] = (off + i * 8) * 0x9e3779b97f4a7c15ull + 1;
		CHECK_EQ(pwrite(fd, words, sizeof(words), (off_t)off), sizeof(words));
	}
	return fd;
}

static const struct gmem_hello_region *find(const struct handler *h, uint64_t hva)
{
	for (uint32_t i = 0; i < h->m->nregions; i++)
		if (hva >= h->m->regions[i].hva && hva - h->m->regions[i].hva < h->m->regions[i].len)
			return &h->m->regions[i];
	return NULL;
}

static void serve_fault(struct handler *h, uint64_t hva)
{
	const struct gmem_hello_region *r;
	uint64_t off, done, ps = h->m->page_size;
	struct uffdio_copy copy;

	hva &= ~(ps - 1);
	r = find(h, hva);
	CHECK(r);
	off = r->source_off + hva - r->hva;
	memcpy(h->page, h->source + off, ps);
	if (h->mistake == WRONG_BYTE && off == 5 * ps)
		h->page[77] ^= 1;
	if (h->mistake == POISONS && off == 5 * ps) {
		CHECK_OK(gmem_sys_uffd_poison(h->m->uffds[0], hva, ps, true, &done));
		return;
	}
	copy = (struct uffdio_copy){ .dst = hva, .src = (uint64_t)(uintptr_t)h->page, .len = ps };
	/* -EAGAIN: a removal is to be read first; the fault is told again. */
	if (gmem_sys_ioctl(h->m->uffds[0], UFFDIO_COPY, &copy) < 0 && errno != EEXIST)
		CHECK_OK(gmem_sys_uffd_wake(h->m->uffds[0], hva, ps));
}

static void serve_all(struct handler *h, const struct uffd_msg *msgs, int n)
{
	for (int i = 0; i < n; i++) {
		const struct gmem_hello_region *r;

		if (msgs[i].event != UFFD_EVENT_REMOVE || h->mistake == FORGETS_REMOVES)
			continue;
		r = find(h, msgs[i].arg.remove.start);
		CHECK(r);
		memset(h->source + r->source_off + msgs[i].arg.remove.start - r->hva, 0,
		       msgs[i].arg.remove.end - msgs[i].arg.remove.start);
	}
	for (int i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			serve_fault(h, msgs[i].arg.pagefault.address);
}

static void take_client(struct handler *h)
{
	int sock = accept4(h->listening, NULL, NULL, SOCK_CLOEXEC), r;
	struct pollfd p = { .fd = sock, .events = POLLIN };
	struct gmem_hello *hello;

	CHECK(sock >= 0);
	CHECK_OK(gmem_hello_new(sock, &hello));
	while (!(r = gmem_hello_feed(hello)))
		poll(&p, 1, 1);
	CHECK_EQ(r, 1);
	CHECK_OK(gmem_hello_consume(hello));
	h->m = gmem_hello_take(hello);
	gmem_hello_free(hello);
	h->source = mmap(NULL, h->m->source_end, PROT_READ | PROT_WRITE, MAP_PRIVATE, h->bytes, 0);
	CHECK(h->source != MAP_FAILED);
	h->page = malloc(h->m->page_size);
}

/* In a process of its own, until it is killed; the socket stays open. */
static pid_t start_handler(const char *path, int bytes, enum mistake mistake)
{
	struct handler h = { .bytes = bytes, .mistake = mistake };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	pid_t pid;

	strcpy(addr.sun_path, path);
	h.listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(bind(h.listening, (struct sockaddr *)&addr, sizeof(addr)), 0);
	CHECK_EQ(listen(h.listening, 4), 0);
	pid = fork();
	if (!pid) {
		struct uffd_msg msgs[64];
		struct pollfd p = { .events = POLLIN };

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		take_client(&h);
		p.fd = h.m->uffds[0];
		while (poll(&p, 1, -1) >= 0) {
			int n = gmem_sys_uffd_read(h.m->uffds[0], msgs, 64);

			CHECK(n >= 0);
			serve_all(&h, msgs, n);
		}
		_exit(1);
	}
	close(h.listening);
	return pid;
}

struct stage {
	char folder[32], path[64];
	int bytes;
	pid_t handler;
	struct fc_client *c;
};

static void set(struct stage *s, struct fc_options *o, enum mistake mistake)
{
	uint64_t len = 0;

	strcpy(s->folder, "/tmp/gmem-fc-XXXXXX");
	CHECK(mkdtemp(s->folder));
	snprintf(s->path, sizeof(s->path), "%s/socket", s->folder);
	for (int i = 0; o->sizes[i]; i++)
		len += o->sizes[i];
	s->bytes = make_snapshot(len);
	o->path = s->path;
	o->bytes_fd = s->bytes;
	s->handler = start_handler(s->path, s->bytes, mistake);
	s->c = fc_start(o);
}

static void strike(struct stage *s, bool killed)
{
	int status;

	if (killed)
		fc_kill(s->c);
	else
		fc_end(s->c);
	kill(s->handler, SIGKILL);
	CHECK_EQ(waitpid(s->handler, &status, 0), s->handler);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	close(s->bytes);
	unlink(s->path);
	rmdir(s->folder);
}

static void use_all(struct stage *s, uint64_t len, uint64_t ps)
{
	CHECK_EQ(fc_read(s->c, len / 2, 2 * ps), 0);
	CHECK_EQ(fc_write(s->c, ps, 2 * ps, 7), 0);
	CHECK_EQ(fc_balloon(s->c, 0, 2 * ps), 0);
	CHECK_EQ(fc_syscall(s->c, 0, 4 * ps), 0);
	CHECK_EQ(fc_write(s->c, ps, 100, 8), 0);
	CHECK_EQ(fc_storm(s->c, 3, 200, tap_seed()), 0);
	CHECK_EQ(fc_read(s->c, 0, len), 0);
	CHECK_EQ(fc_hung_up(s->c), 0);
}

TEST_TIMEOUT(each_release, 60)
{
	for (enum fc_version v = FC_1_1; v <= FC_1_12; v++) {
		struct fc_options o = { .version = v, .sizes = { 3 * MB, 5 * MB } };
		struct stage s;

		set(&s, &o, NONE);
		use_all(&s, 8 * MB, 4096);
		strike(&s, false);
	}
}

TEST_TIMEOUT(without_a_balloon, 60)
{
	struct fc_options o = { .sizes = { 4 * MB }, .no_balloon = true };
	struct stage s;

	set(&s, &o, NONE);
	CHECK_EQ(fc_storm(s.c, 2, 300, tap_seed()), 0);
	strike(&s, false);
}

TEST_TIMEOUT(huge_pages, 60)
{
	struct fc_options o = { .version = FC_1_12, .sizes = { 6 * MB, 10 * MB }, .huge = true };
	void *p = mmap(NULL, 16 * MB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	struct stage s;

	/* Asked here, before there are processes to be ended. */
	if (p == MAP_FAILED)
		SKIP("hugetlb", "too few free huge pages");
	munmap(p, 16 * MB);
	set(&s, &o, NONE);
	CHECK_EQ(fc_read(s.c, 3 * MB, 4 * MB), 0);
	CHECK_EQ(fc_balloon(s.c, 2 * MB, 4 * MB), 0);
	CHECK_EQ(fc_write(s.c, 4 * MB, MB, 9), 0);
	CHECK_EQ(fc_read(s.c, 0, 16 * MB), 0);
	strike(&s, false);
}

/* A handshake in pieces, with everything late. */
TEST_TIMEOUT(slowly, 60)
{
	struct fc_options o = { .version = FC_1_7, .sizes = { 2 * MB }, .piece = 11, .fds_with = 99, .late_ms = 150 };
	struct stage s;

	set(&s, &o, NONE);
	CHECK_EQ(fc_read(s.c, 0, 2 * MB), 0);
	strike(&s, false);
}

TEST(wrong_bytes_are_seen)
{
	static const enum mistake mistakes[] = { WRONG_BYTE, POISONS, FORGETS_REMOVES };

	for (int i = 0; i < 3; i++) {
		struct fc_options o = { .version = FC_1_12, .sizes = { 2 * MB } };
		struct stage s;
		int ret = 0;

		set(&s, &o, mistakes[i]);
		if (mistakes[i] == FORGETS_REMOVES) {
			/* Until the handler has come so far as to make the mistake, as it does at the first touch. */
			CHECK_EQ(fc_read(s.c, 5 * 4096, 4096), 0);
			CHECK_EQ(fc_balloon(s.c, 5 * 4096, 4096), 0);
		}
		ret = fc_read(s.c, 0, 2 * MB);
		/* Kernels without UFFDIO_POISON end the handler, and the page is zero. */
		CHECK_EQ(ret, mistakes[i] == POISONS ? -EHWPOISON : -EILSEQ);
		CHECK_EQ(fc_offset(s.c) / 4096, 5);
		strike(&s, false);
	}
}

/* A guest whose handler does not answer hangs; it can be ended, and what it was told to do is asked for later. */
TEST(nobody_serves)
{
	struct fc_options o = { .version = FC_1_12, .sizes = { 2 * MB } };
	struct stage s;
	int ret;

	set(&s, &o, NONE);
	CHECK_EQ(fc_read(s.c, 0, 4096), 0);
	kill(s.handler, SIGSTOP);
	fc_begin(s.c, FC_READ, 4096, 4096, 0);
	CHECK_EQ(fc_wait(s.c, 50, &ret), 0);
	kill(s.handler, SIGCONT);
	CHECK_EQ(fc_wait(s.c, -1, &ret), 1);
	CHECK_EQ(ret, 0);
	kill(s.handler, SIGSTOP);
	fc_begin(s.c, FC_READ, 8192, 4096, 0);
	strike(&s, true);
}
