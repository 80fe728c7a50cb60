/* Threads that take a lock for the first time at the same moment: it is one lock for all of them. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

enum { THREADS = 4, NAMES = 500 };

static headcount_node *node;
static pthread_barrier_t begin_together;
static atomic_int inside[NAMES];

static void *takes_each(void *argument) {
    (void)argument;
    for (int i = 0; i < NAMES; i++) {
        char name[16];
        snprintf(name, sizeof name, "new%d", i);
        headcount_lock lock = {.struct_size = sizeof lock};
        pthread_barrier_wait(&begin_together);
        CODE(HEADCOUNT_OK, headcount_lock_acquire(node, name, 30000, &lock));
        CHECK(atomic_fetch_add(&inside[i], 1) == 0);
        usleep(100);
        CHECK(atomic_fetch_sub(&inside[i], 1) == 1);
        CODE(HEADCOUNT_OK, headcount_lock_release(node, name));
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    headcount_event event = {.struct_size = sizeof event};
    node = open_node(argv[1]);
    headcount_join_options join = join_options(begin(node, 1), 0);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
    CHECK(pthread_barrier_init(&begin_together, NULL, THREADS) == 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, takes_each, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
