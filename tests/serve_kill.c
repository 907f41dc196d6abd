/* SPDX-License-Identifier: MIT */
/*
 * Page servers that are killed, at random instants, with faults in flight; then servers and keepers both. The real
 * command serves, stand-ins for Firecracker touch, write and balloon, and compare every page they have.
 *
 *	GMEM_SERVE_KILLS=1000 GMEM_SERVE_KILLS_BOTH=100 build/tests/test-serve-kill
 */
#include <sys/prctl.h>

#include "serve_scene.h"

#define LEN (SLOW_BUILD ? 4 * MIB : 16 * MIB)
#define CLIENTS 2
#define HANG_MS (SLOW_BUILD ? 600000 : 60000)

struct tally {
	unsigned int kills, in_flight, machines;
};

struct stage {
	struct serve s;
	struct fc_client *c[CLIENTS];
	pid_t keeper;
	bool fill;
};

static unsigned int wanted(const char *name, unsigned int usual)
{
	return getenv(name) ? (unsigned int)atoi(getenv(name)) : usual;
}

static void gmem_path(char path[400])
{
	ssize_t n = readlink("/proc/self/exe", path, 300);

	CHECK(n > 0);
	path[n] = 0;
	*strrchr(path, '/') = 0;
	strcpy(strrchr(path, '/'), "/gmem");
	if (access(path, X_OK))
		FAIL("%s: %s", path, strerror(errno));
}

/* The keeper: the server is its child. */
static void start(struct stage *st)
{
	char path[400], source[128], log[96];

	gmem_path(path);
	snprintf(source, sizeof(source), "snapshot=raw:%s", st->s.raw);
	fflush(stdout);
	st->keeper = fork();
	CHECK_OK(st->keeper);
	if (st->keeper)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* To be looked at if a machine fails: the folder stays then. */
	snprintf(log, sizeof(log), "%s/log", st->s.dir);
	dup2(open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), STDERR_FILENO);
	execl(path, "gmem", "serve", "--state-dir", st->s.state, "--socket", st->s.sock, "--metrics", st->s.metrics,
	      "--source", source, st->fill ? "--fill" : "--no-fill", NULL);
	_exit(127);
}

/* 0: there is none at present. */
static pid_t server_of(pid_t keeper)
{
	char path[64], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)keeper, (int)keeper);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		SKIP("proc", "%s: %s", path, strerror(errno));
	CHECK_OK(read(fd, text, sizeof(text) - 1));
	close(fd);
	return (pid_t)atoi(text);
}

/* Threads that wait for a page. */
static int in_flight(const struct stage *st)
{
	int n = 0;

	for (int i = 0; i < CLIENTS; i++) {
		char path[600], text[64];
		struct dirent *e;
		DIR *d;

		snprintf(path, sizeof(path), "/proc/%d/task", (int)fc_pid(st->c[i]));
		d = opendir(path);
		while (d && (e = readdir(d))) {
			ssize_t len = -1;
			int fd;

			snprintf(path, sizeof(path), "/proc/%d/task/%s/wchan", (int)fc_pid(st->c[i]), e->d_name);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd >= 0) {
				len = read(fd, text, sizeof(text) - 1);
				close(fd);
			}
			if (len > 0) {
				text[len] = 0;
				n += strstr(text, "userfault") != NULL;
			}
		}
		if (d)
			closedir(d);
	}
	return n;
}

static bool storms_go_on(struct stage *st, int ret[CLIENTS], bool done[CLIENTS])
{
	bool on = false;

	for (int i = 0; i < CLIENTS; i++) {
		if (!done[i])
			done[i] = fc_wait(st->c[i], 0, &ret[i]) == 1;
		on |= !done[i];
	}
	return on;
}

static void begin(struct stage *st, uint64_t *seed, bool fill)
{
	serve_set(&st->s, LEN);
	st->fill = fill;
	start(st);
	WAIT_FOR(!access(st->s.metrics, F_OK));
	for (int i = 0; i < CLIENTS; i++) {
		struct fc_options o = serve_client(&st->s, i % 2 ? FC_1_12 : FC_1_1);

		o.sizes[0] = LEN / 4;
		o.sizes[1] = LEN - LEN / 4;
		st->c[i] = fc_start(&o);
		fc_begin(st->c[i], FC_STORM, 3, SLOW_BUILD ? 1500 : 4000, tap_rand(seed));
	}
}

static void finish(struct stage *st, int ret[CLIENTS], bool done[CLIENTS], struct tally *t)
{
	int status;

	for (int i = 0; i < CLIENTS; i++) {
		if (!done[i] && fc_wait(st->c[i], HANG_MS, &ret[i]) != 1)
			FAIL("machine %d hangs", i);
		if (ret[i])
			FAIL("machine %d: %s at 0x%llx", i, strerror(-ret[i]), (unsigned long long)fc_offset(st->c[i]));
		fc_begin(st->c[i], FC_READ, 0, LEN, 0);
		if (fc_wait(st->c[i], HANG_MS, &ret[i]) != 1)
			FAIL("machine %d hangs", i);
		if (ret[i])
			FAIL("machine %d: %s at 0x%llx", i, strerror(-ret[i]), (unsigned long long)fc_offset(st->c[i]));
		fc_end(st->c[i]);
		t->machines++;
	}
	CHECK_EQ(kill(st->keeper, SIGTERM), 0);
	CHECK_EQ(waitpid(st->keeper, &status, 0), st->keeper);
	serve_end(&st->s);
}

/* Those count that came while somebody waited for a page; how many do is the machine's affair, within reason. */
static bool goes_on(const struct tally *t, unsigned int kills)
{
	if (t->kills >= 10 * kills + 20)
		FAIL("%u kills, and only %u of them with faults in flight", t->kills, t->in_flight);
	return t->in_flight < kills;
}

static void wait_a_little(uint64_t *seed, unsigned int most_us)
{
	usleep((useconds_t)(tap_rand(seed) % (SLOW_BUILD ? 4 * most_us : most_us)));
}

/* A keeper starts a server that has died at once three times, and then waits longer and longer. */
static void round_of_servers(uint64_t *seed, unsigned int most, struct tally *t)
{
	bool done[CLIENTS] = { false };
	int ret[CLIENTS] = { 0 };
	struct stage st;

	begin(&st, seed, tap_rand(seed) % 3 == 0);
	printf("%s\n", st.s.dir);
	for (unsigned int i = 0; i < most && storms_go_on(&st, ret, done); i++) {
		pid_t server;
		int waiting;

		WAIT_FOR((server = server_of(st.keeper)) != 0);
		wait_a_little(seed, 20000);
		if (kill(server, SIGKILL))
			continue;
		waiting = in_flight(&st);
		t->kills++;
		t->in_flight += waiting > 0;
		WAIT_FOR(server_of(st.keeper) != server);
	}
	finish(&st, ret, done, t);
}

TEST_TIMEOUT(server_killed_at_random_instants, 3000)
{
	unsigned int kills = wanted("GMEM_SERVE_KILLS", SLOW_BUILD ? 12 : 40);
	uint64_t seed = tap_seed();
	struct tally t = { 0 };

	while (goes_on(&t, kills))
		round_of_servers(&seed, kills - t.in_flight < 6 ? kills - t.in_flight : 6, &t);
	printf("%u kills of the server, %u with faults in flight; %u machines, every page compared, none wrong, "
	       "none hung\n",
	       t.kills, t.in_flight, t.machines);
}

/* Ledgers that are written: machines that survive both. */
static int written_down(const struct stage *st)
{
	struct dirent *e;
	DIR *d = opendir(st->s.state);
	int n = 0;

	while (d && (e = readdir(d)))
		n += strlen(e->d_name) > 5 && !strcmp(e->d_name + strlen(e->d_name) - 5, ".json");
	if (d)
		closedir(d);
	return n;
}

static void round_of_both(uint64_t *seed, struct tally *t)
{
	bool done[CLIENTS] = { false };
	int ret[CLIENTS] = { 0 };
	struct stage st;
	pid_t server;
	int waiting, status;

	begin(&st, seed, tap_rand(seed) % 3 == 0);
	printf("%s\n", st.s.dir);
	/* A client that was heard by two dead processes alone is not known to anybody. */
	WAIT_FOR(written_down(&st) == CLIENTS);
	for (int i = 0; i < 3 && storms_go_on(&st, ret, done); i++) {
		WAIT_FOR((server = server_of(st.keeper)) != 0);
		wait_a_little(seed, 60000);
		server = server_of(st.keeper);
		CHECK_EQ(kill(st.keeper, SIGKILL), 0);
		/* Whatever it has just begun to do may be between the two. */
		if (tap_rand(seed) % 2)
			wait_a_little(seed, 2000);
		if (server)
			kill(server, SIGKILL);
		CHECK_EQ(waitpid(st.keeper, &status, 0), st.keeper);
		/* It is ours by now, see below. */
		while (server && waitpid(server, &status, 0) < 0 && errno == ECHILD && !kill(server, 0))
			usleep(1000);
		waiting = in_flight(&st);
		t->kills++;
		t->in_flight += waiting > 0;
		start(&st);
	}
	finish(&st, ret, done, t);
}

/* What they held is taken out of the machines themselves, which takes the right to trace them. */
TEST_TIMEOUT(server_and_keeper_killed, 3000)
{
	unsigned int kills = wanted("GMEM_SERVE_KILLS_BOTH", SLOW_BUILD ? 3 : 9);
	uint64_t seed = tap_seed();
	struct tally t = { 0 };

	if (geteuid())
		SKIP("root", "who may take descriptors out of other processes");
	/* A server whose keeper is killed becomes ours. */
	CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	while (goes_on(&t, kills)) {
		round_of_both(&seed, &t);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	printf("%u kills of server and keeper, %u with faults in flight; %u machines, every page compared, none wrong, "
	       "none hung\n",
	       t.kills, t.in_flight, t.machines);
}
