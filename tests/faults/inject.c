/* Preloaded into a program: counts its operations that change files below a folder, and at one of them kills it or fails the call.
 *
 * FAULT_FOLDER  the folder, an absolute path without links
 * FAULT_LOG     a file that gets one line for each operation
 * FAULT_AT      the operation that is disturbed, counted from 1; without it they are only counted
 * FAULT_KIND    kill: the program is killed before it. torn: it is killed after it, a write after half of its bytes.
 *               ENOSPC, EIO: the call fails, once.
 *
 * Only calls through the C library are seen, which are those of Rust's standard library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, KILL, TORN, FAIL };

static struct {
    char folder[PATH_MAX];
    size_t length;
    long at;
    enum kind kind;
    int error;
    int log;
} settings;
static atomic_long seen;

/* The function of the C library that one of these stands before. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void read_settings(void) {
    const char *folder = getenv("FAULT_FOLDER"), *log = getenv("FAULT_LOG"), *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    settings.log = -1;
    if (folder == NULL || strlen(folder) >= PATH_MAX) return;
    strcpy(settings.folder, folder);
    settings.length = strlen(folder);
    if (at != NULL && kind != NULL) {
        settings.at = atol(at);
        settings.kind = strcmp(kind, "kill") == 0 ? KILL : strcmp(kind, "torn") == 0 ? TORN : FAIL;
        settings.error = strcmp(kind, "ENOSPC") == 0 ? ENOSPC : EIO;
    }
    if (log != NULL) settings.log = NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static bool is_below(const char *path) {
    char next = path[0] == '\0' ? '\0' : path[settings.length];
    return strncmp(path, settings.folder, settings.length) == 0 && (next == '/' || next == '\0');
}

/* The path of an open file or folder, empty where it has none. */
static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
}

/* `name` as it is looked up from the folder `at`. */
static void absolute(int at, const char *name, char *path) {
    char from[PATH_MAX] = "";
    if (name[0] != '/') {
        if (at != AT_FDCWD) path_of(at, from);
        else if (getcwd(from, sizeof from) == NULL) from[0] = '\0';
    }
    while (strncmp(name, "./", 2) == 0) name += 2;
    int length = snprintf(path, PATH_MAX, name[0] == '/' ? "%s%s" : "%s/%s", from, name);
    if (length < 0 || length >= PATH_MAX) path[0] = '\0';
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What becomes of an operation on `path`: COUNT where it is done as ever. A program that is to be killed before it does not return. */
static enum kind verdict(const char *operation, const char *path) {
    if (settings.length == 0 || !is_below(path)) return COUNT;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (settings.log >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, operation, path + settings.length);
        if (length > 0 && NEXT(write)(settings.log, line, (size_t)length) < 0) abort();
    }
    if (settings.kind == COUNT || number != settings.at) return COUNT;
    if (settings.kind == KILL) die();
    if (settings.kind == FAIL) errno = settings.error;
    return settings.kind;
}

static enum kind verdict_at(const char *operation, int at, const char *name) {
    char path[PATH_MAX];
    int before = errno;
    absolute(at, name, path);
    errno = before;
    return verdict(operation, path);
}

static enum kind verdict_of(const char *operation, int fd) {
    char path[PATH_MAX];
    int before = errno;
    path_of(fd, path);
    errno = before;
    return verdict(operation, path);
}

/* Ends a function: fails, or does `call` and is killed after it, or only does it. */
#define DO(verdict, call)                    \
    do {                                     \
        enum kind found = (verdict);         \
        if (found == FAIL) return -1;        \
        __typeof__(call) result = (call);    \
        if (found == TORN) die();            \
        return result;                       \
    } while (0)

static bool changes(int flags) {
    return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
}

#define MODE(flags, last)                                            \
    mode_t mode = 0;                                                 \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                           \
        va_list rest;                                                \
        va_start(rest, last);                                        \
        mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                \
    }

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        MODE(flags, flags)                                                                        \
        DO(changes(flags) ? verdict_at("open", AT_FDCWD, path) : COUNT, NEXT(name)(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                 \
    int name(int at, const char *path, int flags, ...) {                                             \
        MODE(flags, flags)                                                                           \
        DO(changes(flags) ? verdict_at("open", at, path) : COUNT, NEXT(name)(at, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { DO(verdict_at("open", AT_FDCWD, path), NEXT(creat)(path, mode)); }
int creat64(const char *path, mode_t mode) { DO(verdict_at("open", AT_FDCWD, path), NEXT(creat64)(path, mode)); }

/* A torn write ends after half of its bytes. */
#define HALF(found, bytes) ((found) == TORN ? (bytes) / 2 : (bytes))

ssize_t write(int fd, const void *from, size_t bytes) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(write)(fd, from, HALF(found, bytes)));
}
ssize_t pwrite(int fd, const void *from, size_t bytes, off_t place) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(pwrite)(fd, from, HALF(found, bytes), place));
}
ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t place) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(pwrite64)(fd, from, HALF(found, bytes), place));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(writev)(fd, parts, found == TORN ? 1 : count));
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t place) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(pwritev)(fd, parts, found == TORN ? 1 : count, place));
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t place) {
    enum kind found = verdict_of("write", fd);
    DO(found, NEXT(pwritev64)(fd, parts, found == TORN ? 1 : count, place));
}
ssize_t copy_file_range(int from, off64_t *from_place, int to, off64_t *to_place, size_t bytes, unsigned flags) {
    enum kind found = verdict_of("write", to);
    DO(found, NEXT(copy_file_range)(from, from_place, to, to_place, HALF(found, bytes), flags));
}
ssize_t sendfile(int to, int from, off_t *place, size_t bytes) {
    enum kind found = verdict_of("write", to);
    DO(found, NEXT(sendfile)(to, from, place, HALF(found, bytes)));
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t bytes) {
    enum kind found = verdict_of("write", to);
    DO(found, NEXT(sendfile64)(to, from, place, HALF(found, bytes)));
}

int fsync(int fd) { DO(verdict_of("sync", fd), NEXT(fsync)(fd)); }
int fdatasync(int fd) { DO(verdict_of("sync", fd), NEXT(fdatasync)(fd)); }
int ftruncate(int fd, off_t length) { DO(verdict_of("truncate", fd), NEXT(ftruncate)(fd, length)); }
int ftruncate64(int fd, off64_t length) { DO(verdict_of("truncate", fd), NEXT(ftruncate64)(fd, length)); }
int truncate(const char *path, off_t length) { DO(verdict_at("truncate", AT_FDCWD, path), NEXT(truncate)(path, length)); }
int truncate64(const char *path, off64_t length) { DO(verdict_at("truncate", AT_FDCWD, path), NEXT(truncate64)(path, length)); }
int fallocate(int fd, int mode, off_t place, off_t length) { DO(verdict_of("write", fd), NEXT(fallocate)(fd, mode, place, length)); }
int fallocate64(int fd, int mode, off64_t place, off64_t length) {
    DO(verdict_of("write", fd), NEXT(fallocate64)(fd, mode, place, length));
}

/* A name that goes away below the folder counts like one that comes there. */
static enum kind verdict_of_two(const char *operation, int from_at, const char *from, int to_at, const char *to) {
    char path[PATH_MAX];
    absolute(from_at, from, path);
    return settings.length > 0 && is_below(path) ? verdict(operation, path) : verdict_at(operation, to_at, to);
}

int rename(const char *from, const char *to) { DO(verdict_of_two("rename", AT_FDCWD, from, AT_FDCWD, to), NEXT(rename)(from, to)); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    DO(verdict_of_two("rename", from_at, from, to_at, to), NEXT(renameat)(from_at, from, to_at, to));
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    DO(verdict_of_two("rename", from_at, from, to_at, to), NEXT(renameat2)(from_at, from, to_at, to, flags));
}
int link(const char *from, const char *to) { DO(verdict_at("link", AT_FDCWD, to), NEXT(link)(from, to)); }
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    DO(verdict_at("link", to_at, to), NEXT(linkat)(from_at, from, to_at, to, flags));
}
int symlink(const char *target, const char *path) { DO(verdict_at("link", AT_FDCWD, path), NEXT(symlink)(target, path)); }
int symlinkat(const char *target, int at, const char *path) { DO(verdict_at("link", at, path), NEXT(symlinkat)(target, at, path)); }
int unlink(const char *path) { DO(verdict_at("unlink", AT_FDCWD, path), NEXT(unlink)(path)); }
int unlinkat(int at, const char *path, int flags) { DO(verdict_at("unlink", at, path), NEXT(unlinkat)(at, path, flags)); }
int rmdir(const char *path) { DO(verdict_at("rmdir", AT_FDCWD, path), NEXT(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { DO(verdict_at("mkdir", AT_FDCWD, path), NEXT(mkdir)(path, mode)); }
int mkdirat(int at, const char *path, mode_t mode) { DO(verdict_at("mkdir", at, path), NEXT(mkdirat)(at, path, mode)); }
