/* SPDX-License-Identifier: MIT */
#include "link/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"

#define PRELOAD "libgmem-attach.so"

int gmem_spawn_find_preload(const char *libdir, char *buf, size_t len)
{
	ssize_t n = readlink("/proc/self/exe", buf, len - sizeof("/" PRELOAD));
	char *slash;

	if (n > 0) {
		buf[n] = '\0';
		slash = strrchr(buf, '/');
		strcpy(slash ? slash + 1 : buf, PRELOAD);
		if (!access(buf, R_OK))
			return 0;
	}
	if ((size_t)snprintf(buf, len, "%s/" PRELOAD, libdir) < len && !access(buf, R_OK))
		return 0;
	return gmem_err(-ENOENT, PRELOAD ": not beside this program and not in %s", libdir);
}

bool gmem_spawn_listened(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int err;

	if (fd < 0 || strlen(path) >= sizeof(addr.sun_path)) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	strcpy(addr.sun_path, path);
	err = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
	close(fd);
	/* EAGAIN: there is a listener, and a queue before it. */
	return err == 0 || err == EAGAIN;
}

int gmem_spawn_listen(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int fd, err;

	if (strlen(path) >= sizeof(addr.sun_path))
		return gmem_err(-ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
				sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "%s: socket", path);
	if (!lstat(path, &st) && S_ISSOCK(st.st_mode))
		unlink(path);
	/* A socket's own mode is what bind() gives its name: no instant in which others could connect. */
	err = fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 1) ? -errno : 0;
	if (err) {
		close(fd);
		return gmem_err_sys(err, "%s: listening", path);
	}
	return fd;
}

/* In the child, between fork and exec: a few calls, none that takes a lock of another thread's. */
static int prepare(const struct gmem_spawn *spawn, const char *preload, const char *attach)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	for (size_t i = 0; i < spawn->nkeep; i++)
		if (fcntl(spawn->keep[i], F_SETFD, 0))
			return -errno;
	if (spawn->cwd && chdir(spawn->cwd))
		return -errno;
	if (!preload)
		return 0;
	if (fcntl(spawn->attach_fd, F_SETFD, 0) || setenv("LD_PRELOAD", preload, 1) ||
	    setenv("GMEM_ATTACH_FD", attach, 1))
		return -errno;
	return 0;
}

static int preload_value(const char *preload, char **ret)
{
	const char *old = getenv("LD_PRELOAD");

	if (asprintf(ret, "%s%s%s", preload, old && *old ? ":" : "", old ? old : "") < 0)
		return gmem_err_sys(-ENOMEM, "starting the program");
	return 0;
}

int gmem_spawn(const struct gmem_spawn *spawn, pid_t *ret)
{
	char attach[16], *preload = NULL;
	int pipe_fds[2], err = 0;
	ssize_t n;
	pid_t pid;

	snprintf(attach, sizeof(attach), "%d", spawn->attach_fd);
	if (spawn->preload && preload_value(spawn->preload, &preload))
		return -ENOMEM;
	if (pipe2(pipe_fds, O_CLOEXEC)) {
		err = gmem_err_sys(-errno, "starting %s", spawn->argv[0]);
		goto out_free;
	}
	pid = fork();
	if (pid == 0) {
		err = prepare(spawn, preload, attach);
		if (!err) {
			execvp(spawn->argv[0], spawn->argv);
			err = -errno;
		}
		(void)!write(pipe_fds[1], &err, sizeof(err));
		_exit(127);
	}
	if (pid < 0)
		err = gmem_err_sys(-errno, "starting %s", spawn->argv[0]);
	close(pipe_fds[1]);
	do {
		n = err ? 0 : read(pipe_fds[0], &err, sizeof(err));
	} while (n < 0 && errno == EINTR);
	close(pipe_fds[0]);
	if (n == sizeof(err)) {
		waitpid(pid, NULL, 0);
		err = gmem_err_sys(err, "starting %s in %s", spawn->argv[0], spawn->cwd ? spawn->cwd : ".");
	} else if (!err) {
		*ret = pid;
	}
out_free:
	free(preload);
	return err;
}
