/* SPDX-License-Identifier: MIT */
/*
 * The seam to the kernel: what the C library has no good wrapper for, with -errno as the only error channel.
 * Enters: plain arguments. Leaves: a result >= 0, or -errno. No state, no lock, no error text. Tests inject faults
 * here (linker --wrap).
 */
#ifndef GMEM_SYS_CALL_H
#define GMEM_SYS_CALL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val); /* an argument that is no pointer */
int gmem_sys_open(const char *path, int flags); /* close-on-exec */
int gmem_sys_memfd(const char *name, unsigned int flags); /* close-on-exec */
int gmem_sys_userfaultfd(int flags);
int gmem_sys_mbind(void *addr, size_t len, int mode, const unsigned long *mask, unsigned long maxnode,
		   unsigned int flags);
int gmem_sys_get_mempolicy(int *mode, unsigned long *mask, unsigned long maxnode, void *addr, unsigned long flags);
int gmem_sys_set_mempolicy(int mode, const unsigned long *mask, unsigned long maxnode); /* the thread's */

/* process_vm_readv(2) on ourselves. */
ssize_t gmem_sys_self_read(void *to, const void *from, size_t len);

/* As gmem_sys_peek(), the other way: into memory that may not be there, or not be writable. */
ssize_t gmem_sys_poke(void *to, const void *from, size_t len);

/*
 * Makes sure that [addr, addr + len) of this process can be written to, without changing a byte of it. -EFAULT.
 */
int gmem_sys_self_writable(void *addr, size_t len);

/*
 * Drops this process's translations of a shared mapping, locked ones too, and with them any marker. The bytes stay in
 * the file. Waits until the event is read if the mapping is registered with UFFD_FEATURE_EVENT_REMOVE.
 */
int gmem_sys_zap(void *addr, size_t len);

/*
 * Copies between two addresses of this process. A bad or poisoned address is -EFAULT, never a signal. Bytes copied.
 * Works without process_vm_readv(2), which some container profiles forbid.
 */
ssize_t gmem_sys_peek(void *to, const void *from, size_t len);

#endif
