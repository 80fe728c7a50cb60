-- Random values for every option of init{}: each table is accepted or refused with a message, and nothing is raised.
-- Run by lua_options.rs with LuaJIT: luajit options.lua SEED ROUNDS

local seed, rounds = tonumber(arg[1]), tonumber(arg[2])
math.randomseed(seed)

-- As far as the options ask for it.
ngx = { config = { prefix = function() return "/usr/share/nginx/" end } }

local options = require "resty.headcount.options"

local NAMES = {
  "node", "path", "heartbeat_interval", "stall_after", "lock_timeout", "slots", "journal_records",
  "on_generation_start", "on_worker_died", "on_event", "unknown", "",
}
local NUMBERS = {
  0, -0, 1, -1, 2, 0.001, 0.0009, 0.5, 1.5, 63, 64, 65536, 65537, 86400, 86401, 1e6, 2^31, 2^32 - 1, 2^32, 2^53, 2^63, 2^64, 1e308,
  math.huge, -math.huge, 0/0,
}
local TEXTS = {
  "", "a", "shop", "a/b", "..", ".x", "a b", "a\0b", "\0", "\255\254", ("n"):rep(48), ("n"):rep(49), ("n"):rep(100000),
  "/", "/dev/shm/x", "/dev/shm/x/", "relative", "/" .. ("p"):rep(5000), "%s%n%d", "nan", "1",
}
local OTHERS = {
  true, false, {}, function() end, print, coroutine.create(function() end), io.stdout, newproxy(),
  require("ffi").new("int64_t", 5), require("ffi").new("int[1]"), setmetatable({}, { __tostring = function() return "x" end }),
}

local function of(list) return list[math.random(#list)] end

local function text()
  if math.random(3) > 1 then return of(TEXTS) end
  local bytes = {}
  for i = 1, math.random(0, 60) do bytes[i] = string.char(math.random(0, 255)) end
  return table.concat(bytes)
end

local function value()
  local kind = math.random(8)
  if kind <= 3 then return of(NUMBERS) end
  if kind == 4 then return (math.random() - 0.1) * 10 ^ math.random(-6, 20) end
  if kind <= 6 then return text() end
  return of(OTHERS)
end

local KEYS = { 1, 0, 1.5, true, print, {}, text() }

local function given()
  if math.random(20) == 1 then return value() end
  local all = {}
  -- Mostly with a name: otherwise it asks the server for one, which is not there.
  if math.random(10) > 1 then all.node = math.random(3) > 1 and "shop" or value() end
  for _ = 1, math.random(0, 3) do all[of(NAMES)] = value() end
  if math.random(30) == 1 then all[of(KEYS)] = value() end
  return all
end

local accepted, refused = 0, 0
for round = 1, rounds do
  local options_given = given()
  local ok, checked, err = pcall(options.check, options_given)
  local where = "seed " .. seed .. ", round " .. round .. ": "
  if not ok then
    local shown = {}
    for name, v in pairs(type(options_given) == "table" and options_given or { options_given }) do
      shown[#shown + 1] = tostring(name) .. " = " .. (type(v) == "string" and ("%q"):format(v:sub(1, 200)) or tostring(v))
    end
    error(where .. "raised " .. tostring(checked) .. " for { " .. table.concat(shown, ", ") .. " }")
  end
  if checked then
    accepted = accepted + 1
    for name in pairs(options_given) do assert(checked[name] ~= nil, where .. "it is kept: " .. tostring(name)) end
    for _, name in ipairs { "heartbeat_interval", "stall_after", "lock_timeout" } do
      local time = checked[name]
      assert(time >= 0.001 and time <= 86400, where .. name .. " is " .. tostring(time))
    end
    assert(checked.stall_after > checked.heartbeat_interval, where .. "stalled after more than one heartbeat")
    -- What is accepted is what is handed to the library.
    options.struct(checked)
  else
    refused = refused + 1
    assert(type(err) == "string" and #err > 0, where .. "it says why")
  end
end
print(accepted .. " accepted, " .. refused .. " refused")
