-- Renews the deadline and changes nothing else: version and policy stay. Needs no memory, so that a read that renews
-- works if memory is full.
local h = read()
if not h then return NOT_FOUND end
if h.err then return h end
local longer = renew(h)
return reply(h, h.version, longer)
