-- Notes how far a running job has come, and says what it was asked for.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:own    HASH  id -> token of the claim by which it runs
-- root:more   HASH  "p:id" -> progress; "s:id" -> what it was asked for
--
-- ARGV: the id; its progress, or "" for none.
-- Returns what it was asked for (0, 1, 2).

local root, id, progress = KEYS[1], ARGV[1], ARGV[2]
if progress ~= '' and redis.call('HEXISTS', root .. ':own', id) == 1 then
    -- Taken away first: a Redis that is full refuses a script that begins by adding.
    redis.call('HDEL', root .. ':more', 'p:' .. id)
    redis.call('HSET', root .. ':more', 'p:' .. id, progress)
end
return tonumber(redis.call('HGET', root .. ':more', 's:' .. id) or 0)
