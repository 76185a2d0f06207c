/* A disk that fails on demand, for LD_PRELOAD. FAILING_DISK names a file; while it exists and reads "<what> <errno>",
 *
 *   pages  writes of a store's pages
 *   sync   fdatasync, once the pages are written
 *   head   writes through descriptors opened O_DSYNC, which is how LMDB writes the head that makes a commit count
 *   heads  the same, though the bytes do reach the file
 *
 * fail with that errno. Everything else, and every other time, goes to the C library. And two that don't fail:
 *
 *   stuck  writes and fdatasync don't come back while the file says so; any number
 *   room   statvfs finds so many blocks free
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

static int failing(const char *what) {
    const char *path = getenv("FAILING_DISK");
    FILE *file = path ? fopen(path, "r") : NULL;
    char found[16] = "";
    int code = 0;
    if (!file) return 0;
    if (fscanf(file, "%15s %d", found, &code) != 2) code = 0;
    fclose(file);
    return strcmp(found, what) ? 0 : code;
}

static void wait_while_stuck(void) {
    while (failing("stuck")) usleep(20000);
}

static int with_room(struct statvfs *found, int failed) {
    int blocks = failing("room");
    if (!failed && blocks) found->f_bavail = found->f_bfree = blocks;
    return failed;
}

int statvfs(const char *path, struct statvfs *found) {
    int (*real)(const char *, struct statvfs *) =
        (int (*)(const char *, struct statvfs *))dlsym(RTLD_NEXT, "statvfs");
    return with_room(found, real(path, found));
}

int statvfs64(const char *path, struct statvfs64 *found) {
    return statvfs(path, (struct statvfs *)found); /* one structure where long has 64 bits */
}

static int is_head(int fd) { return (fcntl(fd, F_GETFL) & O_DSYNC) != 0; }

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int code = failing("sync");
    wait_while_stuck();
    if (code) { errno = code; return -1; }
    return real(fd);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    ssize_t (*real)(int, const void *, size_t, off_t) =
        (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    int code = failing(is_head(fd) ? "head" : "pages");
    wait_while_stuck();
    if (!code && is_head(fd) && (code = failing("heads"))) real(fd, data, size, offset);
    if (code) { errno = code; return -1; }
    return real(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t (*real)(int, const struct iovec *, int) =
        (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    int code = failing("pages");
    wait_while_stuck();
    if (code) { errno = code; return -1; }
    return real(fd, parts, count);
}
