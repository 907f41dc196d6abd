/* SPDX-License-Identifier: MIT */
#include "link/serve/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/name.h"
#include "sys/process.h"

#define ANON "anon_inode:"

int gmem_ledger_boot(char ret[GMEM_LEDGER_BOOT_LEN + 1])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, ret, GMEM_LEDGER_BOOT_LEN);
	int err = n < 0 ? -errno : n == GMEM_LEDGER_BOOT_LEN ? 0 : -EIO;

	if (fd >= 0)
		close(fd);
	ret[err ? 0 : GMEM_LEDGER_BOOT_LEN] = '\0';
	return err ? gmem_err_sys(err, "the boot's id") : 0;
}

int gmem_ledger_new(const char *id, pid_t pid, struct gmem_ledger **ret)
{
	struct gmem_ledger *l;
	struct timespec ts;
	int err;

	if (!gmem_id_ok(id))
		return gmem_err(-EINVAL, "ledger: an id that cannot be");
	l = calloc(1, sizeof(*l));
	if (!l)
		return gmem_err_sys(-ENOMEM, "ledger %s", id);
	strcpy(l->id, id);
	l->pid = pid > 0 ? pid : 0;
	err = gmem_ledger_boot(l->boot);
	if (!err && l->pid) {
		l->start = gmem_process_start(l->pid);
		if (!l->start)
			err = gmem_err_sys(-ESRCH, "ledger %s: process %d", id, (int)pid);
	}
	if (err) {
		free(l);
		return err;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	l->created_ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	*ret = l;
	return 0;
}

void gmem_ledger_free(struct gmem_ledger *l)
{
	if (!l)
		return;
	free(l->hello);
	free(l->source);
	free(l->options);
	free(l->trouble);
	free(l);
}

int gmem_ledger_set(char **text, const char *to)
{
	char *copy = NULL;

	if (to && strlen(to) > GMEM_LEDGER_MAX_TEXT)
		return gmem_err(-E2BIG, "ledger: a text of %zu bytes", strlen(to));
	if (to) {
		copy = strdup(to);
		if (!copy)
			return gmem_err_sys(-ENOMEM, "ledger");
	}
	free(*text);
	*text = copy;
	return 0;
}

int gmem_ledger_add_fd(struct gmem_ledger *l, int fd, uint64_t hva, uint64_t len)
{
	struct gmem_ledger_fd *to = &l->fds[l->nfds];
	char path[32], link[sizeof(to->kind)], name[sizeof(to->name)];
	struct stat st;
	ssize_t n;

	if (l->nfds == GMEM_LEDGER_MAX_FDS)
		return gmem_err(-ENOSPC, "ledger %s: more than %u descriptors", l->id, GMEM_LEDGER_MAX_FDS);
	if (fstat(fd, &st))
		return gmem_err_sys(-errno, "ledger %s: descriptor %u", l->id, (unsigned int)l->nfds);
	*to = (struct gmem_ledger_fd){ .dev = st.st_dev, .ino = st.st_ino, .hva = hva, .len = len };
	snprintf(name, sizeof(name), "%s.%u", l->id, (unsigned int)l->nfds);
	strcpy(to->name, name);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n > (ssize_t)strlen(ANON) && !memcmp(link, ANON, strlen(ANON)))
		memcpy(to->kind, link, (size_t)n);
	l->nfds++;
	return 0;
}
