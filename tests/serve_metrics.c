/* SPDX-License-Identifier: MIT */
/* What the page server says of itself, as a text: escaping, histogram, and that each line is as the format has it. */
#include <ctype.h>

#include "link/serve/metrics.h"
#include "tap.h"

static char *label(const char *value)
{
	struct gmem_text t = { 0 };

	gmem_metrics_label(&t, value);
	CHECK(!t.failed);
	return t.s;
}

#define CHECK_LABEL(value, want)          \
	do {                              \
		char *got = label(value); \
		CHECK_STR(got, want);     \
		free(got);                \
	} while (0)

TEST(labels_are_escaped)
{
	CHECK_LABEL("plain", "plain");
	CHECK_LABEL("a\"b\\c\nd", "a\\\"b\\\\c\\nd");
	CHECK_LABEL("\"} 1\nevil 2", "\\\"} 1\\nevil 2");
	CHECK_LABEL("tab\there\x7f\x01", "tab?here??");
	CHECK_LABEL("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7",
		    "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7");
	/* Cut short, overlong, a surrogate, past the end of Unicode, a byte that begins nothing. */
	CHECK_LABEL("x\xc3", "x?");
	CHECK_LABEL("\xc0\xaf", "??");
	CHECK_LABEL("\xe0\x80\xaf", "???");
	CHECK_LABEL("\xed\xa0\x80", "???");
	CHECK_LABEL("\xf4\x90\x80\x80", "????");
	CHECK_LABEL("\xff\xfe", "??");
}

TEST(a_text_grows)
{
	struct gmem_text t = { 0 };
	char *long_one = malloc(100001);

	CHECK(long_one != NULL);
	memset(long_one, 'a', 100000);
	long_one[100000] = 0;
	for (int i = 0; i < 1000; i++)
		gmem_text_add(&t, "%d,", i % 10);
	CHECK_EQ(t.len, 2000);
	gmem_text_add(&t, "%s", long_one);
	CHECK_EQ(t.len, 102000);
	CHECK_EQ(strlen(t.s), 102000);
	CHECK(!memcmp(t.s, "0,1,2,3,", 8) && !strcmp(t.s + 2000, long_one));
	gmem_text_free(&t);
	CHECK(!t.s && !t.len);
	free(long_one);
}

/* name{label="value",...} number, or a comment. */
static bool well_formed(const char *line)
{
	const char *p = line;

	if (!strncmp(line, "# HELP gmem_serve_", 18) || !strncmp(line, "# TYPE gmem_serve_", 18))
		return true;
	while (isalnum((unsigned char)*p) || *p == '_')
		p++;
	if (p == line)
		return false;
	if (*p == '{') {
		do {
			p++;
			while (islower((unsigned char)*p))
				p++;
			if (*p++ != '=' || *p++ != '"')
				return false;
			for (; *p && *p != '"'; p++)
				if (*p == '\\' && !strchr("\\\"n", *++p))
					return false;
			if (*p++ != '"')
				return false;
		} while (*p == ',');
		if (*p++ != '}')
			return false;
	}
	if (*p++ != ' ')
		return false;
	return *p && strspn(p, "0123456789.") == strlen(p);
}

static struct gmem_serve_vm example(const char *id, const char *name)
{
	struct gmem_serve_vm vm = {
		.id = id,
		.name = name,
		.source = "db \"one\"",
		.protocol = "firecracker-1.12",
		.pid = 4711,
		.uid = 1000,
		.state = GMEM_SERVE_FILLING,
		.total_bytes = 1 << 30,
		.present_bytes = 4096 * 300,
		.lost_bytes = 8192,
		.since_s = 1790000000,
	};

	vm.stats = (struct gmem_pager_stats){
		.missing = 77,
		.minor = 3,
		.removes = 5,
		.demand_pages = 90,
		.fill_pages = 90,
		.replay_pages = 120,
		.zero_pages = 11,
		.read_bytes = 1228800,
		.retries = 4,
		.errors = 2,
		.poisoned = 2,
		.gave_up = 1,
		.pending = 6,
		.latency_sum_ns = 3000000123u,
		.latency_max_ns = 2900000000u,
		.latency_count = 79,
	};
	vm.stats.latency[0] = 10;
	vm.stats.latency[3] = 60;
	vm.stats.latency[GMEM_LATENCY_BUCKETS - 1] = 9;
	return vm;
}

TEST(every_line_is_of_the_format)
{
	struct gmem_serve_vm vms[] = { example("1", "web\n1"), example("2", "") };
	struct gmem_serve_view view = {
		.version = "0.1.0",
		.generation = 3,
		.keeper = true,
		.start_s = 1790000001,
		.accepted = 12,
		.waiting = 1,
		.refused = { 1, 2, 3, 4, 5, 6 },
		.served = 2,
		.ended = 1,
		.vms = vms,
		.nvms = 2,
	};
	struct gmem_text t = { 0 };
	char type[128] = "";
	size_t lines = 0;

	gmem_serve_metrics(&t, &view);
	CHECK(!t.failed);
	CHECK_HAS(t.s, "\ngmem_serve_generation 3\n");
	CHECK_HAS(t.s, "\ngmem_serve_restarts_total 2\n");
	CHECK_HAS(t.s, "\ngmem_serve_keeper_up 1\n");
	CHECK_HAS(t.s, "\ngmem_serve_refused_total{reason=\"timeout\"} 4\n");
	CHECK_HAS(t.s, "\ngmem_serve_vm_info{vm=\"1\",name=\"web\\n1\",source=\"db \\\"one\\\"\","
		       "protocol=\"firecracker-1.12\",pid=\"4711\",uid=\"1000\"} 1\n");
	CHECK_HAS(t.s, "\ngmem_serve_vm_state{vm=\"2\",state=\"filling\"} 1\n");
	CHECK_HAS(t.s, "\ngmem_serve_vm_state{vm=\"2\",state=\"complete\"} 0\n");
	CHECK_HAS(t.s, "\ngmem_serve_faults_total{vm=\"1\",kind=\"missing\"} 77\n");
	CHECK_HAS(t.s, "\ngmem_serve_pages_total{vm=\"1\",why=\"replay\"} 120\n");
	CHECK_HAS(t.s, "\ngmem_serve_pages_total{vm=\"1\",why=\"fill\"} 90\n");
	CHECK_HAS(t.s, "\ngmem_serve_poisoned_total{vm=\"1\"} 2\n");
	CHECK_HAS(t.s, "\ngmem_serve_pending_faults{vm=\"1\"} 6\n");
	/* [0, 2) us, then powers of two; cumulative; what is past the last bound only in +Inf. */
	CHECK_HAS(t.s, "_bucket{vm=\"1\",le=\"0.000002\"} 10\n");
	CHECK_HAS(t.s, "_bucket{vm=\"1\",le=\"0.000008\"} 10\n");
	CHECK_HAS(t.s, "_bucket{vm=\"1\",le=\"0.000016\"} 70\n");
	CHECK_HAS(t.s, "_bucket{vm=\"1\",le=\"8.388608\"} 70\n");
	CHECK_HAS(t.s, "_bucket{vm=\"1\",le=\"+Inf\"} 79\n");
	CHECK_HAS(t.s, "_sum{vm=\"1\"} 3.000000123\n");
	CHECK_HAS(t.s, "_count{vm=\"1\"} 79\n");
	for (char *line = strtok(t.s, "\n"); line; line = strtok(NULL, "\n"), lines++) {
		char name[128];

		if (!well_formed(line))
			FAIL("line %zu: %s", lines, line);
		/* A family is one block, behind its TYPE. */
		if (sscanf(line, "# TYPE %127s", name) == 1)
			strcpy(type, name);
		else if (line[0] != '#')
			CHECK(!strncmp(line, type, strlen(type)));
	}
	CHECK(lines > 150);
	gmem_text_free(&t);
}

TEST(without_machines_there_are_no_families_of_theirs)
{
	struct gmem_serve_view view = { .version = "x", .generation = 1 };
	struct gmem_text t = { 0 };

	gmem_serve_metrics(&t, &view);
	CHECK(!t.failed && !strstr(t.s, "gmem_serve_vm_info") && strstr(t.s, "gmem_serve_vms 0\n"));
	CHECK_HAS(t.s, "gmem_serve_restarts_total 0\n");
	gmem_text_free(&t);
}

TEST(every_state_has_a_word)
{
	for (int s = 0; s < GMEM_SERVE_NSTATES; s++)
		CHECK(gmem_serve_state_name((enum gmem_serve_state)s)[0]);
	CHECK_STR(gmem_serve_state_name(GMEM_SERVE_LOST), "lost");
	CHECK_STR(gmem_serve_state_name(GMEM_SERVE_NSTATES), "unknown");
}
