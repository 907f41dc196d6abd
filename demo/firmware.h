/* SPDX-License-Identifier: MIT */
/*
 * A guest firmware image nobody can boot, to show and test measured launches with: 4 MiB of bytes that a formula gives,
 * and at their end the tables by which OVMF tells a machine monitor how to launch it for SEV-SNP and for TDX. The
 * digests of its launch are in firmware_digests.h; tests/reference/launch.py builds the same image and computes them on
 * its own.
 */
#ifndef DEMO_FIRMWARE_H
#define DEMO_FIRMWARE_H

#define DEMO_FIRMWARE_PAGES 1024u
#define DEMO_FIRMWARE_LEN (DEMO_FIRMWARE_PAGES * 4096u)
#define DEMO_FIRMWARE_GPA (0x100000000ull - DEMO_FIRMWARE_LEN) /* it ends at 4 GiB */

/* Where things begin, in bytes from the image's end. */
#define DEMO_FIRMWARE_SEV 0x400u
#define DEMO_FIRMWARE_TDVF 0x300u
#define DEMO_FIRMWARE_TABLE_END 0x20u

/*
 * Fills DEMO_FIRMWARE_LEN bytes. The 32-bit words of the image, little-endian: word w is w * 2654435761 + 97 modulo
 * 2^32, so that no two are equal; but every page whose number modulo 16 is 5 is all zero. Over the last page's end
 * go:
 *	end - 0x400	the SEV metadata: memory at 0x800000 (0x9000 bytes) and 0x80f000 (0x11000 bytes)
 *	end - 0x310	the GUID that comes before TDX metadata
 *	end - 0x300	the TDX metadata: BFV, CFV, TEMP_MEM at 0x810000 (0x10000 bytes), TD_HOB at 0x809000 (0x2000).
 *			The CFV are the first 0x84000 bytes of the image, the BFV the rest; the BFV alone is measured.
 *	to end - 0x20	the GUID table: TDX metadata, SEV metadata, SEV-ES reset block (0x80b004), footer
 */
void demo_firmware_build(void *buf);

#endif
