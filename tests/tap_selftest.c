/* SPDX-License-Identifier: MIT */
/* The test header's own behaviour: each case here runs another one in a process of its own and looks at its output. */
#include <fcntl.h>
#include <pthread.h>

#include "tap.h"

/* Runs `fn` as the only case of a program, with GMEM_REQUIRE set to `require`. Returns whether it failed. */
static bool run_as_case(void (*fn)(void), unsigned int seconds, const char *require, char *output, size_t size)
{
	struct tap_case c = {.name = "inner", .fn = fn, .seconds = seconds};
	int fd = (int)CHECK_OK(memfd_create("selftest", MFD_CLOEXEC)), status;
	pid_t pid = (pid_t)CHECK_OK(fork());
	ssize_t n;

	if (!pid) {
		sigset_t chld;

		dup2(fd, 1);
		close(fd);
		if (require)
			setenv("GMEM_REQUIRE", require, 1);
		else
			unsetenv("GMEM_REQUIRE");
		unsetenv("GMEM_TEST_TIMEOUT_FACTOR");
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		sigemptyset(&chld);
		sigaddset(&chld, SIGCHLD);
		sigprocmask(SIG_BLOCK, &chld, NULL);
		tap_shared = mmap(NULL, sizeof(*tap_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		CHECK(tap_shared != MAP_FAILED);
		status = tap_run(&c, 1) ? 0 : 9;
		fflush(NULL);
		_exit(status);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 9));
	n = CHECK_OK(pread(fd, output, size - 1, 0));
	output[n] = 0;
	printf("%s", output);
	close(fd);
	return WEXITSTATUS(status) == 9;
}

static char output[16384];

#define CHECK_PASSES(fn, require) CHECK(!run_as_case(fn, 20, require, output, sizeof(output)))
#define CHECK_FAILS(fn, require) CHECK(run_as_case(fn, 20, require, output, sizeof(output)))

static void inner_good(void)
{
	printf("ok 7 - not a result\n");
	CHECK(true);
	CHECK_EQ(-1, (uint64_t)-1);
	CHECK_STR("a", "a");
	CHECK_HAS("abc", "bc");
	CHECK_MEM("ab", "ab", 2);
	CHECK_ERR(gmem_err(-EINVAL, "why"), -EINVAL);
}

TEST(good_case_passes)
{
	CHECK_PASSES(inner_good, NULL);
	CHECK_HAS(output, "\nok 1 - inner\n");
	CHECK_HAS(output, "#   ok 7 - not a result\n");
}

static void inner_check(void) { CHECK(1 + 1 == 3); }
static void inner_eq(void) { CHECK_EQ(2, 3); }
static void inner_str(void) { CHECK_STR("a", "b"); }
static void inner_mem(void) { CHECK_MEM("abc", "abd", 3); }
static void inner_ok(void) { CHECK_OK(-5); }
static void inner_err_other(void) { CHECK_ERR(gmem_err(-EIO, "x"), -EINVAL); }
static int no_text(void) { return -EINVAL; }
static void inner_err_no_text(void)
{
	gmem_err(-EINVAL, "an older text");
	CHECK_ERR(no_text(), -EINVAL);
}

TEST(each_check_fails_the_case)
{
	CHECK_FAILS(inner_check, NULL);
	CHECK_HAS(output, "CHECK(1 + 1 == 3)");
	CHECK_HAS(output, "\nnot ok 1 - inner\n");
	CHECK_FAILS(inner_eq, NULL);
	CHECK_HAS(output, "2 is 2 (0x2), not 3: 3 (0x3)");
	CHECK_FAILS(inner_str, NULL);
	CHECK_FAILS(inner_mem, NULL);
	CHECK_HAS(output, "differ at byte 2: 0x63, 0x64");
	CHECK_FAILS(inner_ok, NULL);
	CHECK_FAILS(inner_err_other, NULL);
	CHECK_FAILS(inner_err_no_text, NULL);
	CHECK_HAS(output, "left no error text");
}

static void *check_in_thread(void *arg)
{
	(void)arg;
	CHECK(!"thread");
	return NULL;
}

static void inner_thread_check(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, check_in_thread, NULL));
	pthread_join(thread, NULL);
}

static void inner_signal(void) { raise(SIGBUS); }
static void inner_killed(void) { raise(SIGKILL); }
static void inner_exit(void) { exit(0); }

TEST(dying_fails_the_case)
{
	CHECK_FAILS(inner_thread_check, NULL);
	CHECK_FAILS(inner_signal, NULL);
	CHECK_FAILS(inner_killed, NULL);
	CHECK_HAS(output, "killed by signal 9");
	CHECK_FAILS(inner_exit, NULL);
	CHECK_HAS(output, "exited by itself");
}

static void inner_leak_fd(void) { CHECK(open("/dev/null", O_RDONLY) >= 0); }

static void inner_leak_mapping(void)
{
	int fd = memfd_create("gmem-ram", MFD_CLOEXEC);

	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
	close(fd);
}

static void *wait_in_thread(void *arg)
{
	pause();
	return arg;
}

static void inner_leak_thread(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, wait_in_thread, NULL));
	pthread_detach(thread);
}

/* A daemon: not the case's child when it ends, nor in its process group. */
static void inner_leak_process(void)
{
	pid_t pid = fork();

	if (!pid) {
		setsid();
		if (fork())
			_exit(0);
		alarm(30);
		pause();
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void inner_process_ending(void)
{
	if (!fork()) {
		usleep(200000);
		_exit(0);
	}
}

TEST_TIMEOUT(leaks_are_caught, 60)
{
	CHECK_FAILS(inner_leak_fd, NULL);
	CHECK_HAS(output, "leaked: descriptor");
	CHECK_HAS(output, "/dev/null");
	CHECK_FAILS(inner_leak_mapping, NULL);
	CHECK_HAS(output, "leaked: 1 mappings");
	CHECK_FAILS(inner_leak_thread, NULL);
	CHECK_HAS(output, "leaked: 1 threads");
	CHECK_PASSES(inner_process_ending, NULL);
}

TEST(process_left_behind_is_caught)
{
	if (prctl(PR_SET_CHILD_SUBREAPER, 0) < 0)
		SKIP("subreaper", "PR_SET_CHILD_SUBREAPER: %s (qemu-user has none)", strerror(errno));
	CHECK_FAILS(inner_leak_process, NULL);
	CHECK_HAS(output, "left behind: process");
}

static void inner_hang(void)
{
	sigset_t all;

	sigfillset(&all); /* nothing the case does to signals may save it */
	sigprocmask(SIG_SETMASK, &all, NULL);
	pause();
}

TEST(hanging_case_is_killed)
{
	CHECK(run_as_case(inner_hang, 1, NULL, output, sizeof(output)));
	CHECK_HAS(output, "took longer than 1 s");
	CHECK_HAS(output, "not ok 1 - inner\n");
}

static void inner_skip(void) { SKIP("uffd", "no %s\nhere", "userfaultfd"); }

TEST(skip_is_a_skip)
{
	CHECK_PASSES(inner_skip, NULL);
	CHECK_STR(output, "ok 1 - inner # SKIP uffd: no userfaultfd here\n");
	CHECK_PASSES(inner_skip, "kvm,uff,uffdx");
	CHECK_HAS(output, "# SKIP uffd");
}

TEST(required_skip_fails)
{
	CHECK_FAILS(inner_skip, "uffd");
	CHECK_FAILS(inner_skip, "kvm,uffd");
	CHECK_HAS(output, "required by GMEM_REQUIRE: uffd: no userfaultfd here");
	CHECK_FAILS(inner_skip, "uffd,linux");
	CHECK_FAILS(inner_skip, "all");
}

static void inner_seed(void)
{
	uint64_t a = tap_seed(), b = a;

	CHECK_EQ(tap_rand(&a), tap_rand(&b));
	CHECK(tap_rand(&a) != tap_rand(&a));
}

TEST(seed_is_printed_and_taken)
{
	setenv("GMEM_SEED", "42", 1);
	CHECK_PASSES(inner_seed, NULL);
	CHECK_HAS(output, "GMEM_SEED=42\n");
}
