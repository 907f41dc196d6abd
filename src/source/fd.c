/* SPDX-License-Identifier: MIT */
/* Bytes of a file as they are: a raw memory dump, a block device, another memory file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "source/source.h"

struct fd_source {
	int fd;
	uint64_t base;
	uint64_t len; /* bytes from `base` on; past them zero */
};

static int read_at(const struct fd_source *s, uint64_t off, void *buf, size_t len, bool nowait)
{
	size_t have = off < s->len ? (size_t)gmem_min_u64(len, s->len - off) : 0;
	size_t done = 0;

	while (done < have) {
		struct iovec iov = { .iov_base = (char *)buf + done, .iov_len = have - done };
		off_t at = (off_t)(s->base + off + done);
		ssize_t n =
			nowait ? preadv2(s->fd, &iov, 1, at, RWF_NOWAIT) : pread(s->fd, iov.iov_base, iov.iov_len, at);

		if (n < 0 && errno == EINTR)
			continue;
		/* EOPNOTSUPP: a file system that cannot say. */
		if (n < 0 && nowait && (errno == EAGAIN || errno == EOPNOTSUPP))
			return gmem_err(-EAGAIN, "source file: not in memory at offset 0x%llx", (unsigned long long)at);
		if (n < 0)
			return gmem_err_sys(-errno, "source file: cannot read at offset 0x%llx",
					    (unsigned long long)(s->base + off + done));
		if (n == 0)
			return gmem_err(-EIO, "source file: ends at offset 0x%llx, it has become shorter",
					(unsigned long long)(s->base + off + done));
		done += (size_t)n;
	}
	memset((char *)buf + have, 0, len - have);
	return 0;
}

static int fd_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	return read_at(opaque, off, buf, len, false);
}

static int fd_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	return read_at(opaque, off, buf, len, true);
}

static int fd_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	const struct fd_source *s = opaque;

	return off >= s->len;
}

static void fd_free(void *opaque)
{
	struct fd_source *s = opaque;

	close(s->fd);
	free(s);
}

/* The size of a regular file or a block device. */
static int size_of(int fd, uint64_t *ret)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st) < 0)
		return gmem_err_sys(-errno, "gmem_source_new_fd: descriptor %d", fd);
	if (S_ISREG(st.st_mode)) {
		*ret = (uint64_t)st.st_size;
		return 0;
	}
	if (!S_ISBLK(st.st_mode))
		return gmem_err(-EINVAL, "gmem_source_new_fd: descriptor %d: neither a regular file nor a block device",
				fd);
	/* Moves a position nobody relies on: this library uses pread() only. */
	end = lseek(fd, 0, SEEK_END);
	if (end < 0)
		return gmem_err_sys(-errno, "gmem_source_new_fd: descriptor %d", fd);
	*ret = (uint64_t)end;
	return 0;
}

int gmem_source_new_fd(int fd, uint64_t base, uint64_t len, struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = fd_read,
		.read_nowait = fd_read_nowait,
		.is_zero = fd_is_zero,
		.free = fd_free,
	};
	struct fd_source *s;
	uint64_t size = 0;
	int r;

	r = size_of(fd, &size);
	if (r < 0)
		return r;
	if (base > size)
		return gmem_err(-EINVAL, "gmem_source_new_fd: base 0x%llx lies past the file's end, 0x%llx",
				(unsigned long long)base, (unsigned long long)size);
	s = malloc(sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new_fd: no memory");
	s->base = base;
	s->len = gmem_min_u64(len, size - base);
	s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (s->fd < 0) {
		r = gmem_err_sys(-errno, "gmem_source_new_fd: descriptor %d", fd);
		free(s);
		return r;
	}
	r = gmem_source_new(&ops, s, ret);
	if (r < 0)
		fd_free(s);
	return r;
}
