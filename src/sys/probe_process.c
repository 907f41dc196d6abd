/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/memfd.h"
#include "sys/process.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

#define FILTERED "a seccomp filter forbids it: allow it in the container's profile"

static void add(struct gmem_probe *probe, const char *name, int rc, const char *what, const char *advice)
{
	gmem_probe_add(probe, name, gmem_probe_status(rc), what,
		       gmem_probe_status(rc) == GMEM_HOST_DENIED ? FILTERED : advice, "%s", gmem_probe_why(rc));
}

static int try_self_read(void)
{
	char from = 1, to = 0;
	ssize_t n = gmem_sys_self_read(&to, &from, 1);

	return n < 0 ? (int)n : to == 1 ? 0 : -EIO;
}

static int try_getfd(int pidfd)
{
	int fd;

	if (pidfd < 0)
		return pidfd;
	fd = gmem_pidfd_getfd(pidfd, pidfd);
	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : 0;
}

static int try_peer_pidfd(void)
{
	int pair[2], peer = -1, rc = 0;
	socklen_t len = sizeof(peer);

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -errno;
	if (getsockopt(pair[0], SOL_SOCKET, SO_PEERPIDFD, &peer, &len))
		rc = -errno;
	else
		close(peer);
	close(pair[0]);
	close(pair[1]);
	return rc;
}

static bool may_trace(void)
{
	char line[256];
	unsigned long long caps = 0;
	FILE *f = fopen("/proc/self/status", "re");

	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &caps) == 1)
			break;
	fclose(f);
	return caps & (1ULL << 19); /* CAP_SYS_PTRACE */
}

/* Taking descriptors from a program that is not our child. */
static void probe_trace(struct gmem_probe *probe)
{
	char text[16];
	int rc = gmem_probe_read("/proc/sys/kernel/yama/ptrace_scope", text, sizeof(text));
	int scope = rc ? 0 : atoi(text);
	bool ok = scope == 0 || (scope < 3 && may_trace());

	gmem_probe_add(probe, "process.trace", ok ? GMEM_HOST_YES : GMEM_HOST_DENIED,
		       "descriptors may be taken from a program of the same user",
		       scope == 3 ? "boot without kernel.yama.ptrace_scope=3: it cannot be lowered again" :
				    "sysctl -w kernel.yama.ptrace_scope=0, or setcap cap_sys_ptrace+ep on gmem",
		       scope ? "ptrace_scope %d" : "%.0d", scope);
}

static void probe_limits(struct gmem_probe *probe)
{
	struct gmem_scratch mem;
	struct rlimit limit;
	char text[32];
	int rc = gmem_probe_read("/proc/sys/vm/max_map_count", text, sizeof(text));
	unsigned long long maps = rc ? 0 : strtoull(text, NULL, 10);

	gmem_probe_add(probe, "limits.map_count", maps >= 65530 ? GMEM_HOST_YES : GMEM_HOST_NO,
		       "mappings a process may have", "sysctl -w vm.max_map_count=262144", "%s",
		       rc ? gmem_probe_why(rc) : text);

	getrlimit(RLIMIT_NOFILE, &limit);
	gmem_probe_add(probe, "limits.open_files", limit.rlim_max >= 1024 ? GMEM_HOST_YES : GMEM_HOST_NO,
		       "descriptors a process may have: now, and at most",
		       "ulimit -Hn 4096 as root, or nofile in /etc/security/limits.conf", "%llu of %llu",
		       (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);

	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur == RLIM_INFINITY)
		snprintf(text, sizeof(text), "unlimited");
	else
		snprintf(text, sizeof(text), "%llu KiB", (unsigned long long)limit.rlim_cur >> 10);
	rc = gmem_scratch_map(&mem, GMEM_SCRATCH_ANON, 1);
	if (!rc && mlock(mem.addr, mem.len))
		rc = -errno;
	gmem_scratch_unmap(&mem);
	gmem_probe_add(probe, "limits.locked_memory", gmem_probe_status(rc), "memory may be locked (a page was)",
		       "ulimit -l unlimited as root, or memlock in /etc/security/limits.conf", "%s", text);
}

void gmem_probe_process(struct gmem_probe *probe)
{
	int memfd = gmem_probe_fd(probe, gmem_memfd_create("gmem-probe", (uint64_t)sysconf(_SC_PAGESIZE)));
	int pidfd = gmem_probe_fd(probe, gmem_pidfd_open(getpid()));

	add(probe, "process.memfd", memfd, "a sealed memory file can be made", "a kernel with CONFIG_MEMFD_CREATE=y");
	add(probe, "process.vm_readv", try_self_read(), "memory that may be bad is read without a signal",
	    "a kernel with CONFIG_CROSS_MEMORY_ATTACH=y");
	add(probe, "process.pidfd_open", pidfd, "a process is followed without mistaking another for it",
	    "Linux 5.3 or newer");
	add(probe, "process.pidfd_getfd", gmem_probe_fd(probe, try_getfd(pidfd)),
	    "a descriptor is taken from a running program", "Linux 5.6 or newer");
	add(probe, "process.peer_pidfd", gmem_probe_fd(probe, try_peer_pidfd()),
	    "which process is at the other end of a socket",
	    "Linux 6.5 or newer; gmem then asks by number (SO_PEERCRED)");
	probe_trace(probe);
	probe_limits(probe);

	if (pidfd >= 0)
		close(pidfd);
	if (memfd >= 0)
		close(memfd);
}
