/* SPDX-License-Identifier: MIT */
/*
 * What an image keeps of the QEMU it was saved from: its section "qemu", which is JSON.
 *
 * Enters: a running QEMU, or the bytes of the section. Leaves: this structure, or the bytes. Nothing in the bytes is
 * trusted but their meaning: who restores an image runs the command line in it. Who owns it: the caller. No lock.
 */
#ifndef GMEM_LINK_SAVED_H
#define GMEM_LINK_SAVED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "link/qmp.h"

/* One memory backend: the image region of the same name holds its bytes. */
struct gmem_saved_backend {
	char *id, *region;
	uint64_t size;
	bool canonical; /* gmem_cmdline_replace_backend() */
};

enum gmem_disk_how {
	GMEM_DISK_READONLY = 0, /* the guest does not write it */
	GMEM_DISK_ENDED = 1, /* the guest wrote it, and ended with the save */
	GMEM_DISK_FROZEN = 2, /* the guest went on writing to an overlay; this file is the base of a new one */
};

/* One file behind the guest's disks, and what it looked like when it was saved. */
struct gmem_disk {
	char *path; /* absolute */
	char *drive; /* frozen: file= of its -drive option */
	char *format; /* frozen: "raw", "qcow2" */
	char *device; /* frozen: QEMU's name of the drive; not kept in the image */
	char *overlay; /* frozen: what the machine writes to now; not kept in the image */
	uint64_t virtual_size; /* frozen */
	uint64_t dev, ino, size;
	int64_t mtime_ns;
	enum gmem_disk_how how;
};

struct gmem_saved {
	char **argv; /* argc strings and NULL */
	size_t argc;
	char *cwd;
	char *machine; /* "pc-i440fx-7.2" */
	char *accel; /* "kvm" or "tcg" */
	char *cpu; /* type of the first CPU, "" if not known */
	char *saved_by; /* "gmem 0.1.0" */
	struct gmem_qmp_version version;
	bool running;
	struct gmem_saved_backend *backends;
	size_t nbackends;
	struct gmem_disk *disks;
	size_t ndisks;
};

/* Everything but backends and disks, from the monitor and /proc/PID. -ESRCH, -EACCES, -EREMOTEIO. */
int gmem_saved_collect(struct gmem_qmp *qmp, pid_t pid, struct gmem_saved **ret);
int gmem_saved_add_backend(struct gmem_saved *saved, const char *id, uint64_t size, bool canonical);
int gmem_saved_add_disk(struct gmem_saved *saved, const struct gmem_disk *disk); /* copies */
void gmem_saved_free(struct gmem_saved *saved); /* NULL is allowed */

/* The section's text, allocated. -ENOMEM, -EINVAL (an argument that is not UTF-8). */
int gmem_saved_format(const struct gmem_saved *saved, char **ret);

/* -EBADMSG names the member that is missing or wrong. */
int gmem_saved_parse(const void *data, size_t len, struct gmem_saved **ret);

/*
 * Is this QEMU, started from the saved command line, the one that can take the state? -EPROTONOSUPPORT: an older
 * version; -EMEDIUMTYPE: another machine type or accelerator. The text gives both values.
 */
int gmem_saved_check(struct gmem_qmp *qmp, const struct gmem_saved *saved);

#endif
