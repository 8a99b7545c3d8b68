-- Give items back that are still held by the receipts given.
--
-- KEYS[1] = B, the queue's name
--   B:held     hash of entries, by receipt; what that is, says data_get
--   B:leases   sorted set of the same receipts, by the end of their lease, in microseconds
--   B:waiting  list of entries: they become its first, in the order given; what failed, its last
--   B:taken    how many have left B:waiting at its head since it was last empty
--   B:delayed  sorted set of entries, by when they are due, in microseconds
--   B:wake     list of at most one token: who waits for items looks again
-- ARGV: the delay in microseconds, 1 if they failed and an attempt is used up, the receipts
-- Returns: those of them that hold nothing any more

local base = KEYS[1]
local held, leases = base .. ':held', base .. ':leases'
local waiting, taken = base .. ':waiting', base .. ':taken'
local delayed, wake = base .. ':delayed', base .. ':wake'
local delay, has_failed = tonumber(ARGV[1]), ARGV[2] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = string.format('%.0f', now + delay)
local entries = redis.call('HMGET', held, unpack(ARGV, 3))
local back, ended, lost = {}, {}, {}

for i = 3, #ARGV do
    local receipt, entry = ARGV[i], entries[i - 2]
    local id, used, attempts, keep, rest =
        string.match(receipt, '^(%w+)%.(%d+)%.(%d+)%.(%d)%.%w+(%S*)$')
    if not entry then
        lost[#lost + 1] = receipt
    elseif has_failed and attempts ~= '0' and tonumber(used) >= tonumber(attempts) then
        -- That was the last attempt. It is nobody's until data_get sees that its lease is over.
        ended[#ended + 1] = {table.concat({id, used, attempts, keep, '0'}, '.') .. rest, entry}
    else
        local head = table.concat({id, has_failed and used or used - 1, attempts, keep, '0'}, '.')
        local payload = string.sub(entry, (string.find(entry, ' ', 1, true)))
        back[#back + 1] = head .. rest .. payload
    end
end

redis.call('HDEL', held, unpack(ARGV, 3))
redis.call('ZREM', leases, unpack(ARGV, 3))
for _, pair in ipairs(ended) do
    redis.call('HSET', held, pair[1], pair[2])
    redis.call('ZADD', leases, string.format('%.0f', now), pair[1])
end
for i, entry in ipairs(back) do
    if delay > 0 then
        redis.call('ZADD', delayed, due, entry)
    elseif has_failed then
        redis.call('RPUSH', waiting, entry)
    else
        redis.call('LPUSH', waiting, back[#back + 1 - i])
        redis.call('DECR', taken)
    end
end
if redis.call('EXISTS', wake) == 0 then
    redis.call('RPUSH', wake, 1)
end
return lost
