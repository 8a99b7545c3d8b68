-- Takes jobs that share their time, priority and lease: all of them, or none.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}; each key begins with it
-- root:jobs           HASH  id -> payload, of all jobs that have not ended
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
-- root:more           HASH  "o:id" -> "lease|priority", where they are not the usual ones
-- root:wake           LIST  a token for each sleeping worker that is to look, at most 8
--
-- ARGV: time in milliseconds or ""; priority; lease in milliseconds or "", then id, payload, id, payload, ...
-- An id that is there already is the same job; who submits one again that may run still, forgets that first.
-- Returns the number of jobs.

local root, at, priority, lease = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local jobs, more, wake = root .. ':jobs', root .. ':more', root .. ':wake'
local FIRST, SLICE = 4, 2000
local taken = 0

local earliest = math.huge
if at ~= '' then
    local first = redis.call('ZRANGE', root .. ':due', 0, 0, 'WITHSCORES')
    earliest = tonumber(first[2] or 'inf')
end

for start = FIRST, #ARGV, SLICE do
    local stop = math.min(start + SLICE - 1, #ARGV)
    local ids, extras, scores = {}, {}, {}
    for index = start, stop, 2 do
        ids[#ids + 1] = ARGV[index]
    end
    redis.call('HSET', jobs, unpack(ARGV, start, stop))
    if lease ~= '' or priority ~= '9' then
        for _, id in ipairs(ids) do
            extras[#extras + 1] = 'o:' .. id
            extras[#extras + 1] = lease .. '|' .. priority
        end
        redis.call('HSET', more, unpack(extras))
    end
    if at == '' then
        redis.call('RPUSH', root .. ':ready:' .. priority, unpack(ids))
    else
        for _, id in ipairs(ids) do
            scores[#scores + 1] = at
            scores[#scores + 1] = id
        end
        redis.call('ZADD', root .. ':due', unpack(scores))
    end
    taken = taken + #ids
end

local wanted = taken
if at ~= '' then
    -- Who sleeps does so until what was the first.
    wanted = tonumber(at) < earliest and 1 or 0
end
local missing = math.min(wanted, 8 - redis.call('LLEN', wake))
if missing == 1 then
    redis.call('RPUSH', wake, '1')
elseif missing > 1 then
    local tokens = {}
    for index = 1, missing do tokens[index] = '1' end
    redis.call('RPUSH', wake, unpack(tokens))
end
return taken
