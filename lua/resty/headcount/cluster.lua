-- Roles, onces, locks and the state of a whole cluster, by way of the agent of this host. docs/cluster.md is the reference.
--
-- Who has what, the agent says; for how long for certain, it says, too: is_leader() compares the clock itself, so that a worker which
-- stood still learns that it leads no more before it does anything.

local agent = require "resty.headcount.cluster.agent"
local arguments = require "resty.headcount.arguments"
local semaphore = require "ngx.semaphore"

local is_name, refuse, NAME = arguments.is_name, arguments.refuse, arguments.NAME

-- Seconds.
local LOCK_TIMEOUT, LONGEST_LOCK_TIMEOUT = 10, 86400
-- So much longer than a lock's time-out is waited for the agent to say so.
local LATE = 2
local FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5
-- Where ngx_lua can yield.
local CAN_YIELD = {
  rewrite = true, server_rewrite = true, access = true, content = true, timer = true, preread = true, ssl_cert = true,
  ssl_session_fetch = true, ssl_client_hello = true,
}

local _M = { _VERSION = "0.1.0" }

-- By name, by key, and by number of the request.
local roles, onces, locks = {}, {}, {}
local last_id = 0
-- Until then all that this worker has is its own, in seconds of agent.clock().
local deadline = 0
local is_leaving = false
-- The locks that a coroutine has or waits for.
local owners = setmetatable({}, { __mode = "k" })

local function log(level, ...) ngx.log(level, "headcount: cluster: ", ...) end

local function traceback(err) return debug.traceback(tostring(err), 2) end

-- Runs a function of the user in a request of its own; `after` when it has ended. Where timers are used up, beside this thread.
local function run(what, fn, argument, after)
  local function body()
    local ok, err = xpcall(fn, traceback, argument)
    if not ok then log(ngx.ERR, what, " failed: ", err) end
    if after then after(ok) end
  end
  if not ngx.timer.at(0, body) then ngx.thread.spawn(body) end
end

-- Roles ----------------------------------------------------------------------------------------

-- Each function runs when the one before has ended.
local function next_step(role)
  if role.is_busy then return end
  local step = table.remove(role.steps, 1)
  if not step then return end
  role.is_busy = true
  local function done()
    role.is_busy = false
    if step.after then step.after() end
    next_step(role)
  end
  if step.fn then run(step.what .. " of the role " .. role.name, step.fn, step.argument, done) else done() end
end

local function add_step(role, what, argument, after)
  role.steps[#role.steps + 1] = { what = what, fn = role[what], argument = argument, after = after }
  next_step(role)
end

-- `after`: when on_lost has ended.
local function lose(role, after)
  local had = role.token
  role.token = nil
  if had then
    add_step(role, "on_lost", nil, after)
  elseif after then
    after()
  end
end

-- The agent hears of it when on_lost has ended; `again`: and this worker stands anew. An election that comes before the agent's answer is one
-- that was left. Over another connection than this one, the agent knows nothing of us that it could forget.
local function leave(role, again)
  local session = agent.session
  role.leaves = role.leaves + 1
  lose(role, function()
    if agent.session ~= session then return end
    if not agent.send { ["do"] = "leave", role = role.name } then role.leaves = role.leaves - 1 end
    if again and not is_leaving then agent.send { ["do"] = "stand", role = role.name } end
  end)
end

function _M.leader(name, callbacks)
  if not is_name(name) then return refuse("role", name, NAME) end
  local ok, err = arguments.are_callbacks(callbacks)
  if not ok then return nil, err end
  if roles[name] then return nil, "this worker stands for the role " .. name .. " already; allowed is once" end
  if is_leaving then return nil, "this worker leaves" end
  roles[name] = { name = name, on_elected = callbacks.on_elected, on_lost = callbacks.on_lost, steps = {}, leaves = 0 }
  err = agent.start()
  if err then
    roles[name] = nil
    return nil, err
  end
  agent.send { ["do"] = "stand", role = name }
  return true
end

-- The token, or false: a number is true enough.
function _M.is_leader(name)
  local role = roles[name]
  local token = role and role.token
  return token and agent.clock() < deadline and token or false
end

-- Once -----------------------------------------------------------------------------------------

local function settled(item, how)
  onces[item.key] = nil
  if item.on_settled then run("on_settled of " .. item.key, item.on_settled, how) end
end

function _M.once(key, fn, options)
  if not is_name(key) then return refuse("key", key, NAME) end
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  if options ~= nil and type(options) ~= "table" then return refuse("options", options, "a table") end
  local on_settled = options and options.on_settled
  if on_settled ~= nil and type(on_settled) ~= "function" then return refuse("on_settled", on_settled, "a function") end
  if onces[key] then return nil, "this worker is to do " .. key .. " already; allowed is once" end
  if is_leaving then return nil, "this worker leaves" end
  local item = { key = key, fn = fn, on_settled = on_settled }
  onces[key] = item
  local err = agent.start()
  if err then
    onces[key] = nil
    return nil, err
  end
  item.is_asked = agent.send { ["do"] = "once", key = key }
  return true
end

-- Which other process is at what this worker is to do once; nil: none, or it is not known.
function _M.running(key)
  local item = onces[key]
  return item and item.by
end

local attempt

function attempt(item, message)
  item.is_running, item.is_lost, item.token = true, false, message.token
  local argument = {
    number = message.attempt, retry = message.attempt > 1, last = message.last, token = message.token,
    is_mine = function() return item.is_running and not item.is_lost and agent.clock() < deadline end,
  }
  -- What it was told may have lain unread for long.
  local function fn()
    if not argument.is_mine() then error("it was lost before it began", 0) end
    return item.fn(argument)
  end
  run("once " .. item.key .. " (attempt " .. message.attempt .. ")", fn, nil, function(ok)
    item.is_running = false
    local next_one = item.next
    item.next = nil
    if next_one then
      attempt(item, next_one)
    elseif not item.is_lost then
      agent.send { ["do"] = "end", key = item.key, token = message.token, ok = ok }
    elseif not item.is_asked and not is_leaving then
      -- It was lost meanwhile, with the connection: we wait as the others do.
      item.is_asked = agent.send { ["do"] = "once", key = item.key }
    end
  end)
end

-- Locks ----------------------------------------------------------------------------------------

local function end_lock(lock)
  if not locks[lock.id] then return end
  locks[lock.id] = nil
  agent.send { ["do"] = "unlock", id = lock.id }
end

local function wait_for(lock, timeout)
  if not agent.send { ["do"] = "lock", id = lock.id, name = lock.name, timeout = math.ceil(timeout * 1000) } then
    lock.is_unsent = true
  end
  local limit = lock.limit + LATE
  repeat
    lock.bell:wait(math.max(0.001, math.min(1, limit - agent.clock())))
  until lock.token or lock.why or agent.clock() >= limit or lock.is_unsent and agent.clock() >= limit - LATE
  -- What it was told may have lain unread for long.
  if lock.token and agent.clock() < deadline then return true end
  return nil, lock.why or lock.token and "it was lost before it began" or "timed out after " .. timeout .. " s: " .. (agent.trouble or "the agent does not answer")
end

local function pack(ok, ...) return { ok = ok, number = select("#", ...), ... } end

function _M.with_lock(name, fn, options)
  if not is_name(name) then return refuse("name", name, NAME) end
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  if options ~= nil and type(options) ~= "table" then return refuse("options", options, "a table") end
  local timeout = options and options.timeout or LOCK_TIMEOUT
  if type(timeout) ~= "number" or not (timeout >= 0 and timeout <= LONGEST_LOCK_TIMEOUT) then
    return refuse("timeout", timeout, "seconds, from 0 to " .. LONGEST_LOCK_TIMEOUT)
  end
  if not CAN_YIELD[ngx.get_phase()] then
    return nil, "with_lock() waits for the agent, and nothing can wait in the phase `" .. ngx.get_phase()
      .. "`: call it in a request, or in a timer"
  end
  local me = coroutine.running()
  owners[me] = owners[me] or {}
  if owners[me][name] then return nil, "this light thread has the lock " .. name .. " already, or waits for it: it would wait for itself" end
  local err = agent.start()
  if err then return nil, err end
  last_id = last_id + 1
  local lock = { id = last_id, name = name, bell = semaphore.new(), limit = agent.clock() + timeout }
  locks[lock.id], owners[me][name] = lock, true
  -- What ends the request in between ends the lock: the collector notices.
  local sentry = newproxy(true)
  -- Inside of the collector: nothing more than this is safe.
  getmetatable(sentry).__gc = function() lock.is_dropped = true end
  local ok
  ok, err = wait_for(lock, timeout)
  local result
  if ok then
    local function is_mine() return lock.token ~= nil and agent.clock() < deadline end
    result = pack(xpcall(fn, traceback, { token = lock.token, is_mine = is_mine }))
  end
  getmetatable(sentry).__gc = nil
  owners[me][name] = nil
  end_lock(lock)
  if not ok then return nil, err end
  if not result.ok then error(result[1], 0) end
  return true, unpack(result, 1, result.number)
end

-- The fleet ------------------------------------------------------------------------------------

function _M.state()
  if not CAN_YIELD[ngx.get_phase()] then
    return nil, "state() asks the agent, and nothing can wait in the phase `" .. ngx.get_phase() .. "`: call it in a request, or in a timer"
  end
  return agent.get("/cluster")
end

function _M.events(fn)
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  local function call(event)
    local ok, err = xpcall(fn, traceback, event)
    if not ok then log(ngx.ERR, "the function for events failed: ", err) end
  end
  local function follow(premature)
    local pause = FIRST_PAUSE
    while not premature and not ngx.worker.exiting() do
      local why = agent.follow("/cluster/events", function(event)
        pause = FIRST_PAUSE
        call(event)
      end)
      if not ngx.worker.exiting() then call { notice = "away", text = why } end
      local until_then = agent.clock() + pause
      pause = math.min(2 * pause, LONGEST_PAUSE)
      while agent.clock() < until_then and not ngx.worker.exiting() do ngx.sleep(0.1) end
    end
  end
  local ok, err = ngx.timer.at(0, follow)
  if not ok then return nil, "no timer: " .. err end
  return true
end

-- Where the agent listens, if it is not where it listens by default. Before anything else is called.
function _M.use(socket)
  if type(socket) ~= "string" or socket:sub(1, 1) ~= "/" then return refuse("socket", socket, "an absolute path") end
  agent.socket = socket
  return true
end

-- What the agent says --------------------------------------------------------------------------

local function has_until(milliseconds)
  deadline = math.max(deadline, agent.time(milliseconds))
  agent.send { ["do"] = "ack" }
end

local function lose_lock(lock, why)
  locks[lock.id] = nil
  if lock.token then
    lock.token = nil
    log(ngx.ERR, "the lock ", lock.name, " is lost inside: ", why)
  else
    lock.why = why
  end
  lock.bell:post(1)
end

local messages = {}

function messages.renewed(message) has_until(message.deadline) end

function messages.elected(message)
  has_until(message.deadline)
  local role = roles[message.role]
  if not role or is_leaving or role.leaves > 0 then return end
  role.token = message.token
  add_step(role, "on_elected", message.token)
end

function messages.lost(message)
  local role = roles[message.role]
  if not role or not role.token then return end
  log(ngx.WARN, "this worker has lost the role ", role.name, ": ", message.why)
  lose(role)
end

function messages.left(message)
  local role = roles[message.role]
  if role and role.leaves > 0 then role.leaves = role.leaves - 1 end
end

function messages.give_up(message)
  local role = roles[message.role]
  if role then leave(role) end
end

function messages.locked(message)
  has_until(message.deadline)
  local lock = locks[message.id]
  if not lock then return end
  lock.token = message.token
  lock.bell:post(1)
end

function messages.not_locked(message)
  local lock = locks[message.id]
  if lock then lose_lock(lock, message.why) end
end

messages.lock_lost = messages.not_locked

function messages.run(message)
  has_until(message.deadline)
  local item = onces[message.key]
  if not item then return end
  item.by = nil
  -- The one before may not have noticed that it was lost.
  if item.is_running then item.next = message else attempt(item, message) end
end

function messages.running(message)
  local item = onces[message.key]
  if not item then return end
  local since = message.since and message.since / 1000
  item.by = { host = message.host, pid = message.pid, process = message.process, since = since }
end

function messages.run_lost(message)
  local item = onces[message.key]
  if not item then return end
  item.is_lost, item.next = true, nil
end

function messages.done(message)
  local item = onces[message.key]
  if item then settled(item, "done") end
end

function messages.failed(message)
  local item = onces[message.key]
  if not item then return end
  log(ngx.ERR, "once ", item.key, ": it failed ", message.attempts, " times (", message.last, "), and is not tried again")
  settled(item, "failed")
end

function messages.away(message) log(ngx.WARN, message.why) end

function messages.back() log(ngx.NOTICE, "etcd answers the agent again") end

messages["error"] = function(message) log(ngx.ERR, message.error) end

function agent.on_message(message)
  local handle = messages[message.say]
  if handle then handle(message) end
end

function agent.on_welcome()
  deadline = 0
  for _, role in pairs(roles) do role.leaves = 0 end
  if is_leaving then return end
  for name in pairs(roles) do agent.send { ["do"] = "stand", role = name } end
  for key, item in pairs(onces) do
    if not item.is_running then item.is_asked = agent.send { ["do"] = "once", key = key } end
  end
  for id, lock in pairs(locks) do
    if not lock.token and not lock.why then
      lock.is_unsent = false
      agent.send { ["do"] = "lock", id = id, name = lock.name, timeout = math.max(0, math.ceil((lock.limit - agent.clock()) * 1000)) }
    end
  end
end

function agent.on_lost_connection(why)
  for _, role in pairs(roles) do lose(role) end
  for _, item in pairs(onces) do
    item.is_asked, item.next, item.by = false, nil, nil
    if item.is_running then item.is_lost = true end
  end
  for _, lock in pairs(locks) do
    if lock.token then lose_lock(lock, why) else lock.is_unsent = true end
  end
end

-- The agent has not said in time that all this is ours: so it is not. It may not know: so we stand anew.
local function expire()
  local why = "the agent has not confirmed it in time"
  for name, role in pairs(roles) do
    if role.token then
      log(ngx.WARN, "this worker has lost the role ", name, ": ", why)
      leave(role, true)
    end
  end
  for _, item in pairs(onces) do
    if item.is_running and not item.is_lost then
      item.is_lost = true
      agent.send { ["do"] = "end", key = item.key, token = item.token, ok = false, late = true }
    end
  end
  for _, lock in pairs(locks) do
    if lock.token then
      lose_lock(lock, why)
      agent.send { ["do"] = "unlock", id = lock.id }
    end
  end
end

local function has_something()
  for _, role in pairs(roles) do
    if role.token then return true end
  end
  for _, item in pairs(onces) do
    if item.is_running and not item.is_lost then return true end
  end
  for _, lock in pairs(locks) do
    if lock.token then return true end
  end
  return false
end

-- What is over. Seconds until there is something to look at again.
function agent.look()
  for _, lock in pairs(locks) do
    if lock.is_dropped then end_lock(lock) end
  end
  if not has_something() then return 1 end
  local left = deadline - agent.clock()
  if left > 0 then return left end
  expire()
  return 1
end

-- Whether the connection can go: this worker leaves, and has let go of all.
function agent.is_idle()
  if not is_leaving then return false end
  for _, role in pairs(roles) do
    if role.token or role.is_busy or role.steps[1] then return false end
  end
  for _, item in pairs(onces) do
    if item.is_running then return false end
  end
  return next(locks) == nil
end

-- This worker is told to leave: who leads hears so first, and only then can another be elected.
function agent.on_exit()
  is_leaving = true
  for _, role in pairs(roles) do leave(role) end
  for _, item in pairs(onces) do
    if not item.is_running then onces[item.key] = nil end
  end
  agent.wake()
end

return _M
