"""Every write to a session, each in one Lua script, so that it happens wholly or not at all.

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
-- ARGV[5]  number of items n; with 0 the session is only made
-- then n times three: kind, prompt key or '', payload
-- Replies  {'new', now, first id, last id, made the session 0|1}
--          {'repeat', now, record}  {'conflict', now}
local key, lifetime_ms, count = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
if key ~= '' then
  local known = redis.call('HGET', IDEMPOTENCY, key)
  local record = known and cjson.decode(known)
  if record and NOW - record.at < lifetime_ms then
    if record.hash ~= ARGV[3] then return {'conflict', NOW} end
    return {'repeat', NOW, known}
  end
end

local made = redis.call('HSETNX', META, 'incarnation', ARGV[1])
if made == 1 then
  redis.call('HSET', META, 'created_ms', NOW)
  log('create')
end

local last = redis.call('HINCRBY', META, 'last_item', count)
local first, prompts = last - count + 1, {}
for i = 0, count - 1 do
  local id, kind, prompt, payload = first + i, ARGV[6 + 3 * i], ARGV[7 + 3 * i], ARGV[8 + 3 * i]
  redis.call('HSET', PAYLOADS, id, payload)
  mark(id, {kind = kind, prompt = prompt, at = NOW, key = key ~= '' and key or nil}, 'pending')
  if prompt ~= '' then
    local others = redis.call('HGET', PROMPTS, prompt)
    redis.call('HSET', PROMPTS, prompt, others and (others .. ' ' .. id) or id)
    prompts[prompt] = true
  end
end
for prompt in pairs(prompts) do regroup(prompt, {}, 'pending') end

if key ~= '' then
  local oldest = NOW - lifetime_ms
  local old = redis.call('ZRANGEBYSCORE', IDEMPOTENCY_AGE, '-inf', oldest, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('HDEL', IDEMPOTENCY, unpack(old))
    redis.call('ZREM', IDEMPOTENCY_AGE, unpack(old))
  end
  local record = {hash = ARGV[3], first = first, last = last, at = NOW}
  redis.call('HSET', IDEMPOTENCY, key, cjson.encode(record))
  redis.call('ZADD', IDEMPOTENCY_AGE, NOW, key)
end
if count > 0 then log('feedback', 'first', first, 'last', last) end
return {'new', NOW, first, last, made}
"""
)

PROMOTE = (
    PRELUDE
    + """
-- KEYS[9]  the candidate's bytes, written before with a lifetime
-- ARGV[1]  incarnation      ARGV[2]  expected active version
-- ARGV[3]  root of the session's keys       ARGV[4]  snapshot id       ARGV[5]  its bytes
-- ARGV[6]  base fingerprint ARGV[7]  item ids derived over             ARGV[8]  version record
-- ARGV[9]  item ids refused ARGV[10] reason of the refusal
-- ARGV[11] idempotency key, or ''           ARGV[12] answer
-- ARGV[13] versions to keep
-- Replies  {'ok', now, number}  {'gone', now}  {'lost', now}
--          {'moved', now, active version}  {'changed', now, item id, its status}
local CANDIDATE, root, snapshot = KEYS[9], ARGV[3], ARGV[4]
local derived, active = numbers(ARGV[7]), meta('active')

-- A version's bytes have no lifetime any more, so this never deletes what was promoted.
local function drop_candidate()
  if redis.call('PTTL', CANDIDATE) >= 0 then redis.call('UNLINK', CANDIDATE) end
end

if is_gone(ARGV[1]) then
  drop_candidate()
  return {'gone', NOW}
end
if active ~= tonumber(ARGV[2]) then
  drop_candidate()
  return {'moved', NOW, active}
end
for _, id in ipairs(derived) do
  local item = get_item(id)
  if not item or not LIVE[item.status] then
    drop_candidate()
    return {'changed', NOW, id, item and item.status or 'absent'}
  end
end
if redis.call('EXISTS', CANDIDATE) == 0 then return {'lost', NOW} end

local number = redis.call('HINCRBY', META, 'last_version', 1)
redis.call('PERSIST', CANDIDATE)
redis.call('HSET', VERSIONS, number, cjson.encode({
  at = NOW, snapshot = snapshot, bytes = tonumber(ARGV[5]), items = derived, record = ARGV[8],
}))
for _, id in ipairs(derived) do
  local item = get_item(id)
  item.version = item.version or number
  mark(id, item, 'applied')
end
local refused = refuse(numbers(ARGV[9]), ARGV[10], set_of(derived))
point_to(number, ARGV[6], root)

local kept = {}
for _, known in ipairs(redis.call('HKEYS', VERSIONS)) do kept[#kept + 1] = tonumber(known) end
table.sort(kept)
for i = 1, #kept - tonumber(ARGV[13]) do drop_version(kept[i], get_version(kept[i]), root) end

settle(ARGV[11], number, ARGV[12])
log('promote', 'version', number, 'from', active, 'items', table.concat(derived, ','),
    'refused', table.concat(refused, ','))
return {'ok', NOW, number}
"""
)

PROMOTE_UNTAUGHT = (
    PRELUDE
    + """
-- ARGV[1]  incarnation      ARGV[2]  expected active version
-- ARGV[3]  root of the session's keys
-- Replies  {'ok', now}  {'gone', now}  {'moved', now, active version}
--          {'taught', now, number of items that derive}
local active = meta('active')
if is_gone(ARGV[1]) then return {'gone', NOW} end
if active ~= tonumber(ARGV[2]) then return {'moved', NOW, active} end
local live = meta('n:pending') + meta('n:applied')
if live > 0 then return {'taught', NOW, live} end
point_to(0, '', ARGV[3])
log('promote', 'version', 0, 'from', active)
return {'ok', NOW}
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
-- Replies  {'ok', now}  {'gone', now}
if is_gone(ARGV[1]) then return {'gone', NOW} end
settle(ARGV[2], tonumber(ARGV[3]), ARGV[4])
return {'ok', NOW}
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
local restored = {}
if item.status ~= 'forgotten' then
  local prompt = item.prompt
  redis.call('HDEL', PAYLOADS, id)
  item.prompt = ''
  mark(id, item, 'forgotten')
  if prompt ~= '' then
    local others = {}
    for _, other in ipairs(numbers(redis.call('HGET', PROMPTS, prompt))) do
      if other ~= id then others[#others + 1] = other end
    end
    redis.call('HSET', PROMPTS, prompt, table.concat(others, ' '))
    if #others == 0 then redis.call('HDEL', PROMPTS, prompt) end
    restored = regroup(prompt, items_of(meta('active')), 'pending')
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

ROLLBACK = (
    PRELUDE
    + """
-- ARGV[1]  version to go back (or forward) to; 0 is untaught
-- ARGV[2]  reason for items that it does not contain      ARGV[3]  type of the event
-- ARGV[4]  root of the session's keys
-- Replies  {'ok', now}  {'gone', now}  {'absent', now}  {'forgotten', now, item id}
if is_gone('') then return {'gone', NOW} end
local target, from = tonumber(ARGV[1]), meta('active')
local version = get_version(target)
if target ~= 0 and not version then return {'absent', NOW} end
local contained, prompts, live, refused = items_of(target), {}, {}, {}
for id in pairs(contained) do
  if get_item(id).status == 'forgotten' then return {'forgotten', NOW, id} end
end

-- What the version does not contain is superseded by something that it contains, or undone.
for id = 1, meta('last_item') do
  local item = get_item(id)
  if LIVE[item.status] then live[#live + 1] = id end
  if contained[id] then
    if item.status ~= 'applied' then mark(id, item, 'applied') end
  elseif item.prompt == '' then
    if LIVE[item.status] then mark(id, item, 'refused', ARGV[2], nil, true) end
  elseif LIVE[item.status] or item.undone then
    mark(id, item, 'superseded')
  end
  if item.prompt ~= '' then prompts[item.prompt] = true end
end
for prompt in pairs(prompts) do regroup(prompt, contained, 'refused', ARGV[2]) end
for _, id in ipairs(live) do
  if get_item(id).status == 'refused' then refused[#refused + 1] = id end
end

local record = version and cjson.decode(version.record)
point_to(target, record and record.base_fingerprint or '', ARGV[4])
log(ARGV[3], 'version', target, 'from', from, 'refused', table.concat(refused, ','))
return {'ok', NOW}
"""
)

DELETE = """
-- KEYS[1] to KEYS[8] as everywhere; KEYS[9] completions
-- ARGV[1]  root of the session's keys
-- Replies  {existed 0|1, completion id ...}
-- It reads no more than it must and checks no type, being the way out of a corrupt session.
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
-- KEYS[1]  completions of a session
-- ARGV[1]  completion id    ARGV[2]  lifetime, s
local now_s = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_s)
redis.call('ZADD', KEYS[1], now_s + tonumber(ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('EXPIREAT', KEYS[1], last[2])
return 1
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
