-- Replaces the messages. Expected: see other(). ARGV[2...]: JSON of messages; one with its own id follows that id.
local PORTION, TRACES, COMPARED = 100, 64, 1000

local h = read(true)
if h and h.err then return h end
local before = h and done_before(h, nonce)
if before then return reply(h, before) end

-- Damage is not overwritten. The nonces of the newest appends are remembered, so that one that is sent again after this
-- save does not bring back what was replaced. Another call may add a message with the same own id again.
local length = h and redis.call('LLEN', key) - 1 or 0
local appends, traced = {}, nil

-- How many elements at the beginning are the same bytes in this call: usually most, because a dialogue grows at its end.
-- The server compares them, because a script pays 1.5 ns for each byte that it reads (see unfold). Comparing 333 elements
-- (3 MB) takes 30 % less time than writing them (measured).
local function unchanged()
  local times = {}
  for i = 1, math.min(length, #ARGV - 1, COMPARED) do
    local body = ARGV[i + 1]
    times[body] = (times[body] or 0) + 1
    if string.byte(body) ~= 91 or redis.call('LPOS', key, body, 'RANK', times[body]) ~= i then return i - 1 end
  end
  return math.min(length, #ARGV - 1, COMPARED)
end

local kept = unchanged()
for from = 1 + kept, length, PORTION do
  for i, raw in ipairs(redis.call('LRANGE', key, from, math.min(from + PORTION - 1, length))) do
    local version, call = element(raw)
    if not version then return {err = 'MEMKIT element ' .. from + i - 1} end
    if version ~= traced and call ~= NO_NONCE then
      appends[#appends + 1] = {call, version}
      traced = version
    end
    h.version = math.max(h.version, version)
  end
end

local conflict = other(h)
if conflict then return conflict end
h = h or fresh()
admit(h)
local longer = renew(h)
for i = math.max(1, #appends - TRACES + 1), #appends do remember(h, appends[i][1], appends[i][2]) end
h.version = h.version + 1
remember(h, nonce, h.version)
local head = header(h)
-- A command that is denied is called first without an effect, or before any other write.
if kept > 0 and length - kept <= math.min(1, #ARGV - 1 - kept) then
  -- The dialogue has grown: the elements that stay are neither written nor replicated again.
  local elements = elements_of(2 + kept, h, false, {}, {})
  local last = length > kept and table.remove(elements, 1)
  if #elements > 0 then
    redis.call('LSET', key, '0', h.head)
    push(elements)
  end
  if last then redis.call('LSET', key, length, last) end
  redis.call('LSET', key, '0', head)
else
  if not h.new then redis.call('LTRIM', key, '0', '-1') end
  local elements = elements_of(2, h, false, {}, {head})
  -- RPUSH first, then drop the old elements: the key and its deadline always exist.
  push(elements)
  if not h.new then redis.call('LTRIM', key, -#elements, -1) end
end
finish(h)
return reply(h, h.version, longer)
