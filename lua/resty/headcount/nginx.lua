-- What this nginx process is, from the variables that nginx exports. ngx_lua tells some of it, but not in
-- a VM that is being closed, and not how a child ended.
--
-- Each variable may be missing (an nginx linked without -Wl,-E). The answer is then "not known", and the
-- callers fall back on something else.

local bit = require "bit"
local ffi = require "ffi"

-- Under names of our own, since a host's Lua may declare the same variables, perhaps with other types.
ffi.cdef [[
  typedef struct {
    int pid, status, channel[2];
    void *proc, *data;
    char *name;
    unsigned flags;
  } headcount_nginx_child;
  typedef struct { long sec, nsec; } headcount_timespec;
  typedef struct headcount_nginx_cleanup {
    void (*handler)(void *data);
    void *data;
    struct headcount_nginx_cleanup *next;
  } headcount_nginx_cleanup;
  typedef struct {
    void *last, *end, *next;
    unsigned long failed, max;
    void *current, *chain, *large;
    headcount_nginx_cleanup *cleanup;
  } headcount_nginx_pool;

  extern unsigned long headcount_nginx_role __asm__("ngx_process");
  extern int headcount_nginx_quit __asm__("ngx_quit");
  extern int headcount_nginx_terminate __asm__("ngx_terminate");
  extern void **headcount_nginx_cycle __asm__("ngx_cycle");
  extern int headcount_nginx_argc __asm__("ngx_argc");
  extern char **headcount_nginx_argv __asm__("ngx_argv");
  extern long headcount_nginx_slot __asm__("ngx_process_slot");
  extern long headcount_nginx_last __asm__("ngx_last_process");
  extern headcount_nginx_child headcount_nginx_children[1024] __asm__("ngx_processes");
  headcount_nginx_cleanup *headcount_nginx_add_cleanup(void *pool, size_t size) __asm__("ngx_pool_cleanup_add");
  int headcount_lua_pcall(void *thread, int arguments, int results, int handler) __asm__("lua_pcall");
  long headcount_nginx_no_timers_left(void) __asm__("ngx_event_no_timers_left");
  int headcount_getpid(void) __asm__("getpid");
  char *headcount_getcwd(char *buffer, size_t capacity) __asm__("getcwd");
  int headcount_clock_gettime(int clock, headcount_timespec *out) __asm__("clock_gettime");
]]

local C = ffi.C
local CLOCK_BOOTTIME = 7
local ROLES = { [0] = "single", "master", "signaller", "worker", "helper" }
local EXITED = 16 -- ngx_process_t: respawn:1, just_spawn:1, detached:1, exiting:1, exited:1
local LAST_CHILD = 1023

local _M = {}

local function get(name) return C[name] end

local function variable(name)
  local known, value = pcall(get, name)
  if known then return value end
end

-- Look each one up once, in the master, so that its workers need not.
for _, name in ipairs { "slot", "last", "children", "quit", "terminate" } do variable("headcount_nginx_" .. name) end
for _, name in ipairs { "nginx_no_timers_left", "nginx_add_cleanup", "lua_pcall" } do pcall(get, "headcount_" .. name) end

_M.pid = C.headcount_getpid

local timespec = ffi.new("headcount_timespec")

-- Seconds on a clock that nobody sets, and that keeps running while the machine sleeps.
function _M.clock()
  C.headcount_clock_gettime(CLOCK_BOOTTIME, timespec)
  return tonumber(timespec.sec) + tonumber(timespec.nsec) / 1e9
end

-- As nginx itself says. It also says "single" while it reads its first configuration. nil: not known.
function _M.role()
  local role = variable("headcount_nginx_role")
  return role and ROLES[tonumber(role)]
end

-- Whether this process, or the one that it was before it went into the background, has ever had a worker or helper.
function _M.has_forked() return tonumber(variable("headcount_nginx_last") or 1) > 0 end

-- True once this process has been told to end.
function _M.told_to_end()
  return (variable("headcount_nginx_quit") or 0) ~= 0 or (variable("headcount_nginx_terminate") or 0) ~= 0
end

-- ngx_cycle: the configuration that ngx_lua looks things up in. Its first word points to the contents.
function _M.cycle() return variable("headcount_nginx_cycle") end

function _M.has_configuration()
  local cycle = _M.cycle()
  return cycle == nil or cycle[0] ~= nil
end

-- Runs a function with ngx_cycle set to the given one. A process that ends replaces it by an empty one
-- before our VM is closed, and `ngx.worker.count()`, `ngx.re.*` and others would crash on that.
function _M.with_cycle(cycle, run, ...)
  if cycle == nil or _M.has_configuration() then return run(...) end
  local empty = C.headcount_nginx_cycle
  C.headcount_nginx_cycle = cycle
  local ok, err = pcall(run, ...)
  C.headcount_nginx_cycle = empty
  if not ok then error(err, 0) end
end

-- The end of a configuration --------------------------------------------------------------------
--
-- Its pool is destroyed: after a good reload that of the old one, after a failed one that of the new one, and at the end
-- of a process that of the one in force. Of what a pool has to clean up, the newest comes first. So what init_by_lua puts
-- there runs before the VM is closed, which nginx has put there before, and finds all of it whole.

-- ngx_cycle's second word. While init_by_lua runs, ngx_lua has the configuration that is being read in its place.
local function pool()
  local cycle = _M.cycle()
  if cycle ~= nil and cycle[0] ~= nil then return ffi.cast("headcount_nginx_pool *", cycle[1]) end
end

-- Whether that configuration has this handler already.
function _M.has_at_end(handler)
  local of = pool()
  local cleanup = of and of.cleanup
  while cleanup and cleanup ~= nil do
    if ffi.cast("void *", cleanup.handler) == ffi.cast("void *", handler) then return true end
    cleanup = cleanup.next
  end
  return false
end

local function add_cleanup(handler, run)
  local of = pool()
  local call = of and C.headcount_nginx_add_cleanup(of, ffi.sizeof("headcount_nginx_call"))
  if not call or call == nil then return end
  local thread = coroutine.create(run)
  local data = ffi.cast("headcount_nginx_call *", call.data)
  data.call = C.headcount_lua_pcall
  data.thread = ffi.cast("void *", ffi.cast("uintptr_t", tonumber(string.format("%p", thread))))
  call.handler = handler
  return data, thread
end

-- Has `run` called at the end of that configuration, by a handler that takes a headcount_nginx_call. Gives that, and what
-- must be kept as long; nil: this nginx does not let us.
function _M.at_end(handler, run)
  local ok, call, thread = pcall(add_cleanup, handler, run)
  if ok then return call, thread end
end

local function no_timers_left() return C.headcount_nginx_no_timers_left() end

-- Only cancelable timers are left: a draining worker could end now. nil: not known.
function _M.no_timers_left()
  local known, answer = pcall(no_timers_left)
  if known then return answer == 0 end
end

function _M.folder()
  local buffer = ffi.new("char[4096]")
  if C.headcount_getcwd(buffer, 4096) ~= nil then return ffi.string(buffer) end
end

-- The arguments that nginx was started with; nil if they can no longer be found out.
function _M.arguments()
  local argc, argv = variable("headcount_nginx_argc"), variable("headcount_nginx_argv")
  local arguments = {}
  if argc and argv ~= nil then
    for i = 1, argc - 1 do arguments[i] = ffi.string(argv[i]) end
    return arguments
  end
  local file = io.open("/proc/self/cmdline", "rb")
  if not file then return end
  local line = file:read("*a")
  file:close()
  -- A running master shows its arguments in its title, separated by blanks.
  local title = line:match("^nginx: master process (.*)")
  if not title and line:find("^nginx: ") then return end
  for word in (title or line):gmatch(title and "[^%z%s]+" or "[^%z]+") do arguments[#arguments + 1] = word end
  table.remove(arguments, 1)
  return arguments
end

-- A worker's memory still holds what its master knew when it forked it: the pid and wait status of the worker
-- that it replaces (nil if there is none), and of others that had ended and were not replaced yet. All of them
-- are passed to `each`.
function _M.predecessor(each)
  local slot, last = variable("headcount_nginx_slot"), variable("headcount_nginx_last")
  local children = variable("headcount_nginx_children")
  if not (slot and last and children) then return end
  slot, last = tonumber(slot), tonumber(last)
  if last < 0 or last > LAST_CHILD then return end
  -- A worker that replaces nobody skips the rest: at a start with many workers it adds up.
  if slot < 0 or slot >= last or bit.band(children[slot].flags, EXITED) == 0 then return end
  local mine
  for i = 0, last - 1 do
    local child = children[i]
    -- -1: the entry is free. Entries beyond `last` may be old and mean nothing.
    if child.pid > 0 and bit.band(child.flags, EXITED) ~= 0 then
      each(child.pid, child.status)
      if i == slot then mine = child.pid end
    end
  end
  return mine
end

return _M
