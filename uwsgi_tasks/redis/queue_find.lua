-- Says where jobs stand.
--
-- KEYS[1]     the root of the queue, as in {uwsgi_tasks:queue:default}
-- root:jobs   HASH  id -> payload, of all jobs that have not ended
-- root:own    HASH  id -> token of the claim by which it runs, with a "!" if it runs alone
-- root:run    ZSET  id by the milliseconds since 1970 at which its lease is over
-- root:due    ZSET  id by the milliseconds since 1970 at which it may run
-- root:more   HASH  "p:id" -> progress; "s:id" -> what it was asked for; "o:id" -> "lease|priority"
--
-- ARGV: ids.
-- Returns for each that is here, one behind the other: id, payload, token or "", time at which it may run or "", progress
-- or "", what it was asked for (0, 1, 2), and "lease|priority" or "".

local root, answer = KEYS[1], {}
for _, id in ipairs(ARGV) do
    local payload = redis.call('HGET', root .. ':jobs', id)
    if payload then
        local place = #answer
        local more = redis.call('HMGET', root .. ':more', 'p:' .. id, 's:' .. id, 'o:' .. id)
        answer[place + 1], answer[place + 2] = id, payload
        answer[place + 3] = redis.call('HGET', root .. ':own', id) or ''
        answer[place + 4] = redis.call('ZSCORE', root .. ':due', id) or ''
        answer[place + 5], answer[place + 6], answer[place + 7] = more[1] or '', more[2] or '0', more[3] or ''
    end
end
return answer
