-- Cancels a job that waits, or asks one that runs to stop.
--
-- KEYS[1]             HASH  field of a Record -> its value
--
-- ARGV: what it is asked for, as a number
-- Returns its state after that; nothing if it is not known.

local known = redis.call('HMGET', KEYS[1], 'state', 'stop')
local state = known[1]
if state == 'queued' or state == 'retrying' then
    local now = redis.call('TIME')
    state = 'cancelled'
    redis.call('HSET', KEYS[1], 'state', state, 'ended_at', string.format('%d.%06d', now[1], now[2]))
elseif state == 'running' then
    redis.call('HSET', KEYS[1], 'stop', math.max(tonumber(ARGV[1]), tonumber(known[2])))
end
return state
