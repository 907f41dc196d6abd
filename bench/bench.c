/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "gmem.h"

double bench_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void bench_die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "FAILED: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (%s%s%s)\n", strerror(errno), *gmem_last_error() ? "; " : "", gmem_last_error());
	_exit(1);
}

/* ---- statistics */

struct stats {
	double min, q1, median, q3, max;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double quantile(const double *sorted, unsigned int n, double q)
{
	double at = q * (n - 1);
	unsigned int i = (unsigned int)at;

	return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

static struct stats stats_of(const double *v, unsigned int n)
{
	double s[BENCH_MAX_ROUNDS];

	if (!n)
		return (struct stats){ 0 };
	memcpy(s, v, n * sizeof(*v));
	qsort(s, n, sizeof(*s), by_value);
	return (struct stats){ s[0], quantile(s, n, 0.25), quantile(s, n, 0.5), quantile(s, n, 0.75), s[n - 1] };
}

/* Round by round. */
static struct stats ratio_of(const struct bench_row *row)
{
	double r[BENCH_MAX_ROUNDS];

	for (unsigned int i = 0; i < row->n; i++)
		r[i] = row->v[i] / row->baseline->v[i];
	return stats_of(r, row->n);
}

/* ---- environment */

static void line_of(const char *path, const char *key, char *buf, size_t len)
{
	FILE *f = fopen(path, "r");
	size_t n = strlen(key);

	snprintf(buf, len, "unknown");
	while (f && fgets(buf, (int)len, f)) {
		if (!strncmp(buf, key, n))
			break;
		snprintf(buf, len, "unknown");
	}
	if (f)
		fclose(f);
	buf[strcspn(buf, "\n")] = 0;
	if (n && strchr(buf, ':'))
		memmove(buf, strchr(buf, ':') + 2, strlen(strchr(buf, ':') + 2) + 1);
}

static json_t *environment(void)
{
	static const struct {
		const char *name, *path, *key;
	} facts[] = {
		{ "cpu", "/proc/cpuinfo", "model name" },
		{ "memory", "/proc/meminfo", "MemTotal" },
		{ "thp", "/sys/kernel/mm/transparent_hugepage/enabled", "" },
		{ "shmem huge pages", "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "" },
		{ "load", "/proc/loadavg", "" },
	};
	json_t *env = json_object();
	struct utsname u;
	char buf[256];

	uname(&u);
	json_object_set_new(env, "kernel", json_sprintf("%s %s %s", u.sysname, u.release, u.machine));
	json_object_set_new(env, "cores", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
	for (size_t i = 0; i < sizeof(facts) / sizeof(facts[0]); i++) {
		line_of(facts[i].path, facts[i].key, buf, sizeof(buf));
		json_object_set_new(env, facts[i].name, json_string(buf));
	}
	json_object_set_new(env, "scheduling",
			    json_string(sched_getscheduler(0) == SCHED_FIFO ? "real-time" : "ordinary"));
	json_object_set_new(env, "gmem", json_string(gmem_version()));
#ifdef GMEM_LOCKCHECK
	json_object_set_new(env, "note", json_string("the lock checker is on: not the speed of a release build"));
#endif
	return env;
}

static void print_environment(json_t *env)
{
	const char *key;
	json_t *v;

	json_object_foreach(env, key, v)
	{
		if (json_is_string(v))
			printf("  %-17s %s\n", key, json_string_value(v));
		else
			printf("  %-17s %lld\n", key, (long long)json_integer_value(v));
	}
}

/* ---- rounds */

void bench_begin(struct bench *b, const char *name, unsigned int mib, int argc, char **argv)
{
	const struct sched_param fifo = { .sched_priority = 10 };
	json_t *env;
	int c;

	*b = (struct bench){ .name = name, .rounds = 9, .mib = mib };
	while ((c = getopt(argc, argv, "fr:m:")) != -1) {
		if (c == 'r')
			b->rounds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'm')
			b->mib = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'f' && !sched_setscheduler(0, SCHED_FIFO, &fifo))
			continue;
		else
			break;
	}
	if (c != -1 || optind + 1 != argc || !b->rounds || b->rounds > BENCH_MAX_ROUNDS || !b->mib) {
		fprintf(stderr, "usage: %s [-f] [-r ROUNDS] [-m MIB] FOLDER\n", argv[0]);
		exit(2);
	}
	b->dir = argv[optind];
	env = environment();
	printf("%s: %u rounds, %u MiB\n", name, b->rounds, b->mib);
	print_environment(env);
	json_decref(env);
	fflush(stdout);
}

struct bench_row *bench_row(struct bench *b, const char *unit, const struct bench_row *baseline, const char *fmt, ...)
{
	struct bench_row *row = &b->rows[b->nrows++];
	va_list ap;

	if (b->nrows > BENCH_MAX_ROWS)
		bench_die("too many rows");
	*row = (struct bench_row){ .unit = unit, .baseline = baseline };
	va_start(ap, fmt);
	vsnprintf(row->name, sizeof(row->name), fmt, ap);
	va_end(ap);
	return row;
}

void bench_add(struct bench_row *row, double v)
{
	row->v[row->n++] = v;
}

static void add_target(struct bench *b, struct bench_target target, const char *fmt, va_list ap)
{
	struct bench_target *t = &b->targets[b->ntargets++];

	if (b->ntargets > BENCH_MAX_TARGETS)
		bench_die("too many targets");
	*t = target;
	vsnprintf(t->what, sizeof(t->what), fmt, ap);
}

void bench_target(struct bench *b, const struct bench_row *row, bool at_least, double limit, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	add_target(b, (struct bench_target){ .row = row, .limit = limit, .at_least = at_least }, fmt, ap);
	va_end(ap);
}

void bench_target_absolute(struct bench *b, const struct bench_row *row, bool at_least, double limit, const char *fmt,
			   ...)
{
	va_list ap;

	va_start(ap, fmt);
	add_target(b, (struct bench_target){ .row = row, .limit = limit, .at_least = at_least, .absolute = true }, fmt,
		   ap);
	va_end(ap);
}

static double measured(const struct bench_target *t)
{
	return (t->absolute ? stats_of(t->row->v, t->row->n) : ratio_of(t->row)).median;
}

static bool met(const struct bench_target *t)
{
	return t->at_least ? measured(t) >= t->limit : measured(t) <= t->limit;
}

/* What stands behind its numbers. */
static const char *target_unit(const struct bench_target *t, char *buf, size_t len)
{
	snprintf(buf, len, "%s%s", t->absolute ? " " : "x", t->absolute ? t->row->unit : "");
	return buf;
}

static json_t *stats_json(struct stats s)
{
	return json_pack("{s:f s:f s:f s:f s:f}", "min", s.min, "q1", s.q1, "median", s.median, "q3", s.q3, "max",
			 s.max);
}

static json_t *row_json(const struct bench_row *row)
{
	json_t *o = stats_json(stats_of(row->v, row->n)), *values = json_array();

	for (unsigned int i = 0; i < row->n; i++)
		json_array_append_new(values, json_real(row->v[i]));
	json_object_set_new(o, "name", json_string(row->name));
	json_object_set_new(o, "unit", json_string(row->unit));
	json_object_set_new(o, "values", values);
	if (row->baseline) {
		json_object_set_new(o, "baseline", json_string(row->baseline->name));
		json_object_set_new(o, "ratio", stats_json(ratio_of(row)));
	}
	return o;
}

/* A name is "GROUP: WHAT", or "WHAT". */
static void print_row(const struct bench_row *row, const struct bench_row *before)
{
	const char *colon = strchr(row->name, ':');
	size_t group = colon ? (size_t)(colon - row->name) : 0;
	struct stats s = stats_of(row->v, row->n);
	char range[64];

	if (group && (!before || strncmp(before->name, row->name, group + 1)))
		printf("  %.*s\n", (int)group, row->name);
	snprintf(range, sizeof(range), "(%.3f..%.3f)", s.min, s.max);
	printf("  %s%-*s %9.3f %-8s %-22s", group ? "  " : "", group ? 44 : 46, group ? colon + 2 : row->name, s.median,
	       row->unit, range);
	if (row->baseline) {
		s = ratio_of(row);
		printf(" %6.3fx (%.3f..%.3f)", s.median, s.q1, s.q3);
	}
	printf("\n");
}

int bench_end(struct bench *b)
{
	json_t *rows = json_array(), *targets = json_array(), *all;
	char path[4096];

	printf("median (min..max), and how many times its baseline, round by round: median (quartiles)\n");
	for (unsigned int i = 0; i < b->nrows; i++) {
		print_row(&b->rows[i], i ? &b->rows[i - 1] : NULL);
		json_array_append_new(rows, row_json(&b->rows[i]));
	}
	for (unsigned int i = 0; i < b->ntargets; i++) {
		const struct bench_target *t = &b->targets[i];
		char unit[32];

		target_unit(t, unit, sizeof(unit));
		printf("  %s: %s %.2f%s: %.3f%s: %s\n", t->what, t->at_least ? "at least" : "at most", t->limit, unit,
		       measured(t), unit, met(t) ? "met" : "missed");
		json_array_append_new(targets, json_pack("{s:s s:s s:f s:f s:s s:b}", "what", t->what, "sense",
							 t->at_least ? "at least" : "at most", "limit", t->limit,
							 "measured", measured(t), "unit", unit, "met", met(t)));
	}
	all = json_pack("{s:s s:i s:i s:o s:o s:o}", "bench", b->name, "rounds", b->rounds, "mib", b->mib,
			"environment", environment(), "rows", rows, "targets", targets);
	snprintf(path, sizeof(path), "%s/%s.json", b->dir, b->name);
	if (!all || json_dump_file(all, path, JSON_INDENT(1)))
		bench_die("writing %s", path);
	json_decref(all);
	printf("\n");
	return 0;
}
