"""How the shared index lies in Redis, and the scripts that read and write it.

All names begin with `epp:` and eight hex digits (of this layout's version and of `hashSeed`, which makes the keys):

- `epp:XXXXXXXX:b` and a block's key (8 bytes): its holders, `ip:port|tier|group`, with a line feed before the first and
  after each. A text and no hash, because lookups ask for many at once (`MGET`) and compare each with the one before;
- `epp:XXXXXXXX:e` and an engine hash (8 bytes): the key of that block, by which removals find it;
- `epp:XXXXXXXX:sizes`: a set of the engines' block sizes in tokens.

A script is one command with one reply for many blocks, which is what makes writing affordable: a reply for each `SET`
costs the client more than the command. Keys go in as they lie in memory, 8 bytes each, not as arguments of their own.
Scripts compose names from them, so a Redis cluster is not supported.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from xxhash import xxh32_hexdigest

from epp.prefixcache.precise.hashing import Keys

VERSION = 1

CHUNK = 128
"""Blocks per script: the server works on one for less than a millisecond, during which it answers nobody else."""

WIDTH = 8
NAME_OVERHEAD = 14  # `epp:`, eight digits, `:` and one letter
SEPARATOR = "|"

_NAMES = """
local function names(prefix, keys)
  local out = {}
  for i = 1, #keys, 8 do out[#out + 1] = prefix .. string.sub(keys, i, i + 7) end
  return out
end
"""

STORE = (
    _NAMES
    + """
local field, ttl = ARGV[2], tonumber(ARGV[3])
local blocks, engines = names(ARGV[1] .. 'b', ARGV[5]), names(ARGV[1] .. 'e', ARGV[6])
redis.call('SADD', ARGV[1] .. 'sizes', ARGV[4])
if ttl > 0 then redis.call('EXPIRE', ARGV[1] .. 'sizes', ttl) end
local held = redis.call('MGET', unpack(blocks))
for i, block in ipairs(blocks) do
  local value, key = held[i], string.sub(ARGV[5], i * 8 - 7, i * 8)
  if not value then
    value = '\\n' .. field .. '\\n'
  elseif not string.find(value, '\\n' .. field .. '\\n', 1, true) then
    value = value .. field .. '\\n'
  end
  if ttl > 0 then
    redis.call('SET', block, value, 'EX', ttl)
    redis.call('SET', engines[i], key, 'EX', ttl)
  else
    redis.call('SET', block, value)
    redis.call('SET', engines[i], key)
  end
end
return redis.status_reply('OK')
"""
)
"""ARGV: prefix, field, seconds to live (0: for ever), block size, block keys, engine hashes."""

MOVE = (
    _NAMES
    + """
local field, ttl = ARGV[2], tonumber(ARGV[3])
local moved = 0
for _, key in ipairs(redis.call('MGET', unpack(names(ARGV[1] .. 'e', ARGV[4])))) do
  local block = key and ARGV[1] .. 'b' .. key
  local value = block and redis.call('GET', block)
  if value then
    if not string.find(value, '\\n' .. field .. '\\n', 1, true) then value = value .. field .. '\\n' end
    redis.call('SET', block, value)
    if ttl > 0 then redis.call('EXPIRE', block, ttl) end
    moved = moved + 1
  end
end
return moved
"""
)
"""ARGV: prefix, field, seconds to live, engine hashes: known blocks that are in another tier, too, now."""

_WITHOUT = """
local function without(block, value, from, to)
  local rest = string.sub(value, 1, from) .. string.sub(value, to + 1)
  if rest == '\\n' then
    redis.call('DEL', block)
    return nil
  end
  redis.call('SET', block, rest, 'KEEPTTL')
  return rest
end
"""

REMOVE = (
    _NAMES
    + _WITHOUT
    + """
local removed = 0
local engines = names(ARGV[1] .. 'e', ARGV[3])
for i, key in ipairs(redis.call('MGET', unpack(engines))) do
  if key then
    local block = ARGV[1] .. 'b' .. key
    local value = redis.call('GET', block)
    if value then
      local from, to = string.find(value, '\\n' .. ARGV[2] .. '\\n', 1, true)
      if from then
        value = without(block, value, from, to)
        removed = removed + 1
      end
    end
    if not value then redis.call('DEL', engines[i]) end
  end
end
return removed
"""
)
"""ARGV: prefix, field, engine hashes. An engine hash goes when nobody holds its block any more."""

LOOKUP = (
    _NAMES
    + """
local out, last = {}, 0
for _, holders in ipairs(redis.call('MGET', unpack(names(ARGV[1] .. 'b', ARGV[2])))) do
  if not holders then break end
  if holders == out[last - 1] then
    out[last] = out[last] + 1
  else
    out[last + 1], out[last + 2] = holders, 1
    last = last + 2
  end
end
return out
"""
)
"""ARGV: prefix, block keys. Holders, one a line, and for how many blocks, in turn. Ends at the first gap."""

CLEAR = (
    _WITHOUT
    + """
local blocks, removed, width = {}, 0, tonumber(ARGV[2])
for i = 1, #ARGV[1], width do blocks[#blocks + 1] = string.sub(ARGV[1], i, i + width - 1) end
for i, value in ipairs(redis.call('MGET', unpack(blocks))) do
  for marker = 3, #ARGV do
    while value do
      local from = string.find(value, '\\n' .. ARGV[marker], 1, true)
      if not from then break end
      value = without(blocks[i], value, from, string.find(value, '\\n', from + 1, true))
      removed = removed + 1
    end
  end
end
return removed
"""
)
"""ARGV: the names of blocks in one text, the length of one, then beginnings of the fields to remove."""


class Holder(NamedTuple):
    """Who holds a block, where."""

    endpoint: str
    tier: str


def prefix(seed: str) -> str:
    """What all names begin with: pickers with another `hashSeed` name blocks otherwise, and share nothing."""
    return f"epp:{xxh32_hexdigest(f'{VERSION}{SEPARATOR}{seed}'.encode())}:"


def marker(endpoint: str) -> str:
    """How the fields of an endpoint begin, and of no other."""
    return endpoint + SEPARATOR


def field(endpoint: str, tier: str, group: int) -> str:
    """The holder as a field: in each cache group on its own, so that one group's removal leaves the others'."""
    clean = tier.replace(SEPARATOR, "").replace("\n", "")
    return f"{marker(endpoint)}{clean}{SEPARATOR}{group}"


def holders(text: bytes) -> list[Holder]:
    """Of one block, as `LOOKUP` gives them. What cannot be read is nobody's, and left out."""
    found = []
    for line in text.decode(errors="replace").split("\n"):
        endpoint, _, rest = line.partition(SEPARATOR)
        tier, separator, _ = rest.partition(SEPARATOR)
        if separator:
            found.append(Holder(endpoint, tier))
    return found


def packed(keys: Keys) -> bytes:
    """Keys or hashes as scripts take them."""
    return keys.astype("<u8", copy=False).tobytes()


def unpacked(values: list[bytes | None]) -> tuple[list[bool], Keys]:
    """What the server says of some engine hashes: which are known, and the keys of their blocks."""
    whole = [value if value is not None and len(value) == WIDTH else None for value in values]
    keys = np.frombuffer(b"".join(value or bytes(WIDTH) for value in whole), dtype="<u8").astype(np.uint64)
    return [value is not None for value in whole], keys
