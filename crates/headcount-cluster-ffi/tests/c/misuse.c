/* Bad arguments of each kind, without an agent: each is named, and does no harm. The first argument is where no agent listens. */
#include "check.h"

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BAD HEADCOUNT_CLUSTER_ERR_INVALID_OPTION

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sizes(void) {
    CHECK(headcount_cluster_abi_version() == HEADCOUNT_CLUSTER_ABI_VERSION);
    CHECK(sizeof(headcount_cluster_options) == 24 && sizeof(headcount_cluster_status) == 544);
    CHECK(sizeof(headcount_cluster_leader) == 16 && sizeof(headcount_cluster_lock) == 24);
    CHECK(sizeof(headcount_cluster_once) == 352);
    CHECK(strcmp(headcount_cluster_error_name(HEADCOUNT_CLUSTER_ERR_AWAY), "away") == 0);
    CHECK(strcmp(headcount_cluster_error_name(-99), "unknown") == 0);
    CHECK(strcmp(headcount_cluster_last_error(), "") == 0);
}

static void opening(const char *nowhere) {
    headcount_cluster *cluster = NULL;
    headcount_cluster_options options = {.struct_size = sizeof options, .socket = nowhere};
    CODE(BAD, headcount_cluster_open(&options, NULL));
    CHECK(says("`cluster` is NULL"));
    CODE(BAD, headcount_cluster_open((headcount_cluster_options *)((char *)&options + 1), &cluster));
    CHECK(says("not aligned"));
    options.struct_size = 1;
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_open(&options, &cluster));
    options.struct_size = sizeof options;
    char path[300];
    memset(path, 'x', sizeof path - 1);
    path[0] = '/';
    path[sizeof path - 1] = 0;
    const char *const wrong[] = {"", "relative.sock", path, "/not\xff" "utf8"};
    for (int i = 0; i < 4; i++) {
        options.socket = wrong[i];
        CODE(BAD, headcount_cluster_open(&options, &cluster));
        CHECK(says("`socket`"));
    }
    options.socket = nowhere;
    options.connect_ms = -1;
    CODE(BAD, headcount_cluster_open(&options, &cluster));
    CHECK(says("`connect_ms` is -1; allowed are 0 to 86400000"));
    CHECK(cluster == NULL);

    /* An agent that is away: after the stated time, with the socket and what to do. */
    options.connect_ms = 300;
    double began = seconds();
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, headcount_cluster_open(&options, &cluster));
    CHECK(seconds() - began >= 0.3 && seconds() - began < 20);
    CHECK(says(nowhere) && says("No such file") && says("systemctl status headcount-agent"));
    CHECK(cluster == NULL);
}

static void using(headcount_cluster *cluster) {
    headcount_cluster_leader leader = {.struct_size = sizeof leader};
    headcount_cluster_once once = {.struct_size = sizeof once};
    headcount_cluster_lock lock = {.struct_size = sizeof lock};
    headcount_cluster_status status = {.struct_size = sizeof status};
    headcount_cluster_event_stream *events = NULL;
    uint64_t token = 7, id = 7;
    uint32_t level;
    int32_t fd;
    char *json = NULL, text[512], longest[50];
    memset(longest, 'x', 49);
    longest[49] = 0;

    headcount_cluster *const none[] = {NULL, (headcount_cluster *)&token, (headcount_cluster *)4096};
    for (int i = 0; i < 3; i++) {
        CODE(BAD, headcount_cluster_process(none[i]));
        CHECK(says(i == 0 ? "`cluster` is NULL" : "`cluster` is none that is open"));
        CODE(BAD, headcount_cluster_fd(none[i], &fd));
        CODE(BAD, headcount_cluster_leader_stand(none[i], "cron"));
        CODE(BAD, headcount_cluster_is_leader(none[i], "cron", &token));
        CODE(BAD, headcount_cluster_once_begin(none[i], "k", 0, &once));
        CODE(BAD, headcount_cluster_lock_acquire(none[i], "k", 0, &lock));
        CODE(BAD, headcount_cluster_state(none[i], 0, &json));
        CODE(BAD, headcount_cluster_close(none[i]));
    }

    const char *const names[] = {"", "a b", "a/b", "\xc3\xa4", "@x", longest};
    for (int i = 0; i < 6; i++) {
        CODE(BAD, headcount_cluster_leader_stand(cluster, names[i]));
        CHECK(says("allowed is 1 to 48"));
        CODE(BAD, headcount_cluster_once_begin(cluster, names[i], 0, &once));
        CODE(BAD, headcount_cluster_lock_acquire(cluster, names[i], 0, &lock));
        CODE(BAD, headcount_cluster_lock_ask(cluster, names[i], 0, &id));
    }
    CODE(BAD, headcount_cluster_leader_stand(cluster, "\xff"));
    CHECK(says("UTF-8"));
    CODE(BAD, headcount_cluster_leader_stand(cluster, NULL));
    CHECK(says("`role` is NULL"));
    CODE(BAD, headcount_cluster_once_begin(cluster, NULL, 0, &once));
    CODE(BAD, headcount_cluster_once_begin(cluster, "k", 0, NULL));
    CODE(BAD, headcount_cluster_once_end(cluster, "k", 2, 0));
    CODE(BAD, headcount_cluster_lock_acquire(cluster, "k", 0, NULL));
    CODE(BAD, headcount_cluster_lock_token(cluster, 1, NULL));
    CODE(BAD, headcount_cluster_is_leader(cluster, "cron", NULL));
    CODE(BAD, headcount_cluster_fd(cluster, NULL));
    CODE(BAD, headcount_cluster_state(cluster, 0, NULL));
    CODE(BAD, headcount_cluster_notice(cluster, NULL, text, sizeof text));
    CODE(BAD, headcount_cluster_events_open(cluster, 0, NULL));
    CODE(BAD, headcount_cluster_events_next(NULL, 0, &json));
    CODE(BAD, headcount_cluster_events_fd((headcount_cluster_event_stream *)16, &fd));
    CODE(BAD, headcount_cluster_events_close(NULL));
    const int64_t times[] = {-1, INT64_MIN, 86400001, INT64_MAX};
    for (int i = 0; i < 4; i++) {
        CODE(BAD, headcount_cluster_once_begin(cluster, "k", times[i], &once));
        CHECK(says("`wait_ms` is "));
        CODE(BAD, headcount_cluster_once_end(cluster, "k", 1, times[i]));
        CODE(BAD, headcount_cluster_lock_acquire(cluster, "k", times[i], &lock));
        CODE(BAD, headcount_cluster_lock_ask(cluster, "k", times[i], &id));
        CODE(BAD, headcount_cluster_state(cluster, times[i], &json));
        CODE(BAD, headcount_cluster_events_open(cluster, times[i], &events));
    }
    leader.struct_size = 0, once.struct_size = 0, lock.struct_size = 0, status.struct_size = 0;
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_leader_poll(cluster, "cron", &leader));
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_once_begin(cluster, "k", 0, &once));
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_lock_acquire(cluster, "k", 0, &lock));
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_lock_poll(cluster, 1, &lock));
    CODE(HEADCOUNT_CLUSTER_ERR_ABI_MISMATCH, headcount_cluster_get_status(cluster, &status));
    leader.struct_size = sizeof leader, once.struct_size = sizeof once;
    lock.struct_size = sizeof lock, status.struct_size = sizeof status;
    CHECK(token == 7 && id == 7 && json == NULL && events == NULL);

    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_leader_poll(cluster, "cron", &leader));
    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_leader_give_up(cluster, "cron"));
    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_leader_resign(cluster, "cron"));
    CODE(HEADCOUNT_CLUSTER_ERR_WRONG_STATE, headcount_cluster_once_end(cluster, "k", 1, 0));
    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_lock_release(cluster, 99));
    CODE(HEADCOUNT_CLUSTER_ERR_NOT_FOUND, headcount_cluster_lock_poll(cluster, 99, &lock));
    headcount_cluster_free(NULL);

    /* Without an agent, each ends in time, and what waits for none goes on. */
    double began = seconds();
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, headcount_cluster_once_begin(cluster, "k", 100, &once));
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, headcount_cluster_lock_acquire(cluster, "k", 100, &lock));
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, headcount_cluster_state(cluster, 100, &json));
    CHECK(says("agent.sock: No such file"));
    CODE(HEADCOUNT_CLUSTER_ERR_AWAY, headcount_cluster_events_open(cluster, 100, &events));
    CHECK(seconds() - began < 20);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_stand(cluster, "cron"));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_stand(cluster, "cron"));
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_leader_poll(cluster, "cron", &leader));
    CHECK(leader.change == HEADCOUNT_CLUSTER_LEADER_SAME && leader.token == 0);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_is_leader(cluster, "cron", &token));
    CHECK(token == 0);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_get_status(cluster, &status));
    CHECK(status.connected == 0 && status.left_ms == 0 && status.cluster[0] == 0);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_notice(cluster, &level, text, sizeof text));
    CHECK(level == HEADCOUNT_CLUSTER_LEVEL_WARNING && strstr(text, "trying again"));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(120);
    sizes();
    opening(argv[1]);
    headcount_cluster_options options = {.struct_size = sizeof options, .socket = argv[1]};
    headcount_cluster *cluster, *other;
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_open(&options, &cluster));
    using(cluster);

    /* A child has its own, and can do nothing with its parent's. */
    pid_t child = fork();
    if (child == 0) {
        CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_process(cluster));
        CHECK(says("after the fork"));
        CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_leader_resign(cluster, "cron"));
        CODE(HEADCOUNT_CLUSTER_ERR_FORKED, headcount_cluster_close(cluster));
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_open(&options, &other));
        CHECK(other != cluster);
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_process(other));
        CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_close(other));
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_process(cluster));

    CODE(HEADCOUNT_CLUSTER_OK, headcount_cluster_close(cluster));
    CODE(BAD, headcount_cluster_close(cluster));
    CODE(BAD, headcount_cluster_process(cluster));
    CHECK(says("until headcount_cluster_close"));
    return 0;
}
