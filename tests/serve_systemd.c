/* SPDX-License-Identifier: MIT */
/*
 * A real systemd minds the server, with the units that are installed (systemd_util.h says what it is kept from). Needs
 * root, and a kernel that lets a second systemd have cgroups.
 */
#include "systemd_util.h"

#include "serve_util.h"

struct booted {
	struct scene s;
	struct jail jail;
	char command[600]; /* what the service runs; "": the server of serve_server.c */
};

static const char *systemd_program(void)
{
	static const char *const programs[] = { "/lib/systemd/systemd", "/usr/lib/systemd/systemd" };

	for (size_t i = 0; i < 2; i++)
		if (!access(programs[i], X_OK))
			return programs[i];
	SKIP("systemd", "systemd is not installed");
}

static FILE *unit(const struct booted *b, const char *name)
{
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", b->jail.units, name);
	f = fopen(path, "we");
	if (!f)
		FAIL("%s: %s", path, strerror(errno));
	return f;
}

/* A unit as it is built; what it runs is this program. */
static void copy_unit(const struct booted *b, const char *from, const char *name)
{
	char line[1000], self[500];
	FILE *in = fopen(from, "re"), *out = unit(b, name);
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	CHECK(n > 0);
	self[n] = '\0';
	if (!in)
		FAIL("%s: %s", from, strerror(errno));
	while (fgets(line, sizeof(line), in)) {
		if (strncmp(line, "ExecStart=", 10))
			fputs(line, out);
		else if (b->command[0])
			fprintf(out, "ExecStart=%s\n", b->command);
		else
			fprintf(out, "ExecStart=%s\nEnvironment=GMEM_TEST_SERVER=/run/gmem-serve\n", self);
	}
	fclose(in);
	fclose(out);
}

static void write_units(const struct booted *b)
{
	static const char *const targets[] = { "sysinit.target", "basic.target", "sockets.target", "shutdown.target" };
	const char *build = getenv("GMEM_BUILD"), *source = getenv("GMEM_SOURCE");
	char from[600];
	FILE *f;

	snprintf(from, sizeof(from), "%s/data/systemd/gmem-serve.service", build ? build : "build");
	copy_unit(b, from, "gmem-serve.service");
	snprintf(from, sizeof(from), "%s/data/systemd/gmem-serve.socket", source ? source : ".");
	copy_unit(b, from, "gmem-serve.socket");
	/* None of the machine's: these stand for nothing. */
	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
		f = unit(b, targets[i]);
		fputs("[Unit]\nDefaultDependencies=no\n", f);
		fclose(f);
	}
	f = unit(b, "gmem-test.target");
	fputs("[Unit]\nDefaultDependencies=no\nWants=gmem-serve.socket\nAfter=gmem-serve.socket\n", f);
	fclose(f);
}

static void show_logs(const struct booted *b)
{
	char cmd[200];

	snprintf(cmd, sizeof(cmd), "tail -n 30 %s/log %s/systemctl 2>/dev/null", b->jail.units, b->jail.units);
	if (system(cmd))
		printf("no logs\n");
	show_log(&b->s);
}

static void boot(struct booted *b)
{
	const char *program = systemd_program();
	uint64_t end = now_ms() + (tap_slow() ? 160000 : 20000);
	int status;

	need_uffd();
	if (geteuid())
		SKIP("systemd", "only root may start a second one");
	strcpy(b->jail.units, "/tmp/gmem-units-XXXXXX");
	CHECK(mkdtemp(b->jail.units));
	write_units(b);
	jail_start(&b->jail, program);
	for (;;) {
		b->jail.inner = atomic_load(b->jail.shared);
		snprintf(b->s.dir, sizeof(b->s.dir), "/proc/%d/root/run/gmem-serve", (int)b->jail.inner);
		snprintf(b->s.sock, sizeof(b->s.sock), "%.63s/socket", b->s.dir);
		/* Before it has a /run of its own there is another one there. */
		if (b->jail.inner && has_file(&b->s, "socket"))
			return;
		if (waitpid(b->jail.outer, &status, WNOHANG) == b->jail.outer) {
			show_logs(b);
			b->jail.outer = 0;
			atomic_store(b->jail.shared, 0);
			jail_end(&b->jail);
			if (WIFEXITED(status) && WEXITSTATUS(status) == JAIL_LEAKS)
				FAIL("the second systemd could change this machine");
			SKIP("systemd", "a second one does not run here (status 0x%x)", status);
		}
		if (now_ms() > end) {
			show_logs(b);
			FAIL("systemd does not listen");
		}
		usleep(1000);
	}
}

static void shut_down(struct booted *b)
{
	char cmd[200];

	jail_end(&b->jail);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", b->jail.units);
	CHECK_EQ(system(cmd), 0);
}

static void systemctl(const struct booted *b, const char *args)
{
	char cmd[400];

	snprintf(cmd, sizeof(cmd), "nsenter -t %d -p -m -C systemctl --no-ask-password %s >>%s/systemctl 2>&1",
		 (int)b->jail.inner, args, b->jail.units);
	if (system(cmd)) {
		show_logs(b);
		FAIL("systemctl %s", args);
	}
}

/* In systemd's own process numbers, so that the server sees who it is. */
static void machine_inside(struct machine *m, const struct booted *b, uint64_t npages, uint64_t hold_at)
{
	int fd, own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)b->jail.inner);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && own >= 0);
	CHECK_EQ(setns(fd, CLONE_NEWPID), 0);
	machine_start(m, &b->s, npages, hold_at);
	CHECK_EQ(setns(own, CLONE_NEWPID), 0);
	close(fd);
	close(own);
}

static void wait_serves(const struct booted *b, unsigned int n)
{
	uint64_t end = now_ms() + (tap_slow() ? 160000 : 20000);

	while (logged(&b->s, "serves ") < n) {
		if (now_ms() > end) {
			show_logs(b);
			FAIL("waited too long for a machine to be served the %u. time", n);
		}
		usleep(1000);
	}
}

/* What systemd says of the units; keys that it is too old for, it says it passes over. */
TEST_TIMEOUT(units_are_understood, 60)
{
	struct booted b = { .command = "/bin/true" };
	char cmd[400], line[600];
	FILE *f;

	if (system("systemd-analyze --version >/dev/null 2>&1"))
		SKIP("systemd", "there is no systemd-analyze");
	strcpy(b.jail.units, "/tmp/gmem-units-XXXXXX");
	CHECK(mkdtemp(b.jail.units));
	write_units(&b);
	snprintf(cmd, sizeof(cmd),
		 "cd %s && SYSTEMD_UNIT_PATH=%s systemd-analyze verify --man=no ./gmem-serve.service "
		 "./gmem-serve.socket 2>&1",
		 b.jail.units, b.jail.units);
	f = popen(cmd, "re");
	CHECK(f);
	while (fgets(line, sizeof(line), f))
		if (!strstr(line, "FileDescriptorStorePreserve"))
			FAIL("%s", line);
	CHECK_EQ(pclose(f), 0);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", b.jail.units);
	CHECK_EQ(system(cmd), 0);
}

/* The first machine starts the service. */
TEST_TIMEOUT(killed_under_systemd, 120)
{
	struct machine m[2];
	struct booted b = { 0 };

	boot(&b);
	for (int i = 0; i < 2; i++)
		machine_inside(&m[i], &b, 512, 1);
	for (unsigned int round = 1; round <= 5; round++) {
		wait_serves(&b, 2 * round);
		for (int i = 0; i < 2; i++)
			WAIT_FOR(atomic_load(&m[i].shared->ops) >= (round - 1) * 100);
		systemctl(&b, "kill --kill-who=main -s KILL gmem-serve.service");
		for (int i = 0; i < 2; i++)
			atomic_store(&m[i].shared->hold_at, round * 100 + 1);
	}
	for (int i = 0; i < 2; i++)
		machine_finish(&m[i]);
	wait_empty(&b.s);
	CHECK(logged(&b.s, "minder 1") >= 6);
	CHECK_EQ(logged(&b.s, "took "), 0);
	shut_down(&b);
}

TEST_TIMEOUT(killed_at_every_step_under_systemd, 200)
{
	static const char *const steps[] = { "accepted", "peeked", "put", "rename", "ledger", "consumed" };
	struct booted b = { 0 };

	boot(&b);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct machine m;

		die_at(&b.s, steps[i]);
		machine_inside(&m, &b, 64, 0);
		WAIT_FOR(has_file(&b.s, "died"));
		machine_finish(&m);
		wait_empty(&b.s);
	}
	if (logged(&b.s, "took ")) {
		show_logs(&b);
		FAIL("a descriptor was lost from the store");
	}
	shut_down(&b);
}

/* systemctl restart is an upgrade in place; after a stop the descriptors are in the store, or in the machines. */
TEST_TIMEOUT(restarted_and_stopped, 120)
{
	struct machine m;
	struct booted b = { 0 };

	boot(&b);
	machine_inside(&m, &b, 256, 100);
	wait_serves(&b, 1);
	WAIT_FOR(atomic_load(&m.shared->ops) == 100);
	systemctl(&b, "restart gmem-serve.service");
	wait_serves(&b, 2);
	CHECK_EQ(logged(&b.s, "stops"), 1);
	CHECK_EQ(logged(&b.s, "took "), 0);
	systemctl(&b, "stop gmem-serve.service");
	CHECK_EQ(logged(&b.s, "stops"), 2);
	CHECK_EQ(count_files(&b.s, ".json"), 1);
	systemctl(&b, "start gmem-serve.service");
	wait_serves(&b, 3);
	printf("out of the machine: %u\n", logged(&b.s, "took "));
	machine_finish(&m);
	wait_empty(&b.s);
	shut_down(&b);
}

/* The memory file of the machines; they compare every page with it. */
static void write_memory(const char *path, uint64_t npages)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	char page[P];

	CHECK_OK(fd);
	for (uint64_t i = 0; i < npages; i++) {
		fill_page(ID, i * P, page);
		CHECK_EQ(write(fd, page, P), P);
	}
	close(fd);
}

static void touched(struct machine *m, uint64_t ops)
{
	for (int i = 0; i < 2; i++)
		atomic_store(&m[i].shared->hold_at, ops);
	for (int i = 0; i < 2; i++)
		WAIT_FOR(atomic_load(&m[i].shared->ops) >= ops);
}

/* gmem serve itself, with its unit: killed, restarted, stopped and started. */
TEST_TIMEOUT(the_command_under_systemd, 200)
{
	char dir[] = "/tmp/gmem-memory-XXXXXX", memory[64], cmd[600], gmem[400];
	const char *build = getenv("GMEM_BUILD"), *other = getenv("GMEM_TEST_COMMAND");
	struct booted b = { .s.firecracker = true };
	struct machine m[2];

	snprintf(gmem, sizeof(gmem), "%s%s", other ? other : build ? build : "build", other ? "" : "/gmem");
	snprintf(cmd, sizeof(cmd), "%s serve --help >/dev/null 2>&1", gmem);
	if (system(cmd))
		SKIP("serve", "%s has no command serve", gmem);
	CHECK(mkdtemp(dir));
	snprintf(memory, sizeof(memory), "%s/memory", dir);
	write_memory(memory, 512);
	snprintf(b.command, sizeof(b.command), "%.300s serve --state-dir=/run/gmem-serve --no-fill --source a=raw:%s",
		 gmem, memory);
	boot(&b);
	for (int i = 0; i < 2; i++)
		machine_inside(&m[i], &b, 512, 1);
	for (unsigned int round = 1; round <= 4; round++) {
		touched(m, round * 100);
		systemctl(&b, "kill --kill-who=main -s KILL gmem-serve.service");
	}
	touched(m, 500);
	systemctl(&b, "restart gmem-serve.service");
	touched(m, 600);
	systemctl(&b, "stop gmem-serve.service");
	CHECK_EQ(count_files(&b.s, ".json"), 2);
	systemctl(&b, "start gmem-serve.service");
	touched(m, 700);
	for (int i = 0; i < 2; i++)
		machine_finish(&m[i]);
	wait_empty(&b.s);
	shut_down(&b);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	CHECK_EQ(system(cmd), 0);
}
