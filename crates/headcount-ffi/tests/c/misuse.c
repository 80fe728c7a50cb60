/* Bad arguments get an error that names them, and do no harm. */
#include "check.h"

#include <unistd.h>

static int says(const char *word) {
    return strstr(headcount_last_error(), word) != NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    CHECK(strcmp(headcount_last_error(), "") == 0);
    headcount_event event = {.struct_size = sizeof event};
    headcount_node *none = NULL, *node;
    uint64_t n, cursor = 0;
    uint32_t bit;
    int32_t fd;

    /* Nodes that are none. */
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_beat(NULL));
    CHECK(says("`node` is NULL"));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_beat((headcount_node *)(uintptr_t)0xdeadbeef));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_commit((headcount_node *)argv, 1));
    CHECK(says("headcount_open"));
    headcount_close(NULL);

    /* Options. */
    headcount_options options = {.struct_size = sizeof options, .node = "c-test", .path = argv[1]};
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(NULL, &none));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, NULL));
    options.struct_size -= 8;
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_open(&options, &none));
    CHECK(says("56") && says("64") && says("headcount_options"));
    options.struct_size += 8;
    options.node = "no/slash";
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, &none));
    CHECK(says("`node`"));
    options.node = "\xff\xfe";
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, &none));
    CHECK(says("UTF-8"));
    options.node = "c-test";
    options.path = "relative";
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, &none));
    CHECK(says("`path`"));
    options.path = argv[1];
    options.heartbeat_interval_ms = UINT64_MAX;
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, &none));
    CHECK(says("`heartbeat_interval`"));
    options.heartbeat_interval_ms = 6000;
    options.stall_after_ms = 6000;
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_open(&options, &none));
    CHECK(says("`stall_after` is 6s") && says("`heartbeat_interval`, which is 6s"));
    CHECK(none == NULL);

    /* The same without opening: the library says what it would take for 0. */
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_check_options(NULL));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_check_options(&options));
    CHECK(says("`stall_after`") && options.lock_timeout_ms == 0);
    options.stall_after_ms = 0;
    CODE(HEADCOUNT_OK, headcount_check_options(&options));
    CHECK(options.heartbeat_interval_ms == 6000 && options.stall_after_ms == 30000);
    CHECK(options.lock_timeout_ms == 30000 && strcmp(options.node, "c-test") == 0);
    CHECK(access(argv[1], F_OK) != 0);

    /* The name of an nginx's node. */
    const char *const arguments[] = {"-c", "/srv/shop/nginx.conf"};
    const char *const hole[] = {"-c", NULL};
    char name[49];
    CODE(HEADCOUNT_OK, headcount_nginx_default_node(arguments, 2, "/usr/share/nginx/", "/", name, sizeof name));
    CHECK(strcmp(name, "nginx-srv-shop-nginx.conf") == 0);
    CODE(HEADCOUNT_OK, headcount_nginx_default_node(NULL, 0, "/usr/share/nginx/", "/", name, sizeof name));
    CHECK(strcmp(name, "nginx") == 0);
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_nginx_default_node(NULL, 1, "/", "/", name, sizeof name));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_nginx_default_node(hole, 2, "/", "/", name, sizeof name));
    CHECK(says("`arguments` is NULL"));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_nginx_default_node(arguments, 2, NULL, "/", name, sizeof name));
    node = open_node(argv[1]);

    /* Events. */
    n = 7;
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_begin(node, 0, 1, &n, NULL));
    CHECK(says("`event` is NULL"));
    event.struct_size = 0;
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_begin(node, 0, 1, &n, &event));
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_next(node, 0, &event));
    CHECK(n == 7);
    event.struct_size = sizeof event;
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_begin(node, 0, 1, NULL, &event));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_begin(node, HEADCOUNT_CAUSE_STOP, 1, &n, &event));
    CHECK(says("`cause`") && n == 0);
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_process(node, (headcount_event *)((char *)&event + 1)));
    CHECK(says("not aligned"));
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));

    /* A process that has not joined. */
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_beat(node));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_drain(node, 0, 0, &event));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_leave(node, 5, 0, &event));
    CHECK(says("generation 5"));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_process(node, &event));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_watch_fd(node, &fd));
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_waker_rearm(node));
    CODE(HEADCOUNT_OK, headcount_waker_stop(node, 0));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_child_exited(node, -1, 0));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_leave_master(node, -2, &event));
    CHECK(says("`wait_ms`"));

    /* Joining. */
    uint64_t generation = begin(node, 1);
    headcount_join_options join = join_options(generation, 0);
    join.role = HEADCOUNT_ROLE_MASTER;
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_join(node, &join, &event));
    join = join_options(0, 0);
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_join(node, &join, &event));
    join = join_options(generation, 0);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_join(node, &join, &event));
    char path[32];
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_waker_start(node, path, 8));

    /* Looking. */
    headcount_counts counts = {.struct_size = 1};
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_get_counts(node, 0, &counts));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_mark_once(node, generation, 32, &bit));
    CODE(HEADCOUNT_ERR_NOT_FOUND, headcount_mark_once(node, generation + 1, 0, &bit));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_events(node, &cursor, &event, 0, &n, NULL));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_events(node, NULL, &event, 1, &n, NULL));
    headcount_snapshot snapshot = {.struct_size = sizeof snapshot};
    headcount_generation_status generations[1] = {{.struct_size = sizeof generations[0]}};
    headcount_process_status processes[1] = {{.struct_size = 1}};
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_get_snapshot(node, NULL, NULL, 0, NULL, 0));
    CHECK(says("`snapshot` is NULL"));
    CODE(HEADCOUNT_ERR_INVALID_OPTION, headcount_get_snapshot(node, &snapshot, NULL, 1, NULL, 0));
    CHECK(says("`generations` is NULL"));
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_get_snapshot(node, &snapshot, generations, 1, processes, 1));
    CHECK(says("headcount_process_status") && generations[0].id == 0 && snapshot.head == 0);
    snapshot.struct_size = 0;
    CODE(HEADCOUNT_ERR_ABI_MISMATCH, headcount_get_snapshot(node, &snapshot, NULL, 0, NULL, 0));
    CODE(HEADCOUNT_ERR_NOT_FOUND, headcount_notice(node, &bit, path, sizeof path));

    CODE(HEADCOUNT_EVENT, headcount_leave(node, 0, -1, &event));
    headcount_close(node);
    CODE(HEADCOUNT_OK, headcount_next(node, 0, &event));
    return 0;
}
