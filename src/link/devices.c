/* SPDX-License-Identifier: MIT */
#include "link/devices.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "link/qmp.h"

static const struct {
	const char *prefix, *why;
} refused[] = {
	{ "vhost-user", "another process maps the guest's RAM, which gmem cannot serve" },
	{ "vhost-vdpa", "the hardware reads the guest's RAM, which must all be present" },
	{ "vfio", "the hardware reads the guest's RAM, which must all be present" },
	{ "ivshmem", "its memory is shared with other processes, which gmem cannot serve" },
	{ "nvdimm", "its contents belong to a file that outlives the machine" },
	{ "virtio-pmem", "its contents belong to a file that outlives the machine" },
	{ "virtio-mem", "parts of its memory may not be touched" },
};

int gmem_device_refused(const char *type, const char **ret_why)
{
	size_t i;

	for (i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		if (strncmp(type, refused[i].prefix, strlen(refused[i].prefix)))
			continue;
		*ret_why = refused[i].why;
		return 1;
	}
	return 0;
}

static int check_folder(struct gmem_qmp *qmp, const char *path)
{
	json_t *list, *item;
	const char *why;
	size_t i;
	int r;

	r = gmem_qmp_execf(qmp, &list, "qom-list", "{s:s}", "path", path);
	if (r)
		return r;
	json_array_foreach(list, i, item) {
		const char *name = json_string_value(json_object_get(item, "name"));
		const char *type = json_string_value(json_object_get(item, "type"));

		if (!name || !type || strncmp(type, "child<", 6))
			continue;
		if (gmem_device_refused(type + 6, &why)) {
			r = gmem_err(-EOPNOTSUPP, "device '%s' (%.*s): %s", name, (int)strcspn(type + 6, ">"), type + 6,
				     why);
			break;
		}
	}
	json_decref(list);
	return r;
}

/* Network backends are not in the object tree. */
static int check_network(struct gmem_qmp *qmp)
{
	static const char *const kinds[] = { "type=vhost-user", "type=vhost-vdpa" };
	const char *why, *hit;
	char *text;
	size_t i;
	int r;

	r = gmem_qmp_hmp(qmp, "info network", &text);
	if (r)
		return r;
	for (i = 0; i < sizeof(kinds) / sizeof(*kinds) && !r; i++) {
		hit = strstr(text, kinds[i]);
		if (hit && gmem_device_refused(kinds[i] + 5, &why))
			r = gmem_err(-EOPNOTSUPP, "network backend %s: %s", kinds[i] + 5, why);
	}
	free(text);
	return r;
}

/* QEMU's own list of what stops a migration. Before 6.0 it is not there, and `migrate` itself says it. */
static int check_blockers(struct gmem_qmp *qmp)
{
	const char *first;
	json_t *info;
	int r;

	r = gmem_qmp_exec(qmp, "query-migrate", NULL, &info);
	if (r)
		return r;
	first = json_string_value(json_array_get(json_object_get(info, "blocked-reasons"), 0));
	if (first)
		r = gmem_err(-EOPNOTSUPP, "QEMU cannot give this machine's state: %s", first);
	json_decref(info);
	return r;
}

int gmem_devices_check(struct gmem_qmp *qmp)
{
	int r;

	r = check_folder(qmp, "/machine/peripheral");
	if (!r)
		r = check_folder(qmp, "/machine/peripheral-anon");
	if (!r)
		r = check_network(qmp);
	if (!r)
		r = check_blockers(qmp);
	return r;
}
