/* SPDX-License-Identifier: MIT */
#include "launch/snp/secrets.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/le.h"

#define VERSION 0x000
#define FLAGS 0x004
#define FMS 0x008
#define GOSVW 0x010
#define VMPCK 0x020
/* From 0xa0 and from 0x140 on is what the guest keeps there. */
#define TWEAK_BITMAP 0x100
#define TSC_FACTOR 0x160

#define FLAG_IMI_EN 1

int gmem_snp_secrets_make_keys(struct gmem_snp_secrets *secrets)
{
	uint8_t keys[sizeof(secrets->vmpck)];
	ssize_t n;

	/* So few bytes come all at once, and then no signal interrupts. */
	do
		n = getrandom(keys, sizeof(keys), 0);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(keys))
		return gmem_err_sys(n < 0 ? -errno : -EIO, "gmem_snp_secrets_make_keys: no random bytes");
	memcpy(secrets->vmpck, keys, sizeof(keys));
	explicit_bzero(keys, sizeof(keys));
	return 0;
}

void gmem_snp_secrets_build(const struct gmem_snp_secrets *secrets, uint8_t page[GMEM_PAGE_SIZE])
{
	memset(page, 0, GMEM_PAGE_SIZE);
	gmem_put_le32(page + VERSION, 3);
	gmem_put_le32(page + FLAGS, secrets->imi_en ? FLAG_IMI_EN : 0);
	gmem_put_le32(page + FMS, secrets->fms);
	memcpy(page + GOSVW, secrets->gosvw, sizeof(secrets->gosvw));
	memcpy(page + VMPCK, secrets->vmpck, sizeof(secrets->vmpck));
	memcpy(page + TWEAK_BITMAP, secrets->vmsa_tweak_bitmap, sizeof(secrets->vmsa_tweak_bitmap));
	gmem_put_le32(page + TSC_FACTOR, secrets->tsc_factor);
}
