-- Notes how far a job has come.
--
-- KEYS[1]             HASH  field of a Record -> its value
--
-- ARGV: how far, and of how much; each may be empty
-- Returns what the job was asked for, as a number.

local ENDS = {succeeded = true, failed = true, cancelled = true}
local known = redis.call('HMGET', KEYS[1], 'state', 'stop')
if not known[1] then return 0 end
if not ENDS[known[1]] then
    for index, field in ipairs({'done', 'total'}) do
        if ARGV[index] == '' then
            redis.call('HDEL', KEYS[1], field)
        else
            redis.call('HSET', KEYS[1], field, ARGV[index])
        end
    end
end
return tonumber(known[2])
