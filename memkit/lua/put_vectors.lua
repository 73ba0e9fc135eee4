-- Stores vectors beside the session. ARGV[6]: this call's nonce; [7]: the bytes.
local h = read()
if not h then return reply('gone', 0) end
if h.err then return redis.error_reply(h.err) end
if done_before(h, ARGV[6]) then return reply('ok', done_before(h, ARGV[6]), h) end
local kept = renew(h)
h.version, h.vectors = h.version + 1, '1'
remember(h, ARGV[6], h.version)
-- PX here too, so that a denied PEXPIRE cannot leave vectors that never die.
local left = redis.call('PTTL', key)
if left > 0 then redis.call('SET', vectors_key, ARGV[7], 'PX', left) else redis.call('SET', vectors_key, ARGV[7]) end
redis.call('LSET', key, 0, header(h))
return reply('ok', h.version, h, kept)
