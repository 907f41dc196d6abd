/* SPDX-License-Identifier: MIT */
#include "sys/kvm_sev.h"

#include <fcntl.h>
#include <stddef.h>

#include "gmem.h"
#include "sys/call.h"
#include "sys/uapi.h"

#define AT(type, member, off) _Static_assert(offsetof(struct type, member) == (off), #type "." #member)

AT(gmem_kvm_sev_cmd, id, 0);
AT(gmem_kvm_sev_cmd, data, 8);
AT(gmem_kvm_sev_cmd, error, 16);
AT(gmem_kvm_sev_cmd, sev_fd, 20);
_Static_assert(sizeof(struct gmem_kvm_sev_cmd) == 24, "struct kvm_sev_cmd");

AT(gmem_kvm_sev_init, vmsa_features, 0);
AT(gmem_kvm_sev_init, flags, 8);
AT(gmem_kvm_sev_init, ghcb_version, 12);
AT(gmem_kvm_sev_init, pad1, 14);
AT(gmem_kvm_sev_init, pad2, 16);
_Static_assert(sizeof(struct gmem_kvm_sev_init) == 48, "struct kvm_sev_init");

AT(gmem_snp_launch_start, policy, 0);
AT(gmem_snp_launch_start, gosvw, 8);
AT(gmem_snp_launch_start, flags, 24);
AT(gmem_snp_launch_start, pad0, 26);
AT(gmem_snp_launch_start, pad1, 32);
_Static_assert(sizeof(struct gmem_snp_launch_start) == 64, "struct kvm_sev_snp_launch_start");

AT(gmem_snp_launch_update, gfn_start, 0);
AT(gmem_snp_launch_update, uaddr, 8);
AT(gmem_snp_launch_update, len, 16);
AT(gmem_snp_launch_update, type, 24);
AT(gmem_snp_launch_update, pad0, 25);
AT(gmem_snp_launch_update, flags, 26);
AT(gmem_snp_launch_update, pad1, 28);
AT(gmem_snp_launch_update, pad2, 32);
_Static_assert(sizeof(struct gmem_snp_launch_update) == 64, "struct kvm_sev_snp_launch_update");

AT(gmem_snp_launch_finish, id_block_uaddr, 0);
AT(gmem_snp_launch_finish, id_auth_uaddr, 8);
AT(gmem_snp_launch_finish, id_block_en, 16);
AT(gmem_snp_launch_finish, auth_key_en, 17);
AT(gmem_snp_launch_finish, vcek_disabled, 18);
AT(gmem_snp_launch_finish, host_data, 19);
AT(gmem_snp_launch_finish, pad0, 51);
AT(gmem_snp_launch_finish, flags, 54);
AT(gmem_snp_launch_finish, pad1, 56);
_Static_assert(sizeof(struct gmem_snp_launch_finish) == 88, "struct kvm_sev_snp_launch_finish");

int gmem_kvm_sev_open(void)
{
	return gmem_sys_open("/dev/sev", O_RDWR);
}

int gmem_kvm_sev_op(int vm, int sev, uint32_t id, void *data, uint32_t *ret_error)
{
	struct gmem_kvm_sev_cmd cmd = { .id = id, .data = (uintptr_t)data, .sev_fd = (uint32_t)sev };
	int err = gmem_sys_ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd);

	*ret_error = cmd.error;
	return err;
}
