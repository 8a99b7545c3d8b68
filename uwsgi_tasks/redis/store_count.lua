-- Adds counts to what was counted before: all of them, or none.
--
-- KEYS[1]             the root of the counts, {uwsgi_tasks:counts}; each key begins with it
-- root:minutes        ZSET  minutes of which something is counted, each by itself
-- root:MINUTE         HASH  "length of task:task outcome", without the space -> "runs seconds slowest"; expires
--
-- ARGV: seconds to live; then minute, field, runs, seconds, slowest, minute, ...

local root, ttl = KEYS[1], ARGV[1]
for index = 2, #ARGV, 5 do
    local minute, field = ARGV[index], ARGV[index + 1]
    local runs, seconds, slowest = tonumber(ARGV[index + 2]), tonumber(ARGV[index + 3]), tonumber(ARGV[index + 4])
    local key = root .. ':' .. minute
    local known = redis.call('HGET', key, field)
    if known then
        local former = {string.match(known, '(%S+) (%S+) (%S+)')}
        runs, seconds = runs + former[1], seconds + former[2]
        slowest = math.max(slowest, tonumber(former[3]))
    else
        redis.call('ZADD', root .. ':minutes', minute, minute)
    end
    redis.call('HSET', key, field, string.format('%.0f %.17g %.17g', runs, seconds, slowest))
    redis.call('EXPIRE', key, ttl)
end
-- Where nobody purges: the oldest minutes may have expired. So they are as few as they would be.
for _, minute in ipairs(redis.call('ZRANGE', root .. ':minutes', 0, 3)) do
    if redis.call('EXISTS', root .. ':' .. minute) == 0 then
        redis.call('ZREM', root .. ':minutes', minute)
    end
end
return 1
