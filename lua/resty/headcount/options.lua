-- The options of init{}: their names and types. Which values are allowed, and the defaults, the library says.

local arguments = require "resty.headcount.arguments"
local ffi = require "ffi"
local library = require "resty.headcount.library"
local nginx = require "resty.headcount.nginx"

local shown = arguments.shown

local MOST_MS, MOST_NUMBER = 2^53, 2^32 - 1

-- What can be handed to the library, in whose structure 0 stands for the default.
local function seconds(value) return type(value) == "number" and value >= 0.001 end
local function number(value) return type(value) == "number" and value >= 1 and value % 1 == 0 end
local function text(value) return type(value) == "string" and not value:find("%z") end
local function callback(value) return type(value) == "function" end

local SECONDS = "a number of seconds, at least 0.001"
local NUMBER = "a whole number, at least 1"
local TEXT = "a string without a zero byte"
local FUNCTION = "a function"

local TYPES = {
  node = { TEXT, text },
  path = { TEXT, text },
  heartbeat_interval = { SECONDS, seconds },
  stall_after = { SECONDS, seconds },
  lock_timeout = { SECONDS, seconds },
  slots = { NUMBER, number },
  singletons = { NUMBER, number },
  journal_records = { NUMBER, number },
  on_generation_start = { FUNCTION, callback },
  on_generation_exit = { FUNCTION, callback },
  on_generation_abandoned = { FUNCTION, callback },
  on_worker_start = { FUNCTION, callback },
  on_worker_draining = { FUNCTION, callback },
  on_worker_exit = { FUNCTION, callback },
  on_worker_died = { FUNCTION, callback },
  on_worker_stalled = { FUNCTION, callback },
  on_worker_recovered = { FUNCTION, callback },
  on_master_lost = { FUNCTION, callback },
  on_event = { FUNCTION, callback },
}

local _M = {}

local function names()
  local list = {}
  for name in pairs(TYPES) do list[#list + 1] = "`" .. name .. "`" end
  table.sort(list)
  return table.concat(list, ", ")
end

local function milliseconds(value)
  return value and math.floor(math.min(value * 1000, MOST_MS) + 0.5) or 0
end

-- The same for the library. Valid as long as the options.
function _M.struct(options)
  return ffi.new("headcount_options", {
    struct_size = ffi.sizeof("headcount_options"),
    slots = math.min(options.slots or 0, MOST_NUMBER),
    singletons = math.min(options.singletons or 0, MOST_NUMBER),
    journal_records = math.min(options.journal_records or 0, MOST_NUMBER),
    node = options.node,
    path = options.path,
    heartbeat_interval_ms = milliseconds(options.heartbeat_interval),
    stall_after_ms = milliseconds(options.stall_after),
    lock_timeout_ms = milliseconds(options.lock_timeout),
  })
end

local function default_node()
  local arguments = nginx.arguments()
  if not arguments then
    return nil, "set the option `node`: this process cannot find out how nginx was started"
  end
  local list, name = ffi.new("const char *[?]", #arguments + 1, arguments), ffi.new("char[64]")
  local code = library.headcount_nginx_default_node(
    list, #arguments, ngx.config.prefix(), nginx.folder() or "", name, ffi.sizeof(name))
  if code < 0 then return nil, ffi.string(library.headcount_last_error()) end
  return ffi.string(name)
end

-- The options with name and timings filled in, or nil and what is wrong.
function _M.check(given)
  if type(given) ~= "table" then
    return nil, "the options are " .. shown(given) .. "; allowed is a table"
  end
  local options = {}
  for name, value in pairs(given) do
    local rule = TYPES[name]
    if not rule then
      return nil, "option `" .. tostring(name) .. "` is not known; allowed are " .. names()
    end
    if not rule[2](value) then
      return nil, "option `" .. name .. "` is " .. shown(value) .. "; allowed is " .. rule[1]
    end
    options[name] = value
  end
  if not options.node then
    local name, err = default_node()
    if not name then return nil, err end
    options.node = name
  end
  local checked = _M.struct(options)
  if library.headcount_check_options(checked) < 0 then return nil, ffi.string(library.headcount_last_error()) end
  options.heartbeat_interval = tonumber(checked.heartbeat_interval_ms) / 1000
  options.stall_after = tonumber(checked.stall_after_ms) / 1000
  options.lock_timeout = tonumber(checked.lock_timeout_ms) / 1000
  return options
end

return _M
