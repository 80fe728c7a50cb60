/* A process of a host of a real cluster: SOCKET, and what it does. It says what happens, a line each. */
#include "check.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

static headcount_cluster *cluster;

/* Stands for a role, and says so whenever that changes; also that it leads no more by the clock alone. */
static void lead(int forks) {
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_stand(cluster, "cron"));
    int32_t fd;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_fd(cluster, &fd));
    for (;;) {
        struct pollfd loop = {fd, POLLIN, 0};
        CHECK(poll(&loop, 1, 60000) == 1);
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_process(cluster));
        headcount_cluster_leader leader = {.struct_size = sizeof leader};
        do {
            CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_poll(cluster, "cron", &leader));
            uint64_t token;
            CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_is_leader(cluster, "cron", &token));
            if (leader.change == HEADCOUNT_CLUSTER_LEADER_ELECTED) {
                CHECK(token == leader.token && token != 0);
                if (forks && fork() == 0) { /* it has what it has inherited, and lives on */
                    CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_process(cluster));
                    CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_is_leader(cluster, "cron", &token));
                    CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_close(cluster));
                    printf("child\n");
                    sleep(60);
                    _exit(0);
                }
                printf("elected %" PRIu64 "\n", token);
            } else if (leader.change == HEADCOUNT_CLUSTER_LEADER_LOST) {
                CHECK(token == 0);
                printf("lost\n");
            } else if (leader.change == HEADCOUNT_CLUSTER_LEADER_GIVE_UP) {
                CHECK(token != 0);
                printf("gives up\n");
                CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_give_up(cluster, "cron"));
            }
        } while (leader.change != HEADCOUNT_CLUSTER_LEADER_SAME);
    }
}

static void once(int done) {
    headcount_cluster_once once = {.struct_size = sizeof once};
    uint64_t token;
    int waits_for = 0;
    do {
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_begin(cluster, "migrate", 200, &once));
        if (once.pid != 0 && once.pid != waits_for) {
            CHECK(once.state == HEADCOUNT_CLUSTER_ONCE_RUNNING && once.since_ms > 0);
            printf("waits for %" PRId32 " (%s) of %s\n", once.pid, once.process, once.host);
            waits_for = once.pid;
        }
    } while (once.state == HEADCOUNT_CLUSTER_ONCE_RUNNING);
    CHECK(once.pid == 0 && once.since_ms == 0 && once.host[0] == 0 && once.process[0] == 0);
    if (once.state == HEADCOUNT_CLUSTER_ONCE_RUN) {
        printf("runs %" PRIu32 " %s\n", once.attempt, once.last);
        CODE(HEADCOUNT_CLUSTER_ERR_WRONG_STATE, headcount_cluster_once_begin(cluster, "migrate", 0, &once));
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_token(cluster, "migrate", &token));
        CHECK(token == once.token);
        if (!done)
            pause();
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_end(cluster, "migrate", 1, 20000));
        CODE(HEADCOUNT_CLUSTER_ERR_WRONG_STATE, headcount_cluster_once_end(cluster, "migrate", 1, 0));
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_begin(cluster, "migrate", 20000, &once));
    }
    CHECK(once.state == HEADCOUNT_CLUSTER_ONCE_DONE);
    printf("done\n");
}

static void fails(void) {
    headcount_cluster_once once = {.struct_size = sizeof once};
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_begin(cluster, "broken", 20000, &once));
        CHECK(once.state == HEADCOUNT_CLUSTER_ONCE_RUN && once.attempt == attempt);
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_end(cluster, "broken", 0, 0));
    }
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_once_begin(cluster, "broken", 20000, &once));
    CHECK(once.state == HEADCOUNT_CLUSTER_ONCE_FAILED && once.attempt == 3 && strcmp(once.last, "failed") == 0);
    printf("failed\n");
}

static void lock(const char *socket) {
    headcount_cluster_lock mine = {.struct_size = sizeof mine}, other = mine;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_acquire(cluster, "keys", 20000, &mine));
    CHECK(mine.state == HEADCOUNT_CLUSTER_LOCK_HELD && mine.token != 0);
    uint64_t token;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_token(cluster, mine.id, &token));
    CHECK(token == mine.token);
    /* Another way to the same agent is another process to it. */
    headcount_cluster_options options = {.struct_size = sizeof options, .socket = socket, .connect_ms = 20000};
    headcount_cluster *second;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_open(&options, &second));
    CODE(HEADCOUNT_CLUSTER_ERR_TIMED_OUT, headcount_cluster_lock_acquire(second, "keys", 300, &other));
    CHECK(says("timed out after") && says("has it since"));
    uint64_t id;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_ask(second, "keys", 20000, &id));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_poll(second, id, &other));
    CHECK(other.state == HEADCOUNT_CLUSTER_LOCK_WAITING && other.token == 0);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_release(cluster, mine.id));
    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_lock_release(cluster, mine.id));
    int32_t fd;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_fd(second, &fd));
    while (other.state == HEADCOUNT_CLUSTER_LOCK_WAITING) {
        struct pollfd loop = {fd, POLLIN, 0};
        CHECK(poll(&loop, 1, 20000) == 1);
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_process(second));
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_poll(second, id, &other));
    }
    CHECK(other.state == HEADCOUNT_CLUSTER_LOCK_HELD && other.token > mine.token);
    /* Closing frees it. */
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_close(second));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_acquire(cluster, "keys", 20000, &mine));
    CHECK(mine.token > other.token);
    printf("locks\n");
}

enum { THREADS = 6, ROUNDS = 3 };
static int inside, taken;

static void *take_turns(void *unused) {
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        headcount_cluster_lock mine = {.struct_size = sizeof mine};
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_acquire(cluster, "turns", 60000, &mine));
        CHECK(inside == 0);
        inside = 1;
        taken++;
        usleep(2000);
        inside = 0;
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_release(cluster, mine.id));
    }
    return NULL;
}

static void *wait_in_vain(void *unused) {
    headcount_cluster_lock mine = {.struct_size = sizeof mine};
    int32_t code = headcount_cluster_lock_acquire(cluster, "turns", 60000, &mine);
    /* The latter if it comes only when it is closed. */
    CHECK((code == HEADCOUNT_CLUSTER_ERR_WRONG_STATE && says("closed by another thread")) ||
          (code == HEADCOUNT_CLUSTER_ERR_INVALID_OPTION && says("none that is open")));
    return unused;
}

/* Threads that wait by one way to the agent, while another one processes; and one that closes it under those who wait. */
static void threads(void) {
    pthread_t all[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&all[i], NULL, take_turns, NULL) == 0);
    for (int i = 0; i < 50; i++) {
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_process(cluster));
        usleep(1000);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    CHECK(taken == THREADS * ROUNDS);
    headcount_cluster_lock mine = {.struct_size = sizeof mine};
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_lock_acquire(cluster, "turns", 60000, &mine));
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&all[i], NULL, wait_in_vain, NULL) == 0);
    usleep(500000);
    headcount_cluster *closed = cluster;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_close(closed));
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    headcount_cluster_options options = {.struct_size = sizeof options};
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_open(&options, &cluster));
    printf("threads\n");
}

static void fleet(void) {
    char *json;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_state(cluster, 20000, &json));
    CHECK(strstr(json, "\"hosts\"") && strstr(json, "\"shop\""));
    headcount_cluster_free(json);
    headcount_cluster_event_stream *events;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_events_open(cluster, 20000, &events));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_events_next(events, 0, &json));
    CHECK(json == NULL);
    headcount_cluster_status status = {.struct_size = sizeof status};
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_get_status(cluster, &status));
    CHECK(status.connected == 1 && status.ttl_ms > 0 && strcmp(status.cluster, "shop") == 0 && strcmp(status.host, "a") == 0);
    printf("follows\n");
    int32_t code;
    while ((code = headcount_cluster_events_next(events, 60000, &json)) == HEADCOUNT_CLUSTER_EVENT) {
        printf("event %s\n", json);
        headcount_cluster_free(json);
    }
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, code);
    CHECK(says("agent.sock"));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_events_close(events));
    CODE(HEADCOUNT_CLUSTER_ERR_INVALID_OPTION, headcount_cluster_events_close(events));
    printf("ended\n");
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(120);
    setvbuf(stdout, NULL, _IOLBF, 0);
    headcount_cluster_options options = {.struct_size = sizeof options, .socket = argv[1], .connect_ms = 20000};
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_open(&options, &cluster));
    const char *what = argv[2];
    if (strcmp(what, "lead") == 0 || strcmp(what, "lead-and-fork") == 0)
        lead(strcmp(what, "lead-and-fork") == 0);
    else if (strcmp(what, "once") == 0 || strcmp(what, "once-and-stop") == 0)
        once(strcmp(what, "once") == 0);
    else if (strcmp(what, "fails") == 0)
        fails();
    else if (strcmp(what, "lock") == 0)
        lock(argv[1]);
    else if (strcmp(what, "threads") == 0)
        threads();
    else
        fleet();
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_close(cluster));
    return 0;
}
