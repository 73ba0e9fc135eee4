-- Adds messages that are not stored yet. Expected: "born version" that the caller last saw, "" for none: its messages
-- are not in elements up to that version, so that only newer ones are searched; before a "!": only to an existing session.
-- ARGV[2...]: JSON of messages; one with its own id follows that id.
-- Within the last 1,024 elements (and as many more as this call adds) an id is stored once: a call that is sent again
-- adds nothing. With windows of 4 and 64, lost replies still caused duplicates; with 1,024 they did not (measured).
local WINDOW, PORTION = 1024, 64

local h = read()
if not h then
  if string.byte(expected, -1) == 33 then return NOT_FOUND end
  h = fresh()
end
if h.err then return h end

local found = {} -- nonces and own ids, and the version that added each

local function search(seen)
  local done, last, portion = 0, math.min(WINDOW + #ARGV - 2, redis.call('LLEN', key) - 1), 4
  while done < last do
    local raws = redis.call('LRANGE', key, -math.min(done + portion, last), -done - 1)
    for i = #raws, 1, -1 do
      local version, call, own = element(raws[i])
      if not version then return {err = 'MEMKIT element ' .. -(done + #raws - i + 1)} end
      if version > 0 and version <= seen then return end
      found[call], found[own] = found[call] or version, found[own] or version
    end
    done, portion = done + #raws, PORTION
  end
end

-- Usually no other client has written since, and there is nothing to search.
local born, seen = string.match(expected, '^(%S+) (%x+)!?$')
if not h.new and not (born == h.born and tonumber(seen, 16) == h.version) then
  seen = seen and tonumber(seen, 16)
  local err = search(born == h.born and seen <= h.version and seen or 0)
  if err then return err end
  -- This call itself; or its nonce in the header, if a save has replaced its messages.
  local before = found[nonce] or done_before(h, nonce)
  if before then return reply(h, before) end
end

h.version = h.version + 1
local elements = elements_of(2, h, true, found, h.new and {''} or {})
local answer = h.version
if #elements == 0 then -- all are stored: reply with the version that added them; the session's stays
  h.version, answer = h.version - 1, nil
  for i = 2, #ARGV, 2 do answer = math.max(answer or 0, found[ARGV[i]]) end
end
admit(h)
local longer, adopted = renew(h)
if h.new then
  elements[1] = header(h)
elseif adopted then
  redis.call('LSET', key, 0, header(h))
end
push(elements)
finish(h)
return reply(h, answer or h.version, longer)
