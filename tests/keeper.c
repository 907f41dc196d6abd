/* SPDX-License-Identifier: MIT */
/* Keeper, program and servers that come and go in good order. */
#include "keeper_util.h"

#include "fault/keeper.h"
#include "link/complete.h"

#define NPAGES 512ull

static void check_refused(struct stage *s, bool take_over, int err, const char *text)
{
	struct gmem_server_opts o = { .size = sizeof(o), .take_over = take_over };
	struct gmem_server *server;

	CHECK_ERR(gmem_server_connect(s->sock, &o, &server), err);
	CHECK_HAS(gmem_last_error(), text);
}

static void expect_killed(pid_t pid)
{
	int status;

	WAIT_FOR(waitpid(pid, &status, WNOHANG) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* ---- one server at a time */

TEST(second_server_is_refused)
{
	const struct server_how idle = { .no_fill = true }, over = { .take_over = true };
	struct stage s;
	pid_t first, second;
	char text[32];

	start_stage(&s, NPAGES, 1);
	first = start_server(&s, &idle);
	WAIT_FOR(atomic_load(&s.shared->connected) == 1);
	snprintf(text, sizeof(text), "pid %d", (int)first);
	for (int i = 0; i < 3; i++)
		check_refused(&s, false, -EBUSY, text);
	atomic_store(&s.shared->go, true);
	WAIT_FOR(atomic_load(&s.shared->touched) > NPAGES / 4); /* refusing has not hurt the first */
	second = start_server(&s, &over);
	expect_killed(first);
	finish(&s, second);
}

TEST(stopped_server_is_taken_over)
{
	const struct server_how idle = { .no_fill = true }, over = { .take_over = true };
	struct stage s;
	pid_t first, second;

	start_stage(&s, NPAGES, 1);
	first = start_server(&s, &idle);
	WAIT_FOR(atomic_load(&s.shared->connected) == 1);
	atomic_store(&s.shared->go, true);
	WAIT_FOR(atomic_load(&s.shared->touched) > NPAGES / 8);
	kill(first, SIGSTOP);
	check_refused(&s, false, -EBUSY, "pid");
	second = start_server(&s, &over);
	expect_killed(first);
	finish(&s, second);
}

TEST(connects_again_from_the_same_process)
{
	struct gmem_server_status status;
	struct gmem_server *server;
	struct stage s;

	start_stage(&s, NPAGES, 1);
	for (uint32_t i = 1; i <= 20; i++) {
		server = connect_server(&s);
		get_status(server, &status);
		CHECK_EQ(status.generation, i);
		CHECK_EQ(status.nfiles, 1);
		CHECK_EQ(status.nregions, 1);
		CHECK_EQ(status.vm_pid, s.v);
		CHECK_EQ(status.attach_error, 0);
		CHECK_EQ(status.note, i - 1);
		CHECK(status.keeper_alive);
		CHECK(!status.fill_wanted);
		gmem_server_set_note(server, i);
		if (i == 10)
			atomic_store(&s.shared->go, true);
		if (i > 10)
			usleep(500);
		gmem_server_free(server);
	}
	server = connect_server(&s);
	CHECK(gmem_server_file(server, 0) && !gmem_server_file(server, 1));
	CHECK_OK(gmem_server_check_mappings(server));
	finish_here(&s, server);
}

/* A server that learns of regions while it runs: it was there first. */
TEST(server_before_the_program)
{
	struct gmem_server_status status;
	struct gmem_server *server;
	struct stage s;

	set_stage(&s, NPAGES, 2);
	run_keeper(&s);
	s.v = fork_checked();
	if (!s.v) {
		WAIT_FOR(atomic_load(&s.shared->request) == 1);
		be_program(&s);
	}
	gmem_keeper_free(s.keeper);
	s.keeper = NULL;
	server = connect_server(&s);
	get_status(server, &status);
	CHECK_EQ(status.nregions, 0);
	CHECK_EQ(status.vm_pid, 0);
	CHECK_ERR(gmem_server_check_mappings(server), -ESRCH);
	gmem_server_free(server);
	server = connect_server(&s);
	atomic_store(&s.shared->request, 1);
	WAIT_FOR((get_status(server, &status), status.nregions == 2));
	CHECK_EQ(status.vm_pid, s.v);
	finish_here(&s, server);
}

TEST(damaged_image_then_whole_again)
{
	struct gmem_server *server;
	struct stage s;

	start_stage(&s, NPAGES, 1);
	flip_byte(&s, 9);
	for (int i = 0; i < 3; i++) {
		CHECK(gmem_server_connect(s.sock, NULL, &server) < 0);
		CHECK_HAS(gmem_last_error(), s.image);
	}
	flip_byte(&s, 9);
	finish_here(&s, connect_server(&s));
}

TEST(no_keeper)
{
	struct stage s;

	set_stage(&s, 16, 1);
	gmem_keeper_free(s.keeper);
	s.keeper = NULL;
	check_refused(&s, false, -ECONNREFUSED, s.sock);
	unlink(s.sock);
	check_refused(&s, true, -ENOENT, s.sock);
	memset(s.sock, 'x', sizeof(s.sock) - 1);
	CHECK_ERR(gmem_keeper_create("/tmp/a-name-of-a-socket-much-longer-than-the-hundred-and-eight-bytes-that-"
				     "an-address-has-room-for-0123456789", &s.keeper), -ENAMETOOLONG);
	snprintf(s.sock, sizeof(s.sock), "%s/keeper", s.dir);
	strike_stage(&s);
}

TEST(two_files_three_views)
{
	struct stage s;

	set_stage(&s, NPAGES, 2);
	s.nviews = 3;
	s.views[2] = (struct span){ .file = 1, .off = s.len / 4, .len = s.len / 2 };
	run_keeper(&s);
	start_program(&s);
	finish(&s, start_server(&s, NULL));
}

/* ---- the keeper's end */

static void attach_nothing(struct stage *s)
{
	s->v = fork_checked();
	if (!s->v) {
		gmem_keeper_free(s->keeper);
		_exit(0);
	}
	gmem_keeper_free(s->keeper);
	s->keeper = NULL;
	wait_ok(s->v);
}

TEST(keeper_ends_when_nobody_can_attach)
{
	struct stage s;

	set_stage(&s, 16, 1);
	run_keeper(&s);
	CHECK_EQ(waitpid(s.k, NULL, WNOHANG), 0);
	CHECK_EQ(access(s.sock, F_OK), 0);
	attach_nothing(&s);
	wait_ok(s.k);
	CHECK(access(s.sock, F_OK) != 0);
	strike_stage(&s);
}

TEST(socket_of_a_live_and_of_a_dead_keeper)
{
	struct gmem_keeper *other;
	struct stat st;
	struct stage s;

	set_stage(&s, 16, 1);
	CHECK_EQ(stat(s.sock, &st), 0);
	CHECK_EQ(st.st_mode & 0777, 0600);
	run_keeper(&s);
	CHECK_ERR(gmem_keeper_create(s.sock, &other), -EADDRINUSE);
	kill_and_wait(s.k);
	gmem_keeper_free(s.keeper);
	CHECK_EQ(access(s.sock, F_OK), 0);
	CHECK_OK(gmem_keeper_create(s.sock, &s.keeper));
	strike_stage(&s);
}

/* ---- what else the program maps */

static void map_once_more(struct stage *s, struct gmem_view **views)
{
	void *p;

	(void)views;
	WAIT_FOR(atomic_load(&s->shared->request) == 1);
	p = mmap(NULL, 16 * P, PROT_READ, MAP_SHARED, gmem_file_fd(s->files[0]), 8 * P);
	CHECK(p != MAP_FAILED);
	atomic_store(&s->shared->value, (uint64_t)(uintptr_t)p);
	atomic_store(&s->shared->answer, 1);
	WAIT_FOR(atomic_load(&s->shared->request) == 2);
	munmap(p, 16 * P);
	atomic_store(&s->shared->answer, 2);
}

TEST(unregistered_mapping_is_named)
{
	struct gmem_server *server;
	struct stage s;
	char text[32];

	set_stage(&s, NPAGES, 1);
	s.program = map_once_more;
	run_keeper(&s);
	start_program(&s);
	server = connect_server(&s);
	CHECK_OK(gmem_server_check_mappings(server));
	atomic_store(&s.shared->request, 1);
	WAIT_FOR(atomic_load(&s.shared->answer) == 1);
	CHECK_ERR(gmem_server_check_mappings(server), -EPERM);
	snprintf(text, sizeof(text), "0x%llx-", (unsigned long long)atomic_load(&s.shared->value));
	CHECK_HAS(gmem_last_error(), text);
	atomic_store(&s.shared->request, 2);
	WAIT_FOR(atomic_load(&s.shared->answer) == 2);
	CHECK_OK(gmem_server_check_mappings(server));
	finish_here(&s, server);
}

/* ---- memory that must be complete */


/* A server that fills when it is asked to, as gmem restore --no-fill does. */
static pid_t start_waiting_server(struct stage *s)
{
	struct gmem_server_status status;
	struct gmem_server *server;
	pid_t pid = fork_checked();

	if (pid)
		return pid;
	server = connect_server(s);
	atomic_fetch_add(&s->shared->connected, 1);
	do {
		usleep(1000);
		get_status(server, &status);
	} while (!status.fill_wanted);
	CHECK_OK(gmem_pager_fill(gmem_server_pager(server), NULL, NULL));
	for (;;)
		pause();
}

static int count_progress(void *opaque, uint64_t done, uint64_t total)
{
	CHECK(done <= total);
	++*(int *)opaque;
	return 0;
}

static int refuse_progress(void *opaque, uint64_t done, uint64_t total)
{
	return -EINTR;
}

TEST(complete_memory_waits_for_the_server)
{
	struct stage s;
	pid_t server;
	int told = 0;

	start_stage(&s, NPAGES, 1);
	CHECK_ERR(gmem_complete_memory(s.v, NULL, NULL), -EBUSY);
	CHECK_HAS(gmem_last_error(), s.image);
	CHECK_EQ(gmem_file_want_fill(s.files[0]), 0);
	atomic_store(&s.files[0]->state.header->fill_wanted, 0);
	server = start_waiting_server(&s);
	WAIT_FOR(atomic_load(&s.shared->connected) == 1);
	CHECK_EQ(unserved(&s, NULL), NPAGES);
	CHECK_EQ(gmem_complete_memory(s.v, refuse_progress, NULL), -EINTR);
	CHECK_OK(gmem_complete_memory(s.v, count_progress, &told));
	CHECK_EQ(unserved(&s, NULL), 0);
	printf("progress was told %d times\n", told);
	CHECK_EQ(gmem_file_want_fill(s.files[0]), server);
	kill_and_wait(server);
	CHECK_OK(gmem_complete_memory(s.v, NULL, NULL)); /* complete: nobody is needed */
	CHECK_EQ(gmem_file_want_fill(s.files[0]), 0);
	finish(&s, start_server(&s, NULL));
}

TEST(complete_memory_refuses_lost_pages)
{
	struct gmem_file_counts c = { .size = sizeof(c) };
	struct stage s;
	pid_t server;

	start_stage(&s, NPAGES, 1);
	flip_byte(&s, 5 * 4096 + 77);
	server = start_waiting_server(&s);
	WAIT_FOR(atomic_load(&s.shared->connected) == 1);
	CHECK_ERR(gmem_complete_memory(s.v, NULL, NULL), -EHWPOISON);
	CHECK_OK(gmem_file_query(s.files[0], &c));
	CHECK_EQ(c.poisoned, 1);
	CHECK_EQ(c.absent + c.filling, 0);
	kill_and_wait(server);
	kill_and_wait(s.v);
	wait_ok(s.k);
	strike_stage(&s);
}

TEST(complete_memory_of_others)
{
	CHECK_OK(gmem_complete_memory(getpid(), NULL, NULL));
	CHECK(gmem_complete_memory(0x7fffff0, NULL, NULL) < 0);
}
