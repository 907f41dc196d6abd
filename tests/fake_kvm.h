/* SPDX-License-Identifier: MIT */
/*
 * A KVM that has SNP and TDX, at the seam to the kernel (ld --wrap=gmem_sys_ioctl, gmem_sys_ioctl_val, gmem_sys_open):
 * it writes down what it is told, byte by byte, and answers what a case scripted. What it expects are the kernel's
 * numbers (arch/x86/include/uapi/asm/kvm.h), written as numbers.
 */
#ifndef GMEM_TESTS_FAKE_KVM_H
#define GMEM_TESTS_FAKE_KVM_H

#include "tap.h"

#include <fcntl.h>

#define P GMEM_PAGE_SIZE
#define GPA 0x7654000ull
#define EACH_PROGRESS UINT64_MAX

/* Who is told: a memory file each, so that duplicates are known again. */
enum fake { FAKE_NOBODY, FAKE_VM, FAKE_SEV, FAKE_VCPU0, FAKE_VCPU1, FAKE_KINDS };

typedef void (*fake_change)(uint8_t *data);

struct fake_answer {
	int err; /* of the ioctl */
	uint64_t status; /* left in `error` or `hw_error` */
	uint64_t done; /* pages of progress in the structure; with err 0, EACH_PROGRESS: all */
	fake_change then; /* changes the structure afterwards */
};

struct fake_call {
	enum fake who;
	bool own; /* by a descriptor of the library's own, which no program that is started inherits; /dev/sev's too */
	uint8_t cmd[24];
	uint64_t data_at; /* `data` of the command: a pointer, or a number */
	uint8_t data[256 + 8 + 300 * 40]; /* what it pointed to, before the answer */
};

#define FAKE_MOST_CALLS 64

struct fake_kvm {
	int fd[FAKE_KINDS];
	unsigned int types; /* KVM_CAP_VM_TYPES */
	bool vm_is_none; /* the VM is no VM */
	int sev_err; /* of opening /dev/sev */
	uint32_t cpuid_nent; /* entries of TDX_CAPABILITIES */
	uint64_t attrs, xfam; /* that it has */
	bool snp;
	struct fake_answer script[32];
	unsigned int nscript, at; /* after them: success, all done */
	struct fake_answer for_ever; /* if err or done is set: instead of that success */
	struct fake_call call[FAKE_MOST_CALLS];
	unsigned int ncalls; /* all of them; the last ones are not kept */
	void (*heard)(const struct fake_call *call); /* each, while what it points to is there; may be NULL */
};

extern struct fake_kvm fake;

/* A machine of a type, with descriptors. */
void fake_set_up(enum gmem_vm_type type);
void fake_tear_down(void);
/* The next answers. */
void fake_script(unsigned int n, const struct fake_answer *answers);
enum fake fake_who(int fd);

/* A launch of it, its beginning forgotten. */
struct gmem_launch *fake_launch(enum gmem_vm_type type);

/* Little-endian, `n` bytes. */
void put(uint8_t *at, unsigned int n, uint64_t value);
uint64_t get(const uint8_t *at, unsigned int n);

/* Call `i` was this command with nothing else in it. */
void check_sev_cmd(unsigned int i, uint32_t id);
void check_tdx_cmd(unsigned int i, enum fake who, uint32_t id, uint32_t flags);

#endif
