/* SPDX-License-Identifier: MIT */
/* A program that attaches its memory to a page server, and servers that serve it, refuse it, or say nothing. */
#include "tap.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "file/file.h"
#include "huge_util.h"
#include "link/serve/hello.h"
#include "pager_util.h"

#define MB (1ull << 20)
#define LEN (4 * MB)

struct server {
	char folder[32], path[64];
	int listening, bytes;
	struct gmem_hello *hello;
	int sock;
	struct gmem_pager *pager;
	struct gmem_file *file;
};

static void listen_there(struct server *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	*s = (struct server){ .sock = -1 };
	strcpy(s->folder, "/tmp/gmem-attach-XXXXXX");
	CHECK(mkdtemp(s->folder));
	snprintf(s->path, sizeof(s->path), "%s/socket", s->folder);
	strcpy(addr.sun_path, s->path);
	s->listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(bind(s->listening, (struct sockaddr *)&addr, sizeof(addr)), 0);
	CHECK_EQ(listen(s->listening, 4), 0);
	s->bytes = memfd_create("source", MFD_CLOEXEC);
	CHECK_EQ(ftruncate(s->bytes, (off_t)LEN), 0);
	for (uint64_t off = 0; off < LEN; off += 8) {
		uint64_t word = word_at(3, off);

		CHECK_EQ(pwrite(s->bytes, &word, 8, (off_t)off), 8);
	}
}

static void stop(struct server *s)
{
	gmem_pager_free(s->pager);
	gmem_file_free(s->file);
	gmem_hello_free(s->hello);
	if (s->sock >= 0)
		close(s->sock);
	close(s->listening);
	close(s->bytes);
	unlink(s->path);
	rmdir(s->folder);
}

/* Takes one client's message. */
static const struct gmem_hello_message *take(struct server *s)
{
	int r;

	s->sock = accept4(s->listening, NULL, NULL, SOCK_CLOEXEC);
	CHECK(s->sock >= 0);
	CHECK_OK(gmem_hello_new(s->sock, &s->hello));
	while (!(r = gmem_hello_feed(s->hello)))
		poll(&(struct pollfd){ .fd = s->sock, .events = POLLIN }, 1, 1);
	CHECK_EQ(r, 1);
	CHECK_OK(gmem_hello_consume(s->hello));
	return gmem_hello_message(s->hello);
}

static void serve(struct server *s)
{
	const struct gmem_hello_message *m = take(s);
	struct gmem_source *source;

	CHECK_EQ(m->kind, GMEM_HELLO_ATTACH);
	CHECK_OK(gmem_file_open_kept(m->memory_fd, m->state_fd, &s->file));
	CHECK_OK(gmem_pager_create(NULL, &s->pager));
	CHECK_OK(gmem_source_new_fd(s->bytes, 0, LEN, &source));
	for (uint32_t i = 0; i < m->nregions; i++) {
		const struct gmem_hello_region *r = &m->regions[i];
		struct gmem_region region = {
			.size = sizeof(region),
			.file = s->file,
			.uffd = m->uffds[r->uffd],
			.hva = r->hva,
			.off = r->file_off,
			.len = r->len,
			.source = source,
			.source_off = r->source_off,
		};

		CHECK_OK(gmem_pager_add_region(s->pager, &region));
	}
	gmem_source_unref(source);
	CHECK_OK(gmem_hello_answer(s->hello, 0, NULL));
}

static void check_words(const struct gmem_view *view, uint64_t source_off)
{
	const volatile uint64_t *p = gmem_view_addr(view);

	for (uint64_t i = 0; i < gmem_view_len(view) / 8; i++)
		if (p[i] != word_at(3, source_off + i * 8))
			FAIL("byte 0x%llx is wrong", (unsigned long long)i * 8);
}

/* What a program does in a process of its own; the case is the server. */
static pid_t start(void (*program)(const char *path), const char *path)
{
	pid_t pid = fork();

	if (!pid) {
		program(path);
		_exit(0);
	}
	CHECK(pid > 0);
	return pid;
}

static void wait_for(pid_t pid)
{
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

static struct gmem_view *map(struct gmem_file **file, uint64_t len)
{
	struct gmem_view *view;

	CHECK_OK(gmem_file_create(len, NULL, file));
	CHECK_OK(gmem_view_map(*file, 0, len, PROT_READ | PROT_WRITE, &view));
	return view;
}

static void one_view(const char *path)
{
	struct gmem_service_attach_opts o = { .size = sizeof(o), .source = "disk", .name = "vm 1" };
	struct gmem_file *file;
	struct gmem_service_view v = { .view = map(&file, LEN) };

	CHECK_OK(gmem_service_attach(path, &o, &v, 1));
	check_words(v.view, 0);
	CHECK_ERR(gmem_service_attach(path, &o, &v, 1), -EBUSY);
	/* Given up: zero, and not from the source again. */
	CHECK_OK(gmem_file_punch(file, 8 * P, P));
	CHECK_EQ(*(volatile uint64_t *)((char *)gmem_view_addr(v.view) + 8 * P), 0);
	CHECK_EQ(gmem_file_set_attributes(file, 0, P, GMEM_ATTRIBUTE_PRIVATE, NULL), -EBUSY);
}

TEST(a_view)
{
	struct server s;
	pid_t pid;

	need_uffd();
	listen_there(&s);
	pid = start(one_view, s.path);
	serve(&s);
	CHECK_STR(gmem_hello_message(s.hello)->source, "disk");
	CHECK_STR(gmem_hello_message(s.hello)->name, "vm 1");
	CHECK_EQ(gmem_hello_message(s.hello)->pid, pid);
	CHECK_EQ(gmem_hello_message(s.hello)->nuffds, 1);
	/* Its second, which is refused before it is said. */
	wait_for(pid);
	stop(&s);
}

/* Parts of a view, a second one of the same bytes, and two descriptors for all. */
static void many_views(const char *path)
{
	struct gmem_service_attach_opts o = { .size = sizeof(o), .uffds = 2 };
	struct gmem_file *file;
	struct gmem_service_view v[4] = { { .view = map(&file, LEN) } };

	CHECK_OK(gmem_view_split(v[0].view, MB, &v[1].view));
	CHECK_OK(gmem_view_split(v[1].view, MB, &v[2].view));
	CHECK_OK(gmem_view_map(file, MB / 2, MB, PROT_READ, &v[3].view));
	v[1].source_off = MB;
	v[2].source_off = 2 * MB;
	v[3].source_off = MB / 2;
	CHECK_OK(gmem_service_attach(path, &o, v, 4));
	for (int i = 3; i >= 0; i--)
		check_words(v[i].view, v[i].source_off);
}

TEST(several_views_and_descriptors)
{
	struct server s;
	pid_t pid;

	need_uffd();
	listen_there(&s);
	pid = start(many_views, s.path);
	serve(&s);
	CHECK_EQ(gmem_hello_message(s.hello)->nregions, 4);
	CHECK_EQ(gmem_hello_message(s.hello)->nuffds, 2);
	wait_for(pid);
	stop(&s);
}

/* As it was, and can be attached elsewhere, or used. */
static void refused_once(const char *path)
{
	struct gmem_file *file;
	struct gmem_service_view v = { .view = map(&file, LEN) };

	CHECK_ERR(gmem_service_attach(path, NULL, &v, 1), -ENOENT);
	CHECK_HAS(gmem_last_error(), "the service: no source \"?\"");
	CHECK_OK(gmem_service_attach(path, NULL, &v, 1));
	check_words(v.view, 0);
}

TEST(refused_and_served)
{
	struct server s;
	pid_t pid;

	need_uffd();
	listen_there(&s);
	pid = start(refused_once, s.path);
	take(&s);
	CHECK_OK(gmem_hello_answer(s.hello, -ENOENT, "no source \"\x80\""));
	gmem_hello_free(s.hello);
	close(s.sock);
	serve(&s);
	wait_for(pid);
	stop(&s);
}

static void huge_view(const char *path)
{
	struct gmem_file *file = huge_file(LEN / H, 0);
	struct gmem_service_view v = { 0 };

	CHECK_OK(gmem_view_map(file, 0, LEN, PROT_READ | PROT_WRITE, &v.view));
	CHECK_OK(gmem_service_attach(path, NULL, &v, 1));
	check_words(v.view, 0);
}

TEST(huge_pages)
{
	struct server s;
	pid_t pid;

	need_uffd();
	gmem_file_free(huge_file(LEN / H, 0));
	listen_there(&s);
	pid = start(huge_view, s.path);
	serve(&s);
	CHECK_EQ(gmem_hello_message(s.hello)->page_size, H);
	wait_for(pid);
	stop(&s);
}

static void refused_for_good(const char *path)
{
	struct gmem_file *file;
	struct gmem_service_view v = { .view = map(&file, LEN) };

	/* The service's, and so no doubt. */
	CHECK_ERR(gmem_service_attach(path, NULL, &v, 1), -EREMOTEIO);
	CHECK_EQ(*(volatile uint64_t *)gmem_view_addr(v.view), 0);
	gmem_view_unmap(v.view);
	gmem_file_free(file);
}

TEST(refused_with_an_error_of_ours)
{
	struct server s;
	pid_t pid;

	need_uffd();
	listen_there(&s);
	pid = start(refused_for_good, s.path);
	take(&s);
	CHECK_OK(gmem_hello_answer(s.hello, -ETIMEDOUT, "the source does not answer"));
	wait_for(pid);
	stop(&s);
}

/* No answer: the view stays registered, for nobody knows. */
static void in_doubt(const char *path)
{
	static const int errors[] = { -ETIMEDOUT, -ECONNRESET, -EPROTO, -EPROTO };
	struct gmem_service_attach_opts o = { .size = sizeof(o), .timeout_ms = 300 };

	for (int i = 0; i < 4; i++) {
		struct gmem_file *file;
		struct gmem_service_view v = { .view = map(&file, LEN) };

		CHECK_ERR(gmem_service_attach(path, &o, &v, 1), errors[i]);
		CHECK_ERR(gmem_service_attach(path, &o, &v, 1), -EBUSY);
		gmem_view_unmap(v.view);
		gmem_file_free(file);
		o.timeout_ms = UINT_MAX;
	}
}

/* A client that closes without a word: what the second attempt of the above is, to the server. */
static void take_nobody(struct server *s)
{
	int sock = accept4(s->listening, NULL, NULL, SOCK_CLOEXEC);
	char c;

	CHECK(sock >= 0);
	CHECK_EQ(recv(sock, &c, 1, 0), 0);
	close(sock);
}

TEST(no_answer)
{
	static const char *const answers[] = { "", "", "{\"ok\":7}\n", NULL };
	struct server s;
	char *noise = malloc(20000);
	pid_t pid;

	need_uffd();
	memset(noise, 'x', 20000);
	listen_there(&s);
	pid = start(in_doubt, s.path);
	for (int i = 0; i < 4; i++) {
		take(&s);
		if (!i)
			take_nobody(&s);
		else
			send(s.sock, answers[i] ? answers[i] : noise, answers[i] ? strlen(answers[i]) : 20000,
			     MSG_NOSIGNAL);
		gmem_hello_free(s.hello);
		s.hello = NULL;
		close(s.sock);
		s.sock = -1;
		if (i)
			take_nobody(&s);
	}
	wait_for(pid);
	free(noise);
	stop(&s);
}

TEST(nobody_there)
{
	struct gmem_service_attach_opts o = { .size = sizeof(o) };
	struct gmem_service_view v = { 0 }, two[2];
	struct gmem_file *file, *other;
	char path[200];
	struct server s;

	need_uffd();
	listen_there(&s);
	v.view = map(&file, LEN);
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	CHECK_ERR(gmem_service_attach(path, NULL, &v, 1), -EINVAL);
	CHECK_ERR(gmem_service_attach("/nonexistent", NULL, &v, 1), -ENOENT);
	CHECK_ERR(gmem_service_attach(s.path, NULL, &v, 0), -EINVAL);
	close(s.listening);
	CHECK_ERR(gmem_service_attach(s.path, NULL, &v, 1), -ECONNREFUSED);
	s.listening = open("/dev/null", O_RDONLY | O_CLOEXEC);
	v.source_off = 1;
	CHECK_ERR(gmem_service_attach(s.path, NULL, &v, 1), -EINVAL);
	v.source_off = 0;
	o.uffds = 33;
	CHECK_ERR(gmem_service_attach(s.path, &o, &v, 1), -EINVAL);
	o.uffds = 0;
	o.name = "\t";
	CHECK_ERR(gmem_service_attach(s.path, &o, &v, 1), -EINVAL);
	o.name = path;
	CHECK_ERR(gmem_service_attach(s.path, &o, &v, 1), -EINVAL);
	o.name = NULL;
	o.size = 1;
	CHECK_ERR(gmem_service_attach(s.path, &o, &v, 1), -EINVAL);
	two[0] = v;
	two[1] = (struct gmem_service_view){ .view = map(&other, LEN) };
	CHECK_ERR(gmem_service_attach(s.path, NULL, two, 2), -EINVAL);
	/* Nothing of that has changed it. */
	memset(gmem_view_addr(v.view), 1, LEN);
	gmem_view_unmap(v.view);
	gmem_view_unmap(two[1].view);
	gmem_file_free(file);
	gmem_file_free(other);
	stop(&s);
}
