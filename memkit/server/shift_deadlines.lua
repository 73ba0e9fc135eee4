-- KEYS: keys to shift; ARGV[1]: milliseconds by which their deadlines move; ARGV[2]: 1 if hash fields have TTLs;
-- ARGV[3]: LAST. A deadline that would be in the past is set to LAST milliseconds from now, unless it is nearer already:
-- the key then expires (event "expired"); a past deadline would delete it (event "del"). 1 ms is past: the clock of 6.2
-- and 7.0 advances within a script. For the same reason everything is relative: PTTL, then PEXPIRE.
-- Returns the keys, and {key, field} pairs, that are about to expire.
local PAST = 2
local delta, LAST = tonumber(ARGV[1]), tonumber(ARGV[3])
local expiring = {}

local function shifted(left, name)
  local now_left = left - delta
  if now_left > PAST then return string.format('%.0f', now_left) end
  expiring[#expiring + 1] = name
  return math.max(PAST, math.min(left, LAST))
end

for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, shifted(left, {key})) end
  if ARGV[2] == '1' and redis.call('TYPE', key).ok == 'hash' then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local field_left = redis.call('HPTTL', key, 'FIELDS', 1, field)[1]
      if field_left >= 0 then
        redis.call('HPEXPIRE', key, shifted(field_left, {key, field}), 'FIELDS', 1, field)
      end
    end
  end
end
return expiring
