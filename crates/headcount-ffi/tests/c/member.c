/* A member: it joins, late if it must, beats, reports, drains and leaves by its steps. */
#include "check.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static headcount_node *node;
static headcount_event event = {.struct_size = sizeof event};
static headcount_step step = {.struct_size = sizeof step};

static uint64_t events(void) {
    uint64_t cursor = 0, number = 0;
    headcount_event list[8] = {{.struct_size = sizeof event}};
    CODE(HEADCOUNT_OK, headcount_events(node, &cursor, list, 8, &number, NULL));
    return number;
}

/* Takes steps as a loop would, until one has something to report. */
static void until_event(uint32_t kind) {
    for (int rounds = 0; rounds < 1000; rounds++) {
        int32_t fd = -1;
        CODE(HEADCOUNT_OK, headcount_watch_fd(node, &fd));
        struct pollfd watch = {fd, POLLIN, 0};
        int readable = poll(&watch, 1, (int)step.next_ms) == 1;
        int32_t code = readable ? headcount_member_on_readable(node, &step, &event)
                                : headcount_member_on_time(node, &step, &event);
        if (code == HEADCOUNT_EVENT) {
            CHECK(event.kind == kind);
            return;
        }
        CODE(HEADCOUNT_OK, code);
    }
    CHECK(!"it came to an end");
}

/* A worker that holds the node lock in a callback, until the byte comes. */
static pid_t holder(uint64_t generation, int *ready, int *go) {
    int is_ready[2], may_go[2];
    CHECK(pipe(is_ready) == 0 && pipe(may_go) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(60); /* or it would outlive a test that fails */
        char byte;
        headcount_join_options join = join_options(generation, 1);
        CODE(HEADCOUNT_EVENT, headcount_join(node, &join, &event));
        CHECK(write(is_ready[1], "x", 1) == 1 && read(may_go[0], &byte, 1) == 1);
        CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
        pause();
    }
    *ready = is_ready[0];
    *go = may_go[1];
    return pid;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    node = open_node(argv[1]);
    uint64_t generation = begin(node, 2);
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_member_on_time(node, &step, &event));
    step.struct_size--;
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_member_on_time(node, &step, &event));
    step.struct_size++;

    /* The lock is held: it waits a moment, and joins by a later step. */
    char byte;
    int ready, go;
    pid_t other = holder(generation, &ready, &go);
    CHECK(read(ready, &byte, 1) == 1);
    headcount_join_options join = join_options(generation, 0);
    join.wait_ms = 20;
    CODE(HEADCOUNT_ERR_LOCK_TIMEOUT, headcount_member_join(node, &join, &step, &event));
    CHECK(step.state == HEADCOUNT_MEMBER_WAITING && step.next_ms > 0 && step.next_ms <= 10);
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_beat(node));
    CODE(HEADCOUNT_OK, headcount_member_on_time(node, &step, &event));
    CHECK(step.state == HEADCOUNT_MEMBER_WAITING);
    CHECK(write(go, "x", 1) == 1);
    while (headcount_member_on_time(node, &step, &event) != HEADCOUNT_EVENT)
        poll(NULL, 0, (int)step.next_ms);
    CHECK(event.kind == HEADCOUNT_KIND_WORKER_STARTED && event.mine == 2 && step.state == HEADCOUNT_MEMBER_SERVING);
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_process(node, &event));

    /* While its own event is not finished it only beats. */
    headcount_event aside = {.struct_size = sizeof aside};
    CODE(HEADCOUNT_OK, headcount_member_on_readable(node, &step, &aside));
    CHECK(step.next_ms > 0 && step.next_ms <= 1000);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_member_join(node, &join, &step, &event));
    CODE(HEADCOUNT_OK, headcount_beat(node));
    char text[512];
    uint32_t level = 0;
    CODE(HEADCOUNT_OK, headcount_notice(node, &level, text, sizeof text));
    CHECK(level == HEADCOUNT_LEVEL_NOTICE && strstr(text, "joined late"));

    /* The other one dies. */
    CODE(HEADCOUNT_OK, headcount_member_on_time(node, &step, &aside));
    kill(other, SIGKILL);
    int status = 0;
    CHECK(waitpid(other, &status, 0) == other);
    until_event(HEADCOUNT_KIND_WORKER_DIED);
    CHECK(event.pid == other && event.mine == 1 && step.on_duty == 1 && step.listen == 1);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    CHECK(events() == 4);

    /* It drains, and leaves. */
    only(headcount_member_drain(node, &step, &event), node, &event, HEADCOUNT_KIND_WORKER_DRAINING);
    CHECK(step.state == HEADCOUNT_MEMBER_DRAINING && step.unsaid == 0);
    CODE(HEADCOUNT_OK, headcount_member_drain(node, &step, &event));
    CODE(HEADCOUNT_EVENT, headcount_leave(node, 0, -1, &event));
    CHECK(event.kind == HEADCOUNT_KIND_WORKER_EXITED);
    while (headcount_next(node, 0, &event) == HEADCOUNT_EVENT) {
    }
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_member_on_time(node, &step, &event));
    return 0;
}
