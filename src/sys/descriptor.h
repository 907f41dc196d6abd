/* SPDX-License-Identifier: MIT */
/* What a descriptor is that somebody else has sent. Needs /proc. Owns nothing, takes no lock. */
#ifndef GMEM_SYS_DESCRIPTOR_H
#define GMEM_SYS_DESCRIPTOR_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Is it a userfaultfd, ready for use? Its UFFD_FEATURE_* are told. -EBADF: it is something else; -EINVAL: it is one on
 * which UFFDIO_API was not done; and the errors of looking.
 */
int gmem_fd_uffd_features(int fd, uint64_t *ret);

/* Is it KVM's guest_memfd? 1, 0, or the errors of looking. */
int gmem_fd_is_guest_memfd(int fd);

/*
 * Is it a regular memory file, with `seals` at least? Its size is told. -EBADF: not a memory file; -EPERM: not all of
 * the seals.
 */
int gmem_fd_memfd_size(int fd, int seals, uint64_t *ret);

#endif
