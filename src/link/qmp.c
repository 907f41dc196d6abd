/* SPDX-License-Identifier: MIT */
#include "link/qmp.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"

#define GREETING_TIMEOUT_MS 5000
#define GREETING_MAX (64u << 10)
#define LINE_MAX_BYTES (16u << 20)
#define COMMAND_TIMEOUT_MS 60000
#define EVENTS_KEPT 256

struct gmem_qmp {
	int fd;
	int timeout_ms;
	unsigned int id; /* of the last command: an answer that came too late for its own must not be taken for ours */
	pid_t pid;
	char *name;
	char *buf;
	size_t have, cap;
	size_t scanned; /* bytes of buf known to hold no newline */
	size_t line_max;
	json_t *events;
	struct gmem_qmp_version version;
};

static int wait_fd(struct gmem_qmp *qmp, short events, int64_t deadline)
{
	struct pollfd pfd = { .fd = qmp->fd, .events = events };
	int64_t left;
	int n;

	do {
		left = deadline - (int64_t)gmem_now_ms();
		if (left < 0)
			left = 0;
		n = poll(&pfd, 1, left > INT_MAX ? INT_MAX : (int)left);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}

/* More bytes into the buffer. 0, -ETIMEDOUT, -ECONNRESET, -EPROTO (line too long). */
static int fill_buf(struct gmem_qmp *qmp, int64_t deadline)
{
	ssize_t n;
	int r;

	if (qmp->have >= qmp->line_max)
		return -EPROTO;
	if (qmp->have == qmp->cap) {
		size_t cap = qmp->cap ? qmp->cap * 2 : 16384;
		char *buf = realloc(qmp->buf, cap);

		if (!buf)
			return -ENOMEM;
		qmp->buf = buf;
		qmp->cap = cap;
	}
	for (;;) {
		n = recv(qmp->fd, qmp->buf + qmp->have, qmp->cap - qmp->have, MSG_DONTWAIT);
		if (n > 0) {
			qmp->have += (size_t)n;
			return 0;
		}
		if (!n)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return errno == EPIPE ? -ECONNRESET : -errno;
		r = wait_fd(qmp, POLLIN, deadline);
		if (r)
			return r;
	}
}

/* The next message. As fill_buf(), and -EBADMSG for a line that is not a JSON object. */
static int read_message(struct gmem_qmp *qmp, int64_t deadline, json_t **ret)
{
	json_error_t jerr;
	json_t *msg;
	size_t len;
	char *nl;
	int r;

	for (;;) {
		nl = qmp->have > qmp->scanned ? memchr(qmp->buf + qmp->scanned, '\n', qmp->have - qmp->scanned) : NULL;
		if (nl)
			break;
		qmp->scanned = qmp->have;
		r = fill_buf(qmp, deadline);
		if (r)
			return r;
	}
	len = (size_t)(nl - qmp->buf);
	msg = json_loadb(qmp->buf, len, 0, &jerr);
	qmp->have -= len + 1;
	memmove(qmp->buf, nl + 1, qmp->have);
	qmp->scanned = 0;
	if (!json_is_object(msg)) {
		json_decref(msg);
		return -EBADMSG;
	}
	*ret = msg;
	return 0;
}

static void keep_event(struct gmem_qmp *qmp, json_t *msg)
{
	if (json_array_size(qmp->events) >= EVENTS_KEPT)
		json_array_remove(qmp->events, 0);
	json_array_append_new(qmp->events, msg);
}

static int send_all(struct gmem_qmp *qmp, const char *data, size_t len, int pass_fd, int64_t deadline)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	ssize_t n;
	int r;

	while (len) {
		struct iovec iov = { .iov_base = (char *)data, .iov_len = len };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

		if (pass_fd >= 0) {
			struct cmsghdr *c;

			memset(&control, 0, sizeof(control));
			mh.msg_control = control.buf;
			mh.msg_controllen = sizeof(control.buf);
			c = CMSG_FIRSTHDR(&mh);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
		}
		n = sendmsg(qmp->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			data += n;
			len -= (size_t)n;
			pass_fd = -1;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			return errno == EPIPE ? -ECONNRESET : -errno;
		r = wait_fd(qmp, POLLOUT, deadline);
		if (r)
			return r;
	}
	return 0;
}

static int say_failed(struct gmem_qmp *qmp, int r, const char *command)
{
	switch (r) {
	case -ETIMEDOUT:
		return gmem_err(r, "%s: QEMU did not answer '%s' within %d seconds", qmp->name, command,
				qmp->timeout_ms / 1000);
	case -ECONNRESET:
		return gmem_err(r, "%s: QEMU closed the connection during '%s' (has it ended?)", qmp->name, command);
	case -EPROTO:
		return gmem_err(r, "%s: an answer to '%s' longer than %u MiB: this is not QEMU's control monitor",
				qmp->name, command, LINE_MAX_BYTES >> 20);
	case -EBADMSG:
		return gmem_err(-EPROTO, "%s: the answer to '%s' is not JSON: this is not QEMU's control monitor",
				qmp->name, command);
	default:
		return gmem_err_sys(r, "%s: '%s'", qmp->name, command);
	}
}

static int say_remote(struct gmem_qmp *qmp, const char *command, json_t *error)
{
	const char *class = json_string_value(json_object_get(error, "class"));
	const char *desc = json_string_value(json_object_get(error, "desc"));

	if (!desc)
		desc = "no reason given";
	if (class && !strcmp(class, "CommandNotFound"))
		return gmem_err(-EOPNOTSUPP, "%s: this QEMU has no command '%s'", qmp->name, command);
	if (class && strcmp(class, "GenericError"))
		return gmem_err(-EREMOTEIO, "%s: QEMU refused '%s': %s (%s)", qmp->name, command, desc, class);
	return gmem_err(-EREMOTEIO, "%s: QEMU refused '%s': %s", qmp->name, command, desc);
}

static int await_answer(struct gmem_qmp *qmp, const char *command, int64_t deadline, json_t **ret)
{
	json_t *msg, *value, *id;
	int r;

	for (;;) {
		r = read_message(qmp, deadline, &msg);
		if (r)
			return say_failed(qmp, r, command);
		if (json_object_get(msg, "event")) {
			keep_event(qmp, msg);
			continue;
		}
		id = json_object_get(msg, "id");
		if (id && json_integer_value(id) != (json_int_t)qmp->id) {
			json_decref(msg);
			continue;
		}
		value = json_object_get(msg, "error");
		if (value) {
			r = say_remote(qmp, command, value);
			json_decref(msg);
			return r;
		}
		value = json_object_get(msg, "return");
		if (!value) {
			json_decref(msg);
			return say_failed(qmp, -EBADMSG, command);
		}
		if (ret)
			*ret = json_incref(value);
		json_decref(msg);
		return 0;
	}
}

static int exec_fd(struct gmem_qmp *qmp, const char *command, json_t *args, int pass_fd, json_t **ret)
{
	int64_t deadline = (int64_t)gmem_now_ms() + qmp->timeout_ms;
	json_t *msg;
	char *text;
	size_t len;
	int r;

	msg = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)++qmp->id);
	if (args && msg)
		json_object_set_new(msg, "arguments", args);
	else
		json_decref(args);
	text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
	json_decref(msg);
	if (!text)
		return gmem_err(-ENOMEM, "%s: '%s': out of memory, or arguments that are not UTF-8", qmp->name,
				command);
	len = strlen(text);
	text[len] = '\n'; /* in place of the terminator: the line goes out in one message with its descriptor */
	r = send_all(qmp, text, len + 1, pass_fd, deadline);
	free(text);
	if (r)
		return say_failed(qmp, r, command);
	return await_answer(qmp, command, deadline, ret);
}

int gmem_qmp_exec(struct gmem_qmp *qmp, const char *command, json_t *args, json_t **ret)
{
	return exec_fd(qmp, command, args, -1, ret);
}

int gmem_qmp_execf(struct gmem_qmp *qmp, json_t **ret, const char *command, const char *fmt, ...)
{
	json_error_t jerr;
	json_t *args;
	va_list ap;

	va_start(ap, fmt);
	args = json_vpack_ex(&jerr, 0, fmt, ap);
	va_end(ap);
	if (!args)
		return gmem_err(-EINVAL, "%s: '%s': bad arguments: %s", qmp->name, command, jerr.text);
	return exec_fd(qmp, command, args, -1, ret);
}

int gmem_qmp_getfd(struct gmem_qmp *qmp, const char *name, int fd)
{
	return exec_fd(qmp, "getfd", json_pack("{s:s}", "fdname", name), fd, NULL);
}

int gmem_qmp_hmp(struct gmem_qmp *qmp, const char *line, char **ret)
{
	json_t *value;
	char *text;
	int r;

	r = gmem_qmp_execf(qmp, &value, "human-monitor-command", "{s:s}", "command-line", line);
	if (r)
		return r;
	text = json_is_string(value) ? strdup(json_string_value(value)) : NULL;
	json_decref(value);
	if (!text)
		return gmem_err(-EPROTO, "%s: '%s': the answer is not a string", qmp->name, line);
	*ret = text;
	return 0;
}

int gmem_qmp_wait_event(struct gmem_qmp *qmp, const char *name, int timeout_ms, json_t **ret)
{
	int64_t deadline = (int64_t)gmem_now_ms() + timeout_ms;
	const char *event;
	json_t *msg;
	size_t i = 0;
	int r;

	for (;;) {
		for (; i < json_array_size(qmp->events); i++) {
			msg = json_array_get(qmp->events, i);
			event = json_string_value(json_object_get(msg, "event"));
			if (!event || strcmp(event, name))
				continue;
			if (ret)
				*ret = json_incref(msg);
			json_array_remove(qmp->events, i);
			return 0;
		}
		r = read_message(qmp, deadline, &msg);
		if (r == -ETIMEDOUT)
			return gmem_err(r, "%s: no event %s from QEMU within %d ms", qmp->name, name, timeout_ms);
		if (r)
			return say_failed(qmp, r, name);
		if (!json_object_get(msg, "event")) {
			json_decref(msg);
			continue;
		}
		keep_event(qmp, msg);
		i = json_array_size(qmp->events) - 1;
	}
}

int gmem_qmp_wait_close(struct gmem_qmp *qmp, int timeout_ms)
{
	int64_t deadline = (int64_t)gmem_now_ms() + timeout_ms;
	json_t *msg;
	int r;

	for (;;) {
		r = read_message(qmp, deadline, &msg);
		if (!r)
			json_decref(msg);
		else if (r == -ECONNRESET)
			return 0;
		else if (r != -EBADMSG)
			return gmem_err(r, "%s: QEMU did not end within %d seconds", qmp->name, timeout_ms / 1000);
	}
}

static int read_greeting(struct gmem_qmp *qmp)
{
	json_t *msg = NULL;
	int r;

	qmp->line_max = GREETING_MAX;
	r = read_message(qmp, (int64_t)gmem_now_ms() + GREETING_TIMEOUT_MS, &msg);
	qmp->line_max = LINE_MAX_BYTES;
	if (r == -ETIMEDOUT)
		return gmem_err(r,
				"%s: connected, but no greeting within %d seconds: another client holds this monitor; "
				"give QEMU a "
				"second -qmp socket, or close the other client",
				qmp->name, GREETING_TIMEOUT_MS / 1000);
	if (r == -ECONNRESET)
		return gmem_err(
			r, "%s: closed by the other side before its greeting: not a running QEMU's control monitor",
			qmp->name);
	if (!r && json_unpack(msg, "{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu", "major",
			      &qmp->version.major, "minor", &qmp->version.minor, "micro", &qmp->version.micro))
		r = -EBADMSG;
	json_decref(msg);
	if (r == -EBADMSG || r == -EPROTO)
		return gmem_err(
			-EPROTO,
			"%s: does not speak QMP: give the socket of QEMU's -qmp option (not of -monitor or -serial)",
			qmp->name);
	if (r)
		return gmem_err_sys(r, "%s: reading the greeting", qmp->name);
	return gmem_qmp_exec(qmp, "qmp_capabilities", NULL, NULL);
}

int gmem_qmp_attach(int fd, const char *name, struct gmem_qmp **ret)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct gmem_qmp *qmp;
	int r;

	qmp = calloc(1, sizeof(*qmp));
	if (!qmp) {
		close(fd);
		return gmem_err(-ENOMEM, "%s: out of memory", name);
	}
	qmp->fd = fd;
	qmp->timeout_ms = COMMAND_TIMEOUT_MS;
	qmp->name = strdup(name);
	qmp->events = json_array();
	if (!qmp->name || !qmp->events) {
		r = gmem_err(-ENOMEM, "%s: out of memory", name);
		goto out_close;
	}
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		qmp->pid = cred.pid;
	r = read_greeting(qmp);
	if (r)
		goto out_close;
	*ret = qmp;
	return 0;

out_close:
	gmem_qmp_close(qmp);
	return r;
}

void gmem_qmp_close(struct gmem_qmp *qmp)
{
	if (!qmp)
		return;
	close(qmp->fd);
	json_decref(qmp->events);
	free(qmp->buf);
	free(qmp->name);
	free(qmp);
}

void gmem_qmp_set_timeout(struct gmem_qmp *qmp, int ms)
{
	qmp->timeout_ms = ms;
}

const struct gmem_qmp_version *gmem_qmp_version(const struct gmem_qmp *qmp)
{
	return &qmp->version;
}

const char *gmem_qmp_name(const struct gmem_qmp *qmp)
{
	return qmp->name;
}

pid_t gmem_qmp_peer_pid(const struct gmem_qmp *qmp)
{
	return qmp->pid;
}
