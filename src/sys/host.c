/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gmem.h"
#include "sys/probe.h"

/* The facts, never changed once the object is handed out: readers need no lock. */
struct gmem_host {
	struct gmem_probe probe;
};

static int probe_failed(int err)
{
	if (err == -EMFILE)
		return gmem_err(err,
				"gmem_host_probe: too few descriptors left to probe with; raise the limit (ulimit -n)");
	return gmem_err_sys(err, "gmem_host_probe");
}

int gmem_host_probe(struct gmem_host **ret)
{
	struct gmem_host *host;
	int err;

	if (!ret)
		return gmem_err(-EINVAL, "gmem_host_probe: ret is NULL");
	host = calloc(1, sizeof(*host));
	if (!host)
		return probe_failed(-ENOMEM);

	gmem_probe_kvm(&host->probe);
	gmem_probe_gmem(&host->probe);
	gmem_probe_uffd(&host->probe);
	gmem_probe_uffd_modes(&host->probe);
	gmem_probe_uffd_use(&host->probe);
	gmem_probe_mem(&host->probe);
	gmem_probe_process(&host->probe);

	err = host->probe.err;
	if (err) {
		gmem_host_free(host);
		return probe_failed(err);
	}
	*ret = host;
	return 0;
}

void gmem_host_free(struct gmem_host *host)
{
	if (!host)
		return;
	gmem_probe_free(&host->probe);
	free(host);
}

size_t gmem_host_count(const struct gmem_host *host)
{
	return host->probe.count;
}

int gmem_host_item(const struct gmem_host *host, size_t i, struct gmem_host_item *item)
{
	const struct gmem_fact *fact;

	if (item->size < sizeof(*item))
		return gmem_err(-EINVAL, "gmem_host_item: item.size %zu: not set, or from another version", item->size);
	if (i >= host->probe.count)
		return gmem_err(-ERANGE, "gmem_host_item: item %zu of %zu", i, host->probe.count);

	fact = &host->probe.facts[i];
	item->name = fact->name;
	item->value = fact->value;
	item->what = fact->what;
	item->advice = fact->advice;
	item->status = fact->status;
	return 0;
}

bool gmem_host_has(const struct gmem_host *host, const char *name)
{
	for (size_t i = 0; i < host->probe.count; i++)
		if (!strcmp(host->probe.facts[i].name, name))
			return host->probe.facts[i].status == GMEM_HOST_YES;
	return false;
}
