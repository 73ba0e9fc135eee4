-- Replaces the dialogue. ARGV[6]: the version it must have ("": any; 0: no such session); [7]: birth mark of a new one;
-- [8]: this call's nonce; [9...]: id, mark and JSON, in turn.
local REMEMBERED = 64

local h = read()
if h and h.err then return redis.error_reply(h.err) end
if h and done_before(h, ARGV[8]) then return reply('ok', done_before(h, ARGV[8]), h) end
if ARGV[6] ~= '' and tonumber(ARGV[6]) ~= (h and h.version or 0) then return reply('conflict', h and h.version or 0, h) end
h = h or fresh(ARGV[7])

-- What is damaged is not overwritten. The ids of the newest replaced messages are remembered, so that an append of one
-- of them that is sent again after this save does not bring it back.
local old = h.length > 0 and redis.call('LRANGE', key, 1, -1) or {}
for i, raw in ipairs(old) do
  local id, version = element(raw)
  if not id then return redis.error_reply('MEMKIT element ' .. i) end
  if i > #old - REMEMBERED and string.sub(id, 1, 1) ~= '.' then remember(h, id, version) end
end

local kept = renew(h)
h.version = h.version + 1
remember(h, ARGV[8], h.version)
local elements = {header(h)}
for i = 9, #ARGV, 2 do elements[#elements + 1] = stamp(ARGV[i], h.version, ARGV[i + 1]) end
-- RPUSH first, then drop the old front: refused whole when memory is full, and the key, with its deadline, never vanishes.
push(elements)
if not h.new then redis.call('LTRIM', key, -#elements, -1) end
finish(h)
return reply('ok', h.version, h, kept)
