/* SPDX-License-Identifier: MIT */
/*
 * gmem: the memory of a virtual machine.
 *
 * Read these caveats first.
 *
 * - Errors are negative errno values; gmem_last_error() has one line of text about the last one in
 *   this thread. Functions that return an object do so through `T **ret`, set only on success.
 * - Offsets and lengths are bytes, 4 KiB aligned unless a function says otherwise. `off` counts from the
 *   start of a guest memory file, `hva` is an address in the process that maps it.
 * - File descriptors passed in are borrowed and duplicated (close-on-exec); descriptors returned are borrowed
 *   from the object and must not be closed.
 * - The user engine gives the semantics of a guest memory file, not confidentiality from the host.
 * - Threads belong to the caller, but for those that a pager, a server, an image writer, a file opened by
 *   gmem_file_open() and a VM with GMEM_VM_HYPERCALLS start and join. The library writes to no log and installs no
 *   signal handler.
 *
 * SPDX-FileCopyrightText: the gmem authors
 */
#ifndef GMEM_H
#define GMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GMEM_VERSION_MAJOR 0
#define GMEM_VERSION_MINOR 1
#define GMEM_VERSION_PATCH 0

#define GMEM_PAGE_SIZE 4096u

/* "0.1.0". Any thread. */
const char *gmem_version(void);

/*
 * One line about the last failure in this thread, "" if there was none. It begins with the name of what failed.
 * Owned by the thread; the next failing call overwrites it.
 */
const char *gmem_last_error(void);

/*
 * Sets that text and returns `err`, so that `return gmem_set_error(-EBADMSG, "...")` works: for functions the library
 * calls, such as a source's.
 */
int gmem_set_error(int err, const char *fmt, ...)
#ifdef __GNUC__
	__attribute__((format(printf, 2, 3)))
#endif
	;

/*
 * How many lock operations and touches of the caller's memory the lock checker has looked at in this thread; 0 in a
 * build without it. A violation of the lock order prints both stacks and ends the process.
 */
uint64_t gmem_lock_checks(void);

/* ------------------------------------------------------------------------------------------------ host */

/* What this machine offers, probed once by gmem_host_probe() and immutable afterwards. Any thread may read it. */
struct gmem_host;

enum gmem_host_status {
	GMEM_HOST_YES = 1, /* probed and present */
	GMEM_HOST_NO = 2, /* probed and absent */
	GMEM_HOST_DENIED = 3, /* present, but this process may not use it */
};

/* One probed fact. Strings belong to the host object and are never NULL. */
struct gmem_host_item {
	size_t size; /* sizeof(struct gmem_host_item), set by the caller */
	const char *name; /* "userfaultfd.shmem.minor"; the part before the first dot is its group */
	const char *value; /* a number or a word where there is more than yes or no, else "" */
	const char *what; /* one line: what it is for */
	const char *advice; /* what to do about it when it is not GMEM_HOST_YES, else "" */
	enum gmem_host_status status;
};

/*
 * Probes KVM, guest_memfd, userfaultfd, page markers, huge pages and NUMA by using them on scratch objects; nothing is
 * derived from a version number. A feature that is missing is not an error. -ENOMEM, -EMFILE.
 */
int gmem_host_probe(struct gmem_host **ret);
void gmem_host_free(struct gmem_host *host);

/* Number of facts, and the i-th of them in a fixed order; -ERANGE past the end. */
size_t gmem_host_count(const struct gmem_host *host);
int gmem_host_item(const struct gmem_host *host, size_t i, struct gmem_host_item *item);

/* True if the fact of this name is GMEM_HOST_YES; false for a name that does not exist. */
bool gmem_host_has(const struct gmem_host *host, const char *name);

/* ------------------------------------------------------------------------------------------------ file */

/*
 * A guest memory file: pages addressed by byte offset, and the state of each page. All functions may be called from
 * any thread unless they say otherwise.
 */
struct gmem_file;

enum gmem_engine {
	GMEM_ENGINE_AUTO = 0, /* the kernel's, if the running kernel has all that is needed, else the user engine */
	GMEM_ENGINE_USER = 1, /* a memfd and a page-state table in shared memory: has everything */
	GMEM_ENGINE_KERNEL = 2, /* a guest_memfd of KVM's, and the table */
};

/* What a file will be used for. GMEM_ENGINE_AUTO takes the kernel engine if the kernel has all of it. */
#define GMEM_NEED_CONVERSION (1u << 0) /* gmem_file_set_attributes() */
#define GMEM_NEED_USERFAULT (1u << 1) /* pagers and gmem_uffd */
#define GMEM_NEED_NUMA (1u << 2) /* mbind(2) on a view sets the file's memory policy */
#define GMEM_NEED_VCPU (1u << 3) /* vCPUs and launches of this library, which reach private pages */
/* KVM slots with KVM_MEM_GUEST_MEMFD, set by the caller with gmem_file_fd(): the kernel engine alone has this one. */
#define GMEM_NEED_KVM_SLOT (1u << 4)

/*
 * Pages begin private, as those of a kernel guest_memfd that was made without GUEST_MEMFD_FLAG_INIT_SHARED. Such a file
 * takes no userfaults.
 */
#define GMEM_FILE_INIT_PRIVATE (1u << 0)
/*
 * A page gets new memory when it is converted to private, so that references to the old one that the library cannot see
 * (O_DIRECT, io_uring, vmsplice(2)) show nothing written later. Costs two copies a page. Part of a large page that has
 * such a reference cannot be given up: then -EAGAIN, and nothing is converted.
 */
#define GMEM_FILE_STRICT (1u << 1)
/* The host never maps it, as a guest_memfd made without GUEST_MEMFD_FLAG_MMAP: gmem_view_map() is -ENODEV. */
#define GMEM_FILE_NO_MMAP (1u << 2)
/*
 * Huge pages, user engine only; gmem_file(3), "Huge pages", says what that changes. HUGETLB: pages of 2 MiB, reserved
 * at creation for the whole length (a multiple of 2 MiB), so that no touch finds none. Views, conversions and
 * userfaults are by whole pages of 2 MiB then, all else by 4 KiB. Not with THP, nor with STRICT.
 */
#define GMEM_FILE_HUGETLB (1u << 3)
/* Transparent huge pages by advice: MADV_HUGEPAGE on every mapping the library makes. Nothing else changes. */
#define GMEM_FILE_THP (1u << 4)
/* With HUGETLB: small pages with that advice, where the huge ones cannot be had. gmem_file_explain() says so. */
#define GMEM_FILE_HUGE_FALLBACK (1u << 5)

struct gmem_file_opts {
	size_t size; /* sizeof(struct gmem_file_opts) */
	enum gmem_engine engine;
	uint32_t flags; /* GMEM_FILE_* */
	uint32_t needs; /* GMEM_NEED_*; 0: all but GMEM_NEED_KVM_SLOT */
	/* Kernel engine: the KVM VM that the guest_memfd is made of, borrowed; 0: one that nobody else has. */
	int kvm_vm;
	/* Shown in /proc/PID/maps as "memfd:gmem-NAME"; NULL is "ram". At most 64 bytes, no '/'. Borrowed. */
	const char *name;
};

/*
 * Creates a file of `len` bytes (a multiple of 4 KiB, > 0). No memory is allocated until pages are touched. `opts`
 * may be NULL. -EINVAL (length, flags, needs, name), -ENOMEM, -EMFILE, -ENFILE. GMEM_ENGINE_KERNEL also: -EOPNOTSUPP
 * (flags, or something that is needed, that it has not got), -EBADF (kvm_vm), and what /dev/kvm or kvm_vm answers
 * (-ENOENT, -EACCES, -ENOTTY, -EINVAL: no guest_memfd of this kind). GMEM_FILE_HUGETLB also: -ENOMEM (too few huge
 * pages: the text says how many, and what to type), -EOPNOTSUPP (a kernel without huge pages of 2 MiB). Returns an
 * object the caller frees.
 */
int gmem_file_create(uint64_t len, const struct gmem_file_opts *opts, struct gmem_file **ret);

/* USER or KERNEL. Any thread. */
enum gmem_engine gmem_file_engine(const struct gmem_file *file);

/* One line: which engine the file has, and why. Owned by the file. Any thread. */
const char *gmem_file_explain(const struct gmem_file *file);

/*
 * Opens the file another process created, from its two descriptors (gmem_file_fd(), gmem_file_state_fd()). The page
 * states are shared, not copied. The object has a thread, which marks its views when the object that made the memory
 * makes pages private; gmem_file_free() or the last view to go joins it. Waits while a conversion runs. Needs /proc.
 * -EINVAL if the descriptors do not belong together, -EPROTONOSUPPORT for a state table of another layout, -EBUSY if
 * the memory has or had guests, or a conversion of it does not end, -ENOSPC (32 such objects of one memory), -ENOMEM,
 * -EMFILE, -ENOENT (no /proc), -EAGAIN (threads).
 */
int gmem_file_open(int fd, int state_fd, struct gmem_file **ret);

/*
 * The memory of another process that maps it privately (anonymous, or of huge pages), as a guest memory file without
 * bytes of its own: page states alone. A pager brings its pages in, by UFFDIO_COPY into that process
 * (gmem_pager_add_region(); each offset belongs to one region), and what is removed (MADV_DONTNEED) is zero from then
 * on. All that would need the bytes here is -EOPNOTSUPP: views, reading and writing, conversion, slots.
 *
 * `state_fd` is where the page states are kept, so that whoever serves the memory next goes on where this one was
 * killed: a regular file open for reading and writing, best of a tmpfs, empty or left by an earlier call with the same
 * `len` and `page_size`; -1: nowhere. Borrowed and duplicated. The file is locked (flock(2)) as long as the object
 * lives, and its generation raised. `page_size` is 4096 or 2 MiB, `len` a multiple of it. -EINVAL, -EBUSY (somebody
 * serves it: the lock), -EPROTONOSUPPORT (another layout), -ENOMEM, -EMFILE, -ENOSPC.
 */
int gmem_file_create_anon(uint64_t len, uint64_t page_size, int state_fd, struct gmem_file **ret);

/* Frees the object. Memory and state live on while any process holds their descriptors or mappings. NULL is allowed. */
void gmem_file_free(struct gmem_file *file);

uint64_t gmem_file_size(const struct gmem_file *file);
/* 4096; 2 MiB for a file of huge pages: what views, conversions and userfaults are multiples of. Any thread. */
uint64_t gmem_file_page_size(const struct gmem_file *file);
/*
 * The memory: a memfd, or a guest_memfd; borrowed. Once it has been asked for, in whatever process, each conversion to
 * private looks for mappings that are no views: see gmem_file_set_attributes().
 */
int gmem_file_fd(const struct gmem_file *file);
int gmem_file_kvm_vm(const struct gmem_file *file); /* the KVM VM its slots must be of, borrowed; -1: user engine */
int gmem_file_state_fd(const struct gmem_file *file); /* the page-state table; borrowed */

/*
 * What is known of one page. A page written through a mapping of a file that no pager ever served stays ABSENT: its
 * bytes are the memory's own, and `resident` of gmem_file_query() says whether there are any.
 */
enum gmem_page_state {
	GMEM_PAGE_ABSENT = 0, /* unfilled: comes from the source if there is one, else zero */
	GMEM_PAGE_FILLING = 1, /* a server is bringing it in */
	GMEM_PAGE_UPTODATE = 2, /* filled */
	GMEM_PAGE_REMOVED = 3, /* punched: reads as zero, never comes from the source again */
	/*
	 * Its bytes are lost: its source could not give them, or its memory has failed. The library answers -EHWPOISON,
	 * touching it through a view is SIGBUS (one that is served, on kernels before 6.6: it waits). Punching heals.
	 */
	GMEM_PAGE_POISONED = 4,
};

/* State of the page at `off`. Lock-free. -ERANGE past the end. */
int gmem_file_page_state(const struct gmem_file *file, uint64_t off);

struct gmem_file_counts {
	size_t size; /* sizeof(struct gmem_file_counts) */
	uint64_t absent, filling, uptodate, removed, poisoned; /* pages */
	uint64_t resident; /* bytes of memory in use */
};

/* Counts pages by state, over the whole file; concurrent changes may or may not be seen. O(pages touched). */
int gmem_file_query(const struct gmem_file *file, struct gmem_file_counts *counts);

/*
 * Asks whoever serves the file behind a keeper to fill it whole, and says who that is: the pid of the live server, 0
 * if there is none (then nothing absent will come until there is one).
 */
pid_t gmem_file_want_fill(struct gmem_file *file);

/* ---- shared and private */

/* The value of KVM_MEMORY_ATTRIBUTE_PRIVATE. */
#define GMEM_ATTRIBUTE_PRIVATE (UINT64_C(1) << 3)

/*
 * Converts [off, off + len), multiples of gmem_file_page_size(), in place: to private with GMEM_ATTRIBUTE_PRIVATE, else
 * to shared. Bytes are kept. All of it or nothing; pages that are on that side already are left alone, absent ones
 * convert too.
 *
 * A private page can be reached by a guest and by gmem_populate() alone: touching it through a view is SIGBUS, in a
 * system call -EFAULT, gmem_file_read() and gmem_file_write() answer -EACCES; in every process that has the file open.
 * Other mappings of gmem_file_fd(), in this process and in those that this one may look at, make a conversion to
 * private fail. Mappings it cannot look at, or made later, are not known to the library, nor are references the kernel
 * holds: see GMEM_FILE_STRICT.
 *
 * The errors of KVM_SET_MEMORY_ATTRIBUTES2: -EINVAL (attributes, len 0, a range that wraps, is not page-aligned or
 * reaches past the end), -EAGAIN (a page is pinned; GMEM_FILE_STRICT: part of a large page is in use), -ENOMEM,
 * -ENOSPC. Also -EBUSY (to private: the memory is, or once was, behind a keeper, or in a forked child's view; a mapping
 * that is no view shows part of the range; a process that has the file open does not answer for 2 s), -EPERM (the
 * object was opened by gmem_file_open()), -EOPNOTSUPP (a view that cannot be marked; kernel engine: a slot of gmem_vm),
 * -EMFILE, -ENFILE, -EIO (after fork(2)), -ENOTTY (kernel engine: this kernel's guest_memfd does not convert); and what
 * processes that have the file open answer. `ret_error_off`, if not NULL, is set on failures other than -EINVAL: the
 * first page that stood in the way, or where the range begins.
 */
int gmem_file_set_attributes(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			     uint64_t *ret_error_off);

/* The side of the page at `off`, and the bytes from there on that are on the same. Lock-free. -EINVAL, -ERANGE. */
int gmem_file_attributes(const struct gmem_file *file, uint64_t off, uint64_t *ret_attributes, uint64_t *ret_len);

/*
 * Keeps [off, off + len) shared until it is unpinned: for pages that a device or another library is using. Counted,
 * all or nothing. Pins are this object's. -EINVAL, -ERANGE, -EACCES (a private page), -ENOMEM, -EOVERFLOW, -EIO (after
 * fork(2)).
 */
int gmem_file_pin(struct gmem_file *file, uint64_t off, uint64_t len);
int gmem_file_unpin(struct gmem_file *file, uint64_t off, uint64_t len); /* -EINVAL: not pinned */

/*
 * Drops the bytes of [off, off + len): the pages read as zero from then on, also where a source would have supplied
 * them. A page that is being filled is dropped by whoever fills it, before anybody sees it. A poisoned page is a good
 * one from then on, and this object's views show it as zero, and where this object made the file those of all that
 * gmem_file_open() made of it; where it was touched through a view that a keeper's server or a pager with
 * GMEM_PAGER_REMOVE_DISCARDS serves, or another object's, touching it stays SIGBUS. Private pages stay private, and are
 * zero to the guest. Of huge pages a part keeps its memory, and whole ones stay reserved. -EINVAL (alignment, len 0),
 * -ERANGE (past the end), -ENOMEM (huge pages that were given back and could not be reserved again).
 */
int gmem_file_punch(struct gmem_file *file, uint64_t off, uint64_t len);

/*
 * fallocate(2), with its flags and a guest_memfd's answers. FALLOC_FL_KEEP_SIZE gives memory, zeroed, to pages that
 * have none, shared or private; those that have keep their bytes. No page's state changes: an absent page is still
 * brought in. What was given before a failure stays. With FALLOC_FL_PUNCH_HOLE too it is gmem_file_punch(), of the part
 * that is inside the file. -EINVAL (a negative offset, a length not above 0, alignment, memory past the end),
 * -EOPNOTSUPP (any other mode), -EFBIG (the sum overflows), -ENOSPC, -ENOMEM.
 */
int gmem_file_fallocate(struct gmem_file *file, int mode, int64_t off, int64_t len);

/*
 * The memory of [off, off + len) has failed, and the bytes are gone: for who is told so, by SIGBUS with BUS_MCEERR_AO
 * or BUS_MCEERR_AR, say. Shared or private, pinned or not, the pages are poisoned when it returns: the library answers
 * -EHWPOISON for them, to a guest too (gmem_vcpu_exit()), and no conversion changes that; touching one through a view
 * is SIGBUS, in every process that has the file open; no pager fills it. No byte from before is ever read again. A
 * huge page fails as a whole. gmem_file_punch() heals. What the library cannot reach shows zeroes: mappings that are no
 * views, views in forked children, and, of the kernel engine, KVM's guests. It may wait for other processes, as
 * gmem_file_set_attributes().
 *
 * -EINVAL (alignment, len 0), -ERANGE (past the end), -EIO (after fork(2)), -EPERM (an object that gmem_file_open()
 * made). Others say that the pages are poisoned, but that a view could not be marked, and may show zeroes there; the
 * text says which: -EOPNOTSUPP (it is registered with a descriptor of the program's, or a part of it was moved away),
 * -EBUSY (of a process that does not answer), -ENOMEM, -EMFILE, -ENFILE. Call again when that is over.
 */
int gmem_file_poison(struct gmem_file *file, uint64_t off, uint64_t len);

/*
 * Copies bytes out of or into the file, of any alignment. No source is asked: an absent page has the bytes that a view
 * has put there, else zeroes, and is up to date once written, in whole or in part. `buf` may be memory that is itself
 * served by a pager. A page whose memory the kernel finds to have failed is poisoned here, as gmem_file_poison() does,
 * by the object that made the file; to others it is -EHWPOISON and no more.
 * -ERANGE, -EHWPOISON (a poisoned page in the range), -EACCES (a private one), -ENOSPC/-ENOMEM (no
 * memory for new pages), -EIO (a write in a forked child, where pages are private).
 */
int gmem_file_read(struct gmem_file *file, uint64_t off, void *buf, size_t len);
int gmem_file_write(struct gmem_file *file, uint64_t off, const void *buf, size_t len);

/* ------------------------------------------------------------------------------------------------ view */

/* One mapping of a file in this process. A child made by fork() does not inherit it. */
struct gmem_view;

/*
 * Maps [off, off + len) with `prot` (PROT_READ, PROT_WRITE); of huge pages, whole ones (-EINVAL). The answers are those
 * of mmap(2) of the kernel's guest_memfd: more than the file has is mapped, and SIGBUS where it is touched. -EINVAL,
 * -ENOMEM, -EOVERFLOW (no file has such an offset), -ENODEV (GMEM_FILE_NO_MMAP), -EMFILE, -ENFILE (a descriptor of
 * /proc/self/maps, one a file), -EBUSY (in a forked child, of a memory that has or had private pages; and where a child
 * has a view, no page becomes private), -ENOSPC (660 views of an object that gmem_file_open() made). The view keeps the
 * file alive.
 *
 * The program may use munmap(2), mprotect(2), mremap(2) and mmap(2) on a part of the addresses: the library changes
 * nothing there from then on but what still is this part of the file. While a page is mapped at an address that the
 * library does not know, because a part of a view was moved away by mremap(2), it cannot become private: -EOPNOTSUPP.
 * madvise(MADV_DONTNEED) on a private page's address undoes what keeps the host out of it, and copies made by mremap(2)
 * are mappings of the descriptor like any others.
 */
int gmem_view_map(struct gmem_file *file, uint64_t off, uint64_t len, int prot, struct gmem_view **ret);
void gmem_view_unmap(struct gmem_view *view); /* NULL is allowed. No thread may be using the addresses */

/*
 * Makes two views of one: `view` keeps its first `len` bytes, `*ret` is the rest. Nothing is mapped anew, threads may
 * go on using the addresses. Any thread; nobody else may be in a call with this view. -EINVAL (not page-aligned, 0, not
 * less than the view has), -EBUSY (somebody serves the view), -EIO (in a forked child), -EMFILE, -ENOMEM. On failure
 * the view is as it was. The caller unmaps both, in any order.
 */
int gmem_view_split(struct gmem_view *view, uint64_t len, struct gmem_view **ret);

/*
 * Makes the view `new_len` bytes long, and moves it: as mremap(2). It goes on beginning at the same offset of the file.
 * `addr` NULL: it stays where it is if it can, else it goes where there is room (MREMAP_MAYMOVE). Its own address: it
 * stays. Another address: it goes there, in place of whatever is mapped there (MREMAP_FIXED). A view that grows or goes
 * is mapped anew: its first touches are faults, and mlock(2), madvise(2) and mprotect(2) of parts are not carried over.
 * Private pages are out of reach at the new place before anybody can touch it. No thread may be using addresses that
 * go. Any thread; nobody else may be in a call with this view. -EINVAL (not page-aligned, 0, wraps, `addr` overlaps the
 * view), -ENOMEM (also: no room to stay), -EFAULT (it is to grow or to go, and the program has unmapped a part of it,
 * or mapped something over it), -EBUSY (somebody serves the view), -EIO (in a forked child), and those of
 * gmem_view_map(). On failure the view is as it was; what was mapped at `addr` may be gone.
 */
int gmem_view_remap(struct gmem_view *view, uint64_t new_len, void *addr);
void *gmem_view_addr(const struct gmem_view *view);
uint64_t gmem_view_len(const struct gmem_view *view);

/* ------------------------------------------------------------------------------------------------ uffd */

/*
 * Userfaults, resolved by the caller in a loop of its own, under the rules of the file: the kernel's userfaultfd(2) on
 * a guest memory file, with a page's shared or private side looked at. They are those of views, of mappings of other
 * processes, and exits of guests. A view's raw userfault descriptor stays inside the library. All functions may be
 * called from any thread at once, but for gmem_uffd_free(); in a forked child all but that answer -EIO. `off` counts
 * from the start of the file.
 */
struct gmem_uffd;

/*
 * Touching a private page is an event with GMEM_UFFD_FAULT_PRIVATE, and its toucher waits, instead of SIGBUS.
 * Resolving is refused until the page has been converted to shared. Of views with GMEM_UFFD_MODE_MISSING; of mappings
 * of other processes, and where the kernel's own guest_memfd takes userfaults, it is so without this flag.
 */
#define GMEM_UFFD_PRIVATE_EVENTS (1u << 0)

struct gmem_uffd_opts {
	size_t size; /* sizeof(struct gmem_uffd_opts) */
	uint32_t flags; /* GMEM_UFFD_* */
};

/* `opts` may be NULL. Returns an object the caller frees. -EINVAL (size, flags), -ENOMEM, -EMFILE, -ENFILE. */
int gmem_uffd_create(const struct gmem_uffd_opts *opts, struct gmem_uffd **ret);

/*
 * Nobody may be in another call, nor unmap one of its views meanwhile. Touchers of pages that are not in place wait
 * from then on: a view stays registered until it is unmapped, and cannot be given to another. NULL is allowed.
 */
void gmem_uffd_free(struct gmem_uffd *uffd);

/*
 * A descriptor that is readable while there may be events: for poll(2) and epoll(7) and nothing else. Borrowed. Any
 * number of views, one descriptor.
 */
int gmem_uffd_fd(const struct gmem_uffd *uffd);

/*
 * A page that is not in place is touched. Includes MINOR: a page is filled through the file, and nobody may see one
 * that is filled in part. Guests that meet such a page wait too.
 */
#define GMEM_UFFD_MODE_MISSING (1u << 0)
#define GMEM_UFFD_MODE_MINOR (1u << 1) /* a page that is in place, and not mapped, is touched */
#define GMEM_UFFD_MODE_WP (1u << 2) /* gmem_uffd_writeprotect() may be used */
/*
 * The program's MADV_DONTNEED and MADV_REMOVE there are events, and wait until theirs has been read; every operation
 * on the view is -EAGAIN meanwhile. What is private of the file, then or later, excludes it (-EOPNOTSUPP here, and from
 * gmem_file_set_attributes()).
 */
#define GMEM_UFFD_MODE_REMOVE (1u << 3)

/*
 * Registers a view: from now on what `modes`, GMEM_UFFD_MODE_*, say is an event. Before the first touch, or pages that
 * were touched raise none. The view is borrowed until it is unmapped, which may be before gmem_uffd_free(): no event of
 * it is told after that. -EINVAL (the modes; the file's pages began private, or it is a guest_memfd that takes no
 * userfaults; the view reaches past the end of the file, or a part of it was unmapped by the program), -EBUSY (served
 * already), -EPERM, -ENOSYS, -EOPNOTSUPP (no userfaultfd with page markers, or without this mode; or the view has had
 * private pages, marked without it), -EMFILE, -ENFILE, -ENOMEM, -ENOSPC (epoll). On failure the view is as it was.
 */
int gmem_uffd_register(struct gmem_uffd *uffd, struct gmem_view *view, uint32_t modes);

/* So too, with GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_MINOR. */
int gmem_uffd_add_view(struct gmem_uffd *uffd, struct gmem_view *view);

/* Memory of another process, which maps [off, off + len) of `file` at `hva` there. */
struct gmem_uffd_mapping {
	size_t size; /* sizeof(struct gmem_uffd_mapping) */
	struct gmem_file *file; /* referenced */
	/*
	 * That process's userfault descriptor; UFFDIO_API done with the features of `modes`, read by nobody else from
	 * now on. Borrowed and duplicated, made non-blocking. Mappings of one descriptor may be known by its number:
	 * keep it open while you register them.
	 */
	int uffd;
	int pidfd; /* of that process, whose end is then an event; borrowed and duplicated; 0: none */
	uint64_t hva;
	uint64_t off, len; /* in the file */
	uint32_t modes; /* GMEM_UFFD_MODE_*, REMOVE alone excepted: that is what the descriptor was asked for */
};

/*
 * Registers a mapping of another process, there, and wakes who waits in it. Nobody has touched it before, or those
 * pages raise no faults. `*ret` stands for it in events and operations, and is of no other use: gmem_view_addr() is
 * its address there, and gmem_view_unmap() frees it and unmaps nothing; what is not resolved by then waits for whoever
 * comes next with the descriptor. If the process has ended operations are -ESRCH; what it has unmapped is -ENOENT.
 * -EINVAL (size, modes, alignment, not a userfault descriptor, no such memory, or not of these modes), -ERANGE (past
 * the file's end), -EEXIST (overlaps a mapping of the same descriptor), -EBUSY (another descriptor has it), -EOPNOTSUPP
 * (a file of gmem_file_create_anon(): a pager serves those), -ENOMEM (also: the process has ended), -EMFILE, -ENFILE,
 * -ENOSPC (epoll).
 */
int gmem_uffd_register_mapping(struct gmem_uffd *uffd, const struct gmem_uffd_mapping *mapping,
			       struct gmem_view **ret);

/*
 * True if a view was registered with a user-mode-only descriptor: a system call that meets a page which is not mapped
 * fails with -EFAULT and raises no event.
 */
bool gmem_uffd_user_mode_only(const struct gmem_uffd *uffd);

enum gmem_uffd_event_kind {
	GMEM_UFFD_EVENT_FAULT = 1, /* a thread touched a page, and waits: copy, zeropage, continue or poison */
	GMEM_UFFD_EVENT_WP = 2, /* a thread writes to a protected page, and waits: gmem_uffd_writeprotect() */
	/*
	 * The program gives memory back: MADV_DONTNEED, which keeps the bytes of shared memory, or MADV_REMOVE, which
	 * drops them. Comes before it is done. To take it for a balloon's, gmem_file_punch().
	 */
	GMEM_UFFD_EVENT_REMOVE = 3,
	/* Of other processes' mappings alone, whose descriptor was asked for it: unmapped; moved to `u.remap.hva`. */
	GMEM_UFFD_EVENT_UNMAP = 4,
	GMEM_UFFD_EVENT_REMAP = 5,
	/* So too: the process has forked, and `u.fork.fd`, the caller's, is the child's descriptor. */
	GMEM_UFFD_EVENT_FORK = 6,
	GMEM_UFFD_EVENT_GONE = 7, /* the process whose mapping it is has ended; told once */
	/*
	 * A vCPU has come out at a page, and waits (gmem_vcpu_hand_exit(), gmem_uffd_exit()). With `u.exit.flags`
	 * GMEM_EXIT_FLAG_USERFAULT the page is to be filled, by any means, then its bit cleared; else it is to be
	 * converted to the side that GMEM_EXIT_FLAG_PRIVATE names. Then, or if nothing is to be done, gmem_uffd_wake().
	 */
	GMEM_UFFD_EVENT_EXIT = 8,
};

#define GMEM_UFFD_FAULT_MINOR (1u << 0) /* in place, or known to be zero: gmem_uffd_continue(); else gmem_uffd_copy() */
#define GMEM_UFFD_FAULT_WRITE (1u << 1)
#define GMEM_UFFD_FAULT_PRIVATE (1u << 2) /* the page is; with GMEM_UFFD_PRIVATE_EVENTS alone, see there */
#define GMEM_UFFD_FAULT_GUEST (1u << 3) /* through no view: gmem_vcpu_load() and its like. Resolved as the others */

struct gmem_uffd_event {
	enum gmem_uffd_event_kind kind;
	uint32_t flags; /* GMEM_UFFD_FAULT_*; what was true when the event was read, and may not be any more */
	struct gmem_view *view;
	uint64_t off, len; /* of the page or pages, in the file */
	union {
		struct {
			uint64_t hva; /* where `off` is now, in its process */
		} remap;
		struct {
			int fd;
		} fork;
		struct {
			uint64_t gpa;
			uint64_t flags; /* GMEM_EXIT_FLAG_PRIVATE, GMEM_EXIT_FLAG_USERFAULT */
		} exit;
	} u; /* by `kind` */
};

/*
 * Reads up to `n` events. Never waits, not for a file's lock either. Returns how many, 0 if there is none (also after
 * the descriptor was readable). Faults of one view come in the order of the touches; what the program has done to its
 * mapping comes before faults that were read with it. An event that was read is not told again: its page is to be
 * resolved, or its touchers woken. -EIO.
 */
int gmem_uffd_read(struct gmem_uffd *uffd, struct gmem_uffd_event *events, unsigned int n);

/*
 * UFFDIO_COPY: brings in the absent pages [off, off + len), multiples of gmem_file_page_size() as in all that follow,
 * with the bytes at `src`, of any alignment, maps them, and lets their touchers go on. Protected pages are mapped
 * protected. The source is read with no lock held, and may be memory that is itself served, by another thread. Returns
 * the bytes done, up to the first page that could not be, or, if that is the first: -EEXIST (the page is in place:
 * gmem_uffd_continue()), -EACCES (it is private; it was not touched), -EHWPOISON, -EFAULT (the source is not there, or
 * private), -ENOSPC, -ENOMEM (no memory for it), -EAGAIN (the address space is changing: read events, then again; the
 * page may be in place), -ENOENT (the view's memory was unmapped or mapped over), -ESRCH (its process has ended).
 * -EINVAL (alignment, len 0, a source that wraps, another object's view), -ERANGE (outside the view). With -EEXIST,
 * -EACCES and -EHWPOISON the page's touchers are woken and meet what is there: an event of the page that it is now, or
 * SIGBUS.
 */
int64_t gmem_uffd_copy(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, const void *src, uint64_t len);

/*
 * UFFDIO_CONTINUE: maps the pages [off, off + len), which are in place: brought in, put there through another
 * mapping, or known to be zero (GMEM_PAGE_REMOVED; they get memory here). As gmem_uffd_copy(), but -EFAULT: the page
 * is not in place; -EEXIST: it is mapped already.
 */
int64_t gmem_uffd_continue(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len);

/*
 * UFFDIO_ZEROPAGE: the absent pages [off, off + len) are zero from now on (GMEM_PAGE_REMOVED), and mapped. As
 * gmem_uffd_copy(); huge pages too, which the kernel's does not take.
 */
int64_t gmem_uffd_zeropage(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len);

/*
 * UFFDIO_POISON: the bytes of the absent pages [off, off + len) will never come. In the file (GMEM_PAGE_POISONED), for
 * whoever has it: touching one is SIGBUS in this view and the others of this process, -EHWPOISON to guests, until it is
 * punched. As gmem_uffd_copy(); -EEXIST: the page is in place (gmem_file_poison() is for those), or poisoned and marked
 * here already. Of a huge page what is absent.
 */
int64_t gmem_uffd_poison(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len);

/*
 * UFFDIO_WRITEPROTECT: a write to one of the pages [off, off + len) is an event, GMEM_UFFD_EVENT_WP, and waits;
 * or, `protect` false, none any more, and those that wait go on. Whether a page is mapped or in place makes no
 * difference, and it stays protected when it is brought in, mapped, punched, zapped, or converted and converted back:
 * only, between its conversion to shared and the next touch, in a view without MINOR, a write may go untold. Writes of
 * guests, of system calls on the file and through other mappings are not told. Returns the bytes done, up to the first
 * page that could not be, or, if that is the first: -EACCES (it is private), -EAGAIN, -ENOENT, -ESRCH as
 * gmem_uffd_copy(); -EINVAL (also: a view registered without GMEM_UFFD_MODE_WP), -ERANGE, -ENOMEM.
 */
int64_t gmem_uffd_writeprotect(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len,
			       bool protect);

/*
 * UFFDIO_WAKE: touchers that wait at [off, off + len) try again, and raise new events; exits of guests there are
 * answered. -EINVAL, -ERANGE.
 */
int gmem_uffd_wake(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len);

/* An exit of a vCPU that is not this library's. */
struct gmem_uffd_exit {
	size_t size; /* sizeof(struct gmem_uffd_exit) */
	struct gmem_file *file; /* borrowed */
	uint64_t off, len; /* of the pages, in the file: what the slot says of `gpa` */
	uint64_t gpa, flags; /* kvm_run->memory_fault.gpa and .flags; others than GMEM_EXIT_FLAG_* are passed on */
	/* Asked now and then, from the thread that waits, with no lock held but leaves: true ends it. NULL: never. */
	bool (*cancelled)(void *opaque);
	void *opaque;
};

/*
 * Tells the exit as GMEM_UFFD_EVENT_EXIT, and waits until gmem_uffd_wake() has been called for its page: 0, and the
 * vCPU is to be run again. -EINTR: cancelled; -ENOENT: no view of the page is registered here; -EIO: it was unmapped
 * meanwhile, or after fork(2). -EINVAL (size, alignment, len 0), -ERANGE. Not from a thread that reads this object.
 */
int gmem_uffd_exit(struct gmem_uffd *uffd, const struct gmem_uffd_exit *exit);

/* -------------------------------------------------------------------------------------------- progress */

/* Called by long operations, now and then, from the thread that called them: `done` of `total` bytes. Return 0 to
 * go on, a negative errno to stop: the operation then fails with it. */
typedef int (*gmem_progress_fn)(void *opaque, uint64_t done, uint64_t total);

/* -------------------------------------------------------------------------------------------------- vm */

/*
 * One machine: memslots that say which pages or memory its guest-physical addresses are, and vCPUs. All functions
 * may be called from any thread unless they say otherwise. A VM belongs to the process that made it.
 */
struct gmem_vm;

/* KVM's numbers (KVM_X86_*_VM). They say how a guest's access names the side it wants. */
enum gmem_vm_type {
	GMEM_VM_DEFAULT = 0, /* there is no private memory: touching a private page is a memory fault */
	GMEM_VM_SW_PROTECTED = 1, /* the page's side decides; the guest has no say */
	GMEM_VM_SNP = 4, /* gmem_vm_alias_bit() set in an address means private (the C-bit) */
	GMEM_VM_TDX = 5, /* set, it means shared */
};

struct gmem_vm_opts {
	size_t size; /* sizeof(struct gmem_vm_opts) */
	enum gmem_vm_type type;
	uint32_t flags; /* GMEM_VM_* */
	/*
	 * With GMEM_VM_KVM: the KVM VM, of the default type, whose memslots this object sets, so that nobody else may
	 * set the same; borrowed. 0: one that this object makes.
	 */
	int kvm_vm;
};

/* It runs guests on KVM, besides accessors. Types DEFAULT and SW_PROTECTED. */
#define GMEM_VM_KVM (1u << 0)
/*
 * With GMEM_VM_KVM: a guest's KVM_HC_MAP_GPA_RANGE is an exit (KVM_CAP_EXIT_HYPERCALL). On hosts whose KVM never makes
 * that exit the VM has a thread, which looks every few milliseconds what guests are at; there the instruction has to be
 * in memory of this object's slots.
 */
#define GMEM_VM_HYPERCALLS (1u << 1)

/*
 * `opts` NULL: GMEM_VM_SW_PROTECTED. -EINVAL, -ENOMEM. GMEM_VM_KVM also: -EOPNOTSUPP (the type;
 * GMEM_VM_HYPERCALLS: a KVM without), -EBADF (kvm_vm), -EAGAIN (a thread), and what /dev/kvm answers (-ENOENT, -EACCES,
 * -ENODEV, -EMFILE).
 */
int gmem_vm_create(const struct gmem_vm_opts *opts, struct gmem_vm **ret);

/*
 * The VM is dead from now on: its slots are deleted, its vCPUs' calls fail with -EIO or find no slot. Returns when no
 * access to a slot's `hva` goes on, however long that one waits for its memory. The memory of the object goes with the
 * last vCPU and launch. NULL is allowed.
 */
void gmem_vm_free(struct gmem_vm *vm);

/* The bit of a guest-physical address that names the side, 0 if the type has none. */
uint64_t gmem_vm_alias_bit(const struct gmem_vm *vm);

/* The KVM VM, borrowed; -1: none. */
int gmem_vm_kvm_fd(const struct gmem_vm *vm);

struct gmem_vm_stats {
	size_t size; /* sizeof(struct gmem_vm_stats) */
	uint64_t populated; /* pages that gmem_populate() made up to date */
	uint64_t sources; /* source pages it brought in, all of them with no lock of a file held */
	uint64_t private_maps; /* frames mapped by gmem_mmu_map_private_pfn() */
	uint64_t faults; /* guests' accesses that found no translation */
	uint64_t lookups; /* times that a file was asked for a page */
	uint64_t retries; /* mappings begun again, because an invalidation or another thread came in between */
	uint64_t table_bytes; /* of second-stage tables */
};

/* Counts since the VM was made. May be called from a gmem_populate_fn. -EINVAL (size). */
int gmem_vm_stats(struct gmem_vm *vm, struct gmem_vm_stats *stats);

/*
 * The populate that runs now, or else the next one, ends before its next page: -EINTR if it has done none. One that
 * waits for a source which is served lazily goes on waiting.
 */
void gmem_vm_cancel(struct gmem_vm *vm);

#define GMEM_SLOT_LOG_DIRTY (1u << 0) /* KVM_MEM_LOG_DIRTY_PAGES; without a file only: see gmem_vm_set_log() */
#define GMEM_SLOT_READONLY (1u << 1) /* KVM_MEM_READONLY: a store exits; without a file, not in SNP and TDX */
#define GMEM_SLOT_USERFAULT (1u << 3) /* KVM_MEM_USERFAULT of the KVM userfault series: see userfault_bitmap */

/*
 * A slot has a file, whose pages, shared and private, guests use in place; or `hva`, plain memory of the caller's,
 * which is shared; or both: then a page that is private in the file is the file's, one that is shared is at `hva`.
 */
struct gmem_memslot {
	size_t size; /* sizeof(struct gmem_memslot) */
	uint32_t slot; /* 0..32763 */
	uint32_t flags; /* GMEM_SLOT_* */
	uint64_t gpa, len; /* bytes, page-aligned; len 0 deletes; less than 2^31 pages */
	struct gmem_file *file; /* borrowed; may be freed before the slot is deleted; NULL: none */
	uint64_t off; /* of `gpa` in the file; not looked at without one */
	/*
	 * The address of `gpa` in this process, page-aligned; NULL: none. Borrowed. It need not be mapped now or ever:
	 * it is reached by system calls, and where nothing is the access exits. It may be lazily served.
	 */
	void *hva;
	/*
	 * With GMEM_SLOT_USERFAULT: a bit for each guest frame of the slot, in words of 64, bit 0 of word 0 the first.
	 * An access to a page whose bit is set exits. Borrowed until a call that deletes the slot, or sets it without
	 * the flag or with another bitmap, has returned. Whole words of plain memory, 8-byte aligned, always in place.
	 * Clear a bit with a store-release, when the page is filled; before bits are set again, set the slot without
	 * the flag.
	 */
	const uint64_t *userfault_bitmap;
};

/*
 * Sets a slot, changes one, or deletes one. Rules and errors are those of KVM_SET_USER_MEMORY_REGION2, in its order.
 *
 * A slot with a file cannot be changed but for GMEM_SLOT_USERFAULT and the bitmap; one without may get another `gpa`,
 * another bitmap, and GMEM_SLOT_LOG_DIRTY and _USERFAULT on and off. Set as it is, a slot without a file, or with
 * GMEM_SLOT_USERFAULT, stays so: 0. Deleting leaves the pages in the file. When the file is freed first, the slot stays
 * and touching it is a memory fault, but for an access to `hva` that names the shared side.
 *
 * When a slot is deleted, moved, or given a bitmap, the call returns when no access goes on that found it as it was:
 * over lazily served memory it waits until the page has been served, and must not be what serves it.
 *
 * -EINVAL: size, slot number, flags; alignment, wrap, len; neither file nor hva; past the end of the file; beyond what
 * the guest can address; no such slot to delete; a change that is none of those above. -EEXIST: guest-physical
 * addresses or part of the file are in another slot. Also -ENOMEM (never for a deletion), -EIO (after fork(2), or a
 * dead VM), -EBUSY (the file's memory is, or was, open in a second object or behind a keeper: what is absent of it
 * could not be told from zero), -EOPNOTSUPP (a guest_memfd that is not mapped, or has private pages).
 *
 * With GMEM_VM_KVM guests reach `hva` beside a file, or in a slot set with USERFAULT, in a mapping of the library's.
 * Private anonymous memory is then replaced by shared memory with the same bytes; memory that is lazily served has to
 * be registered before (and be shared: -EBUSY). -EOPNOTSUPP: it cannot be mapped twice; it is the file's at another
 * offset, or beside a guest_memfd or huge pages; no userfaultfd with page markers; USERFAULT of a guest_memfd, of huge
 * pages, or given later to a slot without a file. -EHWPOISON, -EMFILE.
 */
int gmem_vm_set_slot(struct gmem_vm *vm, const struct gmem_memslot *memslot);

#define GMEM_LOG_DIRTY (1u << 0) /* pages that guests wrote to */
#define GMEM_LOG_ACCESSED (1u << 1) /* pages that guests touched at all */

/*
 * Which logs a slot keeps from now on; 0: none. A log that it keeps already stays as it is, another one begins empty.
 * Without a file GMEM_LOG_DIRTY is the slot's flag GMEM_SLOT_LOG_DIRTY. What guests do is logged, on KVM too; not what
 * the host does (views, populate, punch, conversions). Waits as gmem_vm_set_slot() does. -EINVAL: no such slot, an
 * unknown log. -ENOMEM, -EMFILE. -EOPNOTSUPP: with GMEM_VM_KVM, a file of the kernel engine, GMEM_LOG_ACCESSED of
 * huge pages, of `hva` alone, unless set with USERFAULT, or without /proc; GMEM_LOG_DIRTY with a dirty ring. -EIO: as
 * gmem_vm_set_slot(). On failure all is as it was.
 *
 * A page that is mapped without being touched (gmem_vcpu_pre_fault(), gmem_mmu_map_private_pfn()) counts as touched.
 * KVM counts some that a guest has only read as written to. A guest's touch on KVM may be missing of a page that the
 * host's kernel has reclaimed, or joined into a large one, since.
 */
int gmem_vm_set_log(struct gmem_vm *vm, uint32_t slot, uint32_t logs);

#define GMEM_LOG_CLEAR (1u << 0) /* what is in the result is in the log no more */

/*
 * Pages [first, first + npages) of the slot, one log: a bit each in words of 64, bit 0 of word 0 is `first`; bits of
 * the last word past them become 0. Returns how many are set. With GMEM_LOG_CLEAR a write is in this result or in the
 * next: pages that are copied after the call has returned, and are not in the next result, are as they were copied.
 * -EINVAL: log, flags, range, no such slot, one that does not keep the log. -ENOMEM, -EMFILE: nothing is cleared. -EIO.
 */
int64_t gmem_vm_get_log(struct gmem_vm *vm, uint32_t slot, uint32_t log, uint64_t first, uint64_t npages,
			uint64_t *bitmap, uint32_t flags);

/* Clears the pages whose bits are set, to be copied afterwards. Bits past the last one are not looked at. As above. */
int gmem_vm_clear_log(struct gmem_vm *vm, uint32_t slot, uint32_t log, uint64_t first, uint64_t npages,
		      const uint64_t *bitmap);

/* ------------------------------------------------------------------------------------------------ vcpu */

/*
 * A vCPU. An accessor executes no instructions: it makes the accesses of a guest, through the second stage, in the
 * thread that calls it. One thread at a time, but for gmem_vcpu_cancel().
 */
struct gmem_vcpu;

enum gmem_vcpu_kind {
	GMEM_VCPU_ACCESSOR = 0,
	GMEM_VCPU_KVM = 1, /* runs a guest's instructions; of a VM with GMEM_VM_KVM */
};

struct gmem_vcpu_opts {
	size_t size; /* sizeof(struct gmem_vcpu_opts) */
	enum gmem_vcpu_kind kind;
	/* GMEM_VCPU_KVM: a vCPU of the VM's KVM VM, borrowed; 0: one that is made here, with a number that is new. */
	int kvm_vcpu;
	uint32_t id;
};

/*
 * `opts` NULL: an accessor. -EINVAL, -ENOMEM, -EIO (after fork(2)). It keeps the VM's object, not the VM alive.
 * GMEM_VCPU_KVM also: -EOPNOTSUPP (a VM without GMEM_VM_KVM), -EBADF (kvm_vcpu), and what KVM answers (-EEXIST: there
 * is a vCPU of this number, or was).
 */
int gmem_vcpu_create(struct gmem_vm *vm, const struct gmem_vcpu_opts *opts, struct gmem_vcpu **ret);
void gmem_vcpu_free(struct gmem_vcpu *vcpu); /* NULL is allowed */

/*
 * A guest's load and store of `len` bytes, of any alignment and across pages; `gpa` with the bit that names the side,
 * where the type has one. An absent page is brought in first, if need be by the pager of the file, for which the call
 * waits. `buf` may be memory that is itself served by a pager. Bytes are copied by the processor: memory that has
 * failed and that nobody has poisoned yet is SIGBUS for this process, at an address in a mapping of the library's own.
 * A slot's `hva` is reached by system calls: never a signal, but an aligned access may be torn there.
 *
 * -EFAULT and -EHWPOISON are exits, see gmem_vcpu_exit(): what is before the page that it names has been done. An exit
 * that is GMEM_EXIT_MMIO may be completed with gmem_vcpu_answer().
 * -EPERM: a write to a page whose writes are watched. -EACCES: a private page that the guest of a launched VM has not
 * accepted: gmem_vcpu_accept(). -EINTR: gmem_vcpu_cancel(). -EIO: the VM is dead, or the page was never brought in and
 * its pager is gone, or it is an SNP guest's at another address. -EINVAL (an address the guest cannot have; private
 * memory, before its launch is finished; a vCPU of KVM's, as of all calls of accessors), -ENOMEM, -ENOSPC.
 */
int gmem_vcpu_load(struct gmem_vcpu *vcpu, uint64_t gpa, void *buf, size_t len);
int gmem_vcpu_store(struct gmem_vcpu *vcpu, uint64_t gpa, const void *buf, size_t len);

/*
 * A guest's compare-and-exchange of 1, 2, 4 or 8 bytes; `gpa` aligned to `len`. 1: what is there was `*expected` and
 * now is `*desired`; 0: it was not, and `*expected` is what is there. One atomic operation to every other vCPU, to
 * views and to other processes, and a full barrier. It counts as a store, whatever it finds. -EINVAL (len, alignment),
 * -EOPNOTSUPP (memory at a slot's `hva`), else as gmem_vcpu_store(). Where an exit is GMEM_EXIT_MMIO, the device is
 * asked as by KVM's emulation: read first, then, if it said `*expected`, written.
 */
int gmem_vcpu_cmpxchg(struct gmem_vcpu *vcpu, uint64_t gpa, void *expected, const void *desired, size_t len);

/*
 * Copies guest memory to guest memory, without the caller's; each address with its own bit that names the side: out of
 * private memory into a shared bounce buffer, say. `*ret_done`, if not NULL, says how many bytes have been copied, when
 * the call fails too, but for -EINVAL (the ranges overlap, whatever their sides; an address the guest cannot have).
 * Else as gmem_vcpu_load() and gmem_vcpu_store(); what has no slot is a memory fault, and gmem_exit.gpa says which page
 * of the two it was.
 */
int gmem_vcpu_copy(struct gmem_vcpu *vcpu, uint64_t to, uint64_t from, uint64_t len, uint64_t *ret_done);

/*
 * Maps the pages of [gpa, gpa + len) as if the guest had touched them (KVM_PRE_FAULT_MEMORY). 0 if at least one is
 * mapped: `*ret_done`, if not NULL, says how many bytes, 0 on failure but for -EINVAL. What stood in the way behind
 * those is told by the call that begins there. Of memory at a slot's `hva` nothing is mapped, but a byte is read. A
 * vCPU of KVM's has them brought in and will not come out at them; KVM maps them when its guest is there. -ENOENT: no
 * slot; -EINVAL (alignment, len 0, wrap); else as gmem_vcpu_load(), without an exit.
 */
int gmem_vcpu_pre_fault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len, uint64_t *ret_done);

/*
 * What a guest of a launched VM (gmem_launch_create()) says of its private pages: SNP, PVALIDATE of each, to validate
 * (`accept`) or to rescind; TDX, TDG.MEM.PAGE.ACCEPT. A private page that was launched is accepted; any other, and one
 * that was shared in between, cannot be accessed before. `gpa` has the bit that means private, if the type has one.
 * TDX: the page is zeroed. 0: done; 1: nothing was to be changed. `*ret_done`, if not NULL, says how many bytes went
 * well. -EINVAL (alignment, len 0, wrap, an address that is not private, a TDX guest that rescinds), -EOPNOTSUPP (the
 * VM is not launched), -EFAULT with an exit, as gmem_vcpu_load(); -EINTR, -EIO, -ENOMEM.
 */
int gmem_vcpu_accept(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len, bool accept, uint64_t *ret_done);

/*
 * Runs the guest until something is to be done about it, which gmem_vcpu_exit() tells: 0. Its registers, its CPUID and
 * what exits it wants are the caller's, by gmem_vcpu_kvm_fd(). Pages that a pager
 * serves are waited for here. -EFAULT and -EHWPOISON with GMEM_EXIT_MEMORY_FAULT, as KVM_RUN has them: the caller is to
 * do something about the page; the next call makes the access again, a load or store that KVM was emulating too.
 *
 * A page that must not be touched raises SIGBUS in KVM, which this takes from the thread before anybody sees it: SIGBUS
 * is blocked while the guest runs, and gmem_vcpu_cancel() sends it too. No handler is installed or called. Any other
 * SIGBUS that comes meanwhile is sent to the thread again.
 *
 * -EINTR: gmem_vcpu_cancel(), or a signal that the thread does not block, or kvm_run->immediate_exit. -EIO: the VM is
 * dead, a copy that came with fork(2), or the page's server is gone. -EINVAL: an accessor. -ENOMEM, -ENOSPC, -EMFILE,
 * -ENFILE: no memory or descriptor to let the page through, call again; -EOPNOTSUPP: what is at a slot's `hva` by now
 * cannot be mapped twice. Else what KVM_RUN answers (-EFAULT without an exit: memory of the caller's own that is not
 * there).
 */
int gmem_vcpu_run(struct gmem_vcpu *vcpu);

/* GMEM_VCPU_KVM: KVM's descriptor, borrowed, and its struct kvm_run. -1 and NULL: an accessor. */
int gmem_vcpu_kvm_fd(const struct gmem_vcpu *vcpu);
void *gmem_vcpu_kvm_run(const struct gmem_vcpu *vcpu);

/*
 * The call that runs in the vCPU's thread, or else its next one, ends with -EINTR: of an accessor if it would wait, map
 * or go to a slot's `hva`; an access to `hva` that waits already is not ended. A guest that runs is stopped.
 */
void gmem_vcpu_cancel(struct gmem_vcpu *vcpu);

/*
 * A hypercall of the guest. 1: an exit, GMEM_EXIT_HYPERCALL with `nr` and `args`, until it has been answered
 * (gmem_vcpu_answer()); then the same call, made next, is 0 and `*ret` the answer. It has no effect of its own. -EIO (a
 * dead VM).
 */
int gmem_vcpu_hypercall(struct gmem_vcpu *vcpu, uint64_t nr, const uint64_t args[6], uint64_t *ret);

/*
 * KVM_HC_MAP_GPA_RANGE: the guest asks for a range to be converted. args[0] is its gpa, args[1] its pages of 4 KiB,
 * args[2] GMEM_MAP_GPA_RANGE_ENCRYPTED for private, else shared; bits 0 to 3 hint at a page size. The answer is 0 or a
 * negative number of the guest's. Whoever answers 0 has called gmem_file_set_attributes().
 */
#define GMEM_HC_MAP_GPA_RANGE 12
#define GMEM_MAP_GPA_RANGE_ENCRYPTED (UINT64_C(1) << 4)

/* KVM's numbers (KVM_EXIT_*); gmem_vcpu_run() passes on those that are not here too, and kvm_run has the rest. */
enum gmem_exit_reason {
	GMEM_EXIT_NONE = 0,
	GMEM_EXIT_HYPERCALL = 3,
	/*
	 * A load or store of 1 to 8 bytes within a page, not private, where no slot is: a device's register. Or such a
	 * store to a slot that is read-only.
	 */
	GMEM_EXIT_MMIO = 6,
	/*
	 * Any other access where no slot is, or store to one that is read-only; a file that is closed, a page on the
	 * other side, a poisoned page, nothing at `hva`, a page whose bit is set in the slot's userfault_bitmap.
	 */
	GMEM_EXIT_MEMORY_FAULT = 39,
};

#define GMEM_EXIT_FLAG_PRIVATE (UINT64_C(1) << 3) /* the access was to private memory */
#define GMEM_EXIT_FLAG_USERFAULT (UINT64_C(1) << 4) /* the page is the caller's to fill: its bit is set */
#define GMEM_EXIT_FLAG_WRITE (UINT64_C(1) << 32) /* GMEM_EXIT_MMIO: it is a store. Not KVM's, but the library's own */

struct gmem_exit {
	size_t size; /* sizeof(struct gmem_exit) */
	enum gmem_exit_reason reason;
	uint64_t flags; /* GMEM_EXIT_FLAG_* */
	uint64_t gpa, len; /* the page; of GMEM_EXIT_MMIO the access. Without the bit that names the side */
	unsigned char data[8]; /* GMEM_EXIT_MMIO: the `len` bytes of a store */
	uint64_t nr, args[6]; /* GMEM_EXIT_HYPERCALL */
};

/* Why the last run, load, store, compare-and-exchange, copy or hypercall ended. -EINVAL (size). */
int gmem_vcpu_exit(const struct gmem_vcpu *vcpu, struct gmem_exit *ret);

/*
 * Hands the last exit, GMEM_EXIT_MEMORY_FAULT, to the loop of `uffd`, in whose events it is told
 * (GMEM_UFFD_EVENT_EXIT), and waits until it has been answered: 0, and the access is to be made again (gmem_vcpu_run(),
 * gmem_vcpu_load()). 1: nobody was asked, for what the exit was about is not so any more; make it again. With
 * GMEM_EXIT_FLAG_USERFAULT it is over too when the page's bit is clear. -EINTR: gmem_vcpu_cancel(). -ENOENT: no
 * slot, or no file, or `uffd` has no view of the page. -EHWPOISON: the page's bytes are lost, and nothing will bring
 * it. -EINVAL: another kind of exit. -EIO: the VM is dead, or the view was unmapped meanwhile. Not from a thread that
 * reads `uffd`.
 */
int gmem_vcpu_hand_exit(struct gmem_vcpu *vcpu, struct gmem_uffd *uffd);

/*
 * Completes what the last exit has left open. GMEM_EXIT_MMIO, a load: the same load, made next, returns the low `len`
 * bytes of `value`, lowest first; a store: the store made next with this gpa and len is taken as done, and `value` is
 * not used. GMEM_EXIT_HYPERCALL: what the hypercall returns. Neither looks at slots or memory again. Whatever else is
 * called on the vCPU first drops the answer, but for gmem_vcpu_exit(), gmem_vcpu_cancel(), gmem_mmu_map_private_pfn()
 * and this one again. Of GMEM_VCPU_KVM: the answer goes into kvm_run, for the next gmem_vcpu_run(). -EINVAL: nothing is
 * open.
 */
int gmem_vcpu_answer(struct gmem_vcpu *vcpu, uint64_t value);

/* ---------------------------------------------------------------------------------------------- launch */

/*
 * What is done with each page of a populate: measuring it, giving it to firmware, mapping it. `pfn` is the frame, which
 * holds the bytes; gmem_pfn_addr() is where. `src` is the source's page, brought in: a copy, not the caller's memory;
 * NULL without a source. 0: the page is up to date. A negative errno ends the populate: a page that was absent before
 * is absent again, one that was there gets its bytes back, and neither is mapped. What the function has mapped, guests
 * see at once, also if it fails after that.
 *
 * Called with the VM's slots lock and the file's invalidate lock held: it must not call into either, but
 * gmem_mmu_map_private_pfn(), and must not touch memory that could be lazily served.
 */
typedef int (*gmem_populate_fn)(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque);

/*
 * When the function fails, what it left in `src` goes back to the caller's source (a corrected CPUID page). The source
 * is proven writable before the function is called.
 */
#define GMEM_POPULATE_WRITE_BACK (1u << 0)

/*
 * Puts bytes into private memory: `npages` pages from guest frame `gfn` on, out of `src` (page-aligned), each in one
 * step under the file's lock, its source's bytes brought in before. `src` NULL: in place, with the bytes the pages
 * have.
 * `fn` NULL: bytes only.
 *
 * Returns the pages done, at most those up to the end of the slot; go on from there. If none was, the error of the
 * first: -EINVAL (npages <= 0, alignment, flags, no slot with a file, a page that is not private), -EFAULT (the slot's
 * file is closed; a source that cannot be read, or not be written to where it must be: unmapped, past the end of its
 * file, private memory, the target itself), -EINTR (gmem_vm_cancel()), -EHWPOISON, -ENOMEM, -EIO (a dead VM; after
 * fork(2); in place, a page whose pager is gone), -EEXIST (a page that a launched guest has been given), or what `fn`
 * returned. Any thread; concurrent calls on one VM take turns.
 */
int64_t gmem_populate(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
		      gmem_populate_fn fn, void *opaque);

/* The address of a frame that a gmem_populate_fn was given, good until it returns. */
void *gmem_pfn_addr(uint64_t pfn);

/*
 * Maps a private frame that the caller already holds into the second stage, 4 KiB, writable; the file is not asked for
 * it. From a gmem_populate_fn only, with the frame it was given; any vCPU of the VM that no other thread is using.
 *
 * -EIO (the VM is dead, or is so from now on since it has no second stage here; the frame number is mapped already),
 * -EINVAL (no slot), -EPERM (its writes are watched), -EINTR (gmem_vcpu_cancel()), -ENOMEM.
 */
int gmem_mmu_map_private_pfn(struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn);

/*
 * One confidential launch of a VM of type SNP or TDX: the commands given to AMD's secure processor or to Intel's TDX
 * module, in order, and the digest of what they did. gmem_launch_create() emulates both by software: nothing is
 * encrypted, no hardware takes part. gmem_launch_create_kvm() gives the commands to a KVM that has the hardware. See
 * gmem_launch(3). Any thread; calls on one VM take turns. After fork(2) all are -EIO in the child, if emulated.
 */
struct gmem_launch;

#define GMEM_LAUNCH_DIGEST_LEN 48u

/* PAGE_TYPE of SNP_LAUNCH_UPDATE. */
enum gmem_launch_page {
	GMEM_LAUNCH_NORMAL = 1, /* its bytes are measured. TDX: TDH.MEM.PAGE.ADD and 16 of TDH.MR.EXTEND */
	GMEM_LAUNCH_ZERO = 3, /* SNP only: zeros, without a source */
	GMEM_LAUNCH_UNMEASURED = 4, /* that it was added is measured, its bytes are not. TDX: TDH.MEM.PAGE.ADD */
	GMEM_LAUNCH_SECRETS = 5, /* SNP only: the firmware makes the page. KVM wants a source all the same */
	GMEM_LAUNCH_CPUID = 6, /* SNP only: a table of CPUID values, which the firmware checks */
};

/* SNP: without LAUNCH_START, which gmem_launch_command() is to make. */
#define GMEM_LAUNCH_NOT_STARTED (1u << 0)

/* What is not said is 0. */
struct gmem_launch_opts {
	size_t size; /* sizeof(struct gmem_launch_opts) */
	uint32_t flags; /* GMEM_LAUNCH_* */
	/* SNP: KVM_SEV_INIT2 and KVM_SEV_SNP_LAUNCH_START. */
	uint64_t policy; /* of the guest; 0: 0x30000, which allows SMT and has the bit set that must be */
	/*
	 * SEV_FEATURES of its vCPUs, without SNPActive (bit 0), which is always set. Emulated: of 0x20, DebugSwap, and
	 * 0x200, SecureTsc.
	 */
	uint64_t sev_features;
	uint8_t gosvw[16]; /* guest OS visible workarounds */
	/* TDX: KVM_TDX_INIT_VM. None of it is in MRTD. */
	uint64_t attributes, xfam; /* xfam 0: 0x3, x87 and SSE */
	uint8_t mrconfigid[48], mrowner[48], mrownerconfig[48];
	/* gmem_launch_create_kvm() only. */
	int sev_fd; /* SNP: /dev/sev, borrowed; 0: it is opened */
	const void *cpuid; /* TDX: struct kvm_cpuid2 */
};

/*
 * Emulated; the VM has no GMEM_VM_KVM, and one launch. SNP: INIT2 and LAUNCH_START, ready for updates. TDX: INIT_VM.
 * `opts` may be NULL. From then on no guest of the VM touches private memory before the launch is finished (-EINVAL).
 * -EINVAL (the VM's type; what KVM or the module does not take), -EIO (what the firmware does not take: the text names
 * its status), -EEXIST (the VM has a launch, or had), -EOPNOTSUPP (GMEM_VM_KVM), -ENOMEM.
 */
int gmem_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret);

/*
 * On hardware: of a KVM VM of type KVM_X86_SNP_VM or KVM_X86_TDX_VM, borrowed, to which nothing has been said yet. Its
 * memslots and guest_memfds (gmem_file_create() with GMEM_NEED_KVM_SLOT makes such), memory attributes and vCPUs are
 * the caller's. Has not met hardware: see gmem_launch(3). -EINVAL, -EBADF, -EOPNOTSUPP (a KVM without such machines),
 * -ENOMEM, what /dev/sev and KVM answer.
 */
int gmem_launch_create_kvm(int kvm_vm, enum gmem_vm_type type, const struct gmem_launch_opts *opts,
			   struct gmem_launch **ret);

/* What was launched stays as it is, and is checked no more. NULL is allowed. */
void gmem_launch_free(struct gmem_launch *launch);

/* A segment register as a VMSA has it: `attrib` is descriptor bits 40-47 and 52-55. */
struct gmem_snp_segment {
	uint16_t selector, attrib;
	uint32_t limit;
	uint64_t base;
};

/* What a vCPU begins with; the rest of its VMSA is zero. */
struct gmem_snp_vcpu {
	size_t size; /* sizeof(struct gmem_snp_vcpu) */
	struct gmem_snp_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	uint64_t efer, cr0, cr2, cr3, cr4, dr6, dr7, rflags, rip, xcr0, g_pat, sev_features;
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15;
	uint32_t mxcsr;
	uint16_t x87_fcw;
};

/* Whose guest it is: VMMs differ in what their vCPUs begin with, and in what they measure in which order. */
enum gmem_vmm {
	GMEM_VMM_QEMU = 0,
	GMEM_VMM_EC2 = 1,
	GMEM_VMM_GCE = 2,
	GMEM_VMM_KRUN = 3,
	GMEM_VMM_SVSM = 4, /* QEMU, with an SVSM before the firmware */
};

/*
 * What a VMM's vCPU begins with: the first one (`eip` 0xfffffff0), or another, which begins where the firmware's SEV-ES
 * reset block says. `signature` is EAX of CPUID leaf 1, `sev_features` with SNPActive. -EINVAL (vmm, size).
 */
int gmem_snp_vcpu_reset(enum gmem_vmm vmm, uint32_t eip, uint32_t signature, uint64_t sev_features,
			struct gmem_snp_vcpu *ret);

struct gmem_launch_vcpu {
	size_t size; /* sizeof(struct gmem_launch_vcpu) */
	/* SNP, emulated: its VMSA is measured by gmem_launch_finish(). sev_features are the launch's, with SNPActive */
	const struct gmem_snp_vcpu *snp;
	uint64_t rcx; /* TDX: what it begins with: where the TD HOB is */
	int kvm_vcpu; /* gmem_launch_create_kvm(): KVM's vCPU, borrowed. SNP: its registers are the caller's */
};

/*
 * One more vCPU; they count from 0. -EINVAL (size, values that are missing or another kind's; TDX: the 577th), -EBUSY
 * (finished), -EIO (a launch that is of no more use), -EBADF, -ENOMEM, KVM's errors.
 */
int gmem_launch_add_vcpu(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu);

/*
 * Launches `npages` pages at `gpa` (page-aligned, without the bit that names the side) out of `src` (page-aligned; NULL
 * for GMEM_LAUNCH_ZERO). Returns the pages done, or the error of the first. Emulated: those of gmem_populate(), and
 * -EEXIST for a page that has been launched before, or is the guest's; -EIO, what the firmware or the module refused,
 * gmem_launch_status() says why; -EBUSY, the module is at it, try again. On KVM: what KVM answers; -EIO has any of
 * these causes. A TDX module that refuses anything is the end of the VM, on KVM and here.
 * A CPUID table that is refused is corrected in `src`, which must be writable, and the page is not launched: the next
 * call may launch it so.
 */
int64_t gmem_launch_update(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			   enum gmem_launch_page type);

/*
 * TDX, emulated: TDH.MR.EXTEND of the bytes of [gpa, gpa + len), which have been added: how hosts measured before KVM
 * did both at once ("two pass"). -EINVAL (alignment to 256 bytes, len 0, wrap), -EOPNOTSUPP (on KVM, of SNP), -EIO
 * (refused; if not at the beginning, the launch is of no more use).
 */
int gmem_launch_extend(struct gmem_launch *launch, uint64_t gpa, uint64_t len);

struct gmem_launch_finish {
	size_t size; /* sizeof(struct gmem_launch_finish) */
	/* SNP. */
	const void *id_block; /* 96 bytes, with `id_auth`; NULL: none */
	const void *id_auth; /* 4096 bytes: keys and signatures, ECDSA P-384 */
	bool auth_key_en; /* id_auth has an author's key */
	bool vcek_disabled;
	uint8_t host_data[32];
};

/*
 * SNP: measures the vCPUs, then KVM_SEV_SNP_LAUNCH_FINISH. TDX: KVM_TDX_FINALIZE_VM, which needs a vCPU. The guest can
 * run, whose accessors reach no private page before (-EINVAL); nothing more is launched. `opts` may be NULL. -EINVAL
 * (also: its vCPUs have been measured, by a call that was refused then), -EIO: refused, gmem_launch_status() says why;
 * TDX: -EIO is the end of the VM; -EBUSY, try again.
 */
int gmem_launch_finish(struct gmem_launch *launch, const struct gmem_launch_finish *opts);

/*
 * What the firmware (SEV_RET_*) or the module (TDX_*) answered to the last command that failed; 0: it was not asked, or
 * has refused nothing.
 */
uint64_t gmem_launch_status(const struct gmem_launch *launch);

/*
 * SNP: the launch digest so far. TDX: MRTD, were the build finished now. -EOPNOTSUPP (on KVM: it is in the report),
 * -EIO (TDX: a range was measured in part), -ENOMEM.
 */
int gmem_launch_digest(struct gmem_launch *launch, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN]);

/*
 * The launch's KVM_MEMORY_ENCRYPT_OP, as a KVM with the hardware answers it: `id` and `data` as in struct kvm_sev_cmd
 * (KVM_SEV_SNP_LAUNCH_START, _UPDATE, _FINISH) or struct kvm_tdx_cmd (INIT_MEM_REGION, FINALIZE_VM), with the errno,
 * the progress in the structure and the retries of KVM's: a caller of LAUNCH_UPDATE repeats it until `len` is 0. `vcpu`
 * counts as added; -1: the VM's. A launch made with GMEM_LAUNCH_NOT_STARTED begins with LAUNCH_START. `*ret_status` is
 * `error` or `hw_error`; 0 if the call is 0, though it may have ended early: gmem_launch_status() has it.
 */
int gmem_launch_command(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
			uint64_t *ret_status);

/* struct kvm_sev_snp_launch_start, _update, _finish and struct kvm_tdx_init_mem_region. */
struct gmem_snp_launch_start {
	uint64_t policy;
	uint8_t gosvw[16];
	uint16_t flags;
	uint8_t pad0[6];
	uint64_t pad1[4];
};

struct gmem_snp_launch_update {
	uint64_t gfn_start, uaddr, len;
	uint8_t type, pad0;
	uint16_t flags;
	uint32_t pad1;
	uint64_t pad2[4];
};

struct gmem_snp_launch_finish {
	uint64_t id_block_uaddr, id_auth_uaddr;
	uint8_t id_block_en, auth_key_en, vcek_disabled, host_data[32], pad0[3];
	uint16_t flags;
	uint64_t pad1[4];
};

struct gmem_tdx_init_mem_region {
	uint64_t source_addr, gpa, nr_pages;
};

#define GMEM_SNP_CMD_LAUNCH_START 100u
#define GMEM_SNP_CMD_LAUNCH_UPDATE 101u
#define GMEM_SNP_CMD_LAUNCH_FINISH 102u
#define GMEM_TDX_CMD_INIT_MEM_REGION 3u
#define GMEM_TDX_CMD_FINALIZE_VM 4u
#define GMEM_TDX_MEASURE_MEMORY_REGION 1u /* a flag of INIT_MEM_REGION */

/* ------------------------------------------------------------------------------------------------ guest */

/* SHA-256 of what is booted: what QEMU and its kind put into the firmware's table of kernel hashes. */
struct gmem_kernel_hashes {
	uint8_t cmdline[32], initrd[32], kernel[32];
};

/*
 * `initrd` NULL: an empty one. `cmdline` NULL: an empty one; its terminating NUL is hashed too. `kernel` is the file as
 * QEMU reads it. -EINVAL (a length and no bytes), -ENOMEM.
 */
int gmem_kernel_hashes(const void *kernel, uint64_t kernel_len, const void *initrd, uint64_t initrd_len,
		       const char *cmdline, struct gmem_kernel_hashes *ret);

#define GMEM_GUEST_TWO_PASS (1u << 0) /* TDX: a section's pages are all added, then all measured; else page by page */
#define GMEM_GUEST_EC2_RDX_ZERO (1u << 1) /* EC2: vCPUs begin with RDX 0; else 0x600. Tools disagree */

/* What a confidential guest is launched from. What is pointed to is borrowed. */
struct gmem_guest {
	size_t size; /* sizeof(struct gmem_guest) */
	const void *firmware; /* of any alignment */
	uint64_t firmware_len; /* whole pages */
	enum gmem_vmm vmm;
	uint32_t flags; /* GMEM_GUEST_* */
	const struct gmem_kernel_hashes *kernel; /* SNP; NULL: no kernel is given */
	/* GMEM_VMM_SVSM: the SVSM, and the length of the file of variables, which lies between it and the firmware. */
	const void *svsm;
	uint64_t svsm_len, vars_len;
	/* Its vCPUs. TDX: as many are added to an emulated launch as it lacks of that number, at least one. */
	uint32_t nvcpus;
	/* SNP. */
	uint32_t signature; /* EAX of CPUID leaf 1; 0x800f12 is QEMU's EPYC */
	uint64_t sev_features; /* 0: 1, SNPActive */
	/* gmem_launch_firmware() only: 4096 bytes for the CPUID page, written to if refused; NULL: an empty table. */
	void *cpuid;
	/* gmem_measure_*() only, SNP: the digest after the firmware's own pages, 48 bytes, instead of theirs. */
	const void *firmware_digest;
};

/*
 * Launches all of a guest, as its VMM does: the firmware so that it ends at 4 GiB and what its metadata asks for, in
 * order, and the vCPUs; all but gmem_launch_finish(). The slots must be there, their pages private. A CPUID table that
 * the firmware corrects is launched as corrected.
 * -EBADMSG, -EPROTONOSUPPORT, -ENOENT (metadata that is malformed, of another version, or not there; the text names the
 * GUID), -EOPNOTSUPP (a section that this VMM does not launch), -ENOSPC (more than 64 sections), -EINVAL (the rest of
 * `guest`), what `progress` returned, and as gmem_launch_update(); gmem_vm_cancel() ends all of it.
 */
int gmem_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			 void *opaque);

/*
 * What a launch of a guest will measure, from the files alone: the digest in the attestation report (SNP: MEASUREMENT,
 * TDX: MRTD). The bytes of firmware and SVSM are borrowed until it is freed. They are hashed in create, for an SNP
 * guest by a thread a CPU, joined before it returns; given `firmware_digest`, by the first digest that needs them. One
 * thread at a time.
 */
struct gmem_measure;

/*
 * `type` GMEM_VM_SNP or GMEM_VM_TDX. -EINVAL (type, size, flags, vmm, lengths), -EBADMSG, -EPROTONOSUPPORT, -ENOENT,
 * -ENOSPC (as gmem_launch_firmware()), -ENOMEM, what `progress` returned.
 */
int gmem_measure_create(enum gmem_vm_type type, const struct gmem_guest *guest, gmem_progress_fn progress,
			void *opaque, struct gmem_measure **ret);
void gmem_measure_free(struct gmem_measure *measure); /* NULL is allowed */

/* One measured range: consecutive pages of one kind, or one vCPU. */
struct gmem_measure_range {
	size_t size; /* sizeof(struct gmem_measure_range), set by the caller of the function */
	const char *name; /* "firmware", "sec-mem", "secrets", "cpuid", "kernel-hashes", "vmsa 3", "BFV", ... */
	uint64_t gpa, len;
	bool contents; /* its bytes are measured; else only that it is there */
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN]; /* SNP: after it. TDX: were the build finished there */
};

typedef int (*gmem_measure_fn)(void *opaque, const struct gmem_measure_range *range);

/*
 * The digest of a guest of the same firmware, and with the same SVSM or none; all else may differ from what create was
 * given, and costs no more than what differs. `fn`, if not NULL, is told each range in the order it is measured; what
 * it returns, if not 0, ends the call. -EINVAL (another firmware, no vCPUs, missing values), -ENOENT (a kernel, and
 * firmware without a place for its hashes; several vCPUs, and none for where they begin; the text names the GUID),
 * -EBADMSG (places that are malformed), -ENOMEM.
 */
int gmem_measure_digest(struct gmem_measure *measure, const struct gmem_guest *guest, gmem_measure_fn fn, void *opaque,
			uint8_t ret[GMEM_LAUNCH_DIGEST_LEN]);

/* SNP: the page that is measured for a vCPU. -ERANGE (no such vCPU), -EINVAL, -ENOENT, -EBADMSG (as the digest). */
int gmem_measure_vmsa(struct gmem_measure *measure, const struct gmem_guest *guest, uint32_t vcpu,
		      uint8_t ret[GMEM_PAGE_SIZE]);

/* ---------------------------------------------------------------------------------------------- source */

/*
 * Where a missing page comes from. A source is a table of functions and the caller's pointer; pager threads call it
 * concurrently, with no lock held. `off` and `len` are multiples of 4 KiB.
 */
struct gmem_source_ops {
	size_t size; /* sizeof(struct gmem_source_ops) */
	/*
	 * Fills buf[0, len) with the bytes at `off`, all of them. -EBADMSG (the stored bytes are wrong), -EIO and
	 * -ENODATA (they cannot be read, or are not there) lose the page: it is poisoned. Any other negative errno
	 * means not now: it is asked again, later and later, while the toucher waits. A peer that may come back, or be
	 * repaired, is not now: its I/O error is -EREMOTEIO. The text is gmem_set_error()'s.
	 * Must not touch memory that could itself be lazily served.
	 */
	int (*read)(void *opaque, uint64_t off, void *buf, size_t len);
	/* Optional. As `read`, but never waits for a disk or a peer: -EAGAIN if it would have to. */
	int (*read_nowait)(void *opaque, uint64_t off, void *buf, size_t len);
	/*
	 * Optional. On entry [*start, *start + *len) is what the caller is about to read; on return it has grown by
	 * what comes along at hardly any cost (the rest of a compressed chunk), by at most 256 KiB on either side.
	 */
	void (*extent)(void *opaque, uint64_t *start, uint64_t *len);
	/*
	 * Optional. 1: [off, off + len) is all zero and need not be read; 0: not known to be. With `nowait` it never
	 * waits for a disk or a peer: 0 if it would have to.
	 */
	int (*is_zero)(void *opaque, uint64_t off, uint64_t len, bool nowait);
	void (*free)(void *opaque); /* optional */
	/*
	 * Optional. [off, off + len) is about to be read by somebody nobody waits for (a fill, a replay), and probably
	 * what follows: a source that is far away asks for it now, after what is waited for. With `wait` it returns
	 * when what it brings is at hand. 0, or negative errno: not now. `read` answers without it as well.
	 */
	int (*prefetch)(void *opaque, uint64_t off, uint64_t len, bool wait);
};

struct gmem_source;

int gmem_source_new(const struct gmem_source_ops *ops, void *opaque,
		    struct gmem_source **ret); /* takes opaque on success */
int gmem_source_new_zero(struct gmem_source **ret); /* every page zero */
/*
 * The bytes of a regular file or block device from `base` on, `len` of them; past `len`, and past the end it has now,
 * zero. Its holes (SEEK_HOLE) are known to be zero. Sizes and holes are those it has now: when it has been changed
 * since, reading what it had bytes for is -EIO (looked at once in a tick of the clock while the bytes are in memory).
 * -EINVAL (no such file, `base` past its end), -EBADF, -EMFILE, -ENOMEM.
 */
int gmem_source_new_fd(int fd, uint64_t base, uint64_t len, struct gmem_source **ret);
/*
 * A memory file, fds[0], and n - 1 files of what changed since, each above those before it, of the same size
 * (Firecracker's diff snapshots). A page comes from the highest that has data there (SEEK_DATA), zeros it has written
 * too; where all have holes it is zero. Changes as above, looked at each time. -EINVAL, also for a file above the first
 * that has no holes at all, or only such as its file system's units, where these are larger than a page: it would hide
 * what is below it.
 */
int gmem_source_new_layers(const int *fds, size_t n, struct gmem_source **ret);

struct gmem_nbd_opts {
	size_t size; /* sizeof(struct gmem_nbd_opts) */
	uint32_t connections; /* at most, to a server that offers several; 0: 4; no more than 64 */
	uint32_t timeout_ms; /* of one connect, of one read; 0: 10000. Finding a host's address is not in it */
};

/*
 * An NBD server's export, by its URI: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds for TLS (libnbd's
 * nbd_connect_uri(3)). The URI is trusted, as a path is: it may name files. Connects before it returns; connections
 * that are lost are made again, so a server may be restarted with the same bytes. Known to be zero is what the server
 * says is (base:allocation: zero, not a hole alone). `opts` may be NULL.
 * -EINVAL, -EOPNOTSUPP (built without libnbd, or it is not installed, being loaded now; a server whose blocks are
 * larger than a page), -ETIMEDOUT, -ECONNREFUSED, -ENOENT and what else connecting fails with. Of reads: -ENODATA past
 * the export's end, and nothing else that is lasting: -ETIMEDOUT, -ECONNREFUSED, -ECONNRESET, -EREMOTEIO (the server's
 * I/O error), -ESTALE (the export has another size now) mean not now.
 */
int gmem_source_new_nbd(const char *uri, const struct gmem_nbd_opts *opts, struct gmem_source **ret);

/*
 * A source by a line of text: "raw:PATH" and any number of ",layer=PATH" (a comma in a path is written twice), "ch:DIR"
 * (the memory-ranges of Cloud Hypervisor's snapshot), "image:PATH[#REGION]" by name or number, "zero:", or an NBD URI,
 * also after "nbd:". Offsets in it are offsets in the memory file. `nbd` may be NULL. -EINVAL (the text says which
 * part), and the errors of what is opened.
 */
int gmem_source_open(const char *spec, const struct gmem_nbd_opts *nbd, struct gmem_source **ret);

/* Bytes, from offset 0 on, that it has; UINT64_MAX: without an end, or not known (a caller's own). */
uint64_t gmem_source_len(const struct gmem_source *source);

/* References: a pager keeps one for each region it serves. The last release frees. NULL is allowed. */
struct gmem_source *gmem_source_ref(struct gmem_source *source);
void gmem_source_unref(struct gmem_source *source);

/* ----------------------------------------------------------------------------------------------- pager */

/*
 * Serves userfaults from sources. One thread reads every userfault descriptor and never waits for a lock; others
 * resolve. Any number of regions, in this process or in others.
 */
struct gmem_pager;

enum gmem_pager_event_kind {
	GMEM_PAGER_ERROR = 1, /* a page could not be served and its toucher waits; it is tried again */
	GMEM_PAGER_POISONED = 2, /* a page's bytes are lost: it was poisoned */
	/* gmem_pager_fill() has left no page absent (lost ones are poisoned); `off` and `len` are 0. */
	GMEM_PAGER_COMPLETE = 3,
	GMEM_PAGER_GONE = 4, /* a region's process has ended */
	GMEM_PAGER_GAVE_UP = 5, /* a fault has waited for longer than `patience_ms`: what `policy` says was done */
};

/* What becomes of a fault whose source does not give its page for so long. Never a page of zeroes. */
enum gmem_pager_policy {
	GMEM_PAGER_WAIT = 0, /* its toucher waits, and the source is asked again, for ever */
	GMEM_PAGER_POISON = 1, /* the page is poisoned: its toucher gets SIGBUS, as all later ones */
	GMEM_PAGER_KILL = 2, /* the region's process is killed (gmem_region.pidfd); without one: as GMEM_PAGER_WAIT */
};

struct gmem_pager_event {
	enum gmem_pager_event_kind kind;
	int error; /* negative errno or 0 */
	const char *text; /* what happened; valid during the call */
	uint64_t off, len; /* where in the region's file */
	unsigned int region; /* its number */
};

struct gmem_pager_opts {
	size_t size; /* sizeof(struct gmem_pager_opts) */
	unsigned int resolvers; /* threads that resolve; 0 is one per online CPU, at most 8 */
	uint32_t flags; /* GMEM_PAGER_* */
	/*
	 * Called from the pager's threads and from those that call into it, one at a time; must not call into the pager
	 * itself. Errors that go on are told once a second. May be NULL.
	 */
	void (*event)(void *opaque, const struct gmem_pager_event *event);
	void *opaque;
	/*
	 * How long a fault may wait for a source that fails or says "not now" before `policy` is followed; 0: for ever.
	 * A source that does not answer at all holds its thread for as long: one that may hang needs a time-out.
	 */
	uint32_t patience_ms;
	enum gmem_pager_policy policy;
};

/*
 * A REMOVE event on a page that was never filled means its bytes are unwanted (a balloon), so it is zero from then
 * on; without the flag such a page still comes from its source, because madvise(MADV_DONTNEED) on shared memory keeps
 * data. A file of gmem_file_create_anon() always goes by that: there it drops them.
 */
#define GMEM_PAGER_REMOVE_DISCARDS (1u << 0)

/*
 * `opts` may be NULL. -EINVAL (size, flags, policy, more than 64 resolvers), -ENOMEM, -EMFILE, -ENFILE, -EAGAIN
 * (threads).
 */
int gmem_pager_create(const struct gmem_pager_opts *opts, struct gmem_pager **ret);

/*
 * Stops and joins. Touchers of pages that are not in place wait from then on; a view stays registered until it is
 * unmapped, and cannot be given to another pager. NULL is allowed.
 */
void gmem_pager_free(struct gmem_pager *pager);

/*
 * A range of some process's address space that maps `file`, registered missing|minor with `uffd`. The first touch
 * must not have happened before it was registered, through this mapping or any other of that process. Of a file of
 * gmem_file_create_anon(): registered missing, with UFFD_FEATURE_EVENT_REMOVE if that process gives memory back.
 */
struct gmem_region {
	size_t size; /* sizeof(struct gmem_region) */
	struct gmem_file *file; /* referenced */
	/*
	 * UFFDIO_API done with MISSING_SHMEM and MINOR_SHMEM; read by nobody else from now on. Borrowed and
	 * duplicated, made non-blocking. Regions of one descriptor are known by its number: keep it open while you
	 * add them.
	 */
	int uffd;
	uint64_t hva; /* in the process that maps it */
	uint64_t off, len; /* in the file */
	struct gmem_source *source; /* referenced */
	uint64_t source_off; /* where in the source `off` comes from */
	/* With GMEM_PAGER_KILL: of the process that maps it (pidfd_open(2)), borrowed and duplicated; 0 or -1: none. */
	int pidfd;
};

/*
 * Adds a region and returns its number. Serving begins at once; touchers who waited before it was known are woken.
 * -EINVAL, -ERANGE (past the file's end), -EEXIST (overlaps a region of the same descriptor), -ENOSPC (1024 regions),
 * -ENOMEM.
 */
int gmem_pager_add_region(struct gmem_pager *pager, const struct gmem_region *region);
/*
 * Adds `n` regions of one descriptor, all or none, before anything of it is read, and returns the first one's number;
 * the others follow. So have to come all the regions of a descriptor whose files are of gmem_file_create_anon(): a
 * removal that is read before its region is known is lost. -EINVAL (also: more than one descriptor, or more than one
 * such file), -ENOSPC, -EEXIST and the others of gmem_pager_add_region().
 */
int gmem_pager_add_regions(struct gmem_pager *pager, const struct gmem_region *regions, unsigned int n);

/*
 * Registers a view of this process and adds it. Faults of kernel code (read(2) into the view, KVM) are served only
 * where this process may open a full userfaultfd (gmem info); else such calls fail with -EFAULT and
 * gmem_pager_stats() says user_mode_only. The view must live until gmem_pager_free(). -EPERM, -ENOSYS,
 * -EOPNOTSUPP (no userfaultfd that does this, or a view that has had private pages, marked in a way that does not go
 * with it), -EBUSY (registered already), -EINVAL (the file's pages began private; the view reaches past the end of the
 * file, or a part of it was unmapped by the program), -EMFILE, -ENOMEM.
 */
int gmem_pager_add_view(struct gmem_pager *pager, struct gmem_view *view, struct gmem_source *source,
			uint64_t source_off);

/*
 * Brings in every page that is still absent, in file order, giving way to faults; returns when none is. Call it from
 * one thread at a time. Returns the pages it wrote (a page known to be zero needs none), the error of `progress`,
 * -ESRCH when the regions' process has ended, or -ENOMEM. Pages that are lost are poisoned and do not stop it; a
 * source that says "not now" is asked until it answers or `progress` stops the fill.
 */
int64_t gmem_pager_fill(struct gmem_pager *pager, gmem_progress_fn progress, void *opaque);

/*
 * Ends serving of every range that is completely in place: from then on the memory needs no pager. Ranges with pages
 * that are not (poisoned ones) stay registered. Returns the number of pages still registered.
 */
int64_t gmem_pager_unregister(struct gmem_pager *pager);

/* Bucket i counts faults that took [2^i, 2^(i+1)) microseconds; bucket 0 also less than 1, the last all above. */
#define GMEM_LATENCY_BUCKETS 24

struct gmem_pager_stats {
	size_t size; /* sizeof(struct gmem_pager_stats) */
	uint64_t missing, minor; /* faults read, by kind */
	uint64_t removes; /* REMOVE events */
	uint64_t demand_pages; /* pages brought in because of a fault, fault-around included */
	uint64_t fill_pages; /* pages brought in by gmem_pager_fill() */
	uint64_t zero_pages; /* known to be zero: nothing was read, and nothing written by the fill */
	uint64_t read_bytes; /* asked of sources */
	uint64_t retries; /* EAGAIN, EEXIST, short results met */
	uint64_t errors, poisoned;
	uint64_t latency[GMEM_LATENCY_BUCKETS]; /* from a fault's being read to its being resolved */
	uint64_t latency_max_ns, latency_sum_ns, latency_count;
	uint32_t user_mode_only; /* 1 if a view was registered with a user-mode-only descriptor */
	uint64_t gave_up; /* faults that were given up: GMEM_PAGER_GAVE_UP */
	uint64_t pending; /* faults read and not resolved yet */
	uint64_t replay_pages; /* pages brought in by gmem_pager_replay() */
};

int gmem_pager_stats(const struct gmem_pager *pager, struct gmem_pager_stats *stats);

/* ----------------------------------------------------------------------------------------- working set */

/*
 * Which pages a guest wanted first, in what order and when: recorded by a pager, brought in ahead of the guest the next
 * time. Kept in a file, gmem-workset(5). One thread at a time, but for gmem_workset_stat().
 *
 * A page is told by its *part* and its offset there: a part is one source; parts are numbered in the order in which the
 * regions that are recorded, or replayed, name them, and offsets are the source's own. So a trace fits any restore
 * of the same snapshot, wherever its memory is mapped.
 */
struct gmem_workset;

#define GMEM_WORKSET_IDENTITY_LEN 32u
#define GMEM_WORKSET_MAX_PARTS 256u
#define GMEM_WORKSET_MAX_ENTRIES (1u << 22)

struct gmem_workset_opts {
	size_t size; /* sizeof(struct gmem_workset_opts) */
	/* Of the snapshot, whatever its owner takes for that (an image's uuid, a digest); all zero: not known. */
	uint8_t identity[GMEM_WORKSET_IDENTITY_LEN];
	uint32_t max_entries; /* after so many, nothing more is recorded; 0: 2^20, at most 2^22 */
};

/*
 * A new one, to be recorded into `path`, which must not exist yet: as the guest runs it is appended to, so that
 * whenever the process dies, what is there can be used. NULL: in memory only. `opts` may be NULL. -EEXIST, -EINVAL,
 * -ENOMEM, and the errors of creating a file.
 */
int gmem_workset_create(const char *path, const struct gmem_workset_opts *opts, struct gmem_workset **ret);
/*
 * One that was recorded. What is torn or damaged at its end is left out: the entries before it are used. -EMEDIUMTYPE
 * (no working set), -EPROTONOSUPPORT (of a newer gmem), -EBADMSG (damaged at its beginning), -ENOENT, -EACCES, -ENOMEM.
 */
int gmem_workset_open(const char *path, struct gmem_workset **ret);
int gmem_workset_open_fd(int fd, const char *name, struct gmem_workset **ret); /* `name` for error texts; fd borrowed */
/* Writes it whole, synced, in place of what was at `path`: there is the one or the other at any time. */
int gmem_workset_save(struct gmem_workset *ws, const char *path);
void gmem_workset_close(struct gmem_workset *ws); /* NULL is allowed. Ends a recording into it first. */

struct gmem_workset_entry {
	size_t size; /* sizeof(struct gmem_workset_entry) */
	uint32_t part;
	uint64_t off, len; /* in the part; multiples of 4 KiB. No page is in two entries */
	uint64_t ns; /* of its first touch, since the recording began; entries are in this order but for a moment */
	uint32_t touches; /* faults it was made from */
};

int gmem_workset_entry(const struct gmem_workset *ws, uint64_t i, struct gmem_workset_entry *ret); /* -ERANGE */
/*
 * Adds one by hand, at the end. The part is made, or made longer, as it needs. What is in an entry already is left out.
 * -EINVAL (also: it has a file, or is being recorded into), -ENOSPC (max_entries, parts), -ENOMEM.
 */
int gmem_workset_add(struct gmem_workset *ws, const struct gmem_workset_entry *entry);

struct gmem_workset_stat {
	size_t size; /* sizeof(struct gmem_workset_stat) */
	uint8_t identity[GMEM_WORKSET_IDENTITY_LEN];
	uint32_t parts;
	uint64_t entries, pages; /* what there is */
	uint64_t lost; /* touches that were not recorded: too many at once, or max_entries */
	bool torn; /* gmem_workset_open() left something out */
	bool recording;
	/* Of all replays that were measured. */
	uint32_t runs;
	uint64_t cut_from; /* entries before the last gmem_workset_cut(); 0: never cut */
	/*
	 * Of the last one: entries that were in place when the guest wanted them; that it wanted before; that it was
	 * not seen to touch; pages it wanted that are in no entry.
	 */
	uint64_t hits, late, unused, missed;
	bool observed; /* GMEM_REPLAY_OBSERVE; else what was not seen is taken for a hit, and none for unused */
	uint64_t replay_ns, replayed_pages; /* from the call to its return; pages it brought in */
};

int gmem_workset_stat(struct gmem_workset *ws, struct gmem_workset_stat *ret);

/*
 * Records what is touched in these regions of the pager, or, with `regions` NULL, in all that it has by now, until
 * gmem_workset_stop(), gmem_workset_close() or gmem_pager_free(). A fault costs it a few tens of nanoseconds; a thread
 * of the pager's writes. What is touched without a fault is not seen: it was in place, or came with a neighbour, and
 * then it is part of the neighbour's entry. -EBUSY (a region, or the working set, is being recorded), -EINVAL (it has
 * entries; no such region), -ENOSPC (parts), -ENOMEM, -EAGAIN (thread).
 */
int gmem_pager_record(struct gmem_pager *pager, struct gmem_workset *ws, const unsigned int *regions, size_t nregions);
/* All that was touched before the call is in the working set, and in its file, when it returns. 0 if none goes on. */
int gmem_workset_stop(struct gmem_workset *ws);

/* What is replayed is put into the memory, but not mapped: touching it is a fault, a cheap one, and is seen. */
#define GMEM_REPLAY_OBSERVE (1u << 0)

struct gmem_replay_opts {
	size_t size; /* sizeof(struct gmem_replay_opts) */
	uint32_t flags; /* GMEM_REPLAY_* */
	const unsigned int *regions; /* as gmem_pager_record() */
	size_t nregions;
	uint8_t identity[GMEM_WORKSET_IDENTITY_LEN]; /* of the snapshot; all zero: not known, and not compared */
};

/*
 * Brings in the pages of the working set, in its order but for batches of up to 2 MiB, skipping what is in place and
 * giving way to faults. gmem_pager_fill() in another thread waits meanwhile. Returns the pages it brought in, the error
 * of `progress`, -ESTALE (it is of another snapshot: the identities, the number of parts or their lengths differ),
 * -EBUSY (one is replayed in this pager already), -ESRCH, -EINVAL, -ENOMEM. Pages that are lost are poisoned, and a
 * source that says "not now" makes it leave pages out: what it leaves out the fault or the fill brings in.
 *
 * It is measured: when each entry came to be in place and, where that is seen, when it was touched, until
 * gmem_workset_stop(), gmem_workset_close() or gmem_pager_free(). `opts` may be NULL.
 */
int64_t gmem_pager_replay(struct gmem_pager *pager, struct gmem_workset *ws, const struct gmem_replay_opts *opts,
			  gmem_progress_fn progress, void *opaque);

struct gmem_workset_cut {
	size_t size; /* sizeof(struct gmem_workset_cut) */
	uint64_t fill_bytes_per_s; /* the background fill that follows the replay; 0: none will */
	uint64_t fault_ns; /* what a fault costs the guest that brings a page in; 0: 20,000 */
	bool dry; /* only tell */
	uint64_t ret_keep; /* entries */
	uint64_t ret_cost_ns, ret_cost_whole_ns; /* of replaying these, and of replaying all */
};

/*
 * Cuts the working set where, by the replay that was measured last, replaying more would bring nothing: where the cost
 * that gmem-workset(5) defines is least, and of such places the first. -ENODATA (no replay was measured), -EBUSY (it
 * goes on), -EINVAL, -ENOMEM.
 */
int gmem_workset_cut(struct gmem_workset *ws, struct gmem_workset_cut *cut);

/* ----------------------------------------------------------------------------------------------- image */

/* A saved memory, open for reading; format in gmem-image(5). Nothing in the file is trusted. Any thread may read. */
struct gmem_image;

/*
 * Opens and checks header, section table and the root of each index; the rest is checked when it is read. -EBADMSG
 * (damaged: the text names what and where), -EPROTONOSUPPORT (written by a newer gmem), -ENOENT, -EACCES, -ENODATA
 * (truncated), -EMEDIUMTYPE (not an image at all).
 */
int gmem_image_open(const char *path, struct gmem_image **ret);
int gmem_image_open_fd(int fd, const char *name, struct gmem_image **ret); /* `name` for error texts; fd duplicated */
void gmem_image_close(struct gmem_image *image);

int gmem_image_fd(const struct gmem_image *image); /* borrowed */
const uint8_t *gmem_image_uuid(const struct gmem_image *image); /* 16 bytes */

struct gmem_image_region {
	size_t size; /* sizeof(struct gmem_image_region) */
	const char *name; /* belongs to the image */
	uint64_t gpa, len; /* bytes; gpa is UINT64_MAX where the saver did not know it */
	uint64_t data_pages; /* pages with stored bytes; the others are zero */
	uint64_t stored_bytes; /* in the image, after compression */
};

size_t gmem_image_nregions(const struct gmem_image *image);
int gmem_image_region(const struct gmem_image *image, size_t i, struct gmem_image_region *ret); /* -ERANGE */

/*
 * A named section ("device-state", "command-line", ...): its checked bytes, allocated; the caller frees them with
 * free(). -ENOENT, -EBADMSG.
 */
int gmem_image_section(const struct gmem_image *image, const char *name, void **ret, size_t *ret_len);

/* The sections by number: `*ret_name` belongs to the image. -ERANGE. */
size_t gmem_image_nsections(const struct gmem_image *image);
int gmem_image_section_at(const struct gmem_image *image, size_t i, const char **ret_name, uint64_t *ret_len);

/* Reads pages of a region, verifying every chunk touched. -EBADMSG names chunk and offset. */
int gmem_image_read(struct gmem_image *image, size_t region, uint64_t off, void *buf, size_t len);

/* A region as a source. The image must stay open until the source is freed. */
int gmem_source_new_image(struct gmem_image *image, size_t region, struct gmem_source **ret);

/*
 * Reads and checks everything. Returns 0, or -EBADMSG with the first damage as text; `report`, if not NULL, is told
 * each.
 */
int gmem_image_verify(struct gmem_image *image, void (*report)(void *opaque, const char *text), void *report_opaque,
		      gmem_progress_fn progress, void *opaque);

enum gmem_compression { GMEM_COMPRESS_ZSTD = 0, GMEM_COMPRESS_NONE = 1 };

/* What the header says. */
struct gmem_image_info {
	size_t size;		/* sizeof(struct gmem_image_info), set by the caller */
	uint32_t version;
	uint32_t chunk_len;
	enum gmem_compression compression;
	uint64_t file_len;
	uint64_t created_ns;	/* since 1970 */
	const char *writer;	/* "gmem 0.1.0"; belongs to the image, comes from the file */
};

int gmem_image_query(const struct gmem_image *image, struct gmem_image_info *ret);	/* -EINVAL (size) */

/* Writing: create, add, commit. The file appears under its name only in gmem_image_commit(), complete and synced. */
struct gmem_image_writer;

struct gmem_image_writer_opts {
	size_t size; /* sizeof(struct gmem_image_writer_opts) */
	enum gmem_compression compression;
	int level; /* zstd level, 1..19; 0 is 1 */
	uint32_t chunk_len; /* bytes, a power of two, 4 KiB..256 KiB; 0 is 64 KiB with zstd, 4 KiB without */
	unsigned int threads; /* 0 is one per online CPU, at most 8 */
};

/*
 * Creates a temporary file, mode 0600, beside `path`. -EEXIST is not an error: an existing `path` is replaced at
 * commit.
 */
int gmem_image_create(const char *path, const struct gmem_image_writer_opts *opts, struct gmem_image_writer **ret);
/*
 * Adds a region: `len` bytes read from `fd` at `off` (a memory file: holes are skipped). -EIO/-ENOSPC/-EFBIG from the
 * disk, -EEXIST (name).
 */
int gmem_image_add_region(struct gmem_image_writer *writer, const char *name, uint64_t gpa, int fd, uint64_t off,
			  uint64_t len, gmem_progress_fn progress, void *opaque);
int gmem_image_add_section(struct gmem_image_writer *writer, const char *name, const void *data, size_t len);
int gmem_image_commit(
	struct gmem_image_writer *writer); /* fsync, rename, fsync of the folder; frees the writer, also on failure */
void gmem_image_abort(struct gmem_image_writer *writer); /* removes the temporary file. NULL is allowed */

/* ---------------------------------------------------------------------------------------------- keeper */

/*
 * A keeper is a process that holds what must outlive a page server: the memory, its page states, the userfault
 * descriptors and the image. It serves no page. A server that dies is replaced by gmem_server_connect() from another
 * process; the program whose memory it is waits meanwhile.
 */
struct gmem_keeper;

/*
 * Makes the keeper's listening socket at `path` (mode 0600; an abandoned socket is replaced, a live one is
 * -EADDRINUSE).
 */
int gmem_keeper_create(const char *path, struct gmem_keeper **ret);
/* Closes; the process that ran it removes the socket. NULL is allowed. */
void gmem_keeper_free(struct gmem_keeper *keeper);

/*
 * Before gmem_keeper_run(), files first: up to 32 of them, each with the image region it is filled from (-EOPNOTSUPP:
 * one of huge pages; -EBUSY: one that has private pages, or is some guest's); then the image, open for reading
 * (gmem_image_fd(); duplicated) and by name.
 */
int gmem_keeper_add_file(struct gmem_keeper *keeper, struct gmem_file *file, size_t image_region);
int gmem_keeper_set_image(struct gmem_keeper *keeper, int image_fd, const char *path);

/*
 * The program's end of a socket pair for gmem_attach_view() or the attach preload; one attaching process per keeper.
 * Borrowed; inheritable. After fork(), free the keeper everywhere but where it runs: it knows that the program is gone
 * when nobody holds this end any more.
 */
int gmem_keeper_attach_fd(struct gmem_keeper *keeper);

/*
 * Makes a keeper anew when the old one has died: takes memory, states and userfault descriptors from the attached
 * process itself (pidfd_getfd(2), which needs the right to trace it) and the image by its path. Then
 * gmem_keeper_run() as usual. -ENOENT (nothing of gmem's in that process), -ESRCH, -EPERM, -EACCES, -ESTALE (another
 * file is under the image's name now), -EBUSY (a server lives).
 */
int gmem_keeper_adopt(const char *path, pid_t pid, struct gmem_keeper **ret);

/*
 * Runs the keeper: call it in a process of its own (after fork()). Returns 0 when the attached process has ended, or
 * when nobody is left who could attach; negative errno on failure. It lets go of nothing before.
 */
int gmem_keeper_run(struct gmem_keeper *keeper);

/*
 * In the program: registers a view with userfaultfd, missing|minor, hands it to the keeper behind `attach_fd` and
 * waits until it is held. Call before the first touch. On failure unmap the view. -EPERM, -ENOSYS, -EOPNOTSUPP (no
 * userfaultfd), -EBUSY (registered already, or private pages), -ENOENT (not a file of this keeper's), -ENOSPC,
 * -ECONNRESET (keeper gone), -EPROTO.
 */
int gmem_attach_view(int attach_fd, struct gmem_view *view);

/*
 * Ends the server of process `pid`'s memory, wherever it is, and waits for its end: before gmem_keeper_adopt(), where
 * a keeper cannot be asked to. 0 also if none lives. -ESRCH, -EPERM, -EACCES, -EBUSY (it does not end within 10 s).
 */
int gmem_server_end(pid_t pid);

struct gmem_server_opts {
	size_t size; /* sizeof(struct gmem_server_opts) */
	bool take_over; /* kill the server that holds the keeper now, and wait for its end */
	void (*event)(void *opaque, const struct gmem_pager_event *event); /* as gmem_pager_opts */
	void *opaque;
	/*
	 * Where the pages of an image's region come from: a reference for the server. NULL: from the image. Called
	 * during gmem_server_connect() and by the server's thread.
	 */
	int (*source)(void *opaque, struct gmem_image *image, size_t region, struct gmem_source **ret);
};

/* A page server behind a keeper: its pager with all regions the keeper holds, and those it gets later. */
struct gmem_server;

/*
 * Connects to a keeper. Fences the server before it: -EBUSY while that one lives (the text names its pid), then takes
 * the next generation, wakes every range and serves. -ENOENT, -ECONNREFUSED (no keeper there), -EPERM (another user's),
 * -EBUSY also for one that take_over could not end within 10 s, -EPROTO, and the errors of gmem_image_open().
 */
int gmem_server_connect(const char *path, const struct gmem_server_opts *opts, struct gmem_server **ret);

void gmem_server_free(struct gmem_server *server); /* stops serving; the keeper lives on */

struct gmem_pager *gmem_server_pager(struct gmem_server *server); /* borrowed */

struct gmem_server_status {
	size_t size; /* sizeof(struct gmem_server_status) */
	size_t nfiles, nregions;
	pid_t vm_pid; /* the attached process, 0 if none is yet */
	uint32_t generation; /* how many servers there were, this one included */
	uint32_t note; /* what gmem_server_set_note() of this server or one before it said last; 0 at first */
	int attach_error; /* negative errno: the program could not attach some memory; 0 otherwise */
	char attach_text[256]; /* why */
	bool keeper_alive;
	/* The program could open no full userfaultfd: its system calls on memory not yet in place fail (-EFAULT). */
	bool user_mode_only;
	bool fill_wanted; /* somebody waits for the memory to be complete (gmem_file_want_fill()) */
};

int gmem_server_status(struct gmem_server *server, struct gmem_server_status *status);

/*
 * Looks at every mapping the attached process has of the server's files (/proc/PID/maps): each must be registered, or
 * bytes that are not in place yet could be read as zero through it. -EPERM names one that is not, -EACCES, -ESRCH.
 */
int gmem_server_check_mappings(struct gmem_server *server);

/* Leaves a word with the memory for the servers that come after: how far its user has got, say. Needs a file. */
void gmem_server_set_note(struct gmem_server *server, uint32_t note);

/* What it serves from, borrowed. */
struct gmem_image *gmem_server_image(struct gmem_server *server);

/* A file of the server's, borrowed; NULL past the end. */
struct gmem_file *gmem_server_file(struct gmem_server *server, size_t i);

/* ---------------------------------------------------------------------------------------- service client */

/* What is to be served of a view: all of it, from `source_off` of the source on. */
struct gmem_service_view {
	struct gmem_view *view;
	uint64_t source_off; /* of the view's first byte; a multiple of gmem_file_page_size() */
};

struct gmem_service_attach_opts {
	size_t size; /* sizeof(struct gmem_service_attach_opts) */
	const char *source; /* which of the service's sources; NULL: the one its socket is for */
	const char *name; /* what this machine is called; NULL: nothing. Printable ASCII, 127 bytes, as `source` */
	/*
	 * How many userfault descriptors the views are dealt out over, one after the other: one does not scale with the
	 * threads that fault. 0: one. At most 32, and no more than there are views (gmem_view_split()).
	 */
	unsigned int uffds;
	unsigned int timeout_ms; /* to wait for the service's answer; 0: 30 s; UINT_MAX: as long as it lives */
};

/*
 * In the program: registers views of one file with userfaultfd, missing|minor, and has the page server at the UNIX
 * socket `path` serve them. Before the first touch of the file's memory, by any way. At most 1024 views; those of the
 * same bytes must have the same of the source. `opts` may be NULL. Returns when they are served. The program gives
 * memory back by gmem_file_punch() alone: madvise(2) on a view is not heard of. Private pages are out of the question
 * from then on. Any thread; nobody else may be in a call with these views.
 *
 * -EINVAL (size, names, counts, alignment, views of several files or that reach past the end, sources that differ),
 * -ENOENT, -ECONNREFUSED (nobody there), -EAGAIN (it takes no more connections), -EACCES (not one's own service),
 * -EPERM, -ENOSYS, -EOPNOTSUPP (no userfaultfd; the kernel engine; a view that has had private pages), -EBUSY
 * (registered already, or private pages), -EIO (in a forked child), -EMFILE, -ENOMEM; what the service answers, with
 * its text (-EREMOTEIO: its error is one of those that follow): in all these cases the views are as they were, and who
 * touched them meanwhile waited until then. -ETIMEDOUT, -ECONNRESET, -EPROTO: no answer, so that it may serve them or
 * not. Unmap the views then, untouched: they stay registered, and their touchers would wait.
 */
int gmem_service_attach(const char *path, const struct gmem_service_attach_opts *opts,
			const struct gmem_service_view *views, size_t n);
/* --------------------------------------------------------------------------------------------- service */

/*
 * A page server for many machines. Clients connect to a UNIX socket, hand over the userfault descriptors of their
 * memory, and are served from sources: Firecracker, by the protocol of each of its versions, and gmem's own attach
 * (gmem-serve-protocol(7)). Every machine has a pager of its own, so that none waits for another's source. What is
 * known of the machines is kept in a directory, and their descriptors with whoever minds this process: a service that
 * is killed is followed by another that goes on.
 */
struct gmem_service;

enum gmem_service_event_kind {
	GMEM_SERVICE_CONNECTED = 1, /* a machine is known: its handshake is complete */
	GMEM_SERVICE_RESUMED = 2, /* one that a service before this one knew is served again */
	GMEM_SERVICE_SERVING = 3, /* its source is open: faults are served from now on */
	GMEM_SERVICE_COMPLETE = 4, /* nothing of it is missing any more */
	GMEM_SERVICE_DEGRADED = 5, /* its source fails: touchers wait. Told once a second at most */
	GMEM_SERVICE_POISONED = 6, /* a page of it is lost */
	GMEM_SERVICE_GAVE_UP = 7, /* a fault has waited for longer than `patience_ms` */
	GMEM_SERVICE_LOST = 8, /* it cannot be served, and why; it is tried again */
	GMEM_SERVICE_ENDED = 9, /* its process has ended */
	GMEM_SERVICE_REFUSED = 10, /* a client, and why; `vm` may be "" */
	GMEM_SERVICE_TROUBLE = 11, /* of the service's own: it goes on, with something missing */
};

struct gmem_service_event {
	enum gmem_service_event_kind kind;
	int error; /* negative errno or 0 */
	const char *text; /* what happened; one line; valid during the call, as the other strings */
	const char *vm, *name; /* the machine's id, which stays its own over restarts, and what its client calls it */
	pid_t pid; /* of the client, 0: not known */
	uid_t uid;
};

struct gmem_service_opts {
	size_t size; /* sizeof(struct gmem_service_opts) */
	/*
	 * Where machines are written down: a directory of this user's alone, made if there is none, best of a tmpfs.
	 * NULL: nowhere; then machines are lost with this process.
	 */
	const char *state_dir;
	uint32_t flags; /* GMEM_SERVICE_* */
	unsigned int resolvers; /* threads a machine that resolve its faults; 0: 2 */
	enum gmem_pager_policy policy; /* of faults that wait for longer than this many ms; 0: for ever */
	uint32_t patience_ms;
	uint32_t handshake_ms; /* how long a client may take to say what it wants; 0: 5000 */
	uint32_t max_vms, max_vms_per_user; /* 0: 1024, and as many for one user */
	uint64_t max_memory, max_memory_per_user; /* bytes, of all machines together; 0: no limit */
	const uid_t *users; /* who may connect besides root and this process's user; borrowed until create returns */
	size_t nusers;
	/* Called from any of the service's threads, one at a time; must not call into the service. May be NULL. */
	void (*event)(void *opaque, const struct gmem_service_event *event);
	void *opaque;
};

#define GMEM_SERVICE_NO_FILL (1u << 0) /* bring in only what is touched */
#define GMEM_SERVICE_TAKE_OVER (1u << 1) /* kill a service that has the state directory now, and wait for its end */

/*
 * Makes a service, which does nothing before gmem_service_run(). Reads, and removes from the environment, what whoever
 * minds this process has passed to it (sd_listen_fds(3), sd_notify(3)): call it before there are threads. -EBUSY:
 * another service has the state directory. -EINVAL (size, flags, policy), -EPERM (the directory is another user's, or
 * others may write to it), -ENOMEM, -EMFILE, and errors of opening the directory.
 */
int gmem_service_create(const struct gmem_service_opts *opts, struct gmem_service **ret);

/* Not while it runs. The machines' memory is served no more, but what is kept is kept. NULL is allowed. */
void gmem_service_free(struct gmem_service *service);

/*
 * Before it runs: a source by name (1 to 127 bytes of printable ASCII without quotes and backslashes), opened as
 * gmem_source_open() does, once now, to say what is wrong with it, and once a machine. The first one added is the
 * default: what clients get that cannot say. -EINVAL, -EEXIST, -ENOMEM, and errors of gmem_source_open().
 */
int gmem_service_add_source(struct gmem_service *service, const char *name, const char *spec);
int gmem_service_set_default(struct gmem_service *service, const char *name); /* -ENOENT */

/*
 * Before it runs: the working set of a source's machines (gmem_workset), kept in a file. Where there is one, it is
 * brought in first. Where there is none, what one machine touches is recorded for a minute, or until it ends, and saved
 * there; nothing else of that machine is brought in meanwhile. -ENOENT (no such source), -ENOMEM.
 */
int gmem_service_set_workset(struct gmem_service *service, const char *source, const char *path);

/*
 * Before it runs: a socket (mode 0600) whose clients get this source if they cannot say which; NULL: the default. Where
 * somebody else listens there for us already (systemd, a minder), that one is used. -ENOENT (no such source),
 * -EADDRINUSE, -ENAMETOOLONG, and errors of socket(2), bind(2).
 */
int gmem_service_listen(struct gmem_service *service, const char *path, const char *source);

/*
 * Before it runs: a socket (mode 0600) that answers each HTTP request with gmem_service_metrics(). Errors as
 * gmem_service_listen().
 */
int gmem_service_listen_metrics(struct gmem_service *service, const char *path);

/* Takes up what machines there are, then serves until gmem_service_stop(). 0, or why it could not begin. */
int gmem_service_run(struct gmem_service *service);

/* Ends gmem_service_run(), also one that has yet to begin. Any thread; a signal handler too. */
void gmem_service_stop(struct gmem_service *service);

/*
 * What is going on, in Prometheus' text format; the names are in gmem-serve(1). Any thread. The text is the caller's:
 * free(3). -ENOMEM.
 */
int gmem_service_metrics(struct gmem_service *service, char **ret);

#ifdef __cplusplus
}
#endif
#endif
