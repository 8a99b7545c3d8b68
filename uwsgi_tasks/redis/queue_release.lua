-- Gives back jobs that a worker has claimed, and not run to their end.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:own            HASH  id -> token of the claim by which it runs, with a "!" if it runs alone
-- root:run            ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
-- root:more           HASH  "o:id" -> "lease|priority"; "u:id" -> since when its task was unknown
-- root:wake           LIST  a token for each sleeping worker that is to look
--
-- ARGV: milliseconds until it may run (0: at once, before all others of its priority); "unknown" if nobody here knows its
--       task, or ""; then id, token, id, token, ...
-- Returns for each: for how many milliseconds its task has been unknown, or 0; -1 if it is not the caller's any more.

local root, delay, reason = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answers, count = {}, 0
-- The last one first, so that they stand in their order again.
for index = #ARGV - 1, 3, -2 do
    local id, token = ARGV[index], ARGV[index + 1]
    local own = redis.call('HGET', root .. ':own', id)
    local answer = -1
    if own == token or own == token .. '!' then
        answer = 0
        redis.call('HDEL', root .. ':own', id)
        redis.call('ZREM', root .. ':run', id)
        if reason == 'unknown' then
            redis.call('HSETNX', root .. ':more', 'u:' .. id, now)
            answer = now - tonumber(redis.call('HGET', root .. ':more', 'u:' .. id))
        end
        if delay > 0 then
            redis.call('ZADD', root .. ':due', now + delay, id)
        else
            local option = redis.call('HGET', root .. ':more', 'o:' .. id)
            local priority = option and string.match(option, '|(%d)$') or '9'
            redis.call('LPUSH', root .. ':ready:' .. priority, id)
        end
        count = count + 1
    end
    table.insert(answers, 1, answer)
end
if count > 0 and redis.call('LLEN', root .. ':wake') < 8 then
    redis.call('RPUSH', root .. ':wake', '1')
end
return answers
