"""How the shared index lies in Redis, and the scripts that read and write it.

All names begin with `epp:` and eight hex digits (of this layout's version and of `hashSeed`, which makes the keys):

- `epp:XXXXXXXX:b` and a block's key (8 bytes): a hash whose field names are its holders, `ip:port|tier|group`;
- `epp:XXXXXXXX:e` and an engine hash (8 bytes): the key of that block, by which removals find it;
- `epp:XXXXXXXX:sizes`: a set of the engines' block sizes in tokens.

A script is one command with one reply for many blocks, which is what makes writing affordable: a reply for each `HSET`
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

STORE = """
local blocks, engines, field, ttl = ARGV[1] .. 'b', ARGV[1] .. 'e', ARGV[2], tonumber(ARGV[3])
redis.call('SADD', ARGV[1] .. 'sizes', ARGV[4])
if ttl > 0 then redis.call('EXPIRE', ARGV[1] .. 'sizes', ttl) end
for i = 1, #ARGV[5], 8 do
  local key = string.sub(ARGV[5], i, i + 7)
  local block, engine = blocks .. key, engines .. string.sub(ARGV[6], i, i + 7)
  redis.call('HSET', block, field, '')
  if ttl > 0 then
    redis.call('EXPIRE', block, ttl)
    redis.call('SET', engine, key, 'EX', ttl)
  else
    redis.call('SET', engine, key)
  end
end
return redis.status_reply('OK')
"""
"""ARGV: prefix, field, seconds to live (0: for ever), block size, block keys, engine hashes."""

MOVE = """
local ttl = tonumber(ARGV[3])
local moved = 0
for i = 1, #ARGV[4], 8 do
  local key = redis.call('GET', ARGV[1] .. 'e' .. string.sub(ARGV[4], i, i + 7))
  if key then
    redis.call('HSET', ARGV[1] .. 'b' .. key, ARGV[2], '')
    if ttl > 0 then redis.call('EXPIRE', ARGV[1] .. 'b' .. key, ttl) end
    moved = moved + 1
  end
end
return moved
"""
"""ARGV: prefix, field, seconds to live, engine hashes: known blocks that are in another tier, too, now."""

REMOVE = """
local removed = 0
for i = 1, #ARGV[3], 8 do
  local engine = ARGV[1] .. 'e' .. string.sub(ARGV[3], i, i + 7)
  local key = redis.call('GET', engine)
  if key then
    removed = removed + redis.call('HDEL', ARGV[1] .. 'b' .. key, ARGV[2])
    if redis.call('EXISTS', ARGV[1] .. 'b' .. key) == 0 then redis.call('DEL', engine) end
  end
end
return removed
"""
"""ARGV: prefix, field, engine hashes. An engine hash goes when nobody holds its block any more."""

LOOKUP = """
local out = {}
for i = 1, #ARGV[2], 8 do
  local fields = redis.call('HKEYS', ARGV[1] .. 'b' .. string.sub(ARGV[2], i, i + 7))
  if #fields == 0 then break end
  local text = table.concat(fields, '\\n')
  if text == out[#out - 1] then
    out[#out] = out[#out] + 1
  else
    out[#out + 1] = text
    out[#out + 1] = 1
  end
end
return out
"""
"""ARGV: prefix, block keys. Holders, one a line, and for how many blocks, in turn. Ends at the first gap."""

CLEAR = """
local removed = 0
for i = 1, #ARGV[1], tonumber(ARGV[2]) do
  local block = string.sub(ARGV[1], i, i + tonumber(ARGV[2]) - 1)
  for _, field in ipairs(redis.call('HKEYS', block)) do
    for marker = 3, #ARGV do
      if string.sub(field, 1, #ARGV[marker]) == ARGV[marker] then
        removed = removed + redis.call('HDEL', block, field)
      end
    end
  end
end
return removed
"""
"""ARGV: names of blocks in one text, the length of one, then beginnings of the fields to remove."""


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
    return f"{marker(endpoint)}{tier.replace(SEPARATOR, '')}{SEPARATOR}{group}"


def holders(text: bytes) -> list[Holder]:
    """The fields of one block as `LOOKUP` gives them. What cannot be read is nobody's, and left out."""
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
