/* SPDX-License-Identifier: MIT */
#include "tools/launch.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tools/digest_text.h"
#include "tools/ui.h"

#define ID_BLOCK_LEN 96
#define ID_AUTH_LEN 4096
#define ID_BLOCK_POLICY 0x58 /* it begins with the digest */
#define USUAL_POLICY 0x30000 /* the library's, if none is said */

/* A vCPU's page is measured, but is none of the guest's memory. */
static bool in_memory(const struct measure_range *range)
{
	return strncmp(range->name, "vmsa", 4) != 0;
}

static int by_gpa(const void *a, const void *b)
{
	const struct launch_area *x = a, *y = b;

	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/* What the ranges cover, as few slots as do. */
static int find_areas(struct launch_guest *g)
{
	const struct measure_report *report = g->report;
	size_t n = 0;

	g->areas = calloc(report->nranges + 1, sizeof(*g->areas));
	if (!g->areas)
		return gmem_ui_fail("launch: no memory");
	for (size_t i = 0; i < report->nranges; i++) {
		if (!in_memory(&report->ranges[i]))
			continue;
		g->areas[n].gpa = report->ranges[i].gpa;
		g->areas[n++].len = report->ranges[i].len;
		g->npages += report->ranges[i].len / GMEM_PAGE_SIZE;
	}
	qsort(g->areas, n, sizeof(*g->areas), by_gpa);
	for (size_t i = 0; i < n; i++) {
		struct launch_area *last = g->nareas ? &g->areas[g->nareas - 1] : NULL;

		if (last && last->gpa + last->len == g->areas[i].gpa)
			last->len += g->areas[i].len;
		else
			g->areas[g->nareas++] = g->areas[i];
	}
	return GMEM_UI_OK;
}

static int add_slot(struct launch_guest *g, uint32_t slot)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .flags = GMEM_FILE_INIT_PRIVATE };
	struct launch_area *area = &g->areas[slot];
	struct gmem_memslot memslot = { .size = sizeof(memslot), .slot = slot, .gpa = area->gpa, .len = area->len };

	if (gmem_file_create(area->len, &opts, &area->file))
		return gmem_ui_fail_last();
	memslot.file = area->file;
	return gmem_vm_set_slot(g->vm, &memslot) ? gmem_ui_fail_last() : GMEM_UI_OK;
}

/* As it is on disk, or as base64, which is what QEMU takes. */
static int read_id(const char *what, const char *path, size_t len, uint8_t **ret)
{
	uint8_t *bytes, *id;
	uint64_t n;
	bool good;
	int code;

	code = guest_read_file(what, path, (UINT64_C(1) << 20) - 1, &bytes, &n);
	if (code)
		return code;
	if (n == len) {
		*ret = bytes;
		return GMEM_UI_OK;
	}
	id = malloc(len);
	good = id && gmem_base64_parse((const char *)bytes, n, id, len);
	free(bytes);
	if (!good) {
		free(id);
		return gmem_ui_fail("%s: %s: neither %zu bytes nor their base64", what, path, len);
	}
	*ret = id;
	return GMEM_UI_OK;
}

int launch_guest_start(struct launch_guest *g, const struct measure_report *report)
{
	const struct guest_args *args = report->args;
	struct gmem_vm_opts vm_opts = { .size = sizeof(vm_opts), .type = guest_args_type(args) };
	struct gmem_launch_opts opts = { .size = sizeof(opts), .policy = args->policy };
	int code = GMEM_UI_OK;

	*g = (struct launch_guest){ .report = report };
	if (args->id_block)
		code = read_id("--id-block", args->id_block, ID_BLOCK_LEN, &g->id_block);
	if (!code && args->id_auth)
		code = read_id("--id-auth", args->id_auth, ID_AUTH_LEN, &g->id_auth);
	code = code ? code : find_areas(g);
	if (code)
		return code;
	if (gmem_vm_create(&vm_opts, &g->vm))
		return gmem_ui_fail_last();
	for (size_t i = 0; i < g->nareas && !code; i++)
		code = add_slot(g, (uint32_t)i);
	if (code)
		return code;
	if (vm_opts.type == GMEM_VM_SNP)
		opts.sev_features = args->features & ~UINT64_C(1);
	return gmem_launch_create(g->vm, &opts, &g->launch) ? gmem_ui_fail_last() : GMEM_UI_OK;
}

/* What of an ID block does not fit: the firmware tells only that something does not. */
static int not_finished(const struct launch_guest *g)
{
	char want[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)], is[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];
	uint64_t policy = g->report->args->policy ? g->report->args->policy : USUAL_POLICY, block_policy;
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];

	gmem_ui_fail_last();
	if (!g->id_block)
		return GMEM_UI_FAILED;
	memcpy(&block_policy, g->id_block + ID_BLOCK_POLICY, sizeof(block_policy));
	block_policy = le64toh(block_policy);
	if (!gmem_launch_digest(g->launch, digest) && memcmp(digest, g->id_block, sizeof(digest)))
		gmem_ui_note("the ID block is for the digest %s, the launch has %s",
			     gmem_hex_text(want, g->id_block, sizeof(digest)),
			     gmem_hex_text(is, digest, sizeof(digest)));
	if (block_policy != policy)
		gmem_ui_note("the ID block is for the policy 0x%" PRIx64 ", the launch has 0x%" PRIx64, block_policy,
			     policy);
	return GMEM_UI_FAILED;
}

int launch_guest_run(struct launch_guest *g)
{
	const struct guest_args *args = g->report->args;
	struct gmem_guest guest = g->report->inputs->guest;
	struct gmem_launch_finish finish = {
		.size = sizeof(finish),
		.id_block = g->id_block,
		.id_auth = g->id_auth,
		.auth_key_en = GUEST_GIVEN(args, GUEST_AUTHOR_KEY),
		.vcek_disabled = GUEST_GIVEN(args, GUEST_VCEK_DISABLED),
	};
	struct gmem_ui_progress progress;
	int err;

	memcpy(finish.host_data, args->host_data, sizeof(finish.host_data));
	guest.nvcpus = args->vcpus;
	gmem_ui_progress_start(&progress, "launch");
	err = gmem_launch_firmware(g->launch, &guest, gmem_ui_progress_step, &progress);
	gmem_ui_progress_end(&progress);
	if (err)
		return gmem_ui_fail_last();
	if (gmem_launch_finish(g->launch, &finish))
		return not_finished(g);
	return gmem_launch_digest(g->launch, g->digest) ? gmem_ui_fail_last() : GMEM_UI_OK;
}

void launch_guest_free(struct launch_guest *g)
{
	gmem_launch_free(g->launch);
	gmem_vm_free(g->vm);
	for (size_t i = 0; i < g->nareas; i++)
		gmem_file_free(g->areas[i].file);
	free(g->areas);
	free(g->id_block);
	free(g->id_auth);
}

/* Bytes of a file, wherever in it: sections of TDX need not begin at a page of it. */
static bool is_part_of(const struct guest_input *file, const uint8_t *bytes, uint64_t len)
{
	return file->path && memmem(file->bytes, file->len, bytes, len);
}

static bool is_zero(const uint8_t *bytes, uint64_t len)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, len - 1);
}

/* The page for the table of kernel hashes. */
static bool has_hashes(const struct guest_inputs *inputs, const uint8_t *page)
{
	const struct gmem_kernel_hashes *h = inputs->guest.kernel;

	if (!h)
		return is_zero(page, GMEM_PAGE_SIZE);
	return memmem(page, GMEM_PAGE_SIZE, h->kernel, sizeof(h->kernel)) &&
	       memmem(page, GMEM_PAGE_SIZE, h->initrd, sizeof(h->initrd)) &&
	       memmem(page, GMEM_PAGE_SIZE, h->cmdline, sizeof(h->cmdline));
}

/* What was launched there by its name; what AMD's firmware made of a page is not known from the files. */
static bool as_launched(const struct guest_inputs *inputs, const struct measure_range *range, const uint8_t *bytes)
{
	static const char *const from_files[] = { "firmware", "svsm", "BFV", "CFV" };
	static const char *const zeros[] = { "sec-mem", "svsm-caa", "TD_HOB", "TEMP_MEM", "PERM_MEM" };

	for (size_t i = 0; i < sizeof(from_files) / sizeof(from_files[0]); i++)
		if (!strcmp(range->name, from_files[i]))
			return is_part_of(&inputs->files[GUEST_INPUT_FIRMWARE], bytes, range->len) ||
			       is_part_of(&inputs->files[GUEST_INPUT_SVSM], bytes, range->len);
	for (size_t i = 0; i < sizeof(zeros) / sizeof(zeros[0]); i++)
		if (!strcmp(range->name, zeros[i]))
			return is_zero(bytes, range->len);
	return strcmp(range->name, "kernel-hashes") || has_hashes(inputs, bytes);
}

static int look_at(struct launch_guest *g, struct gmem_vcpu *vcpu, const struct measure_range *range)
{
	uint64_t side = guest_args_type(g->report->args) == GMEM_VM_SNP ? gmem_vm_alias_bit(g->vm) : 0;
	uint8_t *bytes = malloc(range->len);
	int code = GMEM_UI_OK;

	if (!bytes)
		return gmem_ui_fail("launch: no memory");
	if (gmem_vcpu_load(vcpu, range->gpa | side, bytes, range->len))
		code = gmem_ui_fail_last();
	else if (!as_launched(g->report->inputs, range, bytes))
		code = gmem_ui_fail("%s at 0x%" PRIx64 ": the guest does not read what was launched there", range->name,
				    range->gpa);
	free(bytes);
	return code;
}

int launch_guest_look_inside(struct launch_guest *g)
{
	struct gmem_vcpu *vcpu;
	int code = GMEM_UI_OK;

	if (gmem_vcpu_create(g->vm, NULL, &vcpu))
		return gmem_ui_fail_last();
	for (size_t i = 0; i < g->report->nranges && !code; i++)
		if (in_memory(&g->report->ranges[i]))
			code = look_at(g, vcpu, &g->report->ranges[i]);
	gmem_vcpu_free(vcpu);
	return code;
}

static sigjmp_buf touched;

static void on_sigbus(int sig)
{
	siglongjmp(touched, sig);
}

/* How many pages of [addr, addr + len) can be touched. */
static uint64_t touch(const uint8_t *addr, uint64_t len)
{
	struct sigaction action = { .sa_handler = on_sigbus }, before;
	/* Live on through siglongjmp(). */
	volatile uint64_t reached = 0;

	sigaction(SIGBUS, &action, &before);
	for (volatile uint64_t off = 0; off < len; off += GMEM_PAGE_SIZE) {
		if (sigsetjmp(touched, 1))
			continue;
		(void)*(const volatile uint8_t *)(addr + off);
		reached++;
	}
	sigaction(SIGBUS, &before, NULL);
	return reached;
}

static int try_area(const struct launch_area *area)
{
	struct gmem_view *view;
	uint64_t reached;
	uint8_t byte;

	for (uint64_t off = 0; off < area->len; off += GMEM_PAGE_SIZE)
		if (gmem_file_read(area->file, off, &byte, 1) != -EACCES)
			return gmem_ui_fail("0x%" PRIx64 ": gmem_file_read() is not -EACCES", area->gpa + off);
	if (gmem_view_map(area->file, 0, area->len, PROT_READ, &view))
		return gmem_ui_fail_last();
	reached = touch(gmem_view_addr(view), area->len);
	gmem_view_unmap(view);
	if (reached)
		return gmem_ui_fail("0x%" PRIx64 ": %" PRIu64 " private pages can be touched in a view", area->gpa,
				    reached);
	return GMEM_UI_OK;
}

int launch_guest_look_outside(struct launch_guest *g)
{
	int code = GMEM_UI_OK;

	for (size_t i = 0; i < g->nareas && !code; i++)
		code = try_area(&g->areas[i]);
	return code;
}
