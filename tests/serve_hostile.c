/* SPDX-License-Identifier: MIT */
/* Clients that lie, are silent, are too many, or may not: each gets an error in the log, and nobody else notices. */
#include "serve_scene.h"

#define LEN (SLOW_BUILD ? 4 * MIB : 16 * MIB)

static int open_fds(pid_t pid)
{
	char path[64];
	int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	CHECK(d != NULL);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static double refused(const struct serve *s, const char *reason)
{
	char begin[96];

	snprintf(begin, sizeof(begin), "gmem_serve_refused_total{reason=\"%s\"} ", reason);
	return serve_metric(s, begin);
}

static double all_refused(const struct serve *s)
{
	return refused(s, "protocol") + refused(s, "timeout") + refused(s, "source") + refused(s, "limit") +
	       refused(s, "other");
}

/* Beside each liar an honest machine goes on; when all have gone, the server holds nothing of theirs. */
TEST_TIMEOUT(every_lie, 120)
{
	struct fc_client *honest;
	struct fc_options o;
	struct serve s;
	int before;

	serve_set(&s, LEN);
	s.opts.handshake_ms = 200;
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	honest = fc_start(&o);
	CHECK_EQ(fc_read(honest, 0, LEN), 0);
	WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_COMPLETE]));
	before = open_fds(s.pid);
	for (int lie = FC_HONEST + 1; lie < FC_FIRST_UNSEEN; lie++) {
		double was = all_refused(&s);
		struct fc_client *c;

		o = serve_client(&s, lie % 2 ? FC_1_12 : FC_1_7);
		o.sizes[0] = LEN / 2;
		o.sizes[1] = LEN / 2;
		o.lie = (enum fc_lie)lie;
		printf("lie %d\n", lie);
		c = fc_start(&o);
		/* 1.12 takes the first of several descriptors to be the one; the others are closed. */
		if (lie == FC_TWO_FDS)
			WAIT_FOR(all_refused(&s) > was || serve_metric(&s, "gmem_serve_vms ") == 2);
		else
			WAIT_FOR(all_refused(&s) > was);
		CHECK_EQ(fc_write(honest, 0, LEN / 4, (uint32_t)lie), 0);
		CHECK_EQ(fc_read(honest, 0, LEN / 2), 0);
		fc_kill(c);
		WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 1);
	}
	WAIT_FOR(open_fds(s.pid) <= before);
	CHECK_EQ(fc_read(honest, 0, LEN), 0);
	fc_end(honest);
	serve_end(&s);
}

/* The handshake is good, and what it says is not true: only the kernel knows. */
TEST_TIMEOUT(lies_that_the_kernel_sees, 60)
{
	struct fc_client *honest, *c;
	struct fc_options o;
	struct serve s;

	serve_set(&s, LEN);
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	honest = fc_start(&o);
	for (int lie = FC_FIRST_UNSEEN; lie < FC_LIES; lie++) {
		if (lie == FC_BLOCKING)
			continue;
		printf("lie %d\n", lie);
		o = serve_client(&s, FC_1_7);
		o.sizes[0] = LEN / 2;
		o.lie = (enum fc_lie)lie;
		c = fc_start(&o);
		if (lie == FC_PAST_SOURCE)
			WAIT_FOR(refused(&s, "source") == 1);
		else
			WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 2);
		CHECK_EQ(fc_read(honest, 0, LEN), 0);
		fc_kill(c);
		WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 1);
	}
	fc_end(honest);
	/* A descriptor that would block is made one that does not. */
	o = serve_client(&s, FC_1_7);
	o.lie = FC_BLOCKING;
	c = fc_start(&o);
	CHECK_EQ(fc_read(c, 0, LEN), 0);
	fc_end(c);
	serve_end(&s);
}

TEST_TIMEOUT(silent_ones_are_bounded, 60)
{
	struct fc_client *c;
	struct fc_options o;
	struct serve s;
	int silent[40];

	serve_set(&s, LEN);
	s.opts.handshake_ms = 60000;
	serve_start(&s);
	for (int i = 0; i < 40; i++)
		silent[i] = serve_connect(s.sock);
	WAIT_FOR(serve_metric(&s, "gmem_serve_connections_waiting ") == 32);
	WAIT_FOR(refused(&s, "limit") == 8);
	for (int i = 0; i < 40; i++)
		close(silent[i]);
	WAIT_FOR(serve_metric(&s, "gmem_serve_connections_waiting ") == 0);
	o = serve_client(&s, FC_1_1);
	c = fc_start(&o);
	CHECK_EQ(fc_read(c, 0, LEN), 0);
	fc_end(c);
	serve_end(&s);
}

static void refused_for(struct serve *s, uint64_t len)
{
	double was = refused(s, "limit");
	struct fc_options o;
	struct fc_client *c;

	o = serve_client(s, FC_1_12);
	o.sizes[0] = len;
	c = fc_start(&o);
	WAIT_FOR(refused(s, "limit") == was + 1);
	WAIT_FOR(fc_hung_up(c) == 1);
	fc_kill(c);
}

TEST_TIMEOUT(limits, 60)
{
	struct fc_client *c[2];
	struct fc_options o;
	struct serve s;

	serve_set(&s, LEN);
	s.opts.max_vms_per_user = 2;
	s.opts.max_memory_per_user = LEN;
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	o.sizes[0] = LEN / 2;
	c[0] = fc_start(&o);
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 1);
	refused_for(&s, LEN / 2 + P);
	o.sizes[0] = LEN / 4;
	c[1] = fc_start(&o);
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 2);
	refused_for(&s, P);
	fc_end(c[0]);
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 1);
	o.sizes[0] = LEN / 2;
	c[0] = fc_start(&o);
	CHECK_EQ(fc_read(c[0], 0, LEN / 2), 0);
	CHECK_EQ(fc_read(c[1], 0, LEN / 4), 0);
	fc_end(c[0]);
	fc_end(c[1]);
	serve_end(&s);
}

/* Who may open the socket (a folder's mode may have let him in) is not yet who may be served. */
TEST_TIMEOUT(users, 60)
{
	struct serve s;
	int status;
	pid_t pid;

	if (geteuid())
		SKIP("root", "who may become another user");
	serve_set(&s, LEN);
	serve_start(&s);
	for (uid_t uid = 4711; uid < 4713; uid++) {
		if (uid == 4712) {
			static const uid_t users[] = { 4712 };

			serve_stop(&s);
			s.opts.users = users;
			s.opts.nusers = 1;
			s.opts.handshake_ms = 100;
			serve_start(&s);
		}
		CHECK_EQ(chmod(s.dir, 0711), 0);
		CHECK_EQ(chmod(s.sock, 0666), 0);
		pid = fork();
		CHECK_OK(pid);
		if (!pid) {
			char c;

			if (setresuid(uid, uid, uid))
				_exit(2);
			_exit(read(serve_connect(s.sock), &c, 1) != 0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(refused(&s, "user"), uid == 4711);
		CHECK_EQ(refused(&s, "timeout"), uid == 4712);
	}
	serve_end(&s);
}

TEST_TIMEOUT(who_asks_for_metrics, 60)
{
	struct serve s;
	char *text;
	int slow[20];

	serve_set(&s, LEN);
	serve_start(&s);
	text = serve_ask(&s, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
	CHECK(!strncmp(text, "HTTP/1.0 200 OK\r\n", 17));
	CHECK_HAS(text, "Content-Type: text/plain; version=0.0.4");
	CHECK_HAS(text, "\r\n\r\n# HELP gmem_serve_info");
	free(text);
	text = serve_ask(&s, "HEAD / HTTP/1.0\r\n\r\n");
	CHECK(!strncmp(text, "HTTP/1.0 200 OK\r\n", 17) && !strstr(text, "gmem_serve_info"));
	free(text);
	text = serve_ask(&s, "POST / HTTP/1.0\r\n\r\n");
	CHECK(!strncmp(text, "HTTP/1.0 405 ", 13));
	free(text);
	/* Those who say nothing are let go of when they go, and no more than some are listened to. */
	for (int i = 0; i < 20; i++)
		slow[i] = serve_connect(s.metrics);
	for (int i = 0; i < 20; i++)
		close(slow[i]);
	CHECK_EQ(serve_metric(&s, "gmem_serve_vms "), 0);
	serve_end(&s);
}
