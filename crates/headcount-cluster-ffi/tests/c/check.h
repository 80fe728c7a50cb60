/* What the C tests share. */
#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include <headcount_cluster.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition,          \
                    headcount_cluster_last_error());                                                           \
            _Exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

/* The code of a call, compared, and shown if it is another. */
#define CODE(expected, call)                                                                                   \
    do {                                                                                                       \
        int32_t code_ = (call);                                                                                \
        if (code_ != (expected)) {                                                                             \
            fprintf(stderr, "%s:%d: %s gave %s, expected was %s (last error: %s)\n", __FILE__, __LINE__,       \
                    #call, headcount_cluster_error_name(code_), headcount_cluster_error_name(expected),        \
                    headcount_cluster_last_error());                                                           \
            _Exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

static inline int says(const char *text) {
    return strstr(headcount_cluster_last_error(), text) != NULL;
}

#endif
