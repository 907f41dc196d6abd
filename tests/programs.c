/* SPDX-License-Identifier: MIT */
/* The guest programs that must end the same whoever runs them. See programs.h. */
#include "programs.h"

/* clang-format off */

#define A 0x8877665544332211ull
#define B 0xf0e1d2c3b4a59687ull

/* Word `i` of a fill. */
#define W(seed, i) ((seed) + (i) * GUEST_PATTERN_STEP)

/* What a supplied page begins with. */
#define BROUGHT(page) (P(page) + 1)

/* ---- memory */

PROGRAM(sizes, BOTH_TYPES, EVERYONE,
	{ WRITE, P(1), .value = A },
	{ LOAD, P(1), .n = 1, .want = 0x11 },
	{ LOAD, P(1) + 1, .n = 2, .want = 0x3322 },
	{ LOAD, P(1) + 4, .n = 4, .want = 0x88776655 },
	{ LOAD, P(1), .n = 8, .want = A },
	{ STORE, P(1) + 7, .n = 1, .value = B },
	{ STORE, P(1) + 5, .n = 2, .value = B },
	{ STORE, P(1) + 1, .n = 4, .value = B },
	{ READ, P(1), .want = 0x879687b4a5968711 },
	{ STORE, P(1), .n = 8, .value = B },
	{ READ, P(1), .want = B },
	{ MOVE16, P(2) + 5, .with = P(1) },
	{ LOAD, P(2) + 5, .n = 8, .want = B },
	{ FILL, P(3), .n = 1024, .value = 9, .want = 1024 },
	{ READ, P(4) + 8, .want = W(9, 513) },
	{ TOUCH, P(8), .n = 8, .value = 100, .want = 8 },
	{ SUM, P(8), .n = 8, .want = 828 },
	{ READ, P(15), .want = 107 })

PROGRAM(across_pages, BOTH_TYPES, EVERYONE,
	{ STORE, P(2) - 3, .n = 8, .value = A },
	{ LOAD, P(2) - 3, .n = 8, .want = A },
	{ READ, P(2) - 8, .want = A << 40 },
	{ READ, P(2), .want = A >> 24 },
	{ STORE, P(3) - 1, .n = 2, .value = A },
	{ LOAD, P(3) - 1, .n = 2, .want = 0x2211 },
	{ LOAD, P(3) - 3, .n = 4, .want = 0x22110000 },
	/* And across two slots. */
	{ STORE, P(8) - 4, .n = 8, .value = B },
	{ LOAD, P(8) - 4, .n = 8, .want = B },
	{ READ, P(8), .want = B >> 32 },
	{ MOVE16, P(8) - 8, .with = P(2) - 8 },
	{ READ, P(8) - 8, .want = A << 40 },
	{ READ, P(8), .want = A >> 24 })

PROGRAM(exchanges, BOTH_TYPES, EVERYONE,
	{ CMPXCHG, P(1), .with = 0, .value = A, .want = 0 },
	{ READ, P(1), .want = A },
	{ CMPXCHG, P(1), .with = 1, .value = B, .want = A },
	{ READ, P(1), .want = A },
	{ CMPXCHG, P(1), .with = A, .value = B, .want = A },
	{ LOAD, P(1), .n = 8, .want = B },
	{ CMPXCHG, P(15) + 8, .with = 0, .value = 3, .want = 0 },
	{ READ, P(15) + 8, .want = 3 })

PROGRAM(copies, BOTH_TYPES, EVERYONE,
	{ FILL, P(1), .n = 512, .value = 7, .want = 512 },
	{ COPY, P(3), .with = P(1), .n = 8 },
	{ READ, P(3), .want = 7 },
	{ READ, P(3) + 8, .want = 0 },
	/* Across pages of both, and from one slot to the other, and to what lies in both. */
	{ COPY, P(4) - 100 * 8, .with = P(1), .n = PG },
	{ READ, P(4) - 100 * 8, .want = 7 },
	{ READ, P(4), .want = W(7, 100) },
	{ COPY, P(10) + 3, .with = P(1) + 8, .n = PG - 8 },
	{ LOAD, P(10) + 3, .n = 8, .want = W(7, 1) },
	{ COPY, P(8) - 16, .with = P(10) + 3, .n = 32 },
	{ READ, P(8) + 8, .want = W(7, 4) })

PROGRAM(host_memory, BOTH_TYPES, EVERYONE,
	{ WRITE, HVA, .value = A },
	{ LOAD, HVA, .n = 8, .want = A },
	{ LOAD, HVA + 3, .n = 4, .want = 0x77665544 },
	{ STORE, HVA + P(1) - 4, .n = 8, .value = B },
	{ READ, HVA + P(1), .want = B >> 32 },
	{ COPY, P(1), .with = HVA, .n = 8 },
	{ READ, P(1), .want = A },
	{ COPY, HVA + P(1) - 1, .with = P(1), .n = 8 },
	{ LOAD, HVA + P(1) - 1, .n = 8, .want = A },
	{ MOVE16, HVA + P(2) - 8, .with = P(1) },
	{ READ, HVA + P(2) - 8, .want = A },
	{ FILL, HVA, .n = 1024, .value = 4, .want = 1024 },
	{ READ, HVA + P(1), .want = W(4, 512) },
	{ SUM, HVA, .n = 2, .want = 4 + W(4, 512) })

/* What is not there now, and what no call of the kernel's does. */
PROGRAM(host_memory_differs, BOTH_TYPES, EVERYONE,
	{ CMPXCHG, HVA, .with = 0, .value = A, .want = 0,
	  .exits = { FAILS(-EOPNOTSUPP, HVA, GIVE_UP) },
	  .differs = "the caller's memory is exchanged by the processor, and by no accessor" },
	{ WRITE, HVA + P(1), .value = 5 },
	{ HIDE, HVA + P(1), .n = 1 },
	{ LOAD, HVA + P(1), .n = 8, .want = 5,
	  .exits = { FAULT(HVA + P(1), SHOW, 1) },
	  .differs = "KVM does not say where the caller's memory is not there",
	  .kvm = { FAULT_OR_FAILS(HVA + P(1), SHOW) } },
	{ HIDE, HVA + P(1), .n = 1 },
	{ STORE, HVA + P(1), .n = 8, .value = 6,
	  .exits = { FAULT(HVA + P(1), SHOW, 1) },
	  .differs = "KVM does not say where the caller's memory is not there",
	  .kvm = { FAULT_OR_FAILS(HVA + P(1), SHOW) } },
	{ READ, HVA + P(1), .want = 6 })

/* ---- two memories */

PROGRAM(two_memories, DEFAULT_TYPE, USER_ENGINE,
	{ WRITE, TWO + P(1), .value = A },
	{ LOAD, TWO + P(1), .n = 8, .want = A },
	{ FILL, TWO, .n = 1024, .value = 3, .want = 1024 },
	{ READ, TWO + P(1) + 8, .want = W(3, 513) },
	{ READ, TWO_FILE, .want = 0 },
	{ PRIVATE, TWO + P(1), .n = 2 },
	{ LOAD, TWO + P(1), .n = 8, .want = W(3, 512), .exits = { FAULT(TWO + P(1), SHARED, 1) } },
	{ STORE, TWO + P(2) - 4, .n = 8, .value = B, .exits = { FAULT(TWO + P(2), SHARED, 1) } },
	{ READ, TWO + P(2), .want = B >> 32 },
	{ READ, TWO_FILE + P(1), .want = 0 },
	{ READ, TWO_FILE + P(2), .want = 0 },
	{ MOVE16, P(1), .with = TWO + P(3) - 8 },
	{ COPY, TWO + P(2), .with = P(1), .n = 16 },
	{ DELETE, .n = 5 },
	{ LOAD, TWO, .n = 8, .want = 6, .exits = { DEVICE_LOAD(TWO, 8, 6) } },
	{ SET, .n = 5 },
	{ LOAD, TWO, .n = 8, .want = 3 },
	{ SUM, TWO, .n = 2, .want = 3 + W(3, 512) })

/* Each side keeps its bytes. */
PROGRAM(two_memories_in_reach, PROTECTED_TYPE, USER_ENGINE,
	{ FILL, TWO, .n = 1536, .value = 3, .want = 1536 },
	{ PRIVATE, TWO + P(1), .n = 1 },
	{ LOAD, TWO + P(1), .n = 8, .want = 0 },
	{ STORE, TWO + P(1), .n = 8, .value = A },
	{ STORE, TWO + P(2) - 4, .n = 8, .value = B },
	{ READ, TWO + P(1), .want = W(3, 512) },
	{ READ, TWO + P(2), .want = (W(3, 1024) & ~0xffffffffull) | B >> 32 },
	{ COPY, TWO + P(1) + 64, .with = TWO, .n = 16 },
	{ LOAD, TWO + P(1) + 64, .n = 8, .want = 3 },
	{ SHARED, TWO, .n = 4 },
	{ LOAD, TWO + P(1) + 64, .n = 8, .want = W(3, 520) },
	{ READ, TWO_FILE + P(1), .want = A },
	{ READ, TWO_FILE + P(2) - 8, .want = B << 32 },
	{ READ, TWO_FILE + P(2), .want = 0 },
	{ PRIVATE, TWO, .n = 2 },
	{ SUM, TWO, .n = 3, .want = A + ((W(3, 1024) & ~0xffffffffull) | B >> 32) })

PROGRAM(read_only, BOTH_TYPES, EVERYONE,
	{ WRITE, HVA_READONLY, .value = A },
	{ LOAD, HVA_READONLY, .n = 8, .want = A },
	{ STORE, HVA_READONLY, .n = 8, .value = B, .exits = { DEVICE_STORE(HVA_READONLY, 8, B) } },
	{ STORE, HVA_READONLY + 6, .n = 1, .value = 3, .exits = { DEVICE_STORE(HVA_READONLY + 6, 1, 3) } },
	{ READ, HVA_READONLY, .want = A },
	{ COPY, P(1), .with = HVA_READONLY, .n = 8 },
	{ READ, P(1), .want = A },
	{ COPY, HVA_READONLY, .with = P(2), .n = 2,
	  .exits = { FAULT(HVA_READONLY, GIVE_UP, 0) },
	  .differs = "a copy is a memory fault where it cannot be written to, and a guest's is many stores",
	  .kvm = { DEVICE_STORE(HVA_READONLY, 1, 0), DEVICE_STORE(HVA_READONLY + 1, 1, 0) } },
	{ CMPXCHG, HVA_READONLY, .with = A, .value = B,
	  .exits = { FAULT(HVA_READONLY, GIVE_UP, 0) },
	  .differs = "an exchange is a memory fault where it cannot be written to, and a guest's is a load and a store",
	  .kvm = { DEVICE_STORE(HVA_READONLY, 8, B) }, .kvm_want = A },
	{ READ, HVA_READONLY, .want = A })

/* ---- devices */

PROGRAM(devices, BOTH_TYPES, EVERYONE,
	{ LOAD, DEVICE, .n = 1, .want = 0x11, .exits = { DEVICE_LOAD(DEVICE, 1, A) } },
	{ LOAD, DEVICE + 2, .n = 2, .want = 0x2211, .exits = { DEVICE_LOAD(DEVICE + 2, 2, A) } },
	{ LOAD, DEVICE + 4, .n = 4, .want = 0x44332211, .exits = { DEVICE_LOAD(DEVICE + 4, 4, A) } },
	{ LOAD, DEVICE + P(1) - 8, .n = 8, .want = A, .exits = { DEVICE_LOAD(DEVICE + P(1) - 8, 8, A) } },
	{ LOAD, DEVICE + 1, .n = 4, .want = 0x44332211, .exits = { DEVICE_LOAD(DEVICE + 1, 4, A) } },
	{ STORE, DEVICE, .n = 1, .value = B, .exits = { DEVICE_STORE(DEVICE, 1, 0x87) } },
	{ STORE, DEVICE + 2, .n = 2, .value = B, .exits = { DEVICE_STORE(DEVICE + 2, 2, 0x9687) } },
	{ STORE, DEVICE + 4, .n = 4, .value = B, .exits = { DEVICE_STORE(DEVICE + 4, 4, 0xb4a59687) } },
	{ STORE, DEVICE + 8, .n = 8, .value = B, .exits = { DEVICE_STORE(DEVICE + 8, 8, B) } },
	/* The page after the last of a slot, and one before the first. */
	{ LOAD, P(PAGES), .n = 8, .want = 5, .exits = { DEVICE_LOAD(P(PAGES), 8, 5) } },
	{ STORE, -8ull, .n = 8, .value = 6, .exits = { DEVICE_STORE(-8ull, 8, 6) } },
	{ LOAD, P(PAGES) - 8, .n = 8, .want = 0 },
	{ TOUCH, P(PAGES) - P(1), .n = 3, .value = 1, .want = 3,
	  .exits = { DEVICE_STORE(P(PAGES), 8, 2), DEVICE_STORE(P(PAGES + 1), 8, 3) } },
	{ SUM, P(PAGES) - P(1), .n = 3, .want = 31,
	  .exits = { DEVICE_LOAD(P(PAGES), 8, 10), DEVICE_LOAD(P(PAGES + 1), 8, 20) } })

PROGRAM(exchanges_with_devices, BOTH_TYPES, EVERYONE,
	{ CMPXCHG, DEVICE, .with = 5, .value = 7, .want = 5,
	  .exits = { DEVICE_LOAD(DEVICE, 8, 5), DEVICE_STORE(DEVICE, 8, 7) } },
	{ CMPXCHG, DEVICE, .with = 5, .value = 7, .want = 6,
	  .exits = { DEVICE_LOAD(DEVICE, 8, 6) },
	  .differs = "an exchange that misses is a store too: of what was there",
	  .kvm = { DEVICE_LOAD(DEVICE, 8, 6), DEVICE_STORE(DEVICE, 8, 6) } })

PROGRAM(devices_differ, BOTH_TYPES, EVERYONE,
	{ WRITE, P(PAGES) - 8, .value = A },
	{ LOAD, P(PAGES) - 4, .n = 8,
	  .exits = { FAULT(P(PAGES), GIVE_UP, 0) },
	  .differs = "half memory and half a device: a guest's access is taken apart",
	  .kvm = { DEVICE_LOAD(P(PAGES), 4, B) }, .kvm_want = B << 32 | A >> 32 },
	{ STORE, DEVICE + P(1) - 4, .n = 8, .value = B,
	  .exits = { FAULT(DEVICE, GIVE_UP, 0) },
	  .differs = "across two pages of a device: a guest's access is taken apart",
	  .kvm = { DEVICE_STORE(DEVICE + P(1) - 4, 4, 0xb4a59687), DEVICE_STORE(DEVICE + P(1), 4, B >> 32) } },
	{ COPY, DEVICE, .with = P(PAGES) - 8, .n = 2,
	  .exits = { FAULT(DEVICE, GIVE_UP, 0) },
	  .differs = "copies of an accessor know no device, and a guest's is many loads and stores",
	  .kvm = { DEVICE_STORE(DEVICE, 1, 0x11), DEVICE_STORE(DEVICE + 1, 1, 0x22) } },
	{ COPY, P(1), .with = DEVICE, .n = 2,
	  .exits = { FAULT(DEVICE, GIVE_UP, 0) },
	  .differs = "copies of an accessor know no device, and a guest's is many loads and stores",
	  .kvm = { DEVICE_LOAD(DEVICE, 1, 0x33), DEVICE_LOAD(DEVICE + 1, 1, 0x44) } })

/* ---- private pages */

PROGRAM(private_of_default, DEFAULT_TYPE, USER_ENGINE,
	{ WRITE, P(1), .value = A },
	{ STORE, P(2), .n = 8, .value = B },
	{ PRIVATE, P(1), .n = 6 },
	{ READ, P(1), .refused = -EACCES },
	{ LOAD, P(1), .n = 8, .want = A, .exits = { FAULT(P(1), SHARED, 1) } },
	{ LOAD, P(2) + 4, .n = 4, .want = B >> 32, .exits = { FAULT(P(2), SHARED, 1) } },
	{ STORE, P(3) + 9, .n = 1, .value = 4, .exits = { FAULT(P(3), SHARED, 1) } },
	{ READ, P(3) + 8, .want = 0x400 },
	{ CMPXCHG, P(4), .with = 0, .value = A, .want = 0, .exits = { FAULT(P(4), SHARED, 1) } },
	{ READ, P(4), .want = A },
	{ CMPXCHG, P(5), .with = 1, .value = A, .want = 0, .exits = { FAULT(P(5), SHARED, 1) } },
	{ READ, P(5), .want = 0 },
	{ LOAD, P(6), .n = 8, .want = 0, .exits = { FAULT(P(6), SHARED, 6) } },
	{ PRIVATE, P(7), .n = 2 },
	/* Each half of one access, in a slot of its own. */
	{ LOAD, P(8) - 4, .n = 8, .want = 0, .exits = { FAULT(P(7), SHARED, 1), FAULT(P(8), SHARED, 1) } },
	{ PRIVATE, P(8), .n = 1 },
	{ STORE, P(8) - 4, .n = 8, .value = B, .exits = { FAULT(P(8), SHARED, 1) } },
	{ READ, P(8), .want = B >> 32 })

PROGRAM(copies_of_private, DEFAULT_TYPE, USER_ENGINE,
	{ FILL, P(1), .n = 1536, .value = 3, .want = 1536 },
	{ PRIVATE, P(2), .n = 1 },
	/* From the middle of the one that is private, and to one. */
	{ COPY, P(5), .with = P(1), .n = P(3), .exits = { FAULT(P(2), SHARED, 1) } },
	{ READ, P(6), .want = W(3, 512) },
	{ READ, P(7) + 4088, .want = W(3, 1535) },
	{ PRIVATE, P(14), .n = 1 },
	{ COPY, P(14) - 8, .with = P(1), .n = 16, .exits = { FAULT(P(14), SHARED, 1) } },
	{ READ, P(14) - 8, .want = 3 },
	{ READ, P(14), .want = W(3, 1) },
	{ PRIVATE, P(1), .n = 1 },
	{ COPY, P(15), .with = P(1) - 8, .n = 16, .exits = { FAULT(P(1), SHARED, 1) } },
	{ READ, P(15) + 8, .want = 3 },
	{ PRIVATE, P(10), .n = 2 },
	{ COPY, P(9), .with = P(1), .n = P(3), .exits = { FAULT(P(10), SHARED, 1), FAULT(P(11), SHARED, 1) } },
	{ SUM, P(9), .n = 3, .want = 3 + W(3, 512) + W(3, 1024) },
	{ PRIVATE, P(1), .n = 1 },
	{ PRIVATE, P(12), .n = 1 },
	{ MOVE16, P(12), .with = P(1), .exits = { FAULT(P(1), SHARED, 1), FAULT(P(12), SHARED, 1) } },
	{ READ, P(12), .want = 3 },
	{ PRIVATE, P(1), .n = 12 },
	{ TOUCH, P(6), .n = 4, .value = 1, .want = 4,
	  .exits = { FAULT(P(6), SHARED, 2), FAULT(P(8), SHARED, 1), FAULT(P(9), PUNCH, 1), FAULT(P(9), SHARED, 1) } },
	{ SUM, P(6), .n = 4, .want = 10 },
	{ LOAD, P(9) + 8, .n = 8, .want = 0 })

/* Punched, it stays private, and a slot that is set meanwhile has the same. */
PROGRAM(private_and_more, DEFAULT_TYPE, USER_ENGINE,
	{ WRITE, P(9), .value = A },
	{ PRIVATE, P(9), .n = 1 },
	{ PUNCH, P(9), .n = 1 },
	{ DELETE, .n = 1 },
	{ SET, .n = 1 },
	{ LOAD, P(9), .n = 8, .want = 0, .exits = { FAULT(P(9), PUNCH, 1), FAULT(P(9), SHARED, 1) } },
	{ PRIVATE, P(9), .n = 1 },
	{ STORE, P(9), .n = 8, .value = B,
	  .exits = { FAULT(P(9), DELETE, 1), DEVICE_STORE(P(9), 8, B) } },
	{ SET, .n = 1 },
	{ SHARED, P(9), .n = 1 },
	{ READ, P(9), .want = 0 })

PROGRAM(both_sides, PROTECTED_TYPE, USER_ENGINE,
	{ FILL, P(1), .n = 1024, .value = 8, .want = 1024 },
	{ PRIVATE, P(2), .n = 8 },
	{ READ, P(2), .refused = -EACCES },
	{ SUM, P(1), .n = 2, .want = 8 + W(8, 512) },
	{ STORE, P(2), .n = 8, .value = A },
	{ COPY, P(8) - 8, .with = P(2) - 8, .n = 16 },
	{ CMPXCHG, P(2), .with = A, .value = B, .want = A },
	{ PUNCH, P(9), .n = 1 },
	{ LOAD, P(9), .n = 8, .want = 0 },
	{ SHARED, P(2), .n = 8 },
	{ READ, P(2), .want = B },
	{ READ, P(8), .want = A },
	{ READ, P(8) - 8, .want = W(8, 511) })

/* ---- punched, lost, absent */

PROGRAM(punched, BOTH_TYPES, EVERYONE,
	{ FILL, P(6), .n = 2048, .value = 8, .want = 2048 },
	{ PUNCH, P(7), .n = 2 },
	{ SUM, P(6), .n = 4, .want = 8 + W(8, 1536) },
	{ LOAD, P(8) - 4, .n = 8, .want = 0 },
	{ STORE, P(7), .n = 8, .value = A },
	{ READ, P(7), .want = A },
	{ CMPXCHG, P(8), .with = 0, .value = B, .want = 0 },
	{ READ, P(8), .want = B },
	{ PUNCH, P(0), .n = PAGES },
	{ SUM, P(0), .n = PAGES, .want = 0 })

PROGRAM(poisoned, BOTH_TYPES, USER_ENGINE | 1u << ACCESSOR_KERNEL_ENGINE,
	{ TOUCH, P(1), .n = 10, .value = 1, .want = 10 },
	{ POISON, P(2), .n = 8 },
	{ READ, P(2), .refused = -EHWPOISON },
	{ LOAD, P(2), .n = 8, .want = 0, .exits = { LOST(P(2)) } },
	{ STORE, P(3), .n = 4, .value = A, .exits = { LOST(P(3)) } },
	{ READ, P(3), .want = (uint32_t)A },
	{ CMPXCHG, P(4), .with = 0, .value = A, .want = 0, .exits = { LOST(P(4)) } },
	{ READ, P(4), .want = A },
	{ COPY, P(12), .with = P(4), .n = P(2), .exits = { LOST(P(5)) } },
	{ LOAD, P(8) - 4, .n = 8, .want = 0, .exits = { LOST(P(7)), LOST(P(8)) } },
	{ SUM, P(1), .n = 10, .want = 1 + (uint32_t)A + A + 10, .exits = { LOST(P(6)), LOST(P(9)) } },
	{ POISON, P(0), .n = 1 },
	{ LOAD, P(0), .n = 1, .want = 0,
	  .exits = { FAULT_AS(-EHWPOISON, P(0), 0, DELETE, 0), DEVICE_LOAD(P(0), 1, 0) } })

PROGRAM(poisoned_private, PROTECTED_TYPE, USER_ENGINE,
	{ TOUCH, P(1), .n = 3, .value = 1, .want = 3 },
	{ PRIVATE, P(1), .n = 3 },
	{ POISON, P(2), .n = 1 },
	{ LOAD, P(2), .n = 8, .want = 0, .exits = { LOST_PRIVATE(P(2)) } },
	{ READ, P(2), .refused = -EACCES },
	{ SUM, P(1), .n = 3, .want = 4 })

PROGRAM(poisoned_and_private, DEFAULT_TYPE, USER_ENGINE,
	{ TOUCH, P(1), .n = 3, .value = 1, .want = 3 },
	{ PRIVATE, P(1), .n = 3 },
	{ POISON, P(2), .n = 1 },
	{ LOAD, P(2), .n = 8, .want = 0, .exits = { FAULT(P(2), SHARED, 1), LOST(P(2)) } },
	{ SUM, P(1), .n = 3, .want = 4, .exits = { FAULT(P(1), SHARED, 1), FAULT(P(3), SHARED, 1) } })

/* gmem_file_poison() says so: KVM has the guest_memfd, and its guests are out of reach. */
PROGRAM(poisoned_is_zero, BOTH_TYPES, KVM_ON_KERNEL_ENGINE,
	{ STORE, P(1), .n = 8, .value = A },
	{ POISON, P(1), .n = 1 },
	{ LOAD, P(1), .n = 8, .want = 0 },
	{ READ, P(1), .refused = -EHWPOISON },
	{ PUNCH, P(1), .n = 1 },
	{ READ, P(1), .want = 0 })

PROGRAM(brought_in, BOTH_TYPES, USER_ENGINE,
	{ STORE, P(1), .n = 8, .value = A },
	{ SUPPLY, P(2), .n = 8 },
	{ LOAD, P(1), .n = 8, .want = A },
	{ LOAD, P(2) + 8, .n = 8, .want = BROUGHT(2) + 8 },
	{ STORE, P(3) + 8, .n = 8, .value = 1 },
	{ READ, P(3), .want = BROUGHT(3) },
	{ CMPXCHG, P(4), .with = BROUGHT(4), .value = 1, .want = BROUGHT(4) },
	{ SUPPLIED, .want = 3 },
	{ LOAD, P(6) - 4, .n = 8, .want = BROUGHT(6) << 32 },
	{ SUPPLIED, .want = 5 },
	{ PUNCH, P(7), .n = 1 },
	{ COPY, P(12), .with = P(7), .n = P(2) },
	{ READ, P(12), .want = 0 },
	{ READ, P(13), .want = BROUGHT(8) },
	{ SUPPLIED, .want = 6 },
	{ COPY, P(9) + 8, .with = P(1), .n = 8 },
	{ READ, P(9), .want = BROUGHT(9) },
	{ READ, P(9) + 8, .want = A },
	{ SUM, P(2), .n = 8, .want = BROUGHT(2) + BROUGHT(3) + 1 + BROUGHT(5) + BROUGHT(6) + BROUGHT(8) + BROUGHT(9) },
	{ SUPPLIED, .want = 7 })

/* Who would have brought it in is gone: no exit, and no zero. */
PROGRAM(never_brought_in, BOTH_TYPES, USER_ENGINE,
	{ SUPPLY, P(2), .n = 8 },
	{ LOAD, P(2), .n = 8, .want = BROUGHT(2) },
	{ END_SUPPLY },
	{ LOAD, P(2), .n = 8, .want = BROUGHT(2) },
	{ LOAD, P(3), .n = 8, .want = 0, .exits = { FAILS(-EIO, P(3), PUNCH) } },
	{ STORE, P(4), .n = 8, .value = A, .exits = { FAILS(-EIO, P(4), PUNCH) } },
	{ READ, P(4), .want = A },
	{ COPY, P(12), .with = P(4), .n = P(2), .exits = { FAILS(-EIO, P(5), PUNCH) } },
	{ READ, P(12), .want = A },
	{ SUPPLIED, .want = 1 })

PROGRAM(brought_in_of_default, DEFAULT_TYPE, USER_ENGINE,
	{ SUPPLY, P(2), .n = 3 },
	{ PRIVATE, P(2), .n = 3 },
	{ LOAD, P(2), .n = 8, .want = BROUGHT(2), .exits = { FAULT(P(2), SHARED, 1) } },
	{ COPY, P(12), .with = P(3), .n = P(2), .exits = { FAULT(P(3), SHARED, 1), FAULT(P(4), SHARED, 1) } },
	{ READ, P(12), .want = BROUGHT(3) },
	{ READ, P(13), .want = BROUGHT(4) },
	{ PRIVATE, P(2), .n = 1 },
	{ STORE, P(2) + 8, .n = 8, .value = 1, .exits = { FAULT(P(2), SHARED, 1) } },
	{ READ, P(2), .want = BROUGHT(2) },
	{ SUPPLIED, .want = 3 })

PROGRAM(brought_in_of_protected, PROTECTED_TYPE, USER_ENGINE,
	{ SUPPLY, P(2), .n = 3 },
	{ PRIVATE, P(2), .n = 2 },
	{ LOAD, P(2), .n = 8, .want = BROUGHT(2) },
	{ STORE, P(3) + 8, .n = 8, .value = A },
	{ READ, P(2), .refused = -EACCES },
	{ SHARED, P(2), .n = 2 },
	{ READ, P(3), .want = BROUGHT(3) },
	{ READ, P(3) + 8, .want = A },
	{ SUM, P(2), .n = 3, .want = BROUGHT(2) + BROUGHT(3) + BROUGHT(4) },
	{ SUPPLIED, .want = 3 })

/* Lost before it has come, and punched before that. */
PROGRAM(lost_and_not_brought_in, BOTH_TYPES, USER_ENGINE,
	{ SUPPLY, P(2), .n = 4 },
	{ POISON, P(2), .n = 2 },
	{ LOAD, P(2), .n = 8, .want = 0, .exits = { LOST(P(2)) } },
	{ COPY, P(12), .with = P(3), .n = P(2), .exits = { LOST(P(3)) } },
	{ READ, P(12), .want = 0 },
	{ READ, P(13), .want = BROUGHT(4) },
	{ SUPPLIED, .want = 1 },
	{ PUNCH, P(5), .n = 1 },
	{ POISON, P(5), .n = 1 },
	{ STORE, P(5), .n = 8, .value = A, .exits = { LOST(P(5)) } },
	{ READ, P(5), .want = A },
	{ SUPPLIED, .want = 1 })

/* All that is so already when a slot is set. */
PROGRAM(set_later, BOTH_TYPES, USER_ENGINE,
	{ STORE, P(1), .n = 8, .value = A },
	{ DELETE, .n = 0 },
	{ POISON, P(1), .n = 1 },
	{ SUPPLY, P(2), .n = 8 },
	{ DELETE, .n = 1 },
	{ SET, .n = 1 },
	{ SET, .n = 0 },
	{ LOAD, P(1), .n = 8, .want = 0, .exits = { LOST(P(1)) } },
	{ SUM, P(2), .n = 2, .want = BROUGHT(2) + BROUGHT(3) },
	{ STORE, P(8) - 4, .n = 8, .value = B },
	{ READ, P(8), .want = B >> 32 },
	{ READ, P(7), .want = BROUGHT(7) },
	{ LOAD, P(9), .n = 8, .want = BROUGHT(9) },
	{ LOAD, P(10), .n = 8, .want = 0 },
	{ SUPPLIED, .want = 5 })

/* ---- files and slots that go */

PROGRAM(freed, BOTH_TYPES, EVERYONE,
	{ STORE, P(1), .n = 8, .value = A },
	{ FREE_FILE },
	{ LOAD, P(1), .n = 8, .want = 6, .exits = { FAULT(P(1), DELETE, 0), DEVICE_LOAD(P(1), 8, 6) } },
	{ CMPXCHG, P(9), .with = 1, .value = B, .want = 1,
	  .exits = { FAULT(P(9), DELETE, 1), DEVICE_LOAD(P(9), 8, 1), DEVICE_STORE(P(9), 8, B) } },
	{ LOAD, HVA, .n = 8, .want = 0 })

PROGRAM(freed_stores, BOTH_TYPES, EVERYONE,
	{ FREE_FILE },
	{ STORE, P(9), .n = 8, .value = B, .exits = { FAULT(P(9), DELETE, 1), DEVICE_STORE(P(9), 8, B) } },
	{ TOUCH, P(7), .n = 2, .value = 1, .want = 2,
	  .exits = { FAULT(P(7), DELETE, 0), DEVICE_STORE(P(7), 8, 1), DEVICE_STORE(P(8), 8, 2) } })

PROGRAM(deleted, BOTH_TYPES, EVERYONE,
	{ STORE, P(1), .n = 8, .value = A },
	{ STORE, P(8), .n = 8, .value = B },
	{ DELETE, .n = 0 },
	{ LOAD, P(1), .n = 8, .want = 5, .exits = { DEVICE_LOAD(P(1), 8, 5) } },
	{ STORE, P(1), .n = 2, .value = 6, .exits = { DEVICE_STORE(P(1), 2, 6) } },
	{ LOAD, P(8), .n = 8, .want = B },
	{ READ, P(1), .want = A },
	{ SET, .n = 0 },
	{ LOAD, P(1), .n = 8, .want = A },
	{ DELETE, .n = 2 },
	{ LOAD, HVA, .n = 8, .want = 5, .exits = { DEVICE_LOAD(HVA, 8, 5) } },
	{ SET, .n = 2 },
	{ LOAD, HVA, .n = 8, .want = 0 },
	{ DELETE, .n = 3 },
	{ LOAD, HVA_READONLY, .n = 8, .want = 5, .exits = { DEVICE_LOAD(HVA_READONLY, 8, 5) } },
	{ DELETE, .n = 0 },
	{ SUM, P(1), .n = 2, .want = 7,
	  .exits = { DEVICE_LOAD(P(1), 8, 4), DEVICE_LOAD(P(2), 8, 3) } },
	{ SET, .n = 0 },
	{ SUM, P(1), .n = 2, .want = A })

/* A slot instead of an answer. */
PROGRAM(not_answered, BOTH_TYPES, EVERYONE,
	{ WRITE, P(1), .value = A },
	{ DELETE, .n = 0 },
	{ STORE, P(1), .n = 8, .value = B,
	  .exits = { { { 0, GMEM_EXIT_MMIO, P(1), 8, GMEM_EXIT_FLAG_WRITE, B }, SET, 0 } } },
	{ LOAD, P(1), .n = 8, .want = B,
	  .differs = "a store that a device has been told of is done for a guest, answered or not", .kvm_want = A })

/* ---- hypercalls */

PROGRAM(hypercall, BOTH_TYPES, EVERYONE,
	{ HYPERCALL, P(1), .n = 3, .want = 77, .exits = { ASKED(3, 77) } },
	{ STORE, P(1), .n = 8, .value = A },
	{ LOAD, P(1), .n = 8, .want = A })

/* clang-format on */
