/* What the C tests share. */
#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include <headcount.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition,          \
                    headcount_last_error());                                                                   \
            _Exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

/* The code of a call, compared, and shown if it is another. */
#define CODE(expected, call)                                                                                   \
    do {                                                                                                       \
        int32_t code_ = (call);                                                                                \
        if (code_ != (expected)) {                                                                             \
            fprintf(stderr, "%s:%d: %s gave %s, expected was %s (last error: %s)\n", __FILE__, __LINE__,       \
                    #call, headcount_error_name(code_), headcount_error_name(expected), headcount_last_error()); \
            _Exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

static inline headcount_node *open_node(const char *path) {
    headcount_options options = {.struct_size = sizeof options, .node = "c-test", .path = path};
    headcount_node *node = NULL;
    CODE(HEADCOUNT_OK, headcount_open(&options, &node));
    CHECK(node != NULL);
    return node;
}

static inline headcount_join_options join_options(uint64_t generation, int32_t worker_id) {
    return (headcount_join_options){
        .struct_size = sizeof(headcount_join_options),
        .generation = generation,
        .worker_id = worker_id,
        .wait_ms = HEADCOUNT_WAIT_LOCK_TIMEOUT,
    };
}

/* Finishes the event that is there: it must be of this kind, and nothing may follow. */
static inline void only(int32_t code, headcount_node *node, headcount_event *event, uint32_t kind) {
    CODE(HEADCOUNT_EVENT, code);
    CHECK(event->kind == kind);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, event));
}

/* A generation, announced and committed. */
static inline uint64_t begin(headcount_node *node, uint32_t workers) {
    headcount_event event = {.struct_size = sizeof event};
    uint64_t generation = 0;
    only(headcount_begin(node, 0, workers, &generation, &event), node, &event, HEADCOUNT_KIND_GENERATION_STARTED);
    CHECK(generation != 0 && event.generation == generation);
    CODE(HEADCOUNT_OK, headcount_commit(node, generation));
    return generation;
}

#endif
