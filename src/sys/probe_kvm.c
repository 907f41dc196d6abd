/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

#define NO_KVM "needs /dev/kvm: see kvm.open"
#define LINUX_6_8 "Linux 6.8 or newer"

static const char *const type_names[] = { "default", "sw-protected", "sev", "sev-es", "snp", "tdx" };
#define NTYPES (sizeof(type_names) / sizeof(type_names[0]))

static const char *const type_advice[NTYPES] = {
	"in a VM: turn on nested virtualisation for it; on hardware: turn on VT-x or AMD-V in the firmware setup",
	"x86 kernel option CONFIG_KVM_SW_PROTECTED_VM=y (development and testing only)",
	"AMD EPYC with SEV turned on in the firmware setup and kvm_amd.sev=1",
	"AMD EPYC (2nd generation on) with SEV-ES turned on in the firmware setup and kvm_amd.sev_es=1",
	"AMD EPYC (3rd generation on) with SEV-SNP turned on in the firmware setup, kvm_amd.sev_snp=1 and iommu on",
	"Intel Xeon with TDX turned on in the firmware setup, CONFIG_KVM_INTEL_TDX=y and kvm_intel.tdx=1",
};

/* The group's name by /etc/group alone: asking the name services would load code and may wait for a network. */
static bool group_name(gid_t gid, char *buf, size_t len)
{
	FILE *f = fopen("/etc/group", "re");
	struct group group, *found;
	char text[4096];
	bool known = false;

	if (!f)
		return false;
	while (!known && !fgetgrent_r(f, &group, text, sizeof(text), &found))
		known = found->gr_gid == gid;
	fclose(f);
	if (known)
		snprintf(buf, len, "%s", group.gr_name);
	return known;
}

/* Who may use the device, in the words of the command that lets one in. */
static void device_advice(const char *path, int rc, char *buf, size_t len)
{
	char name[64];
	struct stat st;

	if (rc == -ENOENT || rc == -ENODEV || rc == -ENXIO)
		snprintf(buf, len,
			 "modprobe kvm_intel (or kvm_amd; built in on arm64); in a container: --device %s; "
			 "in a VM: turn on nested virtualisation for it",
			 path);
	else if (rc != -EACCES)
		snprintf(
			buf, len,
			"a device policy forbids it (cgroup, seccomp, security module): in a container add --device %s",
			path);
	else if (stat(path, &st) || !st.st_gid || (st.st_mode & 060) != 060)
		snprintf(buf, len,
			 "as root: setfacl -m u:USER:rw %s (or give it to a group: chgrp kvm %s; chmod 660 %s)", path,
			 path, path);
	else if (group_name(st.st_gid, name, sizeof(name)))
		snprintf(buf, len, "usermod -aG %s USER, then log in again", name);
	else
		snprintf(buf, len, "USER must be in group %u, which owns %s (in a container: --group-add %u)",
			 st.st_gid, path, st.st_gid);
}

static void probe_types(struct gmem_probe *probe, int kvm)
{
	int mask = kvm < 0 ? 0 : gmem_kvm_check(kvm, KVM_CAP_VM_TYPES);
	char value[128] = "";

	for (size_t i = 0; mask > 0 && i < NTYPES; i++)
		if (mask & (1 << i))
			snprintf(value + strlen(value), sizeof(value) - strlen(value), "%s%s", *value ? " " : "",
				 type_names[i]);
	gmem_probe_add(probe, "kvm.vm_types",
		       kvm < 0	? gmem_probe_status(kvm) :
		       mask > 0 ? GMEM_HOST_YES :
				  GMEM_HOST_NO,
		       "types of machine KVM says it can make",
		       kvm < 0 ? NO_KVM : LINUX_6_8 " (without it only default machines exist)", "%s",
		       kvm < 0 ? gmem_probe_why(kvm) : value);

	for (size_t i = 0; i < NTYPES; i++) {
		int vm = kvm < 0 ? kvm : -EINVAL;
		char name[48], what[80];

#if !defined(__x86_64__)
		/* The types are x86's numbers; on other architectures they would be something else's. */
		if (i == 0)
#endif
			if (kvm >= 0)
				vm = gmem_probe_fd(probe, gmem_kvm_vm_create(kvm, i));
		snprintf(name, sizeof(name), "kvm.vm.%s", type_names[i]);
		snprintf(what, sizeof(what), "machines of type %s", type_names[i]);
		gmem_probe_add(probe, name, gmem_probe_status(vm), what, kvm < 0 ? NO_KVM : type_advice[i], "%s",
			       gmem_probe_why(vm));
		if (vm >= 0)
			close(vm);
	}
}

static void probe_number(struct gmem_probe *probe, int vm, const char *name, unsigned long cap, const char *what)
{
	int n = vm < 0 ? vm : gmem_kvm_check(vm, cap);
	char value[16] = "";

	if (n == 0)
		n = -EOPNOTSUPP;
	if (n > 1)
		snprintf(value, sizeof(value), "%d", n);
	gmem_probe_add(probe, name, gmem_probe_status(n), what, vm < 0 ? NO_KVM : LINUX_6_8, "%s",
		       n < 0 ? gmem_probe_why(n) : value);
}

/* Plain memory through the newer memslot call, then what needs a slot and a vCPU. */
static void probe_slot(struct gmem_probe *probe, int vm)
{
	struct gmem_scratch mem = { .fd = -1, .vm = -1 };
	int slot = vm, fault = vm, vcpu;

	if (vm >= 0) {
		slot = fault = gmem_scratch_map(&mem, GMEM_SCRATCH_ANON, 4);
		if (!slot)
			slot = fault = gmem_kvm_slot_set(vm, 0, 0, mem.len, mem.addr, -1, 0);
	}
	if (vm >= 0 && !slot) {
		vcpu = fault = gmem_probe_fd(probe, gmem_kvm_vcpu_create(vm, 0));
		if (vcpu >= 0) {
			fault = gmem_kvm_pre_fault(vcpu, 0, mem.page);
			close(vcpu);
		}
	}
	gmem_scratch_unmap(&mem);
	gmem_probe_add(probe, "kvm.user_memory2", gmem_probe_status(slot), "memslots that can carry a guest_memfd",
		       vm < 0 ? NO_KVM : LINUX_6_8, "%s", gmem_probe_why(slot));
	gmem_probe_add(
		probe, "kvm.pre_fault", gmem_probe_status(fault), "maps guest memory before the guest touches it",
		vm < 0		     ? NO_KVM :
		fault == -EOPNOTSUPP ? "needs two-dimensional paging: EPT or NPT, kvm_intel.ept=1, kvm_amd.npt=1" :
				       "Linux 6.11 or newer, x86 only",
		"%s", gmem_probe_why(fault));
}

/*
 * Marking guest-physical addresses private: on the default type where the kernel has no other, else on a
 * software-protected one.
 */
static void probe_attributes(struct gmem_probe *probe, int kvm)
{
	static const unsigned long types[] = { KVM_X86_SW_PROTECTED_VM, KVM_X86_DEFAULT_VM };
	const char *on = "";
	int rc = kvm;

	for (size_t i = 0; kvm >= 0 && i < 2; i++) {
		int vm = gmem_probe_fd(probe, gmem_kvm_vm_create(kvm, types[i]));

		if (vm < 0) {
			rc = vm;
			continue;
		}
		rc = gmem_kvm_attributes_set(vm, 0, (uint64_t)sysconf(_SC_PAGESIZE), KVM_MEMORY_ATTRIBUTE_PRIVATE);
		close(vm);
		on = type_names[types[i]];
		if (!rc)
			break;
	}
	gmem_probe_add(probe, "kvm.memory_attributes", gmem_probe_status(rc),
		       "guest addresses marked private or shared, kept by the VM",
		       kvm < 0 ? NO_KVM : "x86 kernel option CONFIG_KVM_SW_PROTECTED_VM=y, or SNP or TDX hardware",
		       "%s", rc ? gmem_probe_why(rc) : on);
}

static void probe_hypercall(struct gmem_probe *probe, int vm)
{
	int mask = vm < 0 ? vm : gmem_kvm_check(vm, KVM_CAP_EXIT_HYPERCALL);
	char value[32];
	int rc = mask;

	if (mask == 0)
		rc = -EOPNOTSUPP;
	else if (mask > 0)
		rc = gmem_kvm_cap_enable(vm, KVM_CAP_EXIT_HYPERCALL, (uint64_t)mask);
	snprintf(value, sizeof(value), "mask 0x%x", (unsigned int)mask);
	gmem_probe_add(probe, "kvm.exit_hypercall", gmem_probe_status(rc),
		       "a guest's conversion requests (MAP_GPA_RANGE) leave to user space",
		       vm < 0 ? NO_KVM : "Linux 5.14 or newer, x86 only", "%s", rc < 0 ? gmem_probe_why(rc) : value);
}

void gmem_probe_kvm(struct gmem_probe *probe)
{
	int kvm = gmem_probe_fd(probe, gmem_kvm_open());
	int version = kvm < 0 ? kvm : gmem_kvm_api_version(kvm);
	int vm = kvm < 0 ? kvm : gmem_probe_fd(probe, gmem_kvm_vm_create(kvm, 0));
	char advice[256];

	device_advice("/dev/kvm", kvm, advice, sizeof(advice));
	if (kvm < 0)
		gmem_probe_add(probe, "kvm.open", gmem_probe_status(kvm), "/dev/kvm can be opened", advice, "%s",
			       gmem_probe_why(kvm));
	else
		gmem_probe_add(
			probe, "kvm.open", version == 12 ? GMEM_HOST_YES : GMEM_HOST_NO, "/dev/kvm can be opened",
			"not the KVM interface: every kernel since 2.6.22 answers API version 12", "API %d", version);

	probe_types(probe, kvm);
	probe_number(probe, vm, "kvm.memslots", KVM_CAP_NR_MEMSLOTS, "memslots a machine may have");
	probe_slot(probe, vm);
	probe_attributes(probe, kvm);
	probe_number(probe, vm, "kvm.memory_fault_info", KVM_CAP_MEMORY_FAULT_INFO,
		     "a guest access nothing can serve leaves to user space as such");
	probe_hypercall(probe, vm);

	if (vm >= 0)
		close(vm);
	if (kvm >= 0)
		close(kvm);
}
