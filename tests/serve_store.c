/* SPDX-License-Identifier: MIT */
/*
 * The server's side of the protocol, against a manager that the test is: what is said, byte for byte, and what is
 * given.
 */
#include "tap.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "link/serve/name.h"
#include "link/serve/socket.h"
#include "link/serve/store.h"

struct manager {
	int fd;
	char address[108]; /* as in $NOTIFY_SOCKET */
	char dir[64];
};

static void manager_new(struct manager *m, bool abstract)
{
	struct sockaddr_un addr;
	socklen_t len;

	strcpy(m->dir, "/tmp/gmem-store-XXXXXX");
	CHECK(mkdtemp(m->dir));
	snprintf(m->address, sizeof(m->address), "%s%s", abstract ? "@" : "", m->dir);
	if (!abstract)
		strcat(m->address, "/notify");
	CHECK_OK(gmem_socket_address(m->address, &addr, &len));
	m->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(bind(m->fd, (struct sockaddr *)&addr, len), 0);
	setenv("NOTIFY_SOCKET", m->address, 1);
}

static void manager_free(struct manager *m)
{
	char cmd[96];

	if (m->fd >= 0)
		close(m->fd);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", m->dir);
	CHECK_EQ(system(cmd), 0);
}

/* The next message; its descriptor, or -1. */
static void expect(struct manager *m, const char *text, int *ret_fd)
{
	char buf[1024] = "";
	int fd, n;

	n = gmem_socket_recv(m->fd, buf, sizeof(buf) - 1, &fd);
	if (n < 0)
		FAIL("nothing was said, not \"%s\"", text);
	CHECK_STR(buf, text);
	CHECK_EQ(fd >= 0, ret_fd != NULL);
	if (ret_fd)
		*ret_fd = fd;
}

static bool same_file(int a, int b)
{
	struct stat x, y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void talk(bool abstract)
{
	struct gmem_store_stats st;
	struct gmem_store *s;
	struct manager m;
	int p[2], fd;

	manager_new(&m, abstract);
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	setenv("FDSTORE", "2", 1);
	setenv("WATCHDOG_USEC", "4000000", 1);
	CHECK_OK(gmem_store_open(&s));
	CHECK(!getenv("NOTIFY_SOCKET") && !getenv("FDSTORE") && !getenv("WATCHDOG_USEC"));
	CHECK_EQ(gmem_store_minder(s), GMEM_STORE_SYSTEMD);
	CHECK_EQ(gmem_store_watchdog_usec(s), 2000000);
	CHECK_OK(gmem_store_put(s, "a.0", p[0]));
	expect(&m, "FDSTORE=1\nFDNAME=a.0\nFDPOLL=0", &fd);
	CHECK(same_file(fd, p[0]));
	close(fd);
	CHECK_OK(gmem_store_put(s, "a.1", p[1]));
	expect(&m, "FDSTORE=1\nFDNAME=a.1\nFDPOLL=0", &fd);
	close(fd);
	CHECK_ERR(gmem_store_put(s, "a.2", p[1]), -ENOSPC);
	CHECK_OK(gmem_store_drop(s, "a.0"));
	expect(&m, "FDSTOREREMOVE=1\nFDNAME=a.0", NULL);
	CHECK_OK(gmem_store_drop(s, "never.0"));
	expect(&m, "FDSTOREREMOVE=1\nFDNAME=never.0", NULL);
	gmem_store_stats(s, &st);
	CHECK_EQ(st.stored, 1);
	CHECK_EQ(st.put, 2);
	CHECK_EQ(st.dropped, 1);
	CHECK_EQ(st.limit, 2);
	CHECK_OK(gmem_store_status(s, "%d machines\nREADY=1", 2));
	expect(&m, "STATUS=2 machines READY=1", NULL);
	CHECK_OK(gmem_store_ready(s, "well"));
	expect(&m, "READY=1\nSTATUS=well", NULL);
	CHECK_OK(gmem_store_ready(s, NULL));
	expect(&m, "READY=1", NULL);
	CHECK_OK(gmem_store_watchdog(s));
	expect(&m, "WATCHDOG=1", NULL);
	CHECK_OK(gmem_store_stopping(s));
	expect(&m, "STOPPING=1", NULL);
	gmem_store_free(s);
	close(p[0]);
	close(p[1]);
	manager_free(&m);
}

TEST(what_is_said)
{
	talk(false);
	talk(true);
}

TEST(names)
{
	static const char *const bad[] = {
		"", "a:b", "a b", "a\nREADY=1", "\x7f", "\xc3\xa4", "01234567890123456789012345678901"
	};
	char id[GMEM_STORE_MAX_ID + 1], before[GMEM_STORE_MAX_ID + 1] = "";
	struct gmem_store *s;
	uint64_t last = 0;

	CHECK_OK(gmem_store_open(&s));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK_ERR(gmem_store_put(s, bad[i], 0), -EINVAL);
		CHECK_ERR(gmem_store_drop(s, bad[i]), -EINVAL);
	}
	CHECK_ERR(gmem_store_put(s, "a", 999), -EBADF);
	gmem_store_free(s);
	for (int i = 0; i < 10000; i++) {
		gmem_id_new(&last, id);
		CHECK(gmem_id_ok(id) && strcmp(id, before));
		strcpy(before, id);
	}
	/* A clock that was set back makes no id twice. */
	last = UINT64_MAX - 2;
	gmem_id_new(&last, before);
	gmem_id_new(&last, id);
	CHECK(gmem_id_ok(id) && strcmp(id, before));
}

TEST(barrier)
{
	struct gmem_store *s;
	struct manager m;
	pid_t pid;
	int fd, status;

	manager_new(&m, false);
	CHECK_OK(gmem_store_open(&s));
	/* One that is not heard; what was said stays said. */
	CHECK_ERR(gmem_store_barrier(s, 20), -ETIMEDOUT);
	expect(&m, "BARRIER=1", &fd);
	close(fd);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		struct pollfd p = { .fd = m.fd, .events = POLLIN };

		CHECK_EQ(poll(&p, 1, 60000), 1);
		expect(&m, "BARRIER=1", &fd);
		close(fd);
		_exit(0);
	}
	CHECK_OK(gmem_store_barrier(s, 60000));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	gmem_store_free(s);
	manager_free(&m);
}

/* One that does not read must not stop the server for good, nor cost it anything where it need not wait. */
TEST_TIMEOUT(manager_that_does_not_read, 60)
{
	struct gmem_store_stats st;
	struct gmem_store *s;
	struct manager m;
	int err = 0;

	manager_new(&m, false);
	CHECK_OK(gmem_store_open(&s));
	for (int i = 0; i < 100000 && !err; i++)
		err = gmem_store_watchdog(s);
	CHECK_EQ(err, -EAGAIN);
	CHECK_ERR(gmem_store_put(s, "a", 0), -ETIMEDOUT);
	gmem_store_stats(s, &st);
	CHECK_EQ(st.failed, 2);
	CHECK_EQ(st.stored, 0);
	gmem_store_free(s);
	manager_free(&m);
}

TEST(manager_that_is_dead)
{
	struct gmem_store *s;
	struct manager m;

	manager_new(&m, false);
	CHECK_OK(gmem_store_open(&s));
	close(m.fd);
	m.fd = -1;
	CHECK_ERR(gmem_store_put(s, "a", 0), -ECONNREFUSED);
	CHECK_ERR(gmem_store_barrier(s, 1000), -ECONNREFUSED);
	CHECK(!unlink(m.address));
	CHECK_ERR(gmem_store_put(s, "a", 0), -ECONNREFUSED);
	/* systemd may come back: it is asked again. */
	CHECK_EQ(gmem_store_minder(s), GMEM_STORE_SYSTEMD);
	gmem_store_free(s);
	manager_free(&m);
}

TEST(environment_that_cannot_be)
{
	static const struct {
		const char *name, *value;
		int err;
	} bad[] = {
		{ "NOTIFY_SOCKET", "vsock:2:1234", -EAFNOSUPPORT },
		{ "NOTIFY_SOCKET", "relative", -EAFNOSUPPORT },
		{ "NOTIFY_SOCKET", "@", -EAFNOSUPPORT },
		{ "WATCHDOG_USEC", "soon", -EINVAL },
		{ "WATCHDOG_USEC", "-1", -EINVAL },
		{ "LISTEN_PID", "1x", -EINVAL },
	};
	struct gmem_store *s = NULL;
	char number[24], longest[200];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		setenv(bad[i].name, bad[i].value, 1);
		CHECK_ERR(gmem_store_open(&s), bad[i].err);
		CHECK(!s && !getenv(bad[i].name));
	}
	memset(longest, 'x', sizeof(longest) - 1);
	longest[0] = '/';
	longest[sizeof(longest) - 1] = '\0';
	setenv("NOTIFY_SOCKET", longest, 1);
	CHECK_ERR(gmem_store_open(&s), -ENAMETOOLONG);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	setenv("LISTEN_FDS", "100000", 1);
	CHECK_ERR(gmem_store_open(&s), -EINVAL);
	/* Not ours. */
	setenv("LISTEN_PID", "1", 1);
	setenv("LISTEN_FDS", "100000", 1);
	setenv("WATCHDOG_PID", "1", 1);
	setenv("WATCHDOG_USEC", "5", 1);
	CHECK_OK(gmem_store_open(&s));
	CHECK_EQ(gmem_store_watchdog_usec(s), 0);
	CHECK_EQ(gmem_store_minder(s), GMEM_STORE_NOBODY);
	gmem_store_free(s);
}

/* ---- what is passed */

static void pass_on(const char *names, int n)
{
	char number[24];

	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	snprintf(number, sizeof(number), "%d", n);
	setenv("LISTEN_FDS", number, 1);
	if (names)
		setenv("LISTEN_FDNAMES", names, 1);
}

static int client_of(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	CHECK_EQ(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void put_at(int fd, int number)
{
	CHECK_EQ(dup2(fd, number), number);
	if (fd != number)
		close(fd);
}

/* In a process of its own: what is passed begins at 3, where the case has descriptors of its own. */
static void in_child(void (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		for (int fd = 3; fd < 64; fd++)
			close(fd);
		fn();
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

static void takes_what_is_passed(void)
{
	char dir[] = "/tmp/gmem-store-XXXXXX", path[64];
	struct gmem_store_client c;
	struct gmem_store *s;
	struct manager m;
	const char *name;
	int fd, client, n;
	struct stat st[3];

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	for (int i = 0; i < 3; i++) {
		put_at(eventfd(0, 0), 10 + i);
		fstat(10 + i, &st[i]);
	}
	put_at(gmem_socket_listen(path), 20);
	snprintf(path, sizeof(path), "%s/metrics", dir);
	put_at(gmem_socket_listen(path), 21);
	put_at(20, 3);
	put_at(21, 4);
	for (int i = 0; i < 3; i++)
		put_at(10 + i, 5 + i);
	/* The last has no name, which is none of ours. */
	pass_on("gmem-serve.socket:metrics:x.c:x.0", 5);
	/* After them, so that its descriptor does not lie in between. */
	manager_new(&m, false);
	CHECK_OK(gmem_store_open(&s));
	for (int i = 3; i < 8; i++)
		CHECK_EQ(fcntl(i, F_GETFD), FD_CLOEXEC);
	CHECK_EQ(gmem_store_nlisteners(s), 1);
	CHECK_EQ(gmem_store_held(s, 0, &name), 5);
	CHECK_STR(name, "x.c");
	CHECK_EQ(gmem_store_held(s, 2, &name), 7);
	CHECK_STR(name, "unknown");
	CHECK_EQ(gmem_store_held(s, 3, &name), -ENOENT);
	CHECK_EQ(gmem_store_take(s, "x.0"), 6);
	CHECK_EQ(gmem_store_take(s, "x.0"), -ENOENT);
	CHECK_EQ(gmem_store_listener(s, "metrics"), 4);
	CHECK_EQ(gmem_store_listener(s, "metrics"), -ENOENT);
	CHECK_EQ(gmem_store_listener(s, "gmem-serve.socket"), -ENOENT);
	/* Dropped before it was taken: it is closed. */
	CHECK_OK(gmem_store_drop(s, "unknown"));
	expect(&m, "FDSTOREREMOVE=1\nFDNAME=unknown", NULL);
	CHECK_EQ(fcntl(7, F_GETFD), -1);
	/* A client is stored by the very next call. */
	CHECK_EQ(gmem_store_accept(s, &c), 0);
	snprintf(path, sizeof(path), "%s/sock", dir);
	client = client_of(path);
	CHECK_EQ(poll(&(struct pollfd){ .fd = gmem_store_accept_fd(s), .events = POLLIN }, 1, 20000), 1);
	CHECK_EQ(gmem_store_accept(s, &c), 1);
	CHECK(gmem_id_ok(c.id));
	snprintf(path, sizeof(path), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s.c", c.id);
	expect(&m, path, &fd);
	CHECK(same_file(fd, c.fd));
	CHECK(fcntl(c.fd, F_GETFL) & O_NONBLOCK);
	CHECK_EQ(gmem_store_accept(s, &c), 0);
	close(client);
	gmem_store_free(s);
	for (n = 0; n < 3; n++)
		close(5 + n);
	manager_free(&m);
	snprintf(path, sizeof(path), "rm -rf %s", dir);
	CHECK_EQ(system(path), 0);
}

TEST(what_is_passed)
{
	in_child(takes_what_is_passed);
}

/* ---- clients */

TEST(nobody_minds_us)
{
	char dir[] = "/tmp/gmem-store-XXXXXX", path[64], cmd[96];
	struct gmem_store_client c;
	struct gmem_store_stats st;
	struct gmem_store *s;
	struct stat mode;
	int client;

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	CHECK_OK(gmem_store_open(&s));
	CHECK_EQ(gmem_store_minder(s), GMEM_STORE_NOBODY);
	CHECK_OK(gmem_store_listen(s, path));
	CHECK(!stat(path, &mode) && (mode.st_mode & 0777) == 0600);
	CHECK_OK(gmem_store_put(s, "a", 0));
	CHECK_OK(gmem_store_drop(s, "a"));
	CHECK_OK(gmem_store_barrier(s, 0));
	CHECK_OK(gmem_store_ready(s, "x"));
	client = client_of(path);
	CHECK_EQ(gmem_store_accept(s, &c), 1);
	close(c.fd);
	close(client);
	gmem_store_stats(s, &st);
	CHECK_EQ(st.accepted, 1);
	CHECK_EQ(st.stored, 0);
	gmem_store_free(s);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	CHECK_EQ(system(cmd), 0);
}

/* Without room for a descriptor a client keeps its place in the queue, and the loop is not kept busy. */
TEST_TIMEOUT(no_room_for_a_client, 60)
{
	char dir[] = "/tmp/gmem-store-XXXXXX", path[64], cmd[96];
	struct gmem_store_client c;
	struct pollfd p = { .events = POLLIN };
	struct rlimit lim, old;
	struct gmem_store *s;
	int client, err;

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	CHECK_OK(gmem_store_open(&s));
	CHECK_OK(gmem_store_listen(s, path));
	client = client_of(path);
	CHECK(!getrlimit(RLIMIT_NOFILE, &old));
	lim = old;
	lim.rlim_cur = 3;
	CHECK(!setrlimit(RLIMIT_NOFILE, &lim));
	err = gmem_store_accept(s, &c);
	p.fd = gmem_store_accept_fd(s);
	CHECK_EQ(poll(&p, 1, 0), 0);
	CHECK(!setrlimit(RLIMIT_NOFILE, &old));
	CHECK_EQ(err, -EMFILE);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	CHECK_EQ(gmem_store_accept(s, &c), 1);
	close(c.fd);
	close(client);
	gmem_store_free(s);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	CHECK_EQ(system(cmd), 0);
}

TEST(sockets_that_are_there)
{
	char dir[] = "/tmp/gmem-store-XXXXXX", path[64], cmd[96];
	int fd;

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	fd = (int)CHECK_OK(gmem_socket_listen(path));
	CHECK_ERR(gmem_socket_listen(path), -EADDRINUSE);
	close(fd);
	/* Nobody listens any more. */
	fd = (int)CHECK_OK(gmem_socket_listen(path));
	close(fd);
	CHECK(!unlink(path));
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(fd);
	CHECK_ERR(gmem_socket_listen(path), -EADDRINUSE);
	CHECK_ERR(gmem_socket_listen("@abstract"), -EAFNOSUPPORT);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	CHECK_EQ(system(cmd), 0);
}
