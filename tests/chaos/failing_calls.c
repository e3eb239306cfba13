/* Makes system calls of a process fail, one exactly: loaded with LD_PRELOAD, steered through a file that both map.
 *
 * A call counts while `armed` is set, if its class is wanted and its path is below one of the roots. Calls by descriptor
 * count by the path of what is open. Allocations count from a size on, wherever they are. See calls.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, STAT, READLINK, RENAME, FSYNC, MMAP, GETDENTS, SYMLINK, UNLINK, LINK, WRITE, DUP, CLOSE, WATCH, ALLOC, THREAD };
#define SHORT (-1)
#define LONGEST 512

struct control {
    _Atomic uint32_t armed;
    uint32_t classes;         /* a bit each */
    int32_t error;            /* an errno, or SHORT */
    uint32_t first, length;   /* which of the calls fail: from the first-th on, so many */
    int32_t pid;              /* of this process only; 0: of every one */
    _Atomic uint32_t seen, failed;
    uint64_t least;           /* bytes of the smallest allocation that counts */
    char call[32], path[LONGEST]; /* the first that failed */
    char roots[2][LONGEST];
};

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

static struct control *control;
static __thread int inside;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAILING_CALLS");
    int fd = name == NULL ? -1 : syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *found = (void *)syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0L);
    syscall(SYS_close, fd);
    if (found != MAP_FAILED) control = found;
}

static int wanted(int class) {
    return control != NULL && !inside && atomic_load(&control->armed) && control->classes >> class & 1
        && (control->pid == 0 || control->pid == getpid());
}

/* Count a call, and return what it fails with: 0 if it does not. */
static int count(const char *call, const char *path) {
    uint32_t number = atomic_fetch_add(&control->seen, 1) + 1;
    if (number < control->first || number - control->first >= control->length) return 0;
    if (atomic_fetch_add(&control->failed, 1) == 0) {
        snprintf(control->call, sizeof control->call, "%s", call);
        snprintf(control->path, sizeof control->path, "%s", path);
    }
    return control->error;
}

static int in_scope(const char *path) {
    for (int number = 0; number < 2; number++) {
        const char *root = control->roots[number];
        size_t length = strlen(root);
        if (length && strncmp(path, root, length) == 0 && (path[length] == 0 || path[length] == '/')) return 1;
    }
    return 0;
}

static void path_of(int fd, char *out) {
    char name[40];
    if (fd == AT_FDCWD) snprintf(name, sizeof name, "/proc/self/cwd");
    else snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, name, out, LONGEST - 1);
    out[length < 0 ? 0 : length] = 0;
}

static void whole_path(int folder, const char *path, char *out) {
    int fd, used = 0;
    char before[LONGEST];
    if (path == NULL) path = "";
    if (sscanf(path, "/proc/self/fd/%d%n", &fd, &used) == 1 && used) {
        path_of(fd, before);
        snprintf(out, LONGEST, "%s%s", before, path + used);
    } else if (path[0] == '/') {
        snprintf(out, LONGEST, "%s", path);
    } else {
        path_of(folder, before);
        snprintf(out, LONGEST, path[0] ? "%s/%s" : "%s", before, path);
    }
}

static int by_path(int class, const char *call, int folder, const char *path) {
    char found[LONGEST];
    int before = errno, error = 0;
    if (!wanted(class)) return 0;
    inside = 1;
    whole_path(folder, path, found);
    if (in_scope(found)) error = count(call, found);
    inside = 0;
    errno = before;
    return error;
}

static int by_fd(int class, const char *call, int fd) { return by_path(class, call, fd, ""); }

static int by_size(const char *call, size_t size) {
    char what[40];
    int error = 0, before = errno;
    if (!wanted(ALLOC) || size < control->least) return 0;
    inside = 1;
    snprintf(what, sizeof what, "%zu bytes", size);
    error = count(call, what);
    inside = 0;
    errno = before;
    return error;
}

#define GENUINE(name) static __typeof__(&name) genuine; if (!genuine) genuine = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(failure, result) do { int e_ = (failure); if (e_ > 0) { errno = e_; return result; } } while (0)

/* --- by path */

#define OPEN_CALL(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        GENUINE(name); FAIL(by_path(OPEN, #name, AT_FDCWD, path), -1); return genuine(path, flags, mode); }
OPEN_CALL(open) OPEN_CALL(open64)
#define OPENAT_CALL(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        GENUINE(name); FAIL(by_path(OPEN, #name, folder, path), -1); return genuine(folder, path, flags, mode); }
OPENAT_CALL(openat) OPENAT_CALL(openat64)
DIR *opendir(const char *path) { GENUINE(opendir); FAIL(by_path(OPEN, "opendir", AT_FDCWD, path), NULL); return genuine(path); }

#define STAT_CALL(name, type) \
    int name(const char *path, struct type *found) { \
        GENUINE(name); FAIL(by_path(STAT, #name, AT_FDCWD, path), -1); return genuine(path, found); }
/* What programs call that were linked with a glibc before 2.33. */
int __xstat64(int version, const char *path, struct stat64 *found);
int __xstat64(int version, const char *path, struct stat64 *found) {
    GENUINE(__xstat64); FAIL(by_path(STAT, "stat64", AT_FDCWD, path), -1); return genuine(version, path, found); }
int __lxstat64(int version, const char *path, struct stat64 *found);
int __lxstat64(int version, const char *path, struct stat64 *found) {
    GENUINE(__lxstat64); FAIL(by_path(STAT, "lstat64", AT_FDCWD, path), -1); return genuine(version, path, found); }
int __fxstat64(int version, int fd, struct stat64 *found);
int __fxstat64(int version, int fd, struct stat64 *found) {
    GENUINE(__fxstat64); FAIL(by_fd(STAT, "fstat64", fd), -1); return genuine(version, fd, found); }
STAT_CALL(stat, stat) STAT_CALL(stat64, stat64) STAT_CALL(lstat, stat) STAT_CALL(lstat64, stat64)
#define FSTAT_CALL(name, type) \
    int name(int fd, struct type *found) { GENUINE(name); FAIL(by_fd(STAT, #name, fd), -1); return genuine(fd, found); }
FSTAT_CALL(fstat, stat) FSTAT_CALL(fstat64, stat64)
#define FSTATAT_CALL(name, type) \
    int name(int folder, const char *path, struct type *found, int flags) { \
        GENUINE(name); FAIL(by_path(STAT, #name, folder, path), -1); return genuine(folder, path, found, flags); }
FSTATAT_CALL(fstatat, stat) FSTATAT_CALL(fstatat64, stat64)
int statx(int folder, const char *path, int flags, unsigned mask, struct statx *found) {
    GENUINE(statx); FAIL(by_path(STAT, "statx", folder, path), -1); return genuine(folder, path, flags, mask, found); }
int access(const char *path, int mode) { GENUINE(access); FAIL(by_path(STAT, "access", AT_FDCWD, path), -1); return genuine(path, mode); }

ssize_t readlink(const char *path, char *into, size_t size) {
    GENUINE(readlink); FAIL(by_path(READLINK, "readlink", AT_FDCWD, path), -1); return genuine(path, into, size); }
ssize_t readlinkat(int folder, const char *path, char *into, size_t size) {
    GENUINE(readlinkat); FAIL(by_path(READLINK, "readlinkat", folder, path), -1); return genuine(folder, path, into, size); }

int rename(const char *from, const char *to) { GENUINE(rename); FAIL(by_path(RENAME, "rename", AT_FDCWD, to), -1); return genuine(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    GENUINE(renameat); FAIL(by_path(RENAME, "renameat", b, to), -1); return genuine(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    GENUINE(renameat2); FAIL(by_path(RENAME, "renameat2", b, to), -1); return genuine(a, from, b, to, flags); }
int symlink(const char *text, const char *path) { GENUINE(symlink); FAIL(by_path(SYMLINK, "symlink", AT_FDCWD, path), -1); return genuine(text, path); }
int symlinkat(const char *text, int folder, const char *path) {
    GENUINE(symlinkat); FAIL(by_path(SYMLINK, "symlinkat", folder, path), -1); return genuine(text, folder, path); }
int unlink(const char *path) { GENUINE(unlink); FAIL(by_path(UNLINK, "unlink", AT_FDCWD, path), -1); return genuine(path); }
int unlinkat(int folder, const char *path, int flags) {
    GENUINE(unlinkat); FAIL(by_path(UNLINK, "unlinkat", folder, path), -1); return genuine(folder, path, flags); }
int link(const char *from, const char *to) { GENUINE(link); FAIL(by_path(LINK, "link", AT_FDCWD, to), -1); return genuine(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    GENUINE(linkat); FAIL(by_path(LINK, "linkat", b, to), -1); return genuine(a, from, b, to, flags); }
int mkdir(const char *path, mode_t mode) { GENUINE(mkdir); FAIL(by_path(WRITE, "mkdir", AT_FDCWD, path), -1); return genuine(path, mode); }
int inotify_add_watch(int fd, const char *path, uint32_t mask);
int inotify_add_watch(int fd, const char *path, uint32_t mask) {
    GENUINE(inotify_add_watch); FAIL(by_path(WATCH, "inotify_add_watch", AT_FDCWD, path), -1); return genuine(fd, path, mask); }

/* --- by descriptor */

#define SHORTER(error, size) ((error) == SHORT && (size) > 1 ? ((size) + 1) / 2 : (size))
#define READ_CALL(name, class, buffer) \
    ssize_t name(int fd, buffer into, size_t size) { \
        GENUINE(name); int error = by_fd(class, #name, fd); FAIL(error, -1); return genuine(fd, into, SHORTER(error, size)); }
READ_CALL(read, READ, void *) READ_CALL(write, WRITE, const void *)
#define PREAD_CALL(name, class, buffer, offset) \
    ssize_t name(int fd, buffer into, size_t size, offset at) { \
        GENUINE(name); int error = by_fd(class, #name, fd); FAIL(error, -1); return genuine(fd, into, SHORTER(error, size), at); }
PREAD_CALL(pread, READ, void *, off_t) PREAD_CALL(pread64, READ, void *, off64_t)
PREAD_CALL(pwrite, WRITE, const void *, off_t) PREAD_CALL(pwrite64, WRITE, const void *, off64_t)
#define PREADV_CALL(name, offset) \
    ssize_t name(int fd, const struct iovec *into, int count, offset at) { \
        GENUINE(name); int error = by_fd(READ, #name, fd); FAIL(error, -1); \
        if (error == SHORT && count > 0) { struct iovec less = *into; less.iov_len = SHORTER(error, less.iov_len); return genuine(fd, &less, 1, at); } \
        return genuine(fd, into, count, at); }
PREADV_CALL(preadv, off_t) PREADV_CALL(preadv64, off64_t)
#define PREADV2_CALL(name, offset) \
    ssize_t name(int fd, const struct iovec *into, int count, offset at, int flags) { \
        GENUINE(name); int error = by_fd(READ, #name, fd); FAIL(error, -1); \
        if (error == SHORT && count > 0) { struct iovec less = *into; less.iov_len = SHORTER(error, less.iov_len); return genuine(fd, &less, 1, at, flags); } \
        return genuine(fd, into, count, at, flags); }
PREADV2_CALL(preadv2, off_t) PREADV2_CALL(preadv64v2, off64_t)

int fsync(int fd) { GENUINE(fsync); FAIL(by_fd(FSYNC, "fsync", fd), -1); return genuine(fd); }
int fdatasync(int fd) { GENUINE(fdatasync); FAIL(by_fd(FSYNC, "fdatasync", fd), -1); return genuine(fd); }
int fchmod(int fd, mode_t mode) { GENUINE(fchmod); FAIL(by_fd(WRITE, "fchmod", fd), -1); return genuine(fd, mode); }
/* As Linux does it: the descriptor is closed, whatever the call returns. */
int close(int fd) { GENUINE(close); int error = by_fd(CLOSE, "close", fd); int result = genuine(fd); FAIL(error, -1); return result; }
DIR *fdopendir(int fd) { GENUINE(fdopendir); FAIL(by_fd(OPEN, "fdopendir", fd), NULL); return genuine(fd); }
struct dirent *readdir(DIR *folder) { GENUINE(readdir); FAIL(by_fd(GETDENTS, "readdir", dirfd(folder)), NULL); return genuine(folder); }
struct dirent64 *readdir64(DIR *folder) { GENUINE(readdir64); FAIL(by_fd(GETDENTS, "readdir64", dirfd(folder)), NULL); return genuine(folder); }
#define FCNTL_CALL(name) \
    int name(int fd, int command, ...) { \
        va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \
        GENUINE(name); if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) FAIL(by_fd(DUP, #name, fd), -1); return genuine(fd, command, argument); }
FCNTL_CALL(fcntl) FCNTL_CALL(fcntl64)
int dup(int fd) { GENUINE(dup); FAIL(by_fd(DUP, "dup", fd), -1); return genuine(fd); }

/* --- memory and threads */

#define MMAP_CALL(name, offset) \
    void *name(void *at, size_t size, int protection, int flags, int fd, offset from) { \
        GENUINE(name); FAIL(fd >= 0 ? by_fd(MMAP, #name, fd) : by_size(#name, size), MAP_FAILED); \
        return genuine(at, size, protection, flags, fd, from); }
MMAP_CALL(mmap, off_t) MMAP_CALL(mmap64, off64_t)
void *malloc(size_t size) { FAIL(by_size("malloc", size), NULL); return __libc_malloc(size); }
void *calloc(size_t number, size_t size) { FAIL(by_size("calloc", number * size), NULL); return __libc_calloc(number, size); }
void *realloc(void *before, size_t size) { FAIL(by_size("realloc", size), NULL); return __libc_realloc(before, size); }
int posix_memalign(void **found, size_t alignment, size_t size) {
    GENUINE(posix_memalign); int error = by_size("posix_memalign", size); return error > 0 ? error : genuine(found, alignment, size); }
int pthread_create(pthread_t *made, const pthread_attr_t *how, void *(*run)(void *), void *with) {
    GENUINE(pthread_create);
    if (wanted(THREAD)) { int error = count("pthread_create", "a thread"); if (error > 0) return error; }
    return genuine(made, how, run, with); }
