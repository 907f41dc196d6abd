/* SPDX-License-Identifier: MIT */
/*
 * What a launch of demo_firmware_build()'s image is measured as, in hexadecimal; printed by tests/reference/launch.py.
 * SNP: all pages of the image NORMAL in ascending order, then the sections of the SEV metadata as ZERO pages; no vCPU.
 * TDX: MRTD with each page added and at once extended, in the order of the TDX metadata.
 */
#ifndef DEMO_FIRMWARE_DIGESTS_H
#define DEMO_FIRMWARE_DIGESTS_H

#define DEMO_FIRMWARE_SNP_DIGEST \
	"9aa330c34ab80f81d41faf12f3e28a2744b05b6403273d65b52c728a659c279c038fed2932fbeec157da17d15ce3cc39"
#define DEMO_FIRMWARE_TDX_DIGEST \
	"78815caedfcb4dbd2c6f0c8d0662637c3eff3c5b4d55ddd65266604e6dba565e33027af0a42229a9abe6e3dcb55a6196"

#endif
