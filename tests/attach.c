/* SPDX-License-Identifier: MIT */
/* The attach preload in a program that knows nothing of it. */
#include "keeper_util.h"

#include "attach_victim.h"

struct scene {
	struct stage stage;
	struct victim_shared *shared;
	int shared_fd;
};

static char build[512];

/* The preload, and whatever `more` is to be preloaded with it. */
static void set_preload(const char *more)
{
	const char *folder = getenv("GMEM_BUILD");
	char list[1100];

	if (!folder)
		SKIP("build", "GMEM_BUILD does not say where libgmem-attach.so is");
	snprintf(build, sizeof(build), "%s", folder);
	snprintf(list, sizeof(list), "%s/libgmem-attach.so%s%s", folder, *more ? ":" : "", more);
	CHECK_EQ(setenv("LD_PRELOAD", list, 1), 0);
}

static void exec_victim(const char *how, const char *memory, const char *shared)
{
	char path[600];

	snprintf(path, sizeof(path), "%s/tests/attach-victim", build);
	execl(path, "attach-victim", how, memory, shared, (char *)NULL);
	FAIL("%s: %s", path, strerror(errno));
}

static void start_victim(struct scene *c, const char *how, const char *preload_too)
{
	struct stage *s = &c->stage;

	CHECK(getenv("GMEM_BUILD"));
	set_stage(s, VICTIM_PAGES, 1);
	c->shared_fd = memfd_create("victim-shared", MFD_CLOEXEC);
	CHECK(c->shared_fd >= 0);
	CHECK_EQ(ftruncate(c->shared_fd, 4096), 0);
	c->shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, c->shared_fd, 0);
	CHECK(c->shared != MAP_FAILED);
	run_keeper(s);
	s->v = fork_checked();
	if (!s->v) {
		char attach[16], memory[16], shared[16];

		snprintf(attach, sizeof(attach), "%d", gmem_keeper_attach_fd(s->keeper));
		snprintf(memory, sizeof(memory), "%d", dup(gmem_file_fd(s->files[0])));
		snprintf(shared, sizeof(shared), "%d", dup(c->shared_fd));
		set_preload(preload_too);
		CHECK_EQ(setenv("GMEM_ATTACH_FD", attach, 1), 0);
		exec_victim(how, memory, shared);
	}
	gmem_keeper_free(s->keeper);
	s->keeper = NULL;
}

static void let_go(struct scene *c)
{
	munmap(c->shared, 4096);
	close(c->shared_fd);
	strike_stage(&c->stage);
}

static void end_scene(struct scene *c)
{
	wait_ok(c->stage.v);
	wait_ok(c->stage.k);
	let_go(c);
}

/* A server of this process, which serves faults only. */
static struct gmem_server *serve(struct scene *c)
{
	struct gmem_server *server;

	CHECK_OK(gmem_server_connect(c->stage.sock, NULL, &server));
	return server;
}

static void run_victim(const char *how)
{
	struct gmem_server *server;
	struct scene c;

	need_uffd();
	start_victim(&c, how, "");
	server = serve(&c);
	wait_ok(c.stage.v);
	gmem_server_free(server);
	wait_ok(c.stage.k);
	let_go(&c);
}

TEST(every_byte_is_right)
{
	run_victim("read");
}

TEST(many_threads)
{
	run_victim("threads");
}

TEST(mappings_made_by_many_threads)
{
	run_victim("parts");
}

TEST(other_mappings_are_left_alone)
{
	run_victim("others");
}

TEST(program_that_forks)
{
	run_victim("fork");
}

TEST(program_that_becomes_a_daemon)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "daemon", "");
	server = serve(&c);
	wait_ok(c.stage.v);
	WAIT_FOR(atomic_load(&c.shared->said) == 1);
	CHECK_OK(gmem_server_status(server, &status));
	CHECK(status.vm_pid > 0 && status.vm_pid != c.stage.v);
	CHECK_OK(gmem_server_check_mappings(server));
	atomic_store(&c.shared->told, 1);
	wait_ok(c.stage.k);
	gmem_server_free(server);
	let_go(&c);
}

TEST(mapped_before_any_server)
{
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "read", "");
	usleep(100000);
	CHECK_EQ(waitpid(c.stage.v, NULL, WNOHANG), 0);
	server = serve(&c);
	WAIT_FOR(kill(c.stage.v, 0) == 0 && unserved(&c.stage, NULL) < VICTIM_PAGES / 4);
	end_scene(&c);
	gmem_server_free(server);
}

static void check_refusal(const char *how, const char *why)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, how, "");
	server = serve(&c);
	WAIT_FOR(atomic_load(&c.shared->said) == 1);
	WAIT_FOR((gmem_server_status(server, &status), status.attach_error));
	CHECK_EQ(status.attach_error, -EINVAL);
	CHECK_HAS(status.attach_text, why);
	gmem_server_free(server);
	/* The next server is told, too. */
	server = serve(&c);
	CHECK_OK(gmem_server_status(server, &status));
	CHECK_HAS(status.attach_text, why);
	atomic_store(&c.shared->told, 1);
	end_scene(&c);
	gmem_server_free(server);
}

TEST(private_mapping_is_refused)
{
	check_refusal("private", "private");
}

TEST(populated_mapping_is_refused)
{
	check_refusal("populate", "MAP_POPULATE");
}

/* ---- holes */

TEST(punched_pages_never_come_back)
{
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "punch", "");
	WAIT_FOR(atomic_load(&c.shared->said) == 1);
	CHECK_EQ(gmem_file_page_state(c.stage.files[0], 3 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(c.stage.files[0], 20 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(c.stage.files[0], 25 * P), GMEM_PAGE_REMOVED);
	for (uint64_t page = 26; page < 64; page++)
		CHECK_EQ(gmem_file_page_state(c.stage.files[0], page * P), GMEM_PAGE_ABSENT);
	server = serve(&c);
	CHECK_OK(gmem_pager_fill(gmem_server_pager(server), NULL, NULL));
	atomic_store(&c.shared->told, 1);
	end_scene(&c);
	gmem_server_free(server);
}

/* In this process's server: stops once at a step of bringing in page HELD, while the program punches it. */
#define HELD 5ull

enum step { BEFORE_BYTES = 1, BEFORE_PUBLISH = 2 };

static _Atomic int hold_at;
static struct victim_shared *_Atomic holder;

static void hold(enum step step)
{
	struct victim_shared *v = atomic_load(&holder);
	int expected = step;

	if (!atomic_compare_exchange_strong(&hold_at, &expected, 0))
		return;
	atomic_store(&v->told, 1);
	while (!atomic_load(&v->said))
		usleep(300);
}

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
bool __real_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation);
bool __wrap_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation);

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	if (off <= HELD * P && HELD * P < off + len)
		hold(BEFORE_BYTES);
	return __real_gmem_pwrite_all(fd, buf, len, off);
}

bool __wrap_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	if (page == HELD && atomic_load(&holder)) {
		hold(BEFORE_PUBLISH);
		CHECK_EQ(gmem_state_word(s, page) & GMEM_WORD_DOOMED, GMEM_WORD_DOOMED);
	}
	return __real_gmem_state_publish(s, page, generation);
}

static void punch_at(enum step step)
{
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "punch-filling", "");
	atomic_store(&holder, c.shared);
	atomic_store(&hold_at, step);
	server = serve(&c);
	end_scene(&c);
	CHECK_EQ(atomic_load(&hold_at), 0);
	gmem_server_free(server);
}

TEST(page_punched_before_it_has_its_bytes)
{
	punch_at(BEFORE_BYTES);
}

TEST(page_punched_before_it_is_published)
{
	punch_at(BEFORE_PUBLISH);
}

/* ---- unmapped, and mapped again */

TEST(mapped_again_at_the_same_address)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "again", "");
	server = serve(&c);
	WAIT_FOR(atomic_load(&c.shared->said) == 1);
	CHECK_OK(gmem_server_check_mappings(server));
	gmem_server_free(server);
	server = serve(&c); /* the keeper's books make sense to the next one, too */
	CHECK_OK(gmem_server_status(server, &status));
	CHECK_EQ(status.nregions, 1);
	atomic_store(&c.shared->told, 1);
	end_scene(&c);
	gmem_server_free(server);
}

TEST(keeper_adopted_after_mapping_again)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	struct gmem_server *server;
	struct scene c;

	start_victim(&c, "again", "");
	server = serve(&c);
	WAIT_FOR(atomic_load(&c.shared->said) == 1);
	kill_and_wait(c.stage.k);
	gmem_server_free(server);
	CHECK_OK(gmem_keeper_adopt(c.stage.sock, c.stage.v, &c.stage.keeper));
	run_keeper(&c.stage);
	gmem_keeper_free(c.stage.keeper);
	c.stage.keeper = NULL;
	server = serve(&c);
	CHECK_OK(gmem_server_status(server, &status));
	CHECK_EQ(status.nregions, 1);
	kill_and_wait(c.stage.v);
	wait_ok(c.stage.k);
	gmem_server_free(server);
	let_go(&c);
}

/* ---- the environment */

TEST(children_are_not_attached)
{
	struct scene c;

	start_victim(&c, "env", "");
	end_scene(&c);
}

TEST(other_preloads_stay)
{
	struct scene c;

	start_victim(&c, "env", "libm.so.6");
	end_scene(&c);
}

/* Runs the victim with that GMEM_ATTACH_FD, as descriptor `sock` if it is not -1. One line and 126. */
static void check_gives_up(const char *number, int sock)
{
	char text[512];
	int out[2], status;
	ssize_t n, len = 0;
	pid_t pid;

	CHECK_EQ(pipe(out), 0);
	pid = fork_checked();
	if (!pid) {
		dup2(out[1], 2);
		if (sock >= 0)
			dup2(sock, atoi(number));
		set_preload("");
		setenv("GMEM_ATTACH_FD", number, 1);
		close(out[0]);
		close(out[1]);
		exec_victim("nothing", NULL, NULL);
	}
	close(out[1]);
	while ((n = read(out[0], text + len, sizeof(text) - 1 - (size_t)len)) > 0)
		len += n;
	text[len] = '\0';
	close(out[0]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 126)
		FAIL("GMEM_ATTACH_FD=%s: status 0x%x", number, status);
	CHECK_HAS(text, "libgmem-attach: ");
	CHECK(strchr(text, '\n') == text + len - 1);
}

TEST(no_keeper_no_program)
{
	int pair[2];
	pid_t pid;

	set_preload("");
	unsetenv("LD_PRELOAD");
	check_gives_up("77", -1);
	check_gives_up("0", -1);
	check_gives_up("", -1);
	check_gives_up("nonsense", -1);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	close(pair[0]);
	check_gives_up("77", pair[1]);
	close(pair[1]);
	/* Without the variable the preload does nothing. */
	pid = fork_checked();
	if (!pid) {
		set_preload("");
		exec_victim("nothing", NULL, NULL);
	}
	wait_ok(pid);
}
