-- The options of init{}: what is allowed, and the defaults.

local nginx = require "resty.headcount.nginx"

local DAY = 86400

local function seconds(value)
  return type(value) == "number" and value >= 0.001 and value <= DAY
end

local function whole(from, to)
  return function(value)
    return type(value) == "number" and value % 1 == 0 and value >= from and value <= to
  end
end

local function callback(value) return type(value) == "function" end

local SECONDS = "a number of seconds from 0.001 to 86400"
local FUNCTION = "a function"

local ALLOWED = {
  node = {
    "1 to 48 letters, digits, `.`, `_` and `-`, not beginning with `.`",
    function(value)
      return type(value) == "string" and #value <= 48 and value:find("^[%w_-][%w._-]*$") ~= nil
    end,
  },
  path = {
    "the absolute path of a file",
    function(value)
      return type(value) == "string" and value:find("^/.*[^/]$") ~= nil and not value:find("%z")
    end,
  },
  heartbeat_interval = { SECONDS, seconds },
  stall_after = { SECONDS, seconds },
  lock_timeout = { SECONDS, seconds },
  slots = { "a whole number from 2 to 65536", whole(2, 65536) },
  journal_records = { "a whole number from 64 to 1048576", whole(64, 1048576) },
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

local function shown(value)
  if type(value) == "string" then return string.format("%q", value) end
  return tostring(value)
end

local function names()
  local list = {}
  for name in pairs(ALLOWED) do list[#list + 1] = "`" .. name .. "`" end
  table.sort(list)
  return table.concat(list, ", ")
end

-- The options with the defaults filled in, or nil and what is wrong.
function _M.check(given)
  if type(given) ~= "table" then
    return nil, "the options are " .. shown(given) .. "; allowed is a table"
  end
  local options = {}
  for name, value in pairs(given) do
    local rule = ALLOWED[name]
    if not rule then
      return nil, "option `" .. tostring(name) .. "` is not known; allowed are " .. names()
    end
    if not rule[2](value) then
      return nil, "option `" .. name .. "` is " .. shown(value) .. "; allowed is " .. rule[1]
    end
    options[name] = value
  end
  options.heartbeat_interval = options.heartbeat_interval or 1
  options.stall_after = options.stall_after or math.min(math.max(5, 5 * options.heartbeat_interval), DAY)
  options.lock_timeout = options.lock_timeout or 30
  if options.stall_after <= options.heartbeat_interval then
    return nil, string.format("option `stall_after` is %s; allowed is more than `heartbeat_interval`, which is %s",
      options.stall_after, options.heartbeat_interval)
  end
  options.node = options.node or _M.default_node(nginx.arguments(), ngx.config.prefix(), nginx.folder())
  if not options.node then
    return nil, "set the option `node`: this process cannot find out how nginx was started"
  end
  return options
end

-- The prefix and the configuration file of a command line, as nginx reads it.
local function places(arguments)
  local found, i = {}, 1
  while i <= #arguments do
    local argument = arguments[i]
    if argument:sub(1, 1) == "-" then
      -- Several letters may stand together; one that takes a value ends them.
      local letter, value = argument:match("^%-[^cpgse]*([cpgse])(.*)$")
      if letter then
        if value == "" then
          i = i + 1
          value = arguments[i]
        end
        found[letter] = value
      end
    end
    i = i + 1
  end
  return found.p, found.c
end

local function tidy(path)
  path = path:gsub("/+", "/")
  local count
  repeat path, count = path:gsub("/%./", "/") until count == 0
  return path
end

-- "nginx", unless the server was started with a configuration file or a prefix of its own: then a name made
-- of that path, so that two servers of one package are two nodes. Another path always gives another name.
function _M.default_node(arguments, prefix, folder)
  if not arguments then return end
  local own_prefix, file = places(arguments)
  if not (own_prefix or file) then return "nginx" end

  if prefix:sub(1, 1) ~= "/" then prefix = (folder or "") .. "/" .. prefix end
  prefix = tidy(prefix .. "/")
  local path = file or prefix
  if path:sub(1, 1) ~= "/" then path = prefix .. path end
  path = tidy(path)
  -- The same configuration under two prefixes is two servers.
  local elsewhere = own_prefix and path:sub(1, #prefix) ~= prefix
  local identity = elsewhere and prefix .. "\n" .. path or path

  local plain = path:gsub("^/", ""):gsub("/$", "")
  local name = plain:gsub("/", "-"):gsub("[^%w._-]", "_")
  if elsewhere or plain:find("[^%w._/]") or #name > 42 then
    name = name:sub(-33) .. string.format("-%08x", ngx.crc32_long(identity))
  end
  return "nginx-" .. name
end

return _M
