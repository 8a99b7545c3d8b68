-- Gives a lease back.
--
-- KEYS[1]             the root of the leases, {uwsgi_tasks:lease}; each key begins with it
-- root:name:NAME      HASH  owner, due in microseconds since 1970, extended as 0 or 1; expires
-- root:owner:OWNER    ZSET  the names of its leases by when they are due; expires with the last
--
-- ARGV: name; owner
-- Returns 0 if it was lost, or is due.

local root, name, owner = KEYS[1], ARGV[1], ARGV[2]
local lease, owned = root .. ':name:' .. name, root .. ':owner:' .. owner
local time = redis.call('TIME')
local now = time[1] * 1e6 + time[2]
local known = redis.call('HMGET', lease, 'owner', 'due')
if known[1] ~= owner or tonumber(known[2]) <= now then return 0 end

redis.call('DEL', lease)
redis.call('ZREM', owned, name)
return 1
