/* SPDX-License-Identifier: MIT */
#include "tools/guest_inputs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/ui.h"

#define MAX_LEN ((UINT64_C(1) << 32) - 1)
/* Of what has no length: a pipe. */
#define MAX_STREAM ((UINT64_C(1) << 30) - 1)
#define FIRST_STREAM (UINT64_C(1) << 20)
#define LARGE (UINT64_C(64) << 20)
#define HUGE_PAGE (UINT64_C(2) << 20)

static int open_failed(const char *what, const char *path)
{
	switch (errno) {
	case ENOENT:
		return gmem_ui_fail("%s: %s: no such file%s", what, path,
				    strcmp(what, "firmware") ?
					    "" :
					    "; Debian's and Ubuntu's package ovmf has /usr/share/ovmf/OVMF.fd");
	case EACCES:
	case EPERM:
		return gmem_ui_fail("%s: %s: not allowed to be read: run this as somebody who may, or give a copy",
				    what, path);
	default:
		return gmem_ui_fail("%s: %s: %s", what, path, strerror(errno));
	}
}

static int too_large(const char *what, const char *path, uint64_t max)
{
	char text[GMEM_UI_TEXT];

	return gmem_ui_fail("%s: %s: %s or more: is it the right file?", what, path, gmem_ui_size(text, max + 1));
}

/* Of large pages, where there are: most of reading a file would be the page faults of its copy. */
static void *allocate(uint64_t room)
{
	void *buf;

	if (room < HUGE_PAGE)
		return malloc(room);
	if (posix_memalign(&buf, HUGE_PAGE, room))
		return NULL;
	(void)madvise(buf, room & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
	return buf;
}

/* Up to the end of the file, which need not be where it was said to be. */
static int read_fd(int fd, const char *what, const char *path, uint64_t room, uint64_t max, uint8_t **ret,
		   uint64_t *ret_len)
{
	uint8_t *buf = allocate(room), *more;
	uint64_t len = 0;
	ssize_t n;

	while (buf) {
		n = read(fd, buf + len, room - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int code = open_failed(what, path);

			free(buf);
			return code;
		}
		if (!n) {
			*ret = buf;
			*ret_len = len;
			return GMEM_UI_OK;
		}
		len += (uint64_t)n;
		if (len > max) {
			free(buf);
			return too_large(what, path, max);
		}
		if (len < room)
			continue;
		room *= 2;
		more = realloc(buf, room);
		if (!more)
			free(buf);
		buf = more;
	}
	return gmem_ui_fail("%s: %s: no memory for it", what, path);
}

int guest_read_file(const char *what, const char *path, uint64_t max, uint8_t **ret, uint64_t *ret_len)
{
	uint64_t room = FIRST_STREAM;
	struct stat st;
	int fd, code;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return open_failed(what, path);
	if (fstat(fd, &st)) {
		code = open_failed(what, path);
	} else if (S_ISDIR(st.st_mode)) {
		code = gmem_ui_fail("%s: %s: a folder, where a file is wanted", what, path);
	} else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > max) {
		code = too_large(what, path, max);
	} else {
		if (S_ISREG(st.st_mode))
			room = (uint64_t)st.st_size + 1; /* the end is found without asking for more memory */
		else if (max > MAX_STREAM)
			max = MAX_STREAM;
		code = read_fd(fd, what, path, room, max, ret, ret_len);
	}
	close(fd);
	return code;
}

static int no_pages(const char *name, const char *path, uint64_t len)
{
	return gmem_ui_fail("%s: %s: %llu bytes are no whole number of pages of %u: a flash image (.fd) is wanted, as "
			    "the guest is started with",
			    name, path, (unsigned long long)len, GMEM_PAGE_SIZE);
}

/* What takes long to read is looked at before. */
static bool is_no_image(int i, const char *path, uint64_t *ret_len)
{
	struct stat st;

	if ((i != GUEST_INPUT_FIRMWARE && i != GUEST_INPUT_SVSM) || stat(path, &st) || !S_ISREG(st.st_mode))
		return false;
	*ret_len = (uint64_t)st.st_size;
	return *ret_len > LARGE && *ret_len <= MAX_LEN && *ret_len % GMEM_PAGE_SIZE;
}

static int read_input(struct guest_inputs *inputs, int i, const char *name, const char *path)
{
	struct guest_input *file = &inputs->files[i];
	uint64_t len;
	int code;

	file->name = name;
	if (!path)
		return GMEM_UI_OK;
	if (is_no_image(i, path, &len))
		return no_pages(name, path, len);
	code = guest_read_file(name, path, MAX_LEN, &file->bytes, &file->len);
	if (code)
		return code;
	file->path = path;
	return GMEM_UI_OK;
}

/* Flash images, which lie in the guest's memory as they are. */
static int check_image(const struct guest_input *file)
{
	if (!file->path)
		return GMEM_UI_OK;
	if (!file->len)
		return gmem_ui_fail("%s: %s: is empty", file->name, file->path);
	if (file->len >= 4 && !memcmp(file->bytes, "QFI\xfb", 4))
		return gmem_ui_fail("%s: %s: a qcow2 image: qemu-img convert -O raw makes it a plain one", file->name,
				    file->path);
	if (file->len % GMEM_PAGE_SIZE)
		return no_pages(file->name, file->path, file->len);
	return GMEM_UI_OK;
}

static void note_empty(const struct guest_input *file)
{
	if (file->path && !file->len)
		gmem_ui_note("%s: %s is empty, and is measured as that", file->name, file->path);
}

static int hash_kernel(struct guest_inputs *inputs, const struct guest_args *args)
{
	const struct guest_input *kernel = &inputs->files[GUEST_INPUT_KERNEL];
	const struct guest_input *initrd = &inputs->files[GUEST_INPUT_INITRD];

	if (!kernel->path)
		return GMEM_UI_OK;
	note_empty(kernel);
	note_empty(initrd);
	if (gmem_kernel_hashes(kernel->bytes, kernel->len, initrd->bytes, initrd->len, args->append, &inputs->hashes))
		return gmem_ui_fail_last();
	inputs->guest.kernel = &inputs->hashes;
	return GMEM_UI_OK;
}

/* Of the file of variables nothing but its length matters. */
static int read_vars_len(struct guest_inputs *inputs, const struct guest_args *args)
{
	struct stat st;

	inputs->vars_len = args->vars_len;
	if (!args->vars_file)
		return GMEM_UI_OK;
	if (stat(args->vars_file, &st))
		return open_failed("variables", args->vars_file);
	if (!S_ISREG(st.st_mode) || !st.st_size || st.st_size % GMEM_PAGE_SIZE || (uint64_t)st.st_size > MAX_LEN)
		return gmem_ui_fail("variables: %s: a file of whole pages is wanted", args->vars_file);
	inputs->vars_len = (uint64_t)st.st_size;
	return GMEM_UI_OK;
}

int guest_inputs_read(struct guest_inputs *inputs, const struct guest_args *args)
{
	struct guest_input *files = inputs->files;
	int code;

	*inputs = (struct guest_inputs){ .vars_len = 0 };
	code = read_input(inputs, GUEST_INPUT_FIRMWARE, "firmware", args->ovmf);
	code = code ? code : check_image(&files[GUEST_INPUT_FIRMWARE]);
	code = code ? code : read_input(inputs, GUEST_INPUT_SVSM, "svsm", args->svsm);
	code = code ? code : check_image(&files[GUEST_INPUT_SVSM]);
	code = code ? code : read_vars_len(inputs, args);
	code = code ? code : read_input(inputs, GUEST_INPUT_KERNEL, "kernel", args->kernel);
	code = code ? code : read_input(inputs, GUEST_INPUT_INITRD, "initrd", args->kernel ? args->initrd : NULL);
	if (code)
		return code;
	inputs->guest = (struct gmem_guest){
		.size = sizeof(inputs->guest),
		.firmware = files[GUEST_INPUT_FIRMWARE].bytes,
		.firmware_len = files[GUEST_INPUT_FIRMWARE].len,
		.vmm = args->vmm,
		.flags = args->flags,
		.svsm = files[GUEST_INPUT_SVSM].bytes,
		.svsm_len = files[GUEST_INPUT_SVSM].len,
		.vars_len = args->mode == GUEST_SNP_SVSM ? inputs->vars_len : 0,
	};
	if (args->mode == GUEST_TDX)
		return GMEM_UI_OK;
	inputs->guest.nvcpus = args->vcpus;
	inputs->guest.signature = args->signature;
	inputs->guest.sev_features = args->features;
	if (GUEST_GIVEN(args, GUEST_OVMF_HASH))
		inputs->guest.firmware_digest = args->ovmf_hash;
	return hash_kernel(inputs, args);
}

void guest_inputs_free(struct guest_inputs *inputs)
{
	for (int i = 0; i < GUEST_NINPUTS; i++)
		free(inputs->files[i].bytes);
}
