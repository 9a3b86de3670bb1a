/*
 * The guard of one export: preloaded into tgtd, it stands between tgtd and the export's image.
 *
 * Before every operation on the image it asks, in memory that it shares with the worker, whether the lease still runs and
 * whether the gate is open, and it counts the operation while it is in flight. A lease that has run out, or an image store
 * that answers "you are fenced" (-ESHUTDOWN), ends the process at once, so that an initiator gets no answer rather than a
 * wrong one. A thread of the guard watches the lease as well, so an idle process ends too.
 *
 * bs_rbd is itself loaded with dlopen, so librbd is in a scope that RTLD_NEXT does not search: its functions are looked up
 * in the library by name. File LUNs go through libc, where only calls on the LUN's own file are guarded.
 *
 * The worker loads this library too, for the functions at the end: they give Python the memory order it cannot express.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STATE_ENV "SANDERLING_GUARD_STATE" /* path of the shared state: required, or this is no target process */
#define FILE_ENV "SANDERLING_GUARD_FILE"   /* path of the image, for a file LUN */
#define EXPORTED __attribute__((visibility("default")))

enum { LAYOUT_VERSION = 1, STATE_BYTES = 4096, REFUSED_EXIT = 70, ENDED_EXIT = 71 };
enum gate { CLOSED = 0, OPEN = 1 };
enum ended { RUNNING = 0, LEASE_LAPSED = 1, FENCED = 2 };

/* The layout, version 1. iscsi_worker/targets/guard.py has the same; a change of either needs a new version. */
struct state {
    char magic[8];                  /*  0  "SNDGUARD" */
    uint32_t version;               /*  8  LAYOUT_VERSION */
    _Atomic uint32_t gate;          /* 12  enum gate; a futex. Written by the worker */
    _Atomic int64_t lease_until_ns; /* 16  CLOCK_MONOTONIC. Written by the worker */
    _Atomic uint32_t renewals;      /* 24  counts changes of the lease; a futex. Written by the worker */
    _Atomic uint32_t in_flight;     /* 28  operations past the gate and not yet answered by the image */
    _Atomic uint32_t held;          /* 32  operations waiting at the gate */
    _Atomic uint32_t ended;         /* 36  enum ended: why the guard ended the process */
    _Atomic int64_t ended_at_ns;    /* 40  CLOCK_MONOTONIC, when it did */
    _Atomic int32_t pid;            /* 48  the process that has claimed this state */
    _Atomic uint32_t connected;     /* 52  1 once `client` is written and the client has the latest OSD map */
    uint64_t start_time;            /* 56  of that process, in clock ticks since boot (/proc/PID/stat, field 22) */
    char client[192];               /* 64  addresses and nonce of the RADOS client, as rados_getaddrs tells them */
};
_Static_assert(sizeof(struct state) == 256, "guard.py knows this layout");
_Static_assert(offsetof(struct state, client) == 64, "guard.py knows this layout");

static struct state *state;
static dev_t image_dev;
static ino_t image_ino;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t while_it_is, int64_t for_ns) {
    struct timespec bound = {for_ns / 1000000000, for_ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, while_it_is, &bound, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static _Noreturn void refuse(const char *why) {
    fprintf(stderr, "tgt_guard: refused: %s\n", why);
    _exit(REFUSED_EXIT);
}

static _Noreturn void end(enum ended why) {
    uint32_t running = RUNNING;
    int64_t at = now_ns();
    if (atomic_compare_exchange_strong(&state->ended, &running, why))
        atomic_store(&state->ended_at_ns, at);
    _exit(ENDED_EXIT);
}

/* What is left of the lease; does not return when there is nothing left. */
static int64_t lease_left_ns(void) {
    int64_t left = atomic_load(&state->lease_until_ns) - now_ns();
    if (left <= 0)
        end(LEASE_LAPSED);
    return left;
}

enum kind { READS, WRITES };

/* Writes that waited at the gate and are not answered yet. Their initiators may have lost patience, sent them again in other
 * sessions and gone on: no later write may overtake them, or the old data would land on top of the new. */
static _Atomic uint32_t late;

/* Counted first and asked second: whoever closes the gate and then reads 0 in flight knows that nothing will begin. */
static int enter(enum kind kind) {
    int is_late = 0;
    for (;;) {
        atomic_fetch_add(&state->in_flight, 1);
        uint32_t before = kind == WRITES && !is_late ? atomic_load(&late) : 0;
        int open = atomic_load(&state->gate) == OPEN;
        if (open && before == 0)
            break;
        atomic_fetch_sub(&state->in_flight, 1);
        if (open) {
            futex_wait(&late, before, lease_left_ns());
            continue;
        }
        if (kind == WRITES && !is_late) {
            is_late = 1;
            atomic_fetch_add(&late, 1);
        }
        atomic_fetch_add(&state->held, 1);
        futex_wait(&state->gate, CLOSED, lease_left_ns());
        atomic_fetch_sub(&state->held, 1);
    }
    lease_left_ns(); /* asked last: no wait may lie between this and the operation */
    return is_late;
}

/* An answer leaves only while the lease runs: a read that took longer may be older than another owner's writes. */
static void leave(int is_late, int64_t result) {
    if (result == -ESHUTDOWN)
        end(FENCED);
    lease_left_ns();
    atomic_fetch_sub(&state->in_flight, 1);
    if (is_late) {
        atomic_fetch_sub(&late, 1);
        futex_wake(&late);
    }
}

static void *watch(void *unused) {
    (void)unused;
    for (;;) {
        uint32_t seen = atomic_load(&state->renewals);
        futex_wait(&state->renewals, seen, lease_left_ns());
    }
    return NULL;
}

static void start_watching(void) {
    sigset_t every, before;
    pthread_t thread;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    if (pthread_create(&thread, NULL, watch, NULL) != 0)
        refuse("no thread to watch the lease");
    pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static uint64_t own_start_time(void) {
    char stat[1024], *field;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, stat, sizeof stat - 1);
    if (got <= 0)
        refuse("/proc/self/stat cannot be read");
    close(fd);
    stat[got] = '\0';
    field = strrchr(stat, ')'); /* the name may hold spaces; field 3 follows it */
    for (int number = 2; field != NULL && number < 22; number++)
        field = strchr(field + 1, ' ');
    if (field == NULL)
        refuse("/proc/self/stat has no start time");
    return strtoull(field, NULL, 10);
}

/* A process without this library's state never does I/O: it ends here, before main. Children of tgtd inherit neither. */
__attribute__((constructor)) static void claim(void) {
    const char *path = getenv(STATE_ENV), *image = getenv(FILE_ENV);
    struct stat found;
    int fd;
    if (path == NULL)
        return; /* the worker, which only calls the functions at the end */
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &found) != 0 || found.st_size < STATE_BYTES)
        refuse("the shared state cannot be opened");
    state = mmap(NULL, STATE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (state == MAP_FAILED || memcmp(state->magic, "SNDGUARD", 8) != 0 || state->version != LAYOUT_VERSION)
        refuse("the shared state is of another version");
    if (image != NULL) {
        if (stat(image, &found) != 0)
            refuse("the image cannot be found");
        image_dev = found.st_dev;
        image_ino = found.st_ino;
    }
    if (atomic_load(&state->pid) != 0)
        refuse("another process has claimed the shared state");
    state->start_time = own_start_time();
    atomic_store(&state->pid, getpid());
    unsetenv("LD_PRELOAD");
    unsetenv(STATE_ENV);
    unsetenv(FILE_ENV);
    lease_left_ns();
    start_watching();
}

static void *real(const char *library, const char *name) {
    void *handle = library == NULL ? RTLD_NEXT : dlopen(library, RTLD_LAZY);
    void *found = handle == NULL && library != NULL ? NULL : dlsym(handle, name);
    if (found == NULL)
        refuse(name);
    return found;
}

/* Resolved once; two threads that come first at the same time find the same address. */
#define REAL(library, type, name)                                                                                              \
    static _Atomic(type) found_##name;                                                                                         \
    type next = atomic_load_explicit(&found_##name, memory_order_relaxed);                                                     \
    if (next == NULL) {                                                                                                        \
        next = (type)real(library, #name);                                                                                     \
        atomic_store_explicit(&found_##name, next, memory_order_relaxed);                                                      \
    }

/* RBD: what tgt's bs_rbd imports and that reaches the image. */

typedef int (*connect_fn)(void *);
typedef int (*conf_set_fn)(void *, const char *, const char *);
typedef int (*getaddrs_fn)(void *, char **);
typedef ssize_t (*rbd_read_fn)(void *, uint64_t, size_t, char *);
typedef ssize_t (*rbd_write_fn)(void *, uint64_t, size_t, const char *);
typedef int (*rbd_discard_fn)(void *, uint64_t, uint64_t);
typedef int (*rbd_flush_fn)(void *);

static int connect_and_tell(void *cluster) {
    REAL("librados.so.2", conf_set_fn, rados_conf_set)
    conf_set_fn conf_set = next;
    {
        REAL("librados.so.2", connect_fn, rados_connect)
        int failed = conf_set(cluster, "rbd_cache", "false"); /* a cache would outlive the fence of what it holds */
        if (failed == 0)
            failed = next(cluster);
        if (failed != 0)
            return failed;
    }
    {
        REAL("librados.so.2", connect_fn, rados_wait_for_latest_osdmap) /* one in which the last owner is fenced */
        int failed = next(cluster);
        if (failed != 0)
            return failed;
    }
    {
        REAL("librados.so.2", getaddrs_fn, rados_getaddrs)
        char *addresses = NULL;
        int failed = next(cluster, &addresses);
        if (failed != 0 || addresses == NULL || strlen(addresses) >= sizeof state->client) {
            free(addresses);
            return failed != 0 ? failed : -EIO;
        }
        strcpy(state->client, addresses);
        free(addresses);
    }
    atomic_store(&state->connected, 1);
    return 0;
}

EXPORTED int rados_connect(void *cluster) {
    if (state != NULL)
        return connect_and_tell(cluster);
    REAL("librados.so.2", connect_fn, rados_connect)
    return next(cluster);
}

EXPORTED ssize_t rbd_read(void *image, uint64_t offset, size_t length, char *into) {
    REAL("librbd.so.1", rbd_read_fn, rbd_read)
    if (state == NULL)
        return next(image, offset, length, into);
    int is_late = enter(READS);
    ssize_t result = length == 0 ? 0 : next(image, offset, length, into); /* librbd aborts on a zero-length read */
    leave(is_late, result);
    return result;
}

EXPORTED ssize_t rbd_write(void *image, uint64_t offset, size_t length, const char *from) {
    REAL("librbd.so.1", rbd_write_fn, rbd_write)
    if (state == NULL)
        return next(image, offset, length, from);
    int is_late = enter(WRITES);
    ssize_t result = length == 0 ? 0 : next(image, offset, length, from);
    leave(is_late, result);
    return result;
}

EXPORTED int rbd_discard(void *image, uint64_t offset, uint64_t length) {
    REAL("librbd.so.1", rbd_discard_fn, rbd_discard)
    if (state == NULL)
        return next(image, offset, length);
    int is_late = enter(WRITES);
    int result = length == 0 ? 0 : next(image, offset, length);
    leave(is_late, result);
    return result;
}

EXPORTED int rbd_flush(void *image) {
    REAL("librbd.so.1", rbd_flush_fn, rbd_flush)
    if (state == NULL)
        return next(image);
    int is_late = enter(READS);
    int result = next(image);
    leave(is_late, result);
    return result;
}

/* Files: what tgt's bs_rdwr calls, on the image's own file only. */

typedef ssize_t (*pread_fn)(int, void *, size_t, off_t);
typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off_t);
typedef int (*sync_fn)(int);
typedef int (*fallocate_fn)(int, int, off_t, off_t);

static int is_image(int fd) {
    struct stat found;
    return state != NULL && image_ino != 0 && fstat(fd, &found) == 0 && found.st_ino == image_ino && found.st_dev == image_dev;
}

#define GUARDED(kind, type, function, fd, ...)                                                                                 \
    REAL(NULL, type, function)                                                                                                 \
    if (!is_image(fd))                                                                                                         \
        return next(fd, ##__VA_ARGS__);                                                                                        \
    int is_late = enter(kind);                                                                                                 \
    __auto_type result = next(fd, ##__VA_ARGS__);                                                                              \
    int error = errno;                                                                                                         \
    leave(is_late, result < 0 ? -(int64_t)error : result);                                                                     \
    errno = error;                                                                                                             \
    return result;

EXPORTED ssize_t pread(int fd, void *into, size_t length, off_t offset) {
    GUARDED(READS, pread_fn, pread, fd, into, length, offset)
}

EXPORTED ssize_t pread64(int fd, void *into, size_t length, off_t offset) {
    GUARDED(READS, pread_fn, pread64, fd, into, length, offset)
}

EXPORTED ssize_t pwrite(int fd, const void *from, size_t length, off_t offset) {
    GUARDED(WRITES, pwrite_fn, pwrite, fd, from, length, offset)
}

EXPORTED ssize_t pwrite64(int fd, const void *from, size_t length, off_t offset) {
    GUARDED(WRITES, pwrite_fn, pwrite64, fd, from, length, offset)
}

EXPORTED int fsync(int fd) { GUARDED(READS, sync_fn, fsync, fd) }

EXPORTED int fdatasync(int fd) { GUARDED(READS, sync_fn, fdatasync, fd) }

EXPORTED int fallocate(int fd, int mode, off_t offset, off_t length) {
    GUARDED(WRITES, fallocate_fn, fallocate, fd, mode, offset, length)
}

/* For the worker. */

/* After this has returned with the gate closed, an operation that is not counted in flight will not begin. */
EXPORTED void sanderling_guard_set_gate(struct state *shared, int open) {
    atomic_store(&shared->gate, open ? OPEN : CLOSED);
    futex_wake(&shared->gate);
}

/* Moves the deadline; 0, and nothing moved, when the old one has passed: that process has ended or is about to. */
EXPORTED int sanderling_guard_renew(struct state *shared, int64_t until_ns) {
    int64_t before = atomic_load(&shared->lease_until_ns);
    do {
        if (atomic_load(&shared->ended) != RUNNING || before <= now_ns())
            return 0;
    } while (!atomic_compare_exchange_weak(&shared->lease_until_ns, &before, until_ns));
    atomic_fetch_add(&shared->renewals, 1);
    futex_wake(&shared->renewals);
    return 1;
}

EXPORTED uint32_t sanderling_guard_in_flight(struct state *shared) { return atomic_load(&shared->in_flight); }
