-- Stores vectors with the session. ARGV[2]: their shape and bytes.
local h = read()
if not h then return NOT_FOUND end
if h.err then return h end
local before = done_before(h, nonce)
if before then return reply(h, before) end
if redis.call('EXISTS', vectors_key) == 1 and not own_vectors() then return {err = 'MEMKIT vectors'} end
admit(h)
local longer = renew(h)
h.version, h.vectors = h.version + 1, true
remember(h, nonce, h.version)
local head = header(h)
local vectors = MARK .. h.born .. ' ' .. ARGV[2]
-- PX here too, so that vectors never remain without a TTL.
local left = redis.call('PTTL', key)
if left >= 0 then
  redis.call('SET', vectors_key, vectors, 'PX', math.max(1, left))
else
  redis.call('SET', vectors_key, vectors)
end
redis.call('LSET', key, 0, head)
return reply(h, h.version, longer)
