-- Deletes old counts. All else expires by itself.
--
-- KEYS[1]             the root of the counts, {uwsgi_tasks:counts}; each key begins with it
-- root:minutes        ZSET  minutes of which something is counted, each by itself
-- root:MINUTE         HASH  "length of task:task outcome", without the space -> "runs seconds slowest"
--
-- ARGV: of minutes before this one; how many counts at most
-- Returns how many it were.

local root, before, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local minutes = redis.call('ZRANGEBYSCORE', root .. ':minutes', '-inf', '(' .. before, 'LIMIT', 0, limit)
local count = 0
for _, minute in ipairs(minutes) do
    local key = root .. ':' .. minute
    local fields = redis.call('HKEYS', key)
    for index = 1, math.min(#fields, limit - count) do
        redis.call('HDEL', key, fields[index])
    end
    local deleted = math.min(#fields, limit - count)
    count = count + deleted
    if deleted < #fields then break end
    redis.call('ZREM', root .. ':minutes', minute)
end
return count
