/* SPDX-License-Identifier: MIT */
#include "link/cmdline.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "link/optstr.h"

struct option {
	char *name; /* as written, without dashes; "" for an image */
	char *value;
	bool has_value;
};

struct gmem_cmdline {
	char *program;
	struct option *options;
	char **words; /* "-name" of each option, what gmem_cmdline_argv() lends out */
	size_t n;
};

/* QEMU's options, 2.12 to 10: those without and those with a value. */
static const char *const plain[] = {
	"S",
	"alt-grab",
	"async-teardown",
	"audio-help",
	"ctrl-grab",
	"curses",
	"daemonize",
	"enable-fips",
	"enable-hax",
	"enable-hvf",
	"enable-kvm",
	"enable-sync-profile",
	"enable-whpx",
	"full-screen",
	"h",
	"help",
	"help-all",
	"hax",
	"jitdump",
	"mem-prealloc",
	"no-acpi",
	"no-fd-bootchk",
	"no-frame",
	"no-hpet",
	"no-kvm-irqchip",
	"no-kvm-pit",
	"no-kvm-pit-reinjection",
	"no-quit",
	"no-reboot",
	"no-shutdown",
	"no-user-config",
	"nodefaults",
	"nodefconfig",
	"nographic",
	"old-param",
	"nouserconfig",
	"one-insn-per-tb",
	"only-migratable",
	"perfmap",
	"portrait",
	"preconfig",
	"rtc-td-hack",
	"s",
	"sdl",
	"semihosting",
	"singlestep",
	"snapshot",
	"tdf",
	"usb",
	"version",
	"virtfs_synth",
	"win2k-hack",
	"xen-attach",
	"xen-create",
	"xen-domid-restrict",
};

static const char *const valued[] = {
	"D",
	"L",
	"M",
	"accel",
	"acpitable",
	"action",
	"add-fd",
	"append",
	"audio",
	"audiodev",
	"balloon",
	"bios",
	"blockdev",
	"boot",
	"bt",
	"cdrom",
	"chardev",
	"chroot",
	"compat",
	"cpu",
	"d",
	"debugcon",
	"device",
	"dfilter",
	"display",
	"drive",
	"dtb",
	"dump-vmstate",
	"echr",
	"fda",
	"fdb",
	"fsdev",
	"fw_cfg",
	"g",
	"gdb",
	"global",
	"hda",
	"hdachs",
	"hdb",
	"hdc",
	"hdd",
	"icount",
	"incoming",
	"initrd",
	"iscsi",
	"k",
	"kernel",
	"loadvm",
	"m",
	"machine",
	"mem-path",
	"mon",
	"monitor",
	"mtdblock",
	"msg",
	"name",
	"net",
	"netdev",
	"nic",
	"numa",
	"object",
	"option-rom",
	"overcommit",
	"parallel",
	"pflash",
	"pidfile",
	"plugin",
	"prom-env",
	"qmp",
	"qmp-pretty",
	"qtest",
	"qtest-log",
	"readconfig",
	"realtime",
	"rotate",
	"rtc",
	"run-with",
	"runas",
	"sandbox",
	"sd",
	"seed",
	"semihosting-config",
	"serial",
	"set",
	"shim",
	"smbios",
	"smp",
	"soundhw",
	"spice",
	"tb-size",
	"tpmdev",
	"trace",
	"usbdevice",
	"uuid",
	"vga",
	"virtfs",
	"virtioconsole",
	"vnc",
	"watchdog",
	"watchdog-action",
	"writeconfig",
	"xen-domid",
};

static bool listed(const char *const *list, size_t n, const char *name)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (!strcmp(list[i], name))
			return true;
	return false;
}

static const char *resolve(const char *name)
{
	return strcmp(name, "M") ? name : "machine";
}

static int oom(void)
{
	return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
}

static int push(struct gmem_cmdline *cl, const char *name, const char *value)
{
	struct option *options;
	char **words;
	struct option o = { .has_value = value != NULL };
	char *word;

	options = reallocarray(cl->options, cl->n + 1, sizeof(*options));
	if (!options)
		return oom();
	cl->options = options;
	words = reallocarray(cl->words, cl->n + 1, sizeof(*words));
	if (!words)
		return oom();
	cl->words = words;
	o.name = strdup(name);
	o.value = value ? strdup(value) : NULL;
	word = malloc(strlen(name) + 2);
	if (!o.name || (value && !o.value) || !word) {
		free(o.name);
		free(o.value);
		free(word);
		return oom();
	}
	word[0] = '-';
	strcpy(word + 1, name);
	words[cl->n] = word;
	options[cl->n++] = o;
	return 0;
}

int gmem_cmdline_parse(size_t argc, const char *const argv[], struct gmem_cmdline **ret)
{
	struct gmem_cmdline *cl;
	const char *name;
	size_t i;
	int r = 0;

	if (!argc)
		return gmem_err(-EINVAL, "QEMU command line: it is empty");
	cl = calloc(1, sizeof(*cl));
	if (!cl)
		return oom();
	cl->program = strdup(argv[0]);
	if (!cl->program)
		r = oom();
	for (i = 1; i < argc && !r; i++) {
		name = argv[i];
		if (name[0] != '-') {
			r = push(cl, "", name);
			continue;
		}
		name += name[1] == '-' ? 2 : 1;
		if (listed(plain, sizeof(plain) / sizeof(*plain), name))
			r = push(cl, name, NULL);
		else if (!listed(valued, sizeof(valued) / sizeof(*valued), name))
			r = gmem_err(-EINVAL, "QEMU command line: unknown option '%s'", argv[i]);
		else if (i + 1 == argc)
			r = gmem_err(-EINVAL, "QEMU command line: '%s' lacks its value", argv[i]);
		else
			r = push(cl, name, argv[++i]);
	}
	if (r) {
		gmem_cmdline_free(cl);
		return r;
	}
	*ret = cl;
	return 0;
}

void gmem_cmdline_free(struct gmem_cmdline *cl)
{
	if (!cl)
		return;
	while (cl->n)
		gmem_cmdline_remove(cl, cl->n - 1);
	free(cl->options);
	free(cl->words);
	free(cl->program);
	free(cl);
}

size_t gmem_cmdline_count(const struct gmem_cmdline *cl)
{
	return cl->n;
}

const char *gmem_cmdline_name(const struct gmem_cmdline *cl, size_t i)
{
	return resolve(cl->options[i].name);
}

const char *gmem_cmdline_value(const struct gmem_cmdline *cl, size_t i)
{
	return cl->options[i].value;
}

const char *gmem_cmdline_program(const struct gmem_cmdline *cl)
{
	return cl->program;
}

long gmem_cmdline_find(const struct gmem_cmdline *cl, const char *name, size_t from)
{
	for (; from < cl->n; from++)
		if (!strcmp(gmem_cmdline_name(cl, from), name))
			return (long)from;
	return -1;
}

int gmem_cmdline_set_program(struct gmem_cmdline *cl, const char *program)
{
	char *copy = strdup(program);

	if (!copy)
		return oom();
	free(cl->program);
	cl->program = copy;
	return 0;
}

int gmem_cmdline_set(struct gmem_cmdline *cl, size_t i, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return oom();
	free(cl->options[i].value);
	cl->options[i].value = copy;
	return 0;
}

void gmem_cmdline_remove(struct gmem_cmdline *cl, size_t i)
{
	free(cl->options[i].name);
	free(cl->options[i].value);
	free(cl->words[i]);
	cl->n--;
	memmove(&cl->options[i], &cl->options[i + 1], (cl->n - i) * sizeof(*cl->options));
	memmove(&cl->words[i], &cl->words[i + 1], (cl->n - i) * sizeof(*cl->words));
}

int gmem_cmdline_append(struct gmem_cmdline *cl, const char *name, const char *value)
{
	return push(cl, name, value);
}

char **gmem_cmdline_argv(const struct gmem_cmdline *cl)
{
	char **argv = calloc(2 * cl->n + 2, sizeof(*argv));
	size_t i, out = 0;

	if (!argv)
		return NULL;
	argv[out++] = cl->program;
	for (i = 0; i < cl->n; i++) {
		if (*cl->options[i].name)
			argv[out++] = cl->words[i];
		if (cl->options[i].has_value)
			argv[out++] = cl->options[i].value;
	}
	return argv;
}
