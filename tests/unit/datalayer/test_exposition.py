"""Single metrics from a Prometheus page."""

import math
from pathlib import Path

import pytest

from epp.datalayer.exposition import Family, Metric, MetricSpec, Reading, Sample, labels_of, newest, parse_spec

DATA = Path(__file__).parents[2] / "data" / "datalayer"


def value(page: bytes, text: str, split_by: str = "") -> list[float]:
    spec = parse_spec(text)
    assert spec is not None
    return Metric(spec, split_by).values(page)


def test_specs() -> None:
    assert parse_spec("vllm:x") == MetricSpec("vllm:x")
    assert parse_spec(' m { a = b , c="d,}e" } ') == MetricSpec("m", (("a", "b"), ("c", "d,}e")))
    assert parse_spec('m{a="q\\"b\\\\c\\nd"}') == MetricSpec("m", (("a", 'q"b\\c\nd'),))
    assert parse_spec("m{}") == MetricSpec("m")
    assert parse_spec("m{a=}") == MetricSpec("m", (("a", ""),))
    assert parse_spec("") is parse_spec("  ") is None
    assert str(parse_spec("m{a=b}")) == 'm{a="b"}'
    assert str(parse_spec("m")) == "m"


@pytest.mark.parametrize("text", ["1m", "m{", "m}", "m{a}", "m{a=b c}", 'm{a="b}', "m{=b}", "m x", "m{a=b}{c=d}"])
def test_bad_specs(text: str) -> None:
    with pytest.raises(ValueError, match="m"):
        parse_spec(text)


def test_a_captured_page() -> None:
    page = (DATA / "vllm_metrics.txt").read_bytes()
    assert value(page, "vllm:num_requests_waiting") == [12.0]
    assert value(page, "vllm:num_requests_running") == [7.0]
    assert value(page, "vllm:kv_cache_usage_perc") == [0.35686274509803917]
    assert value(page, 'vllm:num_requests_waiting_by_reason{reason="capacity"}') == [12.0]
    assert value(page, "vllm:num_requests_waiting_by_reason{reason=deferred,engine=0}") == [0.0]
    assert value(page, "vllm:num_requests_waiting{engine=7}") == []
    assert value(page, "vllm:num_requests") == []
    assert len(Family("vllm:lora_requests_info").samples(page)) == 5


def test_two_engines_on_one_page() -> None:
    page = (DATA / "vllm_metrics_dp2.txt").read_bytes()
    assert value(page, "vllm:num_requests_running", "engine") == [0.0, 0.0]
    assert value(page, "vllm:num_requests_running") == [0.0]


def test_values_are_exact() -> None:
    page = b"a NaN\nb +Inf\nc -Inf\nd 1.7952274451228855e+09\ne -0.5\nf 3\n"
    assert math.isnan(value(page, "a")[0])
    assert value(page, "b") + value(page, "c") == [math.inf, -math.inf]
    assert value(page, "d") == [1795227445.1228855]
    assert value(page, "e") + value(page, "f") == [-0.5, 3.0]


def test_first_and_last_line_and_no_line_break() -> None:
    assert value(b"m 1", "m") == [1.0]
    assert value(b"m{} 1\nm2 2", "m") == [1.0]
    assert value(b"m 1\nm2 2", "m2") == [2.0]
    assert value(b"", "m") == value(b"\n", "m") == value(b"mm 1", "m") == []


def test_comments_and_longer_names_are_not_samples() -> None:
    page = b'# HELP m m 5\n# TYPE m gauge\nm_total 1\nm_sum{a="\\nm 4"} 2\nm 3\n# EOF'
    assert value(page, "m") == [3.0]


def test_timestamps_choose_the_newest() -> None:
    page = b'm{a="1"} 1 1000\nm{a="2"} 2 3000\nm{a="3"} 3 2000\nm{a="4"} 4\n'
    assert value(page, "m") == [2.0]
    assert newest([Sample(b"", 1.0, None), Sample(b"", 2.0, None)]).value == 1.0
    assert newest([Sample(b"", 1.0, None), Sample(b"", 2.0, -5)]).value == 2.0
    assert newest([Sample(b"", 1.0, 7), Sample(b"", 2.0, 7)]).value == 1.0


def test_exemplars_and_braces_in_labels_do_not_mislead() -> None:
    page = b'm{a="}",b="{\\"} 9"} 1 # {trace="x"} 0.5 1.0\n'
    assert Family("m").samples(page) == [Sample(b'{a="}",b="{\\"} 9"}', 1.0, None)]
    assert labels_of(b'{a="}",b="{\\"} 9"}') == {"a": "}", "b": '{"} 9'}


def test_label_escapes() -> None:
    assert labels_of(rb'{a="x\\y\"z\n\t",b="",c="\xff"}') == {"a": 'x\\y"z\n\\t', "b": "", "c": "\\xff"}
    assert labels_of(b"{}") == labels_of(b"") == {}


def test_lines_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="not a number"):
        value(b"m one\n", "m")
    with pytest.raises(ValueError, match="cannot read"):
        value(b'm{a="1 5\nx 1\n', "m")
    with pytest.raises(ValueError, match="cannot read"):
        value(b"x 1\nm \n", "m")


def test_the_remembered_place_never_misleads() -> None:
    family = Family("m")
    filler = b"".join(b"filler_%d 1\n" % index for index in range(2000))
    group = b"".join(b'm{i="%d"} %d\n' % (index, index) for index in range(400))
    pages = [filler + group, filler[:-3000] + b"\n" + group + filler, group, b"", filler, filler + filler + group]
    pages += [filler[: len(filler) - cut] + b"\n" + group for cut in range(0, 9000, 1000)]
    for page in [*pages, *reversed(pages)]:
        assert family.samples(page) == Family("m").samples(page)


def test_lines_that_came_before_are_not_read_again() -> None:
    read: list[int] = []

    def meaning(samples: list[Sample]) -> tuple[float, ...]:
        read.append(len(samples))
        return tuple(sample.value for sample in samples)

    reading = Reading("m", meaning)
    assert reading(b"a 1\nm 1\nm 2\n") == (1.0, 2.0)
    assert reading(b"m 1\nm 2") == (1.0, 2.0)  # of another page
    assert reading(b"m 1\nm 3") == (1.0, 3.0)
    assert reading(b"a 1\n") == reading(b"") == ()
    assert read == [2, 2, 0]
    with pytest.raises(ValueError, match="not a number"):
        reading(b"m one")
    with pytest.raises(ValueError, match="not a number"):
        reading(b"m one")


def test_lines_that_are_kept_are_bounded() -> None:
    reading = Reading("m", len)
    for index in range(300):
        assert reading(b'm{a="%d%s"} 1' % (index, b"x" * 10_000)) == 1
    assert sum(len(lines) for lines in reading._known) <= 1 << 20
    assert 1 < len(reading._known) < 105
    assert reading(b'm{a="%s"} 1' % (b"x" * (2 << 20))) == 1
    assert not reading._known
    assert reading(b"m 1") == 1
    assert len(reading._known) == 1
