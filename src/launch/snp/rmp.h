/* SPDX-License-Identifier: MIT */
/*
 * The reverse map table of one machine: whose each frame is ("RMP and VMPL Access Checks" in AMD's Programmer's Manual,
 * volume 2, 15.36; the states are the SEV-SNP Firmware ABI's).
 *
 * Enters: the instructions that change it, RMPUPDATE and PSMASH by the host, PVALIDATE by a guest, and what the
 * firmware writes. Leaves: what an access to a frame comes to. A frame is named by its number; whose memory is there is
 * told by gmem_rmp_claim(), so that what is known of memory that went away is not taken for what came to its address.
 * Frames that were never claimed or changed are the host's. Lock: its own, of class GMEM_LOCK_VENDOR; no call waits.
 */
#ifndef GMEM_LAUNCH_SNP_RMP_H
#define GMEM_LAUNCH_SNP_RMP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define GMEM_RMP_LARGE_PAGES 512u /* of 4 KiB in one of 2 MiB */

/* What RMPUPDATE, PSMASH and PVALIDATE leave in EAX. */
enum gmem_rmp_result {
	GMEM_RMP_OK = 0,
	GMEM_RMP_FAIL_INPUT = 1,
	GMEM_RMP_FAIL_PERMISSION = 2, /* immutable, or the firmware is at it */
	GMEM_RMP_FAIL_INUSE = 3, /* another processor is at the entry; never here, where they take turns */
	GMEM_RMP_FAIL_OVERLAP = 4, /* pages of 4 KiB and of 2 MiB would overlap */
	GMEM_RMP_FAIL_SIZEMISMATCH = 6,
};

/* The entry of a page, 16 bytes, as the Programmer's Manual has it. `gpa` is a frame number. */
struct gmem_rmp_entry {
	uint64_t assigned : 1;
	uint64_t large : 1; /* 2 MiB; then the entries of its other pages say nothing */
	uint64_t immutable : 1;
	uint64_t subpages : 9; /* not kept: pages of 4 KiB are counted elsewhere */
	uint64_t gpa : 39;
	uint64_t asid : 10;
	uint64_t vmsa : 1;
	uint64_t validated : 1;
	uint64_t lock : 1;
	uint8_t perms[4]; /* of VMPL 0 to 3: read, write, execute as user and supervisor, supervisor shadow stack */
	uint8_t reserved[4];
};
_Static_assert(sizeof(struct gmem_rmp_entry) == 16, "two quadwords");

#define GMEM_RMP_PERMS_ALL 0x1fu
#define GMEM_RMP_MAX_ASID 0x3feu /* 0x3ff locks an entry */
#define GMEM_RMP_GPA_MASK ((1ull << 39) - 1)

/* The firmware's names. */
enum gmem_rmp_state {
	GMEM_RMP_HYPERVISOR,
	GMEM_RMP_HV_FIXED,
	GMEM_RMP_FIRMWARE,
	GMEM_RMP_RECLAIM,
	GMEM_RMP_CONTEXT,
	GMEM_RMP_METADATA,
	GMEM_RMP_PRE_GUEST,
	GMEM_RMP_PRE_SWAP,
	GMEM_RMP_GUEST_INVALID,
	GMEM_RMP_GUEST_VALID,
	GMEM_RMP_INVALID,
};

enum gmem_rmp_state gmem_rmp_entry_state(const struct gmem_rmp_entry *e);
const char *gmem_rmp_state_text(enum gmem_rmp_state state);

struct gmem_rmp_region;

struct gmem_rmp {
	pthread_mutex_t m;
	struct gmem_rmp_region **buckets; /* by frame number, of 2 MiB each */
	uint32_t nbuckets, nregions;
};

void gmem_rmp_init(struct gmem_rmp *rmp);
void gmem_rmp_destroy(struct gmem_rmp *rmp);

/*
 * The frame is memory of `owner`, any number but 0. If it was somebody else's when it was claimed last, the entry is
 * the host's again: that memory is gone. -ENOMEM: nothing was done.
 */
int gmem_rmp_claim(struct gmem_rmp *rmp, uint64_t pfn, uint64_t owner);

/* The entry that says whose the frame is: its own, or that of the page of 2 MiB it is in. */
struct gmem_rmp_entry gmem_rmp_lookup(struct gmem_rmp *rmp, uint64_t pfn);
/* Its own, whatever it is in. */
struct gmem_rmp_entry gmem_rmp_read(struct gmem_rmp *rmp, uint64_t pfn);
/* The firmware changes an entry as it likes. -ENOMEM. */
int gmem_rmp_write(struct gmem_rmp *rmp, uint64_t pfn, const struct gmem_rmp_entry *e);
/* How many entries have this ASID. */
uint64_t gmem_rmp_count_asid(struct gmem_rmp *rmp, uint32_t asid);

/* ---- the host's */

/*
 * RMPUPDATE: what assigned, large, immutable, gpa and asid of the new entry are; all else is as after a reset. enum
 * gmem_rmp_result, or -ENOMEM.
 */
int gmem_rmp_update(struct gmem_rmp *rmp, uint64_t pfn, const struct gmem_rmp_entry *to);
/* The two that the kernel makes of it, for a page of 4 KiB. */
int gmem_rmp_make_private(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid, bool immutable);
int gmem_rmp_make_shared(struct gmem_rmp *rmp, uint64_t pfn);
/* That of many, at the cost of those there are. What is refused stays. */
void gmem_rmp_release(struct gmem_rmp *rmp, uint64_t pfn, uint64_t npages);
/* PSMASH: a page of 2 MiB becomes 512 of 4 KiB, as valid as it was. */
int gmem_rmp_smash(struct gmem_rmp *rmp, uint64_t pfn);
/* A store of the host's own to the frame: -EFAULT is #PF with the RMP bit. */
int gmem_rmp_check_host_write(struct gmem_rmp *rmp, uint64_t pfn);

/* ---- a guest's, by ASID and the frame it has the page at */

/*
 * PVALIDATE. enum gmem_rmp_result; 0 with *ret_unchanged (CF) set: it was so already. -EFAULT: a nested page fault,
 * the frame is not this guest's at that address.
 */
int gmem_rmp_validate(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid, bool large, bool validated,
		      bool *ret_unchanged);
/* A private access. -EFAULT: a nested page fault, as above; -EACCES: #VC, error code 0x404, not validated. */
int gmem_rmp_check_guest(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid);

#endif
