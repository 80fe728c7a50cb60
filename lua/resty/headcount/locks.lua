-- Locks that have a name, over all workers of the node.
--
-- The library knows one holder for each process. So the coroutines of a worker queue here, and the one whose turn it is waits for the
-- other workers. A coroutine that is ended with its request (by ngx.exit() in another light thread, or when the client has
-- gone) never comes back to say so: only the collector notices. It is not asked about the coroutine, which ngx_lua may keep to use it again,
-- but about a table that lies on the coroutine's stack, `mine`: nobody else here may keep that.

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
-- So many names are remembered that nobody uses.
local MOST_UNUSED = 256
-- Where ngx_lua can yield.
local CAN_YIELD = {
  rewrite = true, server_rewrite = true, access = true, content = true, timer = true, preread = true, ssl_cert = true,
  ssl_session_fetch = true, ssl_client_hello = true,
}

local _M = {}
-- Set by worker.lua: wake, called when the thread of heartbeats is to start the waker. Set by headcount.lua: no_worker, which says why this
-- process can have no lock, if so.

function _M.wake() end

-- By name: `lock`, of the library; whether it is `taken` by a coroutine of this worker, which `holds` it or waits for other workers with a
-- `bell`; the `queue` of the others, and the `entry` in it that the owner had.
local turns, number = {}, 0
-- By name, `mine` of the coroutine whose turn it is; and by entry, of who is in a queue.
local owners, queued = setmetatable({}, { __mode = "v" }), setmetatable({}, { __mode = "kv" })
-- When the last one has waited for other workers.
local waited_at

local lock = ffi.new("headcount_lock", { struct_size = ffi.sizeof("headcount_lock") })

-- One that nobody uses is found again when it is wanted.
local function forget_unused()
  for name, turn in pairs(turns) do
    if not turn.taken then turns[name] = nil end
  end
  number = 0
  for _ in pairs(turns) do number = number + 1 end
end

local function find(name)
  local found = ffi.new("const headcount_named_lock *[1]")
  if library.headcount_lock_find(node.handle, name, found) < 0 then return nil, node.last_error() end
  return ffi.gc(found[0], library.headcount_named_lock_free)
end

local function turn_of(name)
  local refused = _M.no_worker("with_lock")
  if refused then return nil, refused end
  if number >= MOST_UNUSED then forget_unused() end
  local found, err = find(name)
  if not found then return nil, err end
  turns[name], number = { lock = found, queue = {}, taken = false, holds = false }, number + 1
  return turns[name]
end

local function take(name, turn, mine, entry)
  turn.taken, turn.entry, owners[name] = true, entry, mine
end

-- The next coroutine of this worker has its turn.
local function hand_on(name, turn)
  turn.taken, turn.holds, owners[name] = false, false, nil
  if turn.fate then turn.fate = nil end
  if turn.bell then
    -- Who waited for other workers was ended meanwhile.
    turn.bell = nil
    library.headcount_lock_watch(node.handle, name, 0)
  end
  while turn.queue[1] do
    local entry = table.remove(turn.queue, 1)
    -- It may have been ended meanwhile.
    local mine = queued[entry]
    if mine then
      take(name, turn, mine, entry)
      return entry.bell:post(1)
    end
  end
end

local function release(name, turn)
  if library.headcount_named_lock_release(turn.lock) < 0 then node.log(ngx.ERR, node.last_error()) end
  hand_on(name, turn)
end

-- Waits for the others of this worker. false: timed out.
local function take_turn(name, turn, mine, begun, timeout)
  if not turn.taken then
    take(name, turn, mine)
    return true
  end
  local entry = { bell = semaphore.new() }
  queued[entry] = mine
  table.insert(turn.queue, entry)
  entry.bell:wait(math.max(0, begun + timeout - nginx.clock()))
  if turn.entry == entry then return true end
  for i, other in ipairs(turn.queue) do
    if other == entry then table.remove(turn.queue, i) end
  end
  return false
end

-- Sleeps until it is worth trying again, and no longer than `left` seconds.
local function sleep(name, turn, waited, left)
  if library.headcount_lock_watch(node.handle, name, 1) >= 0 then
    turn.bell:wait(math.min(math.max(waited / 8, SHORTEST_WATCH), LONGEST_WATCH, left))
  else
    -- There is no waker yet, or no more.
    ngx.sleep(math.max(math.min(math.max(waited / 8, SHORTEST_WAIT), LONGEST_WAIT, left), SHORTEST_WAIT))
  end
end

-- Waits for the worker that has it. The code of the last try, and why it failed.
local function wait(name, turn, begun, timeout, err)
  turn.bell = semaphore.new()
  _M.wake()
  local code = node.BUSY
  repeat
    local waited = nginx.clock() - begun
    if waited >= timeout then
      err = string.format("timed out after %g s: %s", timeout, err)
      break
    end
    sleep(name, turn, waited, timeout - waited)
    code = library.headcount_named_lock_acquire(turn.lock, 0, lock)
    if code < 0 then err = node.last_error() end
  until code ~= node.BUSY
  turn.bell, waited_at = nil, nginx.clock()
  library.headcount_lock_watch(node.handle, name, 0)
  return code, err
end

-- What `fn` gave, and the lock is released. `ok`: whether it returned.
local function results(_, name, turn, ok, ...)
  release(name, turn)
  if not ok then error((...), 0) end
  return true, ...
end

-- `mine` lies on the stack as long as ngx_lua means to go on with this coroutine: it is used after `fn`, or a compiled trace could leave it
-- out.
local function call(name, turn, fn, mine)
  turn.taken, turn.holds, owners[name] = true, true, mine
  local tenure = { token = tonumber(lock.token), abandoned_by = lock.abandoned_by ~= 0 and lock.abandoned_by or nil }
  return results(mine, name, turn, xpcall(fn, node.traceback, tenure))
end

-- Whether this coroutine is inside of `call` for this lock.
local function is_inside(turn)
  for level = 2, math.huge do
    local frame = debug.getinfo(level, "f")
    if not frame then return false end
    if frame.func == call then
      local _, of = debug.getlocal(level, 2)
      if of == turn then return true end
    end
  end
end

local function cannot_wait(phase)
  return "; and in phase `" .. phase .. "` nothing can be waited for"
end

-- Somebody has it, or it is the first time.
local function with_lock(name, turn, fn, timeout)
  local phase, begun = ngx.get_phase(), nginx.clock()
  local can_wait = CAN_YIELD[phase]
  if turn.taken and is_inside(turn) then
    return nil, "this coroutine holds the lock " .. name .. " already"
  elseif turn.taken and not can_wait then
    return nil, "another request of this worker has the lock " .. name .. cannot_wait(phase)
  end
  -- As in `call`, which it is handed on to.
  local mine = {}
  if not take_turn(name, turn, mine, begun, timeout) then
    return nil, string.format(
      "timed out after %g s: another request of this worker has the lock %s", timeout, name)
  end
  local code, err = library.headcount_named_lock_acquire(turn.lock, 0, lock), nil
  if code == node.WRONG_STATE then
    -- It was found by the worker that this process was before.
    turn.lock = find(name) or turn.lock
    code = library.headcount_named_lock_acquire(turn.lock, 0, lock)
  end
  if code < 0 then err = node.last_error() end
  if code == node.BUSY and can_wait then
    code, err = wait(name, turn, begun, timeout, err)
  elseif code == node.BUSY then
    err = err .. cannot_wait(phase)
  end
  if code >= 0 then return call(name, turn, fn, mine) end
  hand_on(name, turn)
  return nil, err
end

function _M.with_lock(name, fn, options)
  local turn = turns[name]
  if not turn and not arguments.is_name(name) then return refuse("name", name, arguments.NAME) end
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  local timeout = node.options.lock_timeout
  if options ~= nil then
    if type(options) ~= "table" then return refuse("options", options, "a table") end
    timeout = options.timeout or timeout
    if type(timeout) ~= "number" or not (timeout >= 0) then
      return refuse("timeout", timeout, "a number of seconds, 0 or more")
    end
  end
  if turn and not turn.taken and library.headcount_named_lock_acquire(turn.lock, 0, lock) >= 0 then
    return call(name, turn, fn, {})
  end
  if not turn then
    local err
    turn, err = turn_of(name)
    if not turn then return nil, err end
  end
  return with_lock(name, turn, fn, timeout)
end

-- For worker.lua -------------------------------------------------------------------------------

-- Somebody may have it for long, and requests that wait be ended all the time.
local function forget_ended(turn)
  local queue, kept = turn.queue, 0
  for i = 1, #queue do
    local entry = queue[i]
    queue[i] = nil
    if queued[entry] then
      kept = kept + 1
      queue[kept] = entry
    end
  end
end

-- A coroutine that was ended with its request has let go of what it held, and of its turn.
local function look_after(name, turn)
  if owners[name] ~= nil then
    -- Since somebody has looked first.
    turn.fate = turn.fate or { begun = nginx.clock() }
    node.is_lost(turn.fate)
    if owners[name] ~= nil then return end
  end
  if not turn.holds then return hand_on(name, turn) end
  node.log(ngx.ERR, "the lock ", name, " was held by a request that was ended by ngx.exit() or the like; it is released")
  release(name, turn)
end

-- At each heartbeat.
function _M.poll()
  for name, turn in pairs(turns) do
    if turn.taken then
      look_after(name, turn)
      forget_ended(turn)
    end
  end
end

-- Whether the waker is needed.
function _M.waits()
  for _, turn in pairs(turns) do
    if turn.bell then return true end
  end
  return waited_at ~= nil and nginx.clock() - waited_at < WAKER_IDLE
end

-- It is worth trying the locks that are waited for.
function _M.try()
  for _, turn in pairs(turns) do
    if turn.bell then turn.bell:post(1) end
  end
end

return _M
