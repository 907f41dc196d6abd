/* SPDX-License-Identifier: MIT */
/* The part of tap.h that runs the cases. Included by it once a program. */
#ifndef GMEM_TESTS_TAP_MAIN_H
#define GMEM_TESTS_TAP_MAIN_H

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>

#define TAP_MAX_FD 1024

enum tap_outcome { TAP_UNKNOWN, TAP_PASSED, TAP_FAILED, TAP_SKIPPED };

/* Shared by the parent and the process of the case, which must not need a descriptor for it. */
struct tap_shared {
	enum tap_outcome outcome;
	char tag[32];
	char reason[400];
};

/* What a case must leave as it found it. */
struct tap_holdings {
	bool fd[TAP_MAX_FD];
	unsigned int threads, mappings;
};

static struct tap_case *tap_cases;
static struct tap_shared *tap_shared; /* NULL: running without a fork */

void tap_add(struct tap_case *c)
{
	struct tap_case **at = &tap_cases;

	while (*at && (*at)->line < c->line)
		at = &(*at)->next;
	c->next = *at;
	*at = c;
}

void tap_fail(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	printf("%s:%d: ", file, line);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(NULL);
	if (!tap_shared)
		abort();
	tap_shared->outcome = TAP_FAILED;
	_exit(1); /* not exit(): other threads may be running */
}

void tap_skip(const char *tag, const char *fmt, ...)
{
	char reason[sizeof(tap_shared->reason)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	fflush(NULL);
	if (!tap_shared) {
		printf("skipped: %s: %s\n", tag, reason);
		fflush(NULL);
		_exit(77);
	}
	for (char *p = reason; *p; p++)
		if (*p == '\n')
			*p = ' ';
	snprintf(tap_shared->tag, sizeof(tap_shared->tag), "%s", tag);
	memcpy(tap_shared->reason, reason, sizeof(reason));
	tap_shared->outcome = TAP_SKIPPED;
	_exit(0);
}

uint64_t tap_seed(void)
{
	const char *env = getenv("GMEM_SEED");
	uint64_t seed = 0;

	if (env)
		seed = strtoull(env, NULL, 0);
	else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		FAIL("getrandom: %s", strerror(errno));
	printf("seed: GMEM_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

const char *tap_emulator(void)
{
	return getenv("GMEM_EMULATOR");
}

bool tap_slow(void)
{
	const char *factor = getenv("GMEM_TEST_TIMEOUT_FACTOR");

	return factor && atoi(factor) > 1;
}

uint64_t tap_rand(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* Calls fn for each numeric entry of a folder of /proc. */
static void tap_each_number(const char *path, void (*fn)(int number, void *opaque), void *opaque)
{
	DIR *dir = opendir(path);
	struct dirent *de;

	if (!dir)
		return;
	while ((de = readdir(dir)))
		if (isdigit((unsigned char)de->d_name[0]) && atoi(de->d_name) != dirfd(dir))
			fn(atoi(de->d_name), opaque);
	closedir(dir);
}

static void tap_see_fd(int fd, void *opaque)
{
	if (fd < TAP_MAX_FD)
		((struct tap_holdings *)opaque)->fd[fd] = true;
}

static void tap_see_thread(int tid, void *opaque)
{
	(void)tid;
	((struct tap_holdings *)opaque)->threads++;
}

static void tap_take_stock(struct tap_holdings *h)
{
	char line[512];
	FILE *maps;

	memset(h, 0, sizeof(*h));
	tap_each_number("/proc/self/fd", tap_see_fd, h);
	tap_each_number("/proc/self/task", tap_see_thread, h);
	maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof(line), maps))
		h->mappings += !!strstr(line, "memfd:gmem-");
	if (maps)
		fclose(maps);
}

/* Says what was left behind. A joined thread may stay in /proc for a moment. */
static bool tap_leaked(const struct tap_holdings *before)
{
	struct tap_holdings after;
	bool leaked = false;

	tap_take_stock(&after);
	for (int i = 0; i < 100 && after.threads > before->threads; i++) {
		usleep(10000);
		tap_take_stock(&after);
	}
	for (int fd = 0; fd < TAP_MAX_FD; fd++) {
		char path[32], target[256];
		ssize_t n;

		if (!after.fd[fd] || before->fd[fd])
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		target[n < 0 ? 0 : n] = 0;
		printf("leaked: descriptor %d, %s\n", fd, target);
		leaked = true;
	}
	if (after.threads > before->threads) {
		printf("leaked: %u threads\n", after.threads - before->threads);
		leaked = true;
	}
	if (after.mappings > before->mappings) {
		printf("leaked: %u mappings of guest memory files\n", after.mappings - before->mappings);
		leaked = true;
	}
	return leaked;
}

#ifdef __SANITIZE_THREAD__
static void *tap_no_thread(void *arg)
{
	return arg;
}
#endif

/* In the process of the case. */
static void tap_child(struct tap_case *c)
{
	struct tap_holdings before;

#ifdef __SANITIZE_THREAD__
	pthread_t thread; /* with the first one the sanitizer starts its own, which is no leak */

	if (!pthread_create(&thread, NULL, tap_no_thread, NULL))
		pthread_join(thread, NULL);
#endif
	tap_take_stock(&before);
	c->fn();
	tap_shared->outcome = tap_leaked(&before) ? TAP_FAILED : TAP_PASSED;
	exit(tap_shared->outcome != TAP_PASSED); /* not _exit(): sanitizers report at exit */
}

static void tap_print_file(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		printf("#     %s%s", line, strchr(line, '\n') ? "" : "\n");
	if (file)
		fclose(file);
}

/* Where a thread of a case that ran out of time waits. */
static void tap_print_thread(int tid, void *opaque)
{
	char path[64];

	printf("#   thread %d: name, waiting in, system call:\n", tid);
	for (const char **f = (const char *[]){"comm", "wchan", "syscall", NULL}; *f; f++) {
		snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", *(int *)opaque, tid, *f);
		tap_print_file(path);
	}
}

/* Waits for the process, kills it after `seconds`. False if it had to. */
static bool tap_wait(pid_t pid, unsigned int seconds, int *status)
{
	const struct timespec step = {.tv_nsec = 100000000};
	struct timespec start, now;
	char path[32];
	sigset_t chld;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (waitpid(pid, status, WNOHANG) == 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec >= (time_t)seconds) {
			printf("#   took longer than %u s\n", seconds);
			snprintf(path, sizeof(path), "/proc/%d/task", pid);
			tap_each_number(path, tap_print_thread, &pid);
			kill(-pid, SIGKILL);
			kill(pid, SIGKILL);
			waitpid(pid, status, 0);
			return false;
		}
		sigtimedwait(&chld, NULL, &step);
	}
	return true;
}

/* If `pid` is a child of ours: says so and kills it. A zombie is only waiting to be reaped. */
static void tap_kill_stray(int pid, void *opaque)
{
	char path[32], line[256] = "", *p;
	int ppid = 0;
	char state;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return;
	p = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
	if (p && sscanf(p + 1, " %c %d", &state, &ppid) == 2 && ppid == getpid() && state != 'Z') {
		p[1] = 0;
		printf("#   left behind: process %s\n", line);
		*(bool *)opaque = true;
		kill(pid, SIGKILL);
	}
	fclose(file);
}

/*
 * Ends what the case left running; descendants became our children when their parent died (subreaper). Processes on
 * their way out get two seconds.
 */
static bool tap_strays(bool patient)
{
	bool strays = false;

	for (int i = 0; i < 200; i++) {
		pid_t pid;

		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0)
			return false;
		if (!patient)
			break;
		usleep(10000);
	}
	for (int i = 0; i < 500; i++) {
		tap_each_number("/proc", tap_kill_stray, &strays);
		usleep(10000);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (waitpid(-1, NULL, WNOHANG) < 0)
			break;
	}
	return strays;
}

/* The case's output as comments, so that no line of it can be taken for a result. */
static void tap_print_output(int fd)
{
	FILE *file;
	bool start = true;
	int ch;

	lseek(fd, 0, SEEK_SET);
	file = fdopen(fd, "r");
	while (file && (ch = fgetc(file)) != EOF) {
		if (start)
			printf("#   ");
		putchar(ch);
		start = ch == '\n';
	}
	if (!start)
		putchar('\n');
	if (file)
		fclose(file);
}

static bool tap_required(const char *tag)
{
	const char *list = getenv("GMEM_REQUIRE");
	size_t len = strlen(tag);

	if (list && !strcmp(list, "all"))
		return true;
	for (const char *p = list; p && *p; p = *p ? p + 1 : p) {
		size_t n = strcspn(p, ", ");

		if (n && n == len && !strncmp(p, tag, n))
			return true;
		p += n;
	}
	return false;
}

/* Runs one case in a process of its own and prints its TAP line. True unless it failed. */
static bool tap_run(struct tap_case *c, unsigned int number)
{
	const char *factor = getenv("GMEM_TEST_TIMEOUT_FACTOR");
	unsigned int seconds = c->seconds * (factor && atoi(factor) > 0 ? (unsigned int)atoi(factor) : 1);
	int out = memfd_create("tap-output", MFD_CLOEXEC), null = open("/dev/null", O_RDONLY | O_CLOEXEC), status = 0;
	bool in_time, failed, strays;
	pid_t pid;

	memset(tap_shared, 0, sizeof(*tap_shared));
	fflush(NULL);
	pid = fork();
	if (!pid) {
		sigset_t none;

		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		dup2(null, 0);
		dup2(out, 1);
		dup2(out, 2);
		close(null);
		close(out);
		setvbuf(stdout, NULL, _IOLBF, 0);
		tap_child(c);
	}
	close(null);
	if (pid < 0 || out < 0) {
		printf("not ok %u - %s\n#   cannot start: %s\n", number, c->name, strerror(errno));
		return false;
	}
	in_time = tap_wait(pid, seconds, &status);
	failed = !in_time || status != 0 || tap_shared->outcome == TAP_FAILED;
	strays = tap_strays(!failed);
	tap_print_output(out);
	if (in_time && WIFSIGNALED(status))
		printf("#   killed by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else if (in_time && status && tap_shared->outcome != TAP_FAILED)
		printf("#   exited with status %d\n", WEXITSTATUS(status));
	else if (!failed && tap_shared->outcome == TAP_UNKNOWN)
		printf("#   exited by itself\n");
	failed |= strays || tap_shared->outcome == TAP_UNKNOWN;
	if (!failed && tap_shared->outcome == TAP_SKIPPED) {
		failed = tap_required(tap_shared->tag);
		if (failed)
			printf("#   required by GMEM_REQUIRE: %s: %s\n", tap_shared->tag, tap_shared->reason);
		else
			printf("ok %u - %s # SKIP %s: %s\n", number, c->name, tap_shared->tag, tap_shared->reason);
	} else if (!failed) {
		printf("ok %u - %s\n", number, c->name);
	}
	if (failed)
		printf("not ok %u - %s\n", number, c->name);
	fflush(stdout);
	return !failed;
}

static struct tap_case *tap_find(const char *name)
{
	struct tap_case *c = tap_cases;

	while (c && strcmp(c->name, name))
		c = c->next;
	if (!c) {
		fprintf(stderr, "no case %s; -l lists them\n", name);
		exit(2);
	}
	return c;
}

int main(int argc, char **argv)
{
	bool list = argc > 1 && !strcmp(argv[1], "-l"), some = argc > 1 && !strcmp(argv[1], "-f");
	unsigned int n = 0, failures = 0;
	sigset_t chld;

	if (argc == 2 && !list && !some) {
		setvbuf(stdout, NULL, _IOLBF, 0);
		tap_find(argv[1])->fn();
		printf("%s: passed\n", argv[1]);
		return 0;
	}
	if (argc > 2 && !some) {
		fprintf(stderr, "usage: %s [-l | CASE | -f CASE...]\n", argv[0]);
		return 2;
	}
	tap_shared = mmap(NULL, sizeof(*tap_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tap_shared == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL); /* tap_wait() takes it */
	for (int i = 2; some && i < argc; i++)
		failures += !tap_run(tap_find(argv[i]), ++n);
	for (struct tap_case *c = tap_cases; !some && c; c = c->next) {
		if (list)
			printf("%s\n", c->name);
		else
			failures += !tap_run(c, ++n);
	}
	if (!list)
		printf("1..%u\n", n);
	return failures > 0;
}

#endif
