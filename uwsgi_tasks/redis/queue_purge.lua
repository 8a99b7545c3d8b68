-- Takes all jobs away that wait; those that run go on.
--
-- KEYS[1]             the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs           HASH  id -> payload, of all jobs that have not ended
-- root:ready:0 to 9   LIST  ids that may run, by priority
-- root:suspects       LIST  ids whose worker has died
-- root:due            ZSET  id by the milliseconds since 1970 at which it may run
-- root:own            HASH  id -> token of the claim by which it runs
-- root:more           HASH  what else is known of a job
-- root:wake           LIST  a token for each sleeping worker that is to look
--
-- Returns how many there were. Its cost grows with what runs; Redis frees what waited in the background.

local root = KEYS[1]
local running, payloads, more = redis.call('HKEYS', root .. ':own'), {}, {}
local count = redis.call('HLEN', root .. ':jobs')
for _, id in ipairs(running) do
    local payload = redis.call('HGET', root .. ':jobs', id)
    if payload then
        count = count - 1
        payloads[#payloads + 1] = {id, payload}
        for _, kind in ipairs({'o:', 'c:', 's:', 'p:', 'u:'}) do
            local value = redis.call('HGET', root .. ':more', kind .. id)
            if value then more[#more + 1] = {kind .. id, value} end
        end
    end
end
redis.call('UNLINK', root .. ':jobs', root .. ':suspects', root .. ':due', root .. ':more', root .. ':wake')
for priority = 0, 9 do redis.call('UNLINK', root .. ':ready:' .. priority) end
for _, pair in ipairs(payloads) do redis.call('HSET', root .. ':jobs', pair[1], pair[2]) end
for _, pair in ipairs(more) do redis.call('HSET', root .. ':more', pair[1], pair[2]) end
return count
