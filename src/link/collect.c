/* SPDX-License-Identifier: MIT */
/* What a running QEMU tells of itself, and whether another one is enough like it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "gmem.h"
#include "link/saved.h"

static int say_proc(pid_t pid, int r, const char *what)
{
	if (r == -ENOENT || r == -ESRCH)
		return gmem_err(-ESRCH, "process %d: there is none", (int)pid);
	if (r == -EACCES || r == -EPERM)
		return gmem_err(-EACCES, "process %d belongs to another user: run gmem as that user, or as root",
				(int)pid);
	return gmem_err_sys(r, "process %d: %s", (int)pid, what);
}

/* A whole file of /proc, with a NUL behind it. */
static int read_proc(pid_t pid, const char *name, char **ret, size_t *ret_len)
{
	size_t len = 0, cap = 0;
	char path[64], *buf = NULL, *nbuf;
	ssize_t n;
	int fd, r = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return say_proc(pid, -errno, name);
	for (;;) {
		if (len + 1 >= cap) {
			cap = cap ? cap * 2 : 4096;
			nbuf = realloc(buf, cap);
			if (!nbuf) {
				r = gmem_err(-ENOMEM, "gmem_saved: out of memory");
				break;
			}
			buf = nbuf;
		}
		n = read(fd, buf + len, cap - len - 1);
		if (n < 0) {
			r = say_proc(pid, -errno, name);
			break;
		}
		if (!n)
			break;
		len += (size_t)n;
	}
	close(fd);
	if (r) {
		free(buf);
		return r;
	}
	buf[len] = '\0';
	*ret = buf;
	*ret_len = len;
	return 0;
}

static int collect_argv(struct gmem_saved *saved, pid_t pid)
{
	size_t len, i, n = 0;
	char *buf, *p;
	int r;

	r = read_proc(pid, "cmdline", &buf, &len);
	if (r)
		return r;
	for (i = 0; i < len; i++)
		n += !buf[i];
	if (n)
		saved->argv = calloc(n + 1, sizeof(*saved->argv));
	for (p = buf; saved->argv && saved->argc < n; p += strlen(p) + 1) {
		saved->argv[saved->argc] = strdup(p);
		if (!saved->argv[saved->argc])
			break;
		saved->argc++;
	}
	free(buf);
	if (!n)
		return gmem_err(-ESRCH, "process %d has ended, or is not a QEMU", (int)pid);
	return saved->argc == n ? 0 : gmem_err(-ENOMEM, "gmem_saved: out of memory");
}

/* A daemonized QEMU has moved to /; relative paths on its command line count from where it was started, which its PWD
 * still says. */
static int collect_cwd(struct gmem_saved *saved, pid_t pid)
{
	char path[48], buf[PATH_MAX], *env, *p;
	bool daemonized = false;
	size_t len, i;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cwd", (int)pid);
	n = readlink(path, buf, sizeof(buf) - 1);
	if (n < 0)
		return say_proc(pid, -errno, "cwd");
	buf[n] = '\0';
	for (i = 1; i < saved->argc; i++)
		daemonized |= !strcmp(saved->argv[i], "-daemonize") || !strcmp(saved->argv[i], "--daemonize");
	if (daemonized && !strcmp(buf, "/") && !read_proc(pid, "environ", &env, &len)) {
		for (p = env; p < env + len; p += strlen(p) + 1)
			if (!strncmp(p, "PWD=/", 5) && strlen(p + 4) < sizeof(buf))
				strcpy(buf, p + 4);
		free(env);
	}
	saved->cwd = strdup(buf);
	return saved->cwd ? 0 : gmem_err(-ENOMEM, "gmem_saved: out of memory");
}

static int qom_type(struct gmem_qmp *qmp, const char *path, const char *suffix, char **ret)
{
	const char *text;
	size_t len, tail = strlen(suffix);
	json_t *v;
	int r;

	r = gmem_qmp_execf(qmp, &v, "qom-get", "{s:s, s:s}", "path", path, "property", "type");
	if (r)
		return r;
	text = json_string_value(v);
	len = text ? strlen(text) : 0;
	if (len > tail && !strcmp(text + len - tail, suffix))
		len -= tail;
	*ret = text ? strndup(text, len) : NULL;
	json_decref(v);
	return *ret ? 0 : gmem_err(-EPROTO, "%s: QEMU does not tell the type of %s", gmem_qmp_name(qmp), path);
}

static int collect_accel(struct gmem_qmp *qmp, char **ret)
{
	json_t *v;
	int r;

	r = gmem_qmp_exec(qmp, "query-kvm", NULL, &v);
	if (r == -EOPNOTSUPP)
		v = NULL;
	else if (r)
		return r;
	*ret = strdup(json_is_true(json_object_get(v, "enabled")) ? "kvm" : "tcg");
	json_decref(v);
	return *ret ? 0 : gmem_err(-ENOMEM, "gmem_saved: out of memory");
}

static int collect_cpu(struct gmem_qmp *qmp, char **ret)
{
	const char *path;
	json_t *v;
	int r;

	r = gmem_qmp_exec(qmp, "query-cpus-fast", NULL, &v);
	if (r)
		return r;
	path = json_string_value(json_object_get(json_array_get(v, 0), "qom-path"));
	r = path ? qom_type(qmp, path, "-cpu", ret) : 0;
	json_decref(v);
	if (!r && !path) {
		*ret = strdup("");
		r = *ret ? 0 : gmem_err(-ENOMEM, "gmem_saved: out of memory");
	}
	return r;
}

int gmem_saved_collect(struct gmem_qmp *qmp, pid_t pid, struct gmem_saved **ret)
{
	struct gmem_saved *saved;
	int r;

	saved = calloc(1, sizeof(*saved));
	if (!saved)
		return gmem_err(-ENOMEM, "gmem_saved: out of memory");
	saved->version = *gmem_qmp_version(qmp);
	r = collect_argv(saved, pid);
	if (!r)
		r = collect_cwd(saved, pid);
	if (!r)
		r = qom_type(qmp, "/machine", "-machine", &saved->machine);
	if (!r)
		r = collect_accel(qmp, &saved->accel);
	if (!r)
		r = collect_cpu(qmp, &saved->cpu);
	if (!r && asprintf(&saved->saved_by, "gmem %s", gmem_version()) < 0)
		r = gmem_err(-ENOMEM, "gmem_saved: out of memory");
	if (r) {
		gmem_saved_free(saved);
		return r;
	}
	*ret = saved;
	return 0;
}

int gmem_saved_check(struct gmem_qmp *qmp, const struct gmem_saved *saved)
{
	const struct gmem_qmp_version *now = gmem_qmp_version(qmp), *was = &saved->version;
	char *machine = NULL, *accel = NULL;
	int r;

	if (now->major < was->major || (now->major == was->major && now->minor < was->minor))
		return gmem_err(-EPROTONOSUPPORT,
				"this QEMU is %d.%d, the machine was saved by %d.%d: use that version or a newer one",
				now->major, now->minor, was->major, was->minor);
	r = qom_type(qmp, "/machine", "-machine", &machine);
	if (!r)
		r = collect_accel(qmp, &accel);
	if (!r && strcmp(machine, saved->machine))
		r = gmem_err(-EMEDIUMTYPE, "this machine is a %s, the saved one a %s: leave out the other -machine",
			     machine, saved->machine);
	if (!r && strcmp(accel, saved->accel))
		r = gmem_err(-EMEDIUMTYPE, "this QEMU runs under %s, the machine was saved under %s: give -accel %s",
			     accel, saved->accel, saved->accel);
	free(machine);
	free(accel);
	return r;
}
