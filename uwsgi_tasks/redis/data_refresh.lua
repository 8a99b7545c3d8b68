-- Let the leases of items end later, or sooner, that are still held by the receipts given.
--
-- KEYS[1] = B, the queue's name
--   B:leases  sorted set of receipts, by the end of their lease, in microseconds
-- ARGV: the lease in microseconds, from now, then the receipts
-- Returns: those of them that hold nothing any more

local leases = KEYS[1] .. ':leases'
local time = redis.call('TIME')
local till = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[1])
local ends, lost = {}, {}

for i = 2, #ARGV do
    ends[#ends + 1] = till
    ends[#ends + 1] = ARGV[i]
end
if redis.call('ZADD', leases, 'XX', 'CH', unpack(ends)) < #ARGV - 1 then
    local found = redis.call('ZMSCORE', leases, unpack(ARGV, 2))
    for i = 2, #ARGV do
        if not found[i - 1] then
            lost[#lost + 1] = ARGV[i]
        end
    end
end
return lost
