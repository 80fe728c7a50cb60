-- Light threads beside the calling one.

local node = require "resty.headcount.node"

local _M = {}

-- A light thread that runs beside the calling one. Kept by nobody but that one: so that what ends their request, and
-- with it both of them, is noticed by the collector.
function _M.spawn(run, argument)
  local beside = setmetatable({}, { __mode = "v" })
  beside.thread = ngx.thread.spawn(function()
    local ok, err = pcall(run, argument)
    beside.is_over = true
    if not ok then node.log(ngx.ERR, err) end
  end)
  return beside
end

-- ngx_lua keeps one that has ended until somebody has waited for it.
function _M.unless_over(beside)
  if not beside or not beside.is_over then return beside end
  if beside.thread then ngx.thread.wait(beside.thread) end
end

return _M
