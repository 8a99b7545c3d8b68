-- Takes a dead letter away.
--
-- KEYS[1]             the root of the dead letters, {uwsgi_tasks:dead}; each key begins with it
-- root:letter:ID      HASH  field of a DeadLetter -> its value
-- root:all            ZSET  id by the time at which it failed, of all
-- root:task:TASK      ZSET  the same, of one task
--
-- ARGV: id; not if it has failed later than this, in seconds since 1970
-- Returns 0 if it is not there, or came later.

local root, id, latest = KEYS[1], ARGV[1], ARGV[2]
local letter = root .. ':letter:' .. id
local known = redis.call('HMGET', letter, 'task', 'failed_at')
if not known[1] or tonumber(known[2]) > tonumber(latest) then return 0 end
redis.call('DEL', letter)
redis.call('ZREM', root .. ':all', id)
redis.call('ZREM', root .. ':task:' .. known[1], id)
return 1
