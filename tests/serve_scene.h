/* SPDX-License-Identifier: MIT */
/* A page server in a process of its own, a memory file, and what the server says: for tests of the service. */
#ifndef GMEM_TESTS_SERVE_SCENE_H
#define GMEM_TESTS_SERVE_SCENE_H

#include <dirent.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "fc_client.h"
#include "tap.h"

#define P 4096ull
#define MIB (1ull << 20)
#define SLOW_BUILD tap_slow()

/* Events of each kind, seen by the test while the server is another process. */
struct serve_seen {
	_Atomic unsigned int events[16];
	_Atomic int errors[16]; /* of the last of each kind */
};

struct serve {
	char dir[64], sock[96], metrics[96], state[96], raw[96];
	uint64_t len;
	int fd; /* of the memory file */
	struct serve_seen *seen;
	/* Of the next server. */
	struct gmem_service_opts opts;
	bool no_state;
	void (*more)(struct serve *s, struct gmem_service *service); /* sources, sockets; instead of the usual ones */
	pid_t pid;
};

static inline void serve_path(const struct serve *s, char path[96], const char *name)
{
	snprintf(path, 96, "%s/%s", s->dir, name);
}

/* Random pages, and some holes. */
static inline int serve_raw(const char *path, uint64_t len, uint64_t seed)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint64_t page[P / 8];

	CHECK_OK(fd);
	CHECK_EQ(ftruncate(fd, (off_t)len), 0);
	for (uint64_t off = 0; off < len; off += P) {
		if (tap_rand(&seed) % 5 == 0)
			continue;
		for (size_t i = 0; i < P / 8; i++)
			page[i] = tap_rand(&seed);
		CHECK_EQ(pwrite(fd, page, P, (off_t)off), P);
	}
	return fd;
}

/* What a client would skip the case for, before there is a server to be left behind. */
static inline void serve_need_uffd(void)
{
	int fd = fc_uffd(0, true);

	if (fd < 0)
		SKIP("uffd", "userfaultfd: %s", strerror(-fd));
	close(fd);
}

static inline void serve_need_huge_pages(uint64_t len)
{
	void *p = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);

	if (p == MAP_FAILED)
		SKIP("hugetlb", "%llu MiB of huge pages: %s", (unsigned long long)(len / MIB), strerror(errno));
	munmap(p, len);
}

static inline void serve_set(struct serve *s, uint64_t len)
{
	serve_need_uffd();
	*s = (struct serve){ .len = len, .pid = -1 };
	strcpy(s->dir, "/tmp/gmem-test-XXXXXX");
	CHECK(mkdtemp(s->dir));
	serve_path(s, s->sock, "sock");
	serve_path(s, s->metrics, "metrics");
	serve_path(s, s->state, "state");
	serve_path(s, s->raw, "raw");
	s->fd = serve_raw(s->raw, len, tap_seed());
	s->seen = mmap(NULL, sizeof(*s->seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s->seen != MAP_FAILED);
	s->opts.size = sizeof(s->opts);
}

static struct gmem_service *serve_running;

static void serve_on_term(int sig)
{
	gmem_service_stop(serve_running);
}

static inline void serve_event(void *opaque, const struct gmem_service_event *e)
{
	struct serve_seen *seen = opaque;

	atomic_store(&seen->errors[e->kind], e->error);
	atomic_fetch_add(&seen->events[e->kind], 1);
	printf("server: vm '%s' pid %d: event %d, %d: %s\n", e->vm, (int)e->pid, (int)e->kind, e->error, e->text);
	fflush(stdout);
}

static inline void serve_child(struct serve *s, int ready)
{
	struct gmem_service_opts opts = s->opts;
	struct gmem_service *sv;

	opts.state_dir = s->no_state ? NULL : s->state;
	opts.event = serve_event;
	opts.opaque = s->seen;
	CHECK_OK(gmem_service_create(&opts, &sv));
	if (s->more) {
		s->more(s, sv);
	} else {
		char spec[128];

		snprintf(spec, sizeof(spec), "raw:%s", s->raw);
		CHECK_OK(gmem_service_add_source(sv, "snapshot", spec));
		CHECK_OK(gmem_service_listen(sv, s->sock, NULL));
		CHECK_OK(gmem_service_listen_metrics(sv, s->metrics));
	}
	serve_running = sv;
	signal(SIGTERM, serve_on_term);
	CHECK_EQ(write(ready, "", 1), 1);
	CHECK_OK(gmem_service_run(sv));
	gmem_service_free(sv);
}

static inline void serve_start(struct serve *s)
{
	int ready[2];
	char c;

	CHECK_EQ(pipe2(ready, O_CLOEXEC), 0);
	fflush(stdout);
	s->pid = fork();
	CHECK_OK(s->pid);
	if (!s->pid) {
		close(ready[0]);
		serve_child(s, ready[1]);
		_exit(0);
	}
	close(ready[1]);
	CHECK_EQ(read(ready[0], &c, 1), 1);
	close(ready[0]);
}

static inline void serve_kill(struct serve *s)
{
	int status;

	CHECK_EQ(kill(s->pid, SIGKILL), 0);
	CHECK_EQ(waitpid(s->pid, &status, 0), s->pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	s->pid = -1;
}

static inline void serve_stop(struct serve *s)
{
	int status;

	CHECK_EQ(kill(s->pid, SIGTERM), 0);
	CHECK_EQ(waitpid(s->pid, &status, 0), s->pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		FAIL("the server ended with status 0x%x", status);
	s->pid = -1;
}

static inline void serve_remove(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char name[600];

	while (d && (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (snprintf(name, sizeof(name), "%s/%s", path, e->d_name) >= (int)sizeof(name))
			continue;
		if (unlink(name))
			serve_remove(name);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

static inline void serve_end(struct serve *s)
{
	if (s->pid > 0)
		serve_stop(s);
	serve_remove(s->dir);
	close(s->fd);
	munmap(s->seen, sizeof(*s->seen));
}

static inline struct fc_options serve_client(const struct serve *s, enum fc_version version)
{
	return (struct fc_options){ .path = s->sock, .version = version, .sizes = { s->len }, .bytes_fd = s->fd };
}

static inline int serve_connect(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK_OK(fd);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	CHECK_EQ(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* All of an answer to a request; the caller frees it. */
static inline char *serve_ask(const struct serve *s, const char *request)
{
	size_t len = 0, room = 1 << 20;
	char *text = malloc(room);
	int fd = serve_connect(s->metrics);
	ssize_t n;

	CHECK(text != NULL);
	CHECK_EQ(write(fd, request, strlen(request)), (ssize_t)strlen(request));
	while ((n = read(fd, text + len, room - 1 - len)) > 0)
		len += (size_t)n;
	text[len] = 0;
	close(fd);
	return text;
}

static inline char *serve_metrics(const struct serve *s)
{
	return serve_ask(s, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
}

/* The value of the first line that begins so and goes on with a space or a label; -1: there is none. */
static inline double serve_metric(const struct serve *s, const char *begin)
{
	char *text = serve_metrics(s), *at = text;
	double value = -1;

	while ((at = strstr(at, begin)) && at != text && at[-1] != '\n')
		at++;
	if (at && strchr(at, '\n') && strchr(at, ' '))
		value = atof(strrchr(strtok(at, "\n"), ' '));
	free(text);
	return value;
}

/* Some line has this in it, and at least that value behind it. */
static inline bool serve_metrics_has(const struct serve *s, const char *what, double least)
{
	char *text = serve_metrics(s), *at = strstr(text, what);
	bool has = at && atof(at + strlen(what)) >= least;

	free(text);
	return has;
}

#define WAIT_FOR(cond)                                                             \
	do {                                                                       \
		while (!(cond))                                                    \
			nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL); \
	} while (0)

#endif
