/* SPDX-License-Identifier: MIT */
/* `gmem info` and the command itself, run as a user runs them. */
#include "tap.h"

#include <ctype.h>
#include <fcntl.h>
#include <jansson.h>
#include <pty.h>
#include <sys/wait.h>

struct output {
	char out[65536], err[4096];
	int code;
};

static void read_all(int fd, char *buf, size_t size)
{
	size_t at = 0;
	ssize_t n;

	lseek(fd, 0, SEEK_SET);
	while (at + 1 < size && (n = read(fd, buf + at, size - 1 - at)) > 0)
		at += (size_t)n;
	buf[at] = '\0';
	close(fd);
}

static void exec_gmem(const char *const *args)
{
	const char *build = getenv("GMEM_BUILD");
	const char *argv[8] = { "gmem" };
	char path[4096];
	int n = 1;

	snprintf(path, sizeof(path), "%s/gmem", build ? build : "build");
	while (*args && n < 7)
		argv[n++] = *args++;
	execv(path, (char **)argv);
	dprintf(2, "%s: %s\n", path, strerror(errno));
	_exit(127);
}

/* Runs gmem with up to five arguments; standard output goes to `to` if that is a path. */
static void run_to(struct output *o, const char *to, const char *const *args)
{
	int out = to ? open(to, O_WRONLY | O_CLOEXEC) : memfd_create("out", MFD_CLOEXEC),
	    err = memfd_create("err", MFD_CLOEXEC), status;
	pid_t pid;

	CHECK(out >= 0 && err >= 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		dup2(out, 1);
		dup2(err, 2);
		exec_gmem(args);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status));
	o->code = WEXITSTATUS(status);
	o->out[0] = '\0';
	if (to)
		close(out);
	else
		read_all(out, o->out, sizeof(o->out));
	read_all(err, o->err, sizeof(o->err));
	if (o->code == 127)
		FAIL("%s", o->err);
}

#define RUN(o, ...) run_to(o, NULL, (const char *const[]){ __VA_ARGS__, NULL })

static struct output o;

TEST(json_equals_the_table)
{
	struct gmem_host *host;
	json_t *root, *facts, *abilities;
	json_error_t error;

	RUN(&o, "info", "--json");
	CHECK_EQ(o.code, 0);
	CHECK_STR(o.err, "");
	root = json_loads(o.out, JSON_REJECT_DUPLICATES, &error);
	if (!root)
		FAIL("line %d: %s", error.line, error.text);
	CHECK_STR(json_string_value(json_object_get(root, "gmem")), gmem_version());
	CHECK_STR(json_string_value(json_object_get(json_object_get(root, "engine"), "auto")), "user");

	CHECK_OK(gmem_host_probe(&host));
	facts = json_object_get(root, "facts");
	CHECK_EQ(json_array_size(facts), gmem_host_count(host));
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		static const char *const words[] = { "", "yes", "no", "denied" };
		struct gmem_host_item item = { .size = sizeof(item) };
		json_t *fact = json_array_get(facts, i);

		CHECK_OK(gmem_host_item(host, i, &item));
		CHECK_STR(json_string_value(json_object_get(fact, "name")), item.name);
		CHECK_STR(json_string_value(json_object_get(fact, "status")), words[item.status]);
		CHECK_STR(json_string_value(json_object_get(fact, "what")), item.what);
		CHECK_STR(json_string_value(json_object_get(fact, "advice")), item.advice);
		/* The descriptors and free pages of another process at another time may be others. */
		if (strncmp(item.name, "limits.", 7) && strncmp(item.name, "hugepages.", 10))
			CHECK_STR(json_string_value(json_object_get(fact, "value")), item.value);
	}

	abilities = json_object_get(root, "abilities");
	CHECK(json_array_size(abilities) >= 5);
	for (size_t i = 0; i < json_array_size(abilities); i++) {
		json_t *ability = json_array_get(abilities, i);
		const char *lacks = json_string_value(json_object_get(ability, "lacks"));

		CHECK_EQ(json_is_true(json_object_get(ability, "yes")), lacks == NULL);
		if (lacks) {
			bool known = false;

			for (size_t j = 0; j < json_array_size(facts); j++)
				known |= !strcmp(json_string_value(json_object_get(json_array_get(facts, j), "name")),
						 lacks);
			if (!known)
				FAIL("%s: no such fact", lacks);
			CHECK(!gmem_host_has(host, lacks));
		}
	}
	json_decref(root);
	gmem_host_free(host);
}

/* All the words of `words` in this order, whatever the line breaks between them. */
static const char *find_words(const char *text, const char *words)
{
	for (; *text; text++) {
		const char *t = text, *w = words;

		while (*w && *t) {
			if (isspace((unsigned char)*w) && isspace((unsigned char)*t)) {
				w += strspn(w, " ");
				t += strspn(t, " \n");
			} else if (*w++ != *t++) {
				w--;
				break;
			}
		}
		if (!*w)
			return t;
	}
	return NULL;
}

TEST(text_has_every_fact_and_all_advice)
{
	struct gmem_host *host;

	RUN(&o, "info");
	CHECK_EQ(o.code, 0);
	CHECK_STR(o.err, "");
	CHECK_HAS(o.out, "This machine can");
	CHECK(find_words(o.out, "Engine AUTO takes the user engine") != NULL);
	CHECK(!strchr(o.out, '\033'));
	for (const char *line = o.out; *line; line += strcspn(line, "\n") + 1)
		if (strcspn(line, "\n") > 100)
			FAIL("longer than 100 columns: %.*s", (int)strcspn(line, "\n"), line);

	CHECK_OK(gmem_host_probe(&host));
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };
		const char *name;

		CHECK_OK(gmem_host_item(host, i, &item));
		name = strchr(item.name, '.') + 1;
		if (!strncmp(name, "feature.", 8))
			name += 8;
		if (!strstr(o.out, name))
			FAIL("no %s", item.name);
		if (item.advice[0] && !find_words(o.out, item.advice))
			FAIL("%s: not the advice \"%s\"", item.name, item.advice);
	}
	gmem_host_free(host);
}

/* What `gmem info` writes to a terminal. */
static void run_on_terminal(struct output *r, bool no_color)
{
	static const char *const args[] = { "info", NULL };
	size_t at = 0;
	int master, status;
	pid_t pid;
	ssize_t n;

	pid = forkpty(&master, NULL, NULL, NULL);
	CHECK(pid >= 0);
	if (!pid) {
		setenv("TERM", "xterm", 1);
		no_color ? setenv("NO_COLOR", "1", 1) : unsetenv("NO_COLOR");
		exec_gmem(args);
	}
	while (at + 1 < sizeof(r->out) && (n = read(master, r->out + at, sizeof(r->out) - 1 - at)) > 0)
		at += (size_t)n;
	r->out[at] = '\0';
	close(master);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

TEST(colour_on_a_terminal_unless_told_not_to)
{
	run_on_terminal(&o, false);
	CHECK_HAS(o.out, "\033[32m");
	run_on_terminal(&o, true);
	CHECK_HAS(o.out, "This machine can");
	CHECK(!strchr(o.out, '\033'));
}

TEST(help_and_version)
{
	RUN(&o, "--version");
	CHECK_EQ(o.code, 0);
	CHECK_HAS(o.out, gmem_version());
	CHECK_STR(o.err, "");
	RUN(&o, "--help");
	CHECK_EQ(o.code, 0);
	CHECK_HAS(o.out, "info");
	CHECK_STR(o.err, "");
	RUN(&o, "info", "--help");
	CHECK_EQ(o.code, 0);
	CHECK_HAS(o.out, "--json");
}

static void check_usage_error(const char *names)
{
	CHECK_EQ(o.code, 2);
	CHECK_STR(o.out, "");
	CHECK_HAS(o.err, names);
	CHECK_HAS(o.err, "--help");
}

TEST(wrong_usage_is_exit_2_on_standard_error)
{
	run_to(&o, NULL, (const char *const[]){ NULL });
	check_usage_error("Usage");
	RUN(&o, "");
	check_usage_error("''");
	RUN(&o, "inof");
	check_usage_error("'inof'");
	RUN(&o, "--bad");
	check_usage_error("'--bad'");
	RUN(&o, "info", "--bad");
	check_usage_error("'--bad'");
	RUN(&o, "info", "-x");
	check_usage_error("'-x'");
	RUN(&o, "info", "extra");
	check_usage_error("'extra'");
	RUN(&o, "info", "--json=1");
	check_usage_error("--json");
}

TEST(a_full_disk_is_a_failure)
{
	run_to(&o, "/dev/full", (const char *const[]){ "info", NULL });
	CHECK_EQ(o.code, 1);
	CHECK_HAS(o.err, "standard output");
	run_to(&o, "/dev/full", (const char *const[]){ "info", "--json", NULL });
	CHECK_EQ(o.code, 1);
	CHECK_HAS(o.err, "standard output");
}
