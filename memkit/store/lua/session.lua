-- In front of every script of the store. KEYS[1] is the session.
-- ARGV[1], one argument because each takes a client 0.7 us: this call's nonce; the store's policy as stored in a header,
-- after a "!" if it may shorten TTLs; on the next line what the call expects of the session; on the rest the key of the
-- session's vectors, in the same slot. It is not KEYS[2], so that an application without vectors needs rights on its
-- sessions' keys only. [2...]: contents.
local key = KEYS[1]
local nonce, may_shorten, policy, kind, ttl, expected, vectors_key =
  string.match(ARGV[1], '^(........)(!?)((%l+) ?(%d*)[ reads]*)\n([^\n]*)\n(.*)$')
local store = {policy = policy, kind = kind, ttl = tonumber(ttl), may_shorten = may_shorten == '!'}
local HEADER = '^{"memkit":1,"policy":"((%l+) ?(%d*)[ reads]*)","born":"([%w_-]+)","created_ms":(%d+),"version":(%d+),'
  .. '"updated_ms":%d+,()'
local HAS_TTL = {sliding = true, absolute = true, never = false} -- the kinds of policy
local KEPT_CALLS, NONCE, CALL = 255, 8, 16
local NO_NONCE = '........' -- in the stamps of a save
local ELEMENT = '^"([%w._-][%w._-][%w._-][%w._-][%w._-][%w._-][%w._-][%w._-])(%x+)%.%x+(%.?[%w_-]*)",(.)'
local MARK = 'memkit1 float32 ' -- in front of vectors
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(n) return string.format('%.0f', n) end

-- An element's version (0 for a save's list), the nonce of the call that added it, the message's own id (''); nil for
-- anything else.
local function element(raw)
  local from, closes = string.byte(raw, 1), string.byte(raw, -1)
  if from == 91 then return closes == 93 and 0 or nil, NO_NONCE, '' end -- [ and ]
  local call, version, own, opens = string.match(raw, ELEMENT)
  -- A message, a list of them, or a string.
  if version and (opens == '{' and closes == 125 or opens == '[' and closes == 93 or opens == '"' and closes == 34) then
    return tonumber(version, 16), call, own
  end
end

-- The reply if the expected version is not that of this session; otherwise nil. Expected is "", any; 0: it must not
-- exist; a version, or "version born".
local function other(h)
  local wanted, born = string.match(expected, '^(%d+) ?(%S*)$')
  if not wanted then return nil end
  local version = h and h.version or 0
  if tonumber(wanted) == version and (born == '' or not h or born == h.born) then return nil end
  return string.format('!conflict %x', version)
end

local function damaged(head)
  local schema = string.match(head, '^{"memkit":(%d+),')
  if not schema then return {err = 'MEMKIT foreign'} end
  return {err = schema == '1' and 'MEMKIT header' or 'MEMKIT schema ' .. schema}
end

-- The header as a table, nil without a session, or an error reply (err) for a foreign or damaged key. alone: the caller
-- reads every element, and their versions, itself.
local function read(alone)
  local head = redis.call('LINDEX', key, '0')
  if not head then return nil end
  local policy, kind, ttl, born, created, version, tail = string.match(head, HEADER)
  if not policy or HAS_TTL[kind] ~= (ttl ~= '') or string.sub(head, -8) ~= '"end":1}' then return damaged(head) end
  local h = {head = head, tail = tail, policy = policy, kind = kind, ttl = tonumber(ttl), born = born,
    created = created, version = tonumber(version), vectors = string.sub(head, tail, tail + 11) == '"vectors":1,'}
  local last = not alone and redis.call('LINDEX', key, '-1')
  if last and last ~= head then
    local last_version = element(last)
    if not last_version then return {err = 'MEMKIT element -1'} end
    h.version = math.max(h.version, last_version)
  end
  return h
end

local function fresh()
  return {policy = store.policy, kind = store.kind, ttl = store.ttl, born = nonce, created = whole(now), version = 0,
    vectors = false, head = '', calls_from = 1, calls_to = 0, added = '', rest = '"end":1}', new = true}
end

-- Finds what follows the header's first fields; most appends do not need it. Large strings are rarely copied, because
-- Redis's Lua hashes every byte of each (1.5 ns a byte from 7.0 on, measured).
local function unfold(h)
  if h.rest then return end
  local from = h.tail + (h.vectors and 12 or 0)
  h.calls_from, h.calls_to, h.added = from, from - 1, ''
  if string.sub(h.head, from, from + 8) == '"calls":"' then
    h.calls_from, h.calls_to = from + 9, string.find(h.head, '"', from + 9, true) - 1
    from = h.calls_to + 3
  end
  h.rest = string.sub(h.head, from)
end

local function header(h)
  unfold(h)
  local over = math.max(0, h.calls_to - h.calls_from + 1 + #h.added - KEPT_CALLS * CALL)
  local calls = string.sub(h.head, h.calls_from + over, h.calls_to)
  local some = calls ~= '' or h.added ~= ''
  return '{"memkit":1,"policy":"' .. h.policy .. '","born":"' .. h.born .. '","created_ms":' .. h.created
    .. ',"version":' .. whole(h.version) .. ',"updated_ms":' .. whole(now) .. (h.vectors and ',"vectors":1,' or ',')
    .. (some and '"calls":"' or '') .. calls .. h.added .. (some and '",' or '') .. h.rest
end

-- The version of a call that is sent again, for the same reply; otherwise nil or false.
local function done_before(h, call)
  unfold(h)
  local at = string.find(h.head, call, h.calls_from, true)
  return at and at <= h.calls_to and tonumber(string.sub(h.head, at + NONCE, at + CALL - 1), 16)
end

local function remember(h, call, version)
  unfold(h)
  h.added = h.added .. call .. string.format('%08x', version)
end

-- Called before any other write, because scripts do not roll back. It changes nothing, and is refused if memory is full;
-- PEXPIRE would not be refused, and once a script has written, Redis allows the rest of it. (SETNX on an existing key
-- is never an error, whatever its type.)
local function admit(h)
  if h.new then redis.call('RPUSHX', key, '') else redis.call('SETNX', key, '') end
end

-- Whether the vectors' key has memkit's vectors; another application's key there, of any type, is left unchanged.
local function own_vectors()
  local mark = redis.pcall('GETRANGE', vectors_key, '0', tostring(#MARK - 1))
  if type(mark) == 'table' and not string.find(mark.err, 'WRONGTYPE', 1, true) then
    redis.call('GETRANGE', vectors_key, '0', '0') -- if it is denied, raise the error before anything is written
  end
  return mark == MARK
end

-- The TTL in milliseconds that a policy gives a session from now on; nil: it never expires.
local function lifetime_ms(kind, ttl, created)
  return ttl and kind == 'absolute' and tonumber(created) + ttl - now or ttl
end

-- Sets the deadline of an existing session under this store's policy.
local function settle(h)
  local ttl, may_shorten = store.ttl, store.may_shorten
  local left, same = redis.call('PTTL', key), store.policy == h.policy
  local longer = not same and ttl and (not h.ttl or h.ttl > ttl) and not may_shorten
  -- A store with the policy never does not change an existing deadline.
  local adopted = not same and not longer and (ttl or may_shorten)
  if adopted then h.policy, h.kind, h.ttl = store.policy, store.kind, ttl end
  local want = lifetime_ms(store.kind, ttl, h.created)
  if left == -1 and h.ttl then -- its deadline was removed: set it again, and never one that has passed
    want = lifetime_ms(h.kind, h.ttl, h.created)
    if want <= 0 then want = h.ttl end
    redis.call('PEXPIRE', key, whole(want))
  elseif want and (may_shorten or left >= 0 and want > left) then
    redis.call('PEXPIRE', key, whole(math.max(1, want)))
  elseif adopted and not ttl then
    redis.call('PERSIST', key)
  end
  return longer, adopted
end

-- Renews an existing session and adopts the store's policy, or keeps the longer one: a write never shortens a TTL unless
-- the store may. Called before anything else is written, so that a denied PEXPIRE leaves the session unchanged; a new
-- session gets its deadline in finish(), and PEXPIRE is only tried here.
-- Returns whether the header's longer policy was kept, so that the client can warn; and whether the header changed.
local function renew(h)
  if h.new then
    if h.ttl then redis.call('PEXPIRE', key, whole(h.ttl)) end
    return false, false
  end
  local vectors = h.vectors and own_vectors()
  local longer, adopted = settle(h)
  if vectors then -- their deadline is always the session's
    local left = redis.call('PTTL', key)
    if left >= 0 then redis.call('PEXPIRE', vectors_key, math.max(1, left)) else redis.call('PERSIST', vectors_key) end
  end
  return longer, adopted
end

local function finish(h)
  if h.new and h.ttl then redis.call('PEXPIRE', key, whole(h.ttl)) end
end

-- Adds ARGV[from...] as elements to those given. append: all with this call's nonce, and each own id once; otherwise as
-- in a save. skip: own ids that are stored already.
local function elements_of(from, h, append, skip, elements)
  local stamp = '"' .. (append and nonce or NO_NONCE) .. string.format('%x.%x', h.version, math.max(0, now - h.created))
  local front = stamp .. '",'
  local i = from
  while i <= #ARGV do
    local own = string.byte(ARGV[i]) == 46 and ARGV[i] -- "."
    if not own then
      elements[#elements + 1] = append and front .. ARGV[i] or ARGV[i]
    else
      i = i + 1
      if not skip[own] then elements[#elements + 1] = stamp .. own .. '",' .. ARGV[i] end
      if append then skip[own] = skip[own] or h.version end
    end
    i = i + 1
  end
  return elements
end

-- RPUSH in portions: unpack fails near 8,000.
local function push(elements)
  for from = 1, #elements, 1000 do
    redis.call('RPUSH', key, unpack(elements, from, math.min(from + 999, #elements)))
  end
end

-- "born version" (hex), which the client may send back with an append; and the header's policy if it was kept.
local function reply(h, version, longer)
  return h.born .. string.format(' %x', version) .. (longer and ' ' .. h.policy or '')
end

local NOT_FOUND = '!not_found'
