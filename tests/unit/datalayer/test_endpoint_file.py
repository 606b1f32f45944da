"""Which entries of an endpoint file can be used."""

import json

import pytest

from epp.datalayer.endpoint_file import MAX_BYTES, EndpointFileError, Entry, parse_endpoint_file


def test_yaml_with_everything() -> None:
    good, bad = parse_endpoint_file(
        b"""
endpoints:
- {name: a, namespace: prod, address: 10.0.0.1, port: "8000", labels: {llm-d.ai/role: decode}}
- name: b
  address: "2001:DB8::1"
  port: 8001
- {name: c, address: "[::1]", port: "1", rank: 3}
- {name: d, address: VLLM-0.vllm.svc.cluster.local., port: "65535"}
"""
    )
    assert bad == []
    assert good == [
        Entry(0, "a", "prod", "10.0.0.1", 8000, {"llm-d.ai/role": "decode"}, True),
        Entry(1, "b", "default", "2001:db8::1", 8001, {}, True),
        Entry(2, "c", "default", "::1", 1, {}, True, rank=3),
        Entry(3, "d", "default", "vllm-0.vllm.svc.cluster.local", 65535, {}, False),
    ]


def test_json() -> None:
    good, bad = parse_endpoint_file(
        json.dumps({"endpoints": [{"name": "a", "address": "10.0.0.1", "port": "1"}]}).encode()
    )
    assert [entry.name for entry in good] == ["a"]
    assert bad == []
    good, _ = parse_endpoint_file(b"{endpoints: [{name: a, address: 10.0.0.1, port: '1'}]}")  # YAML, in flow style
    assert len(good) == 1


def test_no_endpoints_is_a_valid_list() -> None:
    assert parse_endpoint_file(b"endpoints: []") == parse_endpoint_file(b"endpoints:") == ([], [])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("just-a-name", "str, not a mapping"),
        ("{address: 10.0.0.2, port: '1'}", "name is None"),
        ("{name: '', address: 10.0.0.2, port: '1'}", "name is ''"),
        ("{name: a/b, address: 10.0.0.2, port: '1'}", "name 'a/b'"),
        ("{name: b, namespace: 5, address: 10.0.0.2, port: '1'}", "namespace is 5"),
        ("{name: b, address: 10.0.0.2, port: '1', rank: '1'}", "rank is '1'"),
        ("{name: b, address: 10.0.0.2, port: '1', rank: -1}", "rank is -1"),
        ("{name: b, port: '1'}", "address is None"),
        ("{name: b, address: 10.0.0.256, port: '1'}", "neither an IP address nor a host name"),
        ("{name: b, address: 'a b', port: '1'}", "neither an IP address nor a host name"),
        ("{name: b, address: -x.example, port: '1'}", "neither an IP address nor a host name"),
        ("{name: b, address: 'http://x', port: '1'}", "neither an IP address nor a host name"),
        ("{name: b, address: 'fe80::1%eth0', port: '1'}", "scope"),
        ("{name: b, address: 0.0.0.0, port: '1'}", "no address of a single server"),
        ("{name: b, address: 224.0.0.1, port: '1'}", "no address of a single server"),
        ("{name: b, address: 10.0.0.2}", "port is None"),
        ("{name: b, address: 10.0.0.2, port: true}", "port is True"),
        ("{name: b, address: 10.0.0.2, port: '0'}", "not from 1 to 65535"),
        ("{name: b, address: 10.0.0.2, port: 65536}", "not from 1 to 65535"),
        ("{name: b, address: 10.0.0.2, port: http}", "port is 'http'"),
        ("{name: b, address: 10.0.0.2, port: '1', labels: [x]}", "labels is a list"),
        ("{name: b, address: 10.0.0.2, port: '1', labels: {rank: 1}}", "put it in quotes"),
        ("{name: a, address: 10.0.0.2, port: '1'}", "default/a is already entry 0"),
        ("{name: b, address: 10.0.0.1, port: '8000'}", "already entry 0"),
        ("{name: b, address: '[10.0.0.1]', port: 8000}", "already entry 0"),
    ],
)
def test_a_bad_entry_is_left_out(entry: str, reason: str) -> None:
    first, last = "{name: a, address: 10.0.0.1, port: '8000'}", "{name: z, address: 10.0.0.9, port: '1'}"
    good, bad = parse_endpoint_file(f"endpoints:\n- {first}\n- {entry}\n- {last}".encode())
    assert [known.name for known in good] == ["a", "z"]
    assert [(mistake.index, mistake.left_out) for mistake in bad] == [(1, True)]
    assert reason in bad[0].reason


def test_unknown_fields_are_told_and_ignored() -> None:
    good, bad = parse_endpoint_file(b"endpoints: [{name: a, address: 10.0.0.1, port: '1', lables: {a: b}}]")
    assert [entry.labels for entry in good] == [{}]
    assert not bad[0].left_out
    assert "'lables'" in bad[0].reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no list `endpoints`"),
        (b"[]", "no list `endpoints`"),
        (b"endpoint: []", "no list `endpoints`"),
        (b"endpoints: {a: b}", "dict, not a list"),
        (b"endpoints: [", "neither YAML nor JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"endpoints: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
        (b"endpoints: [2020-13-45]", "cannot be read"),
        (b'{"endpoints": ' + b"[" * 100_000, "cannot be read"),
        (b"#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_what_is_no_endpoint_file(content: bytes, reason: str) -> None:
    with pytest.raises(EndpointFileError, match=reason):
        parse_endpoint_file(content)


def test_a_full_file_is_read() -> None:
    lines = [
        f'- {{name: pod-{i}, address: 10.{i >> 16}.{i >> 8 & 255}.{i & 255}, port: "8000"}}' for i in range(1, 5000)
    ]
    good, bad = parse_endpoint_file(b"endpoints:\n" + "\n".join(lines).encode())
    assert (len(good), bad) == (4999, [])


def test_a_few_lines_that_stand_for_a_billion_elements_are_a_bad_entry_or_a_bad_file() -> None:
    """Aliases of aliases: in a message they would be written out, and the picker would stand still."""
    aliases = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    aliases += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    for field in ("name", "namespace", "address", "port", "labels", "rank"):
        entry = {"name": "p", "address": "10.0.0.1", "port": "'8000'", field: "*a8"}
        text = "\n".join(aliases) + "\nendpoints:\n- {" + ", ".join(f"{k}: {v}" for k, v in entry.items()) + "}\n"
        good, (bad,) = parse_endpoint_file(text.encode())
        assert not good
        assert bad.reason.startswith(f"{field} is a list")
    merges = ["a0: &a0 {x: '1'}"]
    merges += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    with pytest.raises(EndpointFileError, match="merge keys add more than 100000 entries"):
        parse_endpoint_file(("\n".join(merges) + "\nendpoints: []\n").encode())


def test_merge_keys_are_fine() -> None:
    text = "common: &common {a: '1', b: '2'}\nendpoints:\n"
    text += "- {name: p, address: 10.0.0.1, port: 8000, labels: {<<: *common, b: '3'}}\n"
    ((entry,), bad) = parse_endpoint_file(text.encode())
    assert (entry.labels, bad) == ({"a": "1", "b": "3"}, [])
