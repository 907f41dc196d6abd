/* SPDX-License-Identifier: MIT */
/*
 * The firmware parser against any bytes, for both kinds of metadata: what it answers keeps what firmware.h promises, so
 * that who measures or copies by it needs no checks of his own. The parser has no checksum to guess; the seeds hold the
 * GUIDs.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/range.h"
#include "launch/firmware/firmware.h"

#define MAX GMEM_FIRMWARE_MAX_SECTIONS

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
	if (!x)
		abort();
}

static void check_range(uint64_t gpa, uint64_t len)
{
	must(gmem_page_aligned(gpa) && gmem_page_aligned(len) && gpa <= UINT64_MAX - len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gmem_sev_section sev[MAX];
	struct gmem_tdvf_section tdvf[MAX];
	int n;

	n = gmem_firmware_sev(data, size, sev, MAX);
	must(n <= (int)MAX);
	for (int i = 0; i < n; i++) {
		check_range(sev[i].gpa, sev[i].len);
		must(sev[i].len && sev[i].gpa + sev[i].len <= UINT64_C(1) << 32);
		for (int j = 0; j < i; j++)
			must(!gmem_range_overlaps(sev[i].gpa, sev[i].len, sev[j].gpa, sev[j].len));
	}
	n = gmem_firmware_tdvf(data, size, tdvf, MAX);
	must(n <= (int)MAX);
	for (int i = 0; i < n; i++) {
		check_range(tdvf[i].gpa, tdvf[i].len);
		must(gmem_range_inside(tdvf[i].off, tdvf[i].raw_len, size) && tdvf[i].raw_len <= tdvf[i].len);
		for (int j = 0; j < i; j++)
			must(!gmem_range_overlaps(tdvf[i].gpa, tdvf[i].len, tdvf[j].gpa, tdvf[j].len));
	}
	/* Of less room than there are sections nothing is written beyond. */
	must(gmem_firmware_sev(data, size, sev, 0) <= 0);
	must(gmem_firmware_tdvf(data, size, tdvf, 0) <= 0);
	return 0;
}
