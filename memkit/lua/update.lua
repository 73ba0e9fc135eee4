-- Changes summary and metadata. ARGV[6]: the version it must have ("": any); [7]: this call's nonce; [8]: 0 leave the
-- summary, 1 set it, 2 remove it; [9]: the summary; [10...]: metadata: name, 1 set or 0 remove, JSON text, in turn.
local h = read()
if not h then return reply('gone', 0) end
if h.err then return redis.error_reply(h.err) end
if done_before(h, ARGV[7]) then return reply('ok', done_before(h, ARGV[7]), h) end
if ARGV[6] ~= '' and tonumber(ARGV[6]) ~= h.version then return reply('conflict', h.version, h) end

local ok, rest = pcall(cjson.decode, '{' .. h.rest)
if not ok or type(rest.metadata) ~= 'table' then return redis.error_reply('MEMKIT header') end
for i = 10, #ARGV, 3 do rest.metadata[ARGV[i]] = ARGV[i + 1] == '1' and ARGV[i + 2] or nil end
if ARGV[8] == '1' then rest.summary = ARGV[9] end
if ARGV[8] == '2' then rest.summary = cjson.null end
h.rest = '"summary":' .. cjson.encode(rest.summary) .. ',"metadata":' .. cjson.encode(rest.metadata) .. ',"end":1}'

local kept = renew(h)
h.version = h.version + 1
remember(h, ARGV[7], h.version)
redis.call('LSET', key, 0, header(h))
finish(h)
return reply('ok', h.version, h, kept)
