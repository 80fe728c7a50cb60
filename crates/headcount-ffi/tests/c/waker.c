/* The waker: what a host hears that can only read from a socket. */
#include "check.h"
#include "listen.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static headcount_node *node;
static headcount_event event = {.struct_size = sizeof event};
static uint64_t generation;

static pid_t worker(int32_t id) {
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* it goes with the test, also when that fails */
        headcount_join_options join = join_options(generation, id);
        only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);
        CHECK(write(ready[1], "r", 1) == 1);
        for (;;) {
            headcount_beat(node);
            usleep(100000);
        }
    }
    close(ready[1]);
    CHECK(heard(ready[0], 10000) == 'r');
    close(ready[0]);
    return pid;
}

/* Reads, processes and rearms until this kind is reported. */
static void wait_for(int fd, uint32_t kind, pid_t pid) {
    for (;;) {
        CHECK(heard(fd, 10000) == 'E');
        CHECK(heard(fd, 50) == 0); /* the next one only after the rearm */
        int found = 0;
        int32_t code = headcount_process(node, &event);
        for (; code == HEADCOUNT_EVENT; code = headcount_next(node, 0, &event))
            found |= event.kind == kind && event.pid == pid;
        CHECK(code == HEADCOUNT_OK || code == HEADCOUNT_ERR_BUSY);
        CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
        if (found)
            return;
    }
}

static void *does_nothing(void *argument) {
    return argument;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    alarm(60);
    node = open_node(argv[1]);
    generation = begin(node, 2);
    pid_t victim = worker(1);
    headcount_join_options join = join_options(generation, 0);
    only(headcount_join(node, &join, &event), node, &event, HEADCOUNT_KIND_WORKER_STARTED);

    char path[64], second[64];
    CODE(HEADCOUNT_OK, headcount_waker_start(node, path, sizeof path));
    CHECK(strncmp(path, "/proc/self/fd/", 14) == 0);

    /* Another process that comes first is not listened to: it is hung up on. */
    char public_path[128];
    snprintf(public_path, sizeof public_path, "/proc/%ld/fd/%s", (long)getpid(), path + 14);
    pid_t stranger = fork();
    if (stranger == 0) {
        int fd = dial(public_path);
        CHECK(fd >= 0 && heard(fd, 10000) == -1);
        _exit(0);
    }
    int status;
    CHECK(waitpid(stranger, &status, 0) == stranger && status == 0);

    int fd = dial(path);
    CHECK(fd >= 0);
    CHECK(kill(victim, SIGKILL) == 0 && waitpid(victim, &status, 0) == victim);
    wait_for(fd, HEADCOUNT_KIND_WORKER_DIED, victim);
    CHECK(event.struct_size == sizeof event);
    uint32_t deaths;
    CODE(HEADCOUNT_OK, headcount_recent_deaths(node, generation, 60000, &deaths));
    CHECK(deaths == 1);
    CODE(HEADCOUNT_OK, headcount_recent_deaths(node, generation, 0, &deaths));
    CHECK(deaths == 0);
    CODE(HEADCOUNT_OK, headcount_recent_deaths(node, generation + 1, 60000, &deaths));
    CHECK(deaths == 0);

    /* A signal to the process never lands in the thread: with it blocked here, it stays pending. */
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && kill(getpid(), SIGUSR1) == 0);
    usleep(20000);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
    signal(SIGUSR1, SIG_IGN);

    /* Once connected, there is no path any more; a new waker ends the old one. */
    CHECK(dial(path) == -1);
    CODE(HEADCOUNT_OK, headcount_waker_start(node, second, sizeof second));
    int end;
    while ((end = heard(fd, 10000)) == 'E')
        ;
    CHECK(end == 'Q' && heard(fd, 10000) == -1);
    close(fd);

    /* One that nobody has connected to is stopped; an older generation's stop is not for this one. */
    CODE(HEADCOUNT_OK, headcount_waker_stop(node, generation + 1));
    CODE(HEADCOUNT_OK, headcount_waker_rearm(node));
    fd = dial(second);
    CHECK(fd >= 0);

    /* A forked child has no waker, and ending it does not end the parent's. */
    pid_t child = fork();
    if (child == 0) {
        CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_waker_rearm(node));
        headcount_close(node);
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CODE(HEADCOUNT_OK, headcount_waker_rearm(node));

    /* Leaving ends it. */
    CODE(HEADCOUNT_EVENT, headcount_leave(node, generation, -1, &event));
    while (headcount_next(node, 0, &event) == HEADCOUNT_EVENT)
        ;
    while ((end = heard(fd, 10000)) == 'E')
        ;
    CHECK(end == -1 || (end == 'Q' && heard(fd, 10000) == -1)); /* -1: it had not come to accept yet */
    CODE(HEADCOUNT_ERR_WRONG_STATE, headcount_waker_rearm(node));

    /* The thread is gone: another one can be made and joined, and no descriptor was left. */
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, does_nothing, NULL) == 0 && pthread_join(thread, NULL) == 0);
    return 0;
}
