/* SPDX-License-Identifier: MIT */
#include "tools/info.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "tools/ui.h"

#define WIDTH 96
#define NAME_WIDTH 22
#define TEXT_COLUMN (2 + 6 + 2 + NAME_WIDTH + 2)
#define FEATURE "userfaultfd.feature."

static const struct {
	const char *group, *title;
} titles[] = {
	{ "kvm", "kvm: virtual machines" },
	{ "guest_memfd", "guest_memfd: the kernel's own guest memory" },
	{ "userfaultfd", "userfaultfd: pages brought in when they are touched" },
	{ "markers", "markers: pages whose touch is SIGBUS" },
	{ "hugepages", "hugepages" },
	{ "numa", "numa" },
	{ "process", "process" },
	{ "limits", "limits" },
};

/* Prints words from column `column` on, going on at `column` where a line is full. `at` is where the line is now. */
static void print_wrapped(const char *text, int at, int column)
{
	while (*text) {
		int len = (int)strcspn(text, " ");

		if (at > column && at + 1 + len > WIDTH) {
			printf("\n%*s", column, "");
			at = column;
		} else if (at > column) {
			putchar(' ');
			at++;
		}
		printf("%.*s", len, text);
		at += len;
		text += len + strspn(text + len, " ");
	}
	putchar('\n');
}

static void print_status(const char *word, enum gmem_host_status status, bool color)
{
	const char *on = status == GMEM_HOST_YES ? "\033[32m" : status == GMEM_HOST_DENIED ? "\033[31m" : "\033[33m";

	printf("  %s%-6s%s", color ? on : "", word, color ? "\033[0m" : "");
}

static void print_title(const char *title, bool color)
{
	printf("\n%s%s%s\n", color ? "\033[1m" : "", title, color ? "\033[0m" : "");
}

static void print_fact(const struct gmem_host_item *item, size_t group_len, bool color)
{
	char text[512];

	print_status(gmem_info_status(item->status), item->status, color);
	printf("  %-*s  ", NAME_WIDTH, item->name + group_len + 1);
	if (item->status == GMEM_HOST_YES) {
		print_wrapped(*item->value ? item->value : item->what, TEXT_COLUMN, TEXT_COLUMN);
		return;
	}
	snprintf(text, sizeof(text), "%s%s%s", item->what, *item->value ? ": " : "", item->value);
	print_wrapped(text, TEXT_COLUMN, TEXT_COLUMN);
	printf("%*s-> ", TEXT_COLUMN - 3, "");
	print_wrapped(item->advice, TEXT_COLUMN, TEXT_COLUMN);
}

/* The features that are there are many and need no words: one list for all of them. */
static void print_features(const struct gmem_host *host, bool color)
{
	char text[1024] = "";
	size_t at = 0;

	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };

		if (gmem_host_item(host, i, &item) || strncmp(item.name, FEATURE, strlen(FEATURE)) ||
		    item.status != GMEM_HOST_YES)
			continue;
		if (at < sizeof(text))
			at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s", at ? " " : "",
					       item.name + strlen(FEATURE));
	}
	if (!at)
		return;
	print_status("yes", GMEM_HOST_YES, color);
	printf("  %-*s  ", NAME_WIDTH, "feature.*");
	print_wrapped(text, TEXT_COLUMN, TEXT_COLUMN);
}

static void print_abilities(const struct gmem_host *host, bool color)
{
	print_title("This machine can", color);
	for (size_t i = 0; i < gmem_abilities_count; i++) {
		const char *lacks = gmem_ability_lacks(host, &gmem_abilities[i]);
		struct gmem_host_item item;
		bool known = lacks && gmem_info_fact(host, lacks, &item);
		enum gmem_host_status status = !lacks ? GMEM_HOST_YES : known ? item.status : GMEM_HOST_NO;
		char text[256];

		print_status(gmem_info_status(status), status, color);
		printf("  ");
		snprintf(text, sizeof(text), lacks ? "%s: see %s (%s)" : "%s", gmem_abilities[i].what, lacks,
			 known && *item.value ? item.value : "missing");
		print_wrapped(text, 10, 10);
	}
}

static void print_engine(const struct gmem_host *host)
{
	char why[384], text[448];

	gmem_info_engine_why(host, why, sizeof(why));
	snprintf(text, sizeof(text), "Engine AUTO takes the %s engine %s.", gmem_info_engine(), why);
	putchar('\n');
	print_wrapped(text, 0, 0);
}

void gmem_info_print_text(const struct gmem_host *host)
{
	bool color = gmem_ui_color(stdout), features = false;
	struct utsname uts = { 0 };
	char group[64] = "";

	uname(&uts);
	printf("gmem %s, %s %s, %s\n", gmem_version(), uts.sysname, uts.release, uts.machine);
	print_abilities(host, color);
	print_engine(host);

	for (size_t i = 0; i < gmem_host_count(host); i++) {
		struct gmem_host_item item = { .size = sizeof(item) };
		size_t len;

		if (gmem_host_item(host, i, &item))
			continue;
		len = strcspn(item.name, ".");
		if (strncmp(group, item.name, len) || group[len]) {
			const char *title = NULL;

			snprintf(group, sizeof(group), "%.*s", (int)len, item.name);
			for (size_t t = 0; t < sizeof(titles) / sizeof(titles[0]); t++)
				if (!strcmp(titles[t].group, group))
					title = titles[t].title;
			print_title(title ? title : group, color);
		}
		if (!strncmp(item.name, FEATURE, strlen(FEATURE)) && item.status == GMEM_HOST_YES) {
			if (!features)
				print_features(host, color);
			features = true;
			continue;
		}
		print_fact(&item, len, color);
	}
}
