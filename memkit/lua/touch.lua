-- Renews the deadline and changes nothing else: version and policy stay as they were written.
local h = read()
if not h then return reply('gone', 0) end
if h.err then return redis.error_reply(h.err) end
local kept = renew(h)
finish(h)
return reply('ok', h.version, h, kept)
