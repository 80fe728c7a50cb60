-- The whole node at this instant, as a table.

local ffi = require "ffi"
local library = require "resty.headcount.library"
local node = require "resty.headcount.node"

local count = node.count

-- Room for what most nodes have; the others are asked again with more.
local GENERATIONS, PROCESSES = 8, 80

local GENERATION_LIST = ffi.typeof("headcount_generation_status[?]")
local PROCESS_LIST = ffi.typeof("headcount_process_status[?]")
local GENERATION_SIZE = ffi.sizeof("headcount_generation_status")
local PROCESS_SIZE = ffi.sizeof("headcount_process_status")

-- The names of numbers, each asked for once.
local function names(name_of)
  return setmetatable({}, {
    __index = function(known, number)
      local name = ffi.string(name_of(number))
      known[number] = name
      return name
    end,
  })
end

local KINDS = names(library.headcount_kind_name)
local CAUSES = names(library.headcount_cause_name)
local ROLES = names(library.headcount_role_name)
local STATES = names(library.headcount_state_name)
local LIVENESS = names(library.headcount_liveness_name)
local PHASES = names(library.headcount_phase_name)
local SINGLETONS = names(library.headcount_singleton_name)
local SINGLETON_STATES = names(library.headcount_singleton_state_name)
local REASONS = names(library.headcount_doubt_reason)

local function seconds(ns) return tonumber(ns) / 1e9 end

local function generation_table(g)
  local master_alive = count(g.master_alive)
  return {
    id = tonumber(g.id),
    phase = PHASES[g.phase],
    cause = CAUSES[g.cause],
    master = g.master,
    master_alive = master_alive and master_alive == 1,
    age = seconds(g.age_ns),
    begun = seconds(g.begun_ns),
    expected = count(g.expected),
    prev = count(g.prev),
    mine = g.mine,
    next = count(g.next),
    draining = g.draining,
    prev_draining = g.prev >= 0 and g.prev_draining or nil,
    next_draining = g.next >= 0 and g.next_draining or nil,
  }
end

local function process_table(p)
  return {
    pid = p.pid,
    role = ROLES[p.role],
    generation = tonumber(p.generation),
    worker_id = count(p.worker_id),
    state = STATES[p.state],
    liveness = LIVENESS[p.liveness],
    unknown_because = p.doubt ~= 0 and REASONS[p.doubt] or nil,
    cause = CAUSES[p.cause],
    age = seconds(p.age_ns),
    in_state_for = seconds(p.in_state_ns),
    heartbeat_age = p.heartbeat_age_ns >= 0 and seconds(p.heartbeat_age_ns) or nil,
  }
end

local function holder_table(snapshot)
  if snapshot.holder == 0 then return end
  local in_callback = snapshot.callback ~= 0
  return {
    pid = snapshot.holder,
    held_for = seconds(snapshot.held_ns),
    callback = in_callback and KINDS[snapshot.callback] or nil,
    callback_for = in_callback and seconds(snapshot.callback_ns) or nil,
  }
end

local function list(number, records, table_of)
  local result = {}
  for i = 1, tonumber(number) do result[i] = table_of(records[i - 1]) end
  return result
end

local function singleton_table(x)
  local kind = SINGLETONS[x.kind]
  local generation = tonumber(x.generation)
  return {
    kind = kind,
    name = ffi.string(x.name),
    scope = kind == "once" and (generation == 0 and "node" or "generation") or nil,
    state = SINGLETON_STATES[x.state],
    generation = generation ~= 0 and generation or nil,
    holder = x.holder ~= 0 and x.holder or nil,
    worker_id = count(x.worker_id),
    token = x.token ~= 0 and tonumber(x.token) or nil,
    attempts = kind == "once" and x.attempts or nil,
    waiters = kind == "lock" and x.waiters or nil,
    since = seconds(x.since_ns),
  }
end

local SINGLETON_LIST = ffi.typeof("headcount_singleton[?]")

-- Roles, onces and locks. Most nodes have none.
local function all_singletons()
  local number, room = ffi.new("uint64_t[1]"), 0
  while true do
    local records = SINGLETON_LIST(math.max(room, 1))
    records[0].struct_size = ffi.sizeof("headcount_singleton")
    if library.headcount_get_singletons(node.handle, records, room, number) < 0 then return {} end
    if number[0] <= room then return list(number[0], records, singleton_table) end
    room = tonumber(number[0]) + 8
  end
end

return function()
  local snapshot = ffi.new("headcount_snapshot", { struct_size = ffi.sizeof("headcount_snapshot") })
  local generation_room, process_room = GENERATIONS, PROCESSES
  local generations, processes
  repeat
    generations, processes = GENERATION_LIST(generation_room), PROCESS_LIST(process_room)
    generations[0].struct_size, processes[0].struct_size = GENERATION_SIZE, PROCESS_SIZE
    local code = library.headcount_get_snapshot(node.handle, snapshot, generations, generation_room,
      processes, process_room)
    if code < 0 then return nil, node.last_error() end
    local fits = snapshot.generations <= generation_room and snapshot.processes <= process_room
    -- Somebody may join meanwhile.
    generation_room, process_room = tonumber(snapshot.generations) + 8, tonumber(snapshot.processes) + 16
  until fits
  return {
    node = node.name,
    path = node.path,
    head = tonumber(snapshot.head),
    total = snapshot.total,
    sentinel = snapshot.sentinel ~= 0 and snapshot.sentinel or nil,
    holder = holder_table(snapshot),
    generations = list(snapshot.generations, generations, generation_table),
    processes = list(snapshot.processes, processes, process_table),
    singletons = all_singletons(),
  }
end
