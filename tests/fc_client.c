/* SPDX-License-Identifier: MIT */
/* The test's side: starts the process and gives it orders. */
#define TAP_NO_MAIN
#include "tap.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "fc_vm.h"

struct fc_client {
	pid_t pid;
	int control;
	uint64_t off;
};

static void read_report(struct fc_client *c, struct fc_report *r)
{
	ssize_t n;

	do {
		n = recv(c->control, r, sizeof(*r), 0);
	} while (n < 0 && errno == EINTR);
	if (n != sizeof(*r))
		FAIL("the client is gone");
	c->off = r->off;
}

struct fc_client *fc_start(const struct fc_options *o)
{
	struct fc_client *c = calloc(1, sizeof(*c));
	struct fc_report r;
	int pair[2];

	CHECK(c);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	fflush(stdout);
	c->pid = fork();
	CHECK(c->pid >= 0);
	if (!c->pid) {
		close(pair[0]);
		fc_vm_run(o, pair[1]);
	}
	close(pair[1]);
	c->control = pair[0];
	read_report(c, &r);
	if (!r.ret)
		return c;
	fc_kill(c);
	if (r.skip[0])
		SKIP(r.skip, "%s", r.text);
	FAIL("the client: %s", r.text);
}

pid_t fc_pid(const struct fc_client *c)
{
	return c->pid;
}

void fc_begin(struct fc_client *c, enum fc_op op, uint64_t off, uint64_t len, uint64_t seed)
{
	struct fc_order order = { op, off, len, seed };

	if (send(c->control, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order))
		FAIL("the client is gone");
}

int fc_wait(struct fc_client *c, int timeout_ms, int *ret)
{
	struct pollfd p = { .fd = c->control, .events = POLLIN };
	struct fc_report r;
	int n;

	do {
		n = poll(&p, 1, timeout_ms);
	} while (n < 0 && errno == EINTR);
	if (n <= 0)
		return 0;
	read_report(c, &r);
	*ret = r.ret;
	return 1;
}

static int call(struct fc_client *c, enum fc_op op, uint64_t off, uint64_t len, uint64_t seed)
{
	int ret;

	fc_begin(c, op, off, len, seed);
	CHECK_EQ(fc_wait(c, -1, &ret), 1);
	return ret;
}

int fc_read(struct fc_client *c, uint64_t off, uint64_t len)
{
	return call(c, FC_READ, off, len, 0);
}

int fc_write(struct fc_client *c, uint64_t off, uint64_t len, uint32_t seed)
{
	return call(c, FC_WRITE, off, len, seed);
}

int fc_syscall(struct fc_client *c, uint64_t off, uint64_t len)
{
	return call(c, FC_SYSCALL, off, len, 0);
}

int fc_balloon(struct fc_client *c, uint64_t off, uint64_t len)
{
	return call(c, FC_BALLOON, off, len, 0);
}

int fc_storm(struct fc_client *c, unsigned int nthreads, unsigned int nops, uint64_t seed)
{
	return call(c, FC_STORM, nthreads, nops, seed);
}

int fc_hung_up(struct fc_client *c)
{
	return call(c, FC_HUNG_UP, 0, 0, 0);
}

uint64_t fc_offset(const struct fc_client *c)
{
	return c->off;
}

static void reap(struct fc_client *c)
{
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(c->control);
	free(c);
}

void fc_end(struct fc_client *c)
{
	CHECK_EQ(call(c, FC_END, 0, 0, 0), 0);
	reap(c);
}

void fc_kill(struct fc_client *c)
{
	kill(c->pid, SIGKILL);
	reap(c);
}
