-- Tells the time.
--
-- KEYS[1]             any key of the store; it is not touched
--
-- Returns seconds since 1970, with microseconds, as a text.

local now = redis.call('TIME')
return string.format('%d.%06d', now[1], now[2])
