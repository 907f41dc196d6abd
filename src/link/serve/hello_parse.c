/* SPDX-License-Identifier: MIT */
/*
 * What the texts of gmem-serve-protocol(7) say. Fields that are not known are passed over: every release of
 * Firecracker's has added some. What a region is must be said exactly, and can be wrong in many ways.
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "gmem.h"
#include "link/serve/hello_parts.h"

#define PROTOCOL 1 /* of gmem's own attach */

/* Fields of a region that say what kind it is. */
struct said {
	bool page_size, page_size_kib, guest_memfd, no_guest_memfd;
};

static int get_u64(const json_t *object, const char *name, uint64_t *ret)
{
	const json_t *value = json_object_get(object, name);

	if (!value)
		return gmem_err(-EINVAL, "no \"%s\"", name);
	/* They are signed, and a text is refused if one does not fit. No address and no size here is as large. */
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return gmem_err(-EINVAL, "\"%s\" is not a number from 0 on", name);
	*ret = (uint64_t)json_integer_value(value);
	return 0;
}

/* Leaves *ret where the field is not there. */
static int get_u64_if(const json_t *object, const char *name, uint64_t *ret)
{
	return json_object_get(object, name) ? get_u64(object, name, ret) : 0;
}

static int get_name(const json_t *object, const char *name, char ret[GMEM_HELLO_MAX_NAME + 1])
{
	const json_t *value = json_object_get(object, name);
	const char *text = json_string_value(value);

	if (!value)
		return 0;
	if (!text || strlen(text) > GMEM_HELLO_MAX_NAME)
		return gmem_err(-EINVAL, "\"%s\" is not a string of at most %u bytes", name, GMEM_HELLO_MAX_NAME);
	for (const char *p = text; *p; p++)
		if (*p < ' ' || *p > '~')
			return gmem_err(-EINVAL, "\"%s\" is not printable ASCII", name);
	strcpy(ret, text);
	return 0;
}

static int get_page_size(const json_t *object, struct said *said, uint64_t *ret)
{
	uint64_t kib = 0;
	int err;

	*ret = GMEM_PAGE_SIZE;
	said->page_size = json_object_get(object, "page_size");
	said->page_size_kib = json_object_get(object, "page_size_kib");
	err = get_u64_if(object, "page_size", ret);
	if (!err)
		err = get_u64_if(object, "page_size_kib", &kib);
	if (err)
		return err;
	/* Bytes, whatever its name says. */
	if (said->page_size_kib && said->page_size && kib != *ret)
		return gmem_err(-EINVAL, "\"page_size\" is %llu and \"page_size_kib\", which is in bytes too, is %llu",
				(unsigned long long)*ret, (unsigned long long)kib);
	if (said->page_size_kib)
		*ret = kib;
	if (*ret != GMEM_PAGE_SIZE && *ret != GMEM_HELLO_HUGE_PAGE)
		return gmem_err(-EINVAL, "pages of %llu bytes: there are %u and %llu", (unsigned long long)*ret,
				GMEM_PAGE_SIZE, (unsigned long long)GMEM_HELLO_HUGE_PAGE);
	return 0;
}

static int check_range(const char *what, uint64_t start, uint64_t len, uint64_t page_size)
{
	if (start % page_size)
		return gmem_err(-EINVAL, "%s 0x%llx is not a multiple of %llu", what, (unsigned long long)start,
				(unsigned long long)page_size);
	/* Offsets and addresses alike are less than 2^63. */
	if (start > INT64_MAX - len)
		return gmem_err(-EINVAL, "%s 0x%llx and size 0x%llx reach too far", what, (unsigned long long)start,
				(unsigned long long)len);
	return 0;
}

static int parse_attach_fields(const json_t *object, struct gmem_hello_region *r)
{
	uint64_t uffd = 0;
	int err = get_u64(object, "file_offset", &r->file_off);

	if (!err)
		err = get_u64_if(object, "uffd", &uffd);
	if (!err && uffd >= GMEM_HELLO_MAX_UFFDS)
		err = gmem_err(-E2BIG, "\"uffd\" is %llu: at most %u userfault descriptors", (unsigned long long)uffd,
			       GMEM_HELLO_MAX_UFFDS);
	r->uffd = (uint32_t)uffd;
	return err;
}

static int parse_firecracker_fields(const json_t *object, struct gmem_hello_region *r, struct said *said)
{
	const json_t *guest = json_object_get(object, "is_guest_memfd");

	if (guest && !json_is_boolean(guest))
		return gmem_err(-EINVAL, "\"is_guest_memfd\" is neither true nor false");
	said->guest_memfd = json_is_true(guest);
	said->no_guest_memfd = json_is_false(guest);
	r->file_off = r->source_off;
	return get_u64_if(object, "gpa_start", &r->gpa);
}

static int parse_region(const json_t *object, bool attach, struct gmem_hello_region *r, uint64_t *ret_page_size,
			struct said *said)
{
	int err;

	if (!json_is_object(object))
		return gmem_err(-EPROTO, "not a JSON object");
	err = get_u64(object, "base_host_virt_addr", &r->hva);
	if (!err)
		err = get_u64(object, "size", &r->len);
	if (!err)
		err = get_u64(object, "offset", &r->source_off);
	if (!err)
		err = get_page_size(object, said, ret_page_size);
	if (!err)
		err = attach ? parse_attach_fields(object, r) : parse_firecracker_fields(object, r, said);
	if (err)
		return err;
	if (!r->len || r->len % *ret_page_size)
		return gmem_err(-EINVAL, "size 0x%llx is not a multiple of %llu", (unsigned long long)r->len,
				(unsigned long long)*ret_page_size);
	err = check_range("base_host_virt_addr", r->hva, r->len, *ret_page_size);
	if (!err)
		err = check_range("offset", r->source_off, r->len, *ret_page_size);
	if (!err)
		err = check_range("file_offset", r->file_off, r->len, *ret_page_size);
	return err;
}

/* The regions must agree with each other in what kind they are. */
static int agree(struct gmem_hello_message *m, const struct said *said, uint64_t page_size, struct said *all)
{
	if (m->nregions == 0) {
		m->page_size = page_size;
		*all = *said;
	}
	if (m->page_size != page_size)
		return gmem_err(-EINVAL, "pages of %llu bytes, and of %llu before", (unsigned long long)page_size,
				(unsigned long long)m->page_size);
	if (all->guest_memfd != said->guest_memfd)
		return gmem_err(-EINVAL, "some regions are of a guest_memfd and some are not");
	all->page_size |= said->page_size;
	all->page_size_kib |= said->page_size_kib;
	all->no_guest_memfd |= said->no_guest_memfd;
	return 0;
}

static int parse_regions(const json_t *array, struct gmem_hello_message *m, struct said *all)
{
	size_t n = json_array_size(array);

	if (!json_is_array(array) || !n)
		return gmem_err(-EPROTO, "no regions");
	if (n > GMEM_HELLO_MAX_REGIONS)
		return gmem_err(-E2BIG, "%zu regions: at most %u", n, GMEM_HELLO_MAX_REGIONS);
	m->regions = calloc(n, sizeof(*m->regions));
	if (!m->regions)
		return gmem_err_sys(-ENOMEM, "%zu regions", n);
	for (; m->nregions < n; m->nregions++) {
		struct gmem_hello_region *r = &m->regions[m->nregions];
		struct said said = { 0 };
		uint64_t page_size;
		int err = parse_region(json_array_get(array, m->nregions), m->kind == GMEM_HELLO_ATTACH, r, &page_size,
				       &said);

		if (!err)
			err = agree(m, &said, page_size, all);
		if (err)
			return gmem_err_prefix(err, "region %u", m->nregions);
		m->total_len += r->len;
		m->source_end = gmem_max_u64(m->source_end, r->source_off + r->len);
	}
	return 0;
}

enum order { BY_HVA, BY_SOURCE, BY_FILE };

static uint64_t start_of(const struct gmem_hello_region *r, enum order order)
{
	return order == BY_HVA ? r->hva : order == BY_SOURCE ? r->source_off : r->file_off;
}

static int compare(const struct gmem_hello_region *a, const struct gmem_hello_region *b, enum order order)
{
	uint64_t x = start_of(a, order), y = start_of(b, order);

	return x < y ? -1 : x > y;
}

static int by_hva(const void *a, const void *b)
{
	return compare(a, b, BY_HVA);
}

static int by_source(const void *a, const void *b)
{
	return compare(a, b, BY_SOURCE);
}

static int by_file(const void *a, const void *b)
{
	return compare(a, b, BY_FILE);
}

/*
 * `sorted` overlap only where they may: with several mappings of one memory file, each with bytes of its own, whose
 * source has them at one distance from where the file has them.
 */
static int check_overlaps(const struct gmem_hello_message *m, const struct gmem_hello_region *sorted, enum order order)
{
	static const char *const names[] = { "base_host_virt_addr", "offset", "file_offset" };
	const struct gmem_hello_region *last = &sorted[0];

	for (uint32_t i = 1; i < m->nregions; i++) {
		const struct gmem_hello_region *r = &sorted[i];
		uint64_t end = start_of(last, order) + last->len;
		bool alias = m->kind == GMEM_HELLO_ATTACH && order != BY_HVA &&
			     r->source_off - r->file_off == last->source_off - last->file_off;

		if (start_of(r, order) < end && !alias)
			return gmem_err(-EINVAL, "two regions overlap at %s 0x%llx", names[order],
					(unsigned long long)start_of(r, order));
		if (start_of(r, order) + r->len > end)
			last = r;
	}
	return 0;
}

static int check_regions(const struct gmem_hello_message *m)
{
	static int (*const compares[])(const void *, const void *) = { by_hva, by_source, by_file };
	struct gmem_hello_region *sorted = malloc(m->nregions * sizeof(*sorted));
	int err = 0;

	if (!sorted)
		return gmem_err_sys(-ENOMEM, "%u regions", m->nregions);
	memcpy(sorted, m->regions, m->nregions * sizeof(*sorted));
	for (enum order order = BY_HVA; order <= BY_FILE && !err; order++) {
		qsort(sorted, m->nregions, sizeof(*sorted), compares[order]);
		err = check_overlaps(m, sorted, order);
	}
	free(sorted);
	return err;
}

/* Every userfault descriptor up to the last is some region's. */
static int count_uffds(struct gmem_hello_message *m)
{
	bool used[GMEM_HELLO_MAX_UFFDS] = { false };

	for (uint32_t i = 0; i < m->nregions; i++) {
		used[m->regions[i].uffd] = true;
		m->nuffds = (uint32_t)gmem_max_u64(m->nuffds, m->regions[i].uffd + 1);
	}
	for (uint32_t i = 0; i < m->nuffds; i++)
		if (!used[i])
			return gmem_err(-EINVAL, "no region has userfault descriptor %u of %u", i, m->nuffds);
	return 0;
}

static int parse_attach(const json_t *root, struct gmem_hello_message *m)
{
	const json_t *user_mode_only = json_object_get(root, "user_mode_only");
	struct said all;
	uint64_t version;
	int err;

	m->kind = GMEM_HELLO_ATTACH;
	err = get_u64(root, "gmem", &version);
	if (err)
		return err;
	if (version != PROTOCOL)
		return gmem_err(-EPROTO, "version %llu of the protocol: this is gmem with version %d",
				(unsigned long long)version, PROTOCOL);
	if (user_mode_only && !json_is_boolean(user_mode_only))
		return gmem_err(-EINVAL, "\"user_mode_only\" is neither true nor false");
	m->user_mode_only = json_is_true(user_mode_only);
	err = get_name(root, "source", m->source);
	if (!err)
		err = get_name(root, "name", m->name);
	return err ? err : parse_regions(json_object_get(root, "regions"), m, &all);
}

static int parse_firecracker(const json_t *root, struct gmem_hello_message *m)
{
	struct said all;
	int err;

	m->kind = GMEM_HELLO_FIRECRACKER;
	err = parse_regions(root, m, &all);
	if (err)
		return err;
	m->generation = all.page_size	  ? GMEM_HELLO_PAGE_SIZE :
			all.page_size_kib ? GMEM_HELLO_PAGE_SIZE_KIB :
					    GMEM_HELLO_NO_PAGE_SIZE;
	if (all.guest_memfd)
		m->kind = GMEM_HELLO_GUEST_MEMFD;
	m->no_guest_memfd = all.no_guest_memfd;
	return 0;
}

static struct gmem_hello_message *new_message(const char *text, size_t len)
{
	struct gmem_hello_message *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->memory_fd = m->state_fd = m->bitmap_fd = m->pidfd = -1;
	for (uint32_t i = 0; i < GMEM_HELLO_MAX_UFFDS; i++)
		m->uffds[i] = -1;
	m->text = malloc(len);
	if (!m->text) {
		free(m);
		return NULL;
	}
	memcpy(m->text, text, len);
	m->text_len = len;
	return m;
}

int gmem_hello_parse_text(const char *text, size_t len, struct gmem_hello_message **ret)
{
	json_error_t where;
	json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
	struct gmem_hello_message *m;
	int err;

	/* The words that come with it quote the text. */
	if (!root)
		return gmem_err(-EPROTO, "no good JSON at byte %d", where.position);
	m = new_message(text, len);
	if (!m) {
		json_decref(root);
		return gmem_err_sys(-ENOMEM, "text of %zu bytes", len);
	}
	err = json_is_array(root) ? parse_firecracker(root, m) : parse_attach(root, m);
	json_decref(root);
	if (!err)
		err = count_uffds(m);
	if (!err)
		err = check_regions(m);
	if (err) {
		gmem_hello_message_free(m);
		return err;
	}
	*ret = m;
	return 0;
}

int gmem_hello_parse(const char *text, size_t len, const int *fds, size_t nfds, struct gmem_hello_message **ret)
{
	struct gmem_hello_message *m;
	int err = gmem_hello_parse_text(text, len, &m);

	if (err)
		return err;
	err = gmem_hello_give_fds(m, fds, nfds);
	if (err) {
		gmem_hello_message_free(m);
		return err;
	}
	*ret = m;
	return 0;
}
