/* SPDX-License-Identifier: MIT */
/* Where pages come from: several sources, sources that fail, that are not there, or that are others than they were. */
#include "serve_scene.h"

#define LEN (SLOW_BUILD ? 4 * MIB : 16 * MIB)

static char other[96], other_sock[96];
static int other_fd;

static void two_sources(struct serve *s, struct gmem_service *sv)
{
	char spec[128];

	snprintf(spec, sizeof(spec), "raw:%s", s->raw);
	CHECK_OK(gmem_service_add_source(sv, "one", spec));
	snprintf(spec, sizeof(spec), "raw:%s", other);
	CHECK_OK(gmem_service_add_source(sv, "two", spec));
	CHECK_ERR(gmem_service_add_source(sv, "two", spec), -EEXIST);
	CHECK_ERR(gmem_service_add_source(sv, "", spec), -EINVAL);
	CHECK_ERR(gmem_service_add_source(sv, "a\"b", spec), -EINVAL);
	CHECK_ERR(gmem_service_add_source(sv, "three", "raw:/nowhere/at/all"), -ENOENT);
	CHECK_ERR(gmem_service_add_source(sv, "three", "what:ever"), -EINVAL);
	CHECK_ERR(gmem_service_set_default(sv, "three"), -ENOENT);
	CHECK_ERR(gmem_service_listen(sv, other_sock, "three"), -ENOENT);
	CHECK_OK(gmem_service_listen(sv, s->sock, NULL));
	CHECK_OK(gmem_service_listen(sv, other_sock, "two"));
	CHECK_OK(gmem_service_listen_metrics(sv, s->metrics));
}

static void set_two(struct serve *s)
{
	serve_set(s, LEN);
	serve_path(s, other, "other");
	serve_path(s, other_sock, "other_sock");
	other_fd = serve_raw(other, LEN, 99);
	s->more = two_sources;
}

TEST_TIMEOUT(a_socket_has_its_source, 60)
{
	struct fc_client *c[2];
	struct fc_options o;
	struct serve s;

	set_two(&s);
	serve_start(&s);
	for (int i = 0; i < 2; i++) {
		o = serve_client(&s, FC_1_12);
		o.path = i ? other_sock : s.sock;
		o.bytes_fd = i ? other_fd : s.fd;
		c[i] = fc_start(&o);
		CHECK_EQ(fc_read(c[i], 0, LEN), 0);
	}
	/* Also for those that are taken up again. */
	serve_kill(&s);
	serve_start(&s);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(fc_balloon(c[i], 0, LEN / 2), 0);
		CHECK_EQ(fc_storm(c[i], 2, 200, 5), 0);
		CHECK_EQ(fc_read(c[i], 0, LEN), 0);
		fc_end(c[i]);
	}
	close(other_fd);
	serve_end(&s);
}

/* A snapshot that is replaced while its machines run must not be what they are served from. */
TEST_TIMEOUT(other_bytes_under_the_same_name, 60)
{
	struct fc_options o;
	struct fc_client *c;
	char aside[96];
	struct serve s;
	int fd, ret;

	serve_set(&s, LEN);
	s.opts.flags = GMEM_SERVICE_NO_FILL;
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	c = fc_start(&o);
	CHECK_EQ(fc_read(c, 0, LEN / 4), 0);
	serve_kill(&s);
	serve_path(&s, aside, "aside");
	CHECK_EQ(rename(s.raw, aside), 0);
	fd = serve_raw(s.raw, LEN, 12345);
	serve_start(&s);
	fc_begin(c, FC_READ, 0, LEN, 0);
	WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_LOST]) > 0);
	CHECK_EQ(atomic_load(&s.seen->errors[GMEM_SERVICE_LOST]), -ESTALE);
	CHECK_EQ(fc_wait(c, 100, &ret), 0);
	CHECK(serve_metrics_has(&s, "state=\"lost\"} ", 1));
	CHECK_EQ(rename(aside, s.raw), 0);
	CHECK_EQ(fc_wait(c, -1, &ret), 1);
	CHECK_EQ(ret, 0);
	fc_end(c);
	close(fd);
	serve_end(&s);
}

/* A file that cannot be found for a while: the guest waits, and is told nothing wrong. */
TEST_TIMEOUT(a_source_that_is_away, 60)
{
	struct fc_options o;
	struct fc_client *c;
	char aside[96];
	struct serve s;
	int ret;

	serve_set(&s, LEN);
	serve_start(&s);
	serve_path(&s, aside, "aside");
	CHECK_EQ(rename(s.raw, aside), 0);
	o = serve_client(&s, FC_1_7);
	c = fc_start(&o);
	fc_begin(c, FC_READ, 0, LEN, 0);
	WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_DEGRADED]) > 0);
	CHECK_EQ(fc_wait(c, 100, &ret), 0);
	/* Removals are read meanwhile, or whoever gives memory back would wait for the source. */
	CHECK_EQ(rename(aside, s.raw), 0);
	CHECK_EQ(fc_wait(c, -1, &ret), 1);
	CHECK_EQ(ret, 0);
	fc_end(c);
	serve_end(&s);
}

TEST_TIMEOUT(memory_is_given_back_while_the_source_is_away, 60)
{
	struct fc_options o;
	struct fc_client *c;
	char aside[96];
	struct serve s;

	serve_set(&s, LEN);
	serve_start(&s);
	serve_path(&s, aside, "aside");
	CHECK_EQ(rename(s.raw, aside), 0);
	o = serve_client(&s, FC_1_7);
	c = fc_start(&o);
	CHECK_EQ(fc_balloon(c, 0, LEN / 2), 0);
	CHECK_EQ(fc_read(c, 0, LEN / 2), 0);
	CHECK_EQ(rename(aside, s.raw), 0);
	CHECK_EQ(fc_read(c, 0, LEN), 0);
	fc_end(c);
	serve_end(&s);
}

static void policy(enum gmem_pager_policy policy, struct serve *s, struct fc_client **ret, char aside[96])
{
	struct fc_options o;

	serve_set(s, LEN);
	s->opts.policy = policy;
	s->opts.patience_ms = 300;
	serve_start(s);
	serve_path(s, aside, "aside");
	CHECK_EQ(rename(s->raw, aside), 0);
	o = serve_client(s, FC_1_12);
	*ret = fc_start(&o);
	fc_begin(*ret, FC_READ, 0, P, 0);
	WAIT_FOR(atomic_load(&s->seen->events[GMEM_SERVICE_GAVE_UP]) > 0);
}

TEST_TIMEOUT(patience_then_poison, 60)
{
	struct fc_client *c;
	char aside[96];
	struct serve s;
	int ret;

	policy(GMEM_PAGER_POISON, &s, &c, aside);
	CHECK_EQ(fc_wait(c, -1, &ret), 1);
	CHECK_EQ(ret, -EHWPOISON);
	/* What nobody has touched comes when the source does. */
	CHECK_EQ(rename(aside, s.raw), 0);
	CHECK_EQ(fc_read(c, LEN / 2, LEN / 2), 0);
	CHECK_EQ(fc_read(c, 0, P), -EHWPOISON);
	CHECK(serve_metric(&s, "gmem_serve_gave_up_total{") >= 1);
	WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_COMPLETE]));
	CHECK(serve_metric(&s, "gmem_serve_poisoned_total{") >= 1);
	fc_end(c);
	serve_end(&s);
}

TEST_TIMEOUT(patience_then_kill, 60)
{
	struct fc_client *c;
	char aside[96];
	struct serve s;

	policy(GMEM_PAGER_KILL, &s, &c, aside);
	WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_ENDED]));
	fc_kill(c);
	serve_end(&s);
}

TEST_TIMEOUT(huge_pages, 60)
{
	struct fc_options o;
	struct fc_client *c;
	struct serve s;

	serve_need_huge_pages(8 * MIB);
	serve_set(&s, 8 * MIB);
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	o.huge = true;
	c = fc_start(&o);
	CHECK_EQ(fc_read(c, 0, 4 * MIB), 0);
	CHECK_EQ(fc_balloon(c, 0, 2 * MIB), 0);
	serve_kill(&s);
	serve_start(&s);
	CHECK_EQ(fc_read(c, 0, 8 * MIB), 0);
	fc_end(c);
	serve_end(&s);
}

static char workset[96];

static void with_workset(struct serve *s, struct gmem_service *sv)
{
	char spec[128];

	snprintf(spec, sizeof(spec), "raw:%s", s->raw);
	CHECK_OK(gmem_service_add_source(sv, "one", spec));
	CHECK_ERR(gmem_service_set_workset(sv, "two", workset), -ENOENT);
	CHECK_OK(gmem_service_set_workset(sv, "one", workset));
	CHECK_OK(gmem_service_listen(sv, s->sock, NULL));
	CHECK_OK(gmem_service_listen_metrics(sv, s->metrics));
}

/* The first machine is recorded until it ends; the second gets what that one touched, before it touches anything. */
TEST_TIMEOUT(working_set, 60)
{
	struct fc_options o;
	struct fc_client *c;
	struct serve s;

	serve_set(&s, LEN);
	serve_path(&s, workset, "workset");
	s.more = with_workset;
	s.opts.flags = GMEM_SERVICE_NO_FILL;
	serve_start(&s);
	o = serve_client(&s, FC_1_12);
	c = fc_start(&o);
	CHECK_EQ(fc_read(c, LEN / 2, MIB), 0);
	CHECK_EQ(access(workset, F_OK), -1);
	fc_end(c);
	WAIT_FOR(!access(workset, F_OK));
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 0);
	c = fc_start(&o);
	WAIT_FOR(serve_metric(&s, "gmem_serve_pages_total{") == 0);
	WAIT_FOR(serve_metrics_has(&s, "why=\"replay\"} ", MIB / P / 2));
	CHECK_EQ(fc_read(c, 0, LEN), 0);
	fc_end(c);
	serve_end(&s);
}
