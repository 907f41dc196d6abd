/* SPDX-License-Identifier: MIT */
/* The table of facts as a caller sees it, on this machine as it is. */
#include "tap.h"

#include <ctype.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "sys/uapi.h"

static struct gmem_host_item item_at(const struct gmem_host *host, size_t i)
{
	struct gmem_host_item item = { .size = sizeof(item) };

	CHECK_OK(gmem_host_item(host, i, &item));
	return item;
}

static struct gmem_host_item item_of(const struct gmem_host *host, const char *name)
{
	for (size_t i = 0; i < gmem_host_count(host); i++)
		if (!strcmp(item_at(host, i).name, name))
			return item_at(host, i);
	FAIL("no fact %s", name);
}

static void check_line(const char *name, const char *text, size_t max)
{
	CHECK(text != NULL);
	if (strlen(text) > max)
		FAIL("%s: %zu characters: %s", name, strlen(text), text);
	for (const char *p = text; *p; p++)
		if (!isprint((unsigned char)*p))
			FAIL("%s: character 0x%02x", name, (unsigned char)*p);
}

TEST(items_are_well_formed)
{
	struct gmem_host *host;

	CHECK_OK(gmem_host_probe(&host));
	CHECK(gmem_host_count(host) >= 75);
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = item_at(host, i);
		const char *dot = strchr(item.name, '.');

		check_line("name", item.name, 60);
		check_line(item.name, item.value, 120);
		check_line(item.name, item.what, 120);
		check_line(item.name, item.advice, 250);
		if (!dot || dot == item.name || !dot[1] ||
		    strspn(item.name, "abcdefghijklmnopqrstuvwxyz0123456789_-.GMK") != strlen(item.name))
			FAIL("name %s", item.name);
		if (!item.what[0])
			FAIL("%s: not said what it is for", item.name);
		if (item.status != GMEM_HOST_YES && item.status != GMEM_HOST_NO && item.status != GMEM_HOST_DENIED)
			FAIL("%s: status %d", item.name, (int)item.status);
		if ((item.status == GMEM_HOST_YES) != !item.advice[0])
			FAIL("%s: status %d, advice \"%s\"", item.name, (int)item.status, item.advice);
		for (size_t j = 0; j < i; j++)
			if (!strcmp(item_at(host, j).name, item.name))
				FAIL("%s twice", item.name);
	}
	gmem_host_free(host);
}

TEST(groups_are_together)
{
	struct gmem_host *host;
	char seen[32][32];
	size_t n = 0;

	CHECK_OK(gmem_host_probe(&host));
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		const char *name = item_at(host, i).name;
		char group[32];

		snprintf(group, sizeof(group), "%.*s", (int)strcspn(name, "."), name);
		if (n && !strcmp(seen[n - 1], group))
			continue;
		for (size_t j = 0; j < n; j++)
			if (!strcmp(seen[j], group))
				FAIL("%s: group %s comes a second time", name, group);
		CHECK(n < 32);
		memcpy(seen[n++], group, sizeof(group));
	}
	gmem_host_free(host);
}

TEST(has_agrees_with_the_items)
{
	struct gmem_host *host;

	CHECK_OK(gmem_host_probe(&host));
	for (size_t i = 0; i < gmem_host_count(host); i++)
		CHECK_EQ(gmem_host_has(host, item_at(host, i).name), item_at(host, i).status == GMEM_HOST_YES);
	CHECK(gmem_host_has(host, "process.memfd"));
	CHECK(!gmem_host_has(host, "process.memf"));
	CHECK(!gmem_host_has(host, "process"));
	CHECK(!gmem_host_has(host, ""));
	gmem_host_free(host);
}

TEST(misuse_is_refused)
{
	struct gmem_host_item item = { .size = sizeof(item), .name = "untouched" };
	struct gmem_host *host;

	CHECK_ERR(gmem_host_probe(NULL), -EINVAL);
	CHECK_OK(gmem_host_probe(&host));
	CHECK_ERR(gmem_host_item(host, gmem_host_count(host), &item), -ERANGE);
	CHECK_ERR(gmem_host_item(host, SIZE_MAX, &item), -ERANGE);
	item.size = 0;
	CHECK_ERR(gmem_host_item(host, 0, &item), -EINVAL);
	item.size = sizeof(item) - 1;
	CHECK_ERR(gmem_host_item(host, 0, &item), -EINVAL);
	CHECK_STR(item.name, "untouched");
	gmem_host_free(host);
	gmem_host_free(NULL);
}

/* Values such as free huge pages may move under us; names, order and what is there may not. */
static void check_same(const struct gmem_host *a, const struct gmem_host *b)
{
	CHECK_EQ(gmem_host_count(a), gmem_host_count(b));
	for (size_t i = 0; i < gmem_host_count(a); i++) {
		CHECK_STR(item_at(a, i).name, item_at(b, i).name);
		if (item_at(a, i).status != item_at(b, i).status)
			FAIL("%s: %d, then %d", item_at(a, i).name, (int)item_at(a, i).status,
			     (int)item_at(b, i).status);
	}
}

static unsigned int count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	char line[512];

	CHECK(f != NULL);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "[heap]") == NULL;
	fclose(f);
	return n;
}

TEST(probing_again_finds_the_same_and_maps_nothing)
{
	struct gmem_host *first, *again;
	unsigned int before;

	CHECK_OK(gmem_host_probe(&first));
	before = count_maps();
	for (int i = 0; i < 5; i++) {
		CHECK_OK(gmem_host_probe(&again));
		check_same(first, again);
		gmem_host_free(again);
	}
	CHECK(count_maps() <= before + 1); /* the allocator may have taken one arena */
	gmem_host_free(first);
}

TEST(few_descriptors_are_an_error_not_a_poor_machine)
{
	struct rlimit limit, old;
	struct gmem_host *all, *few;
	int fd, failures = 0, rc = -1;

	CHECK_OK(gmem_host_probe(&all));
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	close(fd);
	CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
	for (int spare = 0; spare < 16 && rc; spare++) {
		limit = (struct rlimit){ .rlim_cur = (rlim_t)(fd + spare), .rlim_max = old.rlim_max };
		CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
		rc = gmem_host_probe(&few);
		if (!rc)
			break;
		CHECK_EQ(rc, -EMFILE);
		CHECK_HAS(gmem_last_error(), "ulimit");
		failures++;
	}
	CHECK(failures > 0);
	CHECK_EQ(rc, 0);
	check_same(all, few);
	CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
	gmem_host_free(all);
	gmem_host_free(few);
}

/* True if this fact is about a device or privilege that root has and others may lack. */
static bool is_about_privilege(const char *name)
{
	static const char *const prefixes[] = {
		"kvm.",
		"guest_memfd.",
		"userfaultfd.full",
		"userfaultfd.syscall",
		"userfaultfd.device",
		"userfaultfd.kernel_access",
		"userfaultfd.feature.event_fork",
		"userfaultfd.guest_memfd.",
		"process.trace",
		"limits.locked_memory",
	};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (!strncmp(name, prefixes[i], strlen(prefixes[i])))
			return true;
	return false;
}

TEST(without_privileges_only_what_needs_them_differs)
{
	struct gmem_host *root, *nobody;

	if (geteuid() != 0)
		SKIP("root", "cannot become somebody else");
	CHECK_OK(gmem_host_probe(&root));
	if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		SKIP("root", "cannot become nobody: %s", strerror(errno));
	prctl(PR_SET_DUMPABLE, 1); /* as after exec: /proc/self is ours again */
	CHECK_OK(gmem_host_probe(&nobody));

	CHECK_EQ(gmem_host_count(root), gmem_host_count(nobody));
	for (size_t i = 0; i < gmem_host_count(root); i++) {
		struct gmem_host_item was = item_at(root, i), is = item_at(nobody, i);

		CHECK_STR(was.name, is.name);
		if (was.status != is.status && !is_about_privilege(is.name))
			FAIL("%s: %d as root, %d as nobody (%s)", is.name, (int)was.status, (int)is.status, is.value);
		if (was.status == GMEM_HOST_YES && is.status == GMEM_HOST_NO)
			FAIL("%s: there for root, said to be absent for nobody", is.name);
		if (was.status != GMEM_HOST_YES && is.status == GMEM_HOST_YES)
			FAIL("%s: not there for root, there for nobody", is.name);
	}
	gmem_host_free(root);
	gmem_host_free(nobody);
}

/* A container's seccomp profile: EPERM for the calls such profiles forbid. */
static int forbid(const unsigned int *numbers, size_t n)
{
	struct sock_filter code[64];
	struct sock_fprog program = { .filter = code };
	unsigned short at = 0;

	code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < n; i++) {
		code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[i], 0, 1);
		code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	}
	code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	program.len = at;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return -errno;
	return 0;
}

TEST(a_seccomp_profile_is_seen_and_named)
{
	static const unsigned int numbers[] = {
		__NR_userfaultfd,   __NR_process_vm_readv, __NR_mbind,
		__NR_get_mempolicy, __NR_pidfd_open,	   __NR_pidfd_getfd,
	};
	struct gmem_host *before, *after;
	struct gmem_host_item item;
	int rc;

	CHECK_OK(gmem_host_probe(&before));
	rc = forbid(numbers, sizeof(numbers) / sizeof(numbers[0]));
	if (rc)
		SKIP("seccomp", "no filter can be installed: %s", strerror(-rc));
	CHECK_OK(gmem_host_probe(&after));

	item = item_of(after, "userfaultfd.syscall");
	CHECK_EQ(item.status, GMEM_HOST_DENIED);
	CHECK_HAS(item.advice, "seccomp");
	item = item_of(after, "userfaultfd.user_mode_only");
	CHECK_EQ(item.status, GMEM_HOST_DENIED);
	CHECK_HAS(item.advice, "seccomp");
	item = item_of(after, "process.vm_readv");
	CHECK_EQ(item.status, GMEM_HOST_DENIED);
	CHECK_HAS(item.advice, "seccomp");
	item = item_of(after, "numa.mbind");
	CHECK_EQ(item.status, GMEM_HOST_DENIED);
	CHECK_HAS(item.advice, "SYS_NICE");
	CHECK_EQ(item_of(after, "process.pidfd_open").status, GMEM_HOST_DENIED);

	/*
	 * The device is no system call: where it opens, everything behind it is found as before, without
	 * process_vm_readv(2).
	 */
	if (gmem_host_has(before, "userfaultfd.device")) {
		CHECK(gmem_host_has(after, "userfaultfd.full"));
		CHECK_STR(item_of(after, "userfaultfd.full").value, "/dev/userfaultfd");
		CHECK_EQ(gmem_host_has(after, "userfaultfd.copy"), gmem_host_has(before, "userfaultfd.copy"));
		CHECK_EQ(gmem_host_has(after, "markers.shmem"), gmem_host_has(before, "markers.shmem"));
		CHECK_EQ(gmem_host_has(after, "userfaultfd.shmem.minor"),
			 gmem_host_has(before, "userfaultfd.shmem.minor"));
	} else {
		CHECK_EQ(item_of(after, "userfaultfd.full").status, GMEM_HOST_DENIED);
		CHECK_EQ(item_of(after, "userfaultfd.shmem.missing").status, GMEM_HOST_DENIED);
	}
	gmem_host_free(before);
	gmem_host_free(after);
}
