"""Versions: made, taken back to, kept as they are; as `scripts`, which says what holds for all."""

from server.sessions.prelude import PRELUDE

PROMOTE = (
    PRELUDE
    + """
-- KEYS[9]  the candidate's bytes, written before with a lifetime
-- ARGV[1]  incarnation      ARGV[2]  expected active version
-- ARGV[3]  root of the session's keys       ARGV[4]  snapshot id       ARGV[5]  its bytes
-- ARGV[6]  base fingerprint ARGV[7]  item ids derived over             ARGV[8]  version record
-- ARGV[9]  item ids refused ARGV[10] reason of the refusal
-- ARGV[11] idempotency key, or ''           ARGV[12] answer
-- ARGV[13] versions to keep                  ARGV[14] of them, those whose bytes are kept
-- ARGV[15] 1: not where the session is pinned; 2: what is in force, superseded meanwhile or not
-- ARGV[16] the house's version that it was derived from, or ''
-- Replies  {'ok', now, number}  {'gone', now}  {'lost', now}  {'pinned', now, active version}
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
if ARGV[15] == '1' and meta('pinned') == 1 then
  drop_candidate()
  return {'pinned', NOW, active}
end
local in_force = ARGV[15] == '2'
for _, id in ipairs(derived) do
  local item = get_item(id)
  if not item or not (LIVE[item.status] or in_force and item.status == 'superseded') then
    drop_candidate()
    return {'changed', NOW, id, item and item.status or 'absent'}
  end
end
if redis.call('EXISTS', CANDIDATE) == 0 then return {'lost', NOW} end
reach_snapshots(root)

local number = redis.call('HINCRBY', META, 'last_version', 1)
redis.call('PERSIST', CANDIDATE)
redis.call('HSET', VERSIONS, number, cjson.encode({
  at = NOW, snapshot = snapshot, bytes = tonumber(ARGV[5]), items = derived, record = ARGV[8],
}))
for _, id in ipairs(derived) do
  local item = get_item(id)
  item.version = item.version or number
  if LIVE[item.status] then mark(id, item, 'applied') end
end
local refused = refuse(numbers(ARGV[9]), ARGV[10], set_of(derived))
point_to(number, ARGV[6], root, ARGV[16])

-- An import is never let go of: nobody can derive it again.
local kept, imported = {}, meta('imported')
for _, known in ipairs(redis.call('HKEYS', VERSIONS)) do
  if tonumber(known) ~= imported then kept[#kept + 1] = tonumber(known) end
end
table.sort(kept)
for i, known in ipairs(kept) do
  if i <= #kept - tonumber(ARGV[13]) then
    drop_version(known, get_version(known), root)
  elseif i <= #kept - tonumber(ARGV[14]) then
    drop_snapshot(known, root)
  end
end

settle(ARGV[11], number, ARGV[12])
log('promote', 'version', number, 'from', active, 'items', table.concat(derived, ','),
    'refused', table.concat(refused, ','))
return {'ok', NOW, number}
"""
)

ADOPT = (
    PRELUDE
    + """
-- KEYS[9]  the bytes of the session's first version, absent
-- ARGV[1]  incarnation      ARGV[2]  root of the session's keys
-- ARGV[3]  snapshot id      ARGV[4]  bytes
-- ARGV[5]  base fingerprint ARGV[6]  version record                    ARGV[7]  where it comes from
-- ARGV[8]  1: it builds upon no house
-- Replies  {'ok', now}  {'exists', now}
if redis.call('HSETNX', META, 'incarnation', ARGV[1]) == 0 then return {'exists', NOW} end
if ARGV[8] == '1' then redis.call('HSET', META, 'alone', 1) end
redis.call('HSET', META, 'created_ms', NOW, 'last_version', 1, 'imported', 1)
redis.call('SET', KEYS[9], ARGV[4])
redis.call('HSET', VERSIONS, 1, cjson.encode({
  at = NOW, snapshot = ARGV[3], bytes = string.len(ARGV[4]), items = {}, record = ARGV[6],
}))
point_to(1, ARGV[5], ARGV[2], '')
log('import', 'version', 1, 'from', ARGV[7])
return {'ok', NOW}
"""
)

RESTORE = (
    PRELUDE
    + """
-- KEYS[9]  the version's bytes, absent
-- ARGV[1]  incarnation      ARGV[2]  version
-- ARGV[3]  snapshot id      ARGV[4]  bytes
-- Replies  {'ok', now}  {'gone', now}  {'absent', now}
if is_gone(ARGV[1]) then return {'gone', NOW} end
local version = get_version(ARGV[2])
if not version or version.snapshot ~= ARGV[3] then return {'absent', NOW} end
redis.call('SET', KEYS[9], ARGV[4])
version.bytes = string.len(ARGV[4])
redis.call('HSET', VERSIONS, ARGV[2], cjson.encode(version))
return {'ok', NOW}
"""
)

PROMOTE_UNTAUGHT = (
    PRELUDE
    + """
-- ARGV[1]  incarnation      ARGV[2]  expected active version
-- ARGV[3]  root of the session's keys
-- ARGV[4]  item ids that were derived over in vain                     ARGV[5]  reason
-- Replies  {'ok', now}  {'gone', now}  {'moved', now, active version}
--          {'taught', now, number of applied items that are none of these}
local active = meta('active')
if is_gone(ARGV[1]) then return {'gone', NOW} end
if active ~= tonumber(ARGV[2]) then return {'moved', NOW, active} end
local judged, left = {}, meta('n:applied')
for _, id in ipairs(numbers(ARGV[4])) do
  local status = get_item(id).status
  if LIVE[status] then judged[#judged + 1] = id end
  if status == 'applied' then left = left - 1 end
end
if left > 0 then return {'taught', NOW, left} end
reach_snapshots(ARGV[3])

-- As in a rollback: going forward again may bring them back, and what they had superseded.
local prompts, told = {}, {}
for _, id in ipairs(judged) do
  local item = get_item(id)
  mark(id, item, 'refused', ARGV[5], nil, true)
  if item.prompt ~= '' then prompts[item.prompt] = true end
end
for prompt in pairs(prompts) do regroup(prompt, {}, 'refused', ARGV[5]) end
point_to(0, '', ARGV[3], '')
if #judged > 0 then told = {'refused', table.concat(judged, ','), 'reason', ARGV[5]} end
log('promote', 'version', 0, 'from', active, unpack(told))
return {'ok', NOW}
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
reach_snapshots(ARGV[4])

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
local fingerprint, house = '', ''
if record then fingerprint, house = record.base_fingerprint, record.house or '' end
point_to(target, fingerprint, ARGV[4], house)
log(ARGV[3], 'version', target, 'from', from, 'refused', table.concat(refused, ','))
return {'ok', NOW}
"""
)

TAINT = (
    PRELUDE
    + """
-- ARGV[1]  incarnation      ARGV[2]  root of the session's keys
-- ARGV[3]  versions that contain what the house has forgotten
-- Replies  {'ok', now, active one among them 0|1}  {'gone', now}
if is_gone(ARGV[1]) then return {'gone', NOW} end
reach_snapshots(ARGV[2])
local among = 0
for _, number in ipairs(numbers(ARGV[3])) do
  local version = get_version(number)
  if version and number == meta('active') then
    version.tainted, among = true, 1
    redis.call('HSET', VERSIONS, number, cjson.encode(version))
    redis.call('HSET', META, 'unpurged', 1)
  elseif version then
    drop_version(number, version, ARGV[2])
  end
end
return {'ok', NOW, among}
"""
)

SWEPT = """
-- KEYS[1]  tenants whose sessions have to be looked at
-- ARGV[1]  a tenant         ARGV[2]  the score that it had when that began
-- Replies  {removed 0|1}
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return {0} end
return {redis.call('ZREM', KEYS[1], ARGV[1])}
"""

PIN = (
    PRELUDE
    + """
-- ARGV[1]  1 or 0           ARGV[2]  the house's version that is kept with it, or ''
-- Replies  {'ok', now}  {'gone', now}
if is_gone('') then return {'gone', NOW} end
if meta('pinned') ~= tonumber(ARGV[1]) then
  redis.call('HSET', META, 'pinned', ARGV[1], 'pinned_house', ARGV[2])
  log(ARGV[1] == '1' and 'pin' or 'unpin', 'version', meta('active'))
end
return {'ok', NOW}
"""
)
