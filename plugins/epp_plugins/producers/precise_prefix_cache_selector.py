"""A label selector as Kubernetes writes it in one line: `a=b,c!=d,e,!f,g in (x,y),h notin (z)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Selector = Callable[[Mapping[str, str]], bool]

_TERM = re.compile(r"\s*(!)?\s*([\w./-]+)\s*(?:(==|=|!=)\s*([\w.-]*)|(in|notin)\s*\(([^)]*)\))?\s*(?:,|$)")


def parse_selector(text: str) -> Selector:
    """True for labels that satisfy every requirement; all do when there is none. ValueError names what is wrong."""
    terms: list[Selector] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TERM.match(text, at)
        if match is None or match.end() == at or (match[1] and (match[3] or match[5])):
            raise ValueError(f"podLabelSelector: cannot read {text[at:]!r}; write a=b,c!=d,e,!f,g in (x,y)")
        terms.append(_term(match))
        at = match.end()
    return lambda labels: all(term(labels) for term in terms)


def _term(match: re.Match[str]) -> Selector:
    key = match[2]
    if match[3]:
        value = match[4]
        if match[3] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match[5]:
        values = frozenset(part.strip() for part in match[6].split(","))
        if match[5] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match[1]:
        return lambda labels: key not in labels
    return lambda labels: key in labels
