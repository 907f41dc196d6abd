/* SPDX-License-Identifier: MIT */
/* Another process, which maps a file by itself and does as it is told: for tests of mappings in a gmem_uffd. */
#ifndef GMEM_TESTS_UFFD_KID_H
#define GMEM_TESTS_UFFD_KID_H

#include <sys/prctl.h>
#include <sys/syscall.h>

#include "uffd_util.h"

#define KID_FEATURES                                                                              \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | \
	 UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

enum kid_what { KID_READ, KID_WRITE, KID_CHECK, KID_UNMAP, KID_DONTNEED, KID_REMOVE, KID_MOVE, KID_FORK, KID_END };

struct kid_order {
	enum kid_what what;
	uint64_t off, len; /* in its mapping */
	unsigned int id; /* KID_CHECK: of the bytes */
};

struct kid {
	pid_t pid;
	int sock, pidfd, uffd;
	uint64_t hva;
	uint64_t len;
};

/* What it has done, for the answer. */
static inline uint64_t kid_do(char *p, const struct kid_order *o)
{
	char *at = p + o->off, *to;
	pid_t pid;

	switch (o->what) {
	case KID_READ:
		return __atomic_load_n((uint64_t *)at, __ATOMIC_RELAXED);
	case KID_WRITE:
		__atomic_store_n((uint64_t *)at, 0x77, __ATOMIC_RELAXED);
		return 0;
	case KID_CHECK:
		for (uint64_t off = 0; off < o->len; off += P)
			if (!page_is(o->id, o->off + off, at + off))
				return o->off + off + 1;
		return 0;
	case KID_UNMAP:
		return (uint64_t)munmap(at, o->len);
	case KID_DONTNEED:
		return (uint64_t)madvise(at, o->len, MADV_DONTNEED);
	case KID_REMOVE:
		return (uint64_t)madvise(at, o->len, MADV_REMOVE);
	case KID_MOVE:
		to = mmap(NULL, o->len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		return (uint64_t)(uintptr_t)mremap(at, o->len, o->len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	case KID_FORK:
		pid = fork();
		if (!pid)
			_exit(0);
		return (uint64_t)(waitpid(pid, NULL, 0) != pid);
	default:
		_exit(0);
	}
}

static inline void kid_main(int sock, int fd, uint64_t len, uint64_t features)
{
	struct gmem_wire w = { .type = GMEM_WIRE_REGION };
	int uffd = gmem_sys_uffd_open(features, NULL);
	struct kid_order o;
	char *p;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A sanitizer's would tell of it. */
	signal(SIGBUS, SIG_DFL);
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (uffd < 0 || p == MAP_FAILED)
		_exit(2);
	w.hva = (uint64_t)(uintptr_t)p;
	if (gmem_wire_send(sock, &w, &uffd, 1) < 0)
		_exit(3);
	while (recv(sock, &o, sizeof(o), 0) == (ssize_t)sizeof(o)) {
		uint64_t answer = kid_do(p, &o);

		if (send(sock, &answer, sizeof(answer), MSG_NOSIGNAL) != (ssize_t)sizeof(answer))
			break;
	}
	_exit(0);
}

static inline struct kid new_kid(struct gmem_file *file, uint64_t features)
{
	struct kid k = { .len = gmem_file_size(file) };
	int fds[GMEM_WIRE_MAX_FDS], sv[2], memfd = gmem_file_fd(file);
	struct gmem_wire w;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	fflush(NULL);
	k.pid = fork();
	CHECK(k.pid >= 0);
	if (!k.pid) {
		close(sv[0]);
		kid_main(sv[1], memfd, k.len, features);
	}
	close(sv[1]);
	k.sock = sv[0];
	CHECK_OK(gmem_wire_recv(k.sock, &w, fds, NULL));
	k.uffd = fds[0];
	k.hva = w.hva;
	k.pidfd = (int)CHECK_OK(syscall(SYS_pidfd_open, k.pid, 0));
	return k;
}

static inline void kid_tell(struct kid *k, enum kid_what what, uint64_t off, uint64_t len)
{
	struct kid_order o = { .what = what, .off = off, .len = len, .id = 1 };

	CHECK_EQ(send(k->sock, &o, sizeof(o), 0), sizeof(o));
}

static inline uint64_t kid_answer(struct kid *k)
{
	uint64_t answer;

	CHECK_EQ(recv(k->sock, &answer, sizeof(answer), 0), sizeof(answer));
	return answer;
}

static inline bool kid_has_answered(struct kid *k, int ms)
{
	struct pollfd p = { .fd = k->sock, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

static inline void end_kid(struct kid *k)
{
	if (k->pid) {
		kid_tell(k, KID_END, 0, 0);
		wait_ok(k->pid);
	}
	close(k->sock);
	close(k->pidfd);
	close(k->uffd);
}

static inline void kill_kid(struct kid *k)
{
	kill_and_wait(k->pid);
	k->pid = 0;
}

static inline struct gmem_uffd_mapping mapping_of(const struct kid *k, struct gmem_file *file, uint32_t modes)
{
	return (struct gmem_uffd_mapping){
		.size = sizeof(struct gmem_uffd_mapping),
		.file = file,
		.uffd = k->uffd,
		.hva = k->hva,
		.len = k->len,
		.modes = modes,
	};
}

#endif
