/* SPDX-License-Identifier: MIT */
/* The minder: keeps what a server stores, starts it again, accepts before it; ends, is told to upgrade, dies. */
#include "tap.h"

#include "serve_util.h"

TEST(serves_and_ends)
{
	struct machine m[2];
	struct scene s;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	CHECK_EQ(gmem_minder_find(s.dir), s.minder);
	for (int i = 0; i < 2; i++)
		machine_start(&m[i], &s, 256, 0);
	for (int i = 0; i < 2; i++)
		machine_finish(&m[i]);
	wait_empty(&s);
	CHECK_EQ(logged(&s, "minder 2"), 1);
	stop_minder(&s);
	CHECK_EQ(logged(&s, "stops"), 1);
	CHECK_EQ(gmem_minder_find(s.dir), 0);
	scene_free(&s);
}

TEST_TIMEOUT(server_killed, 60)
{
	struct machine m;
	struct scene s;
	pid_t server = 0;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	machine_start(&m, &s, 512, 1);
	for (unsigned int i = 1; i <= 5; i++) {
		wait_ready(&s, i);
		WAIT_FOR(logged(&s, "serves ") >= i);
		WAIT_FOR(atomic_load(&m.shared->ops) >= (i - 1) * 100 + 1);
		server = wait_server(&s, server);
		kill(server, SIGKILL);
		atomic_store(&m.shared->hold_at, i * 100 + 1);
	}
	machine_finish(&m);
	wait_empty(&s);
	/* The descriptors came from the store, never out of the machine. */
	CHECK_EQ(logged(&s, "took "), 0);
	stop_minder(&s);
	scene_free(&s);
}

/* A server that is killed right after a client was accepted, or is not there at all, loses nobody. */
TEST_TIMEOUT(clients_while_there_is_no_server, 60)
{
	struct machine m[8];
	struct scene s;
	pid_t server;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	server = wait_server(&s, 0);
	kill(server, SIGSTOP);
	for (int i = 0; i < 8; i++)
		machine_start(&m[i], &s, 64, 0);
	for (int i = 0; i < 8; i++)
		WAIT_FOR(atomic_load(&m[i].shared->connected));
	kill(server, SIGKILL);
	for (int i = 0; i < 8; i++)
		machine_finish(&m[i]);
	wait_empty(&s);
	CHECK_EQ(logged(&s, "took "), 0);
	stop_minder(&s);
	scene_free(&s);
}

static void die_there(const char *where, bool at_end)
{
	struct machine m;
	struct scene s;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	die_at(&s, where);
	machine_start(&m, &s, 128, 0);
	if (!at_end)
		WAIT_FOR(has_file(&s, "died"));
	machine_finish(&m);
	WAIT_FOR(has_file(&s, "died"));
	wait_ready(&s, 2);
	wait_empty(&s);
	if (logged(&s, "took ")) {
		show_log(&s);
		FAIL("%s: a descriptor was lost from the store", where);
	}
	stop_minder(&s);
	scene_free(&s);
}

TEST_TIMEOUT(killed_at_every_step, 120)
{
	static const char *const steps[] = { "accepted", "peeked", "put",      "state",
					     "rename",	 "ledger", "consumed", "serving" };
	static const char *const ends[] = { "ended", "unlink", "removed", "dropped" };

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		die_there(steps[i], false);
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		die_there(ends[i], true);
}

/* The second server is killed too, while it takes everything up. */
TEST_TIMEOUT(killed_while_taking_up, 60)
{
	static const char *const steps[] = { "started", "taken", "consumed", "swept" };

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct machine m;
		struct scene s;

		scene_new(&s);
		start_minder(&s, NULL);
		wait_ready(&s, 1);
		machine_start(&m, &s, 128, 1);
		WAIT_FOR(logged(&s, "serves ") == 1);
		die_at(&s, steps[i]);
		kill(wait_server(&s, 0), SIGKILL);
		WAIT_FOR(has_file(&s, "died"));
		machine_finish(&m);
		wait_empty(&s);
		CHECK_EQ(logged(&s, "took "), 0);
		stop_minder(&s);
		scene_free(&s);
	}
}

/* The server goes on without it, and accepts by itself; a new minder's server takes the rest out of the machines. */
TEST_TIMEOUT(minder_killed, 60)
{
	struct machine m[2];
	struct scene s;
	pid_t server;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	machine_start(&m[0], &s, 128, 100);
	WAIT_FOR(atomic_load(&m[0].shared->ops) == 100);
	server = wait_server(&s, 0);
	kill_and_wait(s.minder);
	CHECK_EQ(gmem_minder_find(s.dir), 0);
	machine_start(&m[1], &s, 128, 100);
	WAIT_FOR(atomic_load(&m[1].shared->ops) == 100);
	CHECK_EQ(server_pid(&s), server);
	kill(server, SIGKILL);
	start_minder(&s, NULL);
	for (int i = 0; i < 2; i++)
		machine_finish(&m[i]);
	CHECK_EQ(logged(&s, "took "), 2);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

TEST_TIMEOUT(both_killed, 100)
{
	uint64_t seed = tap_seed();
	struct machine m[3];
	struct scene s;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	for (int i = 0; i < 3; i++)
		machine_start(&m[i], &s, 512, 1);
	WAIT_FOR(logged(&s, "serves ") == 3);
	for (unsigned int round = 1; round <= 6; round++) {
		unsigned int served = logged(&s, "serves ");
		uint64_t ops = atomic_load(&m[0].shared->ops);
		pid_t server;

		for (int i = 0; i < 3; i++)
			atomic_store(&m[i].shared->hold_at, round * 200);
		WAIT_FOR(atomic_load(&m[0].shared->ops) > ops);
		usleep(tap_rand(&seed) % 3000);
		server = wait_server(&s, 0);
		if (round % 2) {
			kill_and_wait(s.minder);
			kill(server, SIGKILL);
		} else {
			kill(server, SIGSTOP);
			kill_and_wait(s.minder);
			kill(server, SIGKILL);
		}
		start_minder(&s, NULL);
		WAIT_FOR(logged(&s, "serves ") == served + 3);
	}
	for (int i = 0; i < 3; i++)
		machine_finish(&m[i]);
	CHECK_EQ(logged(&s, "took "), 18);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

/* A server that has lost its minder, and a minder that is well: both make room if told to. */
TEST_TIMEOUT(take_over, 60)
{
	struct gmem_minder_opts o = { .take_over = true };
	struct machine m;
	struct scene s;
	int status;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	machine_start(&m, &s, 128, 100);
	WAIT_FOR(atomic_load(&m.shared->ops) == 100);
	kill_and_wait(s.minder);
	start_minder(&s, NULL);
	CHECK_EQ(waitpid(s.minder, &status, 0), s.minder);
	CHECK_EQ(WEXITSTATUS(status), -EBUSY & 0xff);
	start_minder(&s, &o);
	wait_ready(&s, 2);
	for (unsigned int i = 3; i <= 5; i++) {
		pid_t old = s.minder;

		start_minder(&s, &o);
		CHECK_EQ(waitpid(old, &status, 0), old);
		CHECK_EQ(WTERMSIG(status), SIGKILL);
		wait_ready(&s, i);
		WAIT_FOR(logged(&s, "took ") == i - 1);
	}
	machine_finish(&m);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

TEST(one_minder_a_directory)
{
	struct scene s, other;
	int status;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	other = s;
	start_minder(&other, NULL);
	CHECK_EQ(waitpid(other.minder, &status, 0), other.minder);
	CHECK_EQ(WEXITSTATUS(status), -EBUSY & 0xff);
	stop_minder(&s);
	scene_free(&s);
}

/* A mistake on the command line is told at once; nobody waits for it. */
TEST(server_that_never_works)
{
	struct scene s;
	int status;

	scene_new(&s);
	setenv("GMEM_TEST_MISTAKE", "1", 1);
	start_minder(&s, NULL);
	CHECK_EQ(waitpid(s.minder, &status, 0), s.minder);
	CHECK_EQ(WEXITSTATUS(status), 7);
	s.program = "/nonexistent";
	start_minder(&s, NULL);
	CHECK_EQ(waitpid(s.minder, &status, 0), s.minder);
	CHECK_EQ(WEXITSTATUS(status), -ENOENT & 0xff);
	scene_free(&s);
}

/* But if a machine waits it is tried for ever, with pauses. */
TEST_TIMEOUT(server_that_works_no_more, 60)
{
	struct machine m;
	struct scene s;

	scene_new(&s);
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	machine_start(&m, &s, 64, 1);
	WAIT_FOR(logged(&s, "serves ") == 1);
	put_file(&s, "die", "");
	kill_and_wait(s.minder);
	kill(wait_server(&s, 0), SIGKILL);
	setenv("GMEM_TEST_MISTAKE", "1", 1);
	start_minder(&s, NULL);
	WAIT_FOR(logged(&s, "it has ended 6 times") == 1);
	kill_and_wait(s.minder);
	unsetenv("GMEM_TEST_MISTAKE");
	start_minder(&s, NULL);
	machine_finish(&m);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

TEST(pauses)
{
	static const unsigned int want[] = { 0, 0, 0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000 };

	for (unsigned int i = 0; i < sizeof(want) / sizeof(want[0]); i++)
		CHECK_EQ(gmem_minder_pause_ms(i), want[i]);
	CHECK_EQ(gmem_minder_pause_ms(UINT32_MAX), 10000);
}

/* One that hangs is ended by its minder. */
TEST_TIMEOUT(watchdog, 60)
{
	struct gmem_minder_opts o = { .watchdog_usec = 2000000 };
	struct machine m;
	struct scene s;

	scene_new(&s);
	start_minder(&s, &o);
	wait_ready(&s, 1);
	machine_start(&m, &s, 64, 1);
	WAIT_FOR(logged(&s, "serves ") == 1);
	kill(wait_server(&s, 0), SIGSTOP);
	machine_finish(&m);
	CHECK(logged(&s, "has said nothing for") >= 1);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

/* A server that does not end when told is killed; what it kept stays for the next. */
TEST_TIMEOUT(end_with_a_machine, 60)
{
	struct gmem_minder_opts o = { .stop_ms = 200 };
	struct machine m;
	struct scene s;
	int status;

	scene_new(&s);
	start_minder(&s, &o);
	wait_ready(&s, 1);
	machine_start(&m, &s, 64, 1);
	WAIT_FOR(logged(&s, "serves ") == 1);
	kill(wait_server(&s, 0), SIGSTOP);
	kill(s.minder, SIGTERM);
	CHECK_EQ(waitpid(s.minder, &status, 0), s.minder);
	CHECK_EQ(WEXITSTATUS(status), 128 + SIGKILL);
	start_minder(&s, NULL);
	machine_finish(&m);
	wait_empty(&s);
	stop_minder(&s);
	scene_free(&s);
}

/* The program is put in place by rename(2), as a package manager does. */
static void install(struct scene *s, const char *from)
{
	char cmd[700];

	snprintf(cmd, sizeof(cmd), "cp %s %s/program.new && chmod 0700 %s/program.new && mv %s/program.new %s/program",
		 from, s->dir, s->dir, s->dir, s->dir);
	CHECK_EQ(system(cmd), 0);
}

static void own_path(char *buf, size_t len)
{
	ssize_t n = readlink("/proc/self/exe", buf, len - 1);

	CHECK(n > 0);
	buf[n] = '\0';
}

TEST_TIMEOUT(upgrade, 60)
{
	char program[128], self[400], exe[500], path[64];
	struct machine m[2];
	struct scene s;
	pid_t server;
	ssize_t n;

	scene_new(&s);
	own_path(self, sizeof(self));
	install(&s, self);
	snprintf(program, sizeof(program), "%s/program", s.dir);
	s.program = program;
	start_minder(&s, NULL);
	wait_ready(&s, 1);
	for (int i = 0; i < 2; i++)
		machine_start(&m[i], &s, 128, 100);
	for (int i = 0; i < 2; i++)
		WAIT_FOR(atomic_load(&m[i].shared->ops) == 100);
	server = wait_server(&s, 0);
	/* One that cannot be run: the old one goes on. */
	install(&s, "/bin/false");
	kill(s.minder, SIGHUP);
	WAIT_FOR(logged(&s, "the old one goes on") == 1);
	wait_ready(&s, 2);
	server = wait_server(&s, server);
	for (int i = 0; i < 2; i++)
		atomic_store(&m[i].shared->hold_at, 200);
	WAIT_FOR(atomic_load(&m[0].shared->ops) == 200);
	install(&s, self);
	kill(s.minder, SIGHUP);
	wait_ready(&s, 3);
	wait_server(&s, server);
	/* The minder is the new program as well: what it was is nowhere any more. */
	snprintf(path, sizeof(path), "/proc/%d/exe", (int)s.minder);
	WAIT_FOR((n = readlink(path, exe, sizeof(exe) - 1)) > 0 && (exe[n] = '\0', !strcmp(exe, program)));
	for (int i = 0; i < 2; i++)
		machine_finish(&m[i]);
	CHECK_EQ(logged(&s, "took "), 0);
	wait_empty(&s);
	CHECK_EQ(gmem_minder_find(s.dir), s.minder);
	stop_minder(&s);
	scene_free(&s);
}
