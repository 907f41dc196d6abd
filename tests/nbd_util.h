/* SPDX-License-Identifier: MIT */
/* NBD servers for tests: real ones, nbdkit and qemu-nbd, on a UNIX socket. Included after tap.h. */
#ifndef GMEM_TESTS_NBD_UTIL_H
#define GMEM_TESTS_NBD_UTIL_H

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "source/source.h"

extern char **environ;

struct nbd_server {
	char folder[64], socket[96], pid_file[96], log[96], uri[160];
	pid_t pid;
};

static inline void nbd_pause_ms(long ms)
{
	const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static inline void need_nbd(const char *program)
{
	struct gmem_source *s;
	char command[64];

	if (gmem_source_new_nbd("nbd+unix:///?socket=/nonexistent", NULL, &s) == -EOPNOTSUPP)
		SKIP("nbd", "%s", gmem_last_error());
	snprintf(command, sizeof(command), "command -v %s >/dev/null", program);
	if (system(command) != 0)
		SKIP("nbd", "no %s; scripts/setup run installs it", program);
}

static inline void nbd_folder(struct nbd_server *s)
{
	memset(s, 0, sizeof(*s));
	snprintf(s->folder, sizeof(s->folder), "/tmp/gmem-nbd-XXXXXX");
	CHECK(mkdtemp(s->folder) != NULL);
	snprintf(s->socket, sizeof(s->socket), "%s/socket", s->folder);
	snprintf(s->pid_file, sizeof(s->pid_file), "%s/pid", s->folder);
	snprintf(s->log, sizeof(s->log), "%s/log", s->folder);
	snprintf(s->uri, sizeof(s->uri), "nbd+unix:///?socket=%s", s->socket);
}

static inline void nbd_show_log(const struct nbd_server *s)
{
	char text[2000];
	int fd = open(s->log, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	printf("%.*s\n", (int)(n > 0 ? n : 0), text);
	if (fd >= 0)
		close(fd);
}

/* Starts `argv`, and comes back when it listens, which is when it writes its pid. */
static inline void nbd_spawn(struct nbd_server *s, char *const argv[])
{
	posix_spawn_file_actions_t actions;
	struct stat st;
	int status;

	unlink(s->socket);
	unlink(s->pid_file);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, s->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	CHECK_EQ(posix_spawnp(&s->pid, argv[0], &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	while (stat(s->pid_file, &st) < 0 || !st.st_size || access(s->socket, F_OK) < 0) {
		if (waitpid(s->pid, &status, WNOHANG) == s->pid) {
			nbd_show_log(s);
			FAIL("%s ended with status 0x%x", argv[0], status);
		}
		nbd_pause_ms(2);
	}
}

#define NBD_MOST_ARGS 32

/* nbdkit with these arguments, NULL after the last. */
static inline void nbdkit(struct nbd_server *s, const char *arg, ...)
{
	char *argv[NBD_MOST_ARGS] = {
		(char *)"nbdkit", (char *)"-f", (char *)"-U", s->socket, (char *)"-P", s->pid_file
	};
	int n = 6;
	va_list ap;

	va_start(ap, arg);
	for (; arg && n < NBD_MOST_ARGS - 1; arg = va_arg(ap, const char *))
		argv[n++] = (char *)arg;
	va_end(ap);
	nbd_spawn(s, argv);
}

static inline void nbd_kill(struct nbd_server *s)
{
	int status;

	kill(s->pid, SIGKILL);
	CHECK_EQ(waitpid(s->pid, &status, 0), s->pid);
	s->pid = 0;
}

static inline void nbd_end(struct nbd_server *s)
{
	char command[128];

	if (s->pid)
		nbd_kill(s);
	snprintf(command, sizeof(command), "rm -rf %s", s->folder);
	CHECK_EQ(system(command), 0);
}

/*
 * A memory of `npages` in a file of the server's folder, sparse, with zeros that were written too; *ret_bytes is what
 * it holds, *ret_data says for each page whether it was written.
 */
static inline void nbd_memory(const struct nbd_server *s, char path[96], uint64_t npages, uint64_t seed,
			      uint8_t **ret_bytes, uint8_t **ret_data)
{
	uint8_t *bytes = calloc(npages, GMEM_PAGE_SIZE), *data = calloc(npages, 1);
	int fd;

	snprintf(path, 96, "%s/memory", s->folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, (off_t)(npages * GMEM_PAGE_SIZE)) == 0);
	for (uint64_t i = 0; i < npages;) {
		uint64_t run = 1 + tap_rand(&seed) % 40;
		unsigned int kind = (unsigned int)(tap_rand(&seed) % 4);

		for (; run-- && i < npages; i++) {
			uint64_t *w = (uint64_t *)(void *)(bytes + i * GMEM_PAGE_SIZE);

			if (kind == 0)
				continue;
			for (size_t k = 0; kind > 1 && k < GMEM_PAGE_SIZE / 8; k++)
				w[k] = tap_rand(&seed);
			data[i] = 1;
			CHECK(pwrite(fd, w, GMEM_PAGE_SIZE, (off_t)(i * GMEM_PAGE_SIZE)) == GMEM_PAGE_SIZE);
		}
	}
	close(fd);
	*ret_bytes = bytes;
	*ret_data = data;
}

#endif
