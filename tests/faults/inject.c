/* Preloaded into a program: counts its operations that change files below a folder, and at one of them kills it or fails the call.
 *
 * FAULT_FOLDER  the folder, an absolute path without links
 * FAULT_LOG     a file that gets one line for each operation: its number, what it is, its path below the folder, where it is renamed to;
 *               with tabs between them
 * FAULT_AT      the number of the operation that is disturbed, from 1; without it they are only counted
 * FAULT_MODE    kill: the program is killed before it. torn: it is killed when half of the bytes are written.
 *               ENOSPC, EIO: the call fails, once.
 *
 * Only calls through the C library are seen, which are those of Rust's standard library; and only those of the program itself, not of
 * programs that it starts. A sync is counted and not carried out: it takes long, and nobody cuts the power here. */
#define _GNU_SOURCE
/* Its inline functions have the names of those below. */
#undef _FORTIFY_SOURCE
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

enum mode { COUNT, KILL, TORN, FAIL };

static struct {
    char folder[PATH_MAX];
    size_t length;
    long at;
    enum mode mode;
    int error;
    int log;
} settings = { .log = -1 };
static atomic_long seen;

/* The function of the C library that one of these stands before. */
#define NEXT(name)                                                       \
    ({                                                                   \
        static __typeof__(&name) next;                                   \
        if (next == NULL) next = (__typeof__(next))dlsym(RTLD_NEXT, #name); \
        next;                                                            \
    })

/* Ends a run that would prove nothing. */
static void give_up(const char *why) {
    fprintf(stderr, "inject: %s\n", why);
    _exit(99);
}

__attribute__((constructor)) static void read_settings(void) {
    const char *folder = getenv("FAULT_FOLDER"), *log = getenv("FAULT_LOG"), *at = getenv("FAULT_AT"), *mode = getenv("FAULT_MODE");
    if (folder == NULL || log == NULL || strlen(folder) >= PATH_MAX) give_up("FAULT_FOLDER and FAULT_LOG are needed");
    settings.log = NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (settings.log < 0) give_up("FAULT_LOG can't be written");
    if (at != NULL && mode != NULL) {
        settings.at = atol(at);
        settings.mode = strcmp(mode, "kill") == 0 ? KILL : strcmp(mode, "torn") == 0 ? TORN : FAIL;
        settings.error = strcmp(mode, "ENOSPC") == 0 ? ENOSPC : EIO;
    }
    strcpy(settings.folder, folder);
    settings.length = strlen(folder);
    unsetenv("LD_PRELOAD");
}

/* Whether a path is the folder or lies below it. */
static bool is_below(const char *path) {
    if (settings.length == 0 || strncmp(path, settings.folder, settings.length) != 0) return false;
    return path[settings.length] == '/' || path[settings.length] == '\0';
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

static void write_down(long number, const char *operation, const char *path, const char *to) {
    char line[2 * PATH_MAX + 64];
    const char *below = path + settings.length, *end = is_below(to) ? to + settings.length : to;
    int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", number, operation, below, end);
    if (length < 0 || NEXT(write)(settings.log, line, (size_t)length) != length) give_up("FAULT_LOG can't be written");
}

/* What becomes of an operation on `path`: COUNT where it is done as ever. Where the program is to be killed before it, this does not
 * return. */
static enum mode verdict_to(const char *operation, const char *path, const char *to) {
    if (!is_below(path)) return COUNT;
    int before = errno;
    long number = atomic_fetch_add(&seen, 1) + 1;
    write_down(number, operation, path, to);
    errno = before;
    if (settings.mode == COUNT || number != settings.at) return COUNT;
    if (settings.mode == KILL) die();
    if (settings.mode == FAIL) errno = settings.error;
    return settings.mode;
}

static enum mode verdict_at(const char *operation, int at, const char *name) {
    char path[PATH_MAX];
    int before = errno;
    absolute(at, name, path);
    errno = before;
    return verdict_to(operation, path, "");
}

static enum mode verdict_of(const char *operation, int fd) {
    char path[PATH_MAX];
    int before = errno;
    path_of(fd, path);
    errno = before;
    return verdict_to(operation, path, "");
}

static enum mode verdict_of_rename(int from_at, const char *from, int to_at, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    int before = errno;
    absolute(from_at, from, old);
    absolute(to_at, to, new);
    errno = before;
    return verdict_to("rename", old, new);
}

/* Ends a function: fails, or does `call` and is killed after it, or only does it. */
#define DO(verdict, call)                    \
    do {                                     \
        enum mode found = (verdict);         \
        if (found == FAIL) return -1;        \
        __typeof__(call) result = (call);    \
        if (found == TORN) die();            \
        return result;                       \
    } while (0)

static bool makes(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }
static bool changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0 || makes(flags); }

#define MODE(flags)                                       \
    mode_t mode = 0;                                      \
    if (makes(flags)) {                                   \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                     \
    }

#define OPEN(name)                                                                                      \
    int name(const char *path, int flags, ...) {                                                        \
        MODE(flags)                                                                                     \
        DO(changes(flags) ? verdict_at("open", AT_FDCWD, path) : COUNT, NEXT(name)(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                  \
    int name(int at, const char *path, int flags, ...) {                                              \
        MODE(flags)                                                                                   \
        DO(changes(flags) ? verdict_at("open", at, path) : COUNT, NEXT(name)(at, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { DO(verdict_at("open", AT_FDCWD, path), NEXT(creat)(path, mode)); }
int creat64(const char *path, mode_t mode) { DO(verdict_at("open", AT_FDCWD, path), NEXT(creat64)(path, mode)); }

/* Of a torn write; of several parts the first. */
#define HALF(bytes) (torn == TORN ? (bytes) / 2 : (bytes))
#define ONE(count) (torn == TORN ? 1 : (count))
#define WRITE(fd, call)                          \
    {                                            \
        enum mode torn = verdict_of("write", fd); \
        DO(torn, call);                          \
    }

ssize_t write(int fd, const void *from, size_t bytes)
    WRITE(fd, NEXT(write)(fd, from, HALF(bytes)))
ssize_t pwrite(int fd, const void *from, size_t bytes, off_t place)
    WRITE(fd, NEXT(pwrite)(fd, from, HALF(bytes), place))
ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t place)
    WRITE(fd, NEXT(pwrite64)(fd, from, HALF(bytes), place))
ssize_t writev(int fd, const struct iovec *parts, int count)
    WRITE(fd, NEXT(writev)(fd, parts, ONE(count)))
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t place)
    WRITE(fd, NEXT(pwritev)(fd, parts, ONE(count), place))
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t place)
    WRITE(fd, NEXT(pwritev64)(fd, parts, ONE(count), place))
ssize_t copy_file_range(int from, off64_t *from_place, int to, off64_t *to_place, size_t bytes, unsigned flags)
    WRITE(to, NEXT(copy_file_range)(from, from_place, to, to_place, HALF(bytes), flags))
ssize_t sendfile(int to, int from, off_t *place, size_t bytes)
    WRITE(to, NEXT(sendfile)(to, from, place, HALF(bytes)))
ssize_t sendfile64(int to, int from, off64_t *place, size_t bytes)
    WRITE(to, NEXT(sendfile64)(to, from, place, HALF(bytes)))
ssize_t splice(int from, off64_t *from_place, int to, off64_t *to_place, size_t bytes, unsigned flags)
    WRITE(to, NEXT(splice)(from, from_place, to, to_place, HALF(bytes), flags))

static const char *sync_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISDIR(found.st_mode) ? "sync folder" : "sync";
}

int fsync(int fd) { DO(verdict_of(sync_of(fd), fd), 0); }
int fdatasync(int fd) { DO(verdict_of(sync_of(fd), fd), 0); }
int ftruncate(int fd, off_t length) { DO(verdict_of("truncate", fd), NEXT(ftruncate)(fd, length)); }
int ftruncate64(int fd, off64_t length) { DO(verdict_of("truncate", fd), NEXT(ftruncate64)(fd, length)); }
int truncate(const char *path, off_t length) { DO(verdict_at("truncate", AT_FDCWD, path), NEXT(truncate)(path, length)); }
int truncate64(const char *path, off64_t length) { DO(verdict_at("truncate", AT_FDCWD, path), NEXT(truncate64)(path, length)); }
int fallocate(int fd, int mode, off_t place, off_t length) { DO(verdict_of("truncate", fd), NEXT(fallocate)(fd, mode, place, length)); }
int fallocate64(int fd, int mode, off64_t place, off64_t length) {
    DO(verdict_of("truncate", fd), NEXT(fallocate64)(fd, mode, place, length));
}

int rename(const char *from, const char *to) { DO(verdict_of_rename(AT_FDCWD, from, AT_FDCWD, to), NEXT(rename)(from, to)); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    DO(verdict_of_rename(from_at, from, to_at, to), NEXT(renameat)(from_at, from, to_at, to));
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    DO(verdict_of_rename(from_at, from, to_at, to), NEXT(renameat2)(from_at, from, to_at, to, flags));
}
int link(const char *from, const char *to) { DO(verdict_at("link", AT_FDCWD, to), NEXT(link)(from, to)); }
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    DO(verdict_at("link", to_at, to), NEXT(linkat)(from_at, from, to_at, to, flags));
}
int symlink(const char *target, const char *path) { DO(verdict_at("link", AT_FDCWD, path), NEXT(symlink)(target, path)); }
int symlinkat(const char *target, int at, const char *path) { DO(verdict_at("link", at, path), NEXT(symlinkat)(target, at, path)); }
int unlink(const char *path) { DO(verdict_at("unlink", AT_FDCWD, path), NEXT(unlink)(path)); }
int unlinkat(int at, const char *path, int flags) {
    DO(verdict_at((flags & AT_REMOVEDIR) != 0 ? "rmdir" : "unlink", at, path), NEXT(unlinkat)(at, path, flags));
}
int rmdir(const char *path) { DO(verdict_at("rmdir", AT_FDCWD, path), NEXT(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { DO(verdict_at("mkdir", AT_FDCWD, path), NEXT(mkdir)(path, mode)); }
int mkdirat(int at, const char *path, mode_t mode) { DO(verdict_at("mkdir", at, path), NEXT(mkdirat)(at, path, mode)); }
