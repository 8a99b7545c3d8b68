-- Take everything out of a data queue, but for its dead items.
--
-- KEYS[1] = B, the queue's name
--   B:waiting  list of entries
--   B:held     hash of entries, by receipt
--   B:leases   sorted set of the same receipts
--   B:delayed  sorted set of entries
--   B:wake, B:taken: what is known of B:waiting
-- Returns: how many items there were

local base = KEYS[1]
local count = redis.call('LLEN', base .. ':waiting')
    + redis.call('ZCARD', base .. ':leases')
    + redis.call('ZCARD', base .. ':delayed')
redis.call('UNLINK', base .. ':waiting', base .. ':held', base .. ':leases', base .. ':delayed',
    base .. ':wake', base .. ':taken')
return count
