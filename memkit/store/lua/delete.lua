-- Removes a session and its vectors, a damaged session too; a foreign key is refused. Expected: the "born" of the
-- session, "" for any: a call that is sent again does not remove a session that was created in between.
local head = redis.call('LINDEX', key, '0')
if not head then return '' end
if not string.find(head, '^{"memkit":%d+,') then return {err = 'MEMKIT foreign'} end
if expected ~= '' and not string.find(head, '"born":"' .. expected .. '",', 1, true) then return '' end
if string.find(head, '"vectors":1,', 1, true) and own_vectors() then redis.call('DEL', vectors_key) end
redis.call('DEL', key)
return ''
