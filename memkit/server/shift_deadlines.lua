-- KEYS: keys to age; ARGV[1]: milliseconds by which their deadlines come nearer; ARGV[2]: 1 where hash fields have TTLs.
-- A deadline that would be in the past becomes one in LAST milliseconds, so that the key takes the server's own expiry
-- path (event "expired") and not the deletion that a past deadline means (event "del"). One would not do: the clock of
-- 6.2 and 7.0 goes on within a script. For the same reason all is relative: PTTL, then PEXPIRE.
-- Returns the keys, and {key, field} pairs, that are about to expire.
local LAST = 2
local delta = tonumber(ARGV[1])
local dying = {}

local function age(left, victim)
  local now_left = left - delta
  if now_left > LAST then return string.format('%.0f', now_left) end
  dying[#dying + 1] = victim
  return LAST
end

for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, age(left, {key})) end
  if ARGV[2] == '1' and redis.call('TYPE', key).ok == 'hash' then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local field_left = redis.call('HPTTL', key, 'FIELDS', 1, field)[1]
      if field_left >= 0 then
        redis.call('HPEXPIRE', key, age(field_left, {key, field}), 'FIELDS', 1, field)
      end
    end
  end
end
return dying
