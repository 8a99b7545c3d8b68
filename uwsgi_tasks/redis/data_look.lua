-- Show a page of what is in a data queue; nothing is changed.
--
-- KEYS[1] = B, the queue's name
--   B:waiting  list of entries, the next to be given out first
--   B:taken    how many have left B:waiting at its head since it was last empty
--   B:held     hash of entries, by receipt
--   B:leases   sorted set of the same receipts, by the end of their lease, in microseconds
--   B:delayed  sorted set of entries, by when they are due, in microseconds
-- ARGV: "waiting", "held" or "delayed"; where the page begins ("" at first); how many it has
-- Returns: where the next one begins ("" after the last one), then heads, payloads and times:
--          the end of a lease, or when it is due, or ""

local base, state, cursor, size = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

-- The head of an entry with its space; none, if another program has put it without an id.
local function head_of(entry)
    return string.match(entry, '^%w+ ')
        or string.match(entry, '^%w+%.%d+%.%d+%.%d%.%w+%S* ')
        or ''
end

local heads, payloads, times = {}, {}, {}
local function show(entry, receipt, at)
    local head = head_of(entry)
    heads[#heads + 1] = receipt or string.sub(head, 1, -2)
    payloads[#payloads + 1] = string.sub(entry, #head + 1)
    times[#times + 1] = at
end

if state == 'waiting' then
    -- A place is counted from where the list once began, so that what has left shifts nothing.
    local taken = tonumber(redis.call('GET', base .. ':taken') or 0)
    local start = cursor == '' and 0 or math.max(0, tonumber(cursor) - taken)
    local entries = redis.call('LRANGE', base .. ':waiting', start, start + size - 1)
    for _, entry in ipairs(entries) do
        show(entry, nil, '')
    end
    cursor = #entries == size and string.format('%.0f', taken + start + size) or ''
else
    local is_held = state == 'held'
    local key = base .. (is_held and ':leases' or ':delayed')
    local page = redis.call('ZSCAN', key, cursor == '' and 0 or cursor, 'COUNT', size)
    local found = page[2]
    for i = 1, #found, 2 do
        local entry = is_held and redis.call('HGET', base .. ':held', found[i]) or found[i]
        show(entry, is_held and found[i], found[i + 1])
    end
    cursor = page[1] == '0' and '' or page[1]
end
return {cursor, heads, payloads, times}
