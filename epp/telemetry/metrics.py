"""Counters, gauges and histograms for one event loop: no locks, and a child is a plain object with one method call.

A family is asked for by name and may be asked for twice; `labels(...)` returns the child that belongs to the values,
which callers on the hot path keep. The page itself is written by `prometheus_client` (see `exposition`).

Names get the prefix `llm_d_epp_` and help texts the stability mark `[ALPHA]`, as in llm-d-router.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from epp.telemetry.labels import LIMITED, OTHER, LabelLimiter, encodable

PREFIX = "llm_d_epp_"
MAX_PENDING = 512
"""Observed values that wait to be counted: a tenth of a millisecond of work."""
_MANY = 16  # values from which sorting them all costs less than looking for the bucket of each
MAX_SERIES = 5000
"""Label combinations per family; beyond it the bounded labels are all `other` (counted)."""


class Counter:
    """A value that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, n: float = 1) -> None:
        """Add `n`, which is not negative."""
        if n < 0:
            raise ValueError(f"a counter cannot go down (inc by {n})")
        self.value += n


class Gauge:
    """A value that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def inc(self, n: float = 1) -> None:
        """Add `n`."""
        self.value += n

    def dec(self, n: float = 1) -> None:
        """Take `n` off."""
        self.value -= n


class Histogram:
    """Counts per bucket (not cumulative; the last is +Inf) and the sum. `bounds` are the finite upper bounds.

    A request observes a score of values, each in a histogram of its own, and by the next request all of these have left
    the caches. So an observed value only joins `pending`, which the histograms of a registry share; it is put into its
    bucket when somebody looks at any of them, or when `MAX_PENDING` values wait. What one reads is always exact.
    """

    __slots__ = ("_counts", "_pending", "_sum", "_tally", "bounds")

    def __init__(self, bounds: tuple[float, ...], pending: Pending | None = None) -> None:
        self.bounds = bounds
        self._pending: Pending = [] if pending is None else pending
        self._tally: Tally | None = None
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a value equal to a bound belongs to that bucket."""
        pending = self._pending
        pending.append((self, value + 0.0))  # what is no number fails here, at its caller
        if len(pending) >= MAX_PENDING:
            self._settle()

    def add_counts(self, counts: Sequence[int], total: float, n: int) -> None:
        """Merge what was counted elsewhere over the same bounds: `n` values that sum up to `total`."""
        if n == 0:
            return
        mine = self.counts
        if len(counts) != len(mine):
            raise ValueError(f"{len(counts)} buckets do not fit {len(mine)} (the last is +Inf)")
        for i, count in enumerate(counts):
            if count:
                mine[i] += count
        self._sum += total

    @property
    def counts(self) -> list[int]:
        """Values per bucket, the last one is +Inf."""
        self._settle()
        return self._counts

    @property
    def sum(self) -> float:
        """Of all observed values."""
        self._settle()
        return self._sum

    @property
    def count(self) -> int:
        """How many values have been observed."""
        return sum(self.counts)

    def tally(self) -> Tally:
        """Where to observe values without a step of Python; see `Registry.tally`."""
        if self._tally is None:
            self._tally = Tally(self)
        return self._tally

    def count_all(self, values: Sequence[float]) -> None:
        """`observe` for many values at once."""
        total = sum(values, self._sum)
        counts, bounds = self._counts, self.bounds
        if len(values) < _MANY or math.isnan(total):
            for value in values:
                counts[bisect_left(bounds, value)] += 1
        else:
            ordered = sorted(values)
            counted = 0
            for bucket, bound in enumerate(bounds):
                upto = bisect_right(ordered, bound, counted)
                counts[bucket] += upto - counted
                counted = upto
            counts[-1] += len(ordered) - counted
        self._sum = total

    def _settle(self) -> None:
        """Count what is pending, for all histograms that share it."""
        for histogram, value in self._pending:
            histogram._counts[bisect_left(histogram.bounds, value)] += 1
            histogram._sum += value
        self._pending.clear()
        if self._tally is not None:
            self._tally.settle()


class Tally:
    """Values of one histogram that wait to be counted, for those that come several times with every request.

    `observe` is a method of an array: no step of Python, and no object that stays. It has no bound by itself: see
    `Registry.settle`. The histogram counts what waits whenever it is looked at.
    """

    __slots__ = ("_histogram", "_values", "observe")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values = array("d")
        self.observe: Callable[[float], None] = self._values.append

    @property
    def waiting(self) -> int:
        """Values that have not been counted yet."""
        return len(self._values)

    def settle(self) -> None:
        """Count what waits."""
        if self._values:
            self._histogram.count_all(self._values)
            del self._values[:]


Pending = list[tuple[Histogram, float]]
Child = Counter | Gauge | Histogram
Sample = Callable[[], Iterable[tuple[Sequence[object], float]]]
"""Label values and values, as of now."""
ChildT = TypeVar("ChildT", Counter, Gauge, Histogram)


class Source(Protocol):
    """One metric on the page: a family, or something computed at every scrape."""

    @property
    def kind(self) -> str:
        """`counter`, `gauge` or `histogram`."""

    @property
    def name(self) -> str:
        """The full name, a counter's with `_total`."""

    @property
    def help(self) -> str:
        """The help text."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels."""

    def children(self) -> Sequence[tuple[tuple[str, ...], Child]]:
        """Label values and children, as of now."""


class Family(Generic[ChildT]):
    """All children of one name. Implements `Source`."""

    def __init__(
        self,
        kind: str,
        name: str,
        help: str,
        labels: tuple[str, ...],
        make: Callable[[], ChildT],
        registry: Registry,
        bounds: tuple[float, ...] = (),
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.label_names = labels
        self.bounds = bounds
        self._make: Callable[[], ChildT] = make
        self._registry = registry
        self._children: dict[tuple[str, ...], ChildT] = {}
        self._limiters = [registry.limiters.get(LIMITED.get(label, "")) for label in labels]
        self._limited = any(limiter is not None for limiter in self._limiters)

    def labels(self, *values: object) -> ChildT:
        """The child of these label values, in the order of the names; made on first use."""
        key = tuple([v if type(v) is str else str(v) for v in values])
        child = self._children.get(key)
        return child if child is not None else self._admit(key)

    def remove(self, *values: object) -> None:
        """Forget a child: what it measured is gone. Unknown ones are ignored."""
        self._children.pop(tuple(str(v) for v in values), None)

    def __len__(self) -> int:
        return len(self._children)

    def children(self) -> list[tuple[tuple[str, ...], ChildT]]:
        """Label values and children, as of now."""
        return list(self._children.items())

    def _admit(self, key: tuple[str, ...]) -> ChildT:
        if len(key) != len(self.label_names):
            raise ValueError(f"{self.name}: {len(key)} label values for {len(self.label_names)} labels")
        limiters = self._limiters
        if self._limited:
            key = tuple([limit(v) if limit is not None else v for v, limit in zip(key, limiters, strict=True)])
        key = tuple([v if encodable(v) else v.encode("utf-8", "replace").decode() for v in key])
        child = self._children.get(key)
        if child is None and self._limited and len(self._children) >= self._registry.max_series:
            key = tuple([OTHER if limit is not None else v for v, limit in zip(key, limiters, strict=True)])
            child = self._children.get(key)
            self._registry.limited(self.name)
        if child is None:
            child = self._children[key] = self._make()
        return child


class Computed:
    """A metric whose children are made anew at every scrape. Implements `Source`."""

    def __init__(
        self,
        kind: str,
        name: str,
        help: str,
        label_names: tuple[str, ...],
        children: Callable[[], Sequence[tuple[tuple[str, ...], Child]]],
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.label_names = label_names
        self.children = children


class Registry:
    """The metrics of one picker. They appear on the page in the order they were first asked for.

    `limiters` bound the label values by kind ("model", "fairness", "endpoint").
    """

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self.max_series = max_series
        self.limiters: dict[str, LabelLimiter] = {kind: LabelLimiter() for kind in set(LIMITED.values())}
        self._pending: Pending = []  # of all histograms, see there
        self._tallies: set[Tally] = set()
        self._families: dict[str, Family[Any]] = {}
        self._computed: dict[str, Computed] = {}
        self._shared: dict[str, list[Sample]] = {}

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """A counter family; its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"{name}: the name of a counter ends in _total")
        return self._family("counter", name, help, labels, Counter)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        """A gauge family."""
        return self._family("gauge", name, help, labels, Gauge)

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Family[Histogram]:
        """A histogram family with these finite upper bounds, ascending."""
        bounds = tuple(float(b) for b in buckets)
        if not bounds or list(bounds) != sorted(set(bounds)) or not all(map(math.isfinite, bounds)):
            raise ValueError(f"{name}: buckets must be finite and ascending, got {list(buckets)}")
        return self._family("histogram", name, help, labels, lambda: Histogram(bounds, self._pending), bounds)

    def tally(self, histogram: Histogram) -> Tally:
        """For one of these histograms that gets a value with every request, for as long as the picker runs."""
        tally = histogram.tally()
        self._tallies.add(tally)
        return tally

    def settle(self) -> None:
        """Count what waits in the tallies. What bounds them: called every few requests, and once a second."""
        for tally in self._tallies:
            tally.settle()

    def sampled_gauge(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        sample: Sample,
        *,
        shared: bool = False,
    ) -> None:
        """A gauge whose label values and values are asked for at every scrape, so that it costs nothing between.

        `shared`: several may register it so; values of the same labels are added up.
        """
        self._sampled("gauge", Gauge, name, help, labels, sample, shared=shared)

    def sampled_counter(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        sample: Sample,
        *,
        shared: bool = False,
    ) -> None:
        """The same for values that only grow; the name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"{name}: the name of a counter ends in _total")
        self._sampled("counter", Counter, name, help, labels, sample, shared=shared)

    def _sampled(
        self,
        kind: str,
        make: type[Gauge] | type[Counter],
        name: str,
        help: str,
        labels: Sequence[str],
        sample: Sample,
        *,
        shared: bool,
    ) -> None:
        full = self.full_name(name)
        samples = self._shared.get(full) if shared else None
        if samples is not None:
            known = self._computed[full]
            if (known.kind, known.label_names) != (kind, tuple(labels)):
                raise ValueError(
                    f"{full} is registered already as {known.kind} with labels {known.label_names}; asked for as "
                    f"{kind} with {tuple(labels)}: rename one of them"
                )
            samples.append(sample)
            return
        samples = [sample]

        def children() -> list[tuple[tuple[str, ...], Child]]:
            result: dict[tuple[str, ...], Gauge | Counter] = {}
            for ask in samples:
                for values, value in ask():
                    child = result.setdefault(tuple(map(str, values)), make())
                    child.value += value
            return list(result.items())

        self.computed(kind, full, help, labels, children)
        if shared:
            self._shared[full] = samples

    def computed(
        self,
        kind: str,
        name: str,
        help: str,
        labels: Sequence[str],
        children: Callable[[], Sequence[tuple[tuple[str, ...], Child]]],
    ) -> None:
        """A metric made of others at every scrape. `name` is taken as it is, without a prefix."""
        if name in self._families or name in self._computed:
            raise ValueError(f"{name} is registered already")
        self._computed[name] = Computed(kind, name, _alpha(help), tuple(labels), children)

    def source(self, name: str) -> Source | None:
        """A family or computed metric by name, with or without the prefix."""
        full = self.full_name(name)
        return self._families[full] if full in self._families else self._computed.get(full)

    def full_name(self, name: str) -> str:
        """The name on the page."""
        return name if name.startswith(PREFIX) else PREFIX + name

    def pin_models(self, names: Iterable[str]) -> None:
        """Model names from the configuration: always shown, whatever clients invent."""
        self.limiters["model"].pin(names)

    def sources(self) -> list[Source]:
        """Everything that may be on the page."""
        return [*self._families.values(), *self._computed.values()]

    def limited(self, name: str) -> None:
        """A family has reached its number of series."""
        self.counter(
            "metric_series_limited_total", "Label combinations counted under `other` for want of room.", ("metric",)
        ).labels(name).inc()

    def _family(
        self,
        kind: str,
        name: str,
        help: str,
        labels: Sequence[str],
        make: Callable[[], ChildT],
        bounds: tuple[float, ...] = (),
    ) -> Family[ChildT]:
        full = self.full_name(name)
        if full in self._computed:
            raise ValueError(f"{full} is registered already, as computed at every scrape")
        family = self._families.get(full)
        if family is None:
            family = self._families[full] = Family(kind, full, _alpha(help), tuple(labels), make, self, bounds)
        elif (family.kind, family.label_names, family.bounds) != (kind, tuple(labels), bounds):
            raise ValueError(
                f"{full} is registered already as {family.kind} with labels {family.label_names} and buckets "
                f"{family.bounds}; asked for as {kind} with {tuple(labels)} and {bounds}: rename one of them"
            )
        return family


def _alpha(help: str) -> str:
    return help if help.startswith("[") else f"[ALPHA] {help}"
