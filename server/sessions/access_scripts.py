"""Keys, tokens and rates: what must be decided and written in one piece.

Times are the clock of Redis, so that replicas agree on what has expired.
"""

from server.sessions.keys import API_KEYS_MAX, TOKENS_MAX

_NOW = """
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

_OPERATORS = (
    _NOW
    + """
-- Whether an operator could still come in by a stored key, other than by `except`.
local function operated(except)
  for _, text in ipairs(redis.call('HVALS', KEYS[1])) do
    local record = cjson.decode(text)
    if record.role == 'operator' and record.id ~= except
       and (not record.expires_ms or record.expires_ms > NOW) then
      return true
    end
  end
  return false
end
"""
)

MAKE_KEY = (
    _OPERATORS
    + f"local MOST = {API_KEYS_MAX}"
    + """
-- KEYS[1]  keys             KEYS[2]  keyed
-- ARGV[1]  id               ARGV[2]  tenant           ARGV[3]  role             ARGV[4]  name
-- ARGV[5]  SHA-256          ARGV[6]  last 4 characters
-- ARGV[7]  lifetime, ms, or ''
-- ARGV[8]  1: no operator's key is known from elsewhere
-- Replies  {'ok', record}  {'operator'} an operator's key has to come first  {'full'}
if redis.call('HLEN', KEYS[1]) >= MOST then return {'full'} end
if ARGV[8] == '1' and ARGV[3] ~= 'operator' and not operated('') then return {'operator'} end
local record = {id = ARGV[1], tenant = ARGV[2], role = ARGV[3], name = ARGV[4],
                digest = ARGV[5], last4 = ARGV[6], created_ms = NOW}
if ARGV[7] ~= '' then record.expires_ms = NOW + tonumber(ARGV[7]) end
local text = cjson.encode(record)
redis.call('SET', KEYS[2], 1)
redis.call('HSET', KEYS[1], ARGV[1], text)
return {'ok', text}
"""
)

REVOKE_KEY = (
    _OPERATORS
    + """
-- KEYS[1]  keys
-- ARGV[1]  id               ARGV[2]  1: no operator's key is known from elsewhere
-- Replies  {'ok'}  {'absent'}  {'last'} nobody could operate the server afterwards
local text = redis.call('HGET', KEYS[1], ARGV[1])
if not text then return {'absent'} end
if ARGV[2] == '1' and cjson.decode(text).role == 'operator' and not operated(ARGV[1]) then
  return {'last'}
end
redis.call('HDEL', KEYS[1], ARGV[1])
return {'ok'}
"""
)

MAKE_TOKEN = (
    _NOW
    + f"local MOST = {TOKENS_MAX}"
    + """
-- KEYS[1]  tokens of a session
-- ARGV[1]  SHA-256          ARGV[2]  lifetime, ms
-- ARGV[3]  maker            ARGV[4]  scopes, separated by spaces      ARGV[5]  the maker's proof
-- Replies  {'ok', expires_ms}  {'full'}
local last = NOW + tonumber(ARGV[2])
local record = cjson.encode({
  maker = ARGV[3], scopes = ARGV[4], proof = ARGV[5], expires_ms = last})
local known = redis.call('HGETALL', KEYS[1])
for i = 1, #known, 2 do
  local expires = cjson.decode(known[i + 1]).expires_ms
  if expires <= NOW then redis.call('HDEL', KEYS[1], known[i]) end
  last = math.max(last, expires)
end
if redis.call('HLEN', KEYS[1]) >= MOST then return {'full'} end
redis.call('HSET', KEYS[1], ARGV[1], record)
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
return {'ok', NOW + tonumber(ARGV[2])}
"""
)

_OWING = """
-- A bucket that may owe: when, in us, it is full again, and when that was written.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function full_at(key)
  local full, at = string.match(redis.call('GET', key) or '0:0', '^(%d+):(%d+)$')
  -- Written before the clock was set back: what was owed then is owed still, and no more.
  return math.max(now, tonumber(full) - math.max(0, tonumber(at) - now))
end
"""

SPEND = (
    _OWING
    + """
-- As TAKE, for what was used already: every bucket is charged, whatever is left in it.
-- KEYS[i]      a bucket
-- ARGV[2i-1]   us until a whole one more is in it     ARGV[2i]  how many were used
-- Replies {}
for i, key in ipairs(KEYS) do
  local each, amount = tonumber(ARGV[2*i-1]), tonumber(ARGV[2*i])
  local full = full_at(key) + amount * each
  local left = math.max(1, math.ceil((full - now) / 1000))
  redis.call('SET', key, string.format('%.0f:%.0f', full, now), 'PX', string.format('%.0f', left))
end
return {}
"""
)

LEFT = (
    _OWING
    + """
-- Whether every bucket has a whole one left; nothing is taken.
-- KEYS[i]      a bucket
-- ARGV[2i-1]   us until a whole one more is in it     ARGV[2i]  how many it holds
-- Replies {0, 0, 0}, or {which bucket has none, us until it has, how many are missing from it}
for i, key in ipairs(KEYS) do
  local each, burst = tonumber(ARGV[2*i-1]), tonumber(ARGV[2*i])
  local missing = (full_at(key) - now) / each
  if missing > burst - 1 then
    return {i, math.ceil((missing - burst + 1) * each), math.ceil(missing)}
  end
end
return {0, 0, 0}
"""
)

TAKE = """
-- Token buckets as the generic cell rate algorithm (ITU-T I.371): a key holds when, in us, its
-- bucket is full again. All are charged, or none.
-- KEYS[i]      a bucket
-- ARGV[3i-2]   us until a whole one more is in it     ARGV[3i-1]  how many it holds
-- ARGV[3i]     how many are taken
-- Replies {0, 0}, or {which bucket has too few, us until it has enough}
local clock = redis.call('TIME')
local now, full = clock[1] * 1000000 + clock[2], {}
for i, key in ipairs(KEYS) do
  local each, burst, amount = tonumber(ARGV[3*i-2]), tonumber(ARGV[3*i-1]), tonumber(ARGV[3*i])
  -- Never emptier than empty: a clock that is set back must not shut anybody out.
  local known = math.min(tonumber(redis.call('GET', key) or '0'), now + burst * each)
  full[i] = math.max(now, known) + amount * each
  local wait = full[i] - burst * each - now
  if wait > 0 then return {i, math.ceil(wait)} end
end
for i, key in ipairs(KEYS) do
  local left = math.max(1, math.ceil((full[i] - now) / 1000))
  redis.call('SET', key, string.format('%.0f', full[i]), 'PX', string.format('%.0f', left))
end
return {0, 0}
"""
