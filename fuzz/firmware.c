/* SPDX-License-Identifier: MIT */
/*
 * The firmware parsers against any bytes: what they answer keeps what firmware.h promises, so that who measures or
 * copies by it needs no checks of his own, and what they refuse has a text. They have no checksum to guess; the seeds
 * hold the GUIDs.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"

#define MAX GMEM_FIRMWARE_MAX_SECTIONS
#define FOUR_GIB (UINT64_C(1) << 32)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
	if (!x)
		abort();
}

/* An answer of the parser `name`: good, or refused as the header says, with the offset and, if absent, the GUID. */
static bool ok(int n, const char *name)
{
	const char *text = gmem_last_error();

	if (n >= 0)
		return true;
	must(n == -ENOENT || n == -EBADMSG || n == -EPROTONOSUPPORT || n == -ENOSPC);
	must(!strncmp(text, name, strlen(name)) && strstr(text, ": offset 0x"));
	must(n != -ENOENT || strstr(text, "-4798-") || strstr(text, "-4fcb-") || strstr(text, "-4cc3-") ||
	     strstr(text, "-4b04-") || strstr(text, "-4c4b-"));
	return false;
}

static void check_range(uint64_t gpa, uint64_t len)
{
	must(gmem_page_aligned(gpa) && gmem_page_aligned(len) && gpa <= UINT64_MAX - len);
}

static void check_area(const struct gmem_firmware_area *area)
{
	must(gmem_range_inside(area->gpa, area->len, FOUR_GIB));
}

static void check_hashes(const uint8_t *data, size_t size, const struct gmem_sev_section *s, int n)
{
	struct gmem_firmware_hashes h = { .section = SIZE_MAX };
	struct gmem_firmware_area table;
	int err = gmem_firmware_kernel_hashes(data, size, s, (size_t)n, &h);

	/* Two sections are said without an offset: the sections are the caller's. */
	if (err) {
		must(h.section == SIZE_MAX);
		if (err != -EBADMSG)
			ok(err, "gmem_firmware_kernel_hashes");
		return;
	}
	must(h.section < (size_t)n && s[h.section].type == GMEM_SEV_SECTION_KERNEL_HASHES);
	must(s[h.section].gpa == h.gpa && s[h.section].len == GMEM_PAGE_SIZE);
	must(gmem_range_inside(h.off, GMEM_KERNEL_HASHES_LEN, GMEM_PAGE_SIZE));
	must(!gmem_firmware_hash_table(data, size, &table) && table.gpa == h.gpa + h.off);
	must(table.gpa && table.len >= GMEM_KERNEL_HASHES_LEN);
}

static void check_sev(const uint8_t *data, size_t size)
{
	struct gmem_sev_section s[MAX];
	struct gmem_firmware_hashes h;
	int n = gmem_firmware_sev(data, size, s, MAX);

	must(n <= (int)MAX);
	for (int i = 0; ok(n, "gmem_firmware_sev") && i < n; i++) {
		check_range(s[i].gpa, s[i].len);
		must(s[i].len && s[i].gpa + s[i].len <= FOUR_GIB);
		must(s[i].len == GMEM_PAGE_SIZE ||
		     (s[i].type != GMEM_SEV_SECTION_SECRETS && s[i].type != GMEM_SEV_SECTION_CPUID));
		for (int j = 0; j < i; j++)
			must(!gmem_range_overlaps(s[i].gpa, s[i].len, s[j].gpa, s[j].len));
	}
	check_hashes(data, size, s, n < 0 ? 0 : n);
	must(gmem_firmware_kernel_hashes(data, size, NULL, 0, &h) < 0);
	/* Of less room than there are sections nothing is written beyond. */
	must(gmem_firmware_sev(data, size, s, 0) <= 0);
}

static void check_tdvf(const uint8_t *data, size_t size)
{
	struct gmem_tdvf_section s[MAX];
	int n = gmem_firmware_tdvf(data, size, s, MAX), hobs = 0, bfvs = 0;

	must(n <= (int)MAX);
	for (int i = 0; ok(n, "gmem_firmware_tdvf") && i < n; i++) {
		check_range(s[i].gpa, s[i].len);
		must(gmem_range_inside(s[i].off, s[i].raw_len, size) && s[i].raw_len <= s[i].len);
		hobs += s[i].type == GMEM_TDVF_SECTION_TD_HOB;
		bfvs += s[i].type == GMEM_TDVF_SECTION_BFV;
		for (int j = 0; j < i; j++)
			must(!gmem_range_overlaps(s[i].gpa, s[i].len, s[j].gpa, s[j].len));
	}
	must(n < 0 || (hobs == 1 && bfvs));
	must(gmem_firmware_tdvf(data, size, s, 0) <= 0);
}

/* Where images lie is said by two lengths, which are the first bytes. */
static void check_places(const uint8_t *data, size_t size)
{
	uint64_t len = size >= 16 ? gmem_get_le64(data) : size, above = size >= 16 ? gmem_get_le64(data + 8) : size,
		 gpa = 1;
	uint32_t eip = 1;
	int err;

	if (!gmem_firmware_gpa(len, above, &gpa))
		must(len && gmem_page_aligned(len | above | gpa) && len <= FOUR_GIB && above < FOUR_GIB &&
		     gpa + len + above == FOUR_GIB);
	else
		must(gpa == 1);
	err = gmem_firmware_svsm_eip(data, size, gpa, &eip);
	if (gpa > FOUR_GIB || size > FOUR_GIB - gpa)
		must(err == -EINVAL && eip == 1);
	else
		must(ok(err, "gmem_firmware_svsm_eip") ? eip >= gpa && eip - gpa < size : eip == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gmem_firmware_area area;
	uint32_t eip = 0;

	check_sev(data, size);
	check_tdvf(data, size);
	check_places(data, size);
	must(ok(gmem_firmware_reset_eip(data, size, &eip), "gmem_firmware_reset_eip") == !!eip);
	if (ok(gmem_firmware_secret(data, size, &area), "gmem_firmware_secret"))
		check_area(&area);
	if (ok(gmem_firmware_hash_table(data, size, &area), "gmem_firmware_hash_table"))
		check_area(&area);
	return 0;
}
