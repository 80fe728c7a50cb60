-- Knows, exactly and at once, which workers of this nginx are alive, and runs your code, once and under a
-- lock, when workers and generations start, drain, leave, die or hang. docs/lua.md is the reference.
--
-- This file is the interface, and what a master does. The other files of this folder: worker.lua (what a
-- worker does), singletons.lua (roles, onces), locks.lua, threads.lua, node.lua (callbacks, log, node lock), status.lua, options.lua,
-- arguments.lua, nginx.lua (what nginx tells), library.lua (FFI), module.lua (the native module in the same nginx).

local ffi = require "ffi"
local library = require "resty.headcount.library"
local locks = require "resty.headcount.locks"
local module = require "resty.headcount.module"
local nginx = require "resty.headcount.nginx"
local node = require "resty.headcount.node"
local options = require "resty.headcount.options"
local singletons = require "resty.headcount.singletons"
local snapshot = require "resty.headcount.status"
local worker = require "resty.headcount.worker"

local NEWEST = 0
local MOST_EVENTS = 1000
local AT_ONCE = 64

local _M = { _VERSION = "0.1.0" }

-- What init{} has made: generation (its number), pid and cycle (of the process that ran it), failure (why it
-- did not work, for those who call later).
local self = {}

local function wrong_phase(name, allowed)
  local phase = ngx.get_phase()
  if phase ~= allowed then
    return name .. "() was called in phase `" .. phase .. "`; allowed is `" .. allowed .. "`, that is "
      .. allowed .. "_by_lua"
  end
end

local function refuse(err)
  node.log(ngx.ERR, err)
  return nil, err
end

local function not_ready()
  if node.handle then return end
  local why = self.failure and "; it was, and failed: " .. self.failure or ""
  return "init() must be called first, in init_by_lua" .. why
end

-- The end of a configuration --------------------------------------------------------------------
--
-- It tells a master what nothing else in ngx_lua tells it. After a good reload the old one ends, before the first worker
-- is forked: the new generation is certain. After a failed one the new one ends: its generation never comes. And at the
-- end of any process its own ends, whatever ended it.

local function begun_after(generation)
  local newest
  for _, other in ipairs(_M.status().generations) do
    if other.id > generation and other.phase == "announced" and other.master == nginx.pid() then newest = other.id end
  end
  return newest
end

local function leave_master(wait_ms)
  return library.headcount_leave_master(node.handle, wait_ms, node.event)
end

local function master_closed(ends, failed_to_start)
  if ends or failed_to_start then
    worker.leave() -- with master_process off, this is the worker as well
    library.headcount_abandon(node.handle, self.generation)
    local code = node.wait_for_lock(leave_master)
    if ends then node.deliver(code) end
    -- In a server that could not start, shared dictionaries are gone by now: no place for callbacks.
    if failed_to_start then node.pass_over(code) end
    return
  end
  local newer = begun_after(self.generation)
  -- OpenResty's nginx also closes its first VM in the process from which the master has gone into the background.
  local is_left_behind = self.role == "single" and nginx.role() == "master" and not nginx.has_forked()
  if newer then
    library.headcount_commit(node.handle, newer)
  elseif not is_left_behind then
    library.headcount_abandon(node.handle, self.generation)
  end
end

local function closed(role, ends, failed_to_start)
  if role == "helper" and not worker.state then
    worker.join_as_helper(self.generation)
  elseif role == "master" or role == "single" and (worker.state or nginx.pid() == self.pid) then
    master_closed(ends, failed_to_start)
  else
    worker.leave()
  end
  node.log_notices()
end

local function at_end()
  self.has_ended = true
  -- ngx_lua would log by way of the last request, which is gone.
  require("thread.exdata")(ffi.cast("void *", 0))
  -- nginx has taken ngx_cycle away: because it ends, or because it cannot start.
  local over, told = not nginx.has_configuration(), nginx.told_to_end()
  local ok, err = pcall(nginx.with_cycle, self.cycle, closed, nginx.role(), over and told, over and not told)
  if not ok then node.log(ngx.ERR, "at the end of a configuration: ", err) end
end

-- The VM is closed, and its configuration has not ended: in nginx's cache processes, which get rid of it as soon as they
-- are forked. No place for callbacks: what LuaJIT has made last is gone first, and the C modules' code with it.
local function on_close()
  if self.has_ended then return end
  -- A compiled loop that allocates leaves to the collector, which does not run inside of a finalizer, and is
  -- entered again at once: it never ends. So nothing is to be collected any more; the VM is closing anyway.
  collectgarbage("stop")
  node.deliver = node.pass_over
  if self.last_call then self.last_call.call = nil end
  at_end()
end

local function watch_end()
  self.last_call, self.last_thread = nginx.at_end(library.headcount_nginx_at_end, at_end)
  if not self.last_call then
    node.log(ngx.ERR, "callbacks run at no worker's end, unless `exit_worker_by_lua` calls exit_worker(): this nginx "
      .. "exports no ngx_pool_cleanup_add, or its Lua no lua_pcall")
  end
  local sentry = newproxy(true)
  getmetatable(sentry).__gc = on_close
  -- In the registry, so that nobody but the end of the VM can collect it.
  debug.getregistry()["resty.headcount"] = sentry
end

-- The interface --------------------------------------------------------------------------------

local function begin()
  local generation = ffi.new("uint64_t[1]")
  local code = library.headcount_begin(node.handle, 0, ngx.worker.count(), generation, node.event)
  self.generation = tonumber(generation[0])
  local err = code < 0 and node.last_error() or nil
  if err then node.log(ngx.ERR, err) end
  node.log_notices()
  if self.generation == 0 then
    -- Nobody could end the event, and free the lock, once the handle is gone.
    node.pass_over(code)
    if not err then
      err = "the registry gave the generation no number, and this server is not counted: is it spoiled?"
      node.log(ngx.ERR, err)
    end
    self.failure = err
    node.handle = nil
    return nil, err
  end
  self.pid = nginx.pid()
  self.role = nginx.role()
  self.cycle = nginx.cycle()
  watch_end()
  if code >= 0 then err = node.deliver(code) end
  if err then return nil, err end
  return true
end

local function open_and_begin(checked, given)
  local overridden = module.attach(checked, given)
  if overridden and #overridden > 0 then
    node.log(ngx.ERR, "the directive `headcount` overrides ", table.concat(overridden, ", "),
      " of init(): remove them there, or the directive")
  end
  local ok, err = node.open(checked)
  if not ok then return _M.refuse_init(err) end
  if node.is_member() then return true end
  return begin()
end

function _M.init(given)
  local err = wrong_phase("init", "init")
  if err then return refuse(err) end
  if self.called then return refuse("init() was called before; allowed is once for each configuration") end
  self.called = true
  if nginx.role() == "single" then node.keep_log() end
  local checked
  checked, err = options.check(given)
  if not checked then return _M.refuse_init(err) end
  local role, is_begun = nginx.role(), nginx.has_at_end(library.headcount_nginx_at_end)
  if role == "worker" or role == "helper" or is_begun and node.is_member() then
    -- The VM is one that ngx_lua has made for a single request, with lua_code_cache off.
    local ok
    ok, err = node.take_opened(checked)
    if ok then return true end
    return _M.refuse_init(err)
  end
  if is_begun then
    self.is_second = true
    return _M.refuse_init("init() was called before, in the other Lua of this configuration: http and stream have one each, "
      .. "and allowed is one init() for both. All workers are tracked by that one, whatever they serve: remove this one")
  end
  return open_and_begin(checked, given)
end

function _M.init_worker()
  local err = wrong_phase("init_worker", "init_worker") or not_ready()
  if err then
    node.repeat_log(ngx.worker.id() == 0)
    -- Of a second one it was said once, by init().
    if self.is_second then return nil, err end
    return refuse(err)
  end
  local role = nginx.role()
  -- With master_process off nobody forks, so that nothing else has told the library who went into the background.
  if role == "single" then library.headcount_adopt_master(node.handle) end
  return worker.start(self.generation, role == "helper")
end

function _M.exit_worker()
  local err = wrong_phase("exit_worker", "exit_worker") or not_ready()
  if err and self.is_second then return nil, err end
  if err then return refuse(err) end
  return worker.leave()
end

-- Workers beat by a timer. This is for code that blocks its worker for longer than `stall_after` and does get on.
function _M.beat()
  local handle = node.handle
  return handle ~= nil and library.headcount_beat(handle) == 0
end

-- Roles, onces and locks are for workers: those that init_worker() has made such.
local function no_worker(name)
  local err = not_ready()
  if err then return err end
  if worker.is_one() then return end
  return name .. "() is for workers: call it in init_worker_by_lua after init_worker(), or later"
end

local function of_worker(name, call)
  return function(...)
    local err = no_worker(name)
    if err then return nil, err end
    return call(...)
  end
end

_M.leader = of_worker("leader", singletons.leader)
_M.once = of_worker("once", singletons.once)
-- It looks only when it finds a lock: a call that is made often.
_M.with_lock, locks.no_worker = locks.with_lock, no_worker
_M.is_leader = singletons.is_leader

function _M.counts()
  local err = not_ready()
  if err then return nil, err end
  local counts = ffi.new("headcount_counts", { struct_size = ffi.sizeof("headcount_counts") })
  if library.headcount_get_counts(node.handle, self.generation or NEWEST, counts) < 0 then
    return nil, node.last_error()
  end
  local count = node.count
  return {
    generation = tonumber(counts.generation),
    prev = count(counts.prev),
    mine = count(counts.mine),
    next = count(counts.next),
    draining = counts.draining,
    prev_draining = counts.prev >= 0 and counts.prev_draining or nil,
    next_draining = counts.next >= 0 and counts.next_draining or nil,
    total = counts.total,
    total_draining = counts.total_draining,
  }
end

function _M.status()
  local err = not_ready()
  if err then return nil, err end
  return snapshot()
end

function _M.events(cursor)
  local err = not_ready()
  if err then return nil, err end
  if cursor ~= nil and (type(cursor) ~= "number" or cursor < 0) then
    return nil, "the cursor is " .. tostring(cursor) .. "; allowed is what events() gave, or nothing"
  end
  local at, number, lost = ffi.new("uint64_t[1]", cursor or 0), ffi.new("uint64_t[1]"), ffi.new("uint64_t[1]")
  local buffer = ffi.new("headcount_event[?]", AT_ONCE)
  local list, all_lost = {}, 0
  repeat
    buffer[0].struct_size = ffi.sizeof("headcount_event")
    local code = library.headcount_events(node.handle, at, buffer, AT_ONCE, number, lost)
    if code < 0 then return nil, node.last_error() end
    for i = 0, tonumber(number[0]) - 1 do list[#list + 1] = node.table_of(buffer[i]) end
    all_lost = all_lost + tonumber(lost[0])
  until number[0] < AT_ONCE or #list + AT_ONCE > MOST_EVENTS
  return list, tonumber(at[0]), all_lost
end

-- For layers above, such as resty.worker.manager ------------------------------------------------

-- For init{} of a layer that has options of its own: what is wrong with them.
function _M.refuse_init(err)
  self.called, self.failure = true, err
  return refuse(err)
end

-- How many workers of this generation have died whose last heartbeat is younger than that.
function _M.recent_deaths(seconds)
  local number = ffi.new("uint32_t[1]")
  if library.headcount_recent_deaths(node.handle, self.generation, seconds * 1000, number) < 0 then
    return nil, node.last_error()
  end
  return number[0]
end

-- True for the first process that sets this mark (0 to 31) of a generation.
function _M.mark_once(generation, mark)
  local was_new = ffi.new("uint32_t[1]")
  local code = library.headcount_mark_once(node.handle, generation, mark, was_new)
  if code < 0 then return nil, node.last_error() end
  return was_new[0] == 1
end

return _M
