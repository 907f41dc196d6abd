/* SPDX-License-Identifier: MIT */
#include "link/disks.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "link/cmdline.h"
#include "link/optstr.h"
#include "link/overlay.h"

#define ENDS "end the machine with the save (--quit)"

static bool one_of(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (!strcmp(*list, name))
			return true;
	return false;
}

/* Block drivers that are files of this machine; that hold no data; and that only pass on what others hold. */
static const char *const file_drivers[] = { "file", "host_device", "host_cdrom", NULL };
static const char *const empty_drivers[] = { "null-co", "null-aio", NULL };
static const char *const layer_drivers[] = {
	"raw",		"qcow2",       "qcow",	       "qed",
	"vdi",		"vmdk",	       "vpc",	       "VHDX",
	"vhdx",		"parallels",   "bochs",	       "cloop",
	"dmg",		"luks",	       "copy-on-read", "copy-before-write",
	"throttle",	"quorum",      "blkdebug",     "blkverify",
	"blklogwrites", "preallocate", "compress",     "snapshot-access",
	NULL,
};

/* QEMU's name for a file, which may be relative to where it was started or carry options, as an absolute path. */
static int resolve(const char *cwd, const char *name, char **ret)
{
	char buf[PATH_MAX], *joined = NULL;
	json_t *json = NULL, *layer;
	json_error_t jerr;

	if (!strncmp(name, "json:", 5)) {
		json = json_loads(name + 5, 0, &jerr);
		for (layer = json; layer && !json_object_get(layer, "filename"); layer = json_object_get(layer, "file"))
			;
		name = json_string_value(json_object_get(layer, "filename"));
	}
	if (name && !strncmp(name, "file:", 5))
		name += 5;
	if (name && asprintf(&joined, "%s%s%s", *name == '/' ? "" : cwd, *name == '/' ? "" : "/", name) < 0)
		joined = NULL;
	json_decref(json);
	*ret = joined ? strdup(realpath(joined, buf) ? buf : joined) : NULL;
	free(joined);
	return *ret ? 0 : gmem_err(-EOPNOTSUPP, "a disk's file name is not understood");
}

static int identify(struct gmem_disk *d)
{
	struct stat st;

	if (stat(d->path, &st))
		return gmem_err_sys(-errno, "disk '%s'", d->path);
	if (!S_ISREG(st.st_mode))
		return gmem_err(
			-EOPNOTSUPP,
			"disk '%s' is not a regular file: whether it changes after the save could not be checked",
			d->path);
	d->dev = st.st_dev;
	d->ino = st.st_ino;
	d->size = (uint64_t)st.st_size;
	d->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	return 0;
}

static int survey_node(json_t *node, struct gmem_saved *saved)
{
	const char *driver = json_string_value(json_object_get(node, "drv"));
	const char *file = json_string_value(json_object_get(node, "file"));
	struct gmem_disk d = { .how = GMEM_DISK_READONLY };
	size_t i;
	int r;

	if (!driver || !file)
		return gmem_err(-EPROTO, "QEMU's list of disks is not understood");
	if (one_of(empty_drivers, driver) || one_of(layer_drivers, driver))
		return 0;
	if (!one_of(file_drivers, driver))
		return gmem_err(-EOPNOTSUPP,
				"disk '%s' (driver %s) is not a local file: whether it changes after the save could "
				"not be checked; "
				"detach it first",
				file, driver);
	if (!json_is_true(json_object_get(node, "ro")))
		d.how = GMEM_DISK_ENDED;
	r = resolve(saved->cwd, file, &d.path);
	if (!r)
		r = identify(&d);
	for (i = 0; i < saved->ndisks && !r; i++) {
		if (strcmp(saved->disks[i].path, d.path))
			continue;
		if (d.how > saved->disks[i].how)
			saved->disks[i].how = d.how;
		goto out;
	}
	if (!r)
		r = gmem_saved_add_disk(saved, &d);
out:
	free(d.path);
	return r;
}

static int survey_nodes(struct gmem_qmp *qmp, struct gmem_saved *saved)
{
	json_t *nodes, *node;
	size_t i;
	int r;

	r = gmem_qmp_execf(qmp, &nodes, "query-named-block-nodes", "{s:b}", "flat", 1);
	if (r == -EREMOTEIO) /* before 5.0 */
		r = gmem_qmp_exec(qmp, "query-named-block-nodes", NULL, &nodes);
	if (r)
		return r;
	json_array_foreach(nodes, i, node) {
		r = survey_node(node, saved);
		if (r)
			break;
	}
	json_decref(nodes);
	return r;
}

/* Writes that QEMU throws away at its end cannot be found again. */
static int refuse_temporary(const struct gmem_cmdline *cl)
{
	struct gmem_optstr *opts;
	const char *file;
	bool temporary;
	long i;
	int r;

	if (gmem_cmdline_find(cl, "snapshot", 0) >= 0)
		return gmem_err(
			-EOPNOTSUPP,
			"QEMU runs with -snapshot: what the guest wrote to its disks is lost when QEMU ends; start it "
			"without");
	for (i = gmem_cmdline_find(cl, "drive", 0); i >= 0; i = gmem_cmdline_find(cl, "drive", (size_t)i + 1)) {
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), NULL, &opts);
		if (r)
			return r;
		temporary = gmem_optstr_bool(opts, "snapshot", false);
		file = gmem_optstr_get(opts, "file");
		if (temporary)
			r = gmem_err(-EOPNOTSUPP,
				     "disk '%s' has snapshot=on: what the guest wrote to it is lost when QEMU ends; "
				     "start it "
				     "without",
				     file ? file : "?");
		gmem_optstr_free(opts);
		if (r)
			return r;
	}
	return 0;
}

/* The -drive option whose file is `path`: its file= as written, or NULL. */
static char *drive_of(const struct gmem_cmdline *cl, const char *cwd, const char *path)
{
	struct gmem_optstr *opts;
	char *abs, *found = NULL;
	const char *file;
	long i;

	for (i = gmem_cmdline_find(cl, "drive", 0); i >= 0; i = gmem_cmdline_find(cl, "drive", (size_t)i + 1)) {
		if (gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), NULL, &opts))
			continue;
		file = gmem_optstr_get(opts, "file");
		if (file && !gmem_optstr_has_prefix(opts, "file.") && !gmem_optstr_has_prefix(opts, "backing") &&
		    gmem_cmdline_drive(cl, file) >= 0 && !resolve(cwd, file, &abs)) {
			if (!found && !strcmp(abs, path))
				found = strdup(file);
			free(abs);
		}
		gmem_optstr_free(opts);
	}
	return found;
}

static struct gmem_disk *disk_at(struct gmem_saved *saved, const char *path)
{
	size_t i;

	for (i = 0; i < saved->ndisks; i++)
		if (!strcmp(saved->disks[i].path, path))
			return &saved->disks[i];
	return NULL;
}

/* The command line names the file a drive began with: the active one, or one it is an overlay of. */
static char *drive_of_chain(const struct gmem_cmdline *cl, const char *cwd, json_t *image)
{
	const char *name;
	char *path, *drive = NULL;

	for (; image && !drive; image = json_object_get(image, "backing-image")) {
		name = json_string_value(json_object_get(image, "filename"));
		if (!name || resolve(cwd, name, &path))
			break;
		drive = drive_of(cl, cwd, path);
		free(path);
	}
	return drive;
}

static int plan_snapshot(const struct gmem_cmdline *cl, json_t *block, struct gmem_saved *saved)
{
	json_t *in = json_object_get(block, "inserted");
	const char *device = json_string_value(json_object_get(block, "device"));
	const char *file = json_string_value(json_object_get(in, "file"));
	const char *format = json_string_value(json_object_get(in, "drv"));
	json_t *image = json_object_get(in, "image");
	struct gmem_disk *disk;
	char *path, *drive;
	size_t i;
	int r;

	if (!in || json_is_true(json_object_get(in, "ro")) || !file || !format || !device || !*device)
		return 0;
	r = resolve(saved->cwd, file, &path);
	if (r)
		return r;
	disk = disk_at(saved, path);
	free(path);
	drive = drive_of_chain(cl, saved->cwd, image);
	for (i = 0; i < saved->ndisks && drive; i++) {
		if (saved->disks[i].drive && !strcmp(saved->disks[i].drive, drive)) {
			free(drive);
			drive = NULL;
		}
	}
	if (!disk || !drive || disk->how != GMEM_DISK_ENDED) {
		free(drive);
		return 0;
	}
	disk->how = GMEM_DISK_FROZEN;
	disk->drive = drive;
	disk->format = strdup(format);
	disk->device = strdup(device);
	disk->virtual_size = (uint64_t)json_integer_value(json_object_get(image, "virtual-size"));
	return disk->format && disk->device ? 0 : gmem_err(-ENOMEM, "gmem_disks: out of memory");
}

int gmem_disks_survey(struct gmem_qmp *qmp, const struct gmem_cmdline *cl, bool ends, struct gmem_saved *saved)
{
	json_t *blocks, *block;
	bool writable = false;
	size_t i;
	int r;

	r = refuse_temporary(cl);
	if (!r)
		r = survey_nodes(qmp, saved);
	if (r)
		return r;
	for (i = 0; i < saved->ndisks; i++)
		writable |= saved->disks[i].how == GMEM_DISK_ENDED;
	if (ends || !writable)
		return 0;
	r = gmem_qmp_exec(qmp, "query-block", NULL, &blocks);
	if (r)
		return r;
	json_array_foreach(blocks, i, block) {
		r = plan_snapshot(cl, block, saved);
		if (r)
			break;
	}
	json_decref(blocks);
	for (i = 0; i < saved->ndisks && !r; i++)
		if (saved->disks[i].how == GMEM_DISK_ENDED)
			r = gmem_err(-EOPNOTSUPP,
				     "disk '%s' is written by the guest and was not given as one -drive file=...: it "
				     "cannot be "
				     "snapshotted; %s",
				     saved->disks[i].path, ENDS);
	return r;
}

static int transact(struct gmem_qmp *qmp, struct gmem_saved *saved)
{
	json_t *actions = json_array();
	size_t i;

	for (i = 0; i < saved->ndisks; i++) {
		const struct gmem_disk *d = &saved->disks[i];

		if (d->how == GMEM_DISK_FROZEN)
			json_array_append_new(actions, json_pack("{s:s, s:{s:s, s:s, s:s, s:s}}", "type",
								 "blockdev-snapshot-sync", "data", "device", d->device,
								 "snapshot-file", d->overlay, "format", "qcow2", "mode",
								 "existing"));
	}
	if (!json_array_size(actions)) {
		json_decref(actions);
		return 0;
	}
	return gmem_qmp_execf(qmp, NULL, "transaction", "{s:o}", "actions", actions);
}

void gmem_disks_discard(struct gmem_saved *saved)
{
	size_t i;

	for (i = 0; i < saved->ndisks; i++) {
		if (!saved->disks[i].overlay)
			continue;
		unlink(saved->disks[i].overlay);
		free(saved->disks[i].overlay);
		saved->disks[i].overlay = NULL;
	}
}

static int make_overlays(struct gmem_saved *saved)
{
	size_t i;
	int r = 0;

	for (i = 0; i < saved->ndisks && !r; i++) {
		struct gmem_disk *d = &saved->disks[i];

		if (d->how == GMEM_DISK_FROZEN)
			r = gmem_overlay_create(d->path, d->format, d->virtual_size, &d->overlay);
	}
	if (r)
		gmem_disks_discard(saved);
	return r;
}

int gmem_disks_snapshot(struct gmem_qmp *qmp, struct gmem_saved *saved)
{
	int r;

	r = make_overlays(saved);
	if (r)
		return r;
	r = transact(qmp, saved);
	/* Refused is undone by QEMU itself. Any other failure leaves open what QEMU writes to: the overlays stay. */
	if (r == -EREMOTEIO)
		gmem_disks_discard(saved);
	return r;
}

int gmem_disks_identify(struct gmem_saved *saved)
{
	size_t i;
	int r = 0;

	for (i = 0; i < saved->ndisks && !r; i++)
		r = identify(&saved->disks[i]);
	return r;
}

int gmem_disks_check(const struct gmem_saved *saved)
{
	size_t i;
	int r;

	for (i = 0; i < saved->ndisks; i++) {
		const struct gmem_disk *was = &saved->disks[i];
		struct gmem_disk now = { .path = was->path };

		r = identify(&now);
		if (r)
			return r;
		/* The device number changes with a reboot, so it decides nothing. */
		if (now.ino != was->ino || now.size != was->size || now.mtime_ns != was->mtime_ns)
			return gmem_err(
				-ESTALE,
				"disk '%s' changed since the save: this memory does not belong to it any more%s",
				was->path,
				was->how == GMEM_DISK_ENDED ? " (an image with a disk is restored once)" : "");
	}
	return 0;
}

int gmem_disks_overlay(struct gmem_saved *saved, struct gmem_cmdline *cl)
{
	struct gmem_optstr *opts;
	char *text;
	size_t i;
	long at;
	int r;

	r = make_overlays(saved);
	for (i = 0; i < saved->ndisks && !r; i++) {
		const struct gmem_disk *d = &saved->disks[i];

		if (d->how != GMEM_DISK_FROZEN)
			continue;
		at = gmem_cmdline_drive(cl, d->drive);
		if (at < 0) {
			r = gmem_err(-EBADMSG, "disk '%s': the command line has no -drive file=%s", d->path, d->drive);
			break;
		}
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)at), NULL, &opts);
		if (r)
			break;
		gmem_optstr_unset(opts, "driver");
		r = gmem_optstr_set(opts, "file", d->overlay);
		if (!r)
			r = gmem_optstr_set(opts, "format", "qcow2");
		text = r ? NULL : gmem_optstr_format(opts);
		gmem_optstr_free(opts);
		if (!r)
			r = text ? gmem_cmdline_set(cl, (size_t)at, text) :
				   gmem_err(-ENOMEM, "gmem_disks: out of memory");
		free(text);
	}
	if (r)
		gmem_disks_discard(saved);
	return r;
}
