/* SPDX-License-Identifier: MIT */
#include "link/device_state.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "gmem.h"
#include "link/qmp.h"

#define STALL_MS 60000 /* no byte for this long: given up */
#define FD_NAME "gmem-state"

static void pause_us(long us)
{
	struct timespec ts = { .tv_nsec = us * 1000 };

	nanosleep(&ts, NULL);
}

int gmem_device_state_stop(struct gmem_qmp *qmp, struct gmem_device_state *state)
{
	const char *status;
	json_t *info;
	int r;

	if (!state->caps)
		*state = (struct gmem_device_state){ .bandwidth = -1 };
	r = gmem_qmp_exec(qmp, "query-status", NULL, &info);
	if (r)
		return r;
	status = json_string_value(json_object_get(info, "status"));
	strncpy(state->status, status ? status : "?", sizeof(state->status) - 1);
	json_decref(info);
	if (!strcmp(state->status, "postmigrate"))
		return gmem_err(
			-EBUSY,
			"the machine is stopped after an earlier save or migration: let it go on first (QMP cont)");
	if (!strcmp(state->status, "inmigrate"))
		return gmem_err(-EBUSY, "the machine waits for an incoming migration and has no state yet");
	state->was_running = !strcmp(state->status, "running");
	if (!state->was_running && strcmp(state->status, "paused") && strcmp(state->status, "prelaunch"))
		return gmem_err(-EBUSY, "the machine is neither running nor paused but in state '%s'", state->status);
	state->stop_ns = gmem_now_ns();
	r = gmem_qmp_exec(qmp, "stop", NULL, NULL);
	if (!r)
		state->stopped = true;
	return r;
}

static bool wanted(const char *capability)
{
	return !strcmp(capability, "x-ignore-shared");
}

/* Those that would make the stream something else than one plain run of bytes. */
static bool unwanted(const char *capability)
{
	static const char *const names[] = {
		"multifd",
		"postcopy-ram",
		"release-ram",
		"background-snapshot",
		"x-colo",
		"return-path",
		"pause-before-switchover",
		"mapped-ram",
		"dirty-bitmaps",
		"compress",
		"xbzrle",
		"block",
		"zero-copy-send",
		"switchover-ack",
		"rdma-pin-all",
	};
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(capability, names[i]))
			return true;
	return false;
}

static int set_caps(struct gmem_qmp *qmp, json_t *list)
{
	if (!json_array_size(list))
		return 0;
	return gmem_qmp_execf(qmp, NULL, "migrate-set-capabilities", "{s:O}", "capabilities", list);
}

int gmem_device_state_caps(struct gmem_qmp *qmp, bool shared, json_t **ret_back)
{
	json_t *now, *item, *set, *back;
	bool known = false;
	size_t i;
	int r;

	r = gmem_qmp_exec(qmp, "query-migrate-capabilities", NULL, &now);
	if (r)
		return r;
	set = json_array();
	back = json_array();
	json_array_foreach(now, i, item) {
		const char *name = json_string_value(json_object_get(item, "capability"));
		bool on = json_is_true(json_object_get(item, "state"));

		if (!name)
			continue;
		known |= wanted(name);
		if (wanted(name) ? on == shared : !(on && unwanted(name)))
			continue;
		json_array_append_new(set, json_pack("{s:s, s:b}", "capability", name, "state", !on));
		json_array_append_new(back, json_pack("{s:s, s:b}", "capability", name, "state", on));
	}
	json_decref(now);
	if (!known)
		r = gmem_err(-EOPNOTSUPP,
			     "%s: this QEMU has no migration capability x-ignore-shared: 4.0 or newer is needed",
			     gmem_qmp_name(qmp));
	if (!r)
		r = set_caps(qmp, set);
	json_decref(set);
	if (r)
		json_decref(back);
	else
		*ret_back = back;
	return r;
}

/* QEMU's default is 128 MiB/s, which is for networks. */
void gmem_device_state_lift_bandwidth(struct gmem_qmp *qmp, struct gmem_device_state *state)
{
	json_t *params, *bw;

	if (gmem_qmp_exec(qmp, "query-migrate-parameters", NULL, &params))
		return;
	bw = json_object_get(params, "max-bandwidth");
	if (json_is_integer(bw) &&
	    !gmem_qmp_execf(qmp, NULL, "migrate-set-parameters", "{s:I}", "max-bandwidth", (json_int_t)1 << 40))
		state->bandwidth = json_integer_value(bw);
	json_decref(params);
}

int gmem_device_state_prepare(struct gmem_qmp *qmp, struct gmem_device_state *state)
{
	int r;

	*state = (struct gmem_device_state){ .bandwidth = -1 };
	r = gmem_device_state_caps(qmp, true, &state->caps);
	if (!r)
		gmem_device_state_lift_bandwidth(qmp, state);
	return r;
}

static int migrate_status(struct gmem_qmp *qmp, bool *ret_done)
{
	const char *status, *desc;
	json_t *info;
	int r = 0;

	r = gmem_qmp_exec(qmp, "query-migrate", NULL, &info);
	if (r)
		return r;
	status = json_string_value(json_object_get(info, "status"));
	desc = json_string_value(json_object_get(info, "error-desc"));
	*ret_done = status && !strcmp(status, "completed");
	if (status && (!strcmp(status, "failed") || !strcmp(status, "cancelled")))
		r = gmem_err(-EREMOTEIO, "%s: QEMU could not %s: %s", gmem_qmp_name(qmp), "move the machine's state",
			     desc ? desc : status);
	json_decref(info);
	return r;
}

int gmem_device_state_wait(struct gmem_qmp *qmp)
{
	uint64_t deadline = gmem_now_ns() + STALL_MS * 1000000ull;
	long step = 100;
	bool done = false;
	int r;

	for (;;) {
		r = migrate_status(qmp, &done);
		if (r || done)
			return r;
		if (gmem_now_ns() > deadline)
			return gmem_err(-ETIMEDOUT, "%s: QEMU did not complete its state within %d seconds",
					gmem_qmp_name(qmp), STALL_MS / 1000);
		pause_us(step);
		if (step < 5000)
			step *= 2;
	}
}

static int grow(char **buf, size_t *cap, size_t len)
{
	size_t ncap = *cap;
	char *nbuf;

	if (len < *cap)
		return 0;
	ncap = ncap ? ncap * 2 : 1u << 20;
	nbuf = realloc(*buf, ncap);
	if (!nbuf)
		return gmem_err(-ENOMEM, "device state: out of memory");
	*buf = nbuf;
	*cap = ncap;
	return 0;
}

static int read_stream(struct gmem_qmp *qmp, int fd, char **ret, size_t *ret_len)
{
	size_t len = 0, cap = 0;
	char *buf = NULL;
	int idle = 0, r;
	bool done;

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t n;

		r = grow(&buf, &cap, len);
		if (r)
			break;
		n = poll(&pfd, 1, 500);
		if (!n) {
			idle += 500;
			r = migrate_status(qmp, &done);
			if (!r && idle >= STALL_MS)
				r = gmem_err(-ETIMEDOUT, "%s: QEMU sent no device state for %d seconds",
					     gmem_qmp_name(qmp), STALL_MS / 1000);
			if (r)
				break;
			continue;
		}
		n = n < 0 ? -1 : read(fd, buf + len, cap - len);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n < 0)
			r = gmem_err_sys(-errno, "device state: read");
		if (n <= 0)
			break;
		idle = 0;
		len += (size_t)n;
		if (len > GMEM_STATE_MAX) {
			r = gmem_err(-EFBIG,
				     "%s: QEMU sends more than %llu MiB of device state, so RAM is in it: start it "
				     "with gmem run",
				     gmem_qmp_name(qmp), GMEM_STATE_MAX >> 20);
			break;
		}
	}
	if (r) {
		free(buf);
		return r;
	}
	*ret = buf;
	*ret_len = len;
	return 0;
}

/* The machine may go on only when QEMU has let go of the stream. The error text of what went wrong is kept. */
void gmem_device_state_cancel(struct gmem_qmp *qmp, int err)
{
	uint64_t deadline = gmem_now_ns() + 5000000000ull;
	char *text = strdup(gmem_last_error());
	bool done = false;

	if (!gmem_qmp_exec(qmp, "migrate_cancel", NULL, NULL))
		while (!migrate_status(qmp, &done) && !done && gmem_now_ns() < deadline)
			pause_us(2000);
	gmem_err(err, "%s", text ? text : "device state: failed");
	free(text);
}

int gmem_device_state_take(struct gmem_qmp *qmp, struct gmem_device_state *state, void **ret, size_t *ret_len)
{
	char *buf = NULL;
	size_t len = 0;
	int p[2], r;

	/* Done before the machine was stopped, by those whom that time costs. */
	if (!state->caps) {
		r = gmem_device_state_caps(qmp, true, &state->caps);
		if (r)
			return r;
		gmem_device_state_lift_bandwidth(qmp, state);
	}
	if (pipe2(p, O_CLOEXEC))
		return gmem_err_sys(-errno, "device state: pipe");
	(void)fcntl(p[0], F_SETPIPE_SZ, 1 << 20);
	r = gmem_qmp_getfd(qmp, FD_NAME, p[1]);
	close(p[1]);
	if (!r)
		r = gmem_qmp_execf(qmp, NULL, "migrate", "{s:s}", "uri", "fd:" FD_NAME);
	if (!r) {
		r = read_stream(qmp, p[0], &buf, &len);
		if (!r)
			r = gmem_device_state_wait(qmp);
	}
	close(p[0]);
	if (r)
		gmem_device_state_cancel(qmp, r);
	if (!r && len < 8)
		r = gmem_err(-EPROTO, "%s: QEMU sent an empty device state", gmem_qmp_name(qmp));
	if (r) {
		free(buf);
		return r;
	}
	state->migrated = true;
	*ret = buf;
	*ret_len = len;
	return 0;
}

static int set_back(struct gmem_qmp *qmp, struct gmem_device_state *state)
{
	int r = 0;

	if (state->caps)
		r = set_caps(qmp, state->caps);
	if (!r && state->bandwidth >= 0)
		r = gmem_qmp_execf(qmp, NULL, "migrate-set-parameters", "{s:I}", "max-bandwidth",
				   (json_int_t)state->bandwidth);
	gmem_device_state_clear(state);
	return r;
}

/* The machine first, the settings after it: every answer waited for in between is time that the guest stands. */
int gmem_device_state_resume(struct gmem_qmp *qmp, struct gmem_device_state *state, uint64_t *ret_stopped_ns)
{
	int r;

	if (state->was_running && state->stopped) {
		r = gmem_qmp_exec(qmp, "cont", NULL, NULL);
		if (r)
			return r;
		state->stopped = false;
	}
	if (ret_stopped_ns)
		*ret_stopped_ns = gmem_now_ns() - state->stop_ns;
	return set_back(qmp, state);
}

void gmem_device_state_clear(struct gmem_device_state *state)
{
	json_decref(state->caps);
	state->caps = NULL;
	state->bandwidth = -1;
}

/* A socket and not a pipe: writing to a QEMU that has died must be an error, not SIGPIPE. */
static int write_stream(struct gmem_qmp *qmp, int fd, const char *data, size_t len)
{
	bool done;
	int r;

	while (len) {
		struct pollfd pfd = { .fd = fd, .events = POLLOUT };
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			/* QEMU closed its end: what it says of that is worth more than EPIPE. */
			r = -errno;
			return migrate_status(qmp, &done) ?: gmem_err_sys(r, "device state: write");
		}
		if (!poll(&pfd, 1, STALL_MS))
			return gmem_err(-ETIMEDOUT, "%s: QEMU took no device state for %d seconds", gmem_qmp_name(qmp),
					STALL_MS / 1000);
	}
	return 0;
}

int gmem_device_state_load(struct gmem_qmp *qmp, const void *data, size_t len, bool shared)
{
	json_t *caps, *back = NULL;
	int sv[2], size = 1 << 20, r;

	r = gmem_device_state_caps(qmp, shared, &back);
	json_decref(back);
	if (r)
		return r;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return gmem_err_sys(-errno, "device state: socketpair");
	(void)setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	r = gmem_qmp_getfd(qmp, FD_NAME, sv[1]);
	close(sv[1]);
	if (!r)
		r = gmem_qmp_execf(qmp, NULL, "migrate-incoming", "{s:s}", "uri", "fd:" FD_NAME);
	if (!r)
		r = write_stream(qmp, sv[0], data, len);
	if (!r)
		r = gmem_device_state_wait(qmp);
	close(sv[0]);
	if (r || !shared)
		return r;
	caps = json_pack("[{s:s, s:b}]", "capability", "x-ignore-shared", "state", 0);
	r = set_caps(qmp, caps);
	json_decref(caps);
	return r;
}

int gmem_device_state_cont(struct gmem_qmp *qmp)
{
	return gmem_qmp_exec(qmp, "cont", NULL, NULL);
}
