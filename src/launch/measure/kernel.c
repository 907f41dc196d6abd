/* SPDX-License-Identifier: MIT */
/*
 * What is booted, as an SNP launch measures it: SHA-256 of kernel, initrd and command line, in a table that the VMM
 * writes into a page the firmware names and the firmware checks before it boots them.
 */
#include <errno.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "base/err.h"
#include "base/le.h"
#include "launch/measure/measure.h"

#define GUID_LEN 16u
#define HEADER_LEN (GUID_LEN + 2u) /* a GUID and the length of all */
#define SHA256_LEN 32u
#define ENTRY_LEN (HEADER_LEN + SHA256_LEN)
#define TABLE_LEN (HEADER_LEN + 3u * ENTRY_LEN)

_Static_assert(TABLE_LEN == 168 && sizeof(struct gmem_kernel_hashes) == 3 * SHA256_LEN, "as QEMU has it");

/* As bytes: the first three groups little-endian. */
static const uint8_t table_guid[GUID_LEN] = { 0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c,
					      0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21 };
static const uint8_t cmdline_guid[GUID_LEN] = { 0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c,
						0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a };
static const uint8_t initrd_guid[GUID_LEN] = { 0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b,
					       0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d };
static const uint8_t kernel_guid[GUID_LEN] = { 0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42,
					       0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b };

static int sha256(const void *data, uint64_t len, uint8_t ret[SHA256_LEN])
{
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned int n = 0;
	bool ok;

	ERR_set_mark();
	ok = EVP_Digest(data, len, md, &n, EVP_sha256(), NULL) == 1 && n == SHA256_LEN;
	ERR_pop_to_mark();
	if (!ok)
		return gmem_err(-ENOMEM, "gmem_kernel_hashes: libcrypto: no SHA-256: no memory, or its configuration "
					 "has none");
	memcpy(ret, md, SHA256_LEN);
	return 0;
}

int gmem_kernel_hashes(const void *kernel, uint64_t kernel_len, const void *initrd, uint64_t initrd_len,
		       const char *cmdline, struct gmem_kernel_hashes *ret)
{
	struct gmem_kernel_hashes hashes;
	int err;

	if ((!kernel && kernel_len) || (!initrd && initrd_len))
		return gmem_err(-EINVAL, "gmem_kernel_hashes: %s: a length and no bytes",
				!kernel && kernel_len ? "kernel" : "initrd");
	if (!cmdline)
		cmdline = "";
	err = sha256(kernel ? kernel : "", kernel_len, hashes.kernel);
	if (!err)
		err = sha256(initrd ? initrd : "", initrd_len, hashes.initrd);
	if (!err)
		err = sha256(cmdline, strlen(cmdline) + 1, hashes.cmdline);
	if (!err)
		*ret = hashes;
	return err;
}

static uint8_t *put_header(uint8_t *at, const uint8_t guid[GUID_LEN], uint32_t len)
{
	memcpy(at, guid, GUID_LEN);
	gmem_put_le16(at + GUID_LEN, (uint16_t)len);
	return at + HEADER_LEN;
}

static uint8_t *put_entry(uint8_t *at, const uint8_t guid[GUID_LEN], const uint8_t hash[SHA256_LEN])
{
	at = put_header(at, guid, ENTRY_LEN);
	memcpy(at, hash, SHA256_LEN);
	return at + SHA256_LEN;
}

void gmem_measure_kernel_page(const struct gmem_kernel_hashes *hashes, uint32_t off, uint8_t ret[GMEM_PAGE_SIZE])
{
	uint8_t *at;

	memset(ret, 0, GMEM_PAGE_SIZE);
	at = put_header(ret + off, table_guid, TABLE_LEN);
	at = put_entry(at, cmdline_guid, hashes->cmdline);
	at = put_entry(at, initrd_guid, hashes->initrd);
	put_entry(at, kernel_guid, hashes->kernel);
}
