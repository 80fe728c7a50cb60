/* Threads share a node: one's unfinished event holds up who wants the lock, and nobody else. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

static headcount_node *node;
static uint64_t generation;
static atomic_int finished;

static void *waits_for_the_lock(void *argument) {
    (void)argument;
    headcount_event event = {.struct_size = sizeof event};
    CODE(HEADCOUNT_ERR_BUSY, headcount_leave(node, 0, HEADCOUNT_WAIT_TRY, &event));
    CODE(HEADCOUNT_ERR_LOCK_TIMEOUT, headcount_leave(node, 0, 20, &event));
    CHECK(headcount_last_error()[0] != 0);
    /* Not this thread's event: it is waited for, not ended. */
    CODE(HEADCOUNT_EVENT, headcount_leave(node, 0, 30000, &event));
    CHECK(atomic_load(&finished) == 1 && event.kind == HEADCOUNT_KIND_WORKER_EXITED);
    while (headcount_next(node, 0, &event) == HEADCOUNT_EVENT)
        ;
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    headcount_event event = {.struct_size = sizeof event};
    node = open_node(argv[1]);
    generation = begin(node, 1);
    headcount_join_options join = join_options(generation, 0);
    CODE(HEADCOUNT_EVENT, headcount_join(node, &join, &event));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, waits_for_the_lock, NULL) == 0);
    for (int i = 0; i < 100; i++) {
        CODE(HEADCOUNT_OK, headcount_beat(node));
        headcount_counts counts = {.struct_size = sizeof counts};
        CODE(HEADCOUNT_OK, headcount_get_counts(node, 0, &counts));
        CHECK(counts.mine == 1);
        usleep(2000);
    }
    CHECK(headcount_last_error()[0] == 0); /* the other thread's errors are its own */
    atomic_store(&finished, 1);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    CHECK(pthread_join(thread, NULL) == 0);
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_beat(node));
    return 0;
}
