-- Put items into a data queue: behind all that wait, or among the delayed.
--
-- KEYS[1] = B, the queue's name: {P:data:NAME}, or {P:data:NAME}:dead of its dead items
--   B:waiting  list of entries, the next to be given out first. An entry is "ID JSON"; one that
--              was given out before is "ID.USED.ATTEMPTS.KEEP.TOKEN[.MORE] JSON": see data_get
--   B:delayed  sorted set of entries, by when they are due, in microseconds
--   B:wake     list of at most one token: who waits for items looks again
-- ARGV: the delay in microseconds, then the entries

local waiting, delayed, wake = KEYS[1] .. ':waiting', KEYS[1] .. ':delayed', KEYS[1] .. ':wake'
local delay = tonumber(ARGV[1])
local is_next = true

if delay == 0 then
    redis.call('RPUSH', waiting, unpack(ARGV, 2))
else
    local time = redis.call('TIME')
    local due = string.format('%.0f', time[1] * 1000000 + time[2] + delay)
    local dues = {}
    for i = 2, #ARGV do
        dues[#dues + 1] = due
        dues[#dues + 1] = ARGV[i]
    end
    redis.call('ZADD', delayed, unpack(dues))
    -- Who waits knows of all that are due before.
    is_next = tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]) == tonumber(due)
end
if is_next and redis.call('EXISTS', wake) == 0 then
    redis.call('RPUSH', wake, 1)
end
return #ARGV - 1
