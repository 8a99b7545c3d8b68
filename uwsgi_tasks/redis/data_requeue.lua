-- Let dead items live again: they join the end of their queue, with all their attempts.
--
-- KEYS[1] = B, the queue's name: {P:data:NAME}
--   B:waiting       list of entries
--   B:wake          list of at most one token: who waits for items looks again
--   B:dead:waiting  list of entries: dead ones that nobody reads
--   B:dead:taken    how many have left B:dead:waiting at its head since it was last empty
--   B:dead:wake     as B:wake
--   B:dead:held     hash of entries, by receipt: dead ones that somebody has read
--   B:dead:leases   sorted set of the same receipts, by the end of their lease
-- ARGV: how many of those that nobody reads; or 0, and the receipts of others
-- Returns: the ids of those that nobody read; or the receipts that hold nothing any more

local base, dead = KEYS[1], KEYS[1] .. ':dead'
local entries = {}
local limit = tonumber(ARGV[1])
if limit > 0 then
    entries = redis.call('LPOP', dead .. ':waiting', limit) or {}
end
local taken = #entries
if redis.call('EXISTS', dead .. ':waiting') == 0 then
    redis.call('DEL', dead .. ':taken', dead .. ':wake')
elseif taken > 0 then
    redis.call('INCRBY', dead .. ':taken', taken)
end

local lost = {}
if #ARGV > 1 then
    local found = redis.call('HMGET', dead .. ':held', unpack(ARGV, 2))
    for i = 2, #ARGV do
        if found[i - 1] then
            local payload = string.sub(found[i - 1], (string.find(found[i - 1], ' ', 1, true)))
            entries[#entries + 1] = ARGV[i] .. payload
        else
            lost[#lost + 1] = ARGV[i]
        end
    end
    redis.call('HDEL', dead .. ':held', unpack(ARGV, 2))
    redis.call('ZREM', dead .. ':leases', unpack(ARGV, 2))
end

local fresh, ids = {}, {}
for i, entry in ipairs(entries) do
    local id = string.match(entry, '^%w+') or ''
    fresh[i] = id .. string.sub(entry, (string.find(entry, ' ', 1, true)))
    ids[i] = id
end
if #fresh > 0 then
    redis.call('RPUSH', base .. ':waiting', unpack(fresh))
    if redis.call('EXISTS', base .. ':wake') == 0 then
        redis.call('RPUSH', base .. ':wake', 1)
    end
end
return limit > 0 and ids or lost
