/* SPDX-License-Identifier: MIT */
#include "tools/info.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "tools/cmd.h"
#include "tools/ui.h"

const struct gmem_ability gmem_abilities[] = {
	{ "restore-qemu",
	  "lazy restore of QEMU (its kernel accesses are served too)",
	  { "userfaultfd.full", "userfaultfd.shmem.missing", "userfaultfd.shmem.minor", "userfaultfd.continue" } },
	{ "restore-embedded",
	  "lazy restore in your own program",
	  { "userfaultfd.shmem.missing", "userfaultfd.shmem.minor", "userfaultfd.continue" } },
	{ "poison", "a lost page gives SIGBUS, never wrong bytes", { "markers.shmem" } },
	{ "take-over",
	  "carry on when page server and keeper are both dead",
	  { "process.pidfd_open", "process.pidfd_getfd", "process.trace" } },
	{ "kvm", "virtual machines with KVM", { "kvm.open", "kvm.vm.default", "kvm.memslots" } },
	{ "guest_memfd",
	  "the kernel's own guest memory, mapped by the host",
	  { "kvm.open", "guest_memfd.create", "guest_memfd.mmap", "guest_memfd.init_shared" } },
	{ "convert",
	  "private and shared pages converted in place by the kernel",
	  { "kvm.open", "guest_memfd.convert" } },
	{ "guest_memfd-lazy",
	  "userfaults on the kernel's guest memory",
	  { "kvm.open", "userfaultfd.guest_memfd.missing", "userfaultfd.guest_memfd.minor" } },
	{ "snp", "confidential machines: AMD SEV-SNP", { "kvm.open", "kvm.vm.snp" } },
	{ "tdx", "confidential machines: Intel TDX", { "kvm.open", "kvm.vm.tdx" } },
};
const size_t gmem_abilities_count = sizeof(gmem_abilities) / sizeof(gmem_abilities[0]);

const char *gmem_ability_lacks(const struct gmem_host *host, const struct gmem_ability *ability)
{
	for (size_t i = 0; i < sizeof(ability->needs) / sizeof(ability->needs[0]) && ability->needs[i]; i++)
		if (!gmem_host_has(host, ability->needs[i]))
			return ability->needs[i];
	return NULL;
}

const char *gmem_info_engine(void)
{
	return "user";
}

/*
 * What is needed of a file, unless its maker says otherwise, and the fact that says whether a guest_memfd has it. The
 * last thing no kernel has, so the engine is what it is.
 */
void gmem_info_engine_why(const struct gmem_host *host, char *buf, size_t len)
{
	static const struct {
		const char *fact, *lacks;
	} wanted[] = {
		{ "guest_memfd.init_shared", "mapped by the host" },
		{ "guest_memfd.convert", "converted in place" },
		{ "userfaultfd.guest_memfd.missing", "served lazily" },
		{ "guest_memfd.numa", "given a memory policy" },
	};
	size_t at = (size_t)snprintf(buf, len, "unless less is needed; a guest_memfd cannot here be ");

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (!gmem_host_has(host, wanted[i].fact) && at < len)
			at += (size_t)snprintf(buf + at, len - at, "%s (%s), ", wanted[i].lacks, wanted[i].fact);
	if (at < len)
		snprintf(buf + at, len - at, "nor reached by the library's own vCPUs where it is private");
}

bool gmem_info_fact(const struct gmem_host *host, const char *name, struct gmem_host_item *ret)
{
	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };

		if (gmem_host_item(host, i, &item) || strcmp(item.name, name))
			continue;
		*ret = item;
		return true;
	}
	return false;
}

const char *gmem_info_status(enum gmem_host_status status)
{
	return status == GMEM_HOST_YES ? "yes" : status == GMEM_HOST_DENIED ? "denied" : "no";
}

static void print_help(void)
{
	printf("Usage: gmem info [--json]\n"
	       "\n"
	       "Says what this machine offers for guest memory: KVM, guest_memfd, userfaultfd, page markers,\n"
	       "huge pages, NUMA. Everything is found out by using it on scratch objects. For what is missing or\n"
	       "denied it says what to do about it. A missing feature is no failure.\n"
	       "\n"
	       "  --json      the same as JSON\n"
	       "  -h, --help  this text\n");
}

int cmd_info(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct gmem_host *host;
	bool json = false;
	int c, err = 0;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		switch (c) {
		case 'j':
			json = true;
			break;
		case 'h':
			print_help();
			return GMEM_UI_OK;
		default:
			return gmem_ui_usage("info", "unknown option '%s'", argv[optind - 1]);
		}
	}
	if (optind < argc)
		return gmem_ui_usage("info", "unexpected argument '%s'", argv[optind]);

	if (gmem_host_probe(&host))
		return gmem_ui_fail_last();
	if (json)
		err = gmem_info_print_json(host);
	else
		gmem_info_print_text(host);
	gmem_host_free(host);
	return err ? gmem_ui_fail("info: out of memory") : GMEM_UI_OK;
}
