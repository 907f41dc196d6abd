/* SPDX-License-Identifier: MIT */
/* Between the two files of huge pages: see hugetlb.c. */
#ifndef GMEM_FILE_HUGETLB_H
#define GMEM_FILE_HUGETLB_H

#include "file/file.h"

/* Zeroed memory for the huge pages that meet the range and have none, under a view's policy. Invalidate lock held. */
int gmem_hugetlb_allocate(struct gmem_file *file, uint64_t off, uint64_t len);

#endif
