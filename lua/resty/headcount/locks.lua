-- Locks that have a name, over all workers of the node.
--
-- The library knows one holder for each process. So the coroutines of a worker queue here, and the one whose turn it is waits for the
-- other workers. A coroutine that is ended with its request (by ngx.exit() in another light thread, or when the client has
-- gone) never comes back to say so: only the collector notices.

local arguments = require "resty.headcount.arguments"
local ffi = require "ffi"
local library = require "resty.headcount.library"
local nginx = require "resty.headcount.nginx"
local node = require "resty.headcount.node"
local semaphore = require "ngx.semaphore"

local refuse = arguments.refuse

-- Seconds between two looks of one that waits: where it must look by itself, and where the waker says when it is worth a look.
local SHORTEST_WAIT, LONGEST_WAIT = 0.001, 0.02
local SHORTEST_WATCH, LONGEST_WATCH = 0.02, 0.5
-- Seconds for which the waker is kept after the last one has waited.
local WAKER_IDLE = 10
-- Where ngx_lua can yield.
local CAN_YIELD = {
  rewrite = true, server_rewrite = true, access = true, content = true, timer = true, preread = true, ssl_cert = true,
  ssl_session_fetch = true, ssl_client_hello = true,
}

local _M = {}
-- Set by worker.lua: wake, called when the thread of heartbeats is to start the waker.

function _M.wake() end

-- By name: `owner`, whose turn it is, and the `queue` of the others. Each of them has `begun`, `bell`; `holds`; `waits` for other
-- workers; `lost`.
local turns = {}
-- The coroutine of each of them. Whoever kept it would not notice that it was dropped.
local coroutines = setmetatable({}, { __mode = "kv" })
-- When the last one has waited for other workers.
local waited_at

local lock = ffi.new("headcount_lock", { struct_size = ffi.sizeof("headcount_lock") })

-- The next coroutine of this worker has its turn.
local function hand_on(name, turn)
  local owner = table.remove(turn.queue, 1)
  turn.owner = owner
  if not owner then
    turns[name] = nil
  elseif owner.bell then
    owner.bell:post(1)
  end
end

local function release(name, turn)
  if library.headcount_lock_release(node.handle, name) < 0 then node.log(ngx.ERR, node.last_error()) end
  hand_on(name, turn)
end

-- nil: timed out.
local function take_turn(name, mine, timeout)
  local turn = turns[name]
  if not turn then
    turns[name] = { owner = mine, queue = {} }
    return turns[name]
  end
  table.insert(turn.queue, mine)
  mine.bell = semaphore.new()
  mine.bell:wait(math.max(0, mine.begun + timeout - nginx.clock()))
  if turn.owner == mine then return turn end
  for i, other in ipairs(turn.queue) do
    if other == mine then table.remove(turn.queue, i) end
  end
end

-- Sleeps until it is worth trying again, and no longer than `left` seconds.
local function sleep(name, mine, waited, left)
  if library.headcount_lock_watch(node.handle, name, 1) >= 0 then
    mine.bell = mine.bell or semaphore.new()
    mine.bell:wait(math.min(math.max(waited / 8, SHORTEST_WATCH), LONGEST_WATCH, left))
  else
    -- There is no waker yet, or no more.
    ngx.sleep(math.max(math.min(math.max(waited / 8, SHORTEST_WAIT), LONGEST_WAIT, left), SHORTEST_WAIT))
  end
end

-- Waits for the worker that has it. The code of the last try, and why it failed.
local function wait(name, mine, timeout, err)
  mine.waits = true
  _M.wake()
  local code
  repeat
    local waited = nginx.clock() - mine.begun
    if waited >= timeout then
      err = string.format("timed out after %g s: %s", timeout, err)
      break
    end
    sleep(name, mine, waited, timeout - waited)
    code = library.headcount_lock_acquire(node.handle, name, 0, lock)
    if code < 0 then err = node.last_error() end
  until code ~= node.BUSY
  mine.waits, waited_at = nil, nginx.clock()
  if mine.bell then library.headcount_lock_watch(node.handle, name, 0) end
  return code or node.BUSY, err
end

local function cannot_wait()
  return "; and in phase `" .. ngx.get_phase() .. "` nothing can be waited for"
end

-- What `fn` gave, and the lock is released. `ok`: whether it returned.
local function results(name, mine, sentry, ok, ...)
  node.disarm(sentry)
  local turn = turns[name]
  if turn and turn.owner == mine then release(name, turn) end
  if not ok then error((...), 0) end
  return true, ...
end

local function give_up(sentry, err)
  node.disarm(sentry)
  return nil, err
end

function _M.with_lock(name, fn, options)
  if not arguments.is_name(name) then return refuse("name", name, arguments.NAME) end
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  if options ~= nil and type(options) ~= "table" then return refuse("options", options, "a table") end
  local timeout = options and options.timeout or node.options.lock_timeout
  if type(timeout) ~= "number" or not (timeout >= 0) then
    return refuse("timeout", timeout, "a number of seconds, 0 or more")
  end
  local mine, me = {}, coroutine.running() or "main"
  local can_wait, there = CAN_YIELD[ngx.get_phase()], turns[name]
  if there and coroutines[there.owner] == me then
    return nil, "this coroutine holds the lock " .. name .. " already"
  elseif there and not can_wait then
    return nil, "another request of this worker has the lock " .. name .. cannot_wait()
  end

  coroutines[mine] = me
  local sentry = node.guard(mine)
  local turn = take_turn(name, mine, timeout)
  if not turn then
    return give_up(sentry, string.format(
      "timed out after %g s: another request of this worker has the lock %s", timeout, name))
  end
  local code, err = library.headcount_lock_acquire(node.handle, name, 0, lock), nil
  if code < 0 then err = node.last_error() end
  if code == node.BUSY and can_wait then
    code, err = wait(name, mine, timeout, err)
  elseif code == node.BUSY then
    err = err .. cannot_wait()
  end
  if code < 0 then
    hand_on(name, turn)
    return give_up(sentry, err)
  end
  mine.holds = true
  local tenure = { token = tonumber(lock.token), abandoned_by = lock.abandoned_by ~= 0 and lock.abandoned_by or nil }
  return results(name, mine, sentry, xpcall(fn, node.traceback, tenure))
end

-- For worker.lua -------------------------------------------------------------------------------

-- A coroutine that was ended with its request has let go of what it held, and of its turn.
local function look_after(name, turn)
  local mine = turn.owner
  if not node.is_lost(mine) then return end
  if not mine.holds then return hand_on(name, turn) end
  node.log(ngx.ERR, "the lock ", name, " was held by a request that was ended by ngx.exit() or the like; it is released")
  release(name, turn)
end

-- At each heartbeat.
function _M.poll()
  for name, turn in pairs(turns) do look_after(name, turn) end
end

-- Whether the waker is needed.
function _M.waits()
  for _, turn in pairs(turns) do
    if turn.owner.waits then return true end
  end
  return waited_at ~= nil and nginx.clock() - waited_at < WAKER_IDLE
end

-- It is worth trying the locks that are waited for.
function _M.try()
  for _, turn in pairs(turns) do
    if turn.owner.waits and turn.owner.bell then turn.owner.bell:post(1) end
  end
end

return _M
