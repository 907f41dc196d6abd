/* SPDX-License-Identifier: MIT */
/*
 * Mappings of other processes in a gmem_uffd. Each gets a struct gmem_view that is in no list: nothing of this process
 * is there to be marked or zapped, and a conversion to private is refused while such a mapping shows the pages, because
 * the library's look for mappings that are no views finds it (foreign.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/uffd.h"
#include "file/anon.h"
#include "file/protect.h"
#include "sys/uffd.h"

static const char who[] = "gmem_uffd_register_mapping";

static int check(const struct gmem_uffd *uffd, const struct gmem_uffd_mapping *m)
{
	int err = gmem_uffd_check_process(uffd, who);

	if (err)
		return err;
	if (!gmem_opts_valid(m, m->size, sizeof(*m)))
		return gmem_err(-EINVAL, "%s: size %zu: expected %zu", who, m->size, sizeof(*m));
	if (!m->file || m->uffd < 0 || m->pidfd < 0)
		return gmem_err(-EINVAL, "%s: file and uffd are needed; pidfd %d", who, m->pidfd);
	err = gmem_uffd_check_modes(who, m->modes);
	if (!err)
		err = gmem_file_check_range(m->file, who, m->off, m->len);
	if (!err)
		err = gmem_file_check_units(m->file, who, m->off, m->len);
	if (!err && ((m->hva & (m->file->page_size - 1)) || m->hva + m->len < m->hva))
		err = gmem_err(-EINVAL, "%s: hva 0x%llx: not a multiple of the file's pages of %llu, or wraps", who,
			       (unsigned long long)m->hva, (unsigned long long)m->file->page_size);
	if (!err)
		err = gmem_file_check_bytes(m->file, who);
	if (!err && !m->file->ops->can_userfault(m->file, m->off, m->len))
		err = gmem_err(-EINVAL, "%s: this file takes no userfaults", who);
	return err;
}

static int new_view(const struct gmem_uffd_mapping *m, struct gmem_view **ret)
{
	struct gmem_view *view = calloc(1, sizeof(*view));
	int err;

	if (!view)
		return gmem_err_sys(-ENOMEM, "%s", who);
	*view = (struct gmem_view){
		.addr = (void *)(uintptr_t)m->hva,
		.off = m->off,
		.len = m->len,
		.file = m->file,
		.pid = getpid(),
		.use = GMEM_VIEW_SERVED,
		.foreign = true,
		.uffd = fcntl(m->uffd, F_DUPFD_CLOEXEC, 0),
	};
	if (view->uffd < 0 || fcntl(view->uffd, F_SETFL, O_NONBLOCK)) {
		err = gmem_err_sys(-errno, "%s: uffd %d", who, m->uffd);
		if (view->uffd >= 0)
			close(view->uffd);
		free(view);
		return err;
	}
	gmem_file_get(m->file);
	*ret = view;
	return 0;
}

static int do_register(const struct gmem_view *view, uint32_t modes)
{
	int err = gmem_sys_uffd_register(view->uffd, (uint64_t)(uintptr_t)view->addr, view->len,
					 gmem_uffd_kernel_modes(modes));

	if (!err)
		return 0;
	/* What the kernel says to a descriptor that is of another kind. */
	if (err == -ENOTTY || err == -EBADF)
		err = -EINVAL;
	return gmem_err_sys(err, "%s: registering %llu bytes at %p there", who, (unsigned long long)view->len,
			    view->addr);
}

int gmem_uffd_register_mapping(struct gmem_uffd *uffd, const struct gmem_uffd_mapping *mapping, struct gmem_view **ret)
{
	struct gmem_uffd_member *member = NULL;
	struct gmem_supply *supply = NULL;
	struct gmem_view *view = NULL;
	int err = check(uffd, mapping);

	if (!err)
		err = new_view(mapping, &view);
	if (err)
		return err;
	err = gmem_uffd_new_member(uffd, view, mapping->modes, who, &member);
	if (err)
		goto out_view;
	supply = member->supply;
	if (mapping->modes & GMEM_UFFD_MODE_WP)
		err = gmem_view_make_protectable(view);
	if (err) {
		gmem_err_sys(err, "%s", who);
		goto out_member;
	}
	err = do_register(view, mapping->modes);
	if (err)
		goto out_member;
	/* Before anybody can be told of it. */
	view->server = uffd;
	view->unmapping = gmem_uffd_forget_view;
	err = gmem_uffd_enlist(uffd, member, who, mapping->uffd, mapping->pidfd ? mapping->pidfd : -1);
	if (err)
		goto out_member;
	if (supply)
		gmem_file_supply(view->file, supply);
	/* What was read of it before it was known is not told again unless its touchers wake. */
	gmem_sys_uffd_wake(view->uffd, mapping->hva, mapping->len);
	*ret = view;
	return 0;

out_member:
	free(supply);
	free(member);
out_view:
	view->unmapping = NULL;
	gmem_view_unmap(view);
	return err;
}
