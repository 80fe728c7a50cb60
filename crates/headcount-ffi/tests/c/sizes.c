/* The compiler and the library agree on every structure. */
#include "check.h"

#include <stddef.h>

int main(void) {
    CHECK(headcount_abi_version() == HEADCOUNT_ABI_VERSION);
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_OPTIONS) == sizeof(headcount_options));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_EVENT) == sizeof(headcount_event));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_JOIN_OPTIONS) == sizeof(headcount_join_options));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_COUNTS) == sizeof(headcount_counts));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_SNAPSHOT) == sizeof(headcount_snapshot));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_GENERATION_STATUS) == sizeof(headcount_generation_status));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_PROCESS_STATUS) == sizeof(headcount_process_status));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_STEP) == sizeof(headcount_step));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_LEADER) == sizeof(headcount_leader));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_ONCE) == sizeof(headcount_once));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_LOCK) == sizeof(headcount_lock));
    CHECK(headcount_struct_size(HEADCOUNT_STRUCT_SINGLETON) == sizeof(headcount_singleton));
    CHECK(headcount_struct_size(0) == 0 && headcount_struct_size(99) == 0);

    /* These are what declarations written by hand, such as the Lua library's, go by: a change is a new ABI. */
    CHECK(sizeof(headcount_options) == 64 && sizeof(headcount_join_options) == 32);
    CHECK(sizeof(headcount_event) == 216 && offsetof(headcount_event, cause) == 56);
    CHECK(offsetof(headcount_event, signal) == 96 && offsetof(headcount_event, reporter_pid) == 120 &&
          offsetof(headcount_event, state) == 124 && offsetof(headcount_event, end_ns) == 144);
    CHECK(sizeof(headcount_step) == 24 && offsetof(headcount_step, unsaid) == 20);
    CHECK(sizeof(headcount_counts) == 48 && offsetof(headcount_counts, generation) == 40);
    CHECK(sizeof(headcount_snapshot) == 80 && offsetof(headcount_snapshot, holder) == 64);
    CHECK(sizeof(headcount_generation_status) == 72 && offsetof(headcount_generation_status, expected) == 44);
    CHECK(sizeof(headcount_process_status) == 64 && offsetof(headcount_process_status, state) == 48);

    CHECK(strcmp(headcount_error_name(HEADCOUNT_OK), "ok") == 0);
    CHECK(strcmp(headcount_error_name(HEADCOUNT_EVENT), "event") == 0);
    CHECK(strcmp(headcount_error_name(HEADCOUNT_ERR_LOCK_TIMEOUT), "lock_timeout") == 0);
    CHECK(strcmp(headcount_error_name(HEADCOUNT_ERR_ABI_MISMATCH), "abi_mismatch") == 0);
    CHECK(strcmp(headcount_error_name(-99), "unknown") == 0);
    CHECK(strcmp(headcount_kind_name(HEADCOUNT_KIND_WORKER_DIED), "worker_died") == 0);
    CHECK(strcmp(headcount_cause_name(HEADCOUNT_CAUSE_NO_WORKERS), "no_workers") == 0);
    CHECK(strcmp(headcount_role_name(HEADCOUNT_ROLE_HELPER), "helper") == 0);
    CHECK(strcmp(headcount_state_name(HEADCOUNT_STATE_ORPHANED), "orphaned") == 0);
    CHECK(strcmp(headcount_liveness_name(HEADCOUNT_LIVENESS_GONE), "gone") == 0);
    CHECK(strstr(headcount_doubt_reason(HEADCOUNT_DOUBT_OTHER_NAMESPACE), "another pid namespace") != NULL);
    CHECK(strcmp(headcount_phase_name(HEADCOUNT_PHASE_ANNOUNCED), "announced") == 0);
    CHECK(strcmp(headcount_kind_name(0), "unknown") == 0 && strcmp(headcount_state_name(0), "unknown") == 0);
    return 0;
}
