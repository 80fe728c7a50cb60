/* Threads are inside the library while another one forks: the child can use it, or is told clearly that it cannot. It
   never hangs. */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 200, PATIENCE_MS = 10000 };

static headcount_node *node;
static const char *registry;
static uint64_t generation;
static atomic_int ends;
static atomic_long calls;

static int look(void) {
    headcount_snapshot now = {.struct_size = sizeof now};
    headcount_process_status processes[16] = {{.struct_size = sizeof processes[0]}};
    return headcount_get_snapshot(node, &now, NULL, 0, processes, 16);
}

static void *looks(void *argument) {
    (void)argument;
    for (; !atomic_load(&ends); atomic_fetch_add(&calls, 1))
        CODE(HEADCOUNT_OK, look());
    return NULL;
}

static void *reads(void *argument) {
    (void)argument;
    for (; !atomic_load(&ends); atomic_fetch_add(&calls, 1)) {
        headcount_event events[8] = {{.struct_size = sizeof(headcount_event)}};
        uint64_t cursor = 0, number = 0;
        CODE(HEADCOUNT_OK, headcount_events(node, &cursor, events, 8, &number, NULL));
        headcount_counts counts = {.struct_size = sizeof counts};
        headcount_get_counts(node, generation, &counts);
    }
    return NULL;
}

static void *opens(void *argument) {
    (void)argument;
    for (; !atomic_load(&ends); atomic_fetch_add(&calls, 1)) {
        headcount_options options = {.struct_size = sizeof options, .node = "c-test", .path = registry};
        headcount_node *same = NULL;
        CODE(HEADCOUNT_OK, headcount_open(&options, &same));
        CHECK(same == node);
    }
    return NULL;
}

/* As a process that is master and worker in one. */
static void *joins(void *argument) {
    (void)argument;
    headcount_event event = {.struct_size = sizeof event};
    for (; !atomic_load(&ends); atomic_fetch_add(&calls, 1)) {
        headcount_join_options join = join_options(generation, 1);
        join.wait_ms = 50;
        int code = headcount_join(node, &join, &event);
        while (code == HEADCOUNT_EVENT)
            code = headcount_next(node, 0, &event);
        headcount_beat(node);
        code = headcount_leave(node, generation, 50, &event);
        while (code == HEADCOUNT_EVENT)
            code = headcount_next(node, 0, &event);
    }
    return NULL;
}

/* Whatever the answers are: there is one. */
static void child(void) {
    headcount_event event = {.struct_size = sizeof event};
    CODE(HEADCOUNT_OK, look());
    headcount_join_options join = join_options(generation, 2);
    join.wait_ms = 1000;
    int code = headcount_join(node, &join, &event);
    CHECK(code == HEADCOUNT_EVENT || headcount_last_error()[0] != 0);
    while (code == HEADCOUNT_EVENT)
        code = headcount_next(node, 0, &event);
    headcount_options options = {.struct_size = sizeof options, .node = "c-test", .path = registry};
    headcount_node *same = NULL;
    code = headcount_open(&options, &same);
    CHECK(code == HEADCOUNT_OK || headcount_last_error()[0] != 0);
    uint64_t mine = 0;
    code = headcount_begin(node, 0, 1, &mine, &event);
    CHECK(code == HEADCOUNT_EVENT || headcount_last_error()[0] != 0);
    while (code == HEADCOUNT_EVENT)
        code = headcount_next(node, 0, &event);
    code = headcount_leave(node, generation, 1000, &event);
    while (code == HEADCOUNT_EVENT)
        code = headcount_next(node, 0, &event);
    _exit(0);
}

/* How it ended; -1: it hangs, and was killed. */
static int ended(pid_t pid) {
    int status;
    for (int ms = 0; ms < PATIENCE_MS; ms++) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            return status;
        CHECK(got == 0);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -1;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(300);
    registry = argv[1];
    headcount_options options = {
        .struct_size = sizeof options, .node = "c-test", .path = registry, .lock_timeout_ms = 2000};
    CODE(HEADCOUNT_OK, headcount_open(&options, &node));
    generation = begin(node, 3);
    void *(*const all[])(void *) = {looks, looks, reads, opens, joins};
    enum { THREADS = sizeof all / sizeof *all };
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, all[i], NULL) == 0);
    int hung = 0, failed = 0;
    for (int round = 0; round < ROUNDS && hung < 3; round++) {
        long before = atomic_load(&calls);
        while (atomic_load(&calls) < before + 20)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            child();
        int status = ended(pid);
        hung += status == -1;
        failed += status != -1 && status != 0;
        headcount_child_exited(node, pid, status == -1 ? 9 : status);
        if (status != 0)
            fprintf(stderr, "round %d: %s\n", round, status == -1 ? "the child hangs" : "the child failed");
    }
    atomic_store(&ends, 1);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(hung == 0 && failed == 0);
    return 0;
}
