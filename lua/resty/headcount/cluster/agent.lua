-- The connection of this worker to the agent of its host: one session, in a light thread of its own, since nginx ties each socket to the
-- request that has made it. docs/cluster.md's *session* says what goes over it.

local json = require "cjson.safe"
local nginx = require "resty.headcount.nginx"
local semaphore = require "ngx.semaphore"

local DEFAULT_SOCKET = "/run/headcount-agent/agent.sock"
local UPGRADE = "headcount-session/1"
-- Milliseconds.
local CONNECT, SEND, ANSWER, LONG = 2000, 5000, 6000, 7 * 86400 * 1000
-- Seconds between two looks at what may be over.
local LOOK = 1
-- Seconds in which a worker that is told to leave stops following events.
local LEAVE = 0.5
-- Seconds between two attempts to connect.
local FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5
-- So much may wait to be sent.
local MOST_UNSENT = 1000
local FAR = 10 * 365 * 86400

local _M = { socket = DEFAULT_SOCKET }
-- Set by cluster.lua: on_welcome(), on_message(message), on_lost_connection(why), on_exit(), look(), is_idle().

local unsent, bell = {}, semaphore.new()
local is_running, is_open, is_watching = false, false, false
-- How many sessions there were.
_M.session = 0
-- What is to be added to the agent's times.
local offset = 0
-- Why there is no session, if there is none.
_M.trouble = "it was not asked yet"

_M.clock = nginx.clock

local function log(level, ...) ngx.log(level, "headcount: the cluster's agent: ", ...) end

-- A deadline as the agent says it, in seconds of our clock.
function _M.time(milliseconds) return milliseconds / 1000 + offset end

local function connect()
  local sock = ngx.socket.tcp()
  sock:settimeouts(CONNECT, SEND, ANSWER)
  local ok, err = sock:connect("unix:" .. _M.socket)
  if not ok then return nil, _M.socket .. ": " .. err end
  return sock
end

-- The status of an answer, after whose head the socket stands, and its reason.
local function read_head(sock)
  local line, err = sock:receive("*l")
  if not line then return nil, err end
  local status = tonumber(line:match("^HTTP/1%.%d (%d%d%d)"))
  if not status then return nil, "it is no agent" end
  repeat
    local header
    header, err = sock:receive("*l")
    if not header then return nil, err end
  until header == ""
  return status
end

-- A socket that stands at the body of a page. 1.0: so that the body ends with the connection.
function _M.open(page)
  local sock, err = connect()
  if not sock then return nil, err end
  local _
  _, err = sock:send("GET " .. page .. " HTTP/1.0\r\nHost: agent\r\n\r\n")
  local status
  if not err then status, err = read_head(sock) end
  if status == 200 then return sock end
  if status then err = (sock:receive("*a") or ""):gsub("%s+$", "") end
  sock:close()
  return nil, _M.socket .. ": " .. err
end

function _M.get(page)
  local sock, err = _M.open(page)
  if not sock then return nil, err end
  local body
  body, err = sock:receive("*a")
  sock:close()
  if not body then return nil, _M.socket .. ": " .. err end
  return json.decode(body)
end

local function open_session()
  local sock, err = connect()
  if not sock then return nil, err end
  local asked_at = nginx.clock()
  local _
  _, err = sock:send("GET /cluster/session HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: " .. UPGRADE .. "\r\n\r\n")
  local status
  if not err then status, err = read_head(sock) end
  if status and status ~= 101 then
    err = sock:receive("*l") or "status " .. status
  elseif status then
    local line
    line, err = sock:receive("*l")
    local welcome = line and json.decode(line)
    if welcome and welcome.say == "welcome" and type(welcome.now) == "number" then
      -- The agent looked at its clock after it was asked and before this, if that is ours, and said it in whole milliseconds. Otherwise
      -- it may be behind by as long as its answer was on its way: so it is compared with when it was asked.
      local theirs = welcome.now / 1000
      offset = (theirs + 0.001 < asked_at or theirs > nginx.clock()) and asked_at - theirs or 0
      return sock, welcome
    end
  end
  sock:close()
  return nil, _M.socket .. ": " .. (err or "it is no agent")
end

-- Reads until the connection ends, and gives each line to a function. A time-out would be a line in error.log each time.
local function read(sock, on_message)
  sock:settimeouts(CONNECT, SEND, LONG)
  while true do
    local line, err = sock:receive("*l")
    if not line then return err end
    local message = json.decode(line)
    if message then on_message(message) end
  end
end

-- Sends what is to be sent, and sees that what is over is over.
local function write(sock)
  while true do
    bell:wait(math.max(0.001, math.min(LOOK, _M.look())))
    while unsent[1] do
      local all = table.concat(unsent)
      unsent = {}
      local _, err = sock:send(all)
      if err then return err end
    end
    if _M.is_idle() then return "closed" end
  end
end

local function talk(sock, welcome)
  unsent, is_open, _M.trouble, _M.session = {}, true, nil, _M.session + 1
  _M.on_welcome(welcome)
  local reader, writer = ngx.thread.spawn(read, sock, _M.on_message), ngx.thread.spawn(write, sock)
  -- Whichever ends first says why.
  local _, why = ngx.thread.wait(reader, writer)
  ngx.thread.kill(reader)
  ngx.thread.kill(writer)
  sock:close()
  is_open = false
  return why
end

local function run(premature)
  local pause, said = FIRST_PAUSE, nil
  while not premature and not _M.is_idle() do
    local sock, welcome = open_session()
    local err = welcome
    if sock then
      said, pause = nil, FIRST_PAUSE
      -- Whatever it says, we connect again.
      local _, why = pcall(talk, sock, welcome)
      is_open = false
      err = _M.socket .. ": " .. tostring(why)
    end
    if _M.is_idle() then break end
    _M.trouble = err
    _M.on_lost_connection("the agent at " .. err)
    if said ~= err then log(ngx.WARN, err, "; trying again") end
    said = err
    -- Not all workers of all hosts at the same moment.
    local wait = pause * (0.5 + math.random() / 2)
    local until_then = nginx.clock() + wait
    pause = math.min(2 * pause, LONGEST_PAUSE)
    while nginx.clock() < until_then and not ngx.worker.exiting() do
      _M.look()
      ngx.sleep(math.min(0.25, wait))
    end
    if ngx.worker.exiting() then break end
  end
  is_running = false
  if premature or ngx.worker.exiting() then _M.on_lost_connection("this worker leaves") end
end

-- A timer far away is called at once when the worker is told to leave.
local function watch_exit()
  if is_watching then return end
  is_watching = ngx.timer.at(FAR, function(premature)
    is_watching = false
    if premature then _M.on_exit() else watch_exit() end
  end) and true or false
end

-- Has the connection be there, now and later. What is wrong with that, if so.
function _M.start()
  if is_running then return end
  local ok, err = ngx.timer.at(0, run)
  if not ok then return "no timer: " .. err end
  is_running = true
  watch_exit()
end

function _M.wake()
  if bell:count() < 1 then bell:post(1) end
end

-- False: there is no session, and what is wanted is asked for when there is one.
function _M.send(request)
  if not is_open or #unsent >= MOST_UNSENT then return false end
  unsent[#unsent + 1] = json.encode(request) .. "\n"
  _M.wake()
  return true
end

-- Follows a page of lines, and gives each to a function; why that ended.
function _M.follow(page, on_line)
  local sock, err = _M.open(page)
  if not sock then return err end
  local reader = ngx.thread.spawn(read, sock, on_line)
  -- It must not keep a worker that is told to leave.
  local leaves = ngx.thread.spawn(function()
    while not ngx.worker.exiting() do ngx.sleep(LEAVE) end
    return "this worker leaves"
  end)
  local _, why = ngx.thread.wait(reader, leaves)
  ngx.thread.kill(reader)
  ngx.thread.kill(leaves)
  sock:close()
  return _M.socket .. ": " .. tostring(why)
end

return _M
