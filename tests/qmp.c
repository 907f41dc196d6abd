/* SPDX-License-Identifier: MIT */
/* The QMP client against servers that behave badly. */
#include "tap.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "link/qmp.h"

#define GREETING                                                                                                \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, " \
	"\"capabilities\": [\"oob\"]}}\r\n"
#define READY GREETING "{\"return\": {}, \"id\": 1}\r\n"
#define EVENT(name) "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"" name "\"}\r\n"

/* A monitor that has said `text` already, and nothing more; with `ends` it has closed its side. *ret_fd is the other
 * end. */
static int canned(const char *text, size_t len, bool ends, int *ret_fd)
{
	int sv[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	CHECK_EQ(write(sv[1], text, len), (ssize_t)len);
	if (ends)
		CHECK_EQ(shutdown(sv[1], SHUT_WR), 0);
	*ret_fd = sv[1];
	return sv[0];
}

static struct gmem_qmp *ready(const char *more, int *ret_fd)
{
	struct gmem_qmp *qmp;
	char text[4096];

	snprintf(text, sizeof(text), READY "%s", more);
	CHECK_OK(gmem_qmp_attach(canned(text, strlen(text), false, ret_fd), "fake", &qmp));
	return qmp;
}

TEST(a_greeting_tells_the_version)
{
	int fd;
	struct gmem_qmp *qmp = ready("", &fd);

	CHECK_EQ(gmem_qmp_version(qmp)->major, 7);
	CHECK_EQ(gmem_qmp_version(qmp)->minor, 2);
	CHECK_EQ(gmem_qmp_version(qmp)->micro, 22);
	CHECK_EQ(gmem_qmp_peer_pid(qmp), getpid());
	gmem_qmp_close(qmp);
	close(fd);
}

TEST(closed_at_every_byte_it_is_an_error_and_no_wait)
{
	static const char text[] = READY EVENT("STOP") "{\"return\": {\"status\": \"running\"}, \"id\": 2}\r\n";
	size_t len = strlen(text), greeting = strlen(READY);

	for (size_t n = 0; n < len; n++) {
		struct gmem_qmp *qmp;
		json_t *v;
		int fd, r;

		r = gmem_qmp_attach(canned(text, n, true, &fd), "fake", &qmp);
		if (n < greeting) {
			CHECK_EQ(r, -ECONNRESET);
			CHECK_HAS(gmem_last_error(), "fake: ");
		} else {
			CHECK_EQ(r, 0);
			r = gmem_qmp_exec(qmp, "query-status", NULL, &v);
			CHECK_EQ(r, n == len ? 0 : -ECONNRESET);
			CHECK_HAS(gmem_last_error(), "during 'query-status'");
			gmem_qmp_close(qmp);
		}
		close(fd);
	}
}

/* The other end gone altogether: sending is an error too, and no signal. */
TEST(a_dead_monitor_is_no_signal)
{
	int fd;
	struct gmem_qmp *qmp = ready("", &fd);

	close(fd);
	CHECK_ERR(gmem_qmp_exec(qmp, "stop", NULL, NULL), -ECONNRESET);
	CHECK_ERR(gmem_qmp_exec(qmp, "stop", NULL, NULL), -ECONNRESET);
	CHECK_ERR(gmem_qmp_wait_event(qmp, "STOP", 1000, NULL), -ECONNRESET);
	CHECK_EQ(gmem_qmp_wait_close(qmp, 1000), 0);
	gmem_qmp_close(qmp);
}

TEST(what_is_not_qmp_is_named)
{
	static const char *const texts[] = {
		"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
		"HTTP/1.1 400 Bad Request\r\n\r\n",
		"[]\n",
		"{}\n",
		"{\"QMP\": 1}\n",
		"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": \"x\", \"minor\": 2, \"major\": 7}}}}\n",
		"\xff\xfe\xfd\n",
		"\n",
	};
	struct gmem_qmp *qmp;
	char *big;
	int fd;

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		CHECK_ERR(gmem_qmp_attach(canned(texts[i], strlen(texts[i]), true, &fd), "fake", &qmp), -EPROTO);
		CHECK_HAS(gmem_last_error(), "fake: does not speak QMP");
		close(fd);
	}
	/* A line without an end. */
	big = malloc(100000);
	memset(big, 'x', 100000);
	CHECK_ERR(gmem_qmp_attach(canned(big, 100000, false, &fd), "fake", &qmp), -EPROTO);
	close(fd);
	free(big);
}

TEST(an_answer_that_is_no_answer_is_an_error)
{
	static const char *const texts[] = { "garbage\n", "{\"id\": 2}\n", "7\n" };
	struct gmem_qmp *qmp;
	int fd;

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		qmp = ready(texts[i], &fd);
		CHECK_ERR(gmem_qmp_exec(qmp, "stop", NULL, NULL), -EPROTO);
		CHECK_HAS(gmem_last_error(), "'stop'");
		gmem_qmp_close(qmp);
		close(fd);
	}
}

static void *flood(void *arg)
{
	char buf[65536];

	memset(buf, 'x', sizeof(buf));
	while (send(*(int *)arg, buf, sizeof(buf), MSG_NOSIGNAL) > 0)
		;
	return NULL;
}

TEST(an_endless_line_is_cut_off)
{
	pthread_t thread;
	int fd;
	struct gmem_qmp *qmp = ready("", &fd);

	CHECK_EQ(pthread_create(&thread, NULL, flood, &fd), 0);
	CHECK_ERR(gmem_qmp_exec(qmp, "stop", NULL, NULL), -EPROTO);
	CHECK_HAS(gmem_last_error(), "longer than 16 MiB");
	gmem_qmp_close(qmp);
	pthread_join(thread, NULL);
	close(fd);
}

TEST(qemus_own_words_are_passed_on)
{
	int fd;
	struct gmem_qmp *qmp =
		ready("{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no such disk\"}}\n"
		      "{\"id\": 3, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such device\"}}\n"
		      "{\"id\": 4, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"what\"}}\n"
		      "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not parsed\"}}\n",
		      &fd);

	CHECK_ERR(gmem_qmp_exec(qmp, "eject", NULL, NULL), -EREMOTEIO);
	CHECK_STR(gmem_last_error(), "fake: QEMU refused 'eject': no such disk");
	CHECK_ERR(gmem_qmp_exec(qmp, "eject", NULL, NULL), -EREMOTEIO);
	CHECK_STR(gmem_last_error(), "fake: QEMU refused 'eject': no such device (DeviceNotFound)");
	CHECK_ERR(gmem_qmp_exec(qmp, "eject", NULL, NULL), -EOPNOTSUPP);
	CHECK_ERR(gmem_qmp_exec(qmp, "eject", NULL, NULL), -EREMOTEIO);
	CHECK_HAS(gmem_last_error(), "not parsed");
	gmem_qmp_close(qmp);
	close(fd);
}

TEST(events_between_answers_are_kept_in_order)
{
	int fd;
	struct gmem_qmp *qmp = ready(
		EVENT("STOP") EVENT("RESUME") "{\"return\": 1, \"id\": 2}\n" EVENT("STOP") EVENT("SHUTDOWN"), &fd);
	json_t *v;

	CHECK_OK(gmem_qmp_exec(qmp, "x", NULL, &v));
	CHECK_EQ(json_integer_value(v), 1);
	json_decref(v);
	CHECK_OK(gmem_qmp_wait_event(qmp, "RESUME", 1000, NULL));
	CHECK_OK(gmem_qmp_wait_event(qmp, "STOP", 1000, NULL));
	CHECK_OK(gmem_qmp_wait_event(qmp, "SHUTDOWN", 1000, &v));
	CHECK_STR(json_string_value(json_object_get(v, "event")), "SHUTDOWN");
	json_decref(v);
	CHECK_OK(gmem_qmp_wait_event(qmp, "STOP", 1000, NULL));
	CHECK_ERR(gmem_qmp_wait_event(qmp, "STOP", 50, NULL), -ETIMEDOUT);
	gmem_qmp_close(qmp);
	close(fd);
}

TEST(an_answer_that_comes_too_late_is_not_taken_for_the_next)
{
	static const char late[] = "{\"return\": \"late\", \"id\": 2}\n{\"return\": \"mine\", \"id\": 3}\n";
	int fd;
	struct gmem_qmp *qmp = ready("", &fd);
	json_t *v;

	gmem_qmp_set_timeout(qmp, 100);
	CHECK_ERR(gmem_qmp_exec(qmp, "slow", NULL, NULL), -ETIMEDOUT);
	CHECK_HAS(gmem_last_error(), "did not answer 'slow'");
	CHECK_EQ(write(fd, late, strlen(late)), (ssize_t)strlen(late));
	CHECK_OK(gmem_qmp_exec(qmp, "quick", NULL, &v));
	CHECK_STR(json_string_value(v), "mine");
	json_decref(v);
	gmem_qmp_close(qmp);
	close(fd);
}

TEST(no_greeting_means_another_client)
{
	struct gmem_qmp *qmp;
	int fd;

	CHECK_ERR(gmem_qmp_attach(canned("", 0, false, &fd), "fake", &qmp), -ETIMEDOUT);
	CHECK_HAS(gmem_last_error(), "another client holds this monitor");
	close(fd);
}

TEST(a_descriptor_goes_with_its_command)
{
	int fd, passed = -1, null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct gmem_qmp *qmp = ready("{\"return\": {}, \"id\": 2}\n", &fd);
	char buf[512], control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) - 1 };
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct stat a, b;
	ssize_t n;

	n = recv(fd, buf, sizeof(buf) - 1, 0); /* qmp_capabilities */
	CHECK(n > 0);
	CHECK_OK(gmem_qmp_getfd(qmp, "name", null));
	n = recvmsg(fd, &mh, MSG_CMSG_CLOEXEC);
	CHECK(n > 0);
	buf[n] = '\0';
	CHECK_HAS(buf, "\"getfd\"");
	CHECK_HAS(buf, "\"fdname\":\"name\"");
	CHECK_EQ(buf[n - 1], '\n');
	CHECK(CMSG_FIRSTHDR(&mh));
	memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(passed));
	CHECK_EQ(fstat(passed, &a), 0);
	CHECK_EQ(fstat(null, &b), 0);
	CHECK_EQ(a.st_rdev, b.st_rdev);
	close(passed);
	close(null);
	gmem_qmp_close(qmp);
	close(fd);
}

TEST(sockets_without_a_qemu_are_told_apart)
{
	char dir[] = "/tmp/gmem-test-XXXXXX", path[64], longer[200];
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct gmem_qmp *qmp;
	int fd, waiting[2];

	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	CHECK_ERR(gmem_qmp_connect(path, &qmp), -ENOENT);
	CHECK_HAS(gmem_last_error(), "no such socket: start QEMU with -qmp unix:");
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_ERR(gmem_qmp_connect(path, &qmp), -ECONNREFUSED);
	CHECK_HAS(gmem_last_error(), "nobody listens");
	/* A queue of clients as long as the listener allows. */
	CHECK_EQ(listen(fd, 0), 0);
	waiting[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(connect(waiting[0], (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_ERR(gmem_qmp_connect(path, &qmp), -ETIMEDOUT);
	CHECK_HAS(gmem_last_error(), "other clients hold this monitor");
	close(waiting[0]);
	close(fd);
	CHECK_EQ(unlink(path), 0);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_ERR(gmem_qmp_connect(path, &qmp), -EPROTOTYPE);
	close(fd);
	CHECK_EQ(unlink(path), 0);
	CHECK_EQ(rmdir(dir), 0);
	memset(longer, 'x', sizeof(longer));
	longer[sizeof(longer) - 1] = '\0';
	CHECK_ERR(gmem_qmp_connect(longer, &qmp), -ENAMETOOLONG);
}
