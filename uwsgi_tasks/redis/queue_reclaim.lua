-- Gives back the jobs that were claimed for a worker which was never told, because the answer was lost.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:own            HASH  id -> token of the claim by which it runs, with a "!" if it runs alone
-- root:run            ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:more           HASH  "o:id" -> "lease|priority"
-- root:wake           LIST  a token for each sleeping worker that is to look
--
-- ARGV: the tokens of the claims.
-- Returns how many were given back. Its cost grows with what all workers run, and not with what waits.

local root, wanted = KEYS[1], {}
for _, token in ipairs(ARGV) do
    wanted[token], wanted[token .. '!'] = true, true
end
local all, count = redis.call('HGETALL', root .. ':own'), 0
for index = 1, #all, 2 do
    local id = all[index]
    if wanted[all[index + 1]] then
        redis.call('HDEL', root .. ':own', id)
        redis.call('ZREM', root .. ':run', id)
        local option = redis.call('HGET', root .. ':more', 'o:' .. id)
        redis.call('LPUSH', root .. ':ready:' .. (option and string.match(option, '|(%d)$') or '9'), id)
        count = count + 1
    end
end
if count > 0 and redis.call('LLEN', root .. ':wake') < 8 then
    redis.call('RPUSH', root .. ':wake', '1')
end
return count
