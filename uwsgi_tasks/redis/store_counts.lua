-- Reads what was counted in some minutes.
--
-- KEYS[1]             the root of the counts, {uwsgi_tasks:counts}; each key begins with it
-- root:MINUTE         HASH  "length of task:task outcome", without the space -> "runs seconds slowest"
--
-- ARGV: how a field begins, or nothing for all; then minutes
-- Returns what the hash of each minute holds, field, value, field, value, ...

local root, start = KEYS[1], ARGV[1]
local found = {}
for index = 2, #ARGV do
    local all = redis.call('HGETALL', root .. ':' .. ARGV[index])
    local wanted = all
    if start ~= '' then
        wanted = {}
        for place = 1, #all, 2 do
            if string.sub(all[place], 1, #start) == start then
                wanted[#wanted + 1] = all[place]
                wanted[#wanted + 1] = all[place + 1]
            end
        end
    end
    found[#found + 1] = wanted
end
return found
