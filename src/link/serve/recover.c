/* SPDX-License-Identifier: MIT */
#include "link/serve/recover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "sys/process.h"
#include "sys/uffd.h"

#define UFFD "anon_inode:[userfaultfd]"

int gmem_recover_process(const struct gmem_ledger *l)
{
	char boot[GMEM_LEDGER_BOOT_LEN + 1];
	int err = gmem_ledger_boot(boot), pidfd;

	if (err)
		return err;
	if (strcmp(boot, l->boot))
		return gmem_err(-ESRCH, "%s: of before this machine was started", l->id);
	if (l->pid <= 0 || !l->start)
		return gmem_err(-ENODATA, "%s: its process is not known", l->id);
	pidfd = gmem_pidfd_open(l->pid);
	if (pidfd < 0)
		return gmem_err_sys(pidfd, "%s: process %d", l->id, (int)l->pid);
	/* Of that start there is one process only: alive now, it was when the descriptor was opened. */
	if (gmem_process_start(l->pid) != l->start) {
		close(pidfd);
		return gmem_err(-ESRCH, "%s: process %d has ended", l->id, (int)l->pid);
	}
	return pidfd;
}

static bool is_that(const struct gmem_ledger_fd *want, const struct stat *st)
{
	return st->st_dev == want->dev && st->st_ino == want->ino;
}

/*
 * Is the range registered with this userfaultfd? Registering it again says so and changes nothing: 0 if it is, -EBUSY
 * if another one has it. Asked only of kernels whose userfaultfds share an inode, which know no mode but `missing` of
 * anonymous memory.
 */
static bool serves(int uffd, const struct gmem_ledger_fd *want)
{
	return gmem_sys_uffd_register(uffd, want->hva, want->len, GMEM_SYS_UFFD_MISSING) == 0;
}

/* The descriptor `number` of the process, if it is the one; -ENOENT: it is another. */
static int fetch(int pidfd, int number, const struct gmem_ledger_fd *want, bool own)
{
	char path[32], link[sizeof(want->kind)] = "";
	int fd = gmem_pidfd_getfd(pidfd, number);
	struct stat st;
	bool is;

	if (fd < 0)
		return fd == -EBADF ? -ENOENT : fd;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	/* Looked at once more: what the process has under this number now. */
	is = !fstat(fd, &st) && is_that(want, &st);
	if (is && want->kind[0])
		is = readlink(path, link, sizeof(link) - 1) > 0 && !strcmp(link, want->kind);
	if (is && !own && want->len && !strcmp(want->kind, UFFD))
		is = serves(fd, want);
	if (is)
		return fd;
	close(fd);
	return -ENOENT;
}

static int find(const struct gmem_ledger *l, DIR *d, int pidfd, const struct gmem_ledger_fd *want)
{
	bool own = !want->kind[0] || gmem_inode_own(want->dev, want->ino);
	bool certain = own || (want->len && !strcmp(want->kind, UFFD));
	int found = -ENOENT, fd = -ENOENT;
	struct dirent *de;
	struct stat st;

	rewinddir(d);
	while ((de = readdir(d))) {
		if (de->d_name[0] < '0' || de->d_name[0] > '9')
			continue;
		if (fstatat(dirfd(d), de->d_name, &st, 0) || !is_that(want, &st))
			continue;
		fd = fetch(pidfd, atoi(de->d_name), want, own);
		if (fd == -ENOENT)
			continue;
		if (fd >= 0 && found >= 0) {
			close(fd);
			close(found);
			return gmem_err(-ENOTUNIQ, "%s: process %d has several that may be it", want->name,
					(int)l->pid);
		}
		found = fd;
		if (fd < 0 || certain)
			break;
	}
	if (found == -ENOENT)
		return gmem_err(-ENOENT, "%s: process %d has closed it", want->name, (int)l->pid);
	return found < 0 ? gmem_err_sys(found, "%s: taking it out of process %d", want->name, (int)l->pid) : found;
}

int gmem_recover_fds(const struct gmem_ledger *l, int pidfd, int *fds)
{
	char path[32], text[512] = "";
	int err = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)l->pid);
	d = opendir(path);
	if (!d) {
		err = errno == EACCES ? -EPERM : errno == ENOENT ? -ESRCH : -errno;
		return gmem_err_sys(err, "%s: the descriptors of process %d (root or CAP_SYS_PTRACE reads them)", l->id,
				    (int)l->pid);
	}
	for (uint32_t i = 0; i < l->nfds; i++) {
		int fd = fds[i] >= 0 ? fds[i] : find(l, d, pidfd, &l->fds[i]);

		if (fd >= 0) {
			fds[i] = fd;
		} else if (!err) {
			err = fd;
			snprintf(text, sizeof(text), "%s", gmem_last_error());
		}
	}
	closedir(d);
	return err ? gmem_err(err, "%s: %s", l->id, text) : 0;
}
