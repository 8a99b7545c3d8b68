-- Notes that an attempt begins.
--
-- KEYS[1]             HASH  field of a Record -> its value
--
-- ARGV: the number of the attempt; who runs it
-- Returns 0 if the job was cancelled, and must not run.

local state = redis.call('HGET', KEYS[1], 'state')
if state == 'cancelled' then return 0 end
if state and state ~= 'succeeded' and state ~= 'failed' then
    local now = redis.call('TIME')
    local moment = string.format('%d.%06d', now[1], now[2])
    redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', ARGV[1], 'worker', ARGV[2], 'started_at', moment)
    redis.call('HDEL', KEYS[1], 'done', 'total')
end
return 1
