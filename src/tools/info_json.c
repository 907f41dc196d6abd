/* SPDX-License-Identifier: MIT */
#include "tools/info.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>

static json_t *abilities_json(const struct gmem_host *host)
{
	json_t *array = json_array();

	for (size_t i = 0; i < gmem_abilities_count; i++) {
		const char *lacks = gmem_ability_lacks(host, &gmem_abilities[i]);

		json_array_append_new(array, json_pack("{s:s, s:s, s:b, s:s?}", "name", gmem_abilities[i].name, "what",
						       gmem_abilities[i].what, "yes", !lacks, "lacks", lacks));
	}
	return array;
}

static json_t *facts_json(const struct gmem_host *host)
{
	json_t *array = json_array();

	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };

		if (gmem_host_item(host, i, &item))
			continue;
		json_array_append_new(array, json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", item.name, "status",
						       gmem_info_status(item.status), "value", item.value, "what",
						       item.what, "advice", item.advice));
	}
	return array;
}

int gmem_info_print_json(const struct gmem_host *host)
{
	struct utsname uts = { 0 };
	char why[384];
	json_t *root;
	char *text;

	uname(&uts);
	gmem_info_engine_why(host, why, sizeof(why));
	root = json_pack("{s:s, s:{s:s, s:s, s:s}, s:o, s:{s:s, s:s}, s:o}", "gmem", gmem_version(), "system", "name",
			 uts.sysname, "release", uts.release, "machine", uts.machine, "abilities", abilities_json(host),
			 "engine", "auto", gmem_info_engine(), "why", why, "facts", facts_json(host));
	text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
	json_decref(root);
	if (!text)
		return -ENOMEM;
	puts(text);
	free(text);
	return 0;
}
