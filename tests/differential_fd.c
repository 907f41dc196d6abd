/* SPDX-License-Identifier: MIT */
/* System calls on the descriptors of the two files. */
#define TAP_NO_MAIN
#include "differential.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tap.h"

/* The file's own, or a copy of it. */
static int fd_of(const struct side *s, const struct args *a)
{
	int dup = s->dup[a->which % NDUPS];

	return dup >= 0 && (a->kind >> 16 & 1 || !s->file) ? dup : gmem_file_fd(s->file);
}

static bool have_fd(const struct world *w, const struct args *a)
{
	for (int i = 0; i < SIDES; i++)
		if (!w->side[i].file && w->side[i].dup[a->which % NDUPS] < 0)
			return false;
	return true;
}

static void run_dup(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	int *at = &s->dup[a->which % NDUPS];

	(void)w;
	if (*at >= 0) {
		r->ret = diff_errno(close(*at));
		*at = -1;
		return;
	}
	*at = a->kind % 2 ? dup(gmem_file_fd(s->file)) : fcntl(gmem_file_fd(s->file), F_DUPFD_CLOEXEC, 0);
	r->ret = *at < 0 ? -errno : 0;
}

static bool can_dup(const struct world *w, const struct args *a)
{
	return (w->side[KERNEL].file && w->side[USER].file) || w->side[KERNEL].dup[a->which % NDUPS] >= 0;
}

static void run_fstat(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct stat st = { 0 };

	(void)w;
	r->ret = diff_errno(fstat(fd_of(s, a), &st));
	r->value[0] = (uint64_t)st.st_size;
	r->value[1] = (uint64_t)st.st_blksize;
	r->value[2] = st.st_mode & S_IFMT;
}

/* ---- what setattr refuses */

static void run_ftruncate(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	r->ret = diff_errno(ftruncate(fd_of(s, a), (off_t)(a->kind % 4 ? a->len : w->npages * P)));
}

static void run_setattr(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	const struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 2 } };
	int fd = fd_of(s, a);

	(void)w;
	switch (a->kind % 4) {
	case 0:
		r->ret = diff_errno(fchmod(fd, 0600));
		break;
	case 1:
		r->ret = diff_errno(futimens(fd, times));
		break;
	case 2:
		r->ret = diff_errno(fcntl(fd, F_GET_SEALS));
		break;
	default:
		r->ret = diff_errno(fchown(fd, getuid(), getgid()));
		break;
	}
}

static enum difference excuse_setattr(const struct world *w, const struct args *a, const struct answer *k,
				      const struct answer *u, unsigned int *heal)
{
	(void)w, (void)a, (void)heal;
	return k->ret == -EINVAL && (u->ret >= 0 || u->ret == -EPERM) ? DIFF_RESIZE : SAME;
}

/* ---- bytes */

static void run_lseek(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static const int whence[] = { SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 17 };
	long at = lseek(fd_of(s, a), (off_t)a->off, whence[a->kind % 6]);

	(void)w;
	r->ret = diff_errno(at);
	if (at > 0)
		(void)lseek(fd_of(s, a), 0, SEEK_SET);
}

static void run_fd_read(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static unsigned char to[2 * P];
	struct iovec vec = { to, a->n % sizeof(to) };
	int fd = fd_of(s, a);
	off_t at = (off_t)(a->at % (w->npages * P));

	switch (a->kind % 3) {
	case 0:
		r->ret = diff_errno(read(fd, to, vec.iov_len));
		(void)lseek(fd, 0, SEEK_SET);
		break;
	case 1:
		r->ret = diff_errno(pread(fd, to, vec.iov_len, at));
		break;
	default:
		r->ret = diff_errno(preadv(fd, &vec, 1, at));
		break;
	}
}

static void run_fd_write(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static unsigned char from[2 * P];
	struct iovec vec = { from, a->n % sizeof(from) };
	int fd = fd_of(s, a);
	off_t at = (off_t)(a->at % (w->npages * P));

	memset(from, (int)a->byte, sizeof(from));
	switch (a->kind % 3) {
	case 0:
		r->ret = diff_errno(write(fd, from, vec.iov_len));
		(void)lseek(fd, 0, SEEK_SET);
		break;
	case 1:
		r->ret = diff_errno(pwrite(fd, from, vec.iov_len, at));
		break;
	default:
		r->ret = diff_errno(pwritev(fd, &vec, 1, at));
		break;
	}
}

static void run_splice(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	loff_t at = (loff_t)(a->at % (w->npages * P));
	int fd = fd_of(s, a), pipes[2];

	if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK))
		FAIL("pipe2: %s", strerror(errno));
	if (a->kind % 2) {
		r->ret = diff_errno(splice(fd, &at, pipes[1], NULL, P, SPLICE_F_NONBLOCK));
	} else {
		CHECK_EQ(write(pipes[1], "x", 1), 1);
		r->ret = diff_errno(splice(pipes[0], NULL, fd, &at, P, SPLICE_F_NONBLOCK));
	}
	close(pipes[0]);
	close(pipes[1]);
}

static enum difference excuse_io(const struct world *w, const struct args *a, const struct answer *k,
				 const struct answer *u, unsigned int *heal)
{
	(void)w, (void)a;
	*heal = HEAL_BYTES;
	/* Where there is a position, -ESPIPE; and a write past the end is against the seals. */
	return (k->ret == -EINVAL || k->ret == -ESPIPE) && (u->ret >= 0 || u->ret == -EPERM) ? DIFF_DESCRIPTOR_IO :
											       SAME;
}

static enum difference excuse_seek(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	(void)w, (void)a, (void)heal;
	return k->ret == -ESPIPE && (u->ret >= 0 || u->ret == -ENXIO || u->ret == -EINVAL) ? DIFF_DESCRIPTOR_IO : SAME;
}

/* ---- memory */

static int fallocate_mode(const struct args *a)
{
	static const int modes[] = {
		FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		0,
		FALLOC_FL_PUNCH_HOLE,
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		1 << 20,
	};

	return modes[a->kind % (sizeof(modes) / sizeof(modes[0]))];
}

static void run_fallocate_fd(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	r->ret = diff_errno(fallocate(fd_of(s, a), fallocate_mode(a), (off_t)a->off, (off_t)a->len));
	if (!r->ret && !(fallocate_mode(a) & FALLOC_FL_PUNCH_HOLE))
		w->prepared = true;
}

static enum difference excuse_fallocate_fd(const struct world *w, const struct args *a, const struct answer *k,
					   const struct answer *u, unsigned int *heal)
{
	bool unaligned = a->off % P || a->len % P, past = a->off + a->len > w->npages * P;

	*heal = HEAL_BYTES;
	if (u->ret && !(past && u->ret == -EPERM))
		return SAME;
	if (k->ret == -EOPNOTSUPP && fallocate_mode(a) == 0)
		return DIFF_FALLOCATE_FD;
	return k->ret == -EINVAL && (unaligned || past) ? DIFF_FALLOCATE_FD : SAME;
}

static void run_fadvise(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static const int advices[] = { POSIX_FADV_NORMAL,
				       POSIX_FADV_RANDOM,
				       POSIX_FADV_SEQUENTIAL,
				       POSIX_FADV_WILLNEED,
				       POSIX_FADV_DONTNEED,
				       POSIX_FADV_NOREUSE,
				       77 };

	(void)w;
	r->ret = posix_fadvise(fd_of(s, a), (off_t)a->off, (off_t)a->len, advices[a->kind % 7]);
}

static void run_sync(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = diff_errno(a->kind % 2 ? fsync(fd_of(s, a)) : fdatasync(fd_of(s, a)));
}

static enum difference excuse_sync(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	(void)w, (void)a, (void)heal;
	return k->ret == -EINVAL && !u->ret ? DIFF_SYNC : SAME;
}

/* ---- the rest */

static void run_fcntl(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct pollfd p = { .fd = fd_of(s, a), .events = POLLIN | POLLOUT };

	(void)w;
	switch (a->kind % 5) {
	case 4:
		r->ret = diff_errno(fcntl(p.fd, F_GETFD));
		break;
	case 0:
		r->ret = diff_errno(fcntl(p.fd, F_GETFL));
		break;
	case 1:
		r->ret = diff_errno(poll(&p, 1, 0));
		r->value[0] = (uint64_t)p.revents;
		break;
	case 2:
		r->ret = diff_errno(flock(p.fd, a->kind & 4 ? LOCK_EX | LOCK_NB : LOCK_UN));
		break;
	default:
		r->ret = diff_errno(isatty(p.fd) ? 1 : -1);
		break;
	}
}

const struct operation diff_fd_ops[] = {
	{ "dup-close", 12, can_dup, run_dup, NULL, NULL },
	{ "fstat", 8, have_fd, run_fstat, NULL, NULL },
	{ "ftruncate", 8, have_fd, run_ftruncate, excuse_setattr, NULL },
	{ "setattr", 4, have_fd, run_setattr, excuse_setattr, NULL },
	{ "lseek", 6, have_fd, run_lseek, excuse_seek, NULL },
	{ "fd-read", 6, have_fd, run_fd_read, excuse_io, NULL },
	{ "fd-write", 2, NULL, run_fd_write, excuse_io, NULL },
	{ "splice", 2, NULL, run_splice, excuse_io, NULL },
	{ "fd-fallocate", 40, NULL, run_fallocate_fd, excuse_fallocate_fd, NULL },
	{ "fadvise", 6, have_fd, run_fadvise, NULL, NULL },
	{ "fsync", 4, have_fd, run_sync, excuse_sync, NULL },
	{ "fcntl", 6, have_fd, run_fcntl, NULL, NULL },
	{ 0 },
};
