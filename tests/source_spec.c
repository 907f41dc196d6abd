/* SPDX-License-Identifier: MIT */
/* A source by a line of text: what each kind opens, and what is said of a line that is wrong. */
#include "tap.h"

#include <sys/stat.h>

#include "image_util.h"
#include "link/source_spec.h"
#include "nbd_util.h"

static void write_file(const char *path, uint64_t npages, uint64_t first, uint64_t n, uint8_t byte)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	uint8_t page[PAGE];

	memset(page, byte, PAGE);
	CHECK(fd >= 0 && ftruncate(fd, (off_t)(npages * PAGE)) == 0);
	for (uint64_t i = first; i < first + n; i++)
		CHECK(pwrite(fd, page, PAGE, (off_t)(i * PAGE)) == PAGE);
	close(fd);
}

__attribute__((format(printf, 1, 2))) static struct gmem_source *open_spec(const char *fmt, ...)
{
	struct gmem_source *s;
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	CHECK_OK(gmem_source_open(text, NULL, &s));
	return s;
}

static void check_byte(struct gmem_source *s, uint64_t page, uint8_t want)
{
	uint8_t got[PAGE];

	CHECK_OK(gmem_source_read(s, page * PAGE, got, PAGE));
	CHECK(got[0] == want && got[PAGE - 1] == want);
}

TEST(raw_files_and_layers)
{
	char *folder = make_folder(), *base = file_in(folder, "a,b"), *diff = file_in(folder, "layer=x");
	struct gmem_source *s;

	write_file(base, 20, 0, 10, 1);
	write_file(diff, 20, 5, 2, 2);
	s = open_spec("raw:%s/a,,b", folder);
	CHECK_EQ(gmem_source_len(s), 20 * PAGE);
	check_byte(s, 5, 1);
	check_byte(s, 15, 0);
	gmem_source_unref(s);
	s = open_spec("raw:%s/a,,b,layer=%s/layer=x", folder, folder);
	CHECK_EQ(gmem_source_len(s), 20 * PAGE);
	check_byte(s, 4, 1);
	check_byte(s, 5, 2);
	check_byte(s, 7, 1);
	gmem_source_unref(s);
	free(base);
	free(diff);
	drop_folder(folder);
}

TEST(a_snapshot_of_cloud_hypervisor)
{
	char *folder = make_folder(), *memory = file_in(folder, "memory-ranges"), spec[256];
	struct gmem_source *s;

	snprintf(spec, sizeof(spec), "ch:%s", folder);
	CHECK_ERR(gmem_source_open(spec, NULL, &s), -ENOENT);
	CHECK_HAS(gmem_last_error(), "/memory-ranges: ");
	write_file(memory, 8, 2, 3, 7);
	s = open_spec("ch:%s", folder);
	CHECK_EQ(gmem_source_len(s), 8 * PAGE);
	check_byte(s, 1, 0);
	check_byte(s, 2, 7);
	gmem_source_unref(s);
	free(memory);
	drop_folder(folder);
}

static void make_image(const char *path, const char *const *names, int n, uint64_t npages)
{
	struct gmem_image_writer_opts opts = writer_opts(GMEM_COMPRESS_NONE, 0);
	struct gmem_image_writer *writer;
	uint8_t page[PAGE];

	CHECK_OK(gmem_image_create(path, &opts, &writer));
	for (int i = 0; i < n; i++) {
		int fd = memfd_create("ram", MFD_CLOEXEC);

		memset(page, 1 + i, PAGE);
		CHECK(ftruncate(fd, (off_t)((npages + (uint64_t)i) * PAGE)) == 0 && pwrite(fd, page, PAGE, 0) == PAGE);
		CHECK_OK(gmem_image_add_region(writer, names[i], UINT64_C(1) << (32 + i), fd, 0,
					       (npages + (uint64_t)i) * PAGE, NULL, NULL));
		close(fd);
	}
	CHECK_OK(gmem_image_commit(writer));
}

TEST(regions_of_an_image)
{
	static const char *const names[] = { "pc.ram", "1", "other" };
	char *folder = make_folder(), *one = file_in(folder, "one"), *three = file_in(folder, "t#ree"), spec[256];
	static const struct {
		const char *region;
		uint8_t byte;
	} cases[] = { { "pc.ram", 1 }, { "0", 1 }, { "1", 2 }, { "other", 3 }, { "2", 3 } };
	static const char *const wrong[] = { "", "3", "ram", "-1", "0x1", "1 ", "99999999999999999999999" };
	struct gmem_source *s;

	make_image(one, names, 1, 5);
	make_image(three, names, 3, 5);
	s = open_spec("image:%s", one);
	CHECK_EQ(gmem_source_len(s), 5 * PAGE);
	check_byte(s, 0, 1);
	gmem_source_unref(s);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		s = open_spec("image:%s#%s", three, cases[i].region);
		CHECK_EQ(gmem_source_len(s), (4 + cases[i].byte) * PAGE);
		check_byte(s, 0, cases[i].byte);
		/* The image is the source's own, and open as long as it is. */
		check_byte(s, 1, 0);
		gmem_source_unref(s);
	}
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		snprintf(spec, sizeof(spec), "image:%s#%s", three, wrong[i]);
		CHECK_ERR(gmem_source_open(spec, NULL, &s), -EINVAL);
	}
	CHECK_HAS(gmem_last_error(), "no region '99999999999999999999999' in it; it has 3");
	snprintf(spec, sizeof(spec), "image:%s", three);
	CHECK_ERR(gmem_source_open(spec, NULL, &s), -ENOENT);
	CHECK(rename(three, one) == 0);
	snprintf(spec, sizeof(spec), "image:%s", one);
	CHECK_ERR(gmem_source_open(spec, NULL, &s), -EINVAL);
	CHECK_HAS(gmem_last_error(), "it has 3 regions: say which");
	free(one);
	free(three);
	drop_folder(folder);
}

TEST(nothing_and_a_server)
{
	struct gmem_nbd_opts opts = { .size = sizeof(opts), .connections = 1000 };
	struct nbd_server server;
	struct gmem_source *s;
	char spec[256];

	s = open_spec("zero:");
	CHECK_EQ(gmem_source_len(s), -1);
	check_byte(s, 1 << 20, 0);
	gmem_source_unref(s);
	need_nbd("nbdkit");
	nbd_folder(&server);
	nbdkit(&server, "data", "data=1 2 3", "size=1M", NULL);
	for (int i = 0; i < 2; i++) {
		s = open_spec("%s%s", i ? "nbd:" : "", server.uri);
		CHECK_EQ(gmem_source_len(s), 1 << 20);
		gmem_source_unref(s);
	}
	CHECK_ERR(gmem_source_open(server.uri, &opts, &s), -EINVAL);
	CHECK_HAS(gmem_last_error(), "1000 connections");
	nbd_end(&server);
	snprintf(spec, sizeof(spec), "nbd:%s", server.uri);
	CHECK_ERR(gmem_source_open(spec, NULL, &s), -ENOENT);
}

TEST(a_wrong_line_is_told_what_is_wrong)
{
	static const struct {
		const char *text;
		int err;
		const char *says;
	} cases[] = {
		{ "", -EINVAL, "none of raw:PATH" },
		{ "/a/path", -EINVAL, "'/a/path': none of raw:PATH" },
		{ "RAW:/a", -EINVAL, "none of raw:PATH" },
		{ "raw", -EINVAL, "none of" },
		{ "raw:", -EINVAL, "no path after raw:" },
		{ "raw:,layer=x", -EINVAL, "no path after raw:" },
		{ "ch:", -EINVAL, "no path after ch:" },
		{ "image:", -EINVAL, "no path after image:" },
		{ "image:#ram", -EINVAL, "no path before the #" },
		{ "image:/a#", -EINVAL, "no region after the #" },
		{ "image:/a,b", -EINVAL, "'b' after the path of image:" },
		{ "ch:/a,layer=b", -EINVAL, "'layer=b' after the path of ch:" },
		{ "raw:/a,layers=b", -EINVAL, "'layers=b' after the path of raw:" },
		{ "raw:/a,layer=", -EINVAL, "layer= without a path" },
		{ "raw:/a,", -EINVAL, "'' after the path of raw:" },
		{ "raw:/a,,,b", -EINVAL, "'b' after the path of raw:" },
		{ "zero:1M", -EINVAL, "'1M' after zero:" },
		{ "nbd:", -EINVAL, "is no NBD URI" },
		{ "nbd:host:10809", -EINVAL, "'host:10809' after nbd: is no NBD URI" },
		{ "nbd:http://x", -EINVAL, "'http://x' after nbd: is no NBD URI" },
		{ "nbd", -EINVAL, "none of" },
		{ "nbdx://y", -EINVAL, "none of" },
		{ "raw:/nonexistent/file", -ENOENT, "source: /nonexistent/file: " },
		{ "raw:/dev/null", -EINVAL, "source: /dev/null: gmem_source_new_fd: " },
		{ "raw:/", -EINVAL, "neither a regular file nor a block device" },
		{ "image:/nonexistent", -ENOENT, "/nonexistent" },
	};
	struct gmem_source *s;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		CHECK_ERR(gmem_source_open(cases[i].text, NULL, &s), cases[i].err);
		if (!strstr(gmem_last_error(), cases[i].says))
			FAIL("'%s': \"%s\" does not say \"%s\"", cases[i].text, gmem_last_error(), cases[i].says);
	}
}

TEST(a_fifo_is_not_waited_for)
{
	char *folder = make_folder(), *fifo = file_in(folder, "fifo"), spec[256];
	struct gmem_source *s;

	CHECK(mkfifo(fifo, 0600) == 0);
	snprintf(spec, sizeof(spec), "raw:%s", fifo);
	CHECK_ERR(gmem_source_open(spec, NULL, &s), -EINVAL);
	free(fifo);
	drop_folder(folder);
}

TEST(so_many_layers)
{
	char *text = malloc(300 * 16), *p = text + sprintf(text, "raw:base");
	struct gmem_source_spec spec;

	for (int i = 0; i < 255; i++)
		p += sprintf(p, ",layer=%d", i);
	CHECK_OK(gmem_source_spec_parse(text, &spec));
	CHECK_EQ(spec.nlayers, 255);
	CHECK_STR(spec.layers[0], "0");
	CHECK_STR(spec.layers[254], "254");
	gmem_source_spec_free(&spec);
	sprintf(p, ",layer=more");
	CHECK_ERR(gmem_source_spec_parse(text, &spec), -EINVAL);
	CHECK_HAS(gmem_last_error(), "more than 255 layers");
	free(text);
}
