/* SPDX-License-Identifier: MIT */
#include "link/machine.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "link/devices.h"
#include "link/disks.h"
#include "link/optstr.h"
#include "link/process.h"

static int add_backends(struct gmem_machine *m)
{
	for (size_t i = 0; i < m->ram->n; i++) {
		const struct gmem_ram_backend *b = &m->ram->backends[i];
		struct gmem_optstr *object;
		int err;

		if (gmem_cmdline_object(m->cl, b->id, NULL, &object))
			return gmem_err(-EOPNOTSUPP,
					"RAM '%s' is not on QEMU's command line (it was plugged in while running, or "
					"is in a file of -readconfig): it could not be restored",
					b->id);
		gmem_optstr_free(object);
		err = gmem_saved_add_backend(m->saved, b->id, b->size, b->canonical);
		if (err)
			return err;
	}
	return 0;
}

int gmem_machine_inspect(struct gmem_qmp *qmp, pid_t pid, bool ends, struct gmem_machine *m)
{
	int err;

	*m = (struct gmem_machine){ .pid = pid ? pid : gmem_qmp_peer_pid(qmp), .process = -1 };
	if (m->pid <= 0)
		return gmem_err(-ESRCH, "%s: the process behind it is not visible from here: give --pid",
				gmem_qmp_name(qmp));
	m->process = gmem_process_open(m->pid);
	if (m->process < 0)
		return m->process;
	err = gmem_saved_collect(qmp, m->pid, &m->saved);
	if (!err)
		err = gmem_cmdline_parse(m->saved->argc, (const char *const *)m->saved->argv, &m->cl);
	if (!err)
		err = gmem_devices_check(qmp);
	if (!err)
		err = gmem_ram_find(qmp, m->pid, &m->ram);
	if (!err)
		err = add_backends(m);
	return err ? err : gmem_disks_survey(qmp, m->cl, ends, m->saved);
}

void gmem_machine_release(struct gmem_machine *m)
{
	gmem_ram_free(m->ram);
	gmem_cmdline_free(m->cl);
	gmem_saved_free(m->saved);
	if (m->process >= 0)
		close(m->process);
	*m = (struct gmem_machine){ .process = -1 };
}
