-- What a test's nginx runs: it registers every callback, and each appends one JSON line to a file
-- that the test reads. One write per line on a descriptor in append mode, so that lines of several
-- processes never mix, and nothing is buffered that a killed process could take with it.

local ffi = require "ffi"

ffi.cdef [[
  typedef struct { long sec; long nsec; } testkit_timespec;
  int open(const char *path, int flags, ...);
  long write(int fd, const void *data, size_t size);
  int close(int fd);
  int getpid(void);
  int kill(int pid, int sig);
  int poll(void *fds, unsigned long n, int timeout_ms);
  int clock_gettime(int clock, testkit_timespec *out);
  long time(long *out);
]]

local C = ffi.C
local O_WRONLY, O_CREAT, O_EXCL, O_APPEND, O_CLOEXEC = 1, 64, 128, 1024, 524288
local CLOCK_BOOTTIME = 7

local _M = { hooks = {}, folder = nil }

local CALLBACKS = {
  "generation_start", "generation_exit", "generation_abandoned", "worker_start",
  "worker_draining", "worker_exit", "worker_died", "worker_stalled", "worker_recovered",
  "master_lost",
}

local function quote(s)
  return '"' .. s:gsub('[%z\1-\31\127"\\]', function(c)
    return string.format("\\u%04x", c:byte())
  end) .. '"'
end

-- Debian's nginx has no cjson.
local function encode(v)
  local kind = type(v)
  if kind == "cdata" then
    v = tonumber(v) or tostring(v)
    kind = type(v)
  end
  if kind == "string" then return quote(v) end
  if kind == "boolean" then return tostring(v) end
  if kind == "number" then
    if v ~= v or v == math.huge or v == -math.huge then return "null" end
    if v % 1 == 0 then return string.format("%.0f", v) end
    return string.format("%.17g", v)
  end
  if kind ~= "table" then return v == nil and "null" or quote(tostring(v)) end
  local out = {}
  if #v > 0 then
    for i = 1, #v do out[i] = encode(v[i]) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for key, value in pairs(v) do
    out[#out + 1] = quote(tostring(key)) .. ":" .. encode(value)
  end
  return "{" .. table.concat(out, ",") .. "}"
end
_M.encode = encode

local function open_reports()
  return C.open(_M.folder .. "/reports.jsonl", O_WRONLY + O_APPEND + O_CLOEXEC)
end

-- Of a process that is about to have no descriptor left, and is to report all the same.
local kept

function _M.keep_reports_open() kept = open_reports() end

local function append(line)
  local fd = kept or open_reports()
  if fd < 0 then return end
  C.write(fd, line, #line)
  if not kept then C.close(fd) end
end

local function stamp()
  local ts = ffi.new("testkit_timespec")
  C.clock_gettime(CLOCK_BOOTTIME, ts)
  return tonumber(ts.sec) * 1e9 + tonumber(ts.nsec)
end
_M.now = stamp

function _M.report(callback, event)
  local known, phase = pcall(ngx.get_phase)
  append(encode({
    callback = callback,
    runner = C.getpid(),
    at = stamp(),
    phase = known and phase or "none",
    event = event,
  }) .. "\n")
end

-- A result, not an event: what a call of the library gave back.
function _M.note(what, fields)
  _M.report("note:" .. what, fields or {})
end

-- True for the first process that asks, over all processes and reloads of this test.
function _M.once(name)
  local fd = C.open(_M.folder .. "/markers/" .. name, O_WRONLY + O_CREAT + O_EXCL, ffi.new("int", 438))
  if fd < 0 then return false end
  C.close(fd)
  return true
end

-- Blocks the whole process, as a driver without a timeout does.
function _M.block(seconds)
  local till = stamp() + seconds * 1e9
  while stamp() < till do
    C.poll(nil, 0, math.max(1, (till - stamp()) / 1e6))
  end
end

function _M.spin(seconds)
  local till = stamp() + seconds * 1e9
  while stamp() < till do end
end

function _M.die()
  C.kill(C.getpid(), 9)
end

local function note_call(what, ok, result, err)
  _M.note(what, {
    raised = not ok,
    ok = ok and result and true or false,
    err = tostring(ok and err or (not ok and result) or ""),
  })
end

local function recorded(callback)
  return function(...)
    _M.report(callback, ...)
    local hook = _M.hooks[callback]
    if hook then return hook(..., _M) end
  end
end

-- resty.headcount ------------------------------------------------------------------------------

function _M.init(options, with_on_event)
  for _, name in ipairs(CALLBACKS) do
    options["on_" .. name] = recorded("on_" .. name)
  end
  if with_on_event then options.on_event = recorded("on_event") end
  note_call("init", pcall(function()
    return require("resty.headcount").init(options)
  end))
end

function _M.init_worker()
  if _M.before_join then _M.before_join() end
  note_call("init_worker", pcall(function()
    return require("resty.headcount").init_worker()
  end))
  if _M.after_join then _M.after_join() end
end

function _M.exit_worker()
  note_call("exit_worker", pcall(function()
    return require("resty.headcount").exit_worker()
  end))
end

-- Answers a request with everything that a call returns, as one JSON array, or with the text itself
-- when the call gives a ready document.
function _M.answer(call)
  local results = { pcall(call) }
  if not results[1] then
    ngx.status = 500
    ngx.say(tostring(results[2]))
  elseif type(results[2]) == "string" then
    ngx.say(results[2])
  else
    local out = {}
    for i = 2, #results do out[#out + 1] = encode(results[i]) end
    ngx.say("[", table.concat(out, ","), "]")
  end
end

-- resty.worker.manager -------------------------------------------------------------------------

local function recorded_seed(callback)
  return function(id, prev, mine, next_)
    _M.report(callback, { id = id, id_type = type(id), prev = prev, mine = mine, next = next_ })
    local hook = _M.hooks[callback]
    if hook then return hook(id, _M) end
  end
end

function _M.init_seed(options)
  note_call("init", pcall(function()
    return require("resty.worker.manager").on_init_by_lua(options,
      recorded_seed("master_start"), recorded_seed("master_exit"))
  end))
end

function _M.init_worker_seed()
  note_call("init_worker", pcall(function()
    return require("resty.worker.manager").on_init_worker_by_lua(
      recorded_seed("worker_start"), recorded_seed("worker_exit"))
  end))
end

-- Requests that a test makes -------------------------------------------------------------------

-- Keeps this worker busy till the client sends the one byte that it announced.
function _M.hold()
  ngx.say(C.getpid())
  ngx.flush(true)
  ngx.req.read_body()
  ngx.say("done")
end

function _M.wall_clock()
  return tonumber(C.time(nil))
end

return _M
