-- The node as this VM sees it: its handle, its log lines, its callbacks, and how to wait for its lock.

local ffi = require "ffi"
local library = require "resty.headcount.library"
local nginx = require "resty.headcount.nginx"
local struct = require("resty.headcount.options").struct

local EVENT, BUSY, LOCK_TIMEOUT, WRONG_STATE = 1, -3, -4, -2

local CALLBACKS = {
  "on_generation_start", "on_generation_exit", "on_generation_abandoned", "on_worker_start",
  "on_worker_draining", "on_worker_exit", "on_worker_died", "on_worker_stalled", "on_worker_recovered",
  "on_master_lost",
}
local PREVIOUS_RUNS = { "none", "clean", "unclean" }
local CALLBACK_DIED, CALLBACK_FAILED = 13, 14
-- From this kind on events are about roles, onces and locks: they have a name, and no counts.
local FIRST_NAMED = 16
local LONGEST_PATH = 4096
local LEVELS = { ngx.NOTICE, ngx.WARN, ngx.ERR }
-- Of the time, at most one part of so many is the collector's for our sake: what is looked after may be hundreds of locks.
local SHARE = 10
-- Seconds that a function of the user runs before the collector is asked for it; between two such times, at most: for a callback,
-- which holds the node lock, and for all others, which may take hours; between two looks at whether a callback has ended.
local FIRST_LOOK, LONGEST_PAUSE, LONGEST_OF_ALL, KEEPER_INTERVAL = 1, 8, 60, 0.25

local _M = {
  BUSY = BUSY,
  LOCK_TIMEOUT = LOCK_TIMEOUT,
  WRONG_STATE = WRONG_STATE,
  -- What every call fills in. One is enough: it is read at once, before anybody can yield.
  event = ffi.new("headcount_event", { struct_size = ffi.sizeof("headcount_event") }),
}
-- Set by open(): handle, name, path (nil: memory of its own), options. By worker.lua: revive, called when a callback has taken its coroutine along.

-- While nginx reads its first configuration, its error_log is not open yet, and lines go to stderr only.
local early

function _M.keep_log() early = { pid = nginx.pid() } end

function _M.log(level, ...)
  ngx.log(level, "[headcount] ", ...)
  if early and early.pid == nginx.pid() then early[#early + 1] = { level, table.concat({ ... }) } end
end

-- So what was said then is said again by one worker.
function _M.repeat_log(is_first)
  local kept = early or {}
  early = nil
  if not is_first then return end
  for _, line in ipairs(kept) do _M.log(line[1], line[2]) end
end

function _M.last_error()
  return ffi.string(library.headcount_last_error())
end

local level = ffi.new("uint32_t[1]")
local text = ffi.new("char[1024]")

-- Hands on to the server's log what the library has to say.
function _M.log_notices()
  while library.headcount_notice(_M.handle, level, text, ffi.sizeof(text)) == 0 do
    _M.log(LEVELS[level[0]] or ngx.ERR, ffi.string(text))
  end
end

local function take(handle, options)
  _M.handle, _M.options = handle, options
  local name, path = ffi.new("char[64]"), ffi.new("char[?]", LONGEST_PATH)
  library.headcount_node_info(handle, name, ffi.sizeof(name), path, LONGEST_PATH)
  _M.name = ffi.string(name)
  _M.path = path[0] ~= 0 and ffi.string(path) or nil
end

function _M.open(options)
  local handle = ffi.new("headcount_node *[1]")
  if library.headcount_open(struct(options), handle) < 0 then return nil, _M.last_error() end
  take(handle[0], options)
  _M.log_notices()
  return true
end

local function opened()
  local handle = ffi.new("headcount_node *[1]")
  if library.headcount_opened(handle) == 0 then return handle[0] end
end

-- Whether this process has joined a node.
function _M.is_member()
  local handle = opened()
  return handle ~= nil and library.headcount_beat(handle) == 0
end

-- The server's node, in a process that could only open another: it has no rights any more.
function _M.take_opened(options)
  local handle = opened()
  if not handle then return nil, _M.last_error() end
  take(handle, options)
  return true
end

local function count(n)
  if n >= 0 then return n end
end
_M.count = count

-- Seconds from one moment to another; nil if there is none. A registry may say anything.
local function seconds(from, to)
  if from ~= 0 and from <= to then return tonumber(to - from) / 1e9 end
end

-- An event as callbacks and events() give it.
function _M.table_of(event)
  local kind, previous = tonumber(event.kind), tonumber(event.previous_generation)
  local about_callback = kind == CALLBACK_DIED or kind == CALLBACK_FAILED
  local run = PREVIOUS_RUNS[event.previous_run]
  local named = kind >= FIRST_NAMED
  return {
    kind = ffi.string(library.headcount_kind_name(kind)),
    cause = ffi.string(library.headcount_cause_name(event.cause)),
    node = _M.name,
    generation = tonumber(event.generation),
    role = event.role ~= 0 and ffi.string(library.headcount_role_name(event.role)) or nil,
    pid = event.pid,
    worker_id = count(event.worker_id),
    prev = not named and count(event.prev) or nil,
    mine = not named and event.mine or nil,
    next = not named and count(event.next) or nil,
    draining = not named and event.draining or nil,
    prev_draining = not named and event.prev >= 0 and event.prev_draining or nil,
    next_draining = not named and event.next >= 0 and event.next_draining or nil,
    total = not named and event.total or nil,
    name = named and ffi.string(event.name) or nil,
    token = event.token ~= 0 and tonumber(event.token) or nil,
    attempts = event.attempts ~= 0 and event.attempts or nil,
    signal = event.signal ~= 0 and event.signal or nil,
    exit_code = count(event.exit_code),
    previous_run = run,
    previous_generation = run == "unclean" and previous or nil,
    previous_workers = run == "unclean" and event.previous_workers or nil,
    about = about_callback and previous or nil,
    heartbeat_age = seconds(event.heartbeat_ns, event.boot_ns),
    age = seconds(event.joined_ns, event.end_ns),
    state = event.state ~= 0 and ffi.string(library.headcount_state_name(event.state)) or nil,
    in_state_for = seconds(event.state_since_ns, event.end_ns),
    retry = event.retry ~= 0,
    seq = tonumber(event.seq),
    time = tonumber(event.time_ns) / 1e9,
    reporter = event.reporter_pid,
  }
end

function _M.traceback(err)
  err = tostring(err)
  -- One that a layer above has made tells more than ours could.
  return err:find("stack traceback:", 1, true) and err or debug.traceback(err, 2)
end

local traceback = _M.traceback

-- Callbacks that never come back ---------------------------------------------------------------
--
-- ngx.exit() yields for good: ngx_lua drops the coroutine, and no pcall is told. Only the collector notices. So
-- a sentry lies on the coroutine's stack. As long as ngx_lua means to go on with the coroutine, it keeps it.

-- `fate.lost` becomes true once the running coroutine has been dropped and collected. What this gives must be
-- kept in a local variable, and given to disarm() in the end. Nobody else may keep the coroutine.
function _M.guard(fate)
  fate.begun = nginx.clock()
  local sentry = newproxy(true)
  -- Inside of the collector: nothing more than this is safe.
  getmetatable(sentry).__gc = function() fate.lost = true end
  return sentry
end

function _M.disarm(sentry) getmetatable(sentry).__gc = nil end

-- When the collector was done last; and until when it rests.
local collected_at, rests_until = 0, 0

-- Whether it has been dropped. Asks the collector from time to time, once for all that are looked after at the same time.
function _M.is_lost(fate, longest_pause)
  if fate.lost then return true end
  local now = nginx.clock()
  local pause, look_at = fate.pause or FIRST_LOOK, fate.look_at or fate.begun + FIRST_LOOK
  if now < look_at then return false end
  if collected_at < look_at then
    if now < rests_until then return false end
    collectgarbage()
    collected_at = nginx.clock()
    rests_until = collected_at + SHARE * (collected_at - now)
  end
  fate.look_at, fate.pause = now + pause, math.min(2 * pause, longest_pause or LONGEST_OF_ALL)
  return fate.lost
end

-- The callbacks that run, if they could yield: name, seq, begun (of the one that runs), look_at, pause.
local flight

local function failed(name, seq, err)
  err = "callback " .. name .. " (event " .. seq .. ") failed: " .. err
  _M.log(ngx.ERR, err)
  return err
end

-- If the callback that runs has been dropped, it has failed: goes on with the next one.
function _M.look_after_callback()
  if not flight or not _M.is_lost(flight, LONGEST_PAUSE) then return end
  local lost = flight
  flight = nil
  failed(lost.name, lost.seq, string.format(
    "it was ended by ngx.exit() or the like and never returned; the node lock was held for %.1f s", nginx.clock() - lost.begun))
  local code = library.headcount_next(_M.handle, 1, _M.event)
  if _M.revive then _M.revive() end
  _M.deliver(code)
end

-- In a request of its own, since what ends a callback ends all of its request.
local function keep(_, mine)
  while flight == mine do
    _M.look_after_callback()
    if flight ~= mine then return end
    ngx.sleep(KEEPER_INTERVAL)
  end
end

local function take_off()
  -- Elsewhere nothing can yield.
  if ngx.get_phase() ~= "timer" then return end
  flight = {}
  -- A worker that ends takes no other timers, and lets them sleep. Without a timer the heartbeats look.
  ngx.timer.at(ngx.worker.exiting() and 0 or FIRST_LOOK, keep, flight)
  return flight, _M.guard(flight)
end

-- Callbacks ------------------------------------------------------------------------------------

local function call_back(name, event, mine)
  local callback = _M.options[name]
  if not callback then return end
  if mine then
    mine.name, mine.seq, mine.begun, mine.pause, mine.look_at = name, event.seq, nginx.clock(), nil, nil
  end
  local ok, err = xpcall(callback, traceback, event)
  if not ok then return failed(name, event.seq, err) end
end

-- Runs the callbacks of a call whose code is given; the library holds the node lock until the last of them
-- has returned. A callback may yield. Answers with the first error, which is logged already.
function _M.deliver(code)
  local first, mine, sentry
  if code == EVENT then mine, sentry = take_off() end
  while code == EVENT do
    local name = CALLBACKS[tonumber(_M.event.kind)]
    local err
    if _M.options[name] or _M.options.on_event then
      local event = _M.table_of(_M.event)
      err = call_back(name, event, mine)
      err = call_back("on_event", event, mine) or err
    end
    first = first or err
    code = library.headcount_next(_M.handle, err and 1 or 0, _M.event)
  end
  if sentry then
    _M.disarm(sentry)
    if flight == mine then flight = nil end
  end
  if code < 0 then
    local err = _M.last_error()
    _M.log(ngx.ERR, err)
    first = first or err
  end
  return first
end

-- The same without callbacks, for a process in which they could do harm.
function _M.pass_over(code)
  while code == EVENT do code = library.headcount_next(_M.handle, 0, _M.event) end
end

-- Waits for the node lock, at most `lock_timeout`, in phases that cannot yield. `call` gets the milliseconds
-- that it may wait. In between, the log is told whom we wait for.
function _M.wait_for_lock(call)
  local timeout = _M.options.lock_timeout
  local begun = nginx.clock()
  local next_word = 1
  while true do
    local waited = nginx.clock() - begun
    local slice = math.max(0, math.min(1, timeout - waited))
    local code = call(math.ceil(slice * 1000))
    local err = code < 0 and _M.last_error() or nil
    ngx.update_time() -- for the log's time, and for callbacks
    _M.log_notices()
    if code ~= LOCK_TIMEOUT then return code, err end
    waited = nginx.clock() - begun
    local holder = err:gsub("^.-: ", "", 1)
    if waited >= timeout then
      return code, string.format("timed out after %g s waiting for the node lock: %s", timeout, holder)
    end
    if waited >= next_word then
      _M.log(ngx.NOTICE, string.format("waiting for the node lock for %.1f s: %s", waited, holder))
      next_word = 2 * next_word
    end
  end
end

return _M
