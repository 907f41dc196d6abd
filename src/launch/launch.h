/* SPDX-License-Identifier: MIT */
/*
 * One confidential launch, whoever does it: AMD's firmware or Intel's module emulated (snp/, tdx/), or KVM's (kvm/).
 *
 * Enters: commands, as KVM_MEMORY_ENCRYPT_OP takes them. Leaves: private pages, and the digest. The launch belongs to
 * its creator; an emulated one has a reference to its VM, and the state of its guest belongs to that VM, as its
 * external tables. Lock: emulated, `vm->slots_lock` guards everything here; on KVM, KVM's own.
 */
#ifndef GMEM_LAUNCH_LAUNCH_H
#define GMEM_LAUNCH_LAUNCH_H

#include "launch/populate.h"
#include "vm/vm.h"

#define GMEM_LAUNCH_BATCH 64u /* pages of one step */
/* How often a command is given again that KVM had no time for, as long as not a page more is done. */
#define GMEM_LAUNCH_MOST_TRIES 10000

struct gmem_launch;

/* In place of a vCPU's number: any, or none, of an emulated launch. The library's own callers alone. */
#define GMEM_LAUNCH_NO_VCPU (-2)

/* What a command came to, beside its errno. */
struct gmem_launch_answer {
	uint64_t status; /* of the firmware or the module, which refused; 0: they did not, or were not asked */
	/*
	 * Emulated: what KVM's errno was made of, which may be folded into another (SNP: -EIO), or not be told at all
	 * after progress. 0: nothing went wrong.
	 */
	int why;
};

/* No lock is held. Texts begin with what was wrong, not with the call. */
struct gmem_launch_ops {
	/* KVM_MEMORY_ENCRYPT_OP. 0 or a negative errno, KVM's. `answer` is zero. */
	int (*command)(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		       struct gmem_launch_answer *answer);
	/* `vcpu->size` is checked. */
	int (*add_vcpu)(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu);
	/* Aligned, not empty, no wrap. NULL: -EOPNOTSUPP. */
	int (*extend)(struct gmem_launch *launch, uint64_t gpa, uint64_t len, struct gmem_launch_answer *answer);
	int (*digest)(struct gmem_launch *launch, uint8_t *ret); /* NULL: -EOPNOTSUPP */
	void (*free)(struct gmem_launch *launch); /* of the launch's owner: the struct this is part of */
};

struct gmem_launch {
	const struct gmem_launch_ops *ops;
	enum gmem_vm_type type;
	struct gmem_vm *vm; /* emulated: referenced; else NULL */
	_Atomic uint64_t status; /* see gmem_launch_status() */
};

/* gmem_launch_update(); *ret_why is what ended it early, also after progress. */
int64_t gmem_launch_update_why(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			       enum gmem_launch_page type, int *ret_why);

/* A command, its answer noted for gmem_launch_status(). */
int gmem_launch_do(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		   struct gmem_launch_answer *answer);

/* The three kinds. `opts` is whole (never NULL), and its flags known. */
int gmem_snp_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret);
int gmem_tdx_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret);
int gmem_kvm_launch_create(int kvm_vm, enum gmem_vm_type type, const struct gmem_launch_opts *opts,
			   struct gmem_launch **ret);

#endif
