"""Reading pages and responses gives the same as slower, simpler readers, however the bytes arrive."""

import itertools
import math

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from epp.datalayer.endpoint_file import EndpointFileError, parse_endpoint_file
from epp.datalayer.exposition import Family, labels_of, parse_spec
from epp.datalayer.http_response import HttpError, HttpResponse, ResponseReader

NAMES = st.sampled_from(["m", "m_a", "vllm:x", "vllm:x_y", "z"])
LABEL_VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
NUMBERS = st.one_of(st.floats(allow_nan=True), st.integers(-(10**9), 10**9).map(float))


def number(value: float) -> str:
    return (
        "NaN" if math.isnan(value) else "+Inf" if value == math.inf else "-Inf" if value == -math.inf else repr(value)
    )


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@st.composite
def pages(draw: st.DrawFn) -> str:
    lines = []
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        if draw(st.booleans()):
            lines.append(f"# TYPE {name} gauge")
        series = draw(
            st.lists(st.tuples(st.dictionaries(st.sampled_from(["a", "b_1"]), LABEL_VALUES), NUMBERS), max_size=4)
        )
        for labels, value in series:
            inner = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
            timestamp = draw(st.sampled_from(["", " 1700000000123", " -5"]))
            lines.append(
                f"{name}{{{inner}}} {number(value)}{timestamp}" if inner else f"{name} {number(value)}{timestamp}"
            )
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@given(pages(), pages())
@settings(max_examples=200, deadline=None)
def test_families_as_prometheus_reads_them(page: str, other: str) -> None:
    families = {name: Family(name) for name in ("m", "m_a", "vllm:x", "vllm:x_y", "z")}
    for text in (page, other, page):  # the readers remember places from page to page
        expected: dict[str, list[tuple[dict[str, str], str, object]]] = {name: [] for name in families}
        for metric in text_string_to_metric_families(text if text.endswith("\n") else text + "\n"):
            for sample in metric.samples:
                stamp = None if sample.timestamp is None else round(float(sample.timestamp) * 1000)
                expected[sample.name].append((sample.labels, repr(float(sample.value)), stamp))
        for name, family in families.items():
            found = [(labels_of(s.labels), repr(s.value), s.timestamp) for s in family.samples(text.encode())]
            assert found == expected[name]


@given(st.binary(max_size=300), st.binary(max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_page_is_read_or_refused(page: bytes, tail: bytes) -> None:
    for text in (page, b"m" + page, b"\nm{" + page + b"}" + tail, b"\nm " + page):
        try:
            found = Family("m").samples(text)
        except ValueError:
            continue
        assert all(isinstance(sample.value, float) for sample in found)


@given(st.text(max_size=30))
def test_any_spec_is_parsed_or_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except ValueError:
        return
    assert spec is None or parse_spec(str(spec)) is not None


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(
    st.lists(
        st.tuples(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.booleans()), min_size=1, max_size=3
    ),
    st.lists(st.integers(0, 600), max_size=12),
)
@example([([b"x" * 40] * 5, True), ([b"y" * 40] * 5, False)], list(range(0, 600, 1)))
@settings(max_examples=200, deadline=None)
def test_responses_split_anywhere(bodies: list[tuple[list[bytes], bool]], cuts: list[int]) -> None:
    reader = ResponseReader(1000)
    for chunks, as_chunks in bodies:
        if as_chunks:
            wire = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n"
            wire += b"".join(b"%X\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nt: 1\r\n\r\n"
        else:
            body = b"".join(chunks)
            wire = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        results = [reader.feed(memoryview(piece)) for piece in pieces(wire, cuts)]
        assert results[-1] == HttpResponse(200, b"".join(chunks), True)
        assert not any(results[:-1])


@given(
    st.lists(st.binary(max_size=60), max_size=6),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data: list[bytes], head: bytes) -> None:
    reader = ResponseReader(100)
    try:
        for piece in [head, *data]:
            if reader.feed(piece) is not None:
                return
        reader.eof()
    except HttpError:
        return


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_endpoint_file_is_read_or_refused(content: bytes, prefix: bool) -> None:
    try:
        good, bad = parse_endpoint_file(b"endpoints:\n- " + content if prefix else content)
    except EndpointFileError:
        return
    assert all(1 <= entry.port <= 65535 and entry.name for entry in good)
    assert all(mistake.reason for mistake in bad)
