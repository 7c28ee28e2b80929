"""The indexes of a tenant's sessions, by name and by time: each script sees those and no session.

They go with the commands before a session's own script, so a time in them may be a moment early,
or that of a request which changed nothing; `timeline` reads them with that in mind. The house has
no time: it is on no page.
"""

ANNOUNCE = """
-- KEYS[1]  names            KEYS[2]  by last change                   KEYS[3]  by making
-- ARGV[1]  a session that may be made from now on
-- ARGV[2]  1: it is listed by time
-- ARGV[3]  when it was made, ms             ARGV[4]  when it last changed; or both '', before that
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] == '0' then return 0 end
if ARGV[3] == '' then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  redis.call('ZADD', KEYS[3], 'NX', now, ARGV[1])
else
  redis.call('ZADD', KEYS[2], 'GT', ARGV[4], ARGV[1])
  redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
end
return 1
"""

TOUCH = """
-- KEYS[1]  by last change   ARGV[1]  a session that may change now
-- One that is not listed, the house or a session that is gone, stays so.
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'XX', clock[1] * 1000 + math.floor(clock[2] / 1000), ARGV[1])
return 1
"""

CORRECT = """
-- KEYS[1]  an index by time
-- ARGV     for each session its name, the time that was read and the right one
-- Replies  {number corrected}; who was named anew meanwhile stays as it is
local corrected = 0
for i = 1, #ARGV, 3 do
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or '-1') == tonumber(ARGV[i + 1]) then
    redis.call('ZADD', KEYS[1], ARGV[i + 2], ARGV[i])
    corrected = corrected + 1
  end
end
return {corrected}
"""

PLACE = """
-- KEYS[1]  names            KEYS[2]  by last change                   KEYS[3]  by making
-- ARGV     for each session its name, when it last changed and when it was made
-- Those that are named, and have no time yet, get these.
for i = 1, #ARGV, 3 do
  if redis.call('SISMEMBER', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[2], 'NX', ARGV[i + 1], ARGV[i])
    redis.call('ZADD', KEYS[3], 'NX', ARGV[i + 2], ARGV[i])
  end
end
return {1}
"""

COUNTS = """
-- KEYS[1]  names            KEYS[2]  by last change                   KEYS[3]  by making
-- ARGV[1]  the house
-- Replies  {sessions named, listed by change, listed by making}
return {
  redis.call('SCARD', KEYS[1]) - redis.call('SISMEMBER', KEYS[1], ARGV[1]),
  redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]),
}
"""

MISSING = """
-- KEYS[1]  an index that is looked through  KEYS[2] ...  others of the same tenant
-- ARGV[1]  'SSCAN' for that by name, 'ZSCAN' for one by time
-- ARGV[2]  cursor           ARGV[3]  how many to look at, about
-- Replies  {cursor, names that one of the others does not have ...}
local by_name = ARGV[1] == 'SSCAN'
local found = redis.call(ARGV[1], KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local reply = {found[1]}
for i = 1, #found[2], by_name and 1 or 2 do
  local there = true
  for k = 2, #KEYS do
    if by_name then
      there = there and redis.call('ZSCORE', KEYS[k], found[2][i])
    else
      there = redis.call('SISMEMBER', KEYS[k], found[2][i]) == 1
    end
  end
  if not there then reply[#reply + 1] = found[2][i] end
end
return reply
"""
