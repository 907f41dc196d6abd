/* SPDX-License-Identifier: MIT */
/*
 * What is refused by name before a machine is saved or let run: other QEMUs, other machines, devices that share its
 * memory.
 */
#include "tap.h"

#include <sys/socket.h>

#include "link/devices.h"
#include "link/qmp.h"
#include "link/saved.h"

#define READY                                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, " \
	"\"capabilities\": [\"oob\"]}}\r\n{\"return\": {}, \"id\": 1}\r\n"
#define MACHINE "{\"return\": \"pc-i440fx-7.2-machine\", \"id\": 2}\r\n"
#define TCG "{\"return\": {\"enabled\": false, \"present\": true}, \"id\": 3}\r\n"

/* The answers of a QEMU 7.2, a PC under TCG, to the check of what was saved. */
static int check(const struct gmem_saved *saved)
{
	static const char text[] = READY MACHINE TCG;
	struct gmem_qmp *qmp;
	int sv[2], err;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	CHECK_EQ(write(sv[1], text, strlen(text)), (ssize_t)strlen(text));
	CHECK_OK(gmem_qmp_attach(sv[0], "fake", &qmp));
	err = gmem_saved_check(qmp, saved);
	gmem_qmp_close(qmp);
	close(sv[1]);
	return err;
}

static struct gmem_saved saved_by(int major, int minor, const char *machine, const char *accel)
{
	return (struct gmem_saved){
		.version = { .major = major, .minor = minor },
		.machine = (char *)machine,
		.accel = (char *)accel,
	};
}

TEST(an_older_qemu_is_refused)
{
	struct gmem_saved newer = saved_by(7, 3, "pc-i440fx-7.2", "tcg"), next = saved_by(8, 0, "pc-i440fx-7.2", "tcg");

	CHECK_ERR(check(&newer), -EPROTONOSUPPORT);
	CHECK_HAS(gmem_last_error(), "7.2");
	CHECK_HAS(gmem_last_error(), "7.3");
	CHECK_ERR(check(&next), -EPROTONOSUPPORT);
	CHECK_HAS(gmem_last_error(), "8.0");
}

TEST(the_same_or_a_newer_qemu_is_not)
{
	struct gmem_saved same = saved_by(7, 2, "pc-i440fx-7.2", "tcg"), older = saved_by(6, 9, "pc-i440fx-7.2", "tcg");

	CHECK_OK(check(&same));
	CHECK_OK(check(&older));
}

TEST(another_machine_or_accelerator_is_refused)
{
	struct gmem_saved q35 = saved_by(7, 2, "pc-q35-7.2", "tcg"), kvm = saved_by(7, 2, "pc-i440fx-7.2", "kvm");

	CHECK_ERR(check(&q35), -EMEDIUMTYPE);
	CHECK_HAS(gmem_last_error(), "pc-i440fx-7.2");
	CHECK_HAS(gmem_last_error(), "pc-q35-7.2");
	CHECK_ERR(check(&kvm), -EMEDIUMTYPE);
	CHECK_HAS(gmem_last_error(), "kvm");
}

TEST(devices_that_share_memory_are_refused)
{
	static const char *const bad[] = { "vhost-user-blk-pci",    "vhost-user-fs-pci", "vhost-user-scsi",
					   "vhost-vdpa-device-pci", "vfio-pci",		 "vfio-pci-nohotplug",
					   "ivshmem-plain",	    "ivshmem-doorbell",	 "nvdimm",
					   "virtio-pmem-pci",	    "virtio-mem-pci" };
	static const char *const good[] = { "virtio-blk-pci", "virtio-net-pci", "virtio-balloon-pci",
					    "e1000",	      "isa-serial",	"vhost-vsock-pci",
					    "pc-dimm" };

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		const char *why = NULL;

		CHECK_EQ(gmem_device_refused(bad[i], &why), 1);
		CHECK(why && *why);
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		const char *why;

		CHECK_EQ(gmem_device_refused(good[i], &why), 0);
	}
}
