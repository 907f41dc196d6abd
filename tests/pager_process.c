/* SPDX-License-Identifier: MIT */
/* Memory of other processes, accesses of the kernel, and users who may not have those served. */
#include "tap.h"

#include "pager_scene.h"

static void send_uffd(int sock, int uffd, void *hva)
{
	struct gmem_wire w = { .type = GMEM_WIRE_REGION, .hva = (uint64_t)(uintptr_t)hva };

	CHECK_OK(gmem_wire_send(sock, &w, &uffd, 1));
}

/* Maps, registers, hands over its descriptor, touches in random order. */
static pid_t start_program(struct gmem_file *file, unsigned int id, uint64_t seed, int *ret_sock)
{
	int sv[2];
	pid_t pid;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	pid = fork();
	if (!pid) {
		uint64_t n = gmem_file_size(file) / P;
		struct gmem_wire w;
		int uffd, fds[2];
		char *p;

		close(sv[0]);
		p = mmap(NULL, n * P, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_file_fd(file), 0);
		CHECK(p != MAP_FAILED);
		uffd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, NULL);
		CHECK_OK(uffd);
		CHECK_OK(gmem_sys_uffd_register(uffd, (uint64_t)(uintptr_t)p, n * P,
						GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR));
		send_uffd(sv[1], uffd, p);
		for (uint64_t i = 0; i < 2 * n; i++) {
			uint64_t page = i < n ? tap_rand(&seed) % n : i - n;

			if (!page_is(id, page * P, p + page * P))
				FAIL("program %u: page %llu is wrong", id, (unsigned long long)page);
		}
		/* Until told to end. */
		CHECK_OK(gmem_wire_recv(sv[1], &w, fds, NULL));
		_exit(0);
	}
	close(sv[1]);
	*ret_sock = sv[0];
	return pid;
}

static void add_program(struct gmem_pager *pager, int sock, struct gmem_file *file, struct gmem_source *source)
{
	struct gmem_region r = { .size = sizeof(r), .file = file, .len = gmem_file_size(file), .source = source };
	int fds[GMEM_WIRE_MAX_FDS];
	struct gmem_wire w;

	CHECK_OK(gmem_wire_recv(sock, &w, fds, NULL));
	r.uffd = fds[0];
	r.hva = w.hva;
	CHECK_OK(gmem_pager_add_region(pager, &r));
	/* Borrowed: closed at once, so that the next one has the same number. */
	close(fds[0]);
}

TEST_TIMEOUT(other_processes, 60)
{
	enum { N = 3 };
	struct gmem_file *files[N];
	struct gmem_source *sources[N];
	struct src src[N];
	struct gmem_wire w = { .type = GMEM_WIRE_DONE };
	struct gmem_pager *pager;
	struct told told = { 0 };
	uint64_t seed = tap_seed();
	pid_t pids[N];
	int socks[N], fds[GMEM_WIRE_MAX_FDS];

	need_uffd();
	/* Two of them share a file. */
	for (int i = 0; i < N; i++) {
		src[i] = (struct src)SRC(.id = i ? 1 : 0, .nowait = i & 1);
		files[i] = i == 2 ? files[1] : new_file(LEN / 4);
		pids[i] = start_program(files[i], i ? 1 : 0, seed + (uint64_t)i, &socks[i]);
	}
	pager = new_pager(0, 0, &told);
	for (int i = 0; i < N; i++) {
		sources[i] = source_of(&src[i]);
		add_program(pager, socks[i], files[i], sources[i]);
	}
	CHECK_EQ(gmem_wire_send(socks[0], &w, NULL, 0), 0);
	CHECK_EQ(gmem_wire_send(socks[1], &w, NULL, 0), 0);
	wait_ok(pids[0]);
	wait_ok(pids[1]);
	CHECK_EQ(gmem_wire_recv(socks[0], &w, fds, NULL), -ECONNRESET);
	/* Two are gone, one lives: the fill serves that one. */
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	kill_and_wait(pids[2]);
	(void)gmem_file_punch(files[1], 0, P);
	gmem_pager_free(pager);
	for (int i = 0; i < N; i++) {
		close(socks[i]);
		gmem_source_unref(sources[i]);
		if (i < 2)
			gmem_file_free(files[i]);
	}
}

TEST(program_that_ended)
{
	struct gmem_workset_entry entry = { .size = sizeof(entry), .len = 64 * P };
	struct gmem_workset *ws;
	struct src src = SRC(.id = 0);
	struct told told = { 0 };
	struct gmem_file *file;
	struct gmem_source *source;
	struct gmem_pager *pager;
	int sock;
	pid_t pid;

	need_uffd();
	file = new_file(LEN);
	pid = start_program(file, 0, 1, &sock);
	pager = new_pager(0, 0, &told);
	source = source_of(&src);
	add_program(pager, sock, file, source);
	kill_and_wait(pid);
	CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
	CHECK_OK(gmem_workset_add(ws, &entry));
	CHECK_ERR(gmem_pager_replay(pager, ws, NULL, NULL, NULL), -ESRCH);
	CHECK_ERR(gmem_pager_fill(pager, NULL, NULL), -ESRCH);
	gmem_workset_close(ws);
	CHECK_EQ(told.n[GMEM_PAGER_GONE], 1);
	CHECK_EQ(told.n[GMEM_PAGER_COMPLETE], 0);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_file_free(file);
	close(sock);
}

/* The kernel reads a page of the view: write(2) from it into a pipe. */
static int kernel_reads(const void *p)
{
	int pipe_fds[2], err;

	CHECK_EQ(pipe(pipe_fds), 0);
	err = write(pipe_fds[1], p, 16) < 0 ? -errno : 0;
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	return err;
}

TEST(kernel_accesses)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 19), 0, 0, 64 * P);
	if (stats_of(s.pager).user_mode_only) {
		tear_down(&s);
		SKIP("uffd-kernel", "only user-mode userfaultfd here");
	}
	CHECK_EQ(kernel_reads(s.p), 0);
	/* The library's own copies too, in both directions. */
	CHECK_OK(gmem_file_write(s.file, 63 * P, s.p + 2 * P, P));
	CHECK(page_is(19, 2 * P, s.p + 63 * P));
	CHECK_OK(gmem_file_read(s.file, 63 * P, s.p + 20 * P, P));
	CHECK(page_is(19, 2 * P, s.p + 20 * P));
	tear_down(&s);
}

TEST(user_mode_only)
{
	struct scene s = { 0 };
	pid_t pid;

	need_uffd();
	if (geteuid())
		SKIP("root", "cannot become another user");
	pid = fork();
	if (!pid) {
		CHECK_EQ(setgid(65534), 0);
		CHECK_EQ(setuid(65534), 0);
		set_up(&s, (struct src)SRC(.id = 20), 0, 0, 64 * P);
		if (!stats_of(s.pager).user_mode_only) {
			printf("any user may open a full userfaultfd here\n");
			_exit(0);
		}
		for (uint64_t i = 32; i-- > 0;)
			CHECK(page_is(20, i * P, s.p + i * P));
		/* Said, not hung. */
		CHECK_EQ(kernel_reads(s.p + 40 * P), -EFAULT);
		CHECK(page_is(20, 40 * P, s.p + 40 * P));
		CHECK_EQ(kernel_reads(s.p + 40 * P), 0);
		tear_down(&s);
		_exit(0);
	}
	wait_ok(pid);
}
