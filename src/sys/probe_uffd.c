/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

#define SYSCTL "/proc/sys/vm/unprivileged_userfaultfd"
#define NO_CONFIG "this kernel has no userfaultfd: CONFIG_USERFAULTFD=y"

/*
 * The kernel lets every process have a user-mode-only descriptor, so where that one is forbidden, someone else
 * forbids.
 */
#define FILTERED                                                                                                    \
	"a seccomp filter or security module forbids userfaultfd(2): docker/podman --security-opt seccomp=PROFILE " \
	"that allows it, systemd SystemCallFilter=userfaultfd, or --device /dev/userfaultfd instead"
#define WAYS_TO_FULL                                                                                       \
	"as root one of: sysctl -w vm.unprivileged_userfaultfd=1; setfacl -m u:USER:rw /dev/userfaultfd; " \
	"setcap cap_sys_ptrace+ep on the program"

static const struct {
	uint64_t bit;
	const char *name, *since, *what; /* since: for the advice only, nothing is concluded from it */
} features[] = {
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "pagefault_flag_wp", "5.7", "write-protect faults on anonymous memory" },
	{ UFFD_FEATURE_EVENT_FORK, "event_fork", "4.11", "told when the process forks" },
	{ UFFD_FEATURE_EVENT_REMAP, "event_remap", "4.11", "told when a range is moved" },
	{ UFFD_FEATURE_EVENT_REMOVE, "event_remove", "4.11", "told when pages are dropped (balloon)" },
	{ UFFD_FEATURE_EVENT_UNMAP, "event_unmap", "4.11", "told when a range is unmapped" },
	{ UFFD_FEATURE_MISSING_HUGETLBFS, "missing_hugetlbfs", "4.11", "missing faults on huge pages" },
	{ UFFD_FEATURE_MISSING_SHMEM, "missing_shmem", "4.11", "missing faults on shared memory" },
	{ UFFD_FEATURE_SIGBUS, "sigbus", "4.14", "a signal instead of a message" },
	{ UFFD_FEATURE_THREAD_ID, "thread_id", "4.14", "which thread faulted" },
	{ UFFD_FEATURE_MINOR_HUGETLBFS, "minor_hugetlbfs", "5.13", "minor faults on huge pages" },
	{ UFFD_FEATURE_MINOR_SHMEM, "minor_shmem", "5.14", "minor faults on shared memory" },
	{ UFFD_FEATURE_EXACT_ADDRESS, "exact_address", "5.18", "the address itself, not its page" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "wp_hugetlbfs_shmem", "5.19",
	  "write-protect faults on shared memory and huge pages" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "wp_unpopulated", "6.4", "write-protects pages that are not there yet" },
	{ UFFD_FEATURE_POISON, "poison", "6.6", "page markers: an access is SIGBUS" },
	{ UFFD_FEATURE_WP_ASYNC, "wp_async", "6.7", "dirty tracking without messages" },
	{ UFFD_FEATURE_MOVE, "move", "6.8", "moves pages instead of copying them" },
};

static int open_device(void)
{
	int dev = gmem_sys_open("/dev/userfaultfd", O_RDWR);
	int fd;

	if (dev < 0)
		return dev;
	fd = gmem_sys_ioctl_val(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(dev);
	return fd;
}

static int open_how(int how)
{
	switch (how) {
	case GMEM_UFFD_HOW_SYSCALL:
		return gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK);
	case GMEM_UFFD_HOW_DEVICE:
		return open_device();
	case GMEM_UFFD_HOW_USER_MODE:
		return gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	default:
		return -EPERM;
	}
}

int gmem_probe_uffd_open(struct gmem_probe *probe, uint64_t wanted, struct uffdio_api *ret_api)
{
	struct uffdio_api api = { .api = UFFD_API, .features = wanted };
	int fd = gmem_probe_fd(probe, open_how(probe->uffd_how));
	int rc;

	if (fd < 0)
		return fd;
	rc = gmem_sys_ioctl(fd, UFFDIO_API, &api);
	if (rc < 0) {
		close(fd);
		return rc == -EINVAL ? -EOPNOTSUPP : rc;
	}
	if (ret_api)
		*ret_api = api;
	return fd;
}

/*
 * What a user-mode-only descriptor costs: the kernel's own access to a missing page fails at once instead of waiting.
 */
static int try_kernel_access(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct gmem_scratch mem;
	int fd = gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	int zero = gmem_sys_open("/dev/zero", O_RDONLY);
	int rc = gmem_scratch_map(&mem, GMEM_SCRATCH_ANON, 1);

	if (fd < 0 || zero < 0 || rc < 0) {
		rc = fd < 0 ? fd : zero < 0 ? zero : rc;
		goto out;
	}
	rc = gmem_sys_ioctl(fd, UFFDIO_API, &api);
	if (rc < 0)
		goto out;
	reg.range = (struct uffdio_range){ .start = (uintptr_t)mem.addr, .len = mem.len };
	rc = gmem_sys_ioctl(fd, UFFDIO_REGISTER, &reg);
	if (rc < 0)
		goto out;
	/* Waits for nobody: this kind of descriptor never makes the kernel wait. */
	rc = read(zero, mem.addr, 1) < 0 ? -errno : 0;
out:
	gmem_scratch_unmap(&mem);
	if (zero >= 0)
		close(zero);
	if (fd >= 0)
		close(fd);
	return rc;
}

static void probe_sysctl(struct gmem_probe *probe)
{
	char value[16];
	int rc = gmem_probe_read(SYSCTL, value, sizeof(value));
	enum gmem_host_status status = rc ? GMEM_HOST_NO : value[0] == '1' ? GMEM_HOST_YES : GMEM_HOST_NO;

	gmem_probe_add(probe, "userfaultfd.sysctl", status,
		       "vm.unprivileged_userfaultfd: anybody may open a full one with userfaultfd(2)",
		       rc == -ENOENT ?
			       NO_CONFIG :
			       "sysctl -w vm.unprivileged_userfaultfd=1 (not needed for root or with /dev/userfaultfd)",
		       "%s", rc ? gmem_probe_why(rc) : value);
}

static void probe_open(struct gmem_probe *probe)
{
	static const char *const ways[] = { "", "userfaultfd(2)", "/dev/userfaultfd", "" };
	char cost[64] = "";
	int rc[4];
	bool filtered;

	for (int how = GMEM_UFFD_HOW_SYSCALL; how <= GMEM_UFFD_HOW_USER_MODE; how++) {
		rc[how] = gmem_probe_fd(probe, open_how(how));
		if (rc[how] >= 0)
			close(rc[how]);
	}
	filtered = rc[GMEM_UFFD_HOW_USER_MODE] == -EPERM;
	probe->uffd_how = rc[1] >= 0 ? GMEM_UFFD_HOW_SYSCALL :
			  rc[2] >= 0 ? GMEM_UFFD_HOW_DEVICE :
			  rc[3] >= 0 ? GMEM_UFFD_HOW_USER_MODE :
				       GMEM_UFFD_HOW_NONE;
	if (rc[3] >= 0) {
		int err = gmem_probe_fd(probe, try_kernel_access());

		snprintf(cost, sizeof(cost), "kernel accesses are not served: read(2) gives %s",
			 err < 0 ? gmem_probe_why(err) : "no error");
	}

	gmem_probe_add(probe, "userfaultfd.full",
		       gmem_probe_status(rc[1] < 0 && rc[2] >= 0       ? 0 :
					 rc[1] < 0 && rc[2] == -EACCES ? -EACCES :
									 rc[1]),
		       "also serves accesses of the kernel: KVM, read(2) into guest memory",
		       rc[1] == -ENOSYS && rc[2] == -ENOENT ? NO_CONFIG :
		       filtered				    ? FILTERED :
							      WAYS_TO_FULL,
		       "%s", rc[1] < 0 && rc[2] < 0 ? gmem_probe_why(rc[1]) : ways[probe->uffd_how]);
	gmem_probe_add(probe, "userfaultfd.syscall", gmem_probe_status(rc[1]), "userfaultfd(2) without restriction",
		       rc[1] == -ENOSYS ? NO_CONFIG :
		       filtered		? FILTERED :
					  WAYS_TO_FULL,
		       "%s", gmem_probe_why(rc[1]));
	gmem_probe_add(
		probe, "userfaultfd.device", gmem_probe_status(rc[2]),
		"/dev/userfaultfd: who may open it may have a full one",
		rc[2] == -ENOENT ?
			"Linux 6.1 or newer with CONFIG_USERFAULTFD=y; in a container: --device /dev/userfaultfd" :
		rc[2] == -EACCES ? "as root: setfacl -m u:USER:rw /dev/userfaultfd" :
				   "a device policy forbids it: in a container add --device /dev/userfaultfd",
		"%s", gmem_probe_why(rc[2]));
	gmem_probe_add(probe, "userfaultfd.user_mode_only", gmem_probe_status(rc[3]),
		       "userfaultfd(2) for accesses of programs only",
		       rc[3] == -ENOSYS ? NO_CONFIG :
		       rc[3] == -EINVAL ? "Linux 5.11 or newer; or use a full one" :
					  FILTERED,
		       "%s", rc[3] < 0 ? gmem_probe_why(rc[3]) : cost);
	probe_sysctl(probe);
}

static void probe_kernel_access(struct gmem_probe *probe)
{
	bool full = probe->uffd_how == GMEM_UFFD_HOW_SYSCALL || probe->uffd_how == GMEM_UFFD_HOW_DEVICE;

	gmem_probe_add(probe, "userfaultfd.kernel_access",
		       full	       ? GMEM_HOST_YES :
		       probe->uffd_how ? GMEM_HOST_DENIED :
					 GMEM_HOST_NO,
		       "what the kernel touches itself (KVM_RUN, read(2) into guest memory) is served too",
		       probe->uffd_how ? "with a user-mode-only descriptor such accesses fail: see userfaultfd.full" :
					 "see userfaultfd.full",
		       "%s", "");
}

/* Enabling a feature on a descriptor of its own: some are there and need a privilege. */
static void probe_features(struct gmem_probe *probe)
{
	struct uffdio_api api = { 0 };
	int fd = gmem_probe_uffd_open(probe, 0, &api);
	char mask[24];

	snprintf(mask, sizeof(mask), "0x%llx", (unsigned long long)api.features);
	gmem_probe_add(probe, "userfaultfd.features", gmem_probe_status(fd), "what UFFDIO_API answers",
		       "see userfaultfd.full", "%s", fd < 0 ? gmem_probe_why(fd) : mask);
	if (fd >= 0)
		close(fd);

	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		char name[64], newer[96];
		int rc = fd;

		if (fd >= 0)
			rc = api.features & features[i].bit ? gmem_probe_uffd_open(probe, features[i].bit, NULL) :
							      -EOPNOTSUPP;
		snprintf(name, sizeof(name), "userfaultfd.feature.%s", features[i].name);
		snprintf(newer, sizeof(newer), "Linux %s or newer, built with this for its architecture",
			 features[i].since);
		gmem_probe_add(probe, name, gmem_probe_status(rc), features[i].what,
			       fd < 0	    ? "see userfaultfd.full" :
			       rc == -EPERM ? "needs CAP_SYS_PTRACE: setcap cap_sys_ptrace+ep on the program" :
					      newer,
			       "%s", gmem_probe_why(rc));
		if (rc >= 0)
			close(rc);
	}
}

void gmem_probe_uffd(struct gmem_probe *probe)
{
	probe_open(probe);
	probe_kernel_access(probe);
	probe_features(probe);
}
