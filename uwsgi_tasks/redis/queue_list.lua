-- Lists ids, to look at them: nothing changes.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:run            ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:suspects       LIST  ids whose worker has died
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
--
-- ARGV: which ("run", "suspects", "0" to "9", "due"); the first one, from 0; the last one.
-- Returns the ids.

local root, which, first, last = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if which == 'run' or which == 'due' then
    return redis.call('ZRANGE', root .. ':' .. which, first, last)
elseif which == 'suspects' then
    return redis.call('LRANGE', root .. ':suspects', first, last)
end
return redis.call('LRANGE', root .. ':ready:' .. which, first, last)
