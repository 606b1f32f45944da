"""Reads single metrics from a Prometheus text page (format 0.0.4) without parsing the page.

A vLLM page has 80 KB and 900 lines, of which a handful matter: `bytes.find` jumps to a family's lines, and only those
are read. Values, label escapes and timestamps are exact; `tests/property` compares with prometheus-client's parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_LABELS = rb'\{[^"{}\n]*(?:"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"[^"{}\n]*)*\}'
_SAMPLE = re.compile(rb"[ \t]*(" + _LABELS + rb")?[ \t]*([^ \t\r\n{}#]+)(?:[ \t]+(-?[0-9]+))?[^\n]*")
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_NAME_ENDS = (b"{", b" ", b"\t")
_KNOWN_BYTES = 1 << 20  # of lines that are kept per metric; 1 000 servers may each have a long line of their own
_KNOWN_EACH = 256  # bytes that one costs besides
_BEFORE, _AFTER = 1024, 8192  # bytes searched around the place of the last find
_ESCAPE = re.compile(rb"\\(.)")
_ESCAPES = {b"n": b"\n", b'"': b'"', b"\\": b"\\"}
_SPEC = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",{}\s]*))\s*(,|$)')
_SPEC_ESCAPE = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line of a family. `labels` as on the page, braces included, empty if none; `timestamp` in milliseconds."""

    labels: bytes
    value: float
    timestamp: int | None


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric name and the labels a series must have, with exactly these values."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inner = ",".join(f'{name}="{value}"' for name, value in self.labels)
        return f"{self.name}{{{inner}}}" if inner else self.name


def parse_spec(text: str) -> MetricSpec | None:
    """`metric{label=value,label2="v"}`; None for an empty text (disabled). ValueError says what is wrong with it."""
    if not text.strip():
        return None
    found = _SPEC.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is no metric: write it as name or name{{label=value,label2="value"}}')
    name, inner = found.group(1), found.group(2)
    labels: list[tuple[str, str]] = []
    position = 0
    inner = (inner or "").strip()
    while position < len(inner):
        matcher = _MATCHER.match(inner, position)
        if matcher is None:
            raise ValueError(f'{text!r}: cannot read labels from {inner[position:]!r}: write label=value or label="v"')
        quoted, bare = matcher.group(2), matcher.group(3)
        value = (
            bare if quoted is None else _SPEC_ESCAPE.sub(lambda e: "\n" if e.group(1) == "n" else e.group(1), quoted)
        )
        labels.append((matcher.group(1), value))
        position = matcher.end()
    return MetricSpec(name, tuple(labels))


class Family:
    """Reads the samples of one metric name from page after page.

    Pages of one server, and of its siblings, look alike: the place of the last find is tried first.
    """

    __slots__ = ("_needle", "_place", "_size", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._needle = b"\n" + name.encode()
        self._size = len(self._needle)
        self._place = 0

    def lines(self, page: bytes) -> bytes:
        """The lines of the samples whose name is exactly this one; empty when the page has none.

        The format demands that all lines of a metric stand together; reading stops at the end of the first group.
        """
        start = self._find(page)
        if start < -1:
            return b""
        end = page.find(b"\n", start + 1)
        while end >= 0 and self._is_here(page, end):
            end = page.find(b"\n", end + 1)
        return page[start + 1 :] if end < 0 else page[start + 1 : end]

    def samples(self, page: bytes) -> list[Sample]:
        """What the `lines` say, in page order. A line that cannot be read raises ValueError."""
        return self.read(self.lines(page))

    def read(self, lines: bytes) -> list[Sample]:
        """The samples of such `lines`. A line that cannot be read raises ValueError."""
        return [self._sample(line) for line in lines.split(b"\n")] if lines else []

    def _sample(self, line: bytes) -> Sample:
        read = _SAMPLE.match(line, self._size - 1)
        if read is None:
            raise ValueError(f"cannot read {line[:120]!r}")
        labels, value, timestamp = read.groups()
        try:
            return Sample(labels or b"", float(value), None if timestamp is None else int(timestamp))
        except ValueError:
            raise ValueError(f"{self.name}: {value[:40]!r} is not a number") from None

    def _find(self, page: bytes) -> int:
        """Offset of the line break before the first line; -1 for the first line of the page, -2 for none."""
        place = self._place
        if place > _BEFORE:
            position = page.find(self._needle, place - _BEFORE, place + _AFTER)
            # In the middle of a group the first lines would be missed; a longer name is another metric's.
            if position > 0 and self._is_here(page, position):
                line_before = page.rfind(b"\n", 0, position)
                if line_before >= 0 and not page.startswith(self._needle, line_before):
                    self._place = position
                    return position
        if page.startswith(self._needle[1:]) and page[self._size - 1 : self._size] in _NAME_ENDS:
            return -1
        position = -1
        while (position := page.find(self._needle, position + 1)) >= 0:
            if self._is_here(page, position):
                self._place = position
                return position
        return -2

    def _is_here(self, page: bytes, position: int) -> bool:
        end = position + self._size
        return page.startswith(self._needle, position) and page[end : end + 1] in _NAME_ENDS


def labels_of(raw: bytes) -> dict[str, str]:
    """The labels of a sample, unescaped."""
    return {
        name.decode(): (_unescape(value) if b"\\" in value else value).decode("utf-8", "replace")
        for name, value in _LABEL.findall(raw)
    }


def _unescape(value: bytes) -> bytes:
    # An unknown escape stands for itself, backslash included, as in Prometheus' own parser.
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found.group(1), found.group(0)), value)


def matches(labels: Mapping[str, str], wanted: tuple[tuple[str, str], ...]) -> bool:
    """Whether the series has all wanted labels."""
    return all(labels.get(name) == value for name, value in wanted)


def newest(candidates: list[Sample]) -> Sample:
    """The sample with the newest timestamp; without timestamps, or among equals, the first."""
    best = candidates[0]
    for sample in candidates[1:]:
        if sample.timestamp is not None and (best.timestamp is None or sample.timestamp > best.timestamp):
            best = sample
    return best


class Reading(Generic[T]):
    """What `meaning` makes of a metric's samples, of page after page: lines that came before are not read again."""

    __slots__ = ("_family", "_kept", "_known", "_meaning")

    def __init__(self, name: str, meaning: Callable[[list[Sample]], T]) -> None:
        self._family = Family(name)
        self._meaning = meaning
        self._known: dict[bytes, T] = {}
        self._kept = 0

    def __call__(self, page: bytes) -> T:
        """The same object for the same lines: do not change it. ValueError as from `Family.samples`."""
        lines = self._family.lines(page)
        known = self._known.get(lines)
        if known is None:
            known = self._meaning(self._family.read(lines))
            self._kept += len(lines) + _KNOWN_EACH
            if self._kept > _KNOWN_BYTES:
                self._known.clear()
                self._kept = len(lines) + _KNOWN_EACH
            if self._kept <= _KNOWN_BYTES:
                self._known[lines] = known
        return known


class Metric:
    """Reads the value of one `MetricSpec` from page after page."""

    __slots__ = ("_values", "spec", "split_by")

    def __init__(self, spec: MetricSpec, split_by: str = "") -> None:
        self.spec = spec
        self.split_by = split_by
        self._values = Reading(spec.name, self._of)

    def values(self, page: bytes) -> list[float]:
        """The value of the matching series: one, or one per value of the label `split_by`. Empty: none matches."""
        return self._values(page)

    def _of(self, found: list[Sample]) -> list[float]:
        if len(found) <= 1 and not self.spec.labels:
            return [sample.value for sample in found]
        groups: dict[str | None, list[Sample]] = {}
        for sample in found:
            labels = labels_of(sample.labels)
            if matches(labels, self.spec.labels):
                groups.setdefault(labels.get(self.split_by), []).append(sample)
        return [newest(group).value for group in groups.values()]
