/* SPDX-License-Identifier: MIT */
/*
 * A program's side of gmem's own attach (gmem-serve-protocol(7)): one message, one answer. The views are registered
 * before, so that nobody can touch them in between and be told zero.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/opts.h"
#include "fault/serve_view.h"
#include "file/file.h"
#include "gmem.h"
#include "link/serve/hello.h"
#include "sys/uffd.h"

#define WHO "gmem_service_attach"
#define TIMEOUT_MS 30000u
#define ANSWER_LEN 8192u /* no service says more */

struct attach {
	const struct gmem_service_attach_opts *opts;
	const struct gmem_service_view *views;
	size_t n, registered;
	struct gmem_file *file;
	struct gmem_serving *servings; /* of each view */
	int uffds[GMEM_HELLO_MAX_UFFDS];
	uint32_t nuffds;
	bool user_mode_only;
	int sock;
	int64_t deadline_ms; /* of the monotonic clock; INT64_MAX: none */
	char answer[ANSWER_LEN];
	size_t answer_len;
};

/* The errors of having no answer, after which nobody knows whether the views are served. */
static bool in_doubt(int err)
{
	return err == -ETIMEDOUT || err == -ECONNRESET || err == -EPROTO;
}

/* ---- Views. */

static int open_uffds(struct attach *a)
{
	bool huge = a->file->page_size > GMEM_PAGE_SIZE;
	uint64_t features = huge ? UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS :
				   UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
	uint32_t n = a->opts->uffds ? a->opts->uffds : 1;

	for (n = (uint32_t)gmem_min_u64(n, a->n); a->nuffds < n; a->nuffds++) {
		int fd = gmem_sys_uffd_open(features, &a->user_mode_only);

		if (fd < 0)
			return gmem_err_sys(fd, WHO ": userfaultfd (see gmem info)");
		a->uffds[a->nuffds] = fd;
	}
	return 0;
}

/* From here on their touchers wait. */
static int register_views(struct attach *a)
{
	int err = 0;

	gmem_rwlock_lock(&a->file->invalidate_lock);
	while (a->registered < a->n && !err) {
		struct gmem_serving *s = &a->servings[a->registered];

		*s = (struct gmem_serving){
			.who = WHO,
			.use = GMEM_VIEW_BALLOONED,
			.uffd = a->uffds[a->registered % a->nuffds],
		};
		err = gmem_serve_view(a->views[a->registered].view, s);
		if (!err)
			a->registered++;
	}
	gmem_rwlock_unlock(&a->file->invalidate_lock);
	return err;
}

static void unregister_views(struct attach *a)
{
	gmem_rwlock_lock(&a->file->invalidate_lock);
	while (a->registered > 0) {
		a->registered--;
		gmem_unserve_view(a->views[a->registered].view, &a->servings[a->registered]);
	}
	gmem_rwlock_unlock(&a->file->invalidate_lock);
}

/* ---- The message. */

static json_t *region_json(const struct attach *a, size_t i)
{
	const struct gmem_view *view = a->views[i].view;

	return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "base_host_virt_addr", (json_int_t)(uintptr_t)view->addr, "size",
			 (json_int_t)view->len, "offset", (json_int_t)a->views[i].source_off, "file_offset",
			 (json_int_t)view->off, "page_size", (json_int_t)a->file->page_size, "uffd",
			 (json_int_t)(i % a->nuffds));
}

static char *message(const struct attach *a)
{
	const struct gmem_service_attach_opts *o = a->opts;
	json_t *regions = json_array(), *root;
	char *text = NULL;

	for (size_t i = 0; regions && i < a->n; i++) {
		if (json_array_append_new(regions, region_json(a, i))) {
			json_decref(regions);
			regions = NULL;
		}
	}
	root = regions ? json_pack("{s:i,s:s*,s:s*,s:b,s:o}", "gmem", 1, "source", o->source, "name", o->name,
				   "user_mode_only", (int)a->user_mode_only, "regions", regions) :
			 NULL;
	if (root)
		text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	return text;
}

/* Waits until the socket is ready for it, at most until the deadline. */
static int wait_for(struct attach *a, short events)
{
	for (;;) {
		struct pollfd p = { .fd = a->sock, .events = events };
		int64_t left = a->deadline_ms == INT64_MAX ? INT_MAX : a->deadline_ms - (int64_t)gmem_now_ms();
		int n;

		if (left < 0)
			return gmem_err(-ETIMEDOUT, WHO ": the service does not answer");
		n = poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return gmem_err_sys(-errno, WHO ": poll");
	}
}

/* Of the whole message, the descriptors go with its first byte. */
static int send_part(struct attach *a, const char *bytes, size_t len, const int *fds, size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * GMEM_HELLO_MAX_FDS)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;
	int err;

	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	do {
		err = wait_for(a, POLLOUT);
		if (err)
			return err;
		n = sendmsg(a->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK));
	return n >= 0 ? (int)n : errno == EPIPE ? -ECONNRESET : -errno;
}

static int send_message(struct attach *a)
{
	int fds[GMEM_HELLO_MAX_FDS];
	size_t nfds = a->nuffds, at = 0, len;
	char *text = message(a);
	int n = 0;

	if (!text)
		return gmem_err_sys(-ENOMEM, WHO);
	memcpy(fds, a->uffds, nfds * sizeof(int));
	fds[nfds++] = a->file->fd;
	fds[nfds++] = a->file->state.fd;
	for (len = strlen(text); at < len && n >= 0; at += n > 0 ? (size_t)n : 0)
		n = send_part(a, text + at, len - at, fds, at ? 0 : nfds);
	free(text);
	/* One that refuses it may have done so before the end, and have said why. */
	if (n == -ECONNRESET)
		return 0;
	if (n < 0 && n != -ETIMEDOUT)
		gmem_err_sys(n, WHO ": sending");
	return n < 0 ? n : 0;
}

/* One line. */
static int read_answer(struct attach *a)
{
	while (!memchr(a->answer, '\n', a->answer_len)) {
		ssize_t n;
		int err;

		if (a->answer_len == ANSWER_LEN)
			return gmem_err(-EPROTO, WHO ": that is no service of gmem's");
		err = wait_for(a, POLLIN);
		if (err)
			return err;
		n = recv(a->sock, a->answer + a->answer_len, ANSWER_LEN - a->answer_len, MSG_DONTWAIT);
		if (n > 0)
			a->answer_len += (size_t)n;
		else if (!n || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK))
			return gmem_err(-ECONNRESET, WHO ": the service hung up without an answer");
	}
	return 0;
}

static int understand(struct attach *a)
{
	size_t len = (size_t)((char *)memchr(a->answer, '\n', a->answer_len) - a->answer);
	json_t *root = json_loadb(a->answer, len, JSON_REJECT_DUPLICATES, NULL);
	const char *text = json_string_value(json_object_get(root, "text"));
	json_int_t error = json_integer_value(json_object_get(root, "error"));
	int err;

	if (json_is_true(json_object_get(root, "ok")))
		err = 0;
	else if (!json_is_false(json_object_get(root, "ok")) || error <= 0 || error > 4095)
		err = gmem_err(-EPROTO, WHO ": an answer that is none");
	else if (in_doubt(-(int)error))
		/* A word of the service's; ours means that there was none. */
		err = gmem_err(-EREMOTEIO, WHO ": the service: %s", text ? text : "no");
	else
		err = gmem_err(-(int)error, WHO ": the service: %s", text ? text : "no");
	json_decref(root);
	return err;
}

static int dial(struct attach *a, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int64_t left = a->deadline_ms - (int64_t)gmem_now_ms();
	/* Zero would be for ever. */
	struct timeval patience = { .tv_sec = left > 0 ? left / 1000 : 0,
				    .tv_usec = left > 0 ? left % 1000 * 1000 : 1 };
	int r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return gmem_err(-EINVAL, WHO ": socket path of %zu bytes: at most %zu", strlen(path),
				sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	a->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (a->sock < 0)
		return gmem_err_sys(-errno, WHO ": socket");
	/* Of connect(2) too, which waits while too many others do. */
	if (a->deadline_ms < INT64_MAX && setsockopt(a->sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)))
		return gmem_err_sys(-errno, WHO ": socket");
	do {
		r = connect(a->sock, (struct sockaddr *)&addr, sizeof(addr));
	} while (r && errno == EINTR);
	return r ? gmem_err_sys(-errno, WHO ": %s", path) : 0;
}

/* ---- The call. */

static int check_name(const char *what, const char *name)
{
	if (name && strlen(name) > GMEM_HELLO_MAX_NAME)
		return gmem_err(-EINVAL, WHO ": %s of %zu bytes: at most %u", what, strlen(name), GMEM_HELLO_MAX_NAME);
	for (; name && *name; name++)
		if (*name < ' ' || *name > '~')
			return gmem_err(-EINVAL, WHO ": %s is not printable ASCII", what);
	return 0;
}

static int check(const struct attach *a)
{
	int err;

	if (!gmem_opts_valid(a->opts, a->opts->size, sizeof(*a->opts)))
		return gmem_err(-EINVAL, WHO ": opts->size %zu", a->opts->size);
	if (!a->n || a->n > GMEM_HELLO_MAX_REGIONS)
		return gmem_err(-EINVAL, WHO ": %zu views: 1 to %u", a->n, GMEM_HELLO_MAX_REGIONS);
	if (a->opts->uffds > GMEM_HELLO_MAX_UFFDS)
		return gmem_err(-EINVAL, WHO ": %u descriptors: at most %u", a->opts->uffds, GMEM_HELLO_MAX_UFFDS);
	for (size_t i = 0; i < a->n; i++) {
		const struct gmem_service_view *v = &a->views[i];

		if (v->view->file != a->file)
			return gmem_err(-EINVAL, WHO ": view %zu is of another file than the first", i);
		if (v->source_off % a->file->page_size)
			return gmem_err(-EINVAL, WHO ": source_off 0x%llx: not aligned",
					(unsigned long long)v->source_off);
	}
	err = check_name("source", a->opts->source);
	return err ? err : check_name("name", a->opts->name);
}

static int check_file(struct gmem_file *file)
{
	if (!gmem_file_ours(file))
		return gmem_err(-EIO, WHO ": this file was opened before fork()");
	if (file->engine != GMEM_ENGINE_USER)
		return gmem_err(-EOPNOTSUPP, WHO ": a guest_memfd, which takes no userfaults");
	/* The service opens the memory too; a conversion before that would wait for it to read of removals. */
	if (gmem_state_claim(&file->state, GMEM_USE_KEEPER))
		return gmem_err(-EBUSY, WHO ": this memory has, or had, private pages");
	return 0;
}

static int attach(struct attach *a, const char *path)
{
	int err = check_file(a->file);

	/* First what can fail without having changed anything. */
	if (!err)
		err = dial(a, path);
	if (!err)
		err = open_uffds(a);
	if (!err)
		err = register_views(a);
	if (!err)
		err = send_message(a);
	if (!err)
		err = read_answer(a);
	return err ? err : understand(a);
}

int gmem_service_attach(const char *path, const struct gmem_service_attach_opts *opts,
			const struct gmem_service_view *views, size_t n)
{
	static const struct gmem_service_attach_opts none = { .size = sizeof(none) };
	struct attach *a = calloc(1, sizeof(*a));
	unsigned int ms;
	int err;

	if (!a)
		return gmem_err_sys(-ENOMEM, WHO);
	a->opts = opts ? opts : &none;
	a->views = views;
	a->n = n;
	a->file = n ? views[0].view->file : NULL;
	a->sock = -1;
	err = check(a);
	if (err)
		goto out_free;
	a->servings = calloc(n, sizeof(*a->servings));
	if (!a->servings) {
		err = gmem_err_sys(-ENOMEM, WHO);
		goto out_free;
	}
	ms = a->opts->timeout_ms ? a->opts->timeout_ms : TIMEOUT_MS;
	a->deadline_ms = ms == UINT_MAX ? INT64_MAX : (int64_t)gmem_now_ms() + ms;
	err = attach(a, path);
	/* Then the service has let go of them, or has never seen them. */
	if (err && !in_doubt(err))
		unregister_views(a);
	for (uint32_t i = 0; i < a->nuffds; i++)
		close(a->uffds[i]);
	if (a->sock >= 0)
		close(a->sock);
out_free:
	free(a->servings);
	free(a);
	return err;
}
