/* SPDX-License-Identifier: MIT */
/* What was measured as JSON: gmem-measure(1) says which members there are. */
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/digest_text.h"
#include "tools/measure.h"
#include "tools/ui.h"

/* As a string: many readers of JSON know no 64-bit integers. */
static json_t *number_json(uint64_t value)
{
	char text[GMEM_UI_TEXT];

	snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return json_string(text);
}

static json_t *bytes_json(const uint8_t *bytes, size_t n)
{
	char text[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];

	return json_string(gmem_hex_text(text, bytes, n));
}

/* JSON is UTF-8; what a user gives need not be. */
static json_t *text_json(const char *text)
{
	json_t *json = text ? json_string(text) : NULL;

	return json ? json : json_null();
}

static json_t *parameters_json(const struct measure_report *report)
{
	const struct guest_args *args = report->args;
	json_t *o = json_object();

	json_object_set_new(o, "mode", json_string(guest_mode_text(args->mode)));
	if (args->mode == GUEST_TDX) {
		json_object_set_new(o, "two_pass", json_boolean(args->flags & GMEM_GUEST_TWO_PASS));
		return o;
	}
	json_object_set_new(o, "vmm", json_string(guest_vmm_text(args->vmm)));
	if (args->mode == GUEST_SNP_OVMF_HASH)
		return o;
	json_object_set_new(o, "vcpus", json_integer(args->vcpus));
	json_object_set_new(o, "vcpu_signature", number_json(args->signature));
	json_object_set_new(o, "guest_features", number_json(args->features));
	if (args->vmm == GMEM_VMM_EC2)
		json_object_set_new(o, "ec2_rdx", number_json(args->flags & GMEM_GUEST_EC2_RDX_ZERO ? 0 : 0x600));
	if (args->mode == GUEST_SNP_SVSM)
		json_object_set_new(o, "vars_bytes", json_integer((json_int_t)report->inputs->vars_len));
	if (GUEST_GIVEN(args, GUEST_OVMF_HASH))
		json_object_set_new(o, "ovmf_hash", bytes_json(args->ovmf_hash, sizeof(args->ovmf_hash)));
	if (args->kernel)
		json_object_set_new(o, "append", text_json(args->append ? args->append : ""));
	return o;
}

static json_t *input_json(const char *name, const char *path, uint64_t len, const uint8_t sha256[32])
{
	return json_pack("{s:s, s:o, s:I, s:o}", "name", name, "path", text_json(path), "bytes", (json_int_t)len,
			 "sha256", bytes_json(sha256, 32));
}

static json_t *inputs_json(const struct measure_report *report)
{
	const struct guest_inputs *inputs = report->inputs;
	json_t *array = json_array();
	uint8_t sha256[32];

	for (int i = 0; i < GUEST_NINPUTS; i++) {
		const struct guest_input *file = &inputs->files[i];

		if (!file->path)
			continue;
		/* These two have been hashed already. */
		if (i == GUEST_INPUT_KERNEL)
			memcpy(sha256, inputs->hashes.kernel, sizeof(sha256));
		else if (i == GUEST_INPUT_INITRD)
			memcpy(sha256, inputs->hashes.initrd, sizeof(sha256));
		else if (!EVP_Digest(file->bytes, file->len, sha256, NULL, EVP_sha256(), NULL))
			break;
		json_array_append_new(array, input_json(file->name, file->path, file->len, sha256));
	}
	if (report->args->kernel)
		json_array_append_new(array, input_json("append", NULL,
							report->args->append ? strlen(report->args->append) + 1 : 1,
							inputs->hashes.cmdline));
	return array;
}

static json_t *ranges_json(const struct measure_report *report)
{
	json_t *array = json_array();

	for (size_t i = 0; i < report->nranges; i++) {
		const struct measure_range *range = &report->ranges[i];

		json_array_append_new(array, json_pack("{s:s, s:o, s:I, s:b, s:o}", "name", range->name, "gpa",
						       number_json(range->gpa), "bytes", (json_int_t)range->len,
						       "contents", range->contents, "digest",
						       bytes_json(range->digest, sizeof(range->digest))));
	}
	return array;
}

json_t *measure_json(const struct measure_report *report, bool ranges)
{
	char text[GMEM_BASE64_TEXT(GMEM_LAUNCH_DIGEST_LEN)];
	json_t *root;

	root = json_pack("{s:s, s:s, s:o, s:o}", "gmem", gmem_version(), "type",
			 report->args->mode == GUEST_TDX ? "tdx" : "snp", "parameters", parameters_json(report),
			 "inputs", inputs_json(report));
	if (ranges && json_object_set_new(root, "ranges", ranges_json(report))) {
		json_decref(root);
		return NULL;
	}
	if (json_object_set_new(root, "digest", bytes_json(report->digest, sizeof(report->digest))) ||
	    json_object_set_new(root, "digest_base64",
				json_string(gmem_base64_text(text, report->digest, sizeof(report->digest))))) {
		json_decref(root);
		return NULL;
	}
	return root;
}

int measure_print_json(const struct measure_report *report, bool ranges)
{
	json_t *root = measure_json(report, ranges);
	char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;

	json_decref(root);
	if (!text)
		return gmem_ui_fail("%s: no memory for the result", report->args->command);
	puts(text);
	free(text);
	return GMEM_UI_OK;
}
