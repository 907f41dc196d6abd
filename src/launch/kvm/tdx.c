/* SPDX-License-Identifier: MIT */
/* The commands of a TDX launch, given to KVM. Enters, leaves and locks: see kvm.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "launch/kvm/kvm.h"
#include "launch/tdx/status.h"
#include "sys/kvm_tdx.h"

/* Room for a table of CPUID bits at first; KVM says if it is too small. */
#define FIRST_NENT 6u

static const char *name(uint32_t id)
{
	switch (id) {
	case GMEM_KVM_TDX_CAPABILITIES:
		return "KVM_TDX_CAPABILITIES";
	case GMEM_KVM_TDX_INIT_VM:
		return "KVM_TDX_INIT_VM";
	case GMEM_KVM_TDX_INIT_VCPU:
		return "KVM_TDX_INIT_VCPU";
	case GMEM_KVM_TDX_INIT_MEM_REGION:
		return "KVM_TDX_INIT_MEM_REGION";
	case GMEM_KVM_TDX_FINALIZE_VM:
		return "KVM_TDX_FINALIZE_VM";
	}
	return "KVM_MEMORY_ENCRYPT_OP";
}

static const char *invalid(uint32_t id)
{
	switch (id) {
	case GMEM_KVM_TDX_CAPABILITIES:
		return "the machine is not of type KVM_X86_TDX_VM";
	case GMEM_KVM_TDX_INIT_VM:
		return "it has been done or the machine has vCPUs, or KVM refuses attributes, xfam or the CPUID table, "
		       "which needs leaf 0x80000008 and no leaf that cannot be chosen";
	case GMEM_KVM_TDX_INIT_VCPU:
		return "the machine is not initialized, or this vCPU has been added";
	case GMEM_KVM_TDX_INIT_MEM_REGION:
		return "no slot with a guest_memfd is there, the page is not private, or the launch is finished";
	case GMEM_KVM_TDX_FINALIZE_VM:
		return "the machine is not initialized, or the launch is finished";
	}
	return "not a command of this machine";
}

/* What KVM means by an errno for which it has several reasons; NULL: what the system says of it. */
static const char *meaning(uint32_t id, int err)
{
	switch (err) {
	case -ENOTTY:
		return "this KVM has no TDX";
	case -EBUSY:
		return "the TDX module was busy: again";
	case -EIO:
		return "the machine is dead, or another process's";
	case -EOPNOTSUPP:
		return id == GMEM_KVM_TDX_INIT_MEM_REGION ? "this KVM wants a source" : NULL;
	case -EINVAL:
		return invalid(id);
	}
	return NULL;
}

int gmem_kvm_tdx_command(int fd, uint32_t id, uint32_t flags, uint64_t data, uint64_t *ret_status)
{
	uint64_t hw_error = 0;
	int err = gmem_kvm_tdx_op(fd, id, flags, data, &hw_error);
	const char *why;

	*ret_status = err ? hw_error : 0;
	if (!err)
		return 0;
	if (hw_error)
		return gmem_err(err, "%s: the TDX module answers 0x%016" PRIx64 ", %s%s", name(id), hw_error,
				gmem_tdx_status_text(hw_error), err == -EBUSY ? ": busy, again" : "");
	why = meaning(id, err);
	return why ? gmem_err(err, "%s: %s", name(id), why) : gmem_err_sys(err, "%s", name(id));
}

/* What this KVM and its module let a guest have: attributes and xfam. */
static int capabilities(struct gmem_kvm_launch *launch, uint64_t *ret_attributes, uint64_t *ret_xfam)
{
	uint64_t status;
	int err = -E2BIG;

	for (uint32_t nent = FIRST_NENT; err == -E2BIG && nent <= 2 * GMEM_KVM_CPUID_MOST; nent *= 2) {
		struct gmem_kvm_tdx_capabilities *caps =
			calloc(1, sizeof(*caps) + nent * sizeof(caps->cpuid.entries[0]));

		if (!caps)
			return gmem_err_sys(-ENOMEM, "%s", name(GMEM_KVM_TDX_CAPABILITIES));
		caps->cpuid.nent = nent;
		err = gmem_kvm_tdx_command(launch->vm, GMEM_KVM_TDX_CAPABILITIES, 0, (uintptr_t)caps, &status);
		*ret_attributes = caps->supported_attrs;
		*ret_xfam = caps->supported_xfam;
		free(caps);
	}
	return err;
}

static int init_vm(struct gmem_kvm_launch *launch, const struct gmem_launch_opts *opts)
{
	const struct gmem_kvm_cpuid2 none = { 0 }, *cpuid = opts->cpuid ? opts->cpuid : &none;
	struct gmem_kvm_tdx_init_vm *init;
	uint64_t status;
	size_t len;
	int err;

	if (cpuid->nent > GMEM_KVM_CPUID_MOST)
		return gmem_err(-E2BIG, "%s: a CPUID table of %" PRIu32 " entries", name(GMEM_KVM_TDX_INIT_VM),
				cpuid->nent);
	len = cpuid->nent * sizeof(cpuid->entries[0]);
	init = calloc(1, sizeof(*init) + len);
	if (!init)
		return gmem_err_sys(-ENOMEM, "%s", name(GMEM_KVM_TDX_INIT_VM));
	init->attributes = opts->attributes;
	init->xfam = opts->xfam;
	memcpy(init->mrconfigid, opts->mrconfigid, sizeof(init->mrconfigid));
	memcpy(init->mrowner, opts->mrowner, sizeof(init->mrowner));
	memcpy(init->mrownerconfig, opts->mrownerconfig, sizeof(init->mrownerconfig));
	init->cpuid.nent = cpuid->nent;
	memcpy(init->cpuid.entries, cpuid->entries, len);
	/* TDH.MNG.CREATE wants entropy, and KVM says -EAGAIN while there is none. As often as QEMU asks. */
	for (int tries = 0;;) {
		err = gmem_kvm_tdx_command(launch->vm, GMEM_KVM_TDX_INIT_VM, 0, (uintptr_t)init, &status);
		if (err != -EAGAIN || ++tries == GMEM_LAUNCH_MOST_TRIES)
			break;
	}
	free(init);
	return err;
}

int gmem_kvm_tdx_begin(struct gmem_kvm_launch *launch, const struct gmem_launch_opts *opts)
{
	uint64_t attributes = 0, xfam = 0;
	int err = capabilities(launch, &attributes, &xfam);

	if (err)
		return err;
	/* KVM would say -EINVAL for these and for all else. */
	if (opts->attributes & ~attributes)
		return gmem_err(-EINVAL, "attributes 0x%" PRIx64 ": this host has 0x%" PRIx64, opts->attributes,
				attributes);
	if (opts->xfam & ~xfam)
		return gmem_err(-EINVAL, "xfam 0x%" PRIx64 ": this host has 0x%" PRIx64, opts->xfam, xfam);
	return init_vm(launch, opts);
}
