/* SPDX-License-Identifier: MIT */
/* The server: each thing it does for a machine is a step at which a test can have it killed. */
#define TAP_NO_MAIN
#include "serve_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include "link/serve/ledger.h"
#include "link/serve/minder.h"
#include "link/serve/recover.h"
#include "link/serve/store.h"
#include "pager_util.h"

#define ID 5u
#define MAX_VMS 64

struct vm {
	char id[GMEM_STORE_MAX_ID + 1];
	int sock, uffd, pidfd;
	struct gmem_file *file;
	struct gmem_pager *pager;
};

static struct server {
	const char *dir;
	struct gmem_ledger_dir *ledgers;
	struct gmem_store *store;
	struct vm vms[MAX_VMS];
	int waiting[MAX_VMS]; /* clients that have not said what they are; -1 */
	char waiting_id[MAX_VMS][GMEM_STORE_MAX_ID + 1];
} srv;

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void note(const char *fmt, ...)
{
	char path[128], text[512];
	va_list ap;
	int fd, n;

	snprintf(path, sizeof(path), "%s/log", srv.dir);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	CHECK_EQ(write(fd, text, (size_t)n), n);
	close(fd);
}

void serve_step(const char *where)
{
	char path[128], gone[128], text[32] = "";
	int fd;

	if (!srv.dir)
		return;
	snprintf(path, sizeof(path), "%s/die", srv.dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	if (strcmp(text, where))
		return;
	snprintf(gone, sizeof(gone), "%s/died", srv.dir);
	CHECK_EQ(rename(path, gone), 0);
	note("died at %s\n", where);
	kill(getpid(), SIGKILL);
}

static int src_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	for (uint64_t at = 0; at < len; at += P)
		fill_page(ID, off + at, (char *)buf + at);
	return 0;
}

static struct vm *free_vm(void)
{
	for (size_t i = 0; i < MAX_VMS; i++)
		if (!srv.vms[i].id[0])
			return &srv.vms[i];
	FAIL("too many machines");
}

/* From its ledger and its descriptors on: whoever wrote it. */
static void serve(const struct gmem_ledger *l, struct vm *vm)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = src_read, .read_nowait = src_read };
	struct gmem_region r = { .size = sizeof(r), .hva = l->fds[0].hva, .len = l->len, .uffd = vm->uffd };
	int state = gmem_ledger_dir_state(srv.ledgers, l->id, false);
	char rest[256];

	CHECK_OK(state);
	CHECK_OK(gmem_file_create_anon(l->len, l->page_size, state, &vm->file));
	close(state);
	CHECK_OK(gmem_source_new(&ops, NULL, &r.source));
	CHECK_OK(gmem_pager_create(NULL, &vm->pager));
	r.file = vm->file;
	CHECK_OK(gmem_pager_add_region(vm->pager, &r));
	gmem_source_unref(r.source);
	/* The handshake has been written down: what is still there of it is consumed. */
	while (vm->sock >= 0 && recv(vm->sock, rest, sizeof(rest), MSG_DONTWAIT) > 0)
		;
	serve_step("consumed");
	strcpy(vm->id, l->id);
	note("serves %s\n", l->id);
}

static void forget(struct vm *vm)
{
	char name[GMEM_STORE_MAX_NAME + 1];

	serve_step("ended");
	gmem_pager_free(vm->pager);
	gmem_file_free(vm->file);
	CHECK_OK(gmem_ledger_remove(srv.ledgers, vm->id));
	serve_step("removed");
	snprintf(name, sizeof(name), "%s.0", vm->id);
	(void)gmem_store_drop(srv.store, name);
	serve_step("dropped");
	snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, vm->id);
	(void)gmem_store_drop(srv.store, name);
	close(vm->uffd);
	close(vm->pidfd);
	if (vm->sock >= 0)
		close(vm->sock);
	note("forgot %s\n", vm->id);
	vm->id[0] = '\0';
}

/* ---- a new one */

static int peek(int sock, struct serve_hello *h, int *ret_uffd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { h, sizeof(*h) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	ssize_t n = recvmsg(sock, &m, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return -errno;
	if (n != sizeof(*h) || h->magic != SERVE_MAGIC || !CMSG_FIRSTHDR(&m))
		return -ECONNRESET;
	memcpy(ret_uffd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return 0;
}

static void begin(const char *id, int sock, const struct serve_hello *h, int uffd)
{
	struct vm *vm = free_vm();
	struct gmem_ledger *l;
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int err;

	CHECK_EQ(getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len), 0);
	err = gmem_ledger_new(id, cred.pid, &l);
	if (err == -ESRCH) {
		close(uffd);
		close(sock);
		return;
	}
	CHECK_OK(err);
	l->len = h->len;
	l->page_size = P;
	snprintf(l->connection, sizeof(l->connection), "%s" GMEM_STORE_CONNECTION, id);
	CHECK_OK(gmem_ledger_add_fd(l, uffd, h->hva, h->len));
	(void)gmem_store_put(srv.store, l->fds[0].name, uffd);
	serve_step("put");
	(void)gmem_store_barrier(srv.store, 5000);
	close((int)CHECK_OK(gmem_ledger_dir_state(srv.ledgers, id, true)));
	serve_step("state");
	CHECK_OK(gmem_ledger_write(srv.ledgers, l));
	serve_step("ledger");
	vm->sock = sock;
	vm->uffd = uffd;
	/* A machine in another pid namespace is not told from any other. */
	vm->pidfd = cred.pid ? gmem_recover_process(l) : -1;
	serve(l, vm);
	gmem_ledger_free(l);
	serve_step("serving");
}

static void look_at(size_t i)
{
	struct serve_hello h;
	int uffd = -1, err = peek(srv.waiting[i], &h, &uffd);

	if (err == -EAGAIN)
		return;
	serve_step("peeked");
	if (err) {
		char name[GMEM_STORE_MAX_NAME + 1];

		snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, srv.waiting_id[i]);
		(void)gmem_store_drop(srv.store, name);
		close(srv.waiting[i]);
	} else {
		begin(srv.waiting_id[i], srv.waiting[i], &h, uffd);
	}
	srv.waiting[i] = -1;
}

static void add_waiting(const char *id, int sock)
{
	for (size_t i = 0; i < MAX_VMS; i++) {
		if (srv.waiting[i] >= 0)
			continue;
		srv.waiting[i] = sock;
		snprintf(srv.waiting_id[i], sizeof(srv.waiting_id[i]), "%s", id);
		return;
	}
	FAIL("too many clients");
}

/* ---- after another server */

static int take_up(void *opaque, const char *id, struct gmem_ledger *l, int err)
{
	struct vm *vm = free_vm();
	int pidfd;

	CHECK_OK(err);
	pidfd = gmem_recover_process(l);
	if (pidfd == -ESRCH) {
		note("%s has ended meanwhile\n", id);
		CHECK_OK(gmem_ledger_remove(srv.ledgers, id));
		gmem_ledger_free(l);
		return 0;
	}
	vm->pidfd = pidfd;
	vm->sock = gmem_store_take(srv.store, l->connection);
	vm->uffd = gmem_store_take(srv.store, l->fds[0].name);
	if (vm->uffd < 0) {
		CHECK_OK(pidfd);
		CHECK_OK(gmem_recover_fds(l, pidfd, &vm->uffd));
		CHECK_OK(gmem_store_put(srv.store, l->fds[0].name, vm->uffd));
		note("took %s out of %d\n", id, (int)l->pid);
	}
	serve_step("taken");
	serve(l, vm);
	gmem_ledger_free(l);
	return 0;
}

static void take_rest(void)
{
	const char *name;
	char copy[GMEM_STORE_MAX_NAME + 1];
	int fd;

	while (gmem_store_held(srv.store, 0, &name) >= 0) {
		size_t n = strlen(name), suffix = strlen(GMEM_STORE_CONNECTION);

		snprintf(copy, sizeof(copy), "%s", name);
		if (n > suffix && !strcmp(name + n - suffix, GMEM_STORE_CONNECTION)) {
			fd = gmem_store_take(srv.store, copy);
			copy[n - suffix] = '\0';
			add_waiting(copy, fd);
		} else {
			note("drops %s\n", copy);
			CHECK_OK(gmem_store_drop(srv.store, copy));
			/* Without a minder it is only closed. */
			fd = gmem_store_take(srv.store, copy);
			if (fd >= 0)
				close(fd);
		}
	}
}

/* ---- */

static int told_to_end(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	CHECK_OK(fd);
	return fd;
}

static void one_round(int signals)
{
	struct pollfd p[2 + 2 * MAX_VMS] = { { .fd = signals, .events = POLLIN },
					     { .fd = gmem_store_accept_fd(srv.store), .events = POLLIN } };
	struct gmem_store_client c;

	for (size_t i = 0; i < MAX_VMS; i++) {
		p[2 + i] = (struct pollfd){ .fd = srv.waiting[i], .events = POLLIN };
		p[2 + MAX_VMS + i] =
			(struct pollfd){ .fd = srv.vms[i].id[0] ? srv.vms[i].pidfd : -1, .events = POLLIN };
	}
	(void)poll(p, 2 + 2 * MAX_VMS, 100);
	(void)gmem_store_watchdog(srv.store);
	if (p[0].revents) {
		(void)gmem_store_stopping(srv.store);
		note("stops\n");
		_exit(0);
	}
	for (size_t i = 0; i < MAX_VMS; i++) {
		if (p[2 + i].revents)
			look_at(i);
		if (p[2 + MAX_VMS + i].revents)
			forget(&srv.vms[i]);
	}
	while (gmem_store_accept(srv.store, &c) > 0) {
		serve_step("accepted");
		note("accepted %s\n", c.id);
		add_waiting(c.id, c.fd);
	}
}

static _Noreturn void serve_forever(const char *dir)
{
	char sock[128];
	int signals = told_to_end();

	srv.dir = dir;
	for (size_t i = 0; i < MAX_VMS; i++)
		srv.waiting[i] = -1;
	if (getenv("GMEM_TEST_MISTAKE"))
		_exit(7);
	serve_step("started");
	CHECK_OK(gmem_ledger_dir_open(dir, &srv.ledgers));
	CHECK_OK(gmem_ledger_dir_lock(srv.ledgers, 20000, NULL));
	CHECK_OK(gmem_store_open(&srv.store));
	CHECK_OK(gmem_ledger_each(srv.ledgers, take_up, NULL));
	take_rest();
	CHECK_OK(gmem_ledger_dir_sweep(srv.ledgers));
	serve_step("swept");
	snprintf(sock, sizeof(sock), "%s/sock", dir);
	if (!gmem_store_nlisteners(srv.store))
		CHECK_OK(gmem_store_listen(srv.store, sock));
	(void)gmem_store_ready(srv.store, "serving");
	note("ready %d minder %d\n", (int)getpid(), (int)gmem_store_minder(srv.store));
	for (;;)
		one_round(signals);
}

static void minder_notes(void *opaque, const char *text)
{
	note("minder: %s\n", text);
}

/* What a minder is after an upgrade. It has its sockets. */
static _Noreturn void mind_forever(const char *dir)
{
	static char name[] = "server", *argv[] = { name, NULL };
	struct gmem_minder_opts o = { .size = sizeof(o), .dir = dir, .argv = argv, .say = minder_notes };

	srv.dir = dir;
	_exit((int)CHECK_OK(gmem_minder_run(&o)));
}

/* After the cases' constructors, before main(). */
__attribute__((constructor(65535))) static void be_the_server(void)
{
	const char *dir = getenv("GMEM_TEST_SERVER");

	if (dir && gmem_minder_wanted() && getenv("GMEM_MINDER"))
		mind_forever(dir);
	if (dir)
		serve_forever(dir);
}
