-- Keeps a lease for longer.
--
-- KEYS[1]             the root of the leases, {uwsgi_tasks:lease}; each key begins with it
-- root:name:NAME      HASH  owner, due in microseconds since 1970, extended as 0 or 1; expires
-- root:owner:OWNER    ZSET  the names of its leases by when they are due; expires with the last
--
-- ARGV: name; owner; microseconds to live from now
-- Returns 0 if it was lost, or is due.

local root, name, owner, ttl = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, owned = root .. ':name:' .. name, root .. ':owner:' .. owner
local time = redis.call('TIME')
local now = time[1] * 1e6 + time[2]
local known = redis.call('HMGET', lease, 'owner', 'due')
if known[1] ~= owner or tonumber(known[2]) <= now then return 0 end

local due = string.format('%.0f', now + ttl)
local ends = string.format('%.0f', math.floor((now + ttl) / 1000) + 1)
redis.call('HSET', lease, 'due', due, 'extended', 1)
redis.call('PEXPIREAT', lease, ends)
redis.call('ZREMRANGEBYSCORE', owned, '-inf', string.format('%.0f', now))
redis.call('ZADD', owned, due, name)
local last = redis.call('ZRANGE', owned, -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', owned, string.format('%.0f', math.floor(last / 1000) + 1))
return 1
