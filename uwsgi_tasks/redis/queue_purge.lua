-- Takes jobs away that wait, some at a time; those that run go on.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs           HASH  id -> payload, of all jobs that have not ended
-- root:suspects       LIST  ids whose worker has died
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
-- root:own            HASH  id -> token of the claim by which it runs
-- root:more           HASH  "o:id", "c:id", "s:id", "p:id", "u:id" -> what else is known of it
--
-- ARGV: how many ids to look at, at most.
-- Returns how many ids there were; then id and payload of each job that was taken away, one behind the other.

local root, most = KEYS[1], tonumber(ARGV[1])
local ids, answer = {}, {}

local function take(list)
    while #ids < most do
        local found = redis.call('LPOP', list, most - #ids)
        if not found or #found == 0 then return end
        for _, id in ipairs(found) do ids[#ids + 1] = id end
    end
end

take(root .. ':suspects')
for priority = 0, 9 do take(root .. ':ready:' .. priority) end
if #ids < most then
    for _, id in ipairs(redis.call('ZRANGE', root .. ':due', 0, most - #ids - 1)) do ids[#ids + 1] = id end
end
answer[1] = #ids
if #ids == 0 then return answer end

local payloads = redis.call('HMGET', root .. ':jobs', unpack(ids))
local owners = redis.call('HMGET', root .. ':own', unpack(ids))
redis.call('ZREM', root .. ':due', unpack(ids))
for index, id in ipairs(ids) do
    -- What was cancelled is in a list still; and an id may be there twice.
    if payloads[index] and not owners[index] and redis.call('HDEL', root .. ':jobs', id) == 1 then
        redis.call('HDEL', root .. ':more', 'o:' .. id, 'c:' .. id, 's:' .. id, 'p:' .. id, 'u:' .. id)
        answer[#answer + 1], answer[#answer + 2] = id, payloads[index]
    end
end
return answer
