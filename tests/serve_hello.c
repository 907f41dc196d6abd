/* SPDX-License-Identifier: MIT */
/*
 * The first message of a page server's client, in every shape a stream can bring it in. Nothing of it may be lost with
 * a server that ends before it has taken it.
 */
#include "tap.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "serve_hello_util.h"

TEST(each_release_of_firecracker)
{
	static const enum gmem_hello_generation generations[] = { GMEM_HELLO_NO_PAGE_SIZE, GMEM_HELLO_PAGE_SIZE_KIB,
								  GMEM_HELLO_PAGE_SIZE };

	for (enum fc_version v = FC_1_1; v <= FC_1_12; v++) {
		for (int huge = 0; huge < (v == FC_1_1 ? 1 : 2); huge++) {
			struct scene s;
			struct fc_options o = two_regions(v);
			const struct gmem_hello_message *m;

			o.huge = huge;
			begin(&s, &o);
			CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
			CHECK_EQ(gmem_hello_feed(s.hello), 1);
			check_message(&s);
			m = gmem_hello_message(s.hello);
			CHECK_EQ(m->generation, generations[v]);
			CHECK_EQ(m->page_size, huge ? FC_HUGE : 4096);
			CHECK_EQ(m->uffd_features[0], UFFD_FEATURE_EVENT_REMOVE);
			CHECK_EQ(gmem_hello_feed(s.hello), 1);
			CHECK_OK(gmem_hello_consume(s.hello));
			end(&s);
		}
	}
}

TEST(who_it_is_by_the_kernels_word)
{
	struct scene s;
	struct fc_options o = two_regions(FC_1_12);
	const struct gmem_hello_message *m;

	begin(&s, &o);
	CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	m = gmem_hello_message(s.hello);
	CHECK_EQ(m->pid, getpid());
	CHECK_EQ(m->uid, getuid());
	CHECK_EQ(m->gid, getgid());
	CHECK(m->pidfd >= 0);
	CHECK_EQ(fcntl(m->pidfd, F_GETFD), FD_CLOEXEC);
	CHECK_EQ(fcntl(m->uffds[0], F_GETFD), FD_CLOEXEC);
	end(&s);
}

/* The descriptor with either part, or behind both. */
TEST_TIMEOUT(two_parts_at_every_place, 60)
{
	struct fc_options o = two_regions(FC_1_12);
	struct scene s;
	size_t len;

	begin(&s, &o);
	len = s.len;
	end(&s);
	for (size_t at = 1; at < len; at += tap_slow() ? 7 : 1) {
		for (size_t with = 0; with < 3; with++) {
			o.piece = at;
			o.fds_with = with;
			begin(&s, &o);
			CHECK_EQ(fc_send_part(s.client, s.text, at, &s.uffd, with == 0), at);
			CHECK_EQ(gmem_hello_feed(s.hello), 0);
			CHECK(!gmem_hello_message(s.hello));
			CHECK_EQ(fc_send_part(s.client, s.text + at, len - at, &s.uffd, with == 1), len - at);
			CHECK_EQ(gmem_hello_feed(s.hello), with < 2);
			if (with == 2) {
				CHECK_STR(gmem_hello_missing(s.hello), "no descriptor has come");
				CHECK_EQ(fc_send_part(s.client, "!", 1, &s.uffd, 1), 1);
				CHECK_EQ(gmem_hello_feed(s.hello), 1);
			}
			check_message(&s);
			CHECK_OK(gmem_hello_consume(s.hello));
			CHECK_EQ(left_in(s.server), 0);
			end(&s);
		}
	}
}

TEST_TIMEOUT(byte_by_byte, 60)
{
	struct fc_options o = two_regions(FC_1_1);
	struct scene s;

	for (size_t with = 0; with < 120; with += 17) {
		begin(&s, &o);
		for (size_t i = 0; i < s.len; i++) {
			CHECK_EQ(gmem_hello_feed(s.hello), 0);
			CHECK_EQ(fc_send_part(s.client, s.text + i, 1, &s.uffd, i == with), 1);
		}
		CHECK_EQ(gmem_hello_feed(s.hello), 1);
		check_message(&s);
		CHECK_OK(gmem_hello_consume(s.hello));
		CHECK_EQ(left_in(s.server), 0);
		end(&s);
	}
}

TEST_TIMEOUT(every_truncation, 60)
{
	struct fc_options o = two_regions(FC_1_12);
	struct scene s;
	size_t len = 1;

	for (size_t at = 0; at < len; at++) {
		begin(&s, &o);
		len = s.len;
		if (at)
			CHECK_EQ(fc_send_part(s.client, s.text, at, &s.uffd, 1), at);
		CHECK_EQ(gmem_hello_feed(s.hello), 0);
		close(s.client);
		s.client = -1;
		CHECK_ERR(gmem_hello_feed(s.hello), -ECONNRESET);
		CHECK_ERR(gmem_hello_feed(s.hello), -ECONNRESET);
		CHECK(!gmem_hello_message(s.hello) && !gmem_hello_take(s.hello));
		CHECK_ERR(gmem_hello_consume(s.hello), -EPROTO);
		end(&s);
	}
	/* All of it, and closed before it is read: as the first releases do. */
	begin(&s, &o);
	CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
	close(s.client);
	s.client = -1;
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	CHECK_OK(gmem_hello_consume(s.hello));
	end(&s);
}

TEST(late_descriptors)
{
	static const char *const tails[] = { " ", "x", "\n\n", "]", "}", "\\\"", "fd: 7\n" };
	struct fc_options o = two_regions(FC_1_7);
	char other[4096];
	struct scene s;

	for (size_t i = 0; i < 2 * sizeof(tails) / sizeof(tails[0]); i++) {
		const char *tail = tails[i / 2];

		begin(&s, &o);
		CHECK(fc_send_part(s.client, s.text, s.len, NULL, 0) > 0);
		/* In one look, or in two. */
		if (i % 2) {
			CHECK_EQ(gmem_hello_feed(s.hello), 0);
			CHECK_EQ(gmem_hello_tick(s.hello), 0);
		}
		CHECK(fc_send_part(s.client, tail, strlen(tail), &s.uffd, 1) > 0);
		CHECK(fc_send_part(s.client, "what follows", 12, NULL, 0) > 0);
		CHECK_EQ(gmem_hello_feed(s.hello), 1);
		check_message(&s);
		CHECK_OK(gmem_hello_consume(s.hello));
		CHECK_EQ(left_in(s.server), 12);
		end(&s);
	}
	/* The text once more: of one message, or of two, or cut where it can be. */
	for (size_t at = 1; at <= 64; at++) {
		begin(&s, &o);
		CHECK(fc_send_part(s.client, s.text, s.len, NULL, 0) > 0);
		CHECK_EQ(gmem_hello_feed(s.hello), 0);
		CHECK(fc_send_part(s.client, s.text, at, &s.uffd, 1) > 0);
		CHECK_EQ(gmem_hello_feed(s.hello), 0);
		CHECK(fc_send_part(s.client, s.text + at, s.len - at, NULL, 0) > 0);
		CHECK_EQ(gmem_hello_feed(s.hello), 1);
		check_message(&s);
		CHECK_OK(gmem_hello_consume(s.hello));
		CHECK_EQ(left_in(s.server), 0);
		end(&s);
	}
	for (int looks = 1; looks <= 2; looks++) {
		/* Another text. */
		begin(&s, &o);
		memcpy(other, s.text, s.len);
		other[s.len / 2] ^= 1;
		CHECK(fc_send_part(s.client, s.text, s.len, NULL, 0) > 0);
		CHECK_EQ(looks == 2 ? gmem_hello_feed(s.hello) : 0, 0);
		CHECK(fc_send_part(s.client, other, s.len, &s.uffd, 1) > 0);
		CHECK_ERR(gmem_hello_feed(s.hello), -EPROTO);
		CHECK_HAS(gmem_last_error(), "two texts that differ");
		end(&s);
	}
	/* Anything, for ever. */
	begin(&s, &o);
	CHECK(fc_send_part(s.client, s.text, s.len, NULL, 0) > 0);
	memset(other, '.', sizeof(other));
	CHECK(fc_send_part(s.client, other, 300, NULL, 0) > 0);
	CHECK_ERR(gmem_hello_feed(s.hello), -EPROTO);
	end(&s);
}

/* What a killed server leaves, at every step: its successor has the same socket from the fd store. */
TEST(nothing_is_lost_before_it_is_consumed)
{
	struct fc_options o = two_regions(FC_1_12);
	struct scene s;

	for (int steps = 0; steps < 4; steps++) {
		int status;
		pid_t pid;

		begin(&s, &o);
		CHECK(fc_send_part(s.client, s.text, 40, NULL, 0) > 0);
		CHECK(fc_send_part(s.client, s.text + 40, s.len - 40, steps == 2 ? NULL : &s.uffd, steps != 2) > 0);
		if (steps == 2)
			CHECK(fc_send_part(s.client, " ", 1, &s.uffd, 1) > 0);
		gmem_hello_free(s.hello);
		pid = fork();
		if (!pid) {
			CHECK_OK(gmem_hello_new(s.server, &s.hello));
			if (steps)
				CHECK_EQ(gmem_hello_feed(s.hello), 1);
			if (steps == 3)
				CHECK(gmem_hello_take(s.hello));
			raise(SIGKILL);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		CHECK_OK(gmem_hello_new(s.server, &s.hello));
		CHECK_EQ(gmem_hello_feed(s.hello), 1);
		check_message(&s);
		CHECK_OK(gmem_hello_consume(s.hello));
		CHECK_OK(gmem_hello_consume(s.hello));
		gmem_hello_free(s.hello);
		CHECK_OK(gmem_hello_new(s.server, &s.hello));
		CHECK_EQ(gmem_hello_feed(s.hello), 0);
		end(&s);
	}
}

/* Two that peek at one socket: what the first consumes is not there for the second. */
TEST(what_somebody_else_has_read)
{
	struct fc_options o = two_regions(FC_1_12);
	struct gmem_hello *other;
	struct scene s;

	begin(&s, &o);
	CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	CHECK_OK(gmem_hello_new(s.server, &other));
	CHECK_EQ(gmem_hello_feed(other), 1);
	CHECK_OK(gmem_hello_consume(s.hello));
	CHECK_ERR(gmem_hello_consume(other), -EPROTO);
	gmem_hello_free(other);
	end(&s);
}

TEST(what_follows_stays_in_the_socket)
{
	static const char request[] = "{\"vcpu\":0,\"offset\":4096,\"flags\":0,\"token\":null}";
	struct fc_options o = two_regions(FC_1_12);
	struct gmem_hello_message *m;
	char buf[256];
	struct scene s;

	begin(&s, &o);
	CHECK(fc_send_part(s.client, s.text, s.len, &s.uffd, 1) > 0);
	CHECK(fc_send_part(s.client, request, sizeof(request) - 1, NULL, 0) > 0);
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	CHECK_OK(gmem_hello_consume(s.hello));
	m = gmem_hello_take(s.hello);
	CHECK(m && !gmem_hello_message(s.hello));
	CHECK_EQ(m->text_len, s.len);
	CHECK_MEM(m->text, s.text, s.len);
	gmem_hello_message_free(m);
	CHECK_EQ(recv(s.server, buf, sizeof(buf), MSG_DONTWAIT), sizeof(request) - 1);
	CHECK_MEM(buf, request, sizeof(request) - 1);
	end(&s);
}

/* The event loop's: an edge for each part, though none has been taken off. */
TEST(every_part_is_an_edge)
{
	struct fc_options o = two_regions(FC_1_12);
	struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET };
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct scene s;

	begin(&s, &o);
	CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, s.server, &ev), 0);
	CHECK_EQ(epoll_wait(epoll, &ev, 1, 0), 0);
	for (size_t at = 0; at < s.len; at += 10) {
		size_t n = s.len - at < 10 ? s.len - at : 10;

		CHECK_EQ(gmem_hello_feed(s.hello), 0);
		CHECK_EQ(epoll_wait(epoll, &ev, 1, 0), 0);
		CHECK_EQ(fc_send_part(s.client, s.text + at, n, &s.uffd, at == 20), n);
		CHECK_EQ(epoll_wait(epoll, &ev, 1, 0), 1);
	}
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	close(epoll);
	end(&s);
}

/* A sender whose buffer is full while its message is only peeked at; it is a process, for it waits. */
static void send_in_process(struct scene *s, const struct fc_options *o, int expected)
{
	pid_t pid = fork();
	int r = 0, status;

	if (!pid)
		_exit(!fc_send(s->client, o, s->text, s->len, &s->uffd, 1));
	while (r == 0) {
		usleep(tap_slow() ? 1000 : 100);
		r = gmem_hello_tick(s->hello);
	}
	CHECK_EQ(r, expected);
	if (r > 0)
		check_message(s);
	else
		shutdown(s->server, SHUT_RDWR);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (r > 0) {
		CHECK_EQ(status, 0);
		CHECK_OK(gmem_hello_consume(s->hello));
		CHECK_EQ(left_in(s->server), 0);
	}
}

TEST_TIMEOUT(long_messages, 120)
{
	static const size_t paddings[] = { 1000, 30000, 70000, 300000, (1 << 20) - 500 };
	struct scene s;

	for (size_t i = 0; i < sizeof(paddings) / sizeof(paddings[0]); i++) {
		struct fc_options o = two_regions(FC_1_12);

		o.padding = paddings[i];
		begin(&s, &o);
		send_in_process(&s, &o, 1);
		end(&s);
		o.padding = (i + 1) * 400;
		o.piece = 1;
		o.fds_with = i * 100;
		begin(&s, &o);
		send_in_process(&s, &o, 1);
		end(&s);
	}
	for (int once = 0; once < 2; once++) {
		struct fc_options o = two_regions(FC_1_12);

		o.padding = once ? (1 << 20) + 500 : 100 << 20;
		begin(&s, &o);
		send_in_process(&s, &o, -E2BIG);
		end(&s);
	}
}

TEST(as_many_regions_as_there_may_be)
{
	struct fc_options o = { .version = FC_1_12, .lie = FC_MANY_REGIONS, .sizes = { 4096 } };
	struct scene s;
	char *last;

	begin(&s, &o);
	/* One fewer than the lie. */
	last = s.text + s.len - 1;
	while (*last != '{')
		last--;
	last[-1] = ']';
	s.len = (size_t)(last - s.text);
	s.text[s.len] = '\0';
	o.sizes[0] = 0;
	send_in_process(&s, &o, 1);
	CHECK_EQ(gmem_hello_message(s.hello)->nregions, GMEM_HELLO_MAX_REGIONS);
	end(&s);
}

/* No room for descriptors here: the next receiver is told the same, when there is. */
TEST(no_room_for_descriptors)
{
	struct fc_options o = two_regions(FC_1_12);
	struct rlimit old, none;
	struct scene s;

	begin(&s, &o);
	CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 3;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
	CHECK_ERR(gmem_hello_feed(s.hello), -EMFILE);
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
	gmem_hello_free(s.hello);
	CHECK_OK(gmem_hello_new(s.server, &s.hello));
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	check_message(&s);
	end(&s);
}

/* Parts of any length, at any pace, the descriptor anywhere, receivers that end and begin anew. */
TEST_TIMEOUT(at_random, 60)
{
	unsigned int rounds = tap_slow() ? 200 : 2000;
	uint64_t seed = tap_seed();

	for (unsigned int i = 0; i < rounds; i++) {
		struct fc_options o = two_regions(tap_rand(&seed) % 3);
		size_t with, sent = 0, max;
		struct scene s;
		int r = 0;

		o.padding = tap_rand(&seed) % 2000;
		begin(&s, &o);
		with = tap_rand(&seed) % s.len;
		max = tap_rand(&seed) % 2 ? s.len : 100;
		while (sent < s.len) {
			size_t n = 1 + tap_rand(&seed) % max;

			n = n > s.len - sent ? s.len - sent : n;
			CHECK_EQ(fc_send_part(s.client, s.text + sent, n, &s.uffd, with >= sent && with < sent + n), n);
			sent += n;
			switch (tap_rand(&seed) % 4) {
			case 0:
				r = gmem_hello_feed(s.hello);
				break;
			case 1:
				gmem_hello_free(s.hello);
				CHECK_OK(gmem_hello_new(s.server, &s.hello));
				r = 0;
				break;
			default:
				break;
			}
			CHECK(!r || sent == s.len);
		}
		CHECK_EQ(gmem_hello_feed(s.hello), 1);
		check_message(&s);
		CHECK_OK(gmem_hello_consume(s.hello));
		CHECK_EQ(left_in(s.server), 0);
		end(&s);
	}
}
