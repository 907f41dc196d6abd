/* SPDX-License-Identifier: MIT */
/* The arguments of gmem serve. */
#include <errno.h>
#include <getopt.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cmd.h"
#include "tools/options.h"
#include "tools/serve.h"
#include "tools/ui.h"

static const char help[] =
	"Usage: gmem serve --source NAME=SPEC [OPTION]...\n"
	"       gmem serve status [--state-dir DIR | --metrics PATH]\n"
	"       gmem serve upgrade [--state-dir DIR]\n"
	"\n"
	"Serves the memory of many machines by userfaultfd: Firecracker's, of every version, and programs of gmem's.\n"
	"\n"
	"  --source NAME=SPEC       a memory to serve from: raw:PATH[,layer=PATH]..., ch:DIR, image:PATH[#REGION],\n"
	"                           zero:, nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH\n"
	"  --default NAME           the source of clients that cannot say which; the first one otherwise\n"
	"  --socket PATH            where clients connect (DIR/socket)\n"
	"  --listen PATH=NAME       another socket, whose clients get this source\n"
	"  --state-dir DIR          where machines are written down ($RUNTIME_DIRECTORY, or a folder of this user's)\n"
	"  --metrics PATH           a socket that answers with Prometheus' text (DIR/metrics); none: -\n"
	"  --working-set NAME=FILE  record what machines of a source touch first, and bring that in first\n"
	"  --no-fill                bring in only what is touched (and working sets)\n"
	"  --policy wait|poison|kill  what becomes of faults that wait for too long (wait)\n"
	"  --patience SECONDS       how long is too long (0: for ever)\n"
	"  --user NAME|UID          who may connect, besides root and this user; several times\n"
	"  --max-vms N, --max-vms-per-user N\n"
	"  --max-memory BYTES, --max-memory-per-user BYTES   with K, M, G or T\n"
	"  --handshake SECONDS      how long a client may take to say what it wants (5)\n"
	"  --resolvers N            threads a machine that bring in pages (2)\n"
	"  --take-over              end a server that has the state directory now\n"
	"  --no-keeper              no process of its own that keeps the machines' descriptors\n"
	"  --help                   this text\n";

static int cut(char *arg, const char *option, struct serve_pair *pairs, size_t *n)
{
	char *value = strchr(arg, '=');

	if (!value || value == arg || !value[1])
		return gmem_ui_usage("serve", "--%s %s: two parts with '=' between them are needed", option, arg);
	if (*n == SERVE_MAX)
		return gmem_ui_usage("serve", "--%s: more than %u of them", option, SERVE_MAX);
	*value++ = 0;
	pairs[(*n)++] = (struct serve_pair){ arg, value };
	return 0;
}

static int take_number(const char *text, const char *option, uint64_t max, uint64_t *ret)
{
	return gmem_options_number(text, false, max, ret) ?
		       0 :
		       gmem_ui_usage("serve", "--%s %s: not a number, or too large", option, text);
}

static int take_size(const char *text, const char *option, uint64_t *ret)
{
	static const char units[] = "KMGT";
	char number[32];
	size_t len = strlen(text);
	const char *unit = len ? strchr(units, text[len - 1]) : NULL;
	unsigned int shift = unit ? 10 * (unsigned int)(unit - units + 1) : 0;

	snprintf(number, sizeof(number), "%.*s", (int)(len - (unit ? 1 : 0)), text);
	if (len >= sizeof(number) || !gmem_options_number(number, false, UINT64_MAX >> shift, ret))
		return gmem_ui_usage("serve", "--%s %s: not a size", option, text);
	*ret <<= shift;
	return 0;
}

/* Seconds, of which a fraction may be said, in ms. */
static int take_seconds(const char *text, const char *option, uint32_t *ret)
{
	char *end;
	double s;

	errno = 0;
	s = strtod(text, &end);
	if (errno || end == text || *end || !(s >= 0) || s > 1000000)
		return gmem_ui_usage("serve", "--%s %s: not a number of seconds", option, text);
	*ret = (uint32_t)(s * 1000 + 0.5);
	return 0;
}

static int take_policy(struct serve_args *a, const char *text)
{
	if (!strcmp(text, "wait"))
		a->opts.policy = GMEM_PAGER_WAIT;
	else if (!strcmp(text, "poison"))
		a->opts.policy = GMEM_PAGER_POISON;
	else if (!strcmp(text, "kill"))
		a->opts.policy = GMEM_PAGER_KILL;
	else
		return gmem_ui_usage("serve", "--policy %s: wait, poison or kill", text);
	return 0;
}

static int take_user(struct serve_args *a, const char *text)
{
	const struct passwd *pw = getpwnam(text);
	uint64_t uid = 0;

	if (!pw && !gmem_options_number(text, false, UINT32_MAX - 1, &uid))
		return gmem_ui_usage("serve", "--user %s: no such user", text);
	if (a->opts.nusers == SERVE_MAX)
		return gmem_ui_usage("serve", "--user: more than %u of them", SERVE_MAX);
	a->users[a->opts.nusers++] = pw ? pw->pw_uid : (uid_t)uid;
	return 0;
}

bool serve_default_dir(char *dir, size_t len)
{
	const char *systemd = getenv("RUNTIME_DIRECTORY"), *xdg = getenv("XDG_RUNTIME_DIR");
	int n = -1;

	if (systemd && *systemd && !strchr(systemd, ':'))
		n = snprintf(dir, len, "%s", systemd);
	else if (!geteuid())
		n = snprintf(dir, len, "/run/gmem-serve");
	else if (xdg && *xdg)
		n = snprintf(dir, len, "%s/gmem-serve", xdg);
	return n > 0 && (size_t)n < len;
}

static int take_path(char ret[256], const char *text, const char *option)
{
	if (snprintf(ret, 256, "%s", text) >= 256)
		return gmem_ui_usage("serve", "--%s: a path of more than 255 bytes", option);
	return 0;
}

static int defaults(struct serve_args *a)
{
	if (!*a->state_dir && !serve_default_dir(a->state_dir, sizeof(a->state_dir)))
		return gmem_ui_usage("serve", "--state-dir is needed: there is no $XDG_RUNTIME_DIR");
	if (!a->nsources)
		return gmem_ui_usage("serve", "no --source NAME=SPEC: there is nothing to serve from");
	if ((!*a->socket && snprintf(a->socket, sizeof(a->socket), "%s/socket", a->state_dir) >= 256) ||
	    (!*a->metrics && snprintf(a->metrics, sizeof(a->metrics), "%s/metrics", a->state_dir) >= 256))
		return gmem_ui_usage("serve", "--state-dir: a path of more than 240 bytes");
	a->no_metrics = !strcmp(a->metrics, "-");
	a->opts.size = sizeof(a->opts);
	a->opts.state_dir = a->state_dir;
	a->opts.users = a->users;
	a->opts.event = serve_log_event;
	return 0;
}

static int take_option(struct serve_args *a, int c, uint64_t *number)
{
	switch (c) {
	case 's':
		return cut(optarg, "source", a->sources, &a->nsources);
	case 'd':
		a->default_source = optarg;
		return 0;
	case 'S':
		return take_path(a->socket, optarg, "socket");
	case 'l':
		return cut(optarg, "listen", a->listens, &a->nlistens);
	case 'D':
		return take_path(a->state_dir, optarg, "state-dir");
	case 'm':
		return take_path(a->metrics, optarg, "metrics");
	case 'w':
		return cut(optarg, "working-set", a->worksets, &a->nworksets);
	case 'f':
		a->opts.flags &= ~GMEM_SERVICE_NO_FILL;
		return 0;
	case 'n':
		a->opts.flags |= GMEM_SERVICE_NO_FILL;
		return 0;
	case 'p':
		return take_policy(a, optarg);
	case 'P':
		return take_seconds(optarg, "patience", &a->opts.patience_ms);
	case 'u':
		return take_user(a, optarg);
	case 'v':
	case 'V':
		if (take_number(optarg, c == 'v' ? "max-vms" : "max-vms-per-user", UINT32_MAX, number))
			return GMEM_UI_USAGE;
		*(c == 'v' ? &a->opts.max_vms : &a->opts.max_vms_per_user) = (uint32_t)*number;
		return 0;
	case 'M':
		return take_size(optarg, "max-memory", &a->opts.max_memory);
	case 'U':
		return take_size(optarg, "max-memory-per-user", &a->opts.max_memory_per_user);
	case 'H':
		return take_seconds(optarg, "handshake", &a->opts.handshake_ms);
	case 'r':
		if (take_number(optarg, "resolvers", 64, number))
			return GMEM_UI_USAGE;
		a->opts.resolvers = (unsigned int)*number;
		return 0;
	case 't':
		a->opts.flags |= GMEM_SERVICE_TAKE_OVER;
		return 0;
	case 'k':
		a->no_keeper = true;
		return 0;
	default:
		return GMEM_UI_USAGE;
	}
}

int serve_take_options(struct serve_args *a, int argc, char **argv)
{
	static const struct option options[] = {
		{ "source", required_argument, NULL, 's' },
		{ "default", required_argument, NULL, 'd' },
		{ "socket", required_argument, NULL, 'S' },
		{ "listen", required_argument, NULL, 'l' },
		{ "state-dir", required_argument, NULL, 'D' },
		{ "metrics", required_argument, NULL, 'm' },
		{ "working-set", required_argument, NULL, 'w' },
		{ "fill", no_argument, NULL, 'f' },
		{ "no-fill", no_argument, NULL, 'n' },
		{ "policy", required_argument, NULL, 'p' },
		{ "patience", required_argument, NULL, 'P' },
		{ "user", required_argument, NULL, 'u' },
		{ "max-vms", required_argument, NULL, 'v' },
		{ "max-vms-per-user", required_argument, NULL, 'V' },
		{ "max-memory", required_argument, NULL, 'M' },
		{ "max-memory-per-user", required_argument, NULL, 'U' },
		{ "handshake", required_argument, NULL, 'H' },
		{ "resolvers", required_argument, NULL, 'r' },
		{ "take-over", no_argument, NULL, 't' },
		{ "no-keeper", no_argument, NULL, 'k' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t number;
	int c, code;

	optind = 1;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return -1;
		}
		if (c == '?')
			return gmem_ui_usage("serve", "unknown option or missing value: '%s'", argv[optind - 1]);
		code = take_option(a, c, &number);
		if (code)
			return code;
	}
	if (optind < argc)
		return gmem_ui_usage("serve", "'%s': a word that is no option", argv[optind]);
	return defaults(a);
}
