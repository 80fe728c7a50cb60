-- Reads the library's JSON documents: objects, arrays, strings, numbers, booleans; it writes no null, and
-- escapes nothing but quotes, backslashes and control characters. Debian's nginx has no cjson.

local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local WORDS = { ["true"] = true, ["false"] = false }

local value

local function blank(text, at) return text:find("[^%s]", at) or #text + 1 end

local function fail(text, at, expected)
  error("no JSON: " .. expected .. " expected at byte " .. at .. " of " .. text:sub(1, 200), 0)
end

local function read_string(text, at)
  local parts = {}
  while true do
    local from, to, plain, mark = text:find('^([^"\\]*)(["\\])', at)
    if not from then fail(text, at, 'a closing "') end
    parts[#parts + 1] = plain
    at = to + 1
    if mark == '"' then return table.concat(parts), at end
    local code = text:match("^u00(%x%x)", at)
    local escape = code and string.char(tonumber(code, 16)) or ESCAPES[text:sub(at, at)]
    if not escape then fail(text, at, "a known escape") end
    parts[#parts + 1] = escape
    at = at + (code and 5 or 1)
  end
end

-- The members of an object or array, after its opening bracket.
local function read_members(text, at, closing, read)
  at = blank(text, at)
  if text:sub(at, at) == closing then return at + 1 end
  while true do
    at = blank(text, read(at))
    local mark = text:sub(at, at)
    if mark == closing then return at + 1 end
    if mark ~= "," then fail(text, at, "`,` or `" .. closing .. "`") end
    at = blank(text, at + 1)
  end
end

function value(text, at)
  at = blank(text, at)
  local first = text:sub(at, at)
  if first == '"' then return read_string(text, at + 1) end
  local result = {}
  if first == "[" then
    at = read_members(text, at + 1, "]", function(from)
      local member, to = value(text, from)
      result[#result + 1] = member
      return to
    end)
    return result, at
  end
  if first == "{" then
    at = read_members(text, at + 1, "}", function(from)
      if text:sub(from, from) ~= '"' then fail(text, from, "a name") end
      local name, to = read_string(text, from + 1)
      to = blank(text, to)
      if text:sub(to, to) ~= ":" then fail(text, to, "`:`") end
      result[name], to = value(text, to + 1)
      return to
    end)
    return result, at
  end
  local word = text:match("^[%w+.-]+", at)
  if not word then fail(text, at, "a value") end
  local read = WORDS[word]
  if read == nil then read = tonumber(word) end
  if read == nil then fail(text, at, "a value") end
  return read, at + #word
end

return function(text)
  local read, at = value(text, 1)
  if blank(text, at) <= #text then fail(text, at, "the end") end
  return read
end
