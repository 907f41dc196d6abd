/* SPDX-License-Identifier: MIT */
/* An ID block that the openssl command signed, as an owner of guests may do it, with keys that it made. */
#include "snp_id.h"

#include <limits.h>

#include "launch/snp/id_block.h"

#define BAD_SIGNATURE 0xa

static char folder[] = "/tmp/gmem-test-id-XXXXXX";

static void path(char *to, const char *name)
{
	snprintf(to, PATH_MAX, "%s/%s", folder, name);
}

/* A command of the shell in the folder; its exit status. */
static int run(const char *command)
{
	char line[PATH_MAX + 512];

	snprintf(line, sizeof(line), "cd %s && %s >/dev/null 2>&1", folder, command);
	return system(line);
}

static void put_file(const char *name, const void *data, size_t len)
{
	char file[PATH_MAX];
	FILE *f;

	path(file, name);
	f = fopen(file, "wb");
	CHECK(f);
	CHECK_EQ(fwrite(data, 1, len, f), len);
	CHECK_EQ(fclose(f), 0);
}

static size_t get_file(const char *name, uint8_t *data, size_t max)
{
	char file[PATH_MAX];
	size_t n;
	FILE *f;

	path(file, name);
	f = fopen(file, "rb");
	CHECK(f);
	n = fread(data, 1, max, f);
	fclose(f);
	CHECK(n > 0 && n < max);
	return n;
}

/* A DER public key ends with the point: 4, x and y, big-endian. */
static void put_key(const char *name, uint8_t *to)
{
	uint8_t der[512], *point;
	size_t n = get_file(name, der, sizeof(der));

	CHECK(n > 97);
	point = der + n - 97;
	CHECK_EQ(point[0], 4);
	gmem_put_le32(to, 2);
	for (unsigned int i = 0; i < 48; i++) {
		to[4 + i] = point[48 - i];
		to[4 + 72 + i] = point[96 - i];
	}
}

static void put_signature(const char *name, uint8_t *to)
{
	uint8_t der[512];
	size_t n = get_file(name, der, sizeof(der));

	snp_id_put_der(der, n, to);
}

TEST(what_the_command_signed_is_taken)
{
	struct gmem_snp_id r;
	uint8_t ld[48], md[49];
	struct snp_id id;

	CHECK(mkdtemp(folder));
	if (run("openssl version")) {
		rmdir(folder);
		SKIP("openssl", "no openssl command");
	}
	memset(&id, 0, sizeof(id));
	memset(ld, 0x5a, sizeof(ld));
	memcpy(id.block, ld, sizeof(ld));
	gmem_put_le32(id.block + 0x50, 1);
	gmem_put_le64(id.block + 0x58, 0xb0000);
	gmem_put_le32(id.auth, 1);
	gmem_put_le32(id.auth + 4, 1);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(run(i ? "openssl ecparam -name secp384r1 -genkey -noout -out author.pem" :
				 "openssl ecparam -name secp384r1 -genkey -noout -out id.pem"),
			 0);
		CHECK_EQ(run(i ? "openssl pkey -in author.pem -pubout -outform DER -out author.der" :
				 "openssl pkey -in id.pem -pubout -outform DER -out id.der"),
			 0);
	}
	put_key("id.der", id.auth + 0x240);
	put_key("author.der", id.auth + 0x880);
	put_file("block", id.block, sizeof(id.block));
	put_file("key", id.auth + 0x240, SNP_ID_KEY_LEN);
	CHECK_EQ(run("openssl dgst -sha384 -sign id.pem -out block.sig block"), 0);
	CHECK_EQ(run("openssl dgst -sha384 -sign author.pem -out key.sig key"), 0);
	put_signature("block.sig", id.auth + 0x40);
	put_signature("key.sig", id.auth + 0x680);
	CHECK_EQ(gmem_snp_id_verify(id.block, id.auth, ld, 0xb0000, true, &r), 0);
	CHECK_EQ(run("openssl dgst -sha384 -binary -out key.md key"), 0);
	CHECK_EQ(get_file("key.md", md, sizeof(md)), 48);
	CHECK_MEM(r.id_key_digest, md, 48);
	id.block[0x54] = 1;
	CHECK_EQ(gmem_snp_id_verify(id.block, id.auth, ld, 0xb0000, true, &r), BAD_SIGNATURE);
	CHECK_EQ(run("rm -r ../${PWD##*/}"), 0);
}
