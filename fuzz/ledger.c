/* SPDX-License-Identifier: MIT */
/* Ledgers that anybody may have damaged: what is read is in its limits, and what is written of it reads as the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "link/serve/ledger.h"
#include "link/serve/name.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct gmem_ledger *l)
{
	if (!gmem_id_ok(l->id) || l->nfds > GMEM_LEDGER_MAX_FDS || !l->page_size || l->len % l->page_size)
		abort();
	for (uint32_t i = 0; i < l->nfds; i++)
		if (!gmem_name_ok(l->fds[i].name) || l->fds[i].hva + l->fds[i].len < l->fds[i].hva)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gmem_ledger *l = NULL, *again = NULL;
	char *text, *twice;
	size_t len, len2;

	if (gmem_ledger_parse((const char *)data, size, &l)) {
		if (l || !gmem_last_error()[0])
			abort();
		return 0;
	}
	check(l);
	if (gmem_ledger_format(l, &text, &len) || gmem_ledger_parse(text, len, &again) ||
	    gmem_ledger_format(again, &twice, &len2))
		abort();
	if (len != len2 || memcmp(text, twice, len))
		abort();
	free(text);
	free(twice);
	gmem_ledger_free(l);
	gmem_ledger_free(again);
	return 0;
}
