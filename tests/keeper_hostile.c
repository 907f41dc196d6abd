/* SPDX-License-Identifier: MIT */
/* What a keeper is told by those who do not mean well, or do not know how. It lives on, keeps nothing, and serves. */
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "keeper_util.h"

#include "fault/keeper.h"

#define NPAGES 256ull

static int dial(const struct stage *s)
{
	struct sockaddr_un addr;
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	CHECK(sock >= 0);
	CHECK_OK(gmem_keeper_address(s->sock, &addr));
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)))
		FAIL("connect: %s", strerror(errno));
	return sock;
}

/* One message of any bytes, with `nfds` copies of a descriptor. False if the other side does not take it. */
static bool say(int sock, const void *bytes, size_t len, int nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * 64)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *c;
		int fd = 1;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
		for (int i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(c) + sizeof(int) * (size_t)i, &fd, sizeof(fd));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) >= 0;
}

/* What the other side has no room for yet is said again. */
static void insist(int (*next)(void *), void *opaque, const void *bytes, size_t len, int nfds)
{
	for (int i = 0; i < 10000 && !say(next(opaque), bytes, len, nfds) && errno == EAGAIN; i++)
		usleep(100);
}

/* Garbage of all sizes, well-formed messages that nobody has asked for, and descriptors with all of them. */
static void say_everything(int (*next)(void *), void *opaque, uint64_t *seed)
{
	static const size_t sizes[] = { 0, 1, 4, 8, 100, sizeof(struct gmem_wire) - 1, sizeof(struct gmem_wire),
					sizeof(struct gmem_wire) + 1, 4096, 60000 };
	static const int nfds[] = { 0, 1, 2, 3, 10, 60 };
	static char bytes[60000];

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (size_t k = 0; k < sizeof(nfds) / sizeof(nfds[0]); k++) {
			struct gmem_wire w = { .magic = GMEM_WIRE_MAGIC };

			for (size_t b = 0; b < sizes[i]; b++)
				bytes[b] = (char)tap_rand(seed);
			insist(next, opaque, bytes, sizes[i], nfds[k]);
			memcpy(bytes, &w, sizes[i] < sizeof(w) ? sizes[i] : sizeof(w));
			insist(next, opaque, bytes, sizes[i], nfds[k]);
		}
	}
	for (uint16_t type = 0; type < 16; type++) {
		/* What asks to serve makes whoever says it the server: see the case below. REGION has its own. */
		struct gmem_wire w = { .magic = GMEM_WIRE_MAGIC, .type = type, .flags = 0xffff, .index = type };

		memset(w.text, 'x', sizeof(w.text));
		if (type != GMEM_WIRE_SERVE && type != GMEM_WIRE_REGION)
			for (size_t k = 0; k < sizeof(nfds) / sizeof(nfds[0]); k++)
				insist(next, opaque, &w, sizeof(w), nfds[k]);
	}
}

/*
 * Returns when the keeper has heard all who called before: it hears callers in the order they came, and hangs up on
 * this one too. Of what its server and its program say it reads one message a round.
 */
static void be_heard(const struct stage *s)
{
	int sock = dial(s);
	char end;

	CHECK(say(sock, "?", 1, 0));
	CHECK_EQ(recv(sock, &end, 1, 0), 0);
	close(sock);
}

/* What the keeper holds with no caller. */
static unsigned int fds_of(const struct stage *s)
{
	be_heard(s);
	return count_fds(s->k);
}

/* With no caller left all it can still do is drop its server, once it has read all of its messages. */
static void settle_fds(const struct stage *s, unsigned int expected)
{
	uint64_t end = now_ms() + (tap_slow() ? 160000 : 20000);
	unsigned int n = fds_of(s);

	while (n > expected && now_ms() < end) {
		usleep(300);
		n = count_fds(s->k);
	}
	CHECK_EQ(n, expected);
}

/* ---- at the listening socket */

struct caller {
	const struct stage *s;
	int sock;
};

static int call_anew(void *opaque)
{
	struct caller *c = opaque;

	if (c->sock >= 0)
		close(c->sock);
	c->sock = dial(c->s);
	return c->sock;
}

TEST_TIMEOUT(garbage_at_the_socket, 60)
{
	struct caller c = { .sock = -1 };
	unsigned int fds;
	struct stage s;

	start_stage(&s, NPAGES, 1);
	c.s = &s;
	fds = fds_of(&s);
	say_everything(call_anew, &c, &s.seed);
	close(c.sock);
	for (int i = 0; i < 30; i++)
		close(dial(&s));
	settle_fds(&s, fds);
	finish(&s, start_server(&s, NULL));
}

TEST(silent_callers_do_not_keep_others_waiting)
{
	unsigned int fds;
	struct stage s;
	int socks[40];
	pid_t server;

	start_stage(&s, NPAGES, 1);
	fds = fds_of(&s);
	for (size_t i = 0; i < 40; i++)
		socks[i] = dial(&s);
	server = start_server(&s, NULL);
	WAIT_FOR(atomic_load(&s.shared->complete));
	CHECK(count_fds(s.k) <= fds + GMEM_KEEPER_MAX_CALLERS + 3);
	for (size_t i = 0; i < 40; i++)
		close(socks[i]);
	finish(&s, server);
}

/* Something has come to be read, and a little later all of it has. */
static bool poll_in(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };

	return poll(&p, 1, 20) > 0 && !usleep(20000);
}

enum { ANSWERED, WITH_DESCRIPTORS, GARBAGE, ON_AND_ON, LEAVES_AT_ONCE, NHOWS };

static pid_t serve_and_misbehave(struct stage *s, int how)
{
	struct gmem_wire w = { .magic = GMEM_WIRE_MAGIC, .type = GMEM_WIRE_SERVE, .flags = 0xffff };
	pid_t pid = fork_checked();
	int sock;

	if (pid)
		return pid;
	sock = dial(s);
	say(sock, &w, sizeof(w), how == WITH_DESCRIPTORS ? 10 : 0);
	if (how == GARBAGE) {
		WAIT_FOR(poll_in(sock));
		say(sock, "garbage", 7, 2);
		say(sock, "", 0, 0);
	}
	if (how == ON_AND_ON) {
		for (int i = 0; i < 100; i++)
			say(sock, &w, sizeof(w), 2);
	}
	if (how != LEAVES_AT_ONCE)
		WAIT_FOR(poll_in(sock));
	_exit(0);
}

/* A server that asks and then talks nonsense, or hangs up before it has read a word: fenced like any other. */
TEST(servers_that_misbehave)
{
	unsigned int fds;
	struct stage s;

	start_stage(&s, NPAGES, 1);
	fds = fds_of(&s) + 1; /* the last server's pidfd */
	for (int how = 0; how < NHOWS; how++) {
		for (int i = 0; i < 5; i++)
			wait_ok(serve_and_misbehave(&s, how));
		settle_fds(&s, fds);
	}
	finish(&s, start_server(&s, NULL));
}

/*
 * A server that says it has stopped and hangs up without having read what it was told: this process is let in again,
 * though it lives. Its BYE is found behind a failed send (`early`), and behind a reset.
 */
TEST(server_that_leaves_at_once)
{
	struct stage s;

	start_stage(&s, NPAGES, 1);
	for (int early = 0; early < 2; early++) {
		struct gmem_wire serve = { .magic = GMEM_WIRE_MAGIC, .type = GMEM_WIRE_SERVE };
		struct gmem_wire bye = { .magic = GMEM_WIRE_MAGIC, .type = GMEM_WIRE_BYE };
		int sock;

		if (early)
			kill(s.k, SIGSTOP);
		sock = dial(&s);
		CHECK(say(sock, &serve, sizeof(serve), 0));
		if (!early)
			WAIT_FOR(poll_in(sock));
		CHECK(say(sock, &bye, sizeof(bye), 0));
		close(sock);
		if (early)
			kill(s.k, SIGCONT);
		gmem_server_free(connect_server(&s));
	}
	finish(&s, start_server(&s, NULL));
}

TEST(another_users_server)
{
	unsigned int fds;
	struct stage s;
	pid_t pid;

	if (geteuid())
		SKIP("root", "takes another user's identity");
	start_stage(&s, NPAGES, 1);
	fds = fds_of(&s);
	for (int mode = 0; mode < 2; mode++) {
		CHECK_EQ(chmod(s.dir, 0755), 0);
		if (mode)
			CHECK_EQ(chmod(s.sock, 0666), 0);
		pid = fork_checked();
		if (!pid) {
			struct gmem_server *server;

			CHECK_EQ(setgid(65534), 0);
			CHECK_EQ(setuid(65534), 0);
			CHECK_ERR(gmem_server_connect(s.sock, NULL, &server), mode ? -EPERM : -EACCES);
			_exit(0);
		}
		wait_ok(pid);
	}
	settle_fds(&s, fds);
	finish(&s, start_server(&s, NULL));
}

/* ---- from the program */

static int same_socket(void *opaque)
{
	struct gmem_wire w;
	struct iovec iov = { .iov_base = &w, .iov_len = sizeof(w) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int sock = *(const int *)opaque;

	/* Answers are read and thrown away; descriptors that come with them are not taken. */
	while (recvmsg(sock, &msg, MSG_DONTWAIT) > 0)
		;
	return sock;
}

/* The keeper has read all that was said. */
static bool all_read(int sock)
{
	int left;

	same_socket(&sock);
	CHECK_EQ(ioctl(sock, SIOCOUTQ, &left), 0);
	return !left;
}

static int keeper_answers(int sock, struct gmem_wire *w, int fd)
{
	int fds[GMEM_WIRE_MAX_FDS];

	CHECK_OK(gmem_wire_send(sock, w, &fd, fd >= 0));
	CHECK_OK(gmem_wire_recv(sock, w, fds, NULL));
	CHECK_EQ(w->type, GMEM_WIRE_OK);
	return w->error;
}

static void bad_regions(const struct stage *s, int sock)
{
	const struct gmem_state_header *h = s->files[0]->state.header;
	const struct gmem_wire good = { .type = GMEM_WIRE_REGION, .dev = h->dev, .ino = h->ino, .hva = 1 << 30,
					.len = s->len, .index = GMEM_WIRE_NEW_UFFD };
	struct {
		uint64_t ino, hva, off, len;
		uint32_t index;
		int fd, err;
	} bad[] = {
		{ h->ino, 1 << 30, s->len, P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, P, s->len, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, -P, 2 * P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, P, -P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, 0, 0, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, 1, P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, 0, P + 8, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, (1 << 30) + 8, 0, P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, -P, 0, 2 * P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino + 12345, 1 << 30, 0, P, GMEM_WIRE_NEW_UFFD, 1, -EINVAL },
		{ h->ino, 1 << 30, 0, P, GMEM_WIRE_NEW_UFFD, -1, -EBADF },
		{ h->ino, 1 << 30, 0, P, 0, -1, -EINVAL },
		{ h->ino, 1 << 30, 0, P, 0, 1, -EINVAL },
		{ h->ino, 1 << 30, 0, P, GMEM_KEEPER_MAX_UFFDS, -1, -EINVAL },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct gmem_wire w = good;
		int err;

		w.ino = bad[i].ino;
		w.hva = bad[i].hva;
		w.off = bad[i].off;
		w.len = bad[i].len;
		w.index = bad[i].index;
		err = keeper_answers(sock, &w, bad[i].fd);
		if (err != bad[i].err)
			FAIL("region %zu: the keeper says %d, not %d", i, err, bad[i].err);
	}
}

/* Says all it can say that is wrong, then attaches as it should. */
static void start_hostile_program(struct stage *s, bool flood)
{
	s->v = fork_checked();
	if (!s->v) {
		struct gmem_wire hello = { .magic = GMEM_WIRE_MAGIC, .type = GMEM_WIRE_HELLO };
		int sock = gmem_keeper_attach_fd(s->keeper), flags = fcntl(sock, F_GETFL);

		CHECK_EQ(fcntl(sock, F_SETFL, flags | O_NONBLOCK), 0);
		say_everything(same_socket, &sock, &s->seed);
		/* Asks and asks, and reads no answer, until the keeper takes no more. */
		for (int stuck = 0; flood && stuck < 100;) {
			if (say(sock, &hello, sizeof(hello), 0))
				stuck = 0;
			else
				stuck += !usleep(3000);
		}
		if (!flood)
			WAIT_FOR(all_read(sock));
		atomic_store(&s->shared->answer, 1);
		WAIT_FOR(atomic_load(&s->shared->request) == 1);
		if (flood)
			_exit(0);
		CHECK_EQ(fcntl(sock, F_SETFL, flags), 0);
		same_socket(&sock);
		bad_regions(s, sock);
		atomic_store(&s->shared->answer, 2);
		WAIT_FOR(atomic_load(&s->shared->request) == 2);
		be_program(s);
	}
	gmem_keeper_free(s->keeper);
	s->keeper = NULL;
	WAIT_FOR(atomic_load(&s->shared->answer) == 1);
}

TEST_TIMEOUT(hostile_program, 60)
{
	unsigned int fds;
	struct stage s;

	set_stage(&s, NPAGES, 1);
	run_keeper(&s);
	start_hostile_program(&s, false);
	fds = fds_of(&s);
	CHECK(fds < 24); /* nothing of the hundreds it was sent */
	atomic_store(&s.shared->request, 1);
	WAIT_FOR(atomic_load(&s.shared->answer) == 2);
	settle_fds(&s, fds + 1); /* the program's pidfd, known by its first REGION */
	atomic_store(&s.shared->request, 2);
	WAIT_FOR(atomic_load(&s.shared->attached));
	finish(&s, start_server(&s, NULL));
}

/* A program that reads no answer gets none any more; the keeper has time for servers. */
TEST_TIMEOUT(program_that_does_not_read, 60)
{
	struct gmem_server *server;
	uint64_t begun;
	struct stage s;

	set_stage(&s, NPAGES, 1);
	run_keeper(&s);
	start_hostile_program(&s, true);
	begun = now_ms();
	CHECK_OK(gmem_server_connect(s.sock, NULL, &server));
	printf("a server waited %llu ms\n", (unsigned long long)(now_ms() - begun));
	gmem_server_free(server);
	atomic_store(&s.shared->request, 1);
	wait_ok(s.v);
	wait_ok(s.k);
	strike_stage(&s);
}

/* ---- state tables that lie: what adoption takes from the program is not to be trusted */

static void lie(struct stage *s, struct gmem_view **views)
{
	(void)views;
	atomic_store(&s->shared->answer, 1);
	for (;;)
		pause();
}

TEST(adopting_from_a_table_that_lies)
{
	struct gmem_keeper *keeper;
	struct gmem_state_header *h, good;
	struct stage s;

	set_stage(&s, NPAGES, 1);
	s.program = lie;
	run_keeper(&s);
	start_program(&s);
	kill_and_wait(s.k);
	h = s.files[0]->state.header;
	memcpy(&good, h, sizeof(good));
	for (int i = 0; i < 9; i++) {
		switch (i) {
		case 0:
			h->nregions = GMEM_STATE_MAX_REGIONS + 1;
			break;
		case 1:
			h->nregions = UINT32_MAX;
			break;
		case 2:
			h->regions[0].len += P;
			break;
		case 3:
			h->regions[0].off = -P;
			break;
		case 4:
			h->regions[0].uffd = 9999;
			break;
		case 5:
			h->regions[0].fd = -1;
			break;
		case 6:
			h->regions[0].fd = 0;
			break;
		case 7:
			memset(h->image_path, 'x', sizeof(h->image_path));
			break;
		default:
			h->npages *= 2;
			break;
		}
		CHECK(gmem_keeper_adopt(s.sock, s.v, &keeper) < 0);
		printf("lie %d: %.200s\n", i, gmem_last_error());
		CHECK(access(s.sock, F_OK) != 0);
		memcpy(h, &good, sizeof(good));
	}
	CHECK_OK(gmem_keeper_adopt(s.sock, s.v, &keeper));
	gmem_keeper_free(keeper);
	kill_and_wait(s.v);
	strike_stage(&s);
}
