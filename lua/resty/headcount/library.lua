-- libheadcount.so: its declarations, where it is, and a check that both match.

local ffi = require "ffi"

local ABI_VERSION = 3

-- Copied by hand from headcount.h. The sizes are compared with the library's below, before anything is called.
local DECLARATIONS = [[
  typedef struct headcount_node headcount_node;

  typedef struct {
    uint32_t struct_size, slots, singletons, journal_records, takes_over_from, reserved;
    const char *node;
    const char *path;
    uint64_t heartbeat_interval_ms, stall_after_ms, lock_timeout_ms;
  } headcount_options;

  typedef struct {
    uint32_t struct_size, kind;
    uint64_t seq, generation, time_ns, boot_ns, heartbeat_ns, previous_generation;
    uint32_t cause;
    int32_t pid, worker_id, prev, mine, next, draining, prev_draining, next_draining, total;
    int32_t signal, exit_code;
    uint32_t retry, previous_run;
    int32_t previous_workers;
    uint32_t role, reporter_pid, state;
    uint64_t joined_ns, state_since_ns, end_ns, token;
    uint32_t attempts;
    char name[52];
  } headcount_event;

  typedef struct {
    uint32_t struct_size, role;
    uint64_t generation;
    int32_t worker_id, replaces_pid;
    int64_t wait_ms;
  } headcount_join_options;

  typedef struct {
    uint32_t struct_size;
    int32_t prev, mine, next, draining, prev_draining, next_draining, total, total_draining;
    uint32_t reserved;
    uint64_t generation;
  } headcount_counts;

  typedef struct {
    uint32_t struct_size;
    int32_t total;
    uint64_t head, boot_ns, time_ns, generations, processes, held_ns, callback_ns;
    int32_t holder;
    uint32_t callback;
    int32_t sentinel;
    uint32_t reserved;
  } headcount_snapshot;

  typedef struct {
    uint32_t struct_size, phase;
    uint64_t id, age_ns, begun_ns;
    uint32_t cause;
    int32_t master, master_alive, expected, prev, mine, next, draining, prev_draining, next_draining;
  } headcount_generation_status;

  typedef struct {
    uint32_t struct_size, role;
    uint64_t generation, age_ns, in_state_ns;
    int64_t heartbeat_age_ns;
    int32_t pid, worker_id;
    uint32_t state, liveness, doubt, cause;
  } headcount_process_status;

  typedef struct {
    uint32_t struct_size, state, next_ms, listen, on_duty, unsaid;
  } headcount_step;

  typedef struct {
    uint32_t struct_size, change;
    uint64_t token;
    const uint64_t *word;
  } headcount_leader;

  typedef struct {
    uint32_t struct_size, state, attempt;
    int32_t last_cause, last_signal, pid, worker_id;
    uint32_t reserved;
    uint64_t since_ns;
  } headcount_once;

  typedef struct {
    uint32_t struct_size;
    int32_t abandoned_by;
    uint64_t token;
  } headcount_lock;

  typedef struct {
    uint32_t struct_size, kind, state;
    int32_t holder, worker_id;
    uint32_t attempts, waiters;
    char name[52];
    uint64_t generation, token, since_ns;
  } headcount_singleton;

  typedef struct {
    int (*call)(void *, int, int, int);
    void *thread;
  } headcount_nginx_call;

  uint32_t headcount_abi_version(void);
  uint64_t headcount_struct_size(uint32_t which);
  const char *headcount_last_error(void);
  const char *headcount_error_name(int32_t code);
  const char *headcount_kind_name(uint32_t kind);
  const char *headcount_cause_name(uint32_t cause);
  const char *headcount_role_name(uint32_t role);
  const char *headcount_state_name(uint32_t state);
  const char *headcount_liveness_name(uint32_t liveness);
  const char *headcount_phase_name(uint32_t phase);
  const char *headcount_singleton_name(uint32_t kind);
  const char *headcount_singleton_state_name(uint32_t state);
  const char *headcount_doubt_reason(uint32_t doubt);

  int32_t headcount_open(const headcount_options *options, headcount_node **node);
  int32_t headcount_opened(headcount_node **node);
  int32_t headcount_check_options(headcount_options *options);
  int32_t headcount_nginx_default_node(const char *const *arguments, uint64_t number, const char *prefix,
                                       const char *folder, char *name, uint64_t capacity);
  void headcount_nginx_at_end(headcount_nginx_call *call);
  int32_t headcount_notice(headcount_node *node, uint32_t *level, char *buffer, uint64_t capacity);
  int32_t headcount_node_info(headcount_node *node, char *name, uint64_t name_capacity,
                              char *path, uint64_t path_capacity);
  int32_t headcount_begin(headcount_node *node, uint32_t cause, uint32_t workers,
                          uint64_t *generation, headcount_event *event);
  int32_t headcount_next(headcount_node *node, int32_t callback_failed, headcount_event *event);
  int32_t headcount_commit(headcount_node *node, uint64_t generation);
  int32_t headcount_abandon(headcount_node *node, uint64_t generation);
  int32_t headcount_adopt_master(headcount_node *node);
  int32_t headcount_child_exited(headcount_node *node, int32_t pid, int32_t wait_status);
  int32_t headcount_leave_master(headcount_node *node, int64_t wait_ms, headcount_event *event);

  int32_t headcount_join(headcount_node *node, const headcount_join_options *options, headcount_event *event);
  int32_t headcount_beat(headcount_node *node);
  int32_t headcount_leave(headcount_node *node, uint64_t generation, int64_t wait_ms, headcount_event *event);

  int32_t headcount_member_join(headcount_node *node, const headcount_join_options *options,
                                headcount_step *step, headcount_event *event);
  int32_t headcount_member_on_time(headcount_node *node, headcount_step *step, headcount_event *event);
  int32_t headcount_member_on_readable(headcount_node *node, headcount_step *step, headcount_event *event);
  int32_t headcount_member_drain(headcount_node *node, headcount_step *step, headcount_event *event);
  int32_t headcount_waker_start(headcount_node *node, char *path, uint64_t capacity);
  int32_t headcount_waker_stop(headcount_node *node, uint64_t generation);

  int32_t headcount_leader_stand(headcount_node *node, const char *role);
  int32_t headcount_leader_poll(headcount_node *node, const char *role, headcount_leader *leader);
  int32_t headcount_leader_give_up(headcount_node *node, const char *role);
  int32_t headcount_once_begin(headcount_node *node, uint32_t scope, const char *key, int64_t wait_ms,
                               headcount_once *once);
  int32_t headcount_once_end(headcount_node *node, uint32_t scope, const char *key, int32_t done, int64_t wait_ms);
  int32_t headcount_lock_acquire(headcount_node *node, const char *name, int64_t wait_ms, headcount_lock *lock);
  typedef struct headcount_named_lock headcount_named_lock;
  int32_t headcount_lock_find(headcount_node *node, const char *name, const headcount_named_lock **lock);
  int32_t headcount_named_lock_acquire(const headcount_named_lock *named, int64_t wait_ms, headcount_lock *lock);
  int32_t headcount_named_lock_release(const headcount_named_lock *named);
  void headcount_named_lock_free(const headcount_named_lock *named);
  int32_t headcount_lock_watch(headcount_node *node, const char *name, int32_t wanted);
  int32_t headcount_lock_release(headcount_node *node, const char *name);
  int32_t headcount_get_singletons(headcount_node *node, headcount_singleton *singletons, uint64_t capacity,
                                   uint64_t *number);

  int32_t headcount_get_counts(headcount_node *node, uint64_t generation, headcount_counts *counts);
  int32_t headcount_recent_deaths(headcount_node *node, uint64_t generation, uint64_t within_ms, uint32_t *number);
  int32_t headcount_mark_once(headcount_node *node, uint64_t generation, uint32_t bit, uint32_t *was_new);
  int32_t headcount_events(headcount_node *node, uint64_t *cursor, headcount_event *events, uint64_t capacity,
                           uint64_t *number, uint64_t *lost);
  int32_t headcount_get_snapshot(headcount_node *node, headcount_snapshot *snapshot,
                                 headcount_generation_status *generations, uint64_t generation_capacity,
                                 headcount_process_status *processes, uint64_t process_capacity);
]]

ffi.cdef(DECLARATIONS)

local STRUCTS = {
  "headcount_options", "headcount_event", "headcount_join_options", "headcount_counts", "headcount_snapshot",
  "headcount_generation_status", "headcount_process_status", "headcount_step",
  "headcount_nginx_call", "headcount_leader", "headcount_once", "headcount_lock", "headcount_singleton",
}

local function fail(...)
  error("resty.headcount: " .. string.format(...), 0)
end

-- Whether an earlier configuration loaded the library into this process. That one holds the process's slot in the
-- registry, so a second one must not be used beside it.
local function is_in_process()
  local file = io.open("/proc/self/maps", "rb")
  if not file then return false end
  local maps = file:read("*a")
  file:close()
  return maps:find("/libheadcount.so\n", 1, true) ~= nil
end

-- The nginx module exports the same functions to the whole process. If we use those, both share one engine.
local function of_module()
  if is_in_process() then return end
  local known = pcall(function() return ffi.C.headcount_abi_version end)
  if known then return ffi.C end
end

local function of_file()
  local path, tried = package.searchpath("libheadcount", package.cpath)
  if not path then
    fail("libheadcount.so was not found in lua_package_cpath. Run headcount's `make install`, or name the folder: "
      .. "lua_package_cpath '/folder/?.so;;'. Tried:%s", tried)
  end
  local loaded, library = pcall(ffi.load, path)
  if not loaded then fail("cannot load %s: %s", path, library) end
  return library, path
end

local function load()
  local library, path = of_module(), "ngx_headcount_module.so"
  if not library then library, path = of_file() end

  local known, version = pcall(function() return library.headcount_abi_version() end)
  if not known then fail("%s is not headcount's library: %s", path, version) end
  if version ~= ABI_VERSION then
    fail("%s has ABI version %d, but these Lua modules need %d: install both from the same release of headcount",
      path, version, ABI_VERSION)
  end
  for which, name in ipairs(STRUCTS) do
    local here, there = ffi.sizeof(name), tonumber(library.headcount_struct_size(which))
    if here ~= there then
      fail("in %s a %s has %d bytes, but in these Lua modules %d: install both from the same release of headcount",
        path, name, there, here)
    end
  end
  -- Look each function up once, in the master, so that its workers need not.
  for name in DECLARATIONS:gmatch("(headcount_[%w_]+)%(") do local _ = library[name] end
  return library
end

return load()
