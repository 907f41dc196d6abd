/* SPDX-License-Identifier: MIT */
/* What Firecracker says, and how it goes out. */
#define TAP_NO_MAIN
#include "tap.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <time.h>

#include "fc_client.h"
#include "sys/call.h"
#include "sys/uapi.h"

struct text {
	char *bytes;
	size_t len, room;
};

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *fmt, ...)
{
	va_list args;
	int n;

	for (;;) {
		va_start(args, fmt);
		n = vsnprintf(t->bytes + t->len, t->room - t->len, fmt, args);
		va_end(args);
		CHECK(n >= 0);
		if ((size_t)n < t->room - t->len)
			break;
		t->room = t->room * 2 + (size_t)n + 1;
		t->bytes = realloc(t->bytes, t->room);
		CHECK(t->bytes);
	}
	t->len += (size_t)n;
}

static void put_many(struct text *t, const char *what, size_t n)
{
	for (size_t i = 0; i < n; i++)
		put(t, "%s", what);
}

static void put_size(struct text *t, const struct fc_options *o, uint64_t size)
{
	switch (o->lie) {
	case FC_SIZE_ZERO:
		put(t, ",\"size\":0");
		break;
	case FC_SIZE_UNALIGNED:
		put(t, ",\"size\":%llu", (unsigned long long)size - 1);
		break;
	case FC_NEGATIVE:
		put(t, ",\"size\":-%llu", (unsigned long long)size);
		break;
	case FC_HUGE_NUMBER:
		put(t, ",\"size\":1208925819614629174706176");
		break;
	case FC_FRACTION:
		put(t, ",\"size\":4096.5");
		break;
	case FC_STRING:
		put(t, ",\"size\":\"%llu\"", (unsigned long long)size);
		break;
	case FC_NO_SIZE:
		break;
	case FC_TWICE:
		put(t, ",\"size\":4096");
		__attribute__((fallthrough));
	default:
		put(t, ",\"size\":%llu", (unsigned long long)(o->lie == FC_SIZE_TOO_LARGE ? size * 2 : size));
	}
}

static void put_page_size(struct text *t, const struct fc_options *o, unsigned int number)
{
	uint64_t page_size = o->huge ? FC_HUGE : 4096, kib;

	if (o->lie == FC_PAGE_SIZE_ODD)
		page_size = 12345;
	if (o->lie == FC_PAGE_SIZES_MIXED && number)
		page_size = o->huge ? 4096 : FC_HUGE;
	kib = o->lie == FC_PAGE_SIZES_DISAGREE ? 4 : page_size;
	if (o->version >= FC_1_12)
		put(t, ",\"page_size\":%llu", (unsigned long long)page_size);
	if (o->version == FC_GUEST_MEMFD)
		put(t, ",\"is_guest_memfd\":true");
	if (o->version >= FC_1_7)
		put(t, ",\"page_size_kib\":%llu", (unsigned long long)kib);
}

static void put_region(struct text *t, const struct fc_options *o, unsigned int number, uint64_t hva, uint64_t size,
		       uint64_t off)
{
	if (o->lie == FC_UNALIGNED)
		hva += 8;
	if (o->lie == FC_WRAPS)
		hva = INT64_MAX & ~(FC_HUGE - 1);
	if (o->lie == FC_OFFSET_UNALIGNED)
		off += 512;
	if (o->lie == FC_PAST_SOURCE)
		off += UINT64_C(1) << 40;
	put(t, "%s{\"base_host_virt_addr\":%llu", number ? "," : "", (unsigned long long)hva);
	put_size(t, o, size);
	put(t, ",\"offset\":%llu", (unsigned long long)off);
	/* A hole below 4 GiB, of which the offsets know nothing. */
	if (o->version == FC_GUEST_MEMFD)
		put(t, ",\"gpa_start\":%llu", (unsigned long long)(number ? off + (UINT64_C(768) << 20) : off));
	put_page_size(t, o, number);
	if (o->padding && !number) {
		put(t, ",\"x\":\"");
		put_many(t, "y", o->padding);
		put(t, "\"");
	}
	if (o->lie == FC_NESTED) {
		put(t, ",\"x\":");
		put_many(t, "[", 100000);
		put_many(t, "]", 100000);
	}
	if (o->lie == FC_MANY_VALUES) {
		put(t, ",\"x\":[0");
		put_many(t, ",0", 100000);
		put(t, "]");
	}
	put(t, "}");
}

static void put_regions(struct text *t, const struct fc_options *o, const uint64_t *hvas)
{
	uint64_t off = 0;
	unsigned int n = 0;

	for (; n < FC_MAX_REGIONS && o->sizes[n] && o->lie != FC_NO_REGIONS; n++) {
		put_region(t, o, n, hvas[n], o->sizes[n], off);
		off += o->sizes[n];
	}
	switch (o->lie) {
	case FC_MANY_REGIONS:
		for (; n <= 1024; n++, off += o->sizes[0])
			put_region(t, o, n, UINT64_C(0x100000000000) + off, o->sizes[0], off);
		break;
	case FC_OVERLAP:
		put_region(t, o, n, hvas[0] + o->sizes[0] - (o->huge ? FC_HUGE : 4096), o->sizes[0], off);
		break;
	case FC_OFFSETS_OVERLAP:
		put_region(t, o, n, UINT64_C(0x100000000000), o->sizes[0], 0);
		break;
	case FC_PAGE_SIZES_MIXED:
		put_region(t, o, n, UINT64_C(0x100000000000), FC_HUGE, (off + FC_HUGE - 1) & ~(FC_HUGE - 1));
		break;
	case FC_NOT_MAPPED:
		/* No program has memory so low, and mmap(2) gives none there. */
		put_region(t, o, n, UINT64_C(0x400000), o->huge ? FC_HUGE : 1 << 20, off);
		break;
	default:
		break;
	}
}

char *fc_text(const struct fc_options *o, const uint64_t *hvas, size_t *ret_len)
{
	struct text t = { 0 };

	if (o->lie == FC_GARBAGE) {
		put(&t, "GET / HTTP/1.1\r\n\r\n");
	} else if (o->lie == FC_NOT_OBJECTS) {
		put(&t, "[1,2,3]");
	} else if (o->lie == FC_TOO_LONG) {
		put(&t, "[{\"x\":\"");
		put_many(&t, "0123456789abcdef", 2 << 16);
		put(&t, "\"}]");
	} else {
		put(&t, "[");
		put_regions(&t, o, hvas);
		put(&t, o->lie == FC_BAD_JSON ? "}" : "]");
	}
	*ret_len = t.len;
	return t.bytes;
}

ssize_t fc_send_part(int sock, const void *bytes, size_t len, const int *fds, size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * FC_MAX_FDS)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (nfds) {
		struct cmsghdr *c;

		CHECK(nfds <= FC_MAX_FDS);
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n;
}

static void nap(uint64_t us)
{
	struct timespec ts = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };

	while (us && nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* All of it; descriptors go with the first byte. */
static bool send_all(int sock, const char *bytes, size_t len, const int *fds, size_t nfds)
{
	while (len) {
		ssize_t n = fc_send_part(sock, bytes, len, fds, nfds);

		if (n < 0)
			return false;
		bytes += n;
		len -= (size_t)n;
		nfds = 0;
	}
	return true;
}

bool fc_send(int sock, const struct fc_options *o, const char *text, size_t len, const int *fds, size_t nfds)
{
	size_t piece = o->piece ? o->piece : len;
	size_t i = 0;

	if (o->lie == FC_HALF || o->lie == FC_HALF_SILENT)
		len /= 2;
	for (size_t at = 0; at < len; at += piece, i++) {
		size_t n = len - at < piece ? len - at : piece;
		bool with = i == o->fds_with && !o->again;

		nap(with ? o->late_ms * 1000ull : i ? o->pause_us : 0);
		if (!send_all(sock, text + at, n, fds, with ? nfds : 0))
			return false;
	}
	if (!o->again && i > o->fds_with)
		return true;
	nap(o->late_ms * 1000ull);
	return o->again ? send_all(sock, text, len, fds, nfds) : send_all(sock, " ", 1, fds, nfds);
}

int fc_uffd(uint64_t features, bool nonblocking)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = gmem_sys_userfaultfd(O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0));
	int err;

	if (fd < 0)
		return fd;
	err = gmem_sys_ioctl(fd, UFFDIO_API, &api);
	if (err < 0) {
		close(fd);
		return err;
	}
	return fd;
}
