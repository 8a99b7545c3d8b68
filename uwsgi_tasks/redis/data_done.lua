-- Take items away for good that are still held by the receipts given.
--
-- KEYS[1] = B, the queue's name
--   B:held    hash of entries, by receipt
--   B:leases  sorted set of the same receipts, by the end of their lease
-- ARGV: the receipts
-- Returns: those of them that hold nothing any more

local held, leases = KEYS[1] .. ':held', KEYS[1] .. ':leases'
local lost = {}

if redis.call('HDEL', held, unpack(ARGV)) < #ARGV then
    local ends = redis.call('ZMSCORE', leases, unpack(ARGV))
    for i, receipt in ipairs(ARGV) do
        if not ends[i] then
            lost[#lost + 1] = receipt
        end
    end
end
redis.call('ZREM', leases, unpack(ARGV))
return lost
