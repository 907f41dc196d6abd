/* SPDX-License-Identifier: MIT */
/*
 * What runs in a guest: position-independent 64-bit code that a test copies there, and a table of where in it each
 * routine begins. Nothing of it runs in the test's own process.
 */
#include "guest_code.h"

#ifdef __x86_64__

	.section .rodata
	.balign	16
	.globl	guest_code
guest_code:

guest_load1:
	movzbl	(%rdi), %eax
	jmp	done
guest_load2:
	movzwl	(%rdi), %eax
	jmp	done
guest_load4:
	movl	(%rdi), %eax
	jmp	done
guest_load8:
	movq	(%rdi), %rax
	jmp	done
guest_load16:
	movdqu	(%rdi), %xmm0
	movdqu	%xmm0, (%rsi)
	jmp	done

guest_store1:
	movb	%sil, (%rdi)
	jmp	done
guest_store2:
	movw	%si, (%rdi)
	jmp	done
guest_store4:
	movl	%esi, (%rdi)
	jmp	done
guest_store8:
	movq	%rsi, (%rdi)
	jmp	done
guest_store16:
	movdqu	(%rsi), %xmm0
	movdqu	%xmm0, (%rdi)
	jmp	done

guest_cmpxchg8:
	movq	%rsi, %rax
	lock cmpxchgq %rdx, (%rdi)
	jmp	done

guest_copy:
	movq	%rdx, %rax
	movq	%rdx, %rcx
	rep movsb
	jmp	done
guest_copy8:
	xorl	%eax, %eax
1:	cmpq	%rdx, %rax
	jae	done
	movq	(%rsi,%rax), %rcx
	movq	%rcx, (%rdi,%rax)
	addq	$8, %rax
	jmp	1b

guest_sum:
	xorl	%eax, %eax
1:	testq	%rsi, %rsi
	jz	done
	addq	(%rdi), %rax
	addq	%rdx, %rdi
	decq	%rsi
	jmp	1b
guest_touch:
	xorl	%eax, %eax
1:	cmpq	%rsi, %rax
	jae	done
	movq	%rcx, (%rdi)
	incq	%rcx
	addq	%rdx, %rdi
	incq	%rax
	jmp	1b

guest_fill:
	movabsq	$GUEST_PATTERN_STEP, %rcx
	xorl	%eax, %eax
1:	cmpq	%rsi, %rax
	jae	done
	movq	%rdx, (%rdi,%rax,8)
	addq	%rcx, %rdx
	incq	%rax
	jmp	1b
guest_verify:
	movabsq	$GUEST_PATTERN_STEP, %rcx
	xorl	%eax, %eax
1:	cmpq	%rsi, %rax
	jae	done
	cmpq	%rdx, (%rdi,%rax,8)
	jne	done
	addq	%rcx, %rdx
	incq	%rax
	jmp	1b

guest_wait:
	pause
	movq	(%rdi), %rax
	cmpq	%rsi, %rax
	je	guest_wait
	jmp	done
guest_hammer:
	lock incq (%rdi)
	decq	%rsi
	jnz	guest_hammer
	jmp	done
guest_forever:
	pause
	jmp	guest_forever

guest_vmcall:
	movq	%rdi, %rax
	movq	%rsi, %rbx
	movq	%rcx, %r8
	movq	%rdx, %rcx
	movq	%r8, %rdx
	.globl	guest_vmcall_at
guest_vmcall_at:
	vmcall
	jmp	done
guest_vmmcall:
	movq	%rdi, %rax
	movq	%rsi, %rbx
	movq	%rcx, %r8
	movq	%rdx, %rcx
	movq	%r8, %rdx
	.globl	guest_vmmcall_at
guest_vmmcall_at:
	vmmcall
	jmp	done
guest_vmcalls:
	movq	%rdx, %r9
	movq	%rcx, %r10
1:	incq	(%rdi)
	movl	$GUEST_HC_MAP_GPA_RANGE, %eax
	movq	%r9, %rbx
	movl	$1, %ecx
	movq	%r10, %rdx
	vmcall
	addq	%rax, 8(%rdi)
	xorq	$GUEST_HC_PRIVATE, %r10
	incq	(%r9)
	decq	%rsi
	jnz	1b
	movq	8(%rdi), %rax
	jmp	done
guest_hlt_vmcall:
	movq	%rdi, %rax
	movq	%rsi, %rbx
	movq	%rcx, %r8
	movq	%rdx, %rcx
	movq	%r8, %rdx
	hlt
	vmcall
	jmp	done
guest_hlt:
	hlt
	jmp	done
guest_ud2:
	ud2

done:
	out	%al, $GUEST_PORT_DONE
	jmp	done

/* One stub an exception, 16 bytes each; the vector is pushed above what the processor pushed. */
	.balign	16
	.globl	guest_exceptions
guest_exceptions:
	.set	vector, 0
	.rept	GUEST_EXCEPTIONS
	.balign	16
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
	pushq	$0
	.endif
	pushq	$vector
	jmp	fault
	.set	vector, vector + 1
	.endr
fault:
	out	%al, $GUEST_PORT_FAULT
	jmp	fault

	.globl	guest_code_end
guest_code_end:

	.balign	4
	.globl	guest_routine_at
guest_routine_at:
#define AT(name) .long guest_##name - guest_code;
	GUEST_ROUTINES(AT)

#endif

	.section .note.GNU-stack, "", %progbits
