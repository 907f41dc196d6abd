/* SPDX-License-Identifier: MIT */
/* Data to measure with, memory files and the process that maps them. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS (BENCH_PAGE / sizeof(uint64_t))

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

uint64_t bench_first_word(uint64_t page)
{
	return mix(page * WORDS) | 1;
}

void bench_page(uint64_t page, bool half, void *buf)
{
	uint64_t *words = buf;

	words[0] = bench_first_word(page);
	for (uint64_t i = 1; i < WORDS; i++)
		words[i] = half && i >= WORDS / 2 ? words[i % 4] : mix(page * WORDS + i);
}

int bench_raw_file(const struct bench *b, const char *name, bool half, char *path, size_t path_len)
{
	uint64_t npages = (uint64_t)b->mib << 8;
	char buf[256 * BENCH_PAGE];
	int fd;

	snprintf(path, path_len, "%s/%s", b->dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		bench_die("%s", path);
	for (uint64_t page = 0; page < npages; page += 256) {
		for (uint64_t i = 0; i < 256; i++)
			bench_page(page + i, half, buf + i * BENCH_PAGE);
		if (write(fd, buf, sizeof(buf)) != sizeof(buf))
			bench_die("writing %s", path);
	}
	if (fsync(fd))
		bench_die("writing %s", path);
	bench_warm(fd);
	return fd;
}

void bench_warm(int fd)
{
	static char buf[1 << 20];
	off_t at = 0;
	ssize_t n;

	while ((n = pread(fd, buf, sizeof(buf), at)) > 0)
		at += n;
	if (n < 0)
		bench_die("reading");
}

const char *bench_map_file(int fd, size_t len)
{
	void *p = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);

	if (p == MAP_FAILED)
		bench_die("mmap");
	return p;
}

int bench_memfd(size_t len)
{
	int fd = memfd_create("bench", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)len))
		bench_die("memfd_create");
	return fd;
}

int bench_uffd_open(bool blocking)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM };
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | (blocking ? 0 : O_NONBLOCK));

	if (fd < 0) {
		printf("SKIPPED: userfaultfd: %s; to run it: see gmem info\n", strerror(errno));
		exit(77);
	}
	if (ioctl(fd, UFFDIO_API, &api))
		bench_die("UFFDIO_API");
	return fd;
}

void bench_uffd_register(int uffd, void *addr, size_t len)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		bench_die("UFFDIO_REGISTER");
}

/* ---- the other process */

union control {
	char buf[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

static _Noreturn void be_peer(int sock, int memfd, size_t len, bool blocking, double (*run)(void *, void *), void *arg)
{
	int uffd = bench_uffd_open(blocking);
	void *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	uint64_t hva = (uintptr_t)addr;
	union control c = { .buf = { 0 } };
	struct iovec iov = { &hva, sizeof(hva) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&msg);
	double seconds;
	char go;

	if (addr == MAP_FAILED)
		bench_die("mmap");
	bench_uffd_register(uffd, addr, len);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &uffd, sizeof(int));
	if (sendmsg(sock, &msg, 0) != sizeof(hva) || read(sock, &go, 1) != 1)
		bench_die("handing the descriptor over");
	seconds = run(addr, arg);
	if (write(sock, &seconds, sizeof(seconds)) != sizeof(seconds))
		bench_die("telling the time");
	_exit(0);
}

void bench_peer_start(struct bench_peer *peer, int memfd, size_t len, bool blocking, double (*run)(void *, void *),
		      void *arg)
{
	union control c;
	struct iovec iov = { &peer->hva, sizeof(peer->hva) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	int sock[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
		bench_die("socketpair");
	fflush(NULL);
	peer->pid = fork();
	if (peer->pid == 0) {
		close(sock[0]);
		be_peer(sock[1], memfd, len, blocking, run, arg);
	}
	close(sock[1]);
	peer->sock = sock[0];
	if (peer->pid < 0 || recvmsg(peer->sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(peer->hva) || !CMSG_FIRSTHDR(&msg))
		bench_die("no descriptor from the other process");
	memcpy(&peer->uffd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
}

void bench_peer_go(struct bench_peer *peer)
{
	int status;

	if (write(peer->sock, "g", 1) != 1 ||
	    read(peer->sock, &peer->seconds, sizeof(peer->seconds)) != sizeof(peer->seconds))
		bench_die("the other process has failed");
	if (waitpid(peer->pid, &status, 0) != peer->pid || status)
		bench_die("the other process has failed");
	close(peer->sock);
	close(peer->uffd);
}
