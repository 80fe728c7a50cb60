-- A worker's life in nginx. What is to be done when, the library knows (`headcount_member_*`); here is what only Lua
-- can do: wait, listen, and run callbacks.
--
-- All of it rests on one light thread, which ngx_lua cannot refuse to run once it runs. Timers it can, for want of
-- running timers or connections, and also the premature run by which they would tell that the worker is to end: so the
-- thread looks by itself, at each heartbeat, and the timers only make it come sooner.

local ffi = require "ffi"
local library = require "resty.headcount.library"
local locks = require "resty.headcount.locks"
local nginx = require "resty.headcount.nginx"
local node = require "resty.headcount.node"
local semaphore = require "ngx.semaphore"
local singletons = require "resty.headcount.singletons"
local threads = require "resty.headcount.threads"

-- Once a second nothing is won by compiling, and each worker would keep the code for itself.
jit.off(true, true)

local WORKER, HELPER = 2, 3
local EVENT = 1
local WAITING, SERVING, DRAINING, LEFT = 1, 2, 3, 4
-- Seconds between two looks where nothing tells of deaths.
local POLL_INTERVAL = 0.05
-- Seconds after which a light thread that is no more, or has never begun, is missed at the latest.
local RESCUE_INTERVAL = 10
-- A cosocket without a timeout; should it be over one day, the thread just goes on.
local FOR_EVER = 2147483647

local _M = {}
-- started; pid: of the process that has joined.

local join_options = ffi.new("headcount_join_options", { struct_size = ffi.sizeof("headcount_join_options") })
-- What the library wants next; and a place for those who only look.
local step = ffi.new("headcount_step", { struct_size = ffi.sizeof("headcount_step") })
local aside = ffi.new("headcount_step", { struct_size = ffi.sizeof("headcount_step") })

-- The fate of the light thread (`lost`), and how many others run callbacks.
local life, under_way
-- What wakes it. Each worker makes its own: one that the master makes at a reload logs by way of the old configuration,
-- whose memory is gone by then.
local bell
-- With the first one ngx_lua makes 4,094 more, half a megabyte. They are the master's.
local first_bell = semaphore.new()

-- Runs callbacks, and then looks again, until there are none: only that has the waker ring again. However many there
-- are, requests are served in between, and the worker notices that it is told to end.
local function deliver(code)
  under_way = under_way + 1
  while code == EVENT do
    node.deliver(code)
    -- One that drains must not beat unless it can tell when to stop: the other thread looks.
    if step.state == DRAINING or ngx.worker.exiting() then break end
    -- By the shortest time that every nginx can: 0 gets a warning from one without OpenResty's patches.
    ngx.sleep(0.001)
    code = library.headcount_member_on_readable(node.handle, aside, node.event)
  end
  under_way = under_way - 1
  node.log_notices()
end

-- A thread of the library turns "there is something to look at" into a byte.
local function connect()
  local path = ffi.new("char[64]")
  if library.headcount_waker_start(node.handle, path, ffi.sizeof(path)) < 0 then return nil, node.last_error() end
  local socket, err = ngx.socket.tcp()
  if not socket then return nil, err end
  socket:settimeouts(1000, 1000, FOR_EVER)
  local ok
  ok, err = socket:connect("unix:" .. ffi.string(path))
  if not ok then return nil, "no connection to the waker: " .. err end
  return socket
end

local complained

local function listen()
  local socket, err = connect()
  while socket do
    local byte
    byte, err = socket:receive(1)
    if byte == "E" then
      deliver(library.headcount_member_on_readable(node.handle, aside, node.event))
      singletons.called()
    elseif byte == "L" then
      locks.try()
    elseif byte or err ~= "timeout" then
      -- "Q": no more will come.
      socket:close()
      if byte == "Q" then return end
      break
    end
  end
  library.headcount_waker_stop(node.handle, 0)
  if err == complained then return end
  complained = err
  node.log(ngx.ERR, "deaths are noticed by looking every ", POLL_INTERVAL, " s, and not at once: ", err)
end

-- How many seconds one that drains may sleep. nil: nothing else keeps this process any more, so that we must not.
-- `is_free`: no other timers were left when the thread woke. What it has done since may have made one.
local function drains_on(drains_since, listener, is_free)
  if under_way == 0 and not listener and is_free ~= false or is_free == nil then return end
  local age = nginx.clock() - drains_since
  return math.max(0.01, math.min(age / 20, 0.5, node.options.heartbeat_interval))
end

local function live()
  local mine = {}
  life, under_way = mine, 0
  local sentry = node.guard(mine)
  local listener, runner, listens_after, drains_since = nil, nil, 0, nil
  local call = library.headcount_member_on_time
  while true do
    local is_exiting = ngx.worker.exiting()
    local is_free = is_exiting and nginx.no_timers_left()
    if is_exiting then call = library.headcount_member_drain end
    local code = call(node.handle, step, node.event)
    -- In a thread of its own, since a callback may yield for long, and heartbeats go on.
    if code == EVENT then runner = threads.spawn(deliver, code) end
    node.log_notices()
    node.look_after_callback()
    singletons.poll()
    locks.poll()
    listener, runner = threads.unless_over(listener), threads.unless_over(runner)
    if code < 0 or step.state == LEFT or _M.is_helper and step.state ~= WAITING then break end

    local seconds = step.next_ms / 1000
    call = library.headcount_member_on_time
    if is_exiting or step.on_duty == 0 and not locks.waits() then
      -- Nothing of ours may keep a worker that is to end.
      if listener then library.headcount_waker_stop(node.handle, 0) end
      if step.state == DRAINING then
        drains_since = drains_since or nginx.clock()
        seconds = drains_on(drains_since, listener, is_free)
        if not seconds then break end
      end
    elseif not listener then
      local now = nginx.clock()
      if now >= listens_after then
        listens_after = now + node.options.heartbeat_interval
        listener = threads.spawn(listen)
      elseif step.on_duty ~= 0 then
        seconds, call = math.min(seconds, POLL_INTERVAL), library.headcount_member_on_readable
      end
    end
    -- Without a bell, a worker that is to end may end up to a heartbeat later.
    if bell then bell:wait(seconds) else ngx.sleep(seconds) end
  end
  node.disarm(sentry)
  if life == mine then life = nil end
end

-- Run as premature when the worker is to end: which brings the thread there at once.
local function rescue(premature)
  if step.state == LEFT or _M.is_helper and step.state ~= WAITING then return end
  node.look_after_callback()
  if not life and step.state == DRAINING then return end -- it has ended as it should
  if not life or life.lost then
    live()
  elseif premature and bell then
    bell:post(1)
    -- nginx is about to wait for its next event, and would look only then at what was posted.
    ngx.sleep(0.001)
  end
end

-- A callback was ended together with its request, and that may have been the thread's.
function node.revive()
  if life and life.lost then ngx.thread.spawn(live) end
end

-- There is something to do for the thread.
local function wake()
  if life and bell then bell:post(1) end
end
singletons.wake, locks.wake = wake, wake

-- Joining and leaving --------------------------------------------------------------------------

local function join(wait_ms)
  join_options.wait_ms = wait_ms
  return library.headcount_member_join(node.handle, join_options, step, node.event)
end

local function tell_child_exited(pid, status)
  library.headcount_child_exited(node.handle, pid, status)
end

-- First of all what must not be missing; the rest only helps where timers or connections are used up.
local function start_life()
  local ok, err = ngx.timer.at(step.next_ms / 1000, rescue)
  if ok then ok, err = ngx.timer.every(math.max(RESCUE_INTERVAL, node.options.heartbeat_interval), rescue) end
  for n = 1, 4 do
    if ok then ok, err = ngx.timer.at(n * node.options.heartbeat_interval, rescue) end
  end
  if ok then return end
  err = "no timer for heartbeats and watch: " .. err
  node.log(ngx.ERR, err)
  return err
end

-- Joins the generation; waits for the node lock meanwhile. In vain: goes on trying in the background.
function _M.start(generation, is_helper)
  if _M.state then return nil, "init_worker() was called in this worker before; allowed is once" end
  _M.state = "started"
  _M.pid = nginx.pid()
  _M.is_helper = is_helper
  bell = first_bell and semaphore.new()
  join_options.generation = generation
  join_options.role = is_helper and HELPER or WORKER
  join_options.worker_id = not is_helper and ngx.worker.id() or -1
  join_options.replaces_pid = nginx.predecessor(tell_child_exited) or 0

  node.repeat_log(join_options.worker_id == 0 and join_options.replaces_pid == 0)

  local code, err = node.wait_for_lock(join)
  if code < 0 then
    node.log(ngx.ERR, "this worker is not counted yet: ", err)
    if step.state == WAITING then start_life() end
    return nil, err
  end
  err = not is_helper and start_life() or nil
  err = node.deliver(code) or err
  if err then return nil, err end
  return true
end

-- nginx closes the VM of its cache processes as soon as it has forked them: the one chance to name them.
function _M.join_as_helper(generation)
  join_options.generation = generation
  join_options.role = HELPER
  join_options.worker_id = -1
  join_options.replaces_pid = 0
  join_options.wait_ms = 1000
  local code = library.headcount_join(node.handle, join_options, node.event)
  if code < 0 then node.log(ngx.NOTICE, "a helper is not shown: ", node.last_error()) end
  node.pass_over(code)
end

-- Whether this process is a worker that has said so: only such a one has roles and locks.
function _M.is_one()
  return _M.pid == nginx.pid() and not _M.is_helper
end

local function leave(wait_ms)
  return library.headcount_leave(node.handle, 0, wait_ms, node.event)
end

-- The last word of a worker, whichever way it ends. Does nothing in a process that has not joined.
function _M.leave()
  if _M.pid ~= nginx.pid() or step.state ~= SERVING and step.state ~= DRAINING then return true end
  step.state = LEFT
  singletons.leave()
  local code, err = node.wait_for_lock(leave)
  if code < 0 then
    node.log(ngx.ERR, "this worker will be reported as died: ", err)
    return nil, err
  end
  err = node.deliver(code)
  if err then return nil, err end
  return true
end

return _M
