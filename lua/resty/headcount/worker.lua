-- A worker's life: it joins, beats, looks after the others, drains, leaves.

local ffi = require "ffi"
local library = require "resty.headcount.library"
local nginx = require "resty.headcount.nginx"
local node = require "resty.headcount.node"

local WORKER, HELPER = 2, 3
local EVENT, WRONG_STATE = 1, -2
-- Reasons for which a later attempt to join may succeed.
local PASSING = { [node.BUSY] = true, [node.LOCK_TIMEOUT] = true, [-5] = true, [-15] = true } -- full, io
local POLL_INTERVAL = 0.05
-- Seconds after which a worker begins to watch that is not among those who look after the others from the start:
-- where many start at once, each would delay the rest of them.
local WATCH_LATER = 0.25
-- A cosocket without a timeout; should it be over one day, the loop just goes on.
local FOR_EVER = 2147483647

local _M = {}
-- state: nil, "waiting", "joined", "draining", "left"; pid: of the process that it is true of.

local join_options = ffi.new("headcount_join_options", { struct_size = ffi.sizeof("headcount_join_options") })

local function is_member()
  return (_M.state == "joined" or _M.state == "draining") and _M.pid == nginx.pid()
end

-- Looking after the others ---------------------------------------------------------------------

local complained

local function settle()
  local code = library.headcount_process(node.handle, node.event)
  if code == EVENT then
    node.deliver(code)
  elseif code < 0 and code ~= node.BUSY and code ~= WRONG_STATE then
    local err = node.last_error()
    if err ~= complained then node.log(ngx.ERR, err) end
    complained = err
  end
  node.log_notices()
end

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

-- A thread of the library turns "there is something to look at" into a byte.
local function listen(socket)
  while true do
    local byte, err = socket:receive(1)
    if byte == "E" then
      settle()
      library.headcount_waker_rearm(node.handle)
    elseif byte or err ~= "timeout" then
      -- "Q": no more will come.
      return byte == "Q" or nil, err
    end
  end
end

local function poll(premature)
  if not premature and is_member() then settle() end
end

-- Of the last watch: `lost` if a callback, or what it left behind, has ended its request by ngx.exit().
local watching

local function watch_on()
  settle()
  -- A callback may have yielded till draining began; a waker that is started now would never be stopped.
  if _M.state ~= "joined" then return end
  local socket, err = connect()
  local ended
  if socket then
    local ok
    ok, ended, err = pcall(listen, socket)
    if not ok then ended, err = nil, ended end
    socket:close()
  end
  if ended or ngx.worker.exiting() then return end
  library.headcount_waker_stop(node.handle, 0)
  node.log(ngx.WARN, "deaths are noticed by looking every ", POLL_INTERVAL, " s, and not at once: ", err)
  ngx.timer.every(POLL_INTERVAL, poll)
end

local function watch(premature)
  if premature or watching and not watching.lost then return end
  watching = {}
  local sentry = node.guard(watching)
  watch_on()
  node.disarm(sentry)
end

-- Draining -------------------------------------------------------------------------------------

-- A draining worker has no timers of ours left, since nginx waits for timers. It beats, and looks after the
-- others if nobody else does, as long as something else keeps it; then it must not be what keeps it.
local lingering

local function linger(_, call_under_way)
  lingering = {}
  local sentry = node.guard(lingering)
  local begun = nginx.clock()
  local longest = math.min(0.5, node.options.heartbeat_interval)
  library.headcount_beat(node.handle)
  while call_under_way[1] or nginx.no_timers_left() == false do
    local age = nginx.clock() - begun
    ngx.sleep(math.max(0.01, math.min(age / 20, longest)))
    library.headcount_beat(node.handle)
    settle()
  end
  node.disarm(sentry)
end

local function drain()
  if _M.state ~= "joined" then return end
  _M.state = "draining"
  library.headcount_waker_stop(node.handle, 0)
  local give_up = nginx.clock() + node.options.lock_timeout
  local pause = 0.001
  local code
  while true do
    code = library.headcount_drain(node.handle, 0, 0, node.event)
    if code ~= node.BUSY or nginx.clock() >= give_up then break end
    -- Perhaps one of our own callbacks holds the lock; it goes on while we sleep.
    ngx.sleep(pause)
    library.headcount_beat(node.handle)
    pause = math.min(2 * pause, 0.02)
  end
  -- Who has beaten once since it drains is expected to go on: so not where that cannot be ended in time.
  local call_under_way = { true }
  if nginx.no_timers_left() ~= nil then ngx.thread.spawn(linger, false, call_under_way) end
  node.deliver(code)
  node.log_notices()
  call_under_way[1] = false
end

-- Every timer is run, as premature, when draining begins. So this one tells us.
local function beat(premature)
  if premature then return drain() end
  library.headcount_beat(node.handle)
  -- Its own timer was dropped, for want of running timers or connections; or its request was ended.
  if not watching or watching.lost then ngx.timer.at(0, watch) end
  node.look_after_callback()
end

-- A callback was ended together with its request, and that may have been one of ours.
function node.revive()
  if _M.state == "joined" and watching and watching.lost then ngx.timer.at(0, watch) end
  if _M.state == "draining" and lingering and lingering.lost then
    lingering = nil
    ngx.timer.at(0, linger, {})
  end
end

-- Joining --------------------------------------------------------------------------------------

local function join(wait_ms)
  join_options.wait_ms = wait_ms
  return library.headcount_join(node.handle, join_options, node.event)
end

-- The first two are sentinel and deputy; and who takes a dead one's place may have been its deputy.
local function watches_at_once()
  return join_options.worker_id < 2 or join_options.replaces_pid ~= 0
end

local function joined(code)
  _M.state = "joined"
  _M.pid = nginx.pid()
  if _M.is_helper then return node.deliver(code) end
  -- First of all: in a timer, a callback may yield for long, or for ever.
  local ok, err = ngx.timer.every(node.options.heartbeat_interval, beat)
  if ok then ok, err = ngx.timer.at(watches_at_once() and 0 or WATCH_LATER, watch) end
  if not ok then
    err = "no timer for heartbeats and watch: " .. err
    node.log(ngx.ERR, err)
  end
  return node.deliver(code) or err
end

local function join_later(premature)
  local pause = 0.01
  while not premature and not ngx.worker.exiting() do
    local code = join(0)
    if code >= 0 then
      node.log(ngx.NOTICE, "joined late: this worker is counted from now on")
      joined(code)
      return
    end
    if not PASSING[code] then
      node.log(ngx.ERR, "this worker is not counted: ", node.last_error())
      return
    end
    ngx.sleep(pause)
    pause = math.min(1.5 * pause, 0.25)
  end
end

local function tell_child_exited(pid, status)
  library.headcount_child_exited(node.handle, pid, status)
end

-- Joins the generation; waits for the node lock meanwhile. In vain: goes on trying in the background.
function _M.start(generation, is_helper)
  if _M.state then return nil, "init_worker() was called in this worker before; allowed is once" end
  _M.state = "waiting"
  _M.is_helper = is_helper
  join_options.generation = generation
  join_options.role = is_helper and HELPER or WORKER
  join_options.worker_id = not is_helper and ngx.worker.id() or -1
  join_options.replaces_pid = nginx.predecessor(tell_child_exited) or 0

  node.repeat_log(join_options.worker_id == 0 and join_options.replaces_pid == 0)

  local code, err = node.wait_for_lock(join)
  if code >= 0 then
    err = joined(code)
    if err then return nil, err end
    return true
  end
  node.log(ngx.ERR, "this worker is not counted yet: ", err)
  if PASSING[code] then ngx.timer.at(0, join_later) end
  return nil, err
end

-- nginx closes the VM of its cache processes as soon as it has forked them: the one chance to name them.
function _M.join_as_helper(generation)
  join_options.generation = generation
  join_options.role = HELPER
  join_options.worker_id = -1
  join_options.replaces_pid = 0
  local code = join(1000)
  if code < 0 then node.log(ngx.NOTICE, "a helper is not shown: ", node.last_error()) end
  node.pass_over(code)
end

-- Leaving --------------------------------------------------------------------------------------

local function leave(wait_ms)
  return library.headcount_leave(node.handle, 0, wait_ms, node.event)
end

-- The last word of a worker, whichever way it ends. Does nothing in a process that has not joined.
function _M.leave()
  if not is_member() then return true end
  _M.state = "left"
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
