/* Waiting for a lock without sleeping in a call: the waker says when to try. */
#include "check.h"
#include "listen.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

static headcount_node *node;
static headcount_event event = {.struct_size = sizeof event};
static headcount_lock lock = {.struct_size = sizeof lock};
static uint64_t generation;

/* A worker that takes the lock, says so, and has it until it is told to release it; then it stays. */
static pid_t holder(int32_t id, int *release) {
    int ready[2], order[2];
    CHECK(pipe(ready) == 0 && pipe(order) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(order[1]);
        headcount_join_options join = join_options(generation, id);
        only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
        CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "keys", -1, &lock));
        CHECK(write(ready[1], "r", 1) == 1);
        CHECK(heard(order[0], 30000) == 'r');
        CODE(HEADCOUNT_OK, headcount_lock_release(node, "keys"));
        for (;;) {
            headcount_beat(node);
            usleep(100000);
        }
    }
    close(ready[1]);
    close(order[0]);
    CHECK(heard(ready[0], 10000) == 'r');
    close(ready[0]);
    *release = order[1];
    return pid;
}

/* Whether this process is seen to wait for the lock. */
static uint32_t waiters(void) {
    headcount_singleton all[4] = {{.struct_size = sizeof all[0]}};
    uint64_t number = 0;
    CODE(HEADCOUNT_OK, headcount_get_singletons(node, all, 4, &number));
    CHECK(number == 1 && strcmp(all[0].name, "keys") == 0);
    return all[0].waiters;
}

static void wait_for_waiters(uint32_t wanted) {
    for (int i = 0; waiters() != wanted; i++) {
        CHECK(i < 10000);
        usleep(1000);
    }
}

/* A worker that keeps the node lock, in a callback, until it is told to go on. */
static pid_t keeper(int32_t id, int *go_on) {
    int ready[2], order[2];
    CHECK(pipe(ready) == 0 && pipe(order) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        headcount_join_options join = join_options(generation, id);
        only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
        CODE(HEADCOUNT_EVENT, headcount_drain(node, 0, -1, &event));
        CHECK(write(ready[1], "r", 1) == 1);
        CHECK(heard(order[0], 30000) == 'r');
        CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
        _Exit(0);
    }
    CHECK(heard(ready[0], 10000) == 'r');
    *go_on = order[1];
    return pid;
}

/* The next 'L'. The watch rings as well. */
static void hear_try(int fd) {
    int byte;
    while ((byte = heard(fd, 10000)) == 'E') {
        int32_t code = headcount_process(node, &event);
        for (; code == HEADCOUNT_EVENT; code = headcount_next(node, 0, &event))
            ;
        CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
    }
    CHECK(byte == 'L');
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    node = open_node(argv[1]);
    generation = begin(node, 4);
    int release, status;
    pid_t first = holder(1, &release);
    headcount_join_options join = join_options(generation, 0);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);

    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_lock_watch(node, "keys", 1));
    char path[64];
    CODE(HEADCOUNT_OK, headcount_waker_start(node, path, sizeof path));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_lock_watch(node, "keys", 1));
    int fd = dial(path);
    CHECK(fd >= 0);
    CODE(HEADCOUNT_ERR_BUSY, headcount_lock_acquire(node, "keys", 0, &lock));
    /* It may not have come to accept yet. */
    while (headcount_lock_watch(node, "keys", 1) == HEADCOUNT_ERR_WRONG_STATE)
        usleep(1000);
    CODE(HEADCOUNT_OK, headcount_lock_watch(node, "keys", 1));

    /* It waits, as all can see, and hears of the release, once. */
    wait_for_waiters(1);
    CHECK(write(release, "r", 1) == 1);
    hear_try(fd);
    CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "keys", 0, &lock));
    CHECK(lock.abandoned_by == 0);
    CHECK(waiters() == 0);
    CODE(HEADCOUNT_OK, headcount_lock_release(node, "keys"));

    /* One that nobody has can be tried at once. */
    CODE(HEADCOUNT_OK, headcount_lock_watch(node, "keys", 1));
    hear_try(fd);

    /* The holder dies. */
    pid_t second = holder(2, &release);
    CODE(HEADCOUNT_ERR_BUSY, headcount_lock_acquire(node, "keys", 0, &lock));
    CODE(HEADCOUNT_OK, headcount_lock_watch(node, "keys", 1));
    wait_for_waiters(1);
    CHECK(kill(second, SIGKILL) == 0 && waitpid(second, &status, 0) == second);
    hear_try(fd);
    CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "keys", 0, &lock));
    CHECK(lock.abandoned_by == second);
    CODE(HEADCOUNT_OK, headcount_lock_release(node, "keys"));

    /* Who does not want to know any more is not told, and is no waiter. */
    pid_t third = holder(3, &release);
    CODE(HEADCOUNT_OK, headcount_lock_watch(node, "keys", 1));
    wait_for_waiters(1);
    CODE(HEADCOUNT_OK, headcount_lock_watch(node, "keys", 0));
    wait_for_waiters(0);
    CHECK(write(release, "r", 1) == 1);
    int byte;
    while ((byte = heard(fd, 200)) == 'E')
        ;
    CHECK(byte == 0);

    /* One that is new is not tried all the time while somebody keeps the node lock. */
    int go_on, tries = 0;
    pid_t fourth = keeper(4, &go_on);
    for (int i = 0; i < 40; i++) {
        CODE(HEADCOUNT_ERR_BUSY, headcount_lock_acquire(node, "new", 0, &lock));
        struct timespec before, after;
        CHECK(clock_gettime(CLOCK_MONOTONIC, &before) == 0);
        CODE(HEADCOUNT_OK, headcount_lock_watch(node, "new", 1));
        hear_try(fd);
        CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
        tries += after.tv_sec == before.tv_sec && after.tv_nsec - before.tv_nsec < 4000000;
    }
    CHECK(tries == 0);
    CHECK(write(go_on, "r", 1) == 1 && waitpid(fourth, &status, 0) == fourth && status == 0);

    /* More than 8 are refused; and all ends with the waker. */
    char name[8];
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "lock%d", i);
        int32_t code = headcount_lock_watch(node, name, 1);
        CHECK(code == HEADCOUNT_OK || (i >= 6 && code == HEADCOUNT_ERR_FULL)); /* "keys" and "new" may count still */
    }
    CODE(HEADCOUNT_ERR_FULL, headcount_lock_watch(node, "lock8", 1));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_lock_watch(node, "no name", 1));
    CODE(HEADCOUNT_OK, headcount_waker_stop(node, 0));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_lock_watch(node, "keys", 1));
    CHECK(kill(first, SIGKILL) == 0 && waitpid(first, &status, 0) == first);
    CHECK(kill(third, SIGKILL) == 0 && waitpid(third, &status, 0) == third);
    return 0;
}
