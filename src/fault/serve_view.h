/* SPDX-License-Identifier: MIT */
/*
 * A view begins to be served: it is registered missing|minor, and from then on its touchers wait for whoever serves it.
 *
 * Enters: a plain view, and the descriptor it is to be registered with. Leaves: a served view, or the same plain one.
 * The view owns a copy of the descriptor, for as long as it lives, or its untouched pages would be zero with its
 * server's end. Caller holds the file's invalidate lock, exclusive.
 */
#ifndef GMEM_FAULT_SERVE_VIEW_H
#define GMEM_FAULT_SERVE_VIEW_H

#include "file/file.h"

struct gmem_serving {
	const char *who; /* for error texts */
	enum gmem_view_use use;
	bool private_events;
	unsigned int modes; /* GMEM_SYS_UFFD_*: what is asked for; 0: missing and minor */
	/*
	 * What the view is to be registered with; -1: a descriptor of its own. One that it has, for its markers, goes
	 * before either: a mapping takes no second. Set to the one that was taken, which is to be read.
	 */
	int uffd;
	bool had_uffd; /* set: it was the view's */
};

/*
 * May the view be served at all? Not one that shows more than the file has, and not one that the program has unmapped a
 * part of: -EINVAL, or the errors of looking. Caller holds the invalidate lock, exclusive.
 */
int gmem_check_servable(const struct gmem_view *view, const char *who);
/*
 * Serves the view. -EINVAL (as gmem_check_servable()), -EBUSY (somebody does already), -EOPNOTSUPP (what is private of
 * it was marked in a way that does not go with that), and the errors of opening and registering.
 */
int gmem_serve_view(struct gmem_view *view, struct gmem_serving *s);
/* Makes it plain again, with markers where it is private. No fault of it may have been read. */
void gmem_unserve_view(struct gmem_view *view, const struct gmem_serving *s);

#endif
