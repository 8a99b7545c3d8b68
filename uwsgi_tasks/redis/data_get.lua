-- Give out the next items, after what is due and what came back have joined those that wait.
--
-- KEYS[1] = B, the queue's name: {P:data:NAME}, or {P:data:NAME}:dead of its dead items
--   B:waiting       list of entries, the next to be given out first; what each is, says data_put
--   B:held          hash of the entries that were given out, by receipt, which is
--                   "ID.USED.ATTEMPTS.KEEP.TOKEN[.MORE]". USED counts what ATTEMPTS limits (0: no
--                   limit). KEEP is 1 where an item that has used them up becomes a dead one, else
--                   0. TOKEN is its reader's, and nobody else's. MORE, of a dead one, is
--                   DIED.TIMES.QUEUE: when (in microseconds), how often given out, where
--   B:leases        sorted set of the receipts, by the end of their lease, in microseconds
--   B:delayed       sorted set of entries, by when they are due, in microseconds
--   B:wake          list of at most one token: who waits for items looks again
--   B:taken         how many have left B:waiting at its head since it was last empty
--   B:dead:waiting, B:dead:wake, B:dead:leases: those of the dead items
-- ARGV: how many (0: only let them join), the lease in microseconds (0: they are removed),
--       ".ATTEMPTS.KEEP.TOKEN", NAME
-- Returns: is there more to join? In how many microseconds is the next one due, or back (-1: none)?
--          Are there dead ones? The ids of dropped ones, the receipts, and the entries as they were

local LIMIT, MANY = 1000, 50
local base = KEYS[1]
local waiting, held, leases = base .. ':waiting', base .. ':held', base .. ':leases'
local delayed, wake, taken = base .. ':delayed', base .. ':wake', base .. ':taken'
local dead, dead_wake = base .. ':dead:waiting', base .. ':dead:wake'
local count, lease, policy, name = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local find, sub, match = string.find, string.sub, string.match

-- Lua by itself would write 14 digits; and as a number it would be written once for each item.
local function text_of(micros)
    return string.format('%.0f', micros)
end

local function ring(key)
    if redis.call('EXISTS', key) == 0 then
        redis.call('RPUSH', key, 1)
    end
end

-- All of those whose lease is over: back to the end, so that one that kills its readers does not
-- stop the others, or dead, or dropped.
local function return_items(receipts, dropped)
    local entries = redis.call('HMGET', held, unpack(receipts))
    local back, buried = {}, {}
    for i, receipt in ipairs(receipts) do
        local id, used, attempts, keep = match(receipt, '^(%w+)%.(%d+)%.(%d+)%.(%d)')
        local entry = entries[i]
        -- Without its entry there is nothing to return: Redis was told to evict what it keeps.
        local payload = entry and sub(entry, (find(entry, ' ', 1, true)))
        if payload and (attempts == '0' or tonumber(used) < tonumber(attempts)) then
            back[#back + 1] = receipt .. payload
        elseif payload and keep == '1' then
            local more = text_of(now) .. '.' .. used .. '.' .. name
            buried[#buried + 1] = id .. '.0.0.0.0.' .. more .. payload
        else
            dropped[#dropped + 1] = id
        end
    end
    redis.call('HDEL', held, unpack(receipts))
    redis.call('ZREM', leases, unpack(receipts))
    if #back > 0 then
        redis.call('RPUSH', waiting, unpack(back))
    end
    if #buried > 0 then
        redis.call('RPUSH', dead, unpack(buried))
        ring(dead_wake)
    end
end

-- The receipt for an entry that is given out now.
local function receipt_of(entry)
    local id = match(entry, '^(%w+) ')
    if id then
        return id .. '.1' .. policy
    end
    local used, more
    id, used, more = match(entry, '^(%w+)%.(%d+)%.%d+%.%d%.%w+(%S*) ')
    return id and id .. '.' .. (used + 1) .. policy .. more
end

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, LIMIT)
if #due > 0 then
    redis.call('ZREM', delayed, unpack(due))
    redis.call('RPUSH', waiting, unpack(due))
end
local over = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, LIMIT)
local dropped = {}
if #over > 0 then
    return_items(over, dropped)
end

local got, receipts = {}, {}
if count > 0 then
    got = redis.call('LPOP', waiting, count) or {}
end
if #got > 0 then
    local entries, ends, till = {}, {}, text_of(now + lease)
    for i, entry in ipairs(got) do
        local receipt = receipt_of(entry)
        if not receipt then
            -- Another program has put it without an id.
            local id = 'x' .. text_of(now) .. 'x' .. i
            receipt, got[i] = id .. '.1' .. policy, id .. ' ' .. entry
        end
        receipts[i] = receipt
        if lease > 0 then
            entries[2 * i - 1], entries[2 * i] = receipt, got[i]
            ends[2 * i - 1], ends[2 * i] = till, receipt
        end
    end
    if lease > 0 then
        if #got > MANY then
            -- For each new field a small hash is read from its beginning. A long value makes a
            -- large one of it at once, which takes a third of the time.
            redis.call('HSET', held, '', string.rep(' ', 65))
        end
        redis.call('HSET', held, unpack(entries))
        if #got > MANY then
            redis.call('HDEL', held, '')
        end
        redis.call('ZADD', leases, unpack(ends))
    end
end

if redis.call('LLEN', waiting) == 0 then
    redis.call('DEL', taken, wake)
else
    if #got > 0 then
        redis.call('INCRBY', taken, #got)
    end
    if #got > 0 or #due > 0 or #over > 0 then
        -- There is something for the next one who waits.
        ring(wake)
    end
end

local pause = -1
if #got == 0 then
    for _, key in ipairs({leases, delayed}) do
        local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
        if first[2] then
            local left = math.max(0, tonumber(first[2]) - now)
            pause = pause < 0 and left or math.min(pause, left)
        end
    end
end
local more = (#due == LIMIT or #over == LIMIT) and 1 or 0
local has_dead = redis.call('EXISTS', dead, base .. ':dead:leases')
return {more, pause, has_dead, dropped, table.concat(receipts, ' '), got}
