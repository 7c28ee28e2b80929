"""What all scripts begin with: the names of their keys, and the functions that they share.

Redis does not undo a script that fails half way, so the types of all keys are checked here, before
anything is written. It knows how an item changes its status, and none of the reasons to change it.
"""

from server.sessions.keys import EVENTS_MAX
from server.sessions.types import LIVE, STRENGTHS

_CONSTANTS = f"""
local EVENTS_MAX = {EVENTS_MAX}
local STRENGTH = {{ {", ".join(f"{kind} = {n}" for kind, n in STRENGTHS.items())} }}
local LIVE = {{ {", ".join(f"{status} = true" for status in LIVE)} }}
"""

PRELUDE = (
    _CONSTANTS
    + """
-- KEYS[1]  meta             KEYS[2]  items            KEYS[3]  payloads         KEYS[4]  prompts
-- KEYS[5]  versions         KEYS[6]  idempotency      KEYS[7]  idempotency_age  KEYS[8]  events
local META, ITEMS, PAYLOADS, PROMPTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local VERSIONS, IDEMPOTENCY, IDEMPOTENCY_AGE, EVENTS = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

for i, expected in ipairs({'hash', 'hash', 'hash', 'hash', 'hash', 'hash', 'zset', 'stream'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= expected then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is a ' .. found .. ', not a ' .. expected)
  end
end

local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function numbers(text)
  local found = {}
  for digits in string.gmatch(text, '%d+') do found[#found + 1] = tonumber(digits) end
  return found
end

local function set_of(ids)
  local set = {}
  for _, id in ipairs(ids) do set[id] = true end
  return set
end

local function meta(field) return tonumber(redis.call('HGET', META, field) or '0') end

-- An empty incarnation means whichever is there.
local function is_gone(incarnation)
  local known = redis.call('HGET', META, 'incarnation')
  return not known or (incarnation ~= '' and incarnation ~= known)
end

-- The version in force was brought along, not derived.
local function is_imported()
  local imported = meta('imported')
  return imported > 0 and imported == meta('active')
end

local function log(type, ...)
  redis.call('HSET', META, 'updated_ms', NOW)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', EVENTS_MAX, '*', 'type', type, ...)
end

local function get_item(id)
  local text = redis.call('HGET', ITEMS, id)
  return text and cjson.decode(text)
end

-- `undone` marks what a rollback refused: going forward again may bring it back.
local function mark(id, item, status, reason, by, undone)
  if item.status ~= status then
    if item.status then redis.call('HINCRBY', META, 'n:' .. item.status, -1) end
    redis.call('HINCRBY', META, 'n:' .. status, 1)
  end
  item.status, item.reason, item.by, item.undone = status, reason, by, undone
  redis.call('HSET', ITEMS, id, cjson.encode(item))
end

local function get_version(number)
  local text = redis.call('HGET', VERSIONS, number)
  return text and cjson.decode(text)
end

local function items_of(number)
  local version = get_version(number)
  return set_of(version and version.items or {})
end

-- Decide anew, among the items about one prompt, who supersedes whom: a later item of equal or
-- greater strength, but a dislike only what was said about the same answer. An item that nobody
-- supersedes any more comes back: applied where the version in force contains it (`contained`),
-- else with the status `otherwise`, which is 'pending' or, in a rollback, 'refused'. Returns the
-- ids that came back to life.
local function regroup(prompt, contained, otherwise, reason)
  local ids = numbers(redis.call('HGET', PROMPTS, prompt) or '')
  local strongest, strongest_id, dislikes, restored = 0, nil, {}, {}
  for i = #ids, 1, -1 do
    local id = ids[i]
    local item = get_item(id)
    if LIVE[item.status] or item.status == 'superseded' then
      local sign, answer = string.match(item.rated or '', '^([+-])(.*)$')
      local by = answer and dislikes[answer]
      if STRENGTH[item.kind] <= strongest then by = strongest_id end
      if by then
        if item.by ~= by then mark(id, item, 'superseded', 'superseded by item ' .. by, by) end
      else
        if item.status == 'superseded' then
          if contained[id] then
            mark(id, item, 'applied')
          else
            mark(id, item, otherwise, reason, nil, otherwise == 'refused' or nil)
          end
          if LIVE[item.status] then table.insert(restored, 1, id) end
        end
        if LIVE[item.status] then
          if sign == '-' then
            dislikes[answer] = id
          else
            strongest, strongest_id = STRENGTH[item.kind], id
          end
        end
      end
    end
  end
  return restored
end

local function refuse(ids, reason, contained)
  local changed, prompts = {}, {}
  for _, id in ipairs(ids) do
    local item = get_item(id)
    if item and item.status == 'pending' then
      mark(id, item, 'refused', reason)
      changed[#changed + 1] = id
      prompts[item.prompt] = true
    end
  end
  for prompt in pairs(prompts) do regroup(prompt, contained, 'pending') end
  return changed
end

local function settle(key, version, answer)
  local known = key ~= '' and answer ~= '' and redis.call('HGET', IDEMPOTENCY, key)
  if not known then return end
  local record = cjson.decode(known)
  if record.answer then return end
  record.version, record.answer = version, answer
  redis.call('HSET', IDEMPOTENCY, key, cjson.encode(record))
end

-- Keep the record and let go of the bytes: who goes back to it derives the adapter again.
local function drop_snapshot(number, root)
  local version = get_version(number)
  if version.bytes == 0 then return end
  redis.call('UNLINK', root .. 'snapshot:' .. version.snapshot)
  version.bytes = 0
  redis.call('HSET', VERSIONS, number, cjson.encode(version))
end

local function drop_version(number, version, root)
  redis.call('UNLINK', root .. 'snapshot:' .. version.snapshot)
  redis.call('HDEL', VERSIONS, number)
end

-- A Cluster that is moving the session fails a script at the first key that went ahead. Snapshots
-- are no KEYS, so this asks for them while nothing is written yet.
local function reach_snapshots(root)
  for _, text in ipairs(redis.call('HVALS', VERSIONS)) do
    local version = cjson.decode(text)
    if version.bytes ~= 0 then redis.call('EXISTS', root .. 'snapshot:' .. version.snapshot) end
  end
end

-- Forgetting is exact: delete what contains a forgotten item. The active version has to stay until
-- its successor is promoted; `unpurged` remembers that. `tainted` ones contain what the house has
-- forgotten.
local function purge(root)
  local active, tainted, forgotten = meta('active'), {}, {}
  redis.call('HSET', META, 'unpurged', 0)
  for _, number in ipairs(redis.call('HKEYS', VERSIONS)) do
    local version = get_version(number)
    local contains = version.tainted
    for _, id in ipairs(version.items) do
      if forgotten[id] == nil then forgotten[id] = get_item(id).status == 'forgotten' end
      contains = contains or forgotten[id]
    end
    if contains then
      tainted[#tainted + 1] = tonumber(number)
      if tonumber(number) == active then
        redis.call('HSET', META, 'unpurged', 1)
      else
        drop_version(number, version, root)
      end
    end
  end
  table.sort(tainted)
  return tainted
end

local function point_to(number, fingerprint, root, house)
  redis.call('HSET', META, 'active', number, 'fingerprint', fingerprint, 'house', house)
  if meta('unpurged') == 1 then purge(root) end
end
"""
)
