/* What a forked child has, and has not, of its parent. */
#include "check.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static headcount_node *node;
static headcount_event event = {.struct_size = sizeof event};

static void wait_child(pid_t pid) {
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The process of that role and pid in the registry, pid 0: any; all 0 if there is none. */
static headcount_process_status shown(uint32_t role, pid_t pid) {
    headcount_snapshot snapshot = {.struct_size = sizeof snapshot};
    headcount_process_status all[64] = {{.struct_size = sizeof all[0]}};
    CODE(HEADCOUNT_OK, headcount_get_snapshot(node, &snapshot, NULL, 0, all, 64));
    CHECK(snapshot.processes <= 64);
    for (uint64_t i = 0; i < snapshot.processes; i++)
        if (all[i].role == role && (pid == 0 || all[i].pid == pid))
            return all[i];
    return (headcount_process_status){0};
}

static int is_shown_as_master(pid_t pid) {
    return shown(HEADCOUNT_ROLE_MASTER, pid).pid == pid;
}

static uint64_t heartbeat_age_ms(void) {
    headcount_process_status worker = shown(HEADCOUNT_ROLE_WORKER, 0);
    CHECK(worker.pid != 0 && worker.heartbeat_age_ns >= 0);
    return (uint64_t)worker.heartbeat_age_ns / 1000000;
}

/* A worker that forks: its child is no worker, and can harm none of what it inherits. */
static void child_of_a_worker(uint64_t generation) {
    headcount_join_options join = join_options(generation, 0);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
    int32_t fd;
    CODE(HEADCOUNT_OK, headcount_watch_fd(node, &fd));
    CODE(HEADCOUNT_EVENT, headcount_drain(node, 0, -1, &event));
    usleep(300000);

    pid_t child = fork();
    if (child == 0) {
        /* Not the parent's callback to finish, not the parent's lock to release. */
        CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_beat(node));
        CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
        CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_leave(node, 0, 0, &event));
        CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_process(node, &event));
        CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_watch_fd(node, &fd));
        CODE(HEADCOUNT_OK, headcount_leave_master(node, 0, &event)); /* it is no master */
        headcount_close(node);
        exit(0); /* and its destructors run */
    }
    wait_child(child);
    CHECK(heartbeat_age_ms() >= 300);
    /* The callback is still there, and so is the lock. */
    child = fork();
    if (child == 0) {
        headcount_join_options other = join_options(generation, 1);
        other.wait_ms = HEADCOUNT_WAIT_TRY;
        CODE(HEADCOUNT_ERR_BUSY, headcount_join(node, &other, &event));
        CHECK(strstr(headcount_last_error(), "worker_draining"));
        other.wait_ms = 30;
        CODE(HEADCOUNT_ERR_LOCK_TIMEOUT, headcount_join(node, &other, &event));
        _exit(0);
    }
    wait_child(child);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    struct pollfd readable = {fd, POLLIN, 0};
    CHECK(poll(&readable, 1, 5000) == 1);
    CODE(HEADCOUNT_OK, headcount_process(node, &event));
    only(headcount_leave(node, 0, -1, &event), node, &event, HEADCOUNT_KIND_WORKER_EXITED);
    _exit(0);
}

/* Goes into the background: the process that opened the node forks and ends. */
static void background(const char *path) {
    node = open_node(path);
    uint64_t generation = begin(node, 1);
    pid_t parent = getpid();
    CHECK(is_shown_as_master(parent));
    int still[2];
    CHECK(pipe(still) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid > 0) {
        usleep(20000);
        _exit(0);
    }
    alarm(60); /* not inherited */
    close(still[1]);
    CHECK(read(still[0], &pid, 1) == 0); /* the parent is gone, or all but */

    /* Nothing but the fork of the first worker tells who the master is. */
    pid = fork();
    if (pid == 0) {
        CHECK(is_shown_as_master(getppid()) && !is_shown_as_master(parent));
        headcount_join_options join = join_options(generation, 0);
        only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
        CHECK(event.cause == HEADCOUNT_CAUSE_START && event.mine == 1);
        CODE(HEADCOUNT_EVENT, headcount_leave(node, 0, -1, &event));
        while (headcount_next(node, 0, &event) == HEADCOUNT_EVENT)
            ;
        _exit(0);
    }
    wait_child(pid);
    CODE(HEADCOUNT_OK, headcount_adopt_master(node));
    CODE(HEADCOUNT_OK, headcount_leave_master(node, -1, &event));
    puts("background ok");
    exit(0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(60);
    if (strcmp(argv[2], "background") == 0)
        background(argv[1]);

    node = open_node(argv[1]);
    uint64_t generation = begin(node, 2);
    pid_t pid = fork();
    if (pid == 0)
        child_of_a_worker(generation);
    wait_child(pid);

    /* A master's fork costs nothing to speak of. */
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int i = 0; i < 20; i++) {
        pid = fork();
        if (pid == 0)
            _exit(0);
        wait_child(pid);
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(after.tv_sec - before.tv_sec < 2);
    CHECK(is_shown_as_master(getpid()));

    /* A worker that just ends has died, with what its parent knows of it. */
    pid = fork();
    if (pid == 0) {
        headcount_join_options join = join_options(generation, 1);
        only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
        _exit(7);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CODE(HEADCOUNT_OK, headcount_child_exited(node, pid, status));
    CODE(HEADCOUNT_EVENT, headcount_leave_master(node, -1, &event));
    CHECK(event.kind == HEADCOUNT_KIND_WORKER_DIED && event.pid == pid && event.cause == HEADCOUNT_CAUSE_EXIT);
    CHECK(event.exit_code == 7 && event.signal == 0);
    CODE(HEADCOUNT_EVENT, headcount_next(node, 0, &event));
    CHECK(event.kind == HEADCOUNT_KIND_GENERATION_ENDED);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    return 0;
}
