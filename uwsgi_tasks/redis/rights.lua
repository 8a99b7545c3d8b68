-- Tries commands, for a user who may have no right to some of them.
--
-- KEYS[1]     a key that nobody else uses; it is gone afterwards
-- ARGV        DEL first; each command, and how many words it takes, in turn
--
-- Returns each command that failed, and what Redis said, in turn. A value of the wrong kind is
-- said, too: rights are looked at before values.

local words, failed = {KEYS[1], '1', '1'}, {}

for place = 1, #ARGV, 2 do
  local name, count = ARGV[place], tonumber(ARGV[place + 1])
  local reply = redis.pcall(name, unpack(words, 1, count))
  if type(reply) == 'table' and reply.err then
    table.insert(failed, name)
    table.insert(failed, reply.err)
    if name == 'DEL' then
      -- Nothing is begun that could not be removed.
      return failed
    end
  end
end

redis.call('DEL', KEYS[1])
return failed
