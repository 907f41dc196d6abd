/* SPDX-License-Identifier: MIT */
/* The processors of QEMU's that a guest of SEV-SNP may have. Versions of one differ in features, not in signature. */
#include <string.h>

#include "tools/guest_args.h"

static const struct {
	const char *name;
	char versions; /* -v1 up to this digit */
	uint8_t family, model, stepping;
} types[] = {
	{ "EPYC", '5', 23, 1, 2 },	 { "EPYC-IBPB", 0, 23, 1, 2 },	   { "EPYC-Rome", '5', 23, 49, 0 },
	{ "EPYC-Milan", '3', 25, 1, 1 }, { "EPYC-Genoa", '2', 25, 17, 0 }, { "EPYC-Turin", '1', 26, 0, 0 },
};

/* AMD's publication 25481, CPUID Fn0000_0001_EAX: a family beyond 15 is 15 and the rest of it. */
uint32_t guest_vcpu_signature(uint32_t family, uint32_t model, uint32_t stepping)
{
	uint32_t base = family < 15 ? family : 15;

	return (family - base) << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | stepping;
}

bool guest_vcpu_type(const char *name, uint32_t *ret_signature)
{
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		size_t len = strlen(types[i].name);
		const char *rest = name + len;

		if (strncmp(name, types[i].name, len))
			continue;
		if (*rest && (strncmp(rest, "-v", 2) || rest[2] < '1' || rest[2] > types[i].versions || rest[3]))
			continue;
		*ret_signature = guest_vcpu_signature(types[i].family, types[i].model, types[i].stepping);
		return true;
	}
	return false;
}
