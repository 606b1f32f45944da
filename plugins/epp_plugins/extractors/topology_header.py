"""A place as a header's value: `host=node12,rack=r7,zone=a,region=us-east1`, as llm-d's coordinator carries it.

Levels that are not known are left out; so are values that would break the format.
"""

from __future__ import annotations

from epp.api import Topology

HEADER = "x-peer-topology"
"""The only name that the coordinator hands from the prefill answer to the decode request."""

_LEVELS = {"host": "hostname", "rack": "rack", "zone": "zone", "region": "region"}
_MAX_LENGTH = 1024
"""Four label values of 63 characters have room. What is longer is nobody's place."""


def check_name(parameter: str, name: str) -> None:
    """ValueError: another header would reach nobody."""
    if name.lower() not in ("", HEADER):
        raise ValueError(
            f"{parameter} is {name!r}, but coordinators hand on {HEADER!r} only: use that, or leave it out"
        )


def encode(place: Topology) -> str:
    """ "" when nothing is known."""
    values = ((key, getattr(place, level)) for key, level in _LEVELS.items())
    return ",".join(f"{key}={value}" for key, value in values if _fits(value))


def decode(value: str) -> Topology:
    """Keys that are not known and parts that are none are left out; nothing is an error."""
    if len(value) > _MAX_LENGTH:
        return Topology()
    pairs = (part.partition("=") for part in value.split(","))
    return Topology(**{_LEVELS[key]: place for key, equals, place in pairs if equals and key in _LEVELS})


def _fits(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable() and not any(sign in value for sign in ",= ")
