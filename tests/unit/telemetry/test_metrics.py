"""Counters, gauges, histograms, bounds of labels, and the page."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from epp.telemetry.exposition import render, render_now
from epp.telemetry.labels import OTHER, LabelLimiter
from epp.telemetry.metrics import MAX_PENDING, Gauge, Histogram, Registry

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def page(registry: Registry) -> dict[str, float]:
    """Sample name and labels, as one text -> value."""
    samples = {}
    for family in parse_text(render_now(registry).decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def test_counter_and_gauge() -> None:
    registry = Registry()
    counter = registry.counter("things_total", "Things.", ("kind",))
    counter.labels("a").inc()
    counter.labels("a").inc(2)
    gauge = registry.gauge("level", "Level.").labels()
    gauge.set(5)
    gauge.inc()
    gauge.dec(2)
    assert page(registry) == {"llm_d_epp_things_total{kind=a}": 3, "llm_d_epp_level{}": 4}
    assert counter.labels("a") is counter.labels("a")
    with pytest.raises(ValueError, match="cannot go down"):
        counter.labels("a").inc(-1)


def test_histogram_counts_a_value_at_the_bound_in_that_bucket() -> None:
    registry = Registry()
    histogram = registry.histogram("took_seconds", "Took.", (0.1, 1, 10)).labels()
    for value in (0.1, 0.2, 1, 11):
        histogram.observe(value)
    assert page(registry) == {
        "llm_d_epp_took_seconds_bucket{le=0.1}": 1,
        "llm_d_epp_took_seconds_bucket{le=1}": 3,
        "llm_d_epp_took_seconds_bucket{le=10}": 3,
        "llm_d_epp_took_seconds_bucket{le=+Inf}": 4,
        "llm_d_epp_took_seconds_sum{}": pytest.approx(12.3),
        "llm_d_epp_took_seconds_count{}": 4,
    }


@pytest.mark.parametrize("values", [1, MAX_PENDING - 1, MAX_PENDING, 3 * MAX_PENDING + 7])
def test_what_waits_to_be_counted_is_on_every_page(values: int) -> None:
    registry = Registry()
    family = registry.histogram("took_seconds", "Took.", (1, 10), ("who",))
    ours, other = family.labels("us"), family.labels("other")
    for value in range(values):
        ours.observe(value)
        other.observe(0.5)
    shown = page(registry)
    assert shown["llm_d_epp_took_seconds_count{who=us}"] == values
    assert shown["llm_d_epp_took_seconds_sum{who=us}"] == sum(range(values))
    assert shown["llm_d_epp_took_seconds_bucket{le=1,who=us}"] == min(values, 2)
    assert shown["llm_d_epp_took_seconds_sum{who=other}"] == 0.5 * values
    ours.observe(3)
    assert (ours.count, ours.sum, other.count) == (values + 1, sum(range(values)) + 3, values)
    assert page(registry)["llm_d_epp_took_seconds_count{who=us}"] == values + 1


def test_no_more_values_wait_than_allowed() -> None:
    histogram = Histogram((1,), pending := [])
    for _ in range(10 * MAX_PENDING):
        histogram.observe(0.5)
        assert len(pending) < MAX_PENDING
    assert histogram.counts == [10 * MAX_PENDING, 0]
    assert pending == []


def test_what_is_no_number_is_refused_at_once() -> None:
    histogram = Registry().histogram("took_seconds", "Took.", (1, 2)).labels()
    with pytest.raises(TypeError):
        histogram.observe("long")  # type: ignore[arg-type]
    histogram.observe(1)
    assert histogram.counts == [1, 0, 0]


@pytest.mark.parametrize("times", [1, 2, 40])
def test_a_tally_is_on_every_page_and_counts_like_its_histogram(times: int) -> None:
    registry = Registry()
    family = registry.histogram("took_seconds", "Took.", (0.1, 1, 10), ("how",))
    plain, tally = family.labels("plain"), registry.tally(family.labels("tally"))
    for value in (0.1, 11, 0.2, 1, 0.05) * times:  # few are counted one by one, many at once
        plain.observe(value)
        tally.observe(value)
    shown = page(registry)
    for name, value in shown.items():
        assert shown[name.replace("how=plain", "how=tally")] == value
    assert shown["llm_d_epp_took_seconds_count{how=tally}"] == 5 * times
    tally.observe(3)
    assert family.labels("tally").sum == plain.sum + 3


def test_a_tally_keeps_nothing_that_has_been_settled() -> None:
    registry = Registry()
    histogram = registry.histogram("took_seconds", "Took.", (1,)).labels()
    tally = registry.tally(histogram)
    assert registry.tally(histogram) is tally
    with pytest.raises(TypeError):
        tally.observe("long")  # type: ignore[arg-type]
    for _ in range(3):
        tally.observe(0.5)
        registry.settle()
    assert histogram._counts == [3, 0]
    assert (histogram.count, histogram.sum) == (3, 1.5)


def test_what_is_no_number_among_many_is_counted_like_one() -> None:
    one, many = (Registry().histogram("took_seconds", "Took.", (1, 2)).labels() for _ in range(2))
    values = [0.5, float("nan"), 1.5, 3.0] * 10
    for value in values:
        one.observe(value)
    many.count_all(values)
    assert one.counts == many.counts


def test_add_counts_merges_what_was_counted_elsewhere() -> None:
    histogram = Registry().histogram("took_seconds", "Took.", (1, 2)).labels()
    histogram.observe(0.5)
    histogram.add_counts([0, 2, 1], 6.0, 3)
    histogram.add_counts([9, 9], 0.0, 0)  # nothing counted: nothing merged, whatever the buckets
    assert (histogram.counts, histogram.sum, histogram.count) == ([1, 2, 1], 6.5, 4)
    with pytest.raises(ValueError, match="2 buckets do not fit 3"):
        histogram.add_counts([1, 0], 1.0, 1)


def test_asking_twice_gives_the_same_family() -> None:
    registry = Registry()
    family = registry.histogram("took_seconds", "Took.", (1, 2), ("a",))
    assert registry.histogram("llm_d_epp_took_seconds", "Other words.", (1, 2), ("a",)) is family
    assert registry.source("took_seconds") is family
    for other in (
        lambda: registry.histogram("took_seconds", "Took.", (1, 3), ("a",)),
        lambda: registry.histogram("took_seconds", "Took.", (1, 2), ("b",)),
        lambda: registry.gauge("took_seconds", "Took.", ("a",)),
    ):
        with pytest.raises(ValueError, match="registered already"):
            other()


def test_names_and_buckets_are_checked() -> None:
    registry = Registry()
    with pytest.raises(ValueError, match="ends in _total"):
        registry.counter("things", "Things.")
    for buckets in ((), (2, 1), (1, 1), (1, float("inf"))):
        with pytest.raises(ValueError, match="finite and ascending"):
            registry.histogram("took_seconds", "Took.", buckets)
    with pytest.raises(ValueError, match="1 label values for 2 labels"):
        registry.counter("things_total", "Things.", ("a", "b")).labels("x")


def test_remove_forgets_a_child() -> None:
    registry = Registry()
    family = registry.gauge("level", "Level.", ("pod", "port"))
    family.labels("a", 1).set(1)
    family.remove("a", 1)
    family.remove("never", 2)
    assert len(family) == 0
    assert render_now(registry) == b""


def test_model_and_fairness_labels_are_bounded_but_pinned_names_pass() -> None:
    registry = Registry()
    registry.pin_models(["configured", "x" * 1000])
    family = registry.counter("request_total", "Requests.", ("model_name", "fairness_id"))
    for i in range(1200):
        family.labels(f"invented-{i}", "f").inc()
    assert len(family) == 1001
    assert family.labels(OTHER, "f").value == 200
    family.labels("configured", "f").inc()
    assert len(family) == 1002
    assert len(registry.limiters["model"]) == 1000
    assert registry.limiters["model"].overflowed >= 200


def test_limiter_refuses_what_no_page_can_show() -> None:
    limiter = LabelLimiter()
    assert limiter("x" * 257) == OTHER
    assert limiter("lone \ud800 surrogate") == OTHER
    nobodys: Any = None
    assert limiter(nobodys) == OTHER
    assert limiter("ok") == "ok"
    assert len(limiter) == 1


def test_the_number_of_series_is_bounded_over_all_combinations() -> None:
    registry = Registry(max_series=10)
    family = registry.counter("request_total", "Requests.", ("model_name", "fairness_id", "priority"))
    for model in range(10):
        for fairness in range(10):
            family.labels(f"m{model}", f"f{fairness}", 1).inc()
    assert len(family) == 11
    assert family.labels(OTHER, OTHER, 1).value == 90
    assert page(registry)["llm_d_epp_metric_series_limited_total{metric=llm_d_epp_request_total}"] == 90


def test_a_label_that_is_not_text_does_not_break_the_page() -> None:
    registry = Registry()
    registry.counter("things_total", "Things.", ("pod",)).labels("bad \udcff name").inc()
    assert page(registry) == {"llm_d_epp_things_total{pod=bad ? name}": 1}


def test_sampled_gauges_are_asked_at_every_scrape() -> None:
    registry = Registry()
    depth = {"a": 1}
    registry.sampled_gauge("depth", "Depth.", ("queue",), lambda: [((k,), v) for k, v in depth.items()])
    assert page(registry) == {"llm_d_epp_depth{queue=a}": 1}
    depth["b"] = 2
    assert page(registry)["llm_d_epp_depth{queue=b}"] == 2
    with pytest.raises(ValueError, match="registered already"):
        registry.gauge("depth", "Depth.", ("queue",))
    with pytest.raises(ValueError, match="registered already"):
        registry.sampled_gauge("depth", "Depth.", ("queue",), list)


def test_what_several_sample_is_added_up() -> None:
    registry = Registry()
    first, second = {"a": 1, "b": 2}, {"b": 40}

    def sample(seen: dict[str, int]) -> list[tuple[tuple[str], int]]:
        return [((by,), count) for by, count in seen.items()]

    for seen in (first, second):
        registry.sampled_counter("seen_total", "Seen.", ("by",), partial(sample, seen), shared=True)
    assert page(registry) == {"llm_d_epp_seen_total{by=a}": 1, "llm_d_epp_seen_total{by=b}": 42}
    del second["b"], first["a"]
    assert page(registry) == {"llm_d_epp_seen_total{by=b}": 2}
    with pytest.raises(ValueError, match="asked for as gauge"):
        registry.sampled_gauge("seen_total", "Seen.", ("by",), list, shared=True)
    with pytest.raises(ValueError, match="asked for as counter with"):
        registry.sampled_counter("seen_total", "Seen.", ("other",), list, shared=True)
    with pytest.raises(ValueError, match="registered already"):
        registry.sampled_counter("seen_total", "Seen.", ("by",), list)
    registry.sampled_gauge("own", "Own.", (), list)
    with pytest.raises(ValueError, match="registered already"):
        registry.sampled_gauge("own", "Own.", (), list, shared=True)


def test_help_carries_the_stability_and_bounds_are_written_as_go_writes_them() -> None:
    registry = Registry()
    registry.histogram("size_bytes", "Size.", (1, 1048576, 0.5e7)).labels().observe(3)
    text = render_now(registry).decode()
    assert "# HELP llm_d_epp_size_bytes [ALPHA] Size.\n# TYPE llm_d_epp_size_bytes histogram\n" in text
    assert 'le="1"' in text
    assert 'le="1.048576e+06"' in text
    assert 'le="1.0"' in render_now(registry, OPENMETRICS).decode()


async def test_the_page_is_the_same_written_in_slices_and_lets_others_run() -> None:
    registry = Registry()
    family = registry.histogram("took_seconds", "Took.", (1, 2, 3), ("pod",))
    counter = registry.counter("things_total", "Things.", ("pod",))
    for i in range(300):
        family.labels(f"p{i}").observe(i % 5)
        counter.labels(f"p{i}").inc(i)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    text, content_type = await render(registry)
    openmetrics, openmetrics_type = await render(registry, OPENMETRICS)
    task.cancel()
    assert turns > 20
    assert content_type.startswith("text/plain; version=0.0.4")
    assert openmetrics_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {f.name: f for f in parse_text(text.decode())}
    assert len(families["llm_d_epp_took_seconds"].samples) == 300 * 6
    assert text.count(b"# HELP llm_d_epp_took_seconds ") == 1
    assert text == render_now(registry)
    strict = {f.name: f for f in parse_openmetrics(openmetrics.decode())}
    assert len(strict["llm_d_epp_took_seconds"].samples) == 300 * 6
    assert len(strict["llm_d_epp_things"].samples) == 300
    assert openmetrics.endswith(b"# EOF\n")
    assert openmetrics.count(b"# EOF") == 1


async def test_other_collectors_stand_after_ours_and_a_bad_accept_header_gets_text() -> None:
    registry = Registry()
    registry.gauge("level", "Level.").labels().set(1)
    text, content_type = await render(
        registry, "application/openmetrics-text; version=nonsense", [ProcessCollector(registry=None)]
    )
    assert content_type.startswith("text/plain")
    names = [f.name for f in parse_text(text.decode())]
    assert names[0] == "llm_d_epp_level"
    assert "process_cpu_seconds" in names


def test_computed_metrics_take_their_name_as_it_is() -> None:
    registry = Registry()
    child = Gauge()
    child.set(3)
    registry.computed("gauge", "old_name", "[ALPHA] Old.", (), lambda: [((), child)])
    assert page(registry) == {"old_name{}": 3}
