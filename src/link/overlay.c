/* SPDX-License-Identifier: MIT */
#include "link/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"

#define MARK ".gmem-"
#define TAIL ".qcow2"
#define TAG_LEN 8

extern char **environ;

/* Overlays of overlays keep the first base's name, so that it does not grow with every save. */
static size_t stem_len(const char *base)
{
	size_t len = strlen(base), extra = strlen(MARK) + TAG_LEN + strlen(TAIL);

	if (len <= extra || strcmp(base + len - strlen(TAIL), TAIL) ||
	    strncmp(base + len - extra, MARK, strlen(MARK)) ||
	    strspn(base + len - extra + strlen(MARK), "0123456789abcdef") != TAG_LEN)
		return len;
	return len - extra;
}

static int name_overlay(const char *base, char **ret)
{
	uint32_t tag;

	if (getrandom(&tag, sizeof(tag), 0) != (ssize_t)sizeof(tag))
		return gmem_err_sys(-errno, "getrandom");
	if (asprintf(ret, "%.*s" MARK "%08" PRIx32 TAIL, (int)stem_len(base), base, tag) < 0)
		return gmem_err(-ENOMEM, "gmem_overlay: out of memory");
	return 0;
}

static void first_line(int fd, char *buf, size_t cap)
{
	size_t have = 0;
	char scrap[512];
	ssize_t n;

	for (;;) {
		bool full = have == cap - 1;

		n = read(fd, full ? scrap : buf + have, full ? sizeof(scrap) : cap - 1 - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		if (!full)
			have += (size_t)n;
	}
	buf[have] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
}

/* Runs qemu-img; `said` gets the first line it wrote. Its exit status, or a negative errno. */
static int run_img(const char *const argv[], char *said, size_t cap)
{
	posix_spawn_file_actions_t fa;
	int p[2], status, r;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC))
		return -errno;
	r = -posix_spawn_file_actions_init(&fa);
	if (!r) {
		posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
		posix_spawn_file_actions_adddup2(&fa, p[1], 1);
		posix_spawn_file_actions_adddup2(&fa, p[1], 2);
		r = -posix_spawnp(&pid, argv[0], &fa, NULL, (char *const *)argv, environ);
		posix_spawn_file_actions_destroy(&fa);
	}
	close(p[1]);
	if (!r) {
		first_line(p[0], said, cap);
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		r = WIFEXITED(status) ? WEXITSTATUS(status) : 255;
	}
	close(p[0]);
	return r;
}

/* QEMU may run as another user than gmem: what it could write before it must be able to write now. */
static int take_over_mode(const char *base, const char *overlay)
{
	struct stat st;

	if (stat(base, &st))
		return gmem_err_sys(-errno, "disk '%s'", base);
	if (st.st_uid != geteuid() && chown(overlay, st.st_uid, st.st_gid))
		return gmem_err_sys(-errno, "overlay '%s': giving it to the owner of its base", overlay);
	if (chmod(overlay, st.st_mode & 0777))
		return gmem_err_sys(-errno, "overlay '%s'", overlay);
	return 0;
}

int gmem_overlay_create(const char *base, const char *format, uint64_t virtual_size, char **ret)
{
	char *overlay, size[24], said[256] = "";
	int r;

	r = name_overlay(base, &overlay);
	if (r)
		return r;
	snprintf(size, sizeof(size), "%" PRIu64, virtual_size);
	/* -u: the base is in use, and its size is known. */
	r = run_img((const char *const[]){ "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", base,
					   overlay, size, NULL },
		    said, sizeof(said));
	if (r == -ENOENT || r == 127)
		r = gmem_err(
			-ENOENT,
			"disk '%s': qemu-img is needed to make its overlay and is not installed (package qemu-utils)",
			base);
	else if (r < 0)
		r = gmem_err_sys(r, "qemu-img");
	else if (r)
		r = gmem_err(-EIO, "disk '%s': qemu-img could not make an overlay: %s", base, said);
	else
		r = take_over_mode(base, overlay);
	if (r) {
		unlink(overlay);
		free(overlay);
		return r;
	}
	*ret = overlay;
	return 0;
}
