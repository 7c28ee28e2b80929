"""Every write to a session, each in one Lua script, so that it happens wholly or not at all; what
makes and moves versions is in `version_scripts`.

Scripts stay within Redis 6.2 and know nothing of what payloads, records and answers mean: those
texts pass through unparsed (cjson turns `[]` into `{}` and shortens numbers). Only item states and
envelopes, which hold names and small integers, are read and written as JSON here.

KEYS[1] to KEYS[8] are the same everywhere, see `prelude`; a ninth is named at its script. Snapshots
that a script deletes are named by the root in ARGV, so they carry the session's hash tag and live
on the same node. The first element of a reply is a word, the second the time in ms by the clock of
Redis.
"""

from server.sessions.prelude import PRELUDE

APPEND = (
    PRELUDE
    + """
-- ARGV[1]  incarnation, should the session be made by this call
-- ARGV[2]  idempotency key, or ''
-- ARGV[3]  hash of the request
-- ARGV[4]  lifetime of an idempotency record, ms
-- ARGV[5]  where the session comes from, for the log, or ''
-- ARGV[6]  1: only a session that is not there yet will do; 2: and it builds upon no house
-- ARGV[7]  number of items n; with 0 the session is only made
-- then n times four: kind, prompt key or '', payload, what a rating is of or ''
-- Replies  {'new', now, first id, last id, made the session 0|1, incarnation}
--          {'repeat', now, record, incarnation}
--          {'conflict', now}  {'exists', now}  {'imported', now}
local key, lifetime_ms, count = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[7])
if key ~= '' then
  local known = redis.call('HGET', IDEMPOTENCY, key)
  local record = known and cjson.decode(known)
  if record and NOW - record.at < lifetime_ms then
    if record.hash ~= ARGV[3] then return {'conflict', NOW} end
    return {'repeat', NOW, known, redis.call('HGET', META, 'incarnation')}
  end
end

if count > 0 and is_imported() then return {'imported', NOW} end

local made = redis.call('HSETNX', META, 'incarnation', ARGV[1])
if made == 1 then
  redis.call('HSET', META, 'created_ms', NOW)
  if ARGV[6] == '2' then redis.call('HSET', META, 'alone', 1) end
  if ARGV[5] == '' then log('create') else log('create', 'from', ARGV[5]) end
elseif ARGV[6] ~= '0' then
  return {'exists', NOW}
end

local last = redis.call('HINCRBY', META, 'last_item', count)
local first, prompts = last - count + 1, {}
for i = 0, count - 1 do
  local id, at = first + i, 8 + 4 * i
  local kind, prompt, payload, rated = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  redis.call('HSET', PAYLOADS, id, payload)
  local item = {kind = kind, prompt = prompt, at = NOW, key = key ~= '' and key or nil}
  item.rated = rated ~= '' and rated or nil
  mark(id, item, 'pending')
  if prompt ~= '' then
    local others = redis.call('HGET', PROMPTS, prompt)
    redis.call('HSET', PROMPTS, prompt, others and (others .. ' ' .. id) or id)
    prompts[prompt] = true
  end
end
for prompt in pairs(prompts) do regroup(prompt, {}, 'pending') end

if key ~= '' then
  local record = {hash = ARGV[3], first = first, last = last, at = NOW}
  redis.call('HSET', IDEMPOTENCY, key, cjson.encode(record))
  redis.call('ZADD', IDEMPOTENCY_AGE, NOW, key)
  local oldest = NOW - lifetime_ms
  local old = redis.call('ZRANGEBYSCORE', IDEMPOTENCY_AGE, '-inf', oldest, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('HDEL', IDEMPOTENCY, unpack(old))
    redis.call('ZREM', IDEMPOTENCY_AGE, unpack(old))
  end
end
if count > 0 then log('feedback', 'first', first, 'last', last) end
return {'new', NOW, first, last, made, redis.call('HGET', META, 'incarnation')}
"""
)

REFUSE = (
    PRELUDE
    + """
-- ARGV[1]  incarnation, or ''
-- ARGV[2]  item ids         ARGV[3]  reason
-- ARGV[4]  idempotency key, or ''           ARGV[5]  answer
-- Replies  {'ok', now, ids of those that were pending}   {'gone', now}
if is_gone(ARGV[1]) then return {'gone', NOW} end
local active = meta('active')
local changed = refuse(numbers(ARGV[2]), ARGV[3], items_of(active))
settle(ARGV[4], active, ARGV[5])
log('refuse', 'version', active, 'items', table.concat(changed, ','), 'reason', ARGV[3])
return {'ok', NOW, table.concat(changed, ',')}
"""
)

SETTLE = (
    PRELUDE
    + """
-- ARGV[1]  incarnation, or ''
-- ARGV[2]  idempotency key  ARGV[3]  version of the answer             ARGV[4]  answer
-- Replies  {'ok', now, record, or '' where there is none}   {'gone', now}
if is_gone(ARGV[1]) then return {'gone', NOW} end
settle(ARGV[2], tonumber(ARGV[3]), ARGV[4])
return {'ok', NOW, redis.call('HGET', IDEMPOTENCY, ARGV[2]) or ''}
"""
)

FORGET = (
    PRELUDE
    + """
-- ARGV[1]  item id          ARGV[2]  root of the session's keys
-- Replies  {'gone', now}  {'absent', now}
--          {'ok', now, restored ids, version numbers, active one among them 0|1, derive again 0|1}
if is_gone('') then return {'gone', NOW} end
local id = tonumber(ARGV[1])
local item = get_item(id)
if not item then return {'absent', NOW} end
reach_snapshots(ARGV[2])
local restored = {}
if item.status ~= 'forgotten' then
  local prompt = item.prompt
  redis.call('HDEL', PAYLOADS, id)
  item.prompt, item.rated = '', nil
  mark(id, item, 'forgotten')
  if prompt ~= '' then
    local others = {}
    for _, other in ipairs(numbers(redis.call('HGET', PROMPTS, prompt))) do
      if other ~= id then others[#others + 1] = other end
    end
    if #others == 0 then
      redis.call('HDEL', PROMPTS, prompt)
    else
      redis.call('HSET', PROMPTS, prompt, table.concat(others, ' '))
      restored = regroup(prompt, items_of(meta('active')), 'pending')
    end
  end
  log('forget', 'items', id, 'restored', table.concat(restored, ','))
end
local tainted = purge(ARGV[2])
local unpurged = meta('unpurged')
local again = unpurged
for _, other in ipairs(restored) do
  if get_item(other).status == 'pending' then again = 1 end
end
return {'ok', NOW, table.concat(restored, ','), table.concat(tainted, ','), unpurged, again}
"""
)

DELETE = """
-- KEYS[1] to KEYS[8] as everywhere; KEYS[9] completions; KEYS[10] tokens
-- ARGV[1]  root of the session's keys
-- ARGV[2]  only where it was last used before this time in ms, or ''
-- Replies  {existed 0|1, completion id ...}; {0} where it was used since
-- It reads no more than it must and checks no type, being the way out of a corrupt session.
if ARGV[2] ~= '' then
  for _, used in ipairs(redis.call('HMGET', KEYS[1], 'created_ms', 'updated_ms', 'used_ms')) do
    if used and (tonumber(used) or 0) >= tonumber(ARGV[2]) then return {0} end
  end
end
local existed = redis.call('EXISTS', KEYS[1])
if redis.call('TYPE', KEYS[5]).ok == 'hash' then
  for _, text in ipairs(redis.call('HVALS', KEYS[5])) do
    local snapshot = string.match(text, '"snapshot":"(%x+)"')
    if snapshot then redis.call('UNLINK', ARGV[1] .. 'snapshot:' .. snapshot) end
  end
end
local reply = {existed}
if redis.call('TYPE', KEYS[9]).ok == 'zset' then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[9], 0, -1)) do reply[#reply + 1] = id end
end
redis.call('UNLINK', unpack(KEYS))
return reply
"""

KEEP_COMPLETION = """
-- KEYS[1]  completions of a session         KEYS[2]  its meta
-- ARGV[1]  completion id    ARGV[2]  lifetime, s      ARGV[3]  incarnation, or ''
-- Replies  1; 0 where the session is not there any more, or another one
local now_s = tonumber(redis.call('TIME')[1])
local there = redis.call('TYPE', KEYS[2]).ok == 'hash'
local known = there and redis.call('HGET', KEYS[2], 'incarnation')
if ARGV[3] ~= '' and known ~= ARGV[3] then return 0 end
if known then redis.call('HSET', KEYS[2], 'used_ms', now_s * 1000) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_s)
redis.call('ZADD', KEYS[1], now_s + tonumber(ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('EXPIREAT', KEYS[1], last[2])
return 1
"""

JOIN = """
-- KEYS[1]  replicas
-- ARGV[1]  replica    ARGV[2]  what has to be equal    ARGV[3]  what else there is to know, JSON
-- ARGV[4]  lifetime without a heartbeat, ms    ARGV[5]  1: do not join others that differ
-- Replies  {'joined' or 'refused', now, last: those who joined last, or '', then the others}
local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local others, differ = {}, false
local last = redis.call('HGET', KEYS[1], 'last')
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  if found[i] ~= ARGV[1] and found[i] ~= 'last' then
    local other = cjson.decode(found[i + 1])
    -- From the future is what was left before the clock was set back.
    if math.abs(NOW - other.at) > tonumber(ARGV[4]) then
      redis.call('HDEL', KEYS[1], found[i])
    else
      others[#others + 1] = other.about
      differ = differ or other.fit ~= ARGV[2]
    end
  end
end
local word = 'refused'
if not (differ and ARGV[5] == '1') then
  word = 'joined'
  redis.call('HSET', KEYS[1], 'last', ARGV[3],
    ARGV[1], cjson.encode({at = NOW, fit = ARGV[2], about = ARGV[3]}))
end
return {word, NOW, last or '', unpack(others)}
"""

EXPECT = """
-- KEYS[1]  the index of unfinished work    ARGV[1]  a session that may have some from now on
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[1], clock[1] * 1000 + math.floor(clock[2] / 1000), ARGV[1])
"""

PRUNE = """
-- KEYS[1]  an index
-- ARGV[1]  time in ms since which an entry may belong to a write under way
-- then     members that nothing stands behind
-- Replies  {number removed}
local removed = 0
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) < tonumber(ARGV[1]) then
    removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return {removed}
"""
