-- The interface of lua-resty-worker-manager, on top of resty.headcount. docs/lua.md explains the two points in
-- which its counts differ from the native ones.
--
-- Callbacks are called as `callback(id, n_prev, n_mine, n_next)`. A master's id is a number, a worker's is
-- "<master_id>-<pid>". Each n is a number of workers, or nil if there is no such master. Callbacks run under a
-- lock that all workers and masters of this node share.

local headcount = require "resty.headcount"

-- Marks of a generation: its master exit callback has begun; it has ended.
local EXIT_BEGUN, EXIT_DONE = 0, 1

local _M = {}

-- What the application passed in, and the error to raise at the end of a call whose callback failed.
local self = {}

-- Without draining workers: to this interface they are gone.
local function counts(event)
  local prev = event.prev and event.prev - event.prev_draining
  local next = event.next and event.next - event.next_draining
  -- A master whose workers all drain has run its exit callback and no longer counts as a previous one. To a new
  -- master it does: having none would mean that the node has just started.
  if prev == 0 and event.prev > 0 and event.kind ~= "generation_started" then prev = nil end
  return prev, event.mine - event.draining, next
end

local function worker_id(event) return event.generation .. "-" .. event.pid end

-- Errors reach our caller, as in the original. Before that, the native module puts everything in order.
local function call(callback, ...)
  if not callback then return end
  local ok, err = xpcall(callback, debug.traceback, ...)
  if ok then return end
  self.raised = self.raised or err
  error(err, 0)
end

local function master_exits(event, prev, next)
  call(self.master_exit, event.generation, prev, 0, next)
end

local function worker_exits(event, mine, prev, next)
  self.told = true
  local ok, err = pcall(call, self.worker_exit, worker_id(event), prev, mine, next)
  if mine == 1 and headcount.mark_once(event.generation, EXIT_BEGUN) then
    local ended, end_err = pcall(master_exits, event, prev, next)
    headcount.mark_once(event.generation, EXIT_DONE)
    ok, err = ok and ended, err or end_err
  end
  if not ok then error(err, 0) end
end

local OWN = {}

function OWN.on_generation_start(event)
  call(self.master_start, event.generation, counts(event))
end

function OWN.on_worker_start(event)
  local prev, mine, next = counts(event)
  if event.cause == "respawn" then
    -- A dead worker counts until its heartbeat would have been missed.
    mine = mine + (headcount.recent_deaths(self.patience) or 0)
  end
  call(self.worker_start, worker_id(event), prev, mine, next)
end

-- Told to leave: the exit callback runs now, while it can use sockets, and not when the worker is gone.
function OWN.on_worker_draining(event)
  local prev, mine, next = counts(event)
  worker_exits(event, mine + 1, prev, next) -- it counts itself
end

-- On TERM and INT nothing drains: this is the only event.
function OWN.on_worker_exit(event)
  if self.told then return end
  local prev, mine, next = counts(event)
  worker_exits(event, mine, prev, next)
end

-- Its last worker may have died, during or before its master exit callback.
function OWN.on_generation_exit(event)
  if not headcount.mark_once(event.generation, EXIT_DONE) then return end
  local prev, _, next = counts(event)
  master_exits(event, prev, next)
end

-- Ours first, then the application's own.
local function chain(own, given)
  if not given then return own end
  return function(event)
    local ok, err = pcall(own, event)
    given(event)
    if not ok then error(err, 0) end
  end
end

-- The rest of the table are options of resty.headcount, which checks them. On error: nil and what is wrong.
local function native_options(opts)
  local native = {}
  for name, value in pairs(opts) do native[name] = value end
  local interval, failed = opts.interval or 10, opts.failed or 5
  native.shm, native.interval, native.failed = nil, nil, nil
  for name, value in pairs { interval = interval, failed = failed } do
    if type(value) ~= "number" or value < 0.001 or value > 43200 then
      return nil, "option `" .. name .. "` is " .. tostring(value)
        .. "; allowed is a number of seconds from 0.001 to 43200"
    end
  end
  native.heartbeat_interval = native.heartbeat_interval or interval
  native.stall_after = native.stall_after or interval + failed
  for name, own in pairs(OWN) do
    if native[name] ~= nil and type(native[name]) ~= "function" then
      return nil, "option `" .. name .. "` is " .. tostring(native[name]) .. "; allowed is a function"
    end
    native[name] = chain(own, native[name])
  end
  return native, nil, interval + failed
end

-- Returns what a native call returned, but raises the error if one of our callbacks failed.
local function hand_on(ok, err)
  local raised = self.raised
  self.raised = nil
  if raised then error(raised, 0) end
  if not ok then return nil, err end
  return true
end

--- Call it in `init_by_lua`.
-- @param opts `shm`: the name of an existing shared dictionary; `interval`: seconds between two heartbeats (10);
-- `failed`: how many seconds late a heartbeat may be before its worker counts as failed (5). All options of
-- resty.headcount are allowed as well, and take precedence.
-- @return true, or nil and an error
function _M.on_init_by_lua(opts, master_start_cb, master_exit_cb)
  assert(ngx.get_phase() == "init", "on_init_by_lua() must be called in the `init_by_lua` phase")
  assert(not self.called, "on_init_by_lua() has already been called; call it once")
  assert(type(opts) == "table", "on_init_by_lua() needs a table of options")
  assert(opts.shm ~= nil and ngx.shared[opts.shm], "unknown shm `" .. tostring(opts.shm) .. "`")
  self.called = true
  self.master_start, self.master_exit = master_start_cb, master_exit_cb
  local native, err, patience = native_options(opts)
  if not native then return headcount.refuse_init(err) end
  self.patience = patience
  return hand_on(headcount.init(native))
end

--- Call it in `init_worker_by_lua`.
-- @return true, or nil and an error
function _M.on_init_worker_by_lua(start_cb, exit_cb)
  assert(ngx.get_phase() == "init_worker", "on_init_worker_by_lua() must be called in the `init_worker_by_lua` phase")
  assert(self.called, "on_init_by_lua() must be called first, in the `init_by_lua` phase")
  assert(not self.started, "on_init_worker_by_lua() has already been called; call it once")
  self.started = true
  self.worker_start, self.worker_exit = start_cb, exit_cb
  return hand_on(headcount.init_worker())
end

return _M
