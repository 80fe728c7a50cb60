/*
 * A scheduler that runs on one of all hosts, and a migration that runs once for all of them.
 *
 *     cc -std=c11 scheduler.c $(pkg-config --cflags --libs headcount-cluster) -o scheduler
 *     ./scheduler [SOCKET]
 */
#include <headcount_cluster.h>

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

static headcount_cluster *cluster;

/* A failure is said, and is no reason to stop serving. */
static int ok(int32_t code, const char *what) {
    if (code < 0)
        fprintf(stderr, "%s: %s\n", what, headcount_cluster_last_error());
    return code >= 0;
}

/* What has become of the role: until nothing more has changed. */
static void hear(const char *role) {
    headcount_cluster_leader leader = {.struct_size = sizeof leader};
    while (ok(headcount_cluster_leader_poll(cluster, role, &leader), role) &&
           leader.change != HEADCOUNT_CLUSTER_LEADER_SAME) {
        if (leader.change == HEADCOUNT_CLUSTER_LEADER_ELECTED)
            printf("leads, as tenure %" PRIu64 "\n", leader.token);
        else /* stop what it does as the leader, now */
            printf("leads no more\n");
        if (leader.change == HEADCOUNT_CLUSTER_LEADER_GIVE_UP)
            ok(headcount_cluster_leader_give_up(cluster, role), role);
    }
}

/* Whether it is settled. */
static int migrate(const char *key) {
    headcount_cluster_once once = {.struct_size = sizeof once};
    if (!ok(headcount_cluster_once_begin(cluster, key, 0, &once), key))
        return 0; /* agent or etcd are away: later */
    if (once.state == HEADCOUNT_CLUSTER_ONCE_RUN) {
        printf("migrates, attempt %" PRIu32 "\n", once.attempt);
        return ok(headcount_cluster_once_end(cluster, key, 1, 5000), key);
    }
    return once.state != HEADCOUNT_CLUSTER_ONCE_RUNNING;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    headcount_cluster_options options = {.struct_size = sizeof options, .socket = argc > 1 ? argv[1] : NULL};
    int32_t fd = -1;
    if (!ok(headcount_cluster_open(&options, &cluster), "open") || !ok(headcount_cluster_fd(cluster, &fd), "fd") ||
        !ok(headcount_cluster_leader_stand(cluster, "scheduler"), "stand"))
        return 1;
    for (int is_migrated = 0;;) {
        struct pollfd loop = {fd, POLLIN, 0};
        poll(&loop, 1, 500); /* along with everything else that a server waits for */
        ok(headcount_cluster_process(cluster), "process");
        hear("scheduler");
        if (!is_migrated)
            is_migrated = migrate("migration-7");
        uint64_t token = 0;
        if (ok(headcount_cluster_is_leader(cluster, "scheduler", &token), "is_leader") && token != 0) {
            /* one step of its work; the token goes to whatever it writes to */
        }
        char text[512];
        for (uint32_t level; headcount_cluster_notice(cluster, &level, text, sizeof text) == HEADCOUNT_CLUSTER_OK;)
            fprintf(stderr, "%s\n", text);
    }
}
