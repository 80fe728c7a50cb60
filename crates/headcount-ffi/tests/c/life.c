/* One process that is master and worker, through two generations, and what can be looked at meanwhile. */
#include "check.h"

#include <poll.h>
#include <unistd.h>

static headcount_node *node;
static headcount_event event = {.struct_size = sizeof event};

static headcount_counts counts(uint64_t generation) {
    headcount_counts counts = {.struct_size = sizeof counts};
    CODE(HEADCOUNT_OK, headcount_get_counts(node, generation, &counts));
    return counts;
}

static void looks(uint64_t first) {
    uint32_t new = 9, deaths = 9;
    CODE(HEADCOUNT_OK, headcount_mark_once(node, first, 31, &new));
    CHECK(new == 1);
    CODE(HEADCOUNT_OK, headcount_mark_once(node, first, 31, &new));
    CHECK(new == 0);
    CODE(HEADCOUNT_OK, headcount_recent_deaths(node, first, 60000, &deaths));
    CHECK(deaths == 0);

    uint64_t cursor = 0, number = 0, lost = 9;
    headcount_event events[2] = {{.struct_size = sizeof events[0]}};
    CODE(HEADCOUNT_OK, headcount_events(node, &cursor, events, 2, &number, &lost));
    CHECK(number == 2 && lost == 0 && cursor == 3);
    CHECK(events[0].kind == HEADCOUNT_KIND_GENERATION_STARTED && events[1].kind == HEADCOUNT_KIND_WORKER_STARTED);
    CHECK(events[0].previous_run == HEADCOUNT_PREVIOUS_RUN_NONE && events[1].previous_run == 0);
    CHECK(events[1].struct_size == sizeof event && events[1].pid == getpid() && events[1].worker_id == 3);
    CHECK(events[1].heartbeat_ns != 0 && events[1].heartbeat_ns <= events[1].boot_ns);
    CODE(HEADCOUNT_OK, headcount_events(node, &cursor, events, 2, &number, &lost));
    CHECK(number == 0 && cursor == 3);

    char name[64], path[256];
    CODE(HEADCOUNT_OK, headcount_node_info(node, name, 4, path, sizeof path));
    CHECK(strcmp(name, "c-t") == 0 && path[0] == '/');
    CODE(HEADCOUNT_OK, headcount_node_info(node, NULL, 0, NULL, 0));
}

/* The whole node, of which this process is the master and, by now, a worker of the first generation. */
static void whole(uint64_t first) {
    headcount_snapshot snapshot = {.struct_size = sizeof snapshot};
    CODE(HEADCOUNT_OK, headcount_get_snapshot(node, &snapshot, NULL, 0, NULL, 0));
    CHECK(snapshot.generations == 1 && snapshot.processes == 2);

    headcount_generation_status generations[2] = {{.struct_size = sizeof generations[0]}};
    headcount_process_status processes[3] = {{.struct_size = sizeof processes[0]}};
    processes[1].pid = -7;
    CODE(HEADCOUNT_OK, headcount_get_snapshot(node, &snapshot, generations, 2, processes, 1));
    CHECK(snapshot.processes == 2 && processes[0].role == HEADCOUNT_ROLE_MASTER);
    CHECK(processes[1].pid == -7); /* what has no room is not written */

    CODE(HEADCOUNT_OK, headcount_beat(node)); /* its loop turns: till then it is only starting */
    CODE(HEADCOUNT_OK, headcount_get_snapshot(node, &snapshot, generations, 2, processes, 3));
    CHECK(snapshot.head == 2 && snapshot.total == 1 && snapshot.boot_ns != 0 && snapshot.time_ns != 0);
    CHECK(snapshot.holder == 0 && snapshot.callback == 0 && snapshot.held_ns == 0);
    const headcount_generation_status *g = &generations[0];
    CHECK(g->struct_size == sizeof *g && g->id == first && g->phase == HEADCOUNT_PHASE_COMMITTED);
    CHECK(g->cause == HEADCOUNT_CAUSE_START && g->master == getpid() && g->master_alive == 1);
    CHECK(g->expected == 1 && g->mine == 1 && g->prev == HEADCOUNT_NONE && g->next == HEADCOUNT_NONE && g->draining == 0);
    CHECK(g->begun_ns <= snapshot.time_ns && snapshot.time_ns - g->begun_ns < 60000000000u && g->age_ns < 60000000000u);
    CHECK(generations[1].struct_size == 0);
    const headcount_process_status *master = &processes[0], *worker = &processes[1];
    CHECK(master->pid == getpid() && master->generation == 0 && master->worker_id == HEADCOUNT_NONE);
    CHECK(master->heartbeat_age_ns == HEADCOUNT_NONE && master->liveness == HEADCOUNT_LIVENESS_ALIVE);
    CHECK(worker->struct_size == sizeof *worker && worker->role == HEADCOUNT_ROLE_WORKER && worker->pid == getpid());
    CHECK(worker->generation == first && worker->worker_id == 3 && worker->cause == HEADCOUNT_CAUSE_START);
    CHECK(worker->state == HEADCOUNT_STATE_SERVING && worker->liveness == HEADCOUNT_LIVENESS_ALIVE && worker->doubt == 0);
    CHECK(worker->heartbeat_age_ns >= 0 && worker->heartbeat_age_ns < 60000000000);
    CHECK(worker->in_state_ns <= worker->age_ns && worker->age_ns < 60000000000u);
    CHECK(processes[2].struct_size == 0);
}

/* While a callback runs, everybody can see whose it is. */
static void holder(void) {
    headcount_snapshot snapshot = {.struct_size = sizeof snapshot};
    CODE(HEADCOUNT_OK, headcount_get_snapshot(node, &snapshot, NULL, 0, NULL, 0));
    CHECK(snapshot.holder == getpid() && snapshot.callback == HEADCOUNT_KIND_WORKER_EXITED);
    CHECK(snapshot.callback_ns <= snapshot.held_ns && snapshot.held_ns < 60000000000u);
}

static int32_t holder_of(const char *name) {
    headcount_singleton all[4] = {{.struct_size = sizeof all[0]}};
    uint64_t number = 0;
    CODE(HEADCOUNT_OK, headcount_get_singletons(node, all, 4, &number));
    CHECK(number <= 4);
    for (uint64_t i = 0; i < number; i++)
        if (strcmp(all[i].name, name) == 0)
            return all[i].holder;
    return -1;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    node = open_node(argv[1]);
    CHECK(open_node(argv[1]) == node);
    uint64_t first = begin(node, 1);
    headcount_join_options join = join_options(first, 3);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
    CHECK(event.mine == 1 && event.prev == HEADCOUNT_NONE && event.role == HEADCOUNT_ROLE_WORKER);
    looks(first);
    whole(first);
    headcount_lock lock = {.struct_size = sizeof lock};
    CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "keys", 0, &lock));
    CODE(HEADCOUNT_OK, headcount_lock_release(node, "keys"));
    const headcount_named_lock *kept;
    CODE(HEADCOUNT_OK, headcount_lock_find(node, "kept", &kept));
    CODE(HEADCOUNT_OK, headcount_named_lock_acquire(kept, 0, &lock));

    /* The next generation comes while this process is in the first. */
    int32_t old_fd = -1, fd = -1;
    CODE(HEADCOUNT_OK, headcount_watch_fd(node, &old_fd));
    char place[64];
    CODE(HEADCOUNT_OK, headcount_waker_start(node, place, sizeof place));
    CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
    uint64_t second = begin(node, 1);
    CHECK(second == first + 1 && counts(0).generation == first);
    join = join_options(second, 3);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
    CHECK(event.prev == 1 && event.mine == 1 && event.total == 2);
    CODE(HEADCOUNT_OK, headcount_beat(node));
    headcount_counts now = counts(0);
    CHECK(now.generation == second && now.prev == 1 && now.mine == 1 && now.next == HEADCOUNT_NONE && now.total == 2);
    now = counts(first);
    CHECK(now.prev == HEADCOUNT_NONE && now.mine == 1 && now.next == 1);
    now = counts(second + 7);
    CHECK(now.prev == 1 && now.mine == HEADCOUNT_NONE);

    /* Watch and waker are the newest one's: the older one's have ended, and its stop is not for the new ones. */
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_waker_rearm(node));
    CODE(HEADCOUNT_OK, headcount_waker_start(node, place, sizeof place));
    CODE(HEADCOUNT_OK, headcount_waker_stop(node, first));
    CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
    CODE(HEADCOUNT_OK, headcount_watch_fd(node, &fd));
    struct pollfd readable = {fd, POLLIN, 0};
    CHECK(poll(&readable, 1, 5000) == 1);
    CODE(HEADCOUNT_OK, headcount_process(node, &event));

    /* The first is drained and left by its number, with two reports; the second stays. */
    only(headcount_drain(node, first, 100, &event), node, &event, HEADCOUNT_KIND_WORKER_DRAINING);
    CHECK(event.generation == first && event.draining == 1 && event.next == 1);
    CHECK(counts(second).prev_draining == 1 && counts(second).total_draining == 1);
    CODE(HEADCOUNT_OK, headcount_drain(node, first, 100, &event));
    CODE(HEADCOUNT_EVENT, headcount_leave(node, first, -1, &event));
    CHECK(event.kind == HEADCOUNT_KIND_WORKER_EXITED && event.cause == HEADCOUNT_CAUSE_SUPERSEDED);
    holder();
    headcount_event other = {.struct_size = sizeof other};
    CODE(HEADCOUNT_ERR_BUSY, headcount_drain(node, second, 0, &other));
    CODE(HEADCOUNT_EVENT, headcount_next(node, 0, &event));
    CHECK(event.kind == HEADCOUNT_KIND_GENERATION_ENDED && event.generation == first && event.mine == 0 && event.next == 1);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_leave(node, first, -1, &event));
    CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
    CHECK(counts(0).generation == second && counts(0).prev == HEADCOUNT_NONE);
    CODE(HEADCOUNT_OK, headcount_process(node, &event));

    /* What it has taken in the first is still its own, and can be taken again. */
    CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "keys", 0, &lock));
    CODE(HEADCOUNT_OK, headcount_lock_release(node, "keys"));
    CHECK(holder_of("kept") == getpid());
    CODE(HEADCOUNT_OK, headcount_named_lock_release(kept));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_named_lock_acquire(kept, 0, &lock));
    headcount_named_lock_free(kept);
    CODE(HEADCOUNT_OK, headcount_lock_acquire(node, "kept", 0, &lock));
    CODE(HEADCOUNT_OK, headcount_lock_release(node, "kept"));

    /* A callback that was begun and will never be finished does not keep the process from leaving. */
    CODE(HEADCOUNT_EVENT, headcount_drain(node, 0, -1, &event));
    uint64_t unfinished = event.seq;
    CODE(HEADCOUNT_ERR_BUSY, headcount_begin(node, 0, 1, &second, &event));
    CODE(HEADCOUNT_EVENT, headcount_leave(node, 0, 0, &event));
    CHECK(event.kind == HEADCOUNT_KIND_WORKER_EXITED && event.cause == HEADCOUNT_CAUSE_STOP);
    CODE(HEADCOUNT_EVENT, headcount_next(node, 1, &event));
    CHECK(event.kind == HEADCOUNT_KIND_GENERATION_ENDED);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_beat(node));
    CODE(HEADCOUNT_OK, headcount_leave_master(node, -1, &event));

    /* Both failures stand in the journal, each with the number of the event that it was about. */
    uint64_t cursor = unfinished, number, failed = 0;
    headcount_event rest[16] = {{.struct_size = sizeof rest[0]}};
    CODE(HEADCOUNT_OK, headcount_events(node, &cursor, rest, 16, &number, NULL));
    for (uint64_t i = 0; i < number; i++)
        if (rest[i].kind == HEADCOUNT_KIND_CALLBACK_FAILED)
            CHECK(failed++ == 0 ? rest[i].previous_generation == unfinished : rest[i].previous_generation > unfinished);
    CHECK(failed == 2 && rest[number - 1].kind == HEADCOUNT_KIND_MASTER_EXITED);
    return 0;
}
