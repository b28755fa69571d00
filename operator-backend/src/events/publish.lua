-- Publishes an event, or with no fields only looks at the log. One call is one atomic step.
-- KEYS: 1 state of the log (hash), 2 the log (stream), 3 idempotency key (optional)
-- ARGV: 1 name for a new epoch, to keep: 2 events, 3 bytes, 4 milliseconds; 5 life of the idempotency key in
-- seconds, 6.. fields
-- A new epoch begins when this Redis process is not the one that took the latest event, or does not
-- know of any, or the log is gone: what was acknowledged before may be lost. Checked here, where the event
-- is written, so that no event can follow a loss in the epoch from before it.
local last = '0-0'
local function look()
  local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end
-- Bytes published up to an entry, itself included.
local function total_of(entry)
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == 'total' then return tonumber(entry[2][i + 1]) end
  end
  return 0
end
-- A full Redis refuses the first write of a script. The oldest eighth of the log then makes room for what is
-- new: nothing else would ever do so, and every later publication would be refused.
local function write(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local length = redis.call('XLEN', KEYS[2])
  if string.find(reply.err, 'OOM', 1, true) and length >= 16 then
    redis.call('XTRIM', KEYS[2], 'MAXLEN', length - math.floor(length / 8))
  end
  return redis.call(...)
end
if KEYS[3] then
  local id = redis.call('GET', KEYS[3])
  if id then return id end
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'run', 'epoch', 'base', 'number', 'total', 'last')
local epoch, base, number, total, before = state[2], state[3], state[4], state[5] or 0, state[6] or '0-0'
if state[1] ~= run or (number ~= '0' and redis.call('EXISTS', KEYS[2]) == 0) then
  look()
  epoch, base, number, before = ARGV[1], last, '0', last
  total = state[5] or total_of(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1])
  write('HSET', KEYS[1], 'run', run, 'epoch', epoch, 'base', base, 'number', number, 'total', total, 'last', last)
end
if #ARGV < 6 then
  look()
  return {epoch, base, number, last}
end
number, total = number + 1, total + 64
for i = 6, #ARGV do total = total + #ARGV[i] end
local id = write('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*',
  'epoch', epoch, 'number', number, 'total', total, unpack(ARGV, 6))
redis.call('HSET', KEYS[1], 'number', number, 'total', total, 'last', id)
if KEYS[3] then redis.call('SET', KEYS[3], id, 'EX', ARGV[5]) end
-- By age, but never the event right before this one: idle streams stand there.
local time = function(text) return tonumber(string.match(text, '%d+')) end
local oldest = math.max(time(id) - ARGV[4], 0)
redis.call('XTRIM', KEYS[2], 'MINID', '~', time(before) < oldest and before or oldest)
-- By size, a sixty-fourth at a time.
local length = redis.call('XLEN', KEYS[2])
while length > 1 and total - total_of(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]) > tonumber(ARGV[3]) do
  length = length - math.ceil(length / 64)
  redis.call('XTRIM', KEYS[2], 'MAXLEN', length)
end
return id
