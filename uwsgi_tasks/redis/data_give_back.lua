-- Give items back that are still held by the receipts given; no attempt is used up.
--
-- KEYS[1] = B, the queue's name
--   B:held     hash of entries, by receipt
--   B:leases   sorted set of the same receipts, by the end of their lease
--   B:waiting  list of entries: they become its first, in the order given
--   B:taken    how many have left B:waiting at its head
--   B:delayed  sorted set of entries, by when they are due, in microseconds
--   B:wake     list of at most one token: who waits for items looks again
-- ARGV: the delay in microseconds, then the receipts
-- Returns: those of them that hold nothing any more

local base = KEYS[1]
local held, leases = base .. ':held', base .. ':leases'
local waiting, taken = base .. ':waiting', base .. ':taken'
local delayed, wake = base .. ':delayed', base .. ':wake'
local delay = tonumber(ARGV[1])
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000000 + time[2] + delay)
local entries = redis.call('HMGET', held, unpack(ARGV, 2))
local back, dues, lost = {}, {}, {}

-- From the last to the first: each is pushed before those that were pushed before it.
for i = #ARGV, 2, -1 do
    local receipt, entry = ARGV[i], entries[i - 1]
    if entry then
        local id, used, rest = string.match(receipt, '^(%w+)%.(%d+)(%S*)$')
        local payload = string.sub(entry, (string.find(entry, ' ', 1, true)))
        back[#back + 1] = id .. '.' .. (used - 1) .. rest .. payload
        dues[#dues + 1] = due
        dues[#dues + 1] = back[#back]
    else
        lost[#lost + 1] = receipt
    end
end
redis.call('HDEL', held, unpack(ARGV, 2))
redis.call('ZREM', leases, unpack(ARGV, 2))
if #back > 0 then
    if delay == 0 then
        redis.call('LPUSH', waiting, unpack(back))
        redis.call('DECRBY', taken, #back)
    else
        redis.call('ZADD', delayed, unpack(dues))
    end
    if redis.call('EXISTS', wake) == 0 then
        redis.call('RPUSH', wake, 1)
    end
end
return lost
