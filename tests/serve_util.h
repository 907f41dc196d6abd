/* SPDX-License-Identifier: MIT */
/* A minder, the server of serve_server.c, and machines that are served: for tests of who minds a server. */
#ifndef GMEM_TESTS_SERVE_UTIL_H
#define GMEM_TESTS_SERVE_UTIL_H

#include <dirent.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "anon_util.h"
#include "link/serve/ledger.h"
#include "link/serve/minder.h"
#include "link/serve/socket.h"
#include "link/serve/store.h"
#include "serve_server.h"

struct scene {
	char dir[64], sock[108];
	pid_t minder;
	const char *program;
	bool firecracker; /* the server is gmem's own: machines say what Firecracker does */
};

/* ---- files of the state directory, which is how a test and the server talk */

static inline char *in_scene(const struct scene *s, const char *name)
{
	static _Thread_local char path[128];

	snprintf(path, sizeof(path), "%.63s/%.60s", s->dir, name);
	return path;
}

static inline void put_file(const struct scene *s, const char *name, const char *text)
{
	char half[128];
	int fd;

	snprintf(half, sizeof(half), "%s", in_scene(s, "half"));
	fd = open(half, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
	CHECK_OK(fd);
	CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	CHECK_EQ(rename(half, in_scene(s, name)), 0);
}

static inline bool has_file(const struct scene *s, const char *name)
{
	return !access(in_scene(s, name), F_OK);
}

/* How many lines of the log have this in them. */
static inline unsigned int logged(const struct scene *s, const char *what)
{
	FILE *f = fopen(in_scene(s, "log"), "re");
	char line[600];
	unsigned int n = 0;

	while (f && fgets(line, sizeof(line), f))
		n += !!strstr(line, what);
	if (f)
		fclose(f);
	return n;
}

static inline void show_log(const struct scene *s)
{
	FILE *f = fopen(in_scene(s, "log"), "re");
	char line[600];

	while (f && fgets(line, sizeof(line), f))
		printf("  %s", line);
	if (f)
		fclose(f);
}

/* Files of VMs that have this at the end of their names. */
static inline unsigned int count_files(const struct scene *s, const char *suffix)
{
	DIR *d = opendir(s->dir);
	struct dirent *de;
	unsigned int n = 0;

	CHECK(d);
	while ((de = readdir(d))) {
		size_t len = strlen(de->d_name), k = strlen(suffix);

		n += len > k && !strcmp(de->d_name + len - k, suffix);
	}
	closedir(d);
	return n;
}

static inline void die_at(const struct scene *s, const char *where)
{
	unlink(in_scene(s, "died"));
	put_file(s, "die", where);
}

/* ---- the scene */

static inline void scene_new(struct scene *s)
{
	*s = (struct scene){ .dir = "/tmp/gmem-serve-XXXXXX", .minder = -1 };
	need_uffd();
	CHECK(mkdtemp(s->dir));
	snprintf(s->sock, sizeof(s->sock), "%.63s/sock", s->dir);
}

static inline void scene_free(struct scene *s)
{
	char cmd[96];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", s->dir);
	CHECK_EQ(system(cmd), 0);
}

static inline void minder_says(void *opaque, const char *text)
{
	const struct scene *s = opaque;
	int fd = open(in_scene(s, "log"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	dprintf(fd, "minder: %s\n", text);
	close(fd);
}

/* In a process of its own: what it is told in `opts` besides is its case's. */
static inline void start_minder(struct scene *s, const struct gmem_minder_opts *opts)
{
	static char name[] = "server", *argv[] = { name, NULL };
	struct gmem_minder_listener l = { GMEM_STORE_CLIENTS, s->sock };
	struct gmem_minder_opts o = opts ? *opts : (struct gmem_minder_opts){ 0 };

	o.size = sizeof(o);
	o.dir = s->dir;
	o.program = s->program;
	o.argv = argv;
	o.listeners = &l;
	o.nlisteners = 1;
	o.say = minder_says;
	o.opaque = s;
	s->minder = fork();
	CHECK(s->minder >= 0);
	if (s->minder)
		return;
	setenv("GMEM_TEST_SERVER", s->dir, 1);
	unsetenv("NOTIFY_SOCKET");
	_exit((int)(gmem_minder_run(&o) & 0xff));
}

static inline void wait_ready(const struct scene *s, unsigned int starts)
{
	WAIT_FOR(logged(s, "ready ") >= starts);
}

/* Who has the fence, that is, serves. */
static inline pid_t server_pid(const struct scene *s)
{
	struct gmem_ledger_dir *dir;
	pid_t pid = 0;

	CHECK_OK(gmem_ledger_dir_open(s->dir, &dir));
	(void)gmem_ledger_dir_lock(dir, 0, &pid);
	gmem_ledger_dir_free(dir);
	return pid;
}

static inline pid_t wait_server(const struct scene *s, pid_t not_this)
{
	pid_t pid = 0;

	WAIT_FOR((pid = server_pid(s)) && pid != not_this);
	return pid;
}

static inline void stop_minder(struct scene *s)
{
	CHECK(s->minder > 1);
	kill(s->minder, SIGTERM);
	wait_ok(s->minder);
	s->minder = -1;
}

/* ---- machines */

struct vm_shared {
	_Atomic bool connected, end, leave;
	_Atomic uint64_t ops, hold_at; /* touches; it stops at so many until told otherwise, 0: never */
};

struct machine {
	struct vm_shared *shared;
	uint64_t npages, seed;
	pid_t pid;
};

static inline void say_hello(const struct scene *s, void *p, uint64_t len, int uffd)
{
	struct serve_hello h = { SERVE_MAGIC, (uint64_t)(uintptr_t)p, len };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char json[200];

	strcpy(addr.sun_path, s->sock);
	CHECK_EQ(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
	snprintf(
		json, sizeof(json),
		"[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
		(unsigned long long)h.hva, (unsigned long long)len);
	if (s->firecracker)
		CHECK_OK(gmem_socket_send(sock, json, strlen(json), uffd, 0));
	else
		CHECK_OK(gmem_socket_send(sock, &h, sizeof(h), uffd, 0));
	/* The socket and the userfaultfd stay open, as Firecracker's do. */
}

static inline _Noreturn void machine_run(const struct machine *m, const struct scene *s)
{
	int uffd = gmem_sys_uffd_open(UFFD_FEATURE_EVENT_REMOVE, NULL);
	char *p = anon_map(m->npages * P, false);
	struct vm_shared *sh = m->shared;
	uint64_t seed = m->seed;
	bool *written = calloc(m->npages, sizeof(bool));

	CHECK_OK(uffd);
	CHECK_OK(gmem_sys_uffd_register(uffd, (uint64_t)(uintptr_t)p, m->npages * P, GMEM_SYS_UFFD_MISSING));
	say_hello(s, p, m->npages * P, uffd);
	atomic_store(&sh->connected, true);
	for (uint64_t i = 0; i < 4 * m->npages; i++) {
		uint64_t page = i < 3 * m->npages ? tap_rand(&seed) % m->npages : i - 3 * m->npages;
		uint64_t hold = atomic_load(&sh->hold_at), first;

		for (; hold && i >= hold; hold = atomic_load(&sh->hold_at))
			usleep(300);
		first = *(volatile uint64_t *)(p + page * P);
		if (written[page] ? first != anon_mark(page) : !page_is(ID, page * P, p + page * P))
			FAIL("page %llu is wrong: 0x%llx, %swritten to", (unsigned long long)page,
			     (unsigned long long)first, written[page] ? "" : "not ");
		if (tap_rand(&seed) % 4 == 0) {
			*(volatile uint64_t *)(p + page * P) = anon_mark(page);
			written[page] = true;
		}
		atomic_fetch_add(&sh->ops, 1);
	}
	atomic_store(&sh->end, true);
	while (!atomic_load(&sh->leave))
		usleep(300);
	_exit(0);
}

static inline void machine_start(struct machine *m, const struct scene *s, uint64_t npages, uint64_t hold_at)
{
	*m = (struct machine){ .npages = npages, .seed = tap_seed() };
	m->shared = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(m->shared != MAP_FAILED);
	atomic_store(&m->shared->hold_at, hold_at);
	m->pid = fork();
	CHECK(m->pid >= 0);
	if (!m->pid)
		machine_run(m, s);
}

static inline void machine_finish(struct machine *m)
{
	atomic_store(&m->shared->hold_at, 0);
	WAIT_FOR(atomic_load(&m->shared->end));
	atomic_store(&m->shared->leave, true);
	wait_ok(m->pid);
	munmap(m->shared, P);
}

/* Nothing is left of any machine: no ledger, no table. */
static inline void wait_empty(const struct scene *s)
{
	WAIT_FOR(count_files(s, ".json") == 0 && count_files(s, ".state") == 0);
}

#endif
