/* SPDX-License-Identifier: MIT */
/* The commands of an SNP launch, given to KVM. Enters, leaves and locks: see kvm.h. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "launch/kvm/kvm.h"
#include "launch/snp/status.h"
#include "sys/kvm_sev.h"

static const char *name(uint32_t id)
{
	switch (id) {
	case GMEM_KVM_SEV_INIT2:
		return "KVM_SEV_INIT2";
	case GMEM_KVM_SEV_SNP_LAUNCH_START:
		return "KVM_SEV_SNP_LAUNCH_START";
	case GMEM_KVM_SEV_SNP_LAUNCH_UPDATE:
		return "KVM_SEV_SNP_LAUNCH_UPDATE";
	case GMEM_KVM_SEV_SNP_LAUNCH_FINISH:
		return "KVM_SEV_SNP_LAUNCH_FINISH";
	}
	return "KVM_MEMORY_ENCRYPT_OP";
}

/* What KVM means by an errno for which it has several reasons; NULL: what the system says of it. */
static const char *meaning(uint32_t id, int err)
{
	switch (err) {
	case -ENOTTY:
		return "this KVM has no SEV, or the machine is not of type KVM_X86_SNP_VM";
	case -EPERM:
		return "an SNP machine takes no commands of SEV and SEV-ES";
	case -EBADF:
		return "sev_fd is not /dev/sev";
	case -EBUSY:
		return id == GMEM_KVM_SEV_SNP_LAUNCH_FINISH ? "a vCPU is being made: finish again" : NULL;
	case -EIO:
		return id == GMEM_KVM_SEV_SNP_LAUNCH_UPDATE ?
			       "the firmware was not asked: the page is not private, has been launched, or cannot be "
			       "read, or a signal came" :
			       "KVM did not say why: the machine is another process's, or dead";
	case -EINVAL:
		break;
	default:
		return NULL;
	}
	switch (id) {
	case GMEM_KVM_SEV_INIT2:
		return "the machine is not of type KVM_X86_SNP_VM, has been begun or has vCPUs, or KVM lacks some of "
		       "sev_features (SNPActive is not among them)";
	case GMEM_KVM_SEV_SNP_LAUNCH_START:
		return "KVM refuses the policy, or the launch has been started";
	case GMEM_KVM_SEV_SNP_LAUNCH_UPDATE:
		return "the launch is not started or is finished, no slot with a guest_memfd is there, or KVM refuses "
		       "the type or the source";
	case GMEM_KVM_SEV_SNP_LAUNCH_FINISH:
		return "the launch is not started";
	}
	return "not a command of this machine";
}

int gmem_kvm_snp_command(struct gmem_kvm_launch *launch, uint32_t id, void *data, uint64_t *ret_status)
{
	uint32_t error = 0;
	int err = gmem_kvm_sev_op(launch->vm, launch->sev, id, data, &error);
	const char *why;

	*ret_status = err && error != GMEM_KVM_SEV_NO_FW_CALL ? error : 0;
	if (!err)
		return 0;
	if (*ret_status == GMEM_SEV_RET_INVALID_PARAM && id == GMEM_KVM_SEV_SNP_LAUNCH_UPDATE &&
	    ((const struct gmem_snp_launch_update *)data)->type == GMEM_LAUNCH_CPUID)
		return gmem_err(err, "%s: the firmware answers 0x%x, %s: the CPUID table, which now is what it takes",
				name(id), error, gmem_snp_status_text(error));
	if (*ret_status)
		return gmem_err(err, "%s: the firmware answers 0x%x, %s", name(id), error, gmem_snp_status_text(error));
	why = meaning(id, err);
	return why ? gmem_err(err, "%s: %s", name(id), why) : gmem_err_sys(err, "%s", name(id));
}

int gmem_kvm_snp_begin(struct gmem_kvm_launch *launch, const struct gmem_launch_opts *opts)
{
	struct gmem_kvm_sev_init init = { .vmsa_features = opts->sev_features };
	struct gmem_snp_launch_start start = { .policy = opts->policy };
	uint64_t status;
	int err = gmem_kvm_snp_command(launch, GMEM_KVM_SEV_INIT2, &init, &status);

	if (err || opts->flags & GMEM_LAUNCH_NOT_STARTED)
		return err;
	memcpy(start.gosvw, opts->gosvw, sizeof(start.gosvw));
	return gmem_kvm_snp_command(launch, GMEM_KVM_SEV_SNP_LAUNCH_START, &start, &status);
}
