-- Keeps a dead letter, instead of an older one of the same id.
--
-- KEYS[1]             the root of the dead letters, {uwsgi_tasks:dead}; each key begins with it
-- root:letter:ID      HASH  field of a DeadLetter -> its value
-- root:all            ZSET  id by the time at which it failed, of all
-- root:task:TASK      ZSET  the same, of one task
--
-- ARGV: id; task; when it failed, in seconds since 1970; then field, value, field, value, ...

local root, id, task, failed_at = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local letter = root .. ':letter:' .. id
local before = redis.call('HGET', letter, 'task')
-- This first: Redis has a script that has begun to write go on, though its memory is full.
redis.call('HSET', letter, unpack(ARGV, 4))
redis.call('ZADD', root .. ':all', failed_at, id)
redis.call('ZADD', root .. ':task:' .. task, failed_at, id)
if before and before ~= task then redis.call('ZREM', root .. ':task:' .. before, id) end
return 1
