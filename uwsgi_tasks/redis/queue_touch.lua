-- Extends the leases of jobs that a worker runs.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:own    HASH  id -> token of the claim by which it runs, with a "!" if it runs alone
-- root:run    ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:more   HASH  "s:id" -> 1 if it was asked to stop, 2 if it is to be killed
--
-- ARGV: id, token, lease in milliseconds, id, token, lease, ...; a "!" behind a token says that from now on it is the only
-- one that its worker runs.
-- Returns a number for each: what it was asked for, or -1 if it is not the caller's any more.

local root = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answers = {}
for index = 1, #ARGV, 3 do
    local id, token, lease = ARGV[index], ARGV[index + 1], tonumber(ARGV[index + 2])
    local own = redis.call('HGET', root .. ':own', id)
    local is_alone = own and own .. '!' == token
    if own == token or own == token .. '!' or is_alone then
        -- Taken away first: a Redis that is full refuses a script that begins by adding.
        redis.call('ZREM', root .. ':run', id)
        redis.call('ZADD', root .. ':run', now + lease, id)
        if is_alone then redis.call('HSET', root .. ':own', id, token) end
        answers[#answers + 1] = tonumber(redis.call('HGET', root .. ':more', 's:' .. id) or 0)
    else
        answers[#answers + 1] = -1
    end
end
return answers
