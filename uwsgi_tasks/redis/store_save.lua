-- Remembers what is known of a job, instead of what was.
--
-- KEYS[1]             HASH  field of a Record -> its value, without those that are not known; expires
--
-- ARGV: milliseconds to live; what it was asked for, as a number; then field, value, field, value, ...
-- What is known of its end gives way to another end alone, and what it was asked for only to that.

local ENDS = {succeeded = true, failed = true, cancelled = true}
local key, ttl, stop = KEYS[1], ARGV[1], tonumber(ARGV[2])
local fields = {unpack(ARGV, 3)}

local given = {stop = stop}
for index = 1, #fields, 2 do given[fields[index]] = fields[index + 1] end
local known = redis.call('HMGET', key, 'state', 'stop')
if known[1] and not ENDS[given.state] then
    if ENDS[known[1]] then return 0 end
    stop = math.max(stop, tonumber(known[2]))
end
-- This first: Redis has a script that has begun to write go on, though its memory is full.
redis.call('HSET', key, 'stop', stop, unpack(fields))
if known[1] then
    for _, field in ipairs(redis.call('HKEYS', key)) do
        if not given[field] then redis.call('HDEL', key, field) end
    end
end
redis.call('PEXPIRE', key, ttl)
return 1
