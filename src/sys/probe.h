/* SPDX-License-Identifier: MIT */
/*
 * Probing: each probe uses the thing once on scratch objects and writes down what happened.
 * Enters: nothing but the machine. Leaves: facts in a struct gmem_probe, in a fixed order. One thread; no lock. Every
 * scratch object is gone when a probe returns, and none of them may raise a signal or wait: memory that may be
 * poisoned or missing is looked at through gmem_sys_peek() only, after its userfault registration has ended.
 *
 * A fact that is absent is not an error. Running out of descriptors or memory is: it would turn into wrong facts.
 */
#ifndef GMEM_SYS_PROBE_H
#define GMEM_SYS_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_fact {
	char *name, *value, *what, *advice;
	enum gmem_host_status status;
};

struct gmem_probe {
	struct gmem_fact *facts;
	size_t count, room;
	int err; /* the first failure that spoils the table, or 0 */
	int uffd_how; /* GMEM_UFFD_HOW_*: how a descriptor for scratch use is had */
};

enum { GMEM_UFFD_HOW_NONE, GMEM_UFFD_HOW_SYSCALL, GMEM_UFFD_HOW_DEVICE, GMEM_UFFD_HOW_USER_MODE };

void gmem_probe_free(struct gmem_probe *probe);

/* Passes `rc` through and keeps it as the probe's failure if it is about exhausted descriptors. */
int gmem_probe_fd(struct gmem_probe *probe, int rc);

/* Writes down a fact. `value` is a format. The advice is dropped when the status is GMEM_HOST_YES. */
void gmem_probe_add(struct gmem_probe *probe, const char *name, enum gmem_host_status status, const char *what,
		    const char *advice, const char *value, ...) __attribute__((format(printf, 6, 7)));

/* 0 or more: YES. -EPERM, -EACCES: DENIED. Else NO. */
enum gmem_host_status gmem_probe_status(int rc);

/* "" for success, else the errno's name in words, for a fact's value. */
const char *gmem_probe_why(int rc);

/* First line of a small file without its newline, "" if there is none; 0 or -errno. */
int gmem_probe_read(const char *path, char *buf, size_t len);

/* Of a list such as "always [madvise] never": the word in brackets; the whole text if there is none. */
void gmem_probe_bracket(char *text);

void gmem_probe_kvm(struct gmem_probe *probe);
void gmem_probe_gmem(struct gmem_probe *probe); /* guest_memfd */
void gmem_probe_uffd(struct gmem_probe *probe); /* how to open, features; sets uffd_how for the next two */
void gmem_probe_uffd_modes(struct gmem_probe *probe); /* kinds of memory x registration modes */
void gmem_probe_uffd_use(struct gmem_probe *probe); /* each command, exercised */
void gmem_probe_mem(struct gmem_probe *probe); /* huge pages, NUMA */
void gmem_probe_process(struct gmem_probe *probe); /* pidfds, limits */

/* Sets the NUMA policy of a mapping: it must become the file's own, and is read back through a second mapping. */
struct gmem_scratch;
int gmem_probe_policy(const struct gmem_scratch *mem);

/*
 * A userfault descriptor by the way that gmem_probe_uffd() found, with these features asked for. `ret_api`, if not
 * NULL, is the kernel's answer. -EOPNOTSUPP: not these features.
 */
struct uffdio_api;
int gmem_probe_uffd_open(struct gmem_probe *probe, uint64_t features, struct uffdio_api *ret_api);

#endif
