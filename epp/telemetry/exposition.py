"""The metrics page, written by `prometheus_client` in slices, so that a scrape never holds up the requests.

A page with many models has tens of thousands of lines and takes a second to write; written at once, every open
stream would wait for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from epp.telemetry.metrics import Child, Histogram, Registry, Source

_SLICE = 64  # samples between two chances for the event loop: about a millisecond of writing
_EOF = b"# EOF\n"


async def render(registry: Registry, accept: str = "", collectors: Sequence[Collector] = ()) -> tuple[bytes, str]:
    """The page and its content type: OpenMetrics when the `Accept` header asks for it, else the text format 0.0.4.

    `collectors` are shown after ours: `prometheus_client.ProcessCollector(registry=None)`, for example.
    """
    parts: list[bytes] = []
    encode, content_type = _encoder(accept)
    for part in _parts(registry, encode, collectors, openmetrics="openmetrics" in content_type):
        parts.append(part)
        await asyncio.sleep(0)
    return b"".join(parts), content_type


def render_now(registry: Registry, accept: str = "") -> bytes:
    """The page in one go, for tests and tools without an event loop."""
    encode, content_type = _encoder(accept)
    return b"".join(_parts(registry, encode, (), openmetrics="openmetrics" in content_type))


class _One(Collector):
    """The collector the encoders of `prometheus_client` expect, with a single metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # a version in the header that is no number
        encode, content_type = choose_encoder("")
    return encode, content_type


def _parts(
    registry: Registry, encode: Callable[[Any], bytes], collectors: Sequence[Collector], *, openmetrics: bool
) -> Iterator[bytes]:
    for source in registry.sources():
        children = source.children()
        per_slice = max(1, _SLICE // _samples_per_child(children))
        for start in range(0, len(children), per_slice):
            part = encode(_One(_metric(source, children[start : start + per_slice], openmetrics=openmetrics)))
            part = part.removesuffix(_EOF)
            if start:  # HELP and TYPE stand once, before the first child
                part = part.split(b"\n", 2)[2]
            yield part
    for collector in collectors:
        yield encode(collector).removesuffix(_EOF)
    if openmetrics:
        yield _EOF


def _samples_per_child(children: Sequence[tuple[tuple[str, ...], Child]]) -> int:
    if children and isinstance(children[0][1], Histogram):
        return len(children[0][1].counts) + 2
    return 1


def _metric(source: Source, children: Sequence[tuple[tuple[str, ...], Child]], *, openmetrics: bool) -> Metric:
    name = source.name
    result = Metric(name.removesuffix("_total") if source.kind == "counter" else name, source.help, source.kind)
    for values, child in children:
        labels = dict(zip(source.label_names, values, strict=True))
        if isinstance(child, Histogram):
            _add_buckets(result.samples, name, labels, child, openmetrics)
        else:
            result.samples.append(Sample(name, labels, child.value))
    return result


def _add_buckets(samples: list[Sample], name: str, labels: dict[str, str], child: Histogram, openmetrics: bool) -> None:
    cumulated = list(accumulate(child.counts))
    bucket = name + "_bucket"
    for le, count in zip(_bound_texts(child.bounds, openmetrics), cumulated, strict=True):
        samples.append(Sample(bucket, {**labels, "le": le}, count))
    samples.append(Sample(name + "_sum", labels, child.sum))
    samples.append(Sample(name + "_count", labels, cumulated[-1]))


@lru_cache(maxsize=128)
def _bound_texts(bounds: tuple[float, ...], openmetrics: bool) -> tuple[str, ...]:
    """`le` as Go's client writes it: `1` in the text format, `1.0` in OpenMetrics. The text is part of the series."""
    texts: list[str] = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
    return tuple(texts if openmetrics else [text.removesuffix(".0") for text in texts])
