/* SPDX-License-Identifier: MIT */
#include "launch/measure/measure.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/lockcheck.h"
#include "base/opts.h"
#include "base/range.h"

#define FLAGS (GMEM_GUEST_TWO_PASS | GMEM_GUEST_EC2_RDX_ZERO)
#define FOUR_GIB (UINT64_C(1) << 32)

static int check_image(const char *call, const char *name, const void *bytes, uint64_t len)
{
	if (!bytes || !len)
		return gmem_err(-EINVAL, "%s: no %s", call, name);
	if (!gmem_page_aligned(len) || len >= FOUR_GIB)
		return gmem_err(-EINVAL, "%s: %s of 0x%" PRIx64 " bytes: not whole pages, or 4 GiB and more", call,
				name, len);
	return 0;
}

/* What is wrong with a guest whatever it is asked for. */
static int check_guest(const char *call, enum gmem_vm_type type, const struct gmem_guest *g)
{
	int err;

	if (!g || !gmem_opts_valid(g, g->size, sizeof(*g)))
		return gmem_err(-EINVAL, "%s: guest.size %zu: expected %zu", call, g ? g->size : 0, sizeof(*g));
	if (g->flags & ~FLAGS)
		return gmem_err(-EINVAL, "%s: flags 0x%" PRIx32 ": unknown", call, g->flags);
	if ((int)g->vmm < GMEM_VMM_QEMU || (int)g->vmm > GMEM_VMM_SVSM)
		return gmem_err(-EINVAL, "%s: vmm %d: unknown", call, (int)g->vmm);
	err = check_image(call, "firmware", g->firmware, g->firmware_len);
	if (err)
		return err;
	if (type == GMEM_VM_TDX && (g->vmm != GMEM_VMM_QEMU || g->kernel || g->firmware_digest))
		return gmem_err(-EINVAL,
				"%s: a TDX guest is measured as QEMU's, without a kernel or a digest of firmware",
				call);
	if (g->vmm != GMEM_VMM_SVSM)
		return 0;
	err = check_image(call, "SVSM", g->svsm, g->svsm_len);
	if (!err && (!gmem_page_aligned(g->vars_len) || g->vars_len >= FOUR_GIB))
		err = gmem_err(-EINVAL, "%s: variables of 0x%" PRIx64 " bytes: not whole pages, or 4 GiB and more",
			       call, g->vars_len);
	return err;
}

int gmem_measure_create(enum gmem_vm_type type, const struct gmem_guest *guest, gmem_progress_fn progress, void *opaque,
			struct gmem_measure **ret)
{
	struct gmem_measure_progress p = { .fn = progress, .opaque = opaque };
	struct gmem_measure *m;
	int err;

	if (type != GMEM_VM_SNP && type != GMEM_VM_TDX)
		return gmem_err(-EINVAL, "gmem_measure_create: type %d: neither SNP nor TDX", (int)type);
	err = check_guest("gmem_measure_create", type, guest);
	if (err)
		return err;
	gmem_might_fault();
	m = calloc(1, sizeof(*m));
	if (!m)
		return gmem_err_sys(-ENOMEM, "gmem_measure_create");
	m->type = type;
	m->firmware = (struct gmem_measure_image){ .bytes = guest->firmware, .len = guest->firmware_len };
	if (guest->vmm == GMEM_VMM_SVSM) {
		m->svsm = (struct gmem_measure_image){ .bytes = guest->svsm, .len = guest->svsm_len };
		m->vars_len = guest->vars_len;
	}
	if (type == GMEM_VM_SNP)
		err = gmem_measure_snp_init(m, guest, &p);
	else
		err = gmem_measure_tdx_init(m, guest, &p);
	if (err) {
		gmem_measure_free(m);
		return p.stopped ? err : gmem_err_prefix(err, "gmem_measure_create");
	}
	*ret = m;
	return 0;
}

void gmem_measure_free(struct gmem_measure *measure)
{
	if (!measure)
		return;
	gmem_measure_snp_free(measure);
	free(measure);
}

static bool same_image(const struct gmem_measure_image *image, const void *bytes, uint64_t len)
{
	return image->len == len && (image->bytes == bytes || !memcmp(image->bytes, bytes, len));
}

/* That the guest is one of those that the object was made for. */
static int check_same(const char *call, const struct gmem_measure *m, const struct gmem_guest *g)
{
	int err = check_guest(call, m->type, g);
	bool svsm = g->vmm == GMEM_VMM_SVSM;

	if (err)
		return err;
	gmem_might_fault();
	if (!same_image(&m->firmware, g->firmware, g->firmware_len))
		return gmem_err(-EINVAL, "%s: another firmware", call);
	if (svsm != !!m->svsm.bytes ||
	    (svsm && (m->vars_len != g->vars_len || !same_image(&m->svsm, g->svsm, g->svsm_len))))
		return gmem_err(-EINVAL, "%s: another SVSM", call);
	if (m->type != GMEM_VM_SNP)
		return 0;
	if (!g->nvcpus)
		return gmem_err(-EINVAL, "%s: no vCPUs", call);
	if (!g->signature && (svsm || g->vmm == GMEM_VMM_QEMU))
		return gmem_err(-EINVAL, "%s: no CPU signature", call);
	return 0;
}

int gmem_measure_digest(struct gmem_measure *measure, const struct gmem_guest *guest, gmem_measure_fn fn, void *opaque,
			uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_measure_listener listener = { .fn = fn, .opaque = opaque };
	int err = check_same("gmem_measure_digest", measure, guest);

	if (err)
		return err;
	if (measure->type == GMEM_VM_SNP)
		err = gmem_measure_snp_digest(measure, guest, &listener, ret);
	else
		err = gmem_measure_tdx_digest(measure, guest, &listener, ret);
	return err && !listener.stopped ? gmem_err_prefix(err, "gmem_measure_digest") : err;
}

int gmem_measure_vmsa(struct gmem_measure *measure, const struct gmem_guest *guest, uint32_t vcpu,
		      uint8_t ret[GMEM_PAGE_SIZE])
{
	int err;

	if (measure->type != GMEM_VM_SNP)
		return gmem_err(-EINVAL, "gmem_measure_vmsa: a TDX guest: its vCPUs are not measured");
	err = check_same("gmem_measure_vmsa", measure, guest);
	if (err)
		return err;
	if (vcpu >= guest->nvcpus)
		return gmem_err(-ERANGE, "gmem_measure_vmsa: vCPU %" PRIu32 " of %" PRIu32, vcpu, guest->nvcpus);
	err = gmem_measure_snp_vmsa(measure, guest, vcpu, ret);
	return err ? gmem_err_prefix(err, "gmem_measure_vmsa") : 0;
}
