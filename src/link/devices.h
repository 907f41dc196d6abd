/* SPDX-License-Identifier: MIT */
/*
 * What makes a virtual machine impossible to save and restore by its memory: other processes or the hardware that map
 * its RAM.
 *
 * Enters: a monitor. Leaves: 0, or a refusal that names the device. Asked of QEMU's object tree, not of the command
 * line, so that hot-plugged devices are seen. No lock.
 */
#ifndef GMEM_LINK_DEVICES_H
#define GMEM_LINK_DEVICES_H

struct gmem_qmp;

/* True for a device type that cannot be part of a saved machine; *ret_why says why. */
int gmem_device_refused(const char *type, const char **ret_why);

/* -EOPNOTSUPP: names the device, or what QEMU itself says blocks it. */
int gmem_devices_check(struct gmem_qmp *qmp);

#endif
