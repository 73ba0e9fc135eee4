-- KEYS: keys to age; ARGV[1]: milliseconds by which their deadlines come nearer; ARGV[2]: 1 where hash fields have TTLs.
-- A deadline that would be in the past becomes one in 1 ms, so that the key takes the server's own expiry path (event
-- "expired") and not the deletion that a past deadline means (event "del").
-- Returns the keys, and {key, field} pairs, that are about to expire. PEXPIRETIME is 7.0+: 6.2 computes it from PTTL.
local delta = tonumber(ARGV[1])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local dying = {}

local function age(left)
  if left - delta < 1 then return now + 1, true end
  return now + left - delta, false
end

for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    local at, dies = age(left)
    redis.call('PEXPIREAT', key, string.format('%.0f', at))
    if dies then dying[#dying + 1] = {key} end
  end
  if ARGV[2] == '1' and redis.call('TYPE', key).ok == 'hash' then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local field_left = redis.call('HPTTL', key, 'FIELDS', 1, field)[1]
      if field_left >= 0 then
        local at, dies = age(field_left)
        redis.call('HPEXPIREAT', key, string.format('%.0f', at), 'FIELDS', 1, field)
        if dies then dying[#dying + 1] = {key, field} end
      end
    end
  end
end
return dying
