/* SPDX-License-Identifier: MIT */
/*
 * The table of facts on machines that lack things: each case takes something away at the seam to the kernel (ld
 * --wrap).
 */
#include "tap.h"

#include <stdarg.h>
#include <sys/ioctl.h>

#include "sys/call.h"
#include "sys/uapi.h"

int __real_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __real_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val);
int __real_gmem_sys_open(const char *path, int flags);
int __real_gmem_sys_memfd(const char *name, unsigned int flags);
int __real_gmem_sys_userfaultfd(int flags);
int __real_gmem_sys_mbind(void *addr, size_t len, int mode, const unsigned long *mask, unsigned long maxnode,
			  unsigned int flags);
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val);
int __wrap_gmem_sys_open(const char *path, int flags);
int __wrap_gmem_sys_memfd(const char *name, unsigned int flags);
int __wrap_gmem_sys_userfaultfd(int flags);
int __wrap_gmem_sys_mbind(void *addr, size_t len, int mode, const unsigned long *mask, unsigned long maxnode,
			  unsigned int flags);

/* What is taken away in this case; a case is a process of its own. 0: nothing. */
static struct {
	const char *path;
	int path_err;
	unsigned long request; /* an ioctl that answers request_err, which may be 0: success claimed, nothing done */
	int request_err;
	bool request_set;
	int full_err, user_mode_err;
	uint64_t features_gone;
	uint64_t mode_gone;
	unsigned int memfd_flag;
	int memfd_err;
	int mbind_err;
} gone;
static unsigned int hits;

int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	int rc;

	if (gone.request_set && request == gone.request) {
		hits++;
		return gone.request_err;
	}
	if (request == UFFDIO_REGISTER && (((struct uffdio_register *)arg)->mode & gone.mode_gone)) {
		hits++;
		return -EINVAL;
	}
	if (request == UFFDIO_API && (((struct uffdio_api *)arg)->features & gone.features_gone)) {
		hits++;
		return -EINVAL;
	}
	rc = __real_gmem_sys_ioctl(fd, request, arg);
	if (request == UFFDIO_API)
		((struct uffdio_api *)arg)->features &= ~gone.features_gone;
	return rc;
}

int __wrap_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val)
{
	if (gone.request_set && request == gone.request) {
		hits++;
		return gone.request_err;
	}
	return __real_gmem_sys_ioctl_val(fd, request, val);
}

int __wrap_gmem_sys_open(const char *path, int flags)
{
	if (gone.path && !strcmp(path, gone.path)) {
		hits++;
		return gone.path_err;
	}
	return __real_gmem_sys_open(path, flags);
}

int __wrap_gmem_sys_memfd(const char *name, unsigned int flags)
{
	if (gone.memfd_err && (flags & gone.memfd_flag) == gone.memfd_flag) {
		hits++;
		return gone.memfd_err;
	}
	return __real_gmem_sys_memfd(name, flags);
}

int __wrap_gmem_sys_userfaultfd(int flags)
{
	int err = flags & UFFD_USER_MODE_ONLY ? gone.user_mode_err : gone.full_err;

	if (err) {
		hits++;
		return err;
	}
	return __real_gmem_sys_userfaultfd(flags);
}

int __wrap_gmem_sys_mbind(void *addr, size_t len, int mode, const unsigned long *mask, unsigned long maxnode,
			  unsigned int flags)
{
	if (gone.mbind_err) {
		hits++;
		return gone.mbind_err;
	}
	return __real_gmem_sys_mbind(addr, len, mode, mask, maxnode, flags);
}

static void take_request(unsigned long request, int err)
{
	gone.request = request;
	gone.request_err = err;
	gone.request_set = true;
}

static struct gmem_host *probe(void)
{
	struct gmem_host *host;

	CHECK_OK(gmem_host_probe(&host));
	return host;
}

/* As it is: the thing must be there to be taken away. */
static void need(const char *tag, const char *name)
{
	struct gmem_host *host = probe();
	bool has = gmem_host_has(host, name);

	gmem_host_free(host);
	if (!has)
		SKIP(tag, "%s is not there to be taken away", name);
}

static void check_fact(const struct gmem_host *host, const char *name, enum gmem_host_status status, const char *advice)
{
	struct gmem_host_item item = { .size = sizeof(item) };

	for (size_t i = 0; i < gmem_host_count(host); i++) {
		CHECK_OK(gmem_host_item(host, i, &item));
		if (strcmp(item.name, name))
			continue;
		if (item.status != status || !strstr(item.advice, advice))
			FAIL("%s: %d, value \"%s\", advice \"%s\"; not %d with \"%s\"", name, (int)item.status,
			     item.value, item.advice, (int)status, advice);
		return;
	}
	FAIL("no fact %s", name);
}

/* Probes, and the injection must have been met. */
static struct gmem_host *probe_without(void)
{
	struct gmem_host *host;

	hits = 0;
	host = probe();
	CHECK(hits > 0);
	return host;
}

TEST(no_kvm_module)
{
	struct gmem_host *host;

	gone.path = "/dev/kvm";
	gone.path_err = -ENOENT;
	host = probe_without();
	check_fact(host, "kvm.open", GMEM_HOST_NO, "modprobe kvm");
	check_fact(host, "kvm.vm.default", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "kvm.memslots", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "kvm.user_memory2", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "kvm.pre_fault", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "guest_memfd.create", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "guest_memfd.numa", GMEM_HOST_NO, "kvm.open");
	check_fact(host, "userfaultfd.guest_memfd.missing", GMEM_HOST_NO, "guest_memfd");
	gmem_host_free(host);
}

TEST(kvm_denied_by_mode)
{
	struct gmem_host *host;

	gone.path = "/dev/kvm";
	gone.path_err = -EACCES;
	host = probe_without();
	check_fact(host, "kvm.open", GMEM_HOST_DENIED, access("/dev/kvm", F_OK) ? "" : "USER");
	check_fact(host, "kvm.vm.default", GMEM_HOST_DENIED, "kvm.open");
	check_fact(host, "guest_memfd.create", GMEM_HOST_DENIED, "kvm.open");
	gmem_host_free(host);
}

TEST(kvm_denied_by_device_policy)
{
	struct gmem_host *host;

	gone.path = "/dev/kvm";
	gone.path_err = -EPERM;
	host = probe_without();
	check_fact(host, "kvm.open", GMEM_HOST_DENIED, "--device /dev/kvm");
	gmem_host_free(host);
}

TEST(no_capability_at_all)
{
	struct gmem_host *host;

	need("kvm", "kvm.vm.default");
	take_request(KVM_CHECK_EXTENSION, 0);
	host = probe_without();
	check_fact(host, "kvm.open", GMEM_HOST_YES, "");
	check_fact(host, "kvm.vm_types", GMEM_HOST_NO, "6.8");
	check_fact(host, "kvm.memslots", GMEM_HOST_NO, "6.8");
	check_fact(host, "kvm.memory_fault_info", GMEM_HOST_NO, "6.8");
	check_fact(host, "kvm.exit_hypercall", GMEM_HOST_NO, "x86");
	gmem_host_free(host);
}

TEST(machines_cannot_be_made)
{
	struct gmem_host *host;

	need("kvm", "kvm.vm.default");
	take_request(KVM_CREATE_VM, -ENODEV);
	host = probe_without();
	check_fact(host, "kvm.open", GMEM_HOST_YES, "");
	check_fact(host, "kvm.vm.default", GMEM_HOST_NO, "nested");
	check_fact(host, "guest_memfd.create", GMEM_HOST_NO, "kvm.vm.default");
	gmem_host_free(host);
}

TEST(no_guest_memfd)
{
	struct gmem_host *host;

	need("kvm", "guest_memfd.create");
	take_request(KVM_CREATE_GUEST_MEMFD, -ENOTTY);
	host = probe_without();
	check_fact(host, "kvm.vm.default", GMEM_HOST_YES, "");
	check_fact(host, "guest_memfd.create", GMEM_HOST_NO, "user engine");
	check_fact(host, "guest_memfd.mmap", GMEM_HOST_NO, "user engine");
	check_fact(host, "guest_memfd.punch", GMEM_HOST_NO, "user engine");
	check_fact(host, "userfaultfd.guest_memfd.missing", GMEM_HOST_NO, "guest_memfd");
	gmem_host_free(host);
}

TEST(conversion_in_place_is_seen_when_it_comes)
{
	struct gmem_host *host;

	need("kvm", "guest_memfd.create");
	take_request(KVM_SET_MEMORY_ATTRIBUTES2, 0);
	host = probe_without();
	check_fact(host, "guest_memfd.convert", GMEM_HOST_YES, "");
	gmem_host_free(host);
}

TEST(no_userfaultfd_in_the_kernel)
{
	struct gmem_host *host;

	gone.full_err = gone.user_mode_err = -ENOSYS;
	gone.path = "/dev/userfaultfd";
	gone.path_err = -ENOENT;
	host = probe_without();
	check_fact(host, "userfaultfd.full", GMEM_HOST_NO, "CONFIG_USERFAULTFD=y");
	check_fact(host, "userfaultfd.syscall", GMEM_HOST_NO, "CONFIG_USERFAULTFD=y");
	check_fact(host, "userfaultfd.user_mode_only", GMEM_HOST_NO, "CONFIG_USERFAULTFD=y");
	check_fact(host, "userfaultfd.device", GMEM_HOST_NO, "CONFIG_USERFAULTFD=y");
	CHECK(!gmem_host_has(host, "userfaultfd.shmem.missing"));
	CHECK(!gmem_host_has(host, "userfaultfd.copy"));
	CHECK(!gmem_host_has(host, "markers.shmem"));
	gmem_host_free(host);
}

TEST(userfaultfd_denied_by_a_filter)
{
	struct gmem_host *host;

	gone.full_err = gone.user_mode_err = -EPERM;
	gone.path = "/dev/userfaultfd";
	gone.path_err = -ENOENT;
	host = probe_without();
	check_fact(host, "userfaultfd.full", GMEM_HOST_DENIED, "seccomp");
	check_fact(host, "userfaultfd.user_mode_only", GMEM_HOST_DENIED, "seccomp");
	check_fact(host, "userfaultfd.device", GMEM_HOST_NO, "--device /dev/userfaultfd");
	check_fact(host, "userfaultfd.shmem.missing", GMEM_HOST_DENIED, "userfaultfd.full");
	check_fact(host, "userfaultfd.features", GMEM_HOST_DENIED, "userfaultfd.full");
	check_fact(host, "userfaultfd.feature.poison", GMEM_HOST_DENIED, "userfaultfd.full");
	check_fact(host, "userfaultfd.continue", GMEM_HOST_DENIED, "userfaultfd.full");
	check_fact(host, "markers.anon", GMEM_HOST_DENIED, "userfaultfd.full");
	gmem_host_free(host);
}

TEST(only_user_mode_userfaultfd)
{
	struct gmem_host *host;

	need("uffd", "userfaultfd.user_mode_only");
	gone.full_err = -EPERM;
	gone.path = "/dev/userfaultfd";
	gone.path_err = -EACCES;
	host = probe_without();
	check_fact(host, "userfaultfd.full", GMEM_HOST_DENIED, "vm.unprivileged_userfaultfd=1");
	check_fact(host, "userfaultfd.device", GMEM_HOST_DENIED, "setfacl -m u:USER:rw /dev/userfaultfd");
	check_fact(host, "userfaultfd.kernel_access", GMEM_HOST_DENIED, "userfaultfd.full");
	check_fact(host, "userfaultfd.shmem.missing", GMEM_HOST_YES, "");
	check_fact(host, "userfaultfd.copy", GMEM_HOST_YES, "");
	gmem_host_free(host);
}

TEST(the_device_stands_in_for_the_system_call)
{
	struct gmem_host *host;

	need("uffd", "userfaultfd.device");
	gone.full_err = gone.user_mode_err = -EPERM;
	host = probe_without();
	check_fact(host, "userfaultfd.full", GMEM_HOST_YES, "");
	check_fact(host, "userfaultfd.syscall", GMEM_HOST_DENIED, "seccomp");
	check_fact(host, "userfaultfd.kernel_access", GMEM_HOST_YES, "");
	check_fact(host, "userfaultfd.shmem.minor", GMEM_HOST_YES, "");
	check_fact(host, "markers.user_mode_only", GMEM_HOST_DENIED, "user_mode_only");
	gmem_host_free(host);
}

TEST(features_taken_away)
{
	struct gmem_host *host;

	need("uffd", "userfaultfd.feature.move");
	gone.features_gone = UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_ASYNC;
	host = probe_without();
	check_fact(host, "userfaultfd.feature.move", GMEM_HOST_NO, "Linux 6.8");
	check_fact(host, "userfaultfd.feature.wp_async", GMEM_HOST_NO, "Linux 6.7");
	check_fact(host, "userfaultfd.move", GMEM_HOST_NO, "6.8");
	check_fact(host, "userfaultfd.wp_async", GMEM_HOST_NO, "6.7");
	check_fact(host, "userfaultfd.copy", GMEM_HOST_YES, "");
	gmem_host_free(host);
}

TEST(minor_faults_taken_away)
{
	struct gmem_host *host;

	need("uffd", "userfaultfd.shmem.minor");
	gone.mode_gone = UFFDIO_REGISTER_MODE_MINOR;
	host = probe_without();
	check_fact(host, "userfaultfd.shmem.minor", GMEM_HOST_NO, "Linux 5.14");
	check_fact(host, "userfaultfd.continue", GMEM_HOST_NO, "Linux 5.14");
	check_fact(host, "userfaultfd.shmem.missing", GMEM_HOST_YES, "");
	gmem_host_free(host);
}

/* A command that fails, and one that claims success and does nothing: neither is there, and nobody waits for ever. */
static void check_command(unsigned long request, const char *name, const char *advice)
{
	struct gmem_host *host;

	need("uffd", name);
	take_request(request, -EINVAL);
	host = probe_without();
	check_fact(host, name, GMEM_HOST_NO, advice);
	gmem_host_free(host);

	take_request(request, 0);
	host = probe_without();
	check_fact(host, name, GMEM_HOST_NO, advice);
	gmem_host_free(host);
}

TEST(copy_that_does_nothing)
{
	check_command(UFFDIO_COPY, "userfaultfd.copy", "CONFIG_USERFAULTFD");
}

TEST(continue_that_does_nothing)
{
	check_command(UFFDIO_CONTINUE, "userfaultfd.continue", "5.14");
}

TEST(zeropage_that_does_nothing)
{
	check_command(UFFDIO_ZEROPAGE, "userfaultfd.zeropage", "CONFIG_USERFAULTFD");
}

TEST(move_that_does_nothing)
{
	check_command(UFFDIO_MOVE, "userfaultfd.move", "6.8");
}

TEST(writeprotect_that_does_nothing)
{
	check_command(UFFDIO_WRITEPROTECT, "userfaultfd.writeprotect", "5.19");
}

TEST(asynchronous_writeprotect_that_does_nothing)
{
	check_command(UFFDIO_WRITEPROTECT, "userfaultfd.wp_async", "6.7");
}

TEST(poison_on_shared_memory_that_does_nothing)
{
	check_command(UFFDIO_POISON, "markers.shmem", "6.6");
}

TEST(poison_on_anonymous_memory_that_does_nothing)
{
	check_command(UFFDIO_POISON, "markers.anon", "6.6");
}

TEST(no_huge_page_memory_files)
{
	struct gmem_host *host;

	gone.memfd_flag = MFD_HUGETLB;
	gone.memfd_err = -EINVAL;
	host = probe();
	if (gmem_host_has(host, "hugepages.hugetlb")) {
		CHECK(hits > 0);
		check_fact(host, "userfaultfd.hugetlb.missing", GMEM_HOST_NO, "CONFIG_HUGETLBFS");
	}
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };

		CHECK_OK(gmem_host_item(host, i, &item));
		if (!strncmp(item.name, "hugepages.", 10) && strchr("0123456789", item.name[10]))
			check_fact(host, item.name, GMEM_HOST_NO, "nr_hugepages");
	}
	gmem_host_free(host);
}

TEST(numa_policy_denied)
{
	struct gmem_host *host;

	gone.mbind_err = -EPERM;
	host = probe_without();
	check_fact(host, "numa.mbind", GMEM_HOST_DENIED, "--cap-add SYS_NICE");
	gmem_host_free(host);
}

TEST(descriptors_running_out_midway)
{
	struct gmem_host *host = NULL;

	gone.full_err = -EMFILE;
	CHECK_ERR(gmem_host_probe(&host), -EMFILE);
	gone.full_err = 0;
	gone.memfd_err = -ENFILE;
	CHECK_ERR(gmem_host_probe(&host), -ENFILE);
	CHECK(host == NULL);
}
