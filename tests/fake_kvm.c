/* SPDX-License-Identifier: MIT */
#define TAP_NO_MAIN
#include "fake_kvm.h"

#include <sys/mman.h>
#include <sys/stat.h>

#define MEMORY_ENCRYPT_OP 0xc008aebaul
#define CHECK_EXTENSION 0xae03ul
#define GET_API_VERSION 0xae00ul
#define CAP_USER_MEMORY 3
#define CAP_VM_TYPES 235

int __real_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __real_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val);
int __real_gmem_sys_open(const char *path, int flags);
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val);
int __wrap_gmem_sys_open(const char *path, int flags);

struct fake_kvm fake;

void put(uint8_t *at, unsigned int n, uint64_t value)
{
	for (unsigned int i = 0; i < n; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

uint64_t get(const uint8_t *at, unsigned int n)
{
	uint64_t value = 0;

	for (unsigned int i = 0; i < n; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

enum fake fake_who(int fd)
{
	struct stat st, known;

	if (fd < 0 || fstat(fd, &st))
		return FAKE_NOBODY;
	for (enum fake who = FAKE_VM; who < FAKE_KINDS; who++)
		if (fake.fd[who] > 0 && !fstat(fake.fd[who], &known) && known.st_ino == st.st_ino &&
		    known.st_dev == st.st_dev)
			return who;
	return FAKE_NOBODY;
}

static bool is_own(int fd)
{
	return fd != fake.fd[fake_who(fd)] && fcntl(fd, F_GETFD) == FD_CLOEXEC;
}

/* How long the structure of a command is. */
static size_t data_len(uint32_t id, const uint8_t *data)
{
	if (fake.snp)
		return id == 22 ? 48 : id == 100 || id == 101 ? 64 : id == 102 ? 88 : 0;
	if (id == 0)
		return 2056;
	if (id == 1)
		return 264 + get(data + 256, 4) * 40;
	return id == 3 ? 24 : 0;
}

static void go_on_snp(uint8_t *data, uint64_t pages)
{
	put(data, 8, get(data, 8) + pages);
	if (data[24] != 3)
		put(data + 8, 8, get(data + 8, 8) + pages * P);
	put(data + 16, 8, get(data + 16, 8) - pages * P);
}

static void go_on_tdx(uint8_t *data, uint64_t pages)
{
	put(data, 8, get(data, 8) + pages * P);
	put(data + 8, 8, get(data + 8, 8) + pages * P);
	put(data + 16, 8, get(data + 16, 8) - pages);
}

static int capabilities(uint8_t *data)
{
	uint32_t nent = (uint32_t)get(data + 2048, 4);

	if (nent < fake.cpuid_nent)
		return -E2BIG;
	put(data, 8, fake.attrs);
	put(data + 8, 8, fake.xfam);
	put(data + 2048, 4, fake.cpuid_nent);
	/* All of the room that is claimed is there: the sanitizer looks. */
	memset(data + 2056, 0xcc, 40ul * nent);
	return 0;
}

static int answer(uint32_t id, uint8_t *data, struct fake_answer a)
{
	if (fake.snp && id == 101)
		go_on_snp(data, a.done == EACH_PROGRESS ? get(data + 16, 8) / P : a.done);
	if (!fake.snp && id == 3)
		go_on_tdx(data, a.done == EACH_PROGRESS ? get(data + 16, 8) : a.done);
	if (a.then)
		a.then(data);
	return a.err;
}

static int memory_encrypt_op(int fd, uint8_t *cmd)
{
	struct fake_call *call = &fake.call[fake.ncalls < FAKE_MOST_CALLS ? fake.ncalls : FAKE_MOST_CALLS - 1];
	uint8_t *data = (uint8_t *)(uintptr_t)get(cmd + 8, 8);
	uint32_t id = (uint32_t)get(cmd, 4);
	struct fake_answer a = { .done = EACH_PROGRESS };
	int err;

	fake.ncalls++;
	*call = (struct fake_call){ .who = fake_who(fd), .own = is_own(fd) };
	if (fake.snp)
		call->own = call->own && fake_who((int)get(cmd + 20, 4)) == FAKE_SEV && is_own((int)get(cmd + 20, 4));
	memcpy(call->cmd, cmd, sizeof(call->cmd));
	call->data_at = (uintptr_t)data;
	CHECK(data_len(id, data) <= sizeof(call->data));
	if (data_len(id, data))
		memcpy(call->data, data, data_len(id, data));
	if (fake.heard)
		fake.heard(call);
	if (fake.at < fake.nscript)
		a = fake.script[fake.at++];
	else if (fake.for_ever.err || fake.for_ever.done)
		a = fake.for_ever;
	err = fake.snp || id || a.err ? answer(id, data, a) : capabilities(data);
	put(cmd + 16, fake.snp ? 4 : 8, a.status);
	return err;
}

int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	if (request == MEMORY_ENCRYPT_OP && fake_who(fd))
		return memory_encrypt_op(fd, arg);
	return __real_gmem_sys_ioctl(fd, request, arg);
}

int __wrap_gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val)
{
	if (fake_who(fd) != FAKE_VM || fake.vm_is_none)
		return __real_gmem_sys_ioctl_val(fd, request, val);
	if (request == CHECK_EXTENSION)
		return val == CAP_USER_MEMORY ? 1 : val == CAP_VM_TYPES ? (int)fake.types : 0;
	CHECK_EQ(request, GET_API_VERSION); /* of /dev/kvm alone */
	return -EINVAL;
}

int __wrap_gmem_sys_open(const char *path, int flags)
{
	if (strcmp(path, "/dev/sev"))
		return __real_gmem_sys_open(path, flags);
	CHECK_EQ(flags, O_RDWR);
	return fake.sev_err ? fake.sev_err : fcntl(fake.fd[FAKE_SEV], F_DUPFD_CLOEXEC, 0);
}

void fake_set_up(enum gmem_vm_type type)
{
	fake = (struct fake_kvm){ .types = 1u << type | 1, .snp = type == GMEM_VM_SNP };
	fake.cpuid_nent = 5;
	fake.attrs = 0x10000000;
	fake.xfam = 0x602e7;
	for (enum fake who = FAKE_VM; who < FAKE_KINDS; who++)
		fake.fd[who] = (int)CHECK_OK(memfd_create("fake", MFD_CLOEXEC));
}

void fake_tear_down(void)
{
	for (enum fake who = FAKE_VM; who < FAKE_KINDS; who++)
		close(fake.fd[who]);
}

void fake_script(unsigned int n, const struct fake_answer *answers)
{
	memcpy(fake.script, answers, n * sizeof(*answers));
	fake.nscript = n;
	fake.at = 0;
	fake.ncalls = 0;
}

struct gmem_launch *fake_launch(enum gmem_vm_type type)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts) };
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };
	struct gmem_launch *launch;

	fake_set_up(type);
	opts.sev_fd = fake.fd[FAKE_SEV];
	vcpu.kvm_vcpu = fake.fd[FAKE_VCPU0];
	CHECK_OK(gmem_launch_create_kvm(fake.fd[FAKE_VM], type, &opts, &launch));
	if (type == GMEM_VM_TDX)
		CHECK_OK(gmem_launch_add_vcpu(launch, &vcpu));
	fake.ncalls = 0;
	return launch;
}

void check_sev_cmd(unsigned int i, uint32_t id)
{
	const struct fake_call *c = &fake.call[i];
	uint8_t want[24] = { 0 };

	CHECK(i < fake.ncalls);
	CHECK_EQ(c->who, FAKE_VM);
	CHECK(c->own);
	put(want, 4, id);
	put(want + 8, 8, c->data_at);
	memcpy(want + 20, c->cmd + 20, 4); /* looked at when it came */
	CHECK_MEM(c->cmd, want, sizeof(want));
}

void check_tdx_cmd(unsigned int i, enum fake who, uint32_t id, uint32_t flags)
{
	const struct fake_call *c = &fake.call[i];
	uint8_t want[24] = { 0 };

	CHECK(i < fake.ncalls);
	CHECK_EQ(c->who, who);
	CHECK(c->own);
	put(want, 4, id);
	put(want + 4, 4, flags);
	put(want + 8, 8, c->data_at);
	CHECK_MEM(c->cmd, want, sizeof(want));
}
