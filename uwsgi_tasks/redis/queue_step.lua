-- Ends jobs that a worker has run, and claims the next ones for it.
--
-- KEYS                the roots of the queues, as in {uwsgi_tasks:queue:default}, those to be served first at the front;
--                     of each:
-- root:jobs           HASH  id -> payload, of all jobs that have not ended
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:suspects       LIST  ids whose worker has died; each is claimed alone
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
-- root:run            ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:own            HASH  id -> token of the claim by which it runs, with a "!" if it runs alone
-- root:more           HASH  "o:id" -> "lease|priority"; "c:id" -> crashes; "s:id" -> was asked to stop;
--                           "p:id" -> progress; "u:id" -> since when its task was unknown
-- root:wake           LIST  a token for each sleeping worker that is to look
--
-- ARGV: how many jobs to claim; -1 times that for who runs others until it hears of them: it gets nothing from a queue with
--       suspects, nor from those behind that; the token for them, new in each call, with a "+" at its end if the worker may
--       run several of them at the same time; the usual lease in milliseconds; then for each queue
--       how many jobs have ended, how many go on, id and token of each that has ended,
--       and id, token, next payload and its time (milliseconds, or "" for now) of each that goes on.
-- Returns the ids that were not the caller's any more; of the claimed jobs, one behind the other, the number of the queue
-- from 0, the id, the payload, its crashes (-1: it was cancelled, and must not run), and its lease (0: whoever
-- runs it ends it before); and in how many milliseconds there may be something to do (-1: nobody knows).

local wanted, token, usual = math.abs(tonumber(ARGV[1])), ARGV[2], tonumber(ARGV[3])
local is_ahead = tonumber(ARGV[1]) < 0
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lost, claimed = {}, {}
local position = 4
-- So many crashes beside others are counted: whoever has had as many is to run alone.
local DOUBTS = 2
local KINDS = {'o:', 'c:', 's:', 'p:', 'u:'}

local function usual_priority(option)
    return option and string.match(option, '|(%d)$') or '9'
end

local function forget_more(root, ids, kinds)
    if redis.call('EXISTS', root .. ':more') == 0 then return end
    local fields = {}
    for _, id in ipairs(ids) do
        for _, kind in ipairs(kinds) do fields[#fields + 1] = kind .. id end
        if #fields > 4000 then
            redis.call('HDEL', root .. ':more', unpack(fields))
            fields = {}
        end
    end
    if #fields > 0 then redis.call('HDEL', root .. ':more', unpack(fields)) end
end

local function options_of(root, ids)
    if redis.call('EXISTS', root .. ':more') == 0 then return {} end
    local fields = {}
    for index, id in ipairs(ids) do fields[index] = 'o:' .. id end
    return redis.call('HMGET', root .. ':more', unpack(fields))
end

local function make_ready(root, ids)
    local options = options_of(root, ids)
    for index, id in ipairs(ids) do
        redis.call('RPUSH', root .. ':ready:' .. usual_priority(options[index]), id)
    end
end

local function wake(root)
    if redis.call('LLEN', root .. ':wake') == 0 then redis.call('RPUSH', root .. ':wake', '1') end
end

-- Of (id, token, ...) those whose claim still holds.
local function held(root, first, count, width)
    local ids, mine = {}, {}
    for index = 0, count - 1 do ids[index + 1] = ARGV[first + index * width] end
    if count == 0 then return mine end
    local tokens = redis.call('HMGET', root .. ':own', unpack(ids))
    for index, id in ipairs(ids) do
        local own, given = tokens[index], ARGV[first + (index - 1) * width + 1]
        if own == given or own == given .. '!' then
            mine[#mine + 1] = index - 1
        else
            lost[#lost + 1] = id
        end
    end
    return mine
end

local function finish(root)
    local ended, going = tonumber(ARGV[position]), tonumber(ARGV[position + 1])
    position = position + 2
    if ended + going == 0 then return end
    local ids = {}
    for _, index in ipairs(held(root, position, ended, 2)) do
        ids[#ids + 1] = ARGV[position + index * 2]
    end
    position = position + ended * 2
    if #ids > 0 then
        redis.call('HDEL', root .. ':jobs', unpack(ids))
        redis.call('HDEL', root .. ':own', unpack(ids))
        redis.call('ZREM', root .. ':run', unpack(ids))
        forget_more(root, ids, KINDS)
    end
    for _, index in ipairs(held(root, position, going, 4)) do
        local first = position + index * 4
        local id, payload, at = ARGV[first], ARGV[first + 2], ARGV[first + 3]
        redis.call('HDEL', root .. ':own', id)
        redis.call('ZREM', root .. ':run', id)
        redis.call('HSET', root .. ':jobs', id, payload)
        forget_more(root, {id}, {'c:', 'p:', 'u:'})
        -- One that was asked to stop has nothing to wait for: whoever claims it sees that.
        if at == '' or redis.call('HEXISTS', root .. ':more', 's:' .. id) == 1 then
            make_ready(root, {id})
        else
            redis.call('ZADD', root .. ':due', at, id)
            -- Who sleeps does so until what was the first.
            if redis.call('ZRANGE', root .. ':due', 0, 0)[1] == id then wake(root) end
        end
    end
    position = position + going * 4
end

-- What is due is ready; what has lost its worker is suspect.
local function move(root)
    local due = redis.call('ZRANGEBYSCORE', root .. ':due', '-inf', now, 'LIMIT', 0, 200)
    if #due > 0 then
        redis.call('ZREM', root .. ':due', unpack(due))
        make_ready(root, due)
    end
    local over = redis.call('ZRANGEBYSCORE', root .. ':run', '-inf', now, 'LIMIT', 0, 100)
    for _, id in ipairs(over) do
        local own = redis.call('HGET', root .. ':own', id)
        redis.call('ZREM', root .. ':run', id)
        redis.call('HDEL', root .. ':own', id)
        -- Of many that one worker had, nobody knows which has killed it. Those that it may have run at the same time are
        -- counted nevertheless, but not so often that one could be condemned for that.
        local last = own and string.sub(own, -1)
        local counts = last == '!'
        if last == '+' then
            counts = tonumber(redis.call('HGET', root .. ':more', 'c:' .. id) or 0) < DOUBTS
        end
        if counts then redis.call('HINCRBY', root .. ':more', 'c:' .. id, 1) end
        redis.call('RPUSH', root .. ':suspects', id)
    end
end

-- Claims *ids*; returns how many there were: what was cancelled is in a list still, what was submitted twice runs already,
-- or waits for a time.
local function claim(root, number, ids, mark)
    local payloads = redis.call('HMGET', root .. ':jobs', unpack(ids))
    local owners = redis.call('HMGET', root .. ':own', unpack(ids))
    local times = {}
    if redis.call('EXISTS', root .. ':due') == 1 then times = redis.call('ZMSCORE', root .. ':due', unpack(ids)) end
    local has_more = redis.call('EXISTS', root .. ':more') == 1
    local options, crashes = {}, {}
    if has_more then
        local fields = {}
        for index, id in ipairs(ids) do
            fields[index] = 'o:' .. id
            fields[#ids + index] = 'c:' .. id
            fields[2 * #ids + index] = 's:' .. id
        end
        options = redis.call('HMGET', root .. ':more', unpack(fields))
    end
    -- Each job pays for this loop. Texts, made once: Redis takes long to write a number of Lua's.
    local runs, owned, seen, count, place = {}, {}, {}, 0, #claimed
    local own, until_usual = token .. mark, string.format('%.0f', now + usual)
    for index, id in ipairs(ids) do
        -- The id may be in a list twice.
        if payloads[index] and not (owners[index] or times[index] or seen[id]) then
            seen[id] = true
            local lease, over, crashed = usual, until_usual, 0
            if has_more then
                lease = options[index] and tonumber(string.match(options[index], '^(%d+)|')) or usual
                -- One that is to run once at most is taken off by its worker, just before it runs.
                if lease > 0 then over = string.format('%.0f', now + lease) end
                crashed = options[2 * #ids + index] and -1 or tonumber(options[#ids + index] or 0)
            end
            claimed[place + 1], claimed[place + 2], claimed[place + 3] = number, id, payloads[index]
            claimed[place + 4], claimed[place + 5] = crashed, lease
            place = place + 5
            runs[2 * count + 1], runs[2 * count + 2] = over, id
            owned[2 * count + 1], owned[2 * count + 2] = id, own
            count = count + 1
        end
    end
    if #runs > 0 then
        redis.call('ZADD', root .. ':run', unpack(runs))
        redis.call('HSET', root .. ':own', unpack(owned))
    end
    return count
end

local function ready_lists(root)
    local lists = {}
    for priority = 0, 9 do lists[priority + 1] = root .. ':ready:' .. priority end
    return lists
end

local function take(root, number, most)
    -- A suspect is claimed alone: where there are others already, it is their turn to wait.
    if (#claimed > 0 or is_ahead) and redis.call('EXISTS', root .. ':suspects') == 1 then return most end
    local mark = (#claimed == 0 and not is_ahead and string.sub(token, -1) ~= '+') and '!' or ''
    local suspect = redis.call('LPOP', root .. ':suspects')
    while suspect do
        if claim(root, number, {suspect}, mark) > 0 then return most end
        suspect = redis.call('LPOP', root .. ':suspects')
    end
    local lists = ready_lists(root)
    local taken, first = 0, 10
    if redis.call('EXISTS', unpack(lists, 1, 9)) > 0 then first = 1 end
    for index = first, 10 do
        while taken < most do
            local ids = redis.call('LPOP', lists[index], most - taken)
            if not ids or #ids == 0 then break end
            taken = taken + claim(root, number, ids, (wanted == 1) and mark or '')
        end
        if taken >= most then break end
    end
    return taken
end

local function earliest(root)
    local first = math.huge
    for _, key in ipairs({root .. ':due', root .. ':run'}) do
        local found = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
        if found[2] then first = math.min(first, tonumber(found[2])) end
    end
    return first
end

for _, root in ipairs(KEYS) do finish(root) end
local left = wanted
for number, root in ipairs(KEYS) do
    if left <= 0 then break end
    move(root)
    left = left - take(root, number - 1, left)
end

local wait = -1
if wanted > 0 and #claimed == 0 and not is_ahead then
    local first = math.huge
    for _, root in ipairs(KEYS) do first = math.min(first, earliest(root)) end
    if first < math.huge then wait = math.max(0, first - now) end
elseif left <= 0 then
    -- There may be more than this worker takes: others that sleep are to look.
    for _, root in ipairs(KEYS) do
        if redis.call('EXISTS', root .. ':suspects', unpack(ready_lists(root))) > 0 then wake(root) end
    end
end
return {lost, claimed, wait}
