-- Takes a job away that waits, or asks one that runs to stop.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs   HASH  id -> payload, of all jobs that have not ended
-- root:own    HASH  id -> token of the claim by which it runs
-- root:due    ZSET  id by the milliseconds since 1970 at which it may run
-- root:more   HASH  "o:id", "c:id", "p:id", "u:id" -> what else is known of it; "s:id" -> what it was asked for
--
-- ARGV: the id; 1 to ask it to stop, 2 to kill it.
-- Returns nothing if it is not here; else 1 if it runs, 0 if it is gone now; and its payload.
-- What is gone is still in a list of ids that are ready: whoever takes it from there finds no payload.

local root, id, stop = KEYS[1], ARGV[1], tonumber(ARGV[2])
local payload = redis.call('HGET', root .. ':jobs', id)
if not payload then return nil end
if redis.call('HEXISTS', root .. ':own', id) == 1 then
    local before = tonumber(redis.call('HGET', root .. ':more', 's:' .. id) or 0)
    -- Taken away first: a Redis that is full refuses a script that begins by adding.
    redis.call('HDEL', root .. ':more', 's:' .. id)
    redis.call('HSET', root .. ':more', 's:' .. id, math.max(before, stop))
    return {1, payload}
end
redis.call('HDEL', root .. ':jobs', id)
redis.call('ZREM', root .. ':due', id)
redis.call('HDEL', root .. ':more', 'o:' .. id, 'c:' .. id, 's:' .. id, 'p:' .. id, 'u:' .. id)
return {0, payload}
