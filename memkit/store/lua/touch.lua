-- Renews the deadline and changes nothing else: version and policy stay as they were written. Needs no memory, so that
-- a read that renews works when memory is full. Answers the milliseconds left, then what every write does.
local h = read()
if not h then return GONE end
if h.err then return h end
local longer = renew(h)
return whole(redis.call('PTTL', key)) .. ' ' .. reply(h, h.version, longer)
