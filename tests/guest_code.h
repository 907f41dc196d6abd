/* SPDX-License-Identifier: MIT */
/*
 * The routines of guest_code.S, in the order of its table; also read by the assembler. Arguments are in rdi, rsi, rdx,
 * rcx, r8, the result is in rax, none uses the stack. Addresses are guest-physical ones. A routine ends with
 * `out` to GUEST_PORT_DONE, by the same instruction whatever it did; an exception ends it with one to GUEST_PORT_FAULT.
 */
#ifndef GMEM_TESTS_GUEST_CODE_H
#define GMEM_TESTS_GUEST_CODE_H

#define GUEST_PORT_DONE 0x51
#define GUEST_PORT_FAULT 0x52

/* Word i of a fill is seed + i * this. */
#define GUEST_PATTERN_STEP 0x9e3779b97f4a7c15

#define GUEST_EXCEPTIONS 32

/*
 * Of vmcalls: KVM_HC_MAP_GPA_RANGE for the page at `addr`, each for the other side than the last, and after each its
 * first word is incremented. `counts` has two words: the hypercalls begun, and the sum of their answers.
 */
#define GUEST_HC_MAP_GPA_RANGE 12
#define GUEST_HC_PRIVATE 16

#define GUEST_ROUTINES(X)                                                                                \
	X(load1) /* (addr): the value */                                                                 \
	X(load2)                                                                                         \
	X(load4)                                                                                         \
	X(load8)                                                                                         \
	X(load16) /* (addr, to): 16 bytes by one instruction, stored again at `to` */                    \
	X(store1) /* (addr, value) */                                                                    \
	X(store2)                                                                                        \
	X(store4)                                                                                        \
	X(store8)                                                                                        \
	X(store16) /* (addr, from) */                                                                    \
	X(cmpxchg8) /* (addr, old, new): lock cmpxchg; what was there */                                 \
	X(copy) /* (to, from, n): rep movsb; n */                                                        \
	X(copy8) /* (to, from, n): words of 8 bytes, n is a multiple; n */                               \
	X(sum) /* (addr, n, stride): the sum of n words, one every `stride` bytes */                     \
	X(touch) /* (addr, n, stride, value): word i, one every `stride` bytes, becomes value + i; n */  \
	X(fill) /* (addr, n, seed): n words of the pattern; n */                                         \
	X(verify) /* (addr, n, seed): how many words in a row are the pattern */                         \
	X(wait) /* (addr, old): waits until the word is another; which */                                \
	X(hammer) /* (addr, n): lock inc of the word, n times; 0: for ever */                            \
	X(forever) /* () */                                                                              \
	X(vmcall) /* (nr, a0, a1, a2): a hypercall by Intel's instruction; its answer */                 \
	X(vmmcall) /* (nr, a0, a1, a2): by AMD's. KVM writes the one its processor has over the other */ \
	X(vmcalls) /* (counts, n, addr, attributes): n hypercalls, 0: for ever; the sum of answers */    \
	X(hlt_vmcall) /* (nr, a0, a1, a2): waits for an interrupt first */                               \
	X(hlt) /* () : in kernel mode only, as the processor has it */                                   \
	X(ud2) /* () : an exception */

#endif
