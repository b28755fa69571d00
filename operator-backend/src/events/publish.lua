-- Publishes an event, or with no fields only looks at the log. One call is one atomic step.
-- KEYS: 1 state of the log (hash), 2 the log (stream), 3 idempotency key (optional)
-- ARGV: 1 name for a new epoch, 2 events to keep, 3 life of the idempotency key in seconds, 4.. fields
-- A new epoch begins when this Redis process is not the one that took the latest event, or does not
-- know of any: what was acknowledged before may be lost. Checked here, where the event is written, so
-- that no event can follow a loss in the epoch from before it.
local last = '0-0'
local function look()
  local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end
if KEYS[3] then
  local id = redis.call('GET', KEYS[3])
  if id then return id end
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'run', 'epoch', 'base', 'number')
local epoch, base, number = state[2], state[3], state[4]
if state[1] ~= run then
  look()
  epoch, base, number = ARGV[1], last, '0'
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', epoch, 'base', base, 'number', number)
end
if #ARGV < 4 then
  look()
  return {epoch, base, number, last}
end
number = redis.call('HINCRBY', KEYS[1], 'number', 1)
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'epoch', epoch, 'number', number, unpack(ARGV, 4))
if KEYS[3] then redis.call('SET', KEYS[3], id, 'EX', ARGV[3]) end
return id
