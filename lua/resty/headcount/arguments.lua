-- Arguments of calls: what they may be, and how one that is wrong is called so.

local _M = { NAME = "1 to 48 letters, digits, `.`, `_` and `-`" }

function _M.shown(value)
  if type(value) == "string" then return string.format("%q", value) end
  return tostring(value)
end

function _M.refuse(what, value, allowed)
  return nil, "argument `" .. what .. "` is " .. _M.shown(value) .. "; allowed is " .. allowed
end

-- Of a role, a once or a lock.
function _M.is_name(value)
  return type(value) == "string" and #value >= 1 and #value <= 48 and not value:find("[^%w._-]")
end

-- Of a role.
local CALLBACKS, THEY_ARE = { on_elected = true, on_lost = true }, "a table with `on_elected` and `on_lost`"

function _M.are_callbacks(value)
  if type(value) ~= "table" then return _M.refuse("callbacks", value, THEY_ARE) end
  for key, fn in pairs(value) do
    if not CALLBACKS[key] then return _M.refuse("callbacks", key, THEY_ARE) end
    if type(fn) ~= "function" then return _M.refuse(key, fn, "a function") end
  end
  return true
end

return _M
