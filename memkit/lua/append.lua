-- Adds messages that are not there yet. ARGV[6]: create a missing session (0/1); [7]: its birth mark; [8], [9]: the birth
-- mark and version that the caller last saw: its own messages cannot be among elements up to that version, so that only
-- newer ones are searched; [10...]: id, mark and JSON, in turn.
-- Among the last 1,024 messages an id is stored once: a call that is sent again adds nothing (windows of 4 and 64 still
-- doubled messages under dropped replies; 1,024 did not).
local WINDOW, PORTION = 1024, 64

local h = read()
if h and h.err then return redis.error_reply(h.err) end
if not h and ARGV[6] == '0' then return reply('gone', 0) end
h = h or fresh(ARGV[7])

local wanted = {}
for i = 10, #ARGV, 2 do wanted[ARGV[i]] = true end
local found, found_version = {}, 0

local function search(until_version)
  local done, last = 0, math.min(WINDOW, h.length)
  while done < last do
    local raws = redis.call('LRANGE', key, -math.min(done + PORTION, last), -done - 1)
    for i = #raws, 1, -1 do
      local id, version = element(raws[i])
      if not id then return 'MEMKIT element ' .. h.length - done + i - #raws end
      if version <= until_version then return end
      if wanted[id] then found[id], found_version = true, math.max(found_version, version) end
    end
    done = done + #raws
  end
end

if h.length > 0 then
  local seen = (ARGV[8] == h.born and tonumber(ARGV[9]) <= h.version) and tonumber(ARGV[9]) or 0
  if h.last > seen then
    local damaged = search(seen)
    if damaged then return redis.error_reply(damaged) end
  end
end

local version, elements = h.version + 1, {}
for i = 10, #ARGV, 2 do
  local id = ARGV[i]
  local replaced = done_before(h, id) -- added, and then replaced by somebody's save: not to be added again
  if replaced then found_version = math.max(found_version, replaced) end
  if not found[id] and not replaced then
    found[id] = true
    elements[#elements + 1] = stamp(id, version, ARGV[i + 1])
  end
end

local kept, adopted = renew(h)
if #elements > 0 then h.version = version end
if h.new then
  push({header(h)})
elseif adopted then
  redis.call('LSET', key, 0, header(h))
end
push(elements)
finish(h)
return reply('ok', #elements > 0 and version or (found_version > 0 and found_version or h.version), h, kept)
