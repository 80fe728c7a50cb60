/*
 * A small pre-forking server in C: one master, four workers, one listener on loopback.
 *
 *     cc -std=c11 prefork.c $(pkg-config --cflags --libs headcount) -o prefork
 *     ./prefork [NODE [REGISTRY]]
 *
 * HUP: reload (new workers, the old ones drain). TERM: stop. A worker that dies is replaced. Everything that headcount
 * reports is printed by the process that it is reported to. One of the workers schedules, one migrates, and one at a time
 * counts a visitor.
 */
#define _GNU_SOURCE
#include <headcount.h>

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 4, MOST_CHILDREN = 64, BEAT_MS = 500 };

struct child {
    pid_t pid; /* 0: this place is free */
    uint64_t generation;
    int32_t worker_id;
};

static headcount_node *node;
static struct child children[MOST_CHILDREN];
static uint64_t generation; /* the newest, as the master began it */
static int listener, signals;

/* One write for one line: the lines of several processes must not be mixed. */
static void say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = snprintf(line, sizeof line, "%ld ", (long)getpid());
    length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)length) < 0)
        return; /* nobody reads: no reason to stop serving */
}

/* What headcount wants to have logged. */
static void log_notices(void) {
    char text[512];
    uint32_t level;
    while (headcount_notice(node, &level, text, sizeof text) == HEADCOUNT_OK)
        say("notice level=%u %s", level, text);
}

/* A failure of headcount is said, and is no reason to stop serving. */
static int ok(int32_t code, const char *what) {
    if (code < 0)
        say("error %s: %s: %s", what, headcount_error_name(code), headcount_last_error());
    log_notices();
    return code >= 0;
}

/* Acts on the event that a call has brought, and on all that follow. The node lock is held meanwhile. */
static void act(int32_t code, headcount_event *event, const char *what) {
    for (; code == HEADCOUNT_EVENT; code = headcount_next(node, 0, event))
        say("event %s cause=%s generation=%" PRIu64 " worker=%d pid=%d signal=%d prev=%d mine=%d next=%d draining=%d",
            headcount_kind_name(event->kind), headcount_cause_name(event->cause), event->generation, event->worker_id,
            event->pid, event->signal, event->prev, event->mine, event->next, event->draining);
    if (code != HEADCOUNT_ERR_BUSY) /* of headcount_process: the watch tells again */
        ok(code, what);
}

/* A scheduler in one of the workers: after each turn of the loop. */
static void schedule(void) {
    static const char *role = "scheduler";
    headcount_leader leader = {.struct_size = sizeof leader};
    if (!ok(headcount_leader_poll(node, role, &leader), "leader_poll"))
        return;
    switch (leader.change) {
    case HEADCOUNT_LEADER_ELECTED: /* start it; the token goes to whatever it writes to */
        say("schedules token=%" PRIu64, leader.token);
        break;
    case HEADCOUNT_LEADER_GIVE_UP: /* stop it, and say so: another worker waits for that */
        say("schedules_no_more");
        ok(headcount_leader_give_up(node, role), "give_up");
        break;
    case HEADCOUNT_LEADER_LOST: /* stop it: another worker has the role */
        say("schedules_no_more");
        break;
    }
}

/* A migration that runs once while the node lives: until it is done, after each turn of the loop. */
static int migrate(void) {
    static const char *key = "migration-7";
    headcount_once once = {.struct_size = sizeof once};
    if (!ok(headcount_once_begin(node, HEADCOUNT_ONCE_NODE, key, HEADCOUNT_WAIT_LOCK_TIMEOUT, &once), "once_begin"))
        return 0;
    if (once.state == HEADCOUNT_ONCE_RUN) { /* without any lock, and for as long as it takes */
        say("migrates attempt=%u", once.attempt);
        return ok(headcount_once_end(node, HEADCOUNT_ONCE_NODE, key, 1, HEADCOUNT_WAIT_LOCK_TIMEOUT), "once_end");
    }
    return once.state != HEADCOUNT_ONCE_RUNNING; /* by another worker: ask again */
}

/* One worker at a time does this. */
static void count_visitor(void) {
    headcount_lock lock = {.struct_size = sizeof lock};
    if (!ok(headcount_lock_acquire(node, "visitors", 200, &lock), "lock_acquire"))
        return;
    if (lock.abandoned_by != 0)
        say("recounts after=%d", lock.abandoned_by);
    say("counts token=%" PRIu64, lock.token);
    ok(headcount_lock_release(node, "visitors"), "lock_release");
}

static void serve_one(void) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0)
        return; /* another worker was faster */
    count_visitor();
    char answer[64];
    int length = snprintf(answer, sizeof answer, "%ld %" PRIu64 "\n", (long)getpid(), generation);
    if (write(connection, answer, (size_t)length) < 0)
        say("error answer: %s", strerror(errno));
    close(connection);
}

static int next_signal(void) {
    struct signalfd_siginfo info;
    return read(signals, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

static void work(int32_t worker_id, pid_t replaces) {
    headcount_event event = {.struct_size = sizeof event};
    headcount_join_options join = {
        .struct_size = sizeof join,
        .generation = generation,
        .worker_id = worker_id,
        .replaces_pid = replaces,
        .wait_ms = HEADCOUNT_WAIT_LOCK_TIMEOUT,
    };
    act(headcount_join(node, &join, &event), &event, "join");
    int32_t watch = -1; /* poll passes over it if there is none */
    ok(headcount_watch_fd(node, &watch), "watch");
    ok(headcount_leader_stand(node, "scheduler"), "leader_stand");

    int draining = 0, has_migrated = 0;
    struct pollfd fds[] = {{signals, POLLIN, 0}, {watch, POLLIN, 0}, {listener, POLLIN, 0}};
    while (!draining) {
        poll(fds, 3, BEAT_MS);
        headcount_beat(node);
        if (fds[1].revents)
            act(headcount_process(node, &event), &event, "process");
        has_migrated = has_migrated || migrate();
        schedule();
        if (fds[2].revents)
            serve_one();
        switch (fds[0].revents ? next_signal() : 0) {
        case SIGQUIT: /* a server with long requests would finish them here */
            draining = 1;
            act(headcount_drain(node, 0, HEADCOUNT_WAIT_LOCK_TIMEOUT, &event), &event, "drain");
            break;
        case SIGTERM:
            draining = 1;
            break;
        }
    }
    uint32_t leads = 0;
    if (ok(headcount_is_leader(node, "scheduler", &leads), "is_leader") && leads)
        say("schedules_no_more");
    ok(headcount_leader_resign(node, "scheduler"), "leader_resign");
    act(headcount_leave(node, 0, HEADCOUNT_WAIT_LOCK_TIMEOUT, &event), &event, "leave");
    exit(0);
}

static void start_worker(int32_t worker_id, pid_t replaces) {
    struct child *child = children;
    while (child < children + MOST_CHILDREN && child->pid != 0)
        child++;
    if (child == children + MOST_CHILDREN) {
        say("error too many workers are draining");
        return;
    }
    pid_t master = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        /* Whoever stops this example with KILL wants to be rid of all of it. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != master)
            _exit(1);
        work(worker_id, replaces);
    }
    if (pid < 0)
        say("error fork: %s", strerror(errno));
    else
        *child = (struct child){pid, generation, worker_id};
}

/* A server would read its configuration here, and call headcount_abandon if that turned out not to work. */
static void start_generation(void) {
    headcount_event event = {.struct_size = sizeof event};
    act(headcount_begin(node, HEADCOUNT_CAUSE_UNKNOWN, WORKERS, &generation, &event), &event, "begin");
    ok(headcount_commit(node, generation), "commit");
    for (int32_t id = 0; id < WORKERS; id++)
        start_worker(id, 0);
}

static void tell_workers(int signal, uint64_t before) {
    for (int i = 0; i < MOST_CHILDREN; i++)
        if (children[i].pid != 0 && children[i].generation < before)
            kill(children[i].pid, signal);
}

/* How many workers are left. */
static int reap(int stopping) {
    int left = 0, status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        ok(headcount_child_exited(node, pid, status), "child_exited");
        for (int i = 0; i < MOST_CHILDREN; i++) {
            if (children[i].pid != pid)
                continue;
            children[i].pid = 0;
            if (!stopping && children[i].generation == generation)
                start_worker(children[i].worker_id, pid);
            break;
        }
    }
    for (int i = 0; i < MOST_CHILDREN; i++)
        left += children[i].pid != 0;
    return left;
}

static void set_up(int argc, char **argv) {
    sigset_t set;
    sigemptyset(&set);
    for (const int *s = (const int[]){SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGCHLD, 0}; *s; s++)
        sigaddset(&set, *s);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signals = signalfd(-1, &set, SFD_CLOEXEC);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (signals < 0 || listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
        say("error listen: %s", strerror(errno));
        exit(1);
    }
    say("listening port=%d", ntohs(address.sin_port));

    if (headcount_abi_version() != HEADCOUNT_ABI_VERSION) {
        say("error libheadcount.so has ABI version %u, this was compiled for %d", headcount_abi_version(), HEADCOUNT_ABI_VERSION);
        exit(1);
    }
    headcount_options options = {
        .struct_size = sizeof options,
        .node = argc > 1 ? argv[1] : "prefork",
        .path = argc > 2 ? argv[2] : NULL,
        .heartbeat_interval_ms = 2 * BEAT_MS,
    };
    if (!ok(headcount_open(&options, &node), "open"))
        exit(1);
}

int main(int argc, char **argv) {
    set_up(argc, argv);
    start_generation();
    for (int left = WORKERS, stopping = 0; !stopping || left > 0;) {
        switch (next_signal()) {
        case SIGHUP:
            if (stopping)
                break;
            start_generation();
            tell_workers(SIGQUIT, generation);
            break;
        case SIGTERM:
        case SIGINT:
            stopping = 1;
            tell_workers(SIGTERM, UINT64_MAX);
            break;
        }
        /* One CHLD may stand for many children, and one that came with another signal for none. */
        left = reap(stopping);
    }
    headcount_event event = {.struct_size = sizeof event};
    act(headcount_leave_master(node, HEADCOUNT_WAIT_LOCK_TIMEOUT, &event), &event, "leave_master");
    say("stopped");
    return 0;
}
