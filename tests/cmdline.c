/* SPDX-License-Identifier: MIT */
/* QEMU command lines as data. */
#include "tap.h"

#include "link/qemu.h"

#define MIB (1ull << 20)

static struct gmem_cmdline *parse(const char *text)
{
	const char *words[64];
	struct gmem_cmdline *cl;
	char *copy = strdup(text), *save = NULL, *word;
	size_t n = 0;

	for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
		words[n++] = word;
	CHECK_OK(gmem_cmdline_parse(n, words, &cl));
	free(copy);
	return cl;
}

/* The words joined by blanks. */
static void check_line(const struct gmem_cmdline *cl, const char *want)
{
	char **argv = gmem_cmdline_argv(cl), line[2048] = "";

	for (size_t i = 0; argv[i]; i++) {
		if (i)
			strcat(line, " ");
		strcat(line, argv[i]);
	}
	free(argv);
	CHECK_STR(line, want);
}

TEST(a_command_line_comes_out_as_it_went_in)
{
	static const char *const lines[] = {
		"qemu-system-x86_64",
		"qemu-system-x86_64 -S -m 1G disk.img",
		"/usr/bin/qemu-system-x86_64 -name a,debug-threads=on -enable-kvm -cpu host -smp 4 -drive "
		"file=a,,b.img,if=virtio -nographic",
		"qemu -M q35 -machine accel=kvm:tcg -append console=ttyS0 -kernel vmlinuz -serial mon:stdio -no-reboot",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
		struct gmem_cmdline *cl = parse(lines[i]);

		check_line(cl, lines[i]);
		gmem_cmdline_free(cl);
	}
}

TEST(what_is_not_known_is_refused)
{
	static const struct {
		const char *words[4];
		const char *text;
	} cases[] = {
		{ { "qemu", "-frobnicate", "x" }, "unknown option '-frobnicate'" },
		{ { "qemu", "-S", "-m" }, "'-m' lacks its value" },
		{ { "qemu", "--" }, "unknown option '--'" },
		{ { "qemu", "-" }, "unknown option '-'" },
	};
	struct gmem_cmdline *cl;

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		size_t n = 0;

		while (cases[i].words[n])
			n++;
		CHECK_ERR(gmem_cmdline_parse(n, cases[i].words, &cl), -EINVAL);
		CHECK_HAS(gmem_last_error(), cases[i].text);
	}
	CHECK_ERR(gmem_cmdline_parse(0, NULL, &cl), -EINVAL);
}

TEST(names_are_resolved_and_values_may_begin_with_a_dash)
{
	struct gmem_cmdline *cl = parse("qemu --M pc -S -append -x image -M q35");
	long i;

	CHECK_EQ(gmem_cmdline_count(cl), 5);
	i = gmem_cmdline_find(cl, "machine", 0);
	CHECK_EQ(i, 0);
	CHECK_STR(gmem_cmdline_value(cl, 0), "pc");
	CHECK(!gmem_cmdline_value(cl, 1));
	CHECK_STR(gmem_cmdline_value(cl, 2), "-x");
	CHECK_STR(gmem_cmdline_name(cl, 3), "");
	CHECK_EQ(gmem_cmdline_find(cl, "machine", 1), 4);
	CHECK_EQ(gmem_cmdline_find(cl, "m", 0), -1);
	CHECK_OK(gmem_cmdline_set(cl, 4, "none"));
	gmem_cmdline_remove(cl, 1);
	CHECK_OK(gmem_cmdline_append(cl, "incoming", "defer"));
	check_line(cl, "qemu -M pc -append -x image -M none -incoming defer");
	gmem_cmdline_free(cl);
}

TEST(ram_sizes_are_read_as_qemu_does)
{
	static const struct {
		const char *line;
		unsigned long long size;
	} good[] = {
		{ "qemu", 128 * MIB },
		{ "qemu -m 512", 512 * MIB },
		{ "qemu -m 1G", 1024 * MIB },
		{ "qemu -m 1g", 1024 * MIB },
		{ "qemu -m 1.5G", 1536 * MIB },
		{ "qemu -m 0x200", 512 * MIB },
		{ "qemu -m 65536K", 64 * MIB },
		{ "qemu -m 67108864B", 64 * MIB },
		{ "qemu -m size=256", 256 * MIB },
		{ "qemu -m size=256M,slots=2,maxmem=4G", 256 * MIB },
		{ "qemu -m 256,slots=2,maxmem=4G", 256 * MIB },
		{ "qemu -m slots=2,size=1G,maxmem=4G", 1024 * MIB },
		{ "qemu -m slots=2,maxmem=4G", 128 * MIB },
		{ "qemu -m 256 -m 512", 512 * MIB },
		{ "qemu -m 256 -m slots=1,maxmem=1G", 256 * MIB },
		{ "qemu -m 0", 128 * MIB },
		{ "qemu -m 1001K", 1032192 },
		{ "qemu -m 1T", 1ull << 40 },
	};
	static const char *const bad[] = { "qemu -m x",
					   "qemu -m 12Q",
					   "qemu -m 12MB",
					   "qemu -m -5",
					   "qemu -m 99999999999999999999",
					   "qemu -m 17000000T",
					   "qemu -m size=1..5G",
					   "qemu -m 16E -m 18446744073709551615B" };
	struct gmem_cmdline *cl;
	uint64_t size;

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		cl = parse(good[i].line);
		CHECK_OK(gmem_cmdline_ram_size(cl, &size));
		if (size != good[i].size)
			FAIL("%s: %llu", good[i].line, (unsigned long long)size);
		gmem_cmdline_free(cl);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		cl = parse(bad[i]);
		size = 7;
		if (gmem_cmdline_ram_size(cl, &size) >= 0)
			FAIL("%s was taken", bad[i]);
		CHECK_HAS(gmem_last_error(), "-m: ");
		CHECK_EQ(size, 7);
		gmem_cmdline_free(cl);
	}
}

TEST(option_values_keep_commas_and_order)
{
	struct gmem_optstr *o;
	char *text;

	CHECK_OK(gmem_optstr_parse("file=a,,b,,c.img,if=virtio,readonly", NULL, &o));
	CHECK_STR(gmem_optstr_get(o, "file"), "a,b,c.img");
	CHECK(gmem_optstr_bool(o, "readonly", false));
	CHECK(!gmem_optstr_get(o, "id"));
	CHECK_OK(gmem_optstr_set(o, "file", "x,y"));
	CHECK_OK(gmem_optstr_set(o, "format", "qcow2"));
	text = gmem_optstr_format(o);
	CHECK_STR(text, "file=x,,y,if=virtio,readonly,format=qcow2");
	free(text);
	gmem_optstr_free(o);

	CHECK_OK(gmem_optstr_parse("pc,accel=kvm,accel=tcg,usb=off", "type", &o));
	CHECK_STR(gmem_optstr_get(o, "type"), "pc");
	CHECK_STR(gmem_optstr_get(o, "accel"), "tcg");
	CHECK(!gmem_optstr_bool(o, "usb", true));
	CHECK_OK(gmem_optstr_set(o, "accel", "hvf"));
	text = gmem_optstr_format(o);
	CHECK_STR(text, "pc,accel=hvf,usb=off");
	free(text);
	gmem_optstr_unset(o, "type");
	text = gmem_optstr_format(o);
	CHECK_STR(text, "accel=hvf,usb=off");
	free(text);
	gmem_optstr_free(o);
}

TEST(json_is_flattened)
{
	struct gmem_optstr *o;

	CHECK_OK(gmem_optstr_parse(
		"{\"qom-type\":\"memory-backend-memfd\",\"id\":\"m,0\",\"size\":1073741824,\"share\":true,"
		"\"host-nodes\":[0,2],\"x\":{\"y\":\"z\"}}",
		"qom-type", &o));
	CHECK_STR(gmem_optstr_get(o, "qom-type"), "memory-backend-memfd");
	CHECK_STR(gmem_optstr_get(o, "id"), "m,0");
	CHECK_STR(gmem_optstr_get(o, "size"), "1073741824");
	CHECK_STR(gmem_optstr_get(o, "share"), "on");
	CHECK_STR(gmem_optstr_get(o, "host-nodes.1"), "2");
	CHECK_STR(gmem_optstr_get(o, "x.y"), "z");
	CHECK(gmem_optstr_has_prefix(o, "x."));
	gmem_optstr_free(o);
	CHECK_ERR(gmem_optstr_parse("{\"id\":", "qom-type", &o), -EINVAL);
}

TEST(ram_is_given_once)
{
	static const char *const own[] = {
		"qemu -mem-path /dev/shm",
		"qemu -mem-prealloc",
		"qemu -machine pc,memory-backend=q",
		"qemu -M q35 -M memory-backend=q",
		"qemu -numa node,memdev=q",
		"qemu -object memory-backend-file,id=q,size=1M,mem-path=/x",
		"qemu -object {\"qom-type\":\"memory-backend-ram\",\"id\":\"q\",\"size\":4096}",
	};
	struct gmem_cmdline *cl;

	cl = parse("qemu -m 512 -numa node,cpus=0 -object rng-random,id=r");
	CHECK_OK(gmem_cmdline_give_ram(cl, "gmem.ram", 512 * MIB, 9));
	check_line(cl, "qemu -m 512 -numa node,cpus=0 -object rng-random,id=r "
		       "-object memory-backend-file,id=gmem.ram,size=536870912,mem-path=/proc/self/fd/9,share=on "
		       "-machine memory-backend=gmem.ram");
	gmem_cmdline_free(cl);
	for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++) {
		cl = parse(own[i]);
		CHECK_ERR(gmem_cmdline_give_ram(cl, "gmem.ram", MIB, 9), -EBUSY);
		check_line(cl, own[i]);
		gmem_cmdline_free(cl);
	}
}

TEST(backends_are_replaced_in_every_form)
{
	static const char *const forms[] = {
		"memory-backend-memfd,id=m,size=64M,share=on",
		"qom-type=memory-backend-ram,share=on,size=64M,id=m",
		"memory-backend-file,size=67108864,id=m,mem-path=/a,,b,share=on,prealloc=on",
		"{\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\",\"size\":67108864,\"share\":true}",
	};
	struct gmem_cmdline *cl;
	char line[256];

	for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
		snprintf(line, sizeof(line), "qemu -object %s -object rng-builtin,id=mm", forms[i]);
		cl = parse(line);
		CHECK_OK(gmem_cmdline_replace_backend(cl, "m", 64 * MIB, 5, false));
		check_line(cl, "qemu -object memory-backend-file,id=m,size=67108864,mem-path=/proc/self/fd/5,share=on "
			       "-object rng-builtin,id=mm");
		CHECK_OK(gmem_cmdline_replace_backend(cl, "m", 64 * MIB, 6, true));
		CHECK_HAS(gmem_cmdline_value(cl, 0),
			  "/proc/self/fd/6,share=on,x-use-canonical-path-for-ramblock-id=on");
		CHECK_ERR(gmem_cmdline_replace_backend(cl, "n", 64 * MIB, 6, false), -ENOENT);
		gmem_cmdline_free(cl);
	}
}

TEST(drives_are_found_by_their_file)
{
	struct gmem_cmdline *cl =
		parse("qemu -drive if=virtio,file=a,,b -drive file=c -drive format=raw,file=c -drive id=x,if=none");

	CHECK_EQ(gmem_cmdline_drive(cl, "a,b"), 0);
	CHECK_EQ(gmem_cmdline_drive(cl, "a"), -1);
	CHECK_EQ(gmem_cmdline_drive(cl, "c"), -2);
	gmem_cmdline_free(cl);
}

static struct gmem_saved *saved_machine(void)
{
	static const char text[] = "{\"argv\":[\"qemu\",\"-M\",\"pc,memory-backend=m\",\"-object\",\"memory-backend-"
				   "memfd,id=m,size=64M\",\"-incoming\","
				   "\"tcp:x\",\"-chardev\",\"socket,id=gmem.qmp,fd=3\",\"-mon\",\"chardev=gmem.qmp,"
				   "mode=control\"],\"cwd\":\"/\",\"version\":"
				   "{\"major\":7,\"minor\":2,\"micro\":22},\"machine\":\"pc-i440fx-7.2\",\"accel\":"
				   "\"tcg\",\"cpu\":\"\",\"running\":true,"
				   "\"backends\":[{\"id\":\"m\",\"region\":\"m\",\"size\":67108864,\"canonical\":false}"
				   "],\"disks\":[{\"path\":\"/d\",\"how\":"
				   "\"frozen\",\"dev\":1,\"ino\":2,\"size\":3,\"mtime-ns\":1700000000000000001,"
				   "\"drive\":\"d\",\"format\":\"raw\","
				   "\"virtual-size\":4096}],\"saved-by\":\"gmem 0\"}";
	struct gmem_saved *saved;

	CHECK_OK(gmem_saved_parse(text, strlen(text), &saved));
	return saved;
}

TEST(the_saved_line_is_made_to_wait_for_a_stream)
{
	struct gmem_saved *saved = saved_machine();
	struct gmem_cmdline *cl, *other;
	int fd = 8;

	CHECK_OK(gmem_qemu_restore_cmdline(saved, NULL, &fd, 9, &cl));
	check_line(cl,
		   "qemu -M pc,memory-backend=m -object "
		   "memory-backend-file,id=m,size=67108864,mem-path=/proc/self/fd/8,share=on "
		   "-incoming defer -machine type=pc-i440fx-7.2 -chardev socket,id=gmem.qmp,server=on,wait=off,fd=9 "
		   "-mon chardev=gmem.qmp,mode=control");
	gmem_cmdline_free(cl);

	/* An override without RAM of its own is given it; a type that is only the alias is pinned, another one is left
	 * to be refused. */
	other = parse("qemu2 -M pc -m 64");
	CHECK_OK(gmem_qemu_restore_cmdline(saved, other, &fd, 9, &cl));
	check_line(cl,
		   "qemu2 -M pc -m 64 -object memory-backend-file,id=m,size=67108864,mem-path=/proc/self/fd/8,share=on "
		   "-machine memory-backend=m -incoming defer -machine type=pc-i440fx-7.2 "
		   "-chardev socket,id=gmem.qmp,server=on,wait=off,fd=9 -mon chardev=gmem.qmp,mode=control");
	gmem_cmdline_free(cl);
	gmem_cmdline_free(other);
	other = parse("qemu2 -M q35");
	CHECK_OK(gmem_qemu_restore_cmdline(saved, other, &fd, 9, &cl));
	CHECK_STR(gmem_cmdline_value(cl, (size_t)gmem_cmdline_find(cl, "incoming", 0) + 1), "type=q35");
	gmem_cmdline_free(cl);
	gmem_cmdline_free(other);
	gmem_saved_free(saved);
}

TEST(what_is_saved_is_what_is_read)
{
	struct gmem_saved *saved = saved_machine(), *again;
	char *a, *b;

	CHECK_EQ(saved->disks[0].mtime_ns, 1700000000000000001);
	CHECK_EQ(saved->disks[0].how, GMEM_DISK_FROZEN);
	CHECK_OK(gmem_saved_format(saved, &a));
	CHECK_OK(gmem_saved_parse(a, strlen(a), &again));
	CHECK_OK(gmem_saved_format(again, &b));
	CHECK_STR(a, b);
	CHECK_EQ(again->argc, saved->argc);
	/* Cut anywhere, it is refused and nothing is read past the end. */
	for (size_t n = 0; n < strlen(a) - 1; n++) {
		char *cut = memcpy(malloc(n + 1), a, n);
		struct gmem_saved *none;

		CHECK_ERR(gmem_saved_parse(cut, n, &none), -EBADMSG);
		free(cut);
	}
	free(a);
	free(b);
	gmem_saved_free(saved);
	gmem_saved_free(again);
}

TEST(a_damaged_section_names_the_member)
{
	static const struct {
		const char *from, *to, *text;
	} cases[] = {
		{ "\"argv\"", "\"argw\"", "'argv'" },
		{ "\"machine\"", "\"mach_ne\"", "'machine'" },
		{ "\"running\": true", "\"running\": 1234", "'running'" },
		{ "67108864", "67108863", "whole pages" },
		{ "\"frozen\"", "\"frosty\"", "'how'" },
		{ "\"mtime-ns\"", "\"mtime-xx\"", "'mtime-ns'" },
		{ "\"minor\"", "\"minus\"", "'version'" },
	};
	struct gmem_saved *saved = saved_machine(), *none;
	char *text, *at;

	CHECK_OK(gmem_saved_format(saved, &text));
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		char *bad = strdup(text);

		at = strstr(bad, cases[i].from);
		if (!at)
			FAIL("%s is not in %s", cases[i].from, text);
		memcpy(at, cases[i].to, strlen(cases[i].to));
		CHECK_ERR(gmem_saved_parse(bad, strlen(bad), &none), -EBADMSG);
		CHECK_HAS(gmem_last_error(), cases[i].text);
		free(bad);
	}
	free(text);
	gmem_saved_free(saved);
}
