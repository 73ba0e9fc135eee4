-- The usual append, in front because it is the most frequent call: one element to a session that has not changed since
-- the caller last saw it, has the store's own policy and no vectors. Anything else continues in append.lua; until then
-- nothing is written. (It takes half the time of the general way: measured.)
do
  local key, call, find, format = KEYS[1], redis.call, string.find, string.format
  local head, last = call('LINDEX', key, '0'), call('LINDEX', key, '-1')
  if head and #ARGV == 2 then
    local _, _, policy, ttl, born, created, version, rest = find(head, '^{"memkit":1,"policy":"(%a+ ?(%d*)[^"]*)",'
      .. '"born":"([^"]+)","created_ms":(%d+),"version":(%d+),"updated_ms":%d+,"(.)')
    local _, at, seen = find(last, '^"[%w_-].......(%x+)%.')
    local ends, from, to = string.byte(last, -1)
    if at and born then from, to = find(ARGV[1], policy .. '\n' .. born .. ' ' .. seen, 9, true) end
    local after = from == 9 and string.byte(ARGV[1], to + 1)
    if (after == 10 or after == 33) and rest ~= 'v' and (ends == 125 or ends == 93)
      and string.sub(head, -8) == '"end":1}' then
      seen = tonumber(seen, 16)
      local time = call('TIME')
      local age = time[1] * 1000 + math.floor(time[2] / 1000) - created
      local want = string.byte(policy) == 97 and ttl - age or tonumber(ttl) -- a: absolute
      local left = want and call('PTTL', key) or 0
      if left >= 0 and seen >= tonumber(version) then
        if want and left < want then
          -- As in admit(): refused if memory is full. If RPUSH is the first write, it is refused itself.
          call('SETNX', key, '')
          call('PEXPIRE', key, want)
        end
        local made = format('%x', seen + 1)
        call('RPUSH', key, '"' .. string.sub(ARGV[1], 1, 8) .. made .. format('.%x",', math.max(0, age)) .. ARGV[2])
        return born .. ' ' .. made
      end
    end
  end
end
