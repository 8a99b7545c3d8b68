-- Count what is in a data queue.
--
-- KEYS[1] = B, the queue's name, and in the same way B:dead
--   B:waiting  list of entries
--   B:leases   sorted set: one for each that is held
--   B:delayed  sorted set of entries
-- Returns: how many wait, are held, are delayed; and how many are dead

local function sizes(base)
    return redis.call('LLEN', base .. ':waiting'),
        redis.call('ZCARD', base .. ':leases'),
        redis.call('ZCARD', base .. ':delayed')
end

local waiting, held, delayed = sizes(KEYS[1])
local dead_waiting, dead_held, dead_delayed = sizes(KEYS[1] .. ':dead')
return {waiting, held, delayed, dead_waiting + dead_held + dead_delayed}
