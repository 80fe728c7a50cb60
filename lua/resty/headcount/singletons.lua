-- What exactly one worker does: who leads, what runs once. Locks: see locks.lua.
--
-- Who has what, the library knows. Here is what only Lua can do: run the user's functions where sockets and timers work.

local arguments = require "resty.headcount.arguments"
local ffi = require "ffi"
local library = require "resty.headcount.library"
local nginx = require "resty.headcount.nginx"
local node = require "resty.headcount.node"
local threads = require "resty.headcount.threads"

local is_name, refuse, NAME = arguments.is_name, arguments.refuse, arguments.NAME

local ELECTED, GIVE_UP, LOST = 1, 2, 3
local SCOPES = { generation = 1, node = 2 }
local RUN, DONE, FAILED = 1, 2, 4
-- Seconds between two tries to say how a once went.
local SHORTEST_WAIT, LONGEST_WAIT = 0.001, 0.02
-- Seconds after which a timer is missed that was to run at once.
local LONGEST_START = 1

local _M = {}
-- Set by worker.lua: wake, called when there is something to do for the thread of heartbeats.

function _M.wake() end

local roles, onces = {}, {}
-- Functions of the user that run, or are about to; and the light threads of those that run in this request.
local fates, beside = {}, {}

local leader = ffi.new("headcount_leader", { struct_size = ffi.sizeof("headcount_leader") })
local once = ffi.new("headcount_once", { struct_size = ffi.sizeof("headcount_once") })

-- What a later look may find otherwise: somebody holds the lock, or this process has not joined yet.
local function is_passing(code)
  return code == node.BUSY or code == node.LOCK_TIMEOUT or code == node.WRONG_STATE
end

local function nothing() end

-- Runs a function of the user in a request of its own: whatever ends that ends nothing else. `after` runs when it has ended, or was
-- ended with its request. Where timers are used up, it runs beside the thread of heartbeats: one is refused at once, or, when it is to
-- run, without a word.
local function run(what, fn, argument, after)
  local fate = { what = what, after = after }
  function fate.body()
    if fate.begun then return end -- beside
    local sentry = node.guard(fate)
    local ok, err = xpcall(fn, node.traceback, argument)
    node.disarm(sentry)
    if not ok then node.log(ngx.ERR, what, " failed: ", err) end
    fates[fate] = nil
    after(ok)
  end
  fates[fate] = true
  fate.late_at = ngx.timer.at(0, fate.body) and nginx.clock() + LONGEST_START or 0
end

local function look_after()
  local lost, late = {}, {}
  for fate in pairs(fates) do
    if not fate.begun then
      if nginx.clock() >= fate.late_at then late[#late + 1] = fate end
    elseif node.is_lost(fate) then
      lost[#lost + 1] = fate
    end
  end
  for _, fate in ipairs(lost) do
    fates[fate] = nil
    node.log(ngx.ERR, fate.what, " was ended by ngx.exit() or the like, and never returned")
    run("the end of " .. fate.what, fate.after, false, nothing)
  end
  for _, fate in ipairs(late) do beside[#beside + 1] = threads.spawn(fate.body) end
  for i = #beside, 1, -1 do
    if not threads.unless_over(beside[i]) then table.remove(beside, i) end
  end
end

-- Roles ----------------------------------------------------------------------------------------

local function stand(role)
  local code = library.headcount_leader_stand(node.handle, role.name)
  role.stands = code >= 0
  if code >= 0 or is_passing(code) then return true end
  return nil, node.last_error()
end

function _M.leader(name, callbacks)
  if not is_name(name) then return refuse("role", name, NAME) end
  local ok, err = arguments.are_callbacks(callbacks)
  if not ok then return nil, err end
  if roles[name] then return nil, "this worker stands for the role " .. name .. " already; allowed is once" end
  local role = { name = name, on_elected = callbacks.on_elected, on_lost = callbacks.on_lost or nothing }
  ok, err = stand(role)
  if not ok then return nil, err end
  roles[name] = role
  _M.wake()
  return true
end

function _M.is_leader(name)
  local role = roles[name]
  if not role then return false end
  local word = role.word
  return word ~= nil and word[0] == role.token
end

local function lose(role, is_asked)
  role.is_losing = true
  run("on_lost of the role " .. role.name, role.on_lost, nil, function()
    role.word, role.is_losing = nil, nil
    if is_asked then library.headcount_leader_give_up(node.handle, role.name) end
  end)
end

local function poll_role(role)
  if not role.stands then
    local ok, err = stand(role)
    if not ok then
      node.log(ngx.ERR, err)
      roles[role.name] = nil
    end
  end
  if not role.stands or role.is_losing then return end
  if library.headcount_leader_poll(node.handle, role.name, leader) < 0 then return end
  if leader.change == ELECTED then
    role.token, role.word = ffi.cast("uint64_t", leader.token), leader.word
    if role.on_elected then
      run("on_elected of the role " .. role.name, role.on_elected, tonumber(role.token), nothing)
    end
  elseif leader.change == GIVE_UP then
    lose(role, true)
  elseif leader.change == LOST then
    lose(role)
  end
end

-- Once -----------------------------------------------------------------------------------------

-- Another process, or another light thread of ours, may hold the node lock: it is said again until it is heard.
local function say_how_it_went(item, ok)
  local pause = SHORTEST_WAIT
  while true do
    local code = library.headcount_once_end(node.handle, item.scope, item.key, ok and 1 or 0, 0)
    if code >= 0 then return end
    if code ~= node.BUSY and code ~= node.LOCK_TIMEOUT then
      return node.log(ngx.ERR, "once ", item.key, ": ", node.last_error())
    end
    ngx.sleep(pause)
    pause = math.min(2 * pause, LONGEST_WAIT)
  end
end

local function settled(item, state)
  onces[item.id] = nil
  if item.on_settled then run("on_settled of " .. item.key, item.on_settled, state, nothing) end
end

local function attempt_of(once)
  return {
    number = once.attempt,
    retry = once.attempt > 1,
    last = once.last_cause >= 0 and ffi.string(library.headcount_cause_name(once.last_cause)) or nil,
    signal = once.last_signal ~= 0 and once.last_signal or nil,
  }
end

local function poll_once(item)
  if item.is_running or item.not_before and nginx.clock() < item.not_before then return end
  local code = library.headcount_once_begin(node.handle, item.scope, item.key, 0, once)
  if code < 0 then
    if is_passing(code) then return end
    node.log(ngx.ERR, "once ", item.key, ": ", node.last_error())
    onces[item.id] = nil
  elseif once.state == DONE then
    settled(item, "done")
  elseif once.state == FAILED then
    node.log(ngx.ERR, "once ", item.key, ": it failed ", once.attempt, " times, and is not tried again")
    settled(item, "failed")
  elseif once.state == RUN then
    item.is_running = true
    run("once " .. item.key .. " (attempt " .. once.attempt .. ")", item.fn, attempt_of(once), function(ok)
      say_how_it_went(item, ok)
      item.is_running = nil
      -- Others may be luckier.
      if not ok then item.not_before = nginx.clock() + node.options.heartbeat_interval end
      _M.wake()
    end)
  end
end

function _M.once(scope, key, fn, options)
  if not SCOPES[scope] then return refuse("scope", scope, "\"generation\" or \"node\"") end
  if not is_name(key) then return refuse("key", key, NAME) end
  if type(fn) ~= "function" then return refuse("fn", fn, "a function") end
  if options ~= nil and type(options) ~= "table" then return refuse("options", options, "a table") end
  local on_settled = options and options.on_settled
  if on_settled ~= nil and type(on_settled) ~= "function" then return refuse("on_settled", on_settled, "a function") end
  local id = scope .. ":" .. key
  if onces[id] then return nil, "this worker is to do " .. key .. " already; allowed is once for each scope" end
  onces[id] = { id = id, scope = SCOPES[scope], key = key, fn = fn, on_settled = on_settled }
  _M.wake()
  return true
end

-- For worker.lua -------------------------------------------------------------------------------

-- What there is to do, at each heartbeat and whenever this worker is called. Never waits.
function _M.poll()
  for _, role in pairs(roles) do poll_role(role) end
  for _, item in pairs(onces) do poll_once(item) end
  look_after()
end

-- Somebody may have been elected, or a once be open again: for the thread of heartbeats, whose children run the functions.
function _M.called()
  if next(roles) or next(onces) then _M.wake() end
end

-- This worker ends: who leads hears so first. In a phase that cannot yield.
function _M.leave()
  for _, role in pairs(roles) do
    if role.word ~= nil and not role.is_losing then
      local ok, err = xpcall(role.on_lost, node.traceback)
      if not ok then node.log(ngx.ERR, "on_lost of the role ", role.name, " failed: ", err) end
      role.word = nil
      library.headcount_leader_give_up(node.handle, role.name)
    end
  end
  roles, onces = {}, {}
end

return _M
