-- Lists dead letters, the newest first, and those of one moment by their ids.
--
-- KEYS[1]             the root of the dead letters, {uwsgi_tasks:dead}; each key begins with it
-- root:letter:ID      HASH  field of a DeadLetter -> its value
-- root:all            ZSET  id by the time at which it failed, of all
-- root:task:TASK      ZSET  the same, of one task
--
-- ARGV: all or task:TASK; how many at most; and, of the letter that comes before them, if there is
-- one: when it failed, and its id. That letter may be gone.
-- Returns the ids, each followed by what its hash holds.

local root, limit, failed_at, last = KEYS[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local order = root .. ':' .. ARGV[1]

-- Lua compares texts as the server's language would; Redis puts them in order by their bytes.
local function comes_first(one, other)
    for index = 1, math.min(#one, #other) do
        local here, there = string.byte(one, index), string.byte(other, index)
        if here ~= there then return here < there end
    end
    return #one < #other
end

local older = redis.call('ZCARD', order)
if last then
    -- All may have failed in one moment: no walk over them, but a search among them.
    local low = redis.call('ZCOUNT', order, '-inf', '(' .. failed_at)
    local high = redis.call('ZCOUNT', order, '-inf', failed_at)
    while low < high do
        local middle = math.floor((low + high) / 2)
        if comes_first(redis.call('ZRANGE', order, middle, middle)[1], last) then
            low = middle + 1
        else
            high = middle
        end
    end
    older = low
end
local found = {}
if older == 0 or limit < 1 then return found end
local ids = redis.call('ZRANGE', order, math.max(0, older - limit), older - 1)
for index = #ids, 1, -1 do
    found[#found + 1] = ids[index]
    found[#found + 1] = redis.call('HGETALL', root .. ':letter:' .. ids[index])
end
return found
