/* SPDX-License-Identifier: MIT */
/*
 * A systemd that is the first process of namespaces of its own, and can change nothing of this machine: every mount is
 * read-only for it, but for a /run, a /proc and cgroups that are its alone; it knows the units it is given and no
 * others (those of the machine clean /tmp, among other things). What does not hold of this ends the test before systemd
 * runs.
 */
#ifndef GMEM_TESTS_SYSTEMD_UTIL_H
#define GMEM_TESTS_SYSTEMD_UTIL_H

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tap.h"

#define JAIL_REFUSED 77 /* this machine does not let us */
#define JAIL_LEAKS 78 /* it would have, and something was left open */

struct jail {
	char units[64]; /* its only unit path, written before */
	char group[64]; /* the cgroup's name, in each hierarchy */
	pid_t outer, inner; /* who waits for it, and itself, in our numbers */
	_Atomic pid_t *shared;
};

static const char *const jail_hierarchies[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd" };

/* Who calls this is in the group of that name from now on, wherever there is a hierarchy that systemd uses. */
static inline bool jail_enter_group(const struct jail *j)
{
	char path[200];
	bool any = false;

	for (size_t i = 0; i < 3; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/cgroup.procs", jail_hierarchies[i]);
		if (access(path, W_OK))
			continue;
		snprintf(path, sizeof(path), "%s/%s", jail_hierarchies[i], j->group);
		if (mkdir(path, 0755))
			return false;
		strcat(path, "/cgroup.procs");
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			return false;
		close(fd);
		any = true;
	}
	return any;
}

static inline void jail_remove_group(const struct jail *j)
{
	char cmd[300];

	for (size_t i = 0; i < 3; i++) {
		snprintf(cmd, sizeof(cmd),
			 "d=%s/%s; [ ! -d $d ] || find $d -depth -type d -exec rmdir {} + 2>/dev/null",
			 jail_hierarchies[i], j->group);
		if (system(cmd))
			printf("a cgroup is left: %s/%s\n", jail_hierarchies[i], j->group);
	}
}

static inline bool jail_read_only(const char *path, unsigned int flags)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };

	return !syscall(SYS_mount_setattr, AT_FDCWD, path, flags, &attr, sizeof(attr));
}

/* Neither made nor removed may anything be: tried on a directory of the test's, and where programs keep things. */
static inline bool jail_is_tight(const struct jail *j)
{
	static const char *const places[] = { "/", "/tmp", "/var", "/etc", "/root", "/dev/shm" };
	char path[200];

	if (!rmdir(j->units) || errno != EROFS)
		return false;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(path, sizeof(path), "%s/gmem-leak", places[i]);
		if (mkdir(path, 0700) == 0) {
			rmdir(path);
			return false;
		}
		if (errno != EROFS && errno != ENOENT)
			return false;
	}
	return true;
}

static inline bool jail_mount_own(const struct jail *j)
{
	const char *cgroup = "/sys/fs/cgroup";
	bool v2 = !access("/sys/fs/cgroup/cgroup.procs", F_OK);

	if (mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") ||
	    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    mount("/proc/sys", "/proc/sys", NULL, MS_BIND, NULL) || !jail_read_only("/proc/sys", 0))
		return false;
	if (v2)
		return !mount("cgroup2", cgroup, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	return !mount("tmpfs", cgroup, "tmpfs", 0, "mode=755") && !mkdir("/sys/fs/cgroup/unified", 0755) &&
	       !mkdir("/sys/fs/cgroup/systemd", 0755) &&
	       !mount("cgroup2", "/sys/fs/cgroup/unified", "cgroup2", 0, NULL) &&
	       !mount("systemd", "/sys/fs/cgroup/systemd", "cgroup", 0, "none,name=systemd,xattr");
}

static inline _Noreturn void jail_first_process(const struct jail *j, const char *program, int log)
{
	/* A test that is killed leaves none behind. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		_exit(JAIL_REFUSED);
	setsid();
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || !jail_read_only("/", AT_RECURSIVE))
		_exit(JAIL_REFUSED);
	if (!jail_is_tight(j))
		_exit(JAIL_LEAKS);
	if (!jail_mount_own(j))
		_exit(JAIL_REFUSED);
	clearenv();
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("container", "gmem-test", 1);
	setenv("UNITS", j->units, 1);
	/* Without a ':' at its end: these units and no others. */
	setenv("SYSTEMD_UNIT_PATH", j->units, 1);
	setenv("SYSTEMD_GENERATOR_PATH", j->units, 1);
	if (chdir("/") || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(JAIL_REFUSED);
	execl(program, program, "--system", "--unit=gmem-test.target", "--log-target=console", "--log-level=notice",
	      "--show-status=0", NULL);
	_exit(JAIL_REFUSED);
}

/* Returns at once; what becomes of it is known by jail->outer's exit status. */
static inline void jail_start(struct jail *j, const char *program)
{
	j->shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(j->shared != MAP_FAILED);
	snprintf(j->group, sizeof(j->group), "gmem-test-%d", (int)getpid());
	j->outer = fork();
	CHECK(j->outer >= 0);
	if (!j->outer) {
		char path[100];
		int status, log;
		pid_t inner;

		snprintf(path, sizeof(path), "%s/log", j->units);
		log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (log < 0 || !jail_enter_group(j) ||
		    unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET))
			_exit(JAIL_REFUSED);
		inner = fork();
		if (!inner)
			jail_first_process(j, program, log);
		if (inner < 0)
			_exit(JAIL_REFUSED);
		atomic_store(j->shared, inner);
		if (waitpid(inner, &status, 0) != inner)
			_exit(1);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 0);
	}
}

/* Its first process is killed, and with that all others that it has. */
static inline void jail_end(struct jail *j)
{
	int status;

	j->inner = atomic_load(j->shared);
	if (j->inner > 1)
		kill(j->inner, SIGKILL);
	if (j->outer > 1)
		CHECK_EQ(waitpid(j->outer, &status, 0), j->outer);
	jail_remove_group(j);
	munmap((void *)j->shared, 4096);
}

#endif
