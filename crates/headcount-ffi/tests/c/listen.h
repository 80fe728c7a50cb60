/* The host's end of the waker's socket. */
#ifndef LISTEN_H
#define LISTEN_H

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static inline int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CHECK(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

/* The next byte; 0: none in time; -1: the end. */
static inline int heard(int fd, int limit_ms) {
    struct pollfd readable = {fd, POLLIN, 0};
    if (poll(&readable, 1, limit_ms) <= 0)
        return 0;
    unsigned char byte;
    return read(fd, &byte, 1) == 1 ? byte : -1;
}

#endif
