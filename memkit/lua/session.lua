-- Shared by every script of the store; put in front of each. KEYS[1] is the session.
-- ARGV[1..4]: the store's policy: kind, ttl_ms ("null": never), refresh_on_read (0/1), shorten (0/1). ARGV[5]: the key
-- of the session's vectors, in the same slot; it is no KEYS[2], so that an application whose user may touch its sessions'
-- keys alone needs no more rights while it stores no vectors.
local key, vectors_key = KEYS[1], ARGV[5]
local policy = {kind = ARGV[1], ttl = tonumber(ARGV[2]), refresh = ARGV[3]}
local may_shorten = ARGV[4] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local HEADER = '^{"memkit":1,"policy":"(%a+)","ttl_ms":(%w+),"refresh_on_read":(%d),"born":"([%w_-]+)","version":(%d+),'
  .. '"created_ms":(%d+),"updated_ms":(%d+),"nonces":"([%w._-]*)","vectors":(%d),()"summary":'
local ELEMENT = '^(...........)(%x%x%x%x%x%x%x%x%x%x%x)(%x+)[ ~]{'
local KEPT_NONCES, NONCE_CHARS = 255, 19

local function whole(n) return string.format('%.0f', n) end

local function element(raw)
  local id, _, version = string.match(raw, ELEMENT)
  if not id or string.sub(raw, -1) ~= '}' then return nil end
  return id, tonumber(version, 16)
end

-- The header as a table, nil when there is no session, or an error reply (err) for a foreign or damaged key.
local function read()
  local head = redis.call('LINDEX', key, 0)
  if not head then return nil end
  local schema = string.match(head, '^{"memkit":(%d+),')
  if not schema then return {err = 'MEMKIT foreign'} end
  if schema ~= '1' then return {err = 'MEMKIT schema ' .. schema} end
  local kind, ttl, refresh, born, version, created, updated, nonces, vectors, rest = string.match(head, HEADER)
  if not kind or string.sub(head, -9) ~= ',"end":1}' then return {err = 'MEMKIT header'} end
  local h = {kind = kind, ttl = tonumber(ttl), refresh = refresh, born = born, version = tonumber(version),
    created = created, updated = updated, nonces = nonces, vectors = vectors, rest = string.sub(head, rest),
    length = redis.call('LLEN', key) - 1}
  if h.length > 0 then
    local _, last = element(redis.call('LINDEX', key, -1))
    if not last then return {err = 'MEMKIT element -1'} end
    h.last = last
    h.version = math.max(h.version, last)
  end
  return h
end

local function fresh(born)
  return {kind = policy.kind, ttl = policy.ttl, refresh = policy.refresh, born = born, version = 0, created = whole(now),
    nonces = '', vectors = '0', rest = '"summary":null,"metadata":{},"end":1}', length = 0, new = true}
end

local function header(h)
  return '{"memkit":1,"policy":"' .. h.kind .. '","ttl_ms":' .. (h.ttl and whole(h.ttl) or 'null')
    .. ',"refresh_on_read":' .. h.refresh .. ',"born":"' .. h.born .. '","version":' .. whole(h.version)
    .. ',"created_ms":' .. h.created .. ',"updated_ms":' .. whole(now) .. ',"nonces":"' .. h.nonces
    .. '","vectors":' .. h.vectors .. ',' .. h.rest
end

-- A call's nonce and the version it made: a call that is sent again is known by it, and answered as it was.
local function done_before(h, nonce)
  local at = string.find(h.nonces, nonce, 1, true)
  return at and tonumber(string.sub(h.nonces, at + 11, at + 18), 16)
end

local function remember(h, nonce, version)
  local nonces = h.nonces .. nonce .. string.format('%08x', version)
  h.nonces = string.sub(nonces, -KEPT_NONCES * NONCE_CHARS)
end

-- Milliseconds from now that a policy gives a session; nil for ever.
local function life(kind, ttl, created)
  if not ttl then return nil end
  return kind == 'absolute' and tonumber(created) + ttl - now or ttl
end

-- Renews a living session and adopts the store's policy, or keeps the longer one. A write never shortens a life unless
-- the store may. Called before anything else is written, so that a denied PEXPIRE leaves the session as it was; a session
-- that is not there yet gets its deadline in finish(), and PEXPIRE is only tried here. LMOVE onto itself changes nothing,
-- but is refused when memory is full: PEXPIRE is not, and after a first write a script is let through.
-- Returns the header's policy when it was longer and was kept, so that the client can warn; whether the header changed.
local function renew(h)
  redis.call('LMOVE', key, key, 'RIGHT', 'RIGHT')
  if h.new then
    if policy.ttl then redis.call('PEXPIRE', key, whole(policy.ttl)) end
    return false, false
  end
  local left = redis.call('PTTL', key)
  local same = h.kind == policy.kind and h.ttl == policy.ttl and h.refresh == policy.refresh
  local longer = not same and policy.ttl and (not h.ttl or h.ttl > policy.ttl) and not may_shorten
  local kept = longer and {h.kind, h.ttl and whole(h.ttl) or 'null', h.refresh}
  -- A store whose sessions never expire leaves a deadline that is there alone.
  local adopt = not same and not longer and (policy.ttl or may_shorten)
  if adopt then h.kind, h.ttl, h.refresh = policy.kind, policy.ttl, policy.refresh end
  local want = life(policy.kind, policy.ttl, h.created)
  if left == -1 and h.ttl then want = life(h.kind, h.ttl, h.created) end -- its deadline was lost: give it back
  if may_shorten and adopt and not want then redis.call('PERSIST', key) end
  local later = want and (want > left and left ~= -1 or left == -1 and h.ttl)
  if later or want and may_shorten then redis.call('PEXPIRE', key, whole(math.max(1, want))) end
  return kept, adopt
end

-- The deadline of a new session; and that of the vectors, which is always the session's.
local function finish(h)
  if h.new and h.ttl then redis.call('PEXPIRE', key, whole(h.ttl)) end
  if h.vectors ~= '1' then return end
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', vectors_key, left) else redis.call('PERSIST', vectors_key) end
end

-- RPUSH in portions: unpack has a limit near 8,000.
local function push(elements)
  for from = 1, #elements, 1000 do
    redis.call('RPUSH', key, unpack(elements, from, math.min(from + 999, #elements)))
  end
end

local function stamp(id, version, body)
  return id .. string.format('%011x', now) .. string.format('%x', version) .. body
end

local function reply(status, version, h, kept)
  return {status, version, h and h.born or '', kept or {}}
end
