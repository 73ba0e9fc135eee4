-- The usual append, in front because it is the most frequent call: one element to a session that has not changed since
-- the caller last saw it, has the store's own policy and no vectors. Anything else continues in append.lua; until then
-- nothing is written. (It takes half the time of the general way: measured.)
do
  local key, head, last = KEYS[1], redis.call('LINDEX', KEYS[1], '0'), redis.call('LINDEX', KEYS[1], '-1')
  if head and #ARGV == 6 and ARGV[5] ~= '' then
    local policy, kind, ttl, born, created, version, rest = string.match(head, '^{"memkit":1,"policy":'
      .. '"((%a+) ?(%d*)[^"]*)","born":"([^"]+)","created_ms":(%d+),"version":(%d+),"updated_ms":%d+,"(.)')
    local seen, ends = string.match(last, '^"[%w_-].......(%x+)%.'), string.byte(last, -1)
    if policy == ARGV[1] and seen and rest ~= 'v' and ARGV[5] == born .. ' ' .. seen and (ends == 125 or ends == 93)
      and string.sub(head, -8) == '"end":1}' and tonumber(seen, 16) >= tonumber(version) then
      local time = redis.call('TIME')
      local age = time[1] * 1000 + math.floor(time[2] / 1000) - created
      local want = kind == 'absolute' and ttl - age or tonumber(ttl)
      local left = want and redis.call('PTTL', key) or 0
      if left >= 0 then
        if want and left < want then
          -- As in admit(): refused if memory is full. If RPUSH is the first write, it is refused itself.
          redis.call('SETNX', key, '')
          redis.call('PEXPIRE', key, want)
        end
        local made = string.format('%x', tonumber(seen, 16) + 1)
        redis.call('RPUSH', key, '"' .. ARGV[3] .. made .. string.format('.%x",', math.max(0, age)) .. ARGV[6])
        return born .. ' ' .. made
      end
    end
  end
end
