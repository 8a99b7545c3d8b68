-- Counts the jobs of a queue.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs   HASH  id -> payload, of all jobs that have not ended
-- root:due    ZSET  id by the milliseconds since 1970 at which it may run
-- root:run    ZSET  id by the milliseconds since 1970 at which its lease is over
--
-- Returns how many wait, how many are of the future, and how many run.

local root = KEYS[1]
local all, due = redis.call('HLEN', root .. ':jobs'), redis.call('ZCARD', root .. ':due')
local run = redis.call('ZCARD', root .. ':run')
return {all - due - run, due, run}
