-- Changes summary and metadata. Expected: see other(). ARGV[2]: 0 leaves the summary, 1 sets it, 2 removes it; [3]: the
-- summary; [4...]: metadata: name, 1 (set) or 0 (remove), JSON, in turn.
local h = read()
if not h then return NOT_FOUND end
if h.err then return h end
local before = done_before(h, nonce)
if before then return reply(h, before) end
local conflict = other(h)
if conflict then return conflict end

local ok, rest = pcall(cjson.decode, '{' .. h.rest)
local metadata = ok and rest.metadata or {}
if not ok or type(metadata) ~= 'table' then return {err = 'MEMKIT header'} end
for i = 4, #ARGV, 3 do metadata[ARGV[i]] = ARGV[i + 1] == '1' and ARGV[i + 2] or nil end
local summary = rest.summary
if ARGV[2] == '1' then summary = ARGV[3] end
if ARGV[2] == '2' then summary = nil end
h.rest = (summary and '"summary":' .. cjson.encode(summary) .. ',' or '')
  .. (next(metadata) and '"metadata":' .. cjson.encode(metadata) .. ',' or '') .. '"end":1}'

admit(h)
local longer = renew(h)
h.version = h.version + 1
remember(h, nonce, h.version)
redis.call('LSET', key, 0, header(h))
return reply(h, h.version, longer)
