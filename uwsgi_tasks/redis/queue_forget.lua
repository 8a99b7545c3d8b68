-- Forgets a job, whatever it is doing: what runs is its worker's no more, and how it ends counts for nothing.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs   HASH  id -> payload, of all jobs that have not ended
-- root:own    HASH  id -> token of the claim by which it runs
-- root:run    ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:due    ZSET  id by the milliseconds since 1970 at which it may run
-- root:more   HASH  what else is known of a job
--
-- ARGV: the id.
-- Returns 1 if it was here.

local root, id = KEYS[1], ARGV[1]
redis.call('HDEL', root .. ':own', id)
redis.call('ZREM', root .. ':run', id)
redis.call('ZREM', root .. ':due', id)
redis.call('HDEL', root .. ':more', 'o:' .. id, 'c:' .. id, 's:' .. id, 'p:' .. id, 'u:' .. id)
return redis.call('HDEL', root .. ':jobs', id)
