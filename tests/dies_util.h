/* SPDX-License-Identifier: MIT */
/* What must end its process, and what it says before. Included after tap.h. */
#ifndef GMEM_TESTS_DIES_UTIL_H
#define GMEM_TESTS_DIES_UTIL_H

#include <sys/wait.h>

/* Runs fn in a child that must die by it, and gives what it wrote to standard error. */
static inline void dies(void (*fn)(void), char *text, size_t size)
{
	int p[2], status;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	CHECK_EQ(pipe(p), 0);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		dup2(p[1], STDERR_FILENO);
		close(p[0]);
		close(p[1]);
		fn();
		_exit(0);
	}
	close(p[1]);
	while (n < size - 1 && (got = read(p[0], text + n, size - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = '\0';
	close(p[0]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		FAIL("no violation was seen; it said: %s", text);
}

#endif
