-- The nginx module in the same nginx, if it is loaded: one engine, one node, and Lua in charge.

local ffi = require "ffi"
local library = require "resty.headcount.library"

ffi.cdef [[
  int32_t headcount_nginx_attach(headcount_options *options);
]]

local OVERRIDDEN = { "node", "path", "heartbeat_interval", "stall_after", "lock_timeout", "slots", "singletons" }

local _M = {}

local function ask(settings) return ffi.C.headcount_nginx_attach(settings) end

-- If the directive `headcount` is on, its settings win: they are put into the options. Returns the names of the given
-- options that it overrides; nil if there is no such directive.
function _M.attach(options, given)
  if library ~= ffi.C then return end
  local settings = ffi.new("headcount_options", { struct_size = ffi.sizeof("headcount_options") })
  local known, answer = pcall(ask, settings)
  if not known or answer ~= 1 then return end
  local theirs = {
    node = ffi.string(settings.node),
    path = settings.path ~= nil and ffi.string(settings.path) or nil,
    heartbeat_interval = tonumber(settings.heartbeat_interval_ms) / 1000,
    stall_after = tonumber(settings.stall_after_ms) / 1000,
    lock_timeout = tonumber(settings.lock_timeout_ms) / 1000,
    slots = settings.slots ~= 0 and settings.slots or nil,
    singletons = settings.singletons ~= 0 and settings.singletons or nil,
  }
  local differing = {}
  for _, name in ipairs(OVERRIDDEN) do
    if given[name] ~= nil and given[name] ~= theirs[name] then differing[#differing + 1] = "`" .. name .. "`" end
    options[name] = theirs[name]
  end
  return differing
end

return _M
