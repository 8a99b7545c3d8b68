-- Gives all leases of an owner back.
--
-- KEYS[1]             the root of the leases, {uwsgi_tasks:lease}; each key begins with it
-- root:name:NAME      HASH  owner, due in microseconds since 1970, extended as 0 or 1; expires
-- root:owner:OWNER    ZSET  the names of its leases by when they are due; expires with the last
--
-- ARGV: owner
-- Returns how many there were.

local root, owner = KEYS[1], ARGV[1]
local owned = root .. ':owner:' .. owner
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1e6 + time[2])
local count = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', owned, '(' .. now, '+inf')) do
    -- Nobody else has one that is not due.
    count = count + redis.call('DEL', root .. ':name:' .. name)
end
redis.call('DEL', owned)
return count
