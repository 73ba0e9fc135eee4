-- Removes a session and its vectors; a foreign key is left alone, a damaged session is not.
local head = redis.call('LINDEX', key, '0')
if not head then return GONE end
if not string.find(head, '^{"memkit":%d+,') then return {err = 'MEMKIT foreign'} end
if string.find(head, '"vectors":1,', 1, true) then redis.call('DEL', vectors_key) end
redis.call('DEL', key)
return ''
