"""`epp kv watch` prints what a publisher of KV events says; `epp kv check` finds out why one says nothing."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

import zmq

from epp.cli.output import print_json
from epp.kvevents.decoding import Decoder
from epp.kvevents.diagnosis import Expected, Finding, of_block_size, of_events, of_port, of_replay, of_sources
from epp.kvevents.events import BlockRemoved, BlockStored, KVEvent
from epp.kvevents.probe import Heard, Message, ask_replay, listen, messages
from epp.kvevents.zmtp import find_peer, split_address

_BLOCK_SIZE = re.compile(rb'cache_config_info\{[^}]*?(?:block_size|page_size)="(\d+)"')
_MAX_PAGE = 8 << 20
_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("problem", "bold red")}
_COLOURS = {"BlockStored": "green", "BlockRemoved": "yellow", "AllBlocksCleared": "bold red", "Problem": "bold red"}


def run(argv: Sequence[str]) -> int:
    """`watch`: 0, or 1 for a host that nobody knows. `check`: 0 when nothing is wrong, 1 when something is.

    2: the command line cannot be understood.
    """
    parser = argparse.ArgumentParser(prog="epp kv", description="KV cache events of model servers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    watch = commands.add_parser("watch", help="print live events", description="Print the events of a publisher.")
    check = commands.add_parser("check", help="diagnose a publisher", description="Say what is wrong with a publisher.")
    for command in (watch, check):
        command.add_argument("endpoint", metavar="ENDPOINT", help="the publisher: tcp://HOST:PORT or HOST:PORT")
        command.add_argument(
            "--bind", action="store_true", help="listen on ENDPOINT (tcp://*:PORT): publishers connect"
        )
        command.add_argument("--output", choices=("text", "json"), help="default: text on a terminal, else watch: json")
    watch.add_argument("--topic", default="", help="prefix of the topics to show (default: all)")
    watch.add_argument("--seconds", type=float, help="stop after this long (default: never)")
    watch.add_argument("--count", type=int, help="stop after this many messages")
    check.add_argument(
        "--topic", default="kv@", help="prefix that the picker subscribes to, topicFilter (default: kv@)"
    )
    check.add_argument("--http", metavar="URL", help="the server's API, to compare with what it says of itself")
    check.add_argument("--replay", metavar="ADDRESS", help="the replay port: tcp://HOST:PORT or HOST:PORT")
    check.add_argument("--rank", type=int, default=0, help="data-parallel rank expected on this port (default: 0)")
    check.add_argument("--block-size", type=int, help="blockSizeTokens of the picker")
    check.add_argument("--seconds", type=float, default=5.0, help="how long to listen for events (default: 5)")
    options = parser.parse_args(argv)
    options.endpoint = _address(options.endpoint)
    try:
        if not options.bind or options.endpoint.startswith("tcp://"):
            split_address(options.endpoint)
        return _watch(options) if options.command == "watch" else _check(options)
    except (ValueError, zmq.ZMQError) as error:
        print(f"epp kv {options.command}: {options.endpoint}: {error}", file=sys.stderr)
        return 2


def _address(text: str) -> str:
    return text if "://" in text else f"tcp://{text}"


def _watch(options: argparse.Namespace) -> int:
    as_json = options.output == "json" or (options.output is None and not sys.stdout.isatty())
    if not options.bind:
        found = of_port(find_peer(options.endpoint, 2.0), Expected(options.endpoint, options.topic))
        if found.code == "unknown-host":
            print(f"epp kv watch: {found.message} {found.fix}", file=sys.stderr)
            return 1
        if found.level != "ok":
            print(f"epp kv watch: {found.message} Waiting; `epp kv check` says what to do.", file=sys.stderr)
    heard, decoder = Heard(), Decoder()
    stream = messages(
        options.endpoint,
        topic=options.topic,
        bind=options.bind,
        clock=time.monotonic,
        seconds=options.seconds,
        heard=heard,
        decoder=decoder,
    )
    gaps = 0
    for message in stream:
        if heard.gaps > gaps:
            _show(
                {"event": "Problem", "topic": message.topic, "seq": message.seq, "missed": heard.gaps - gaps}, as_json
            )
            gaps = heard.gaps
        for line in _lines(message, decoder):
            _show(line, as_json)
        if options.count is not None and heard.messages >= options.count:
            break
    stream.close()  # type: ignore[attr-defined]
    return 0


def _lines(message: Message, decoder: Decoder) -> list[dict[str, Any]]:
    """What to print of a message: a line per event, and one per reason why something in it is not for the index."""
    head: dict[str, Any] = {"seq": message.seq, "topic": message.topic}
    stats = decoder.stats
    lines: list[dict[str, Any]] = []
    if message.batch is not None:
        head |= {"time": message.batch.timestamp, "rank": message.batch.rank}
        lines = [{"event": type(event).__name__, **head, **_fields(event)} for event in message.batch.events]
    lines += [
        {"event": event, **head, "not_indexed": reason, "cache_kind": kind, "count": count}
        for (event, kind, reason), count in stats.skipped.items()
    ]
    lines += [{"event": "Problem", **head, "unreadable": reason, "count": n} for reason, n in stats.errors.items()]
    stats.skipped, stats.errors = {}, {}
    return lines


def _fields(event: KVEvent) -> dict[str, Any]:
    if isinstance(event, BlockStored):
        fields: dict[str, Any] = {
            "blocks": len(event.block_hashes),
            "block_size": event.block_size,
            "tokens": len(event.token_ids) // 4,
            "medium": event.medium,
            "group": event.group,
            "lora": event.lora_name,
            "salt": next((extra.cache_salt for extra in event.extras if extra), ""),
            "media": sum(len(extra.media) for extra in event.extras if extra),
            "parent": _hex(event.parent_hash) if event.parent_hash is not None else None,
        }
        return fields | {"hashes": [_hex(value) for value in event.block_hashes]}
    if isinstance(event, BlockRemoved):
        hashes = [_hex(value) for value in event.block_hashes]
        return {"blocks": len(hashes), "medium": event.medium, "group": event.group, "hashes": hashes}
    return {}


def _hex(value: int) -> str:
    return f"{value:016x}"


def _show(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    shown = dict(line)
    name, hashes = str(shown.pop("event")), shown.pop("hashes", [])
    stamp = shown.pop("time", None)
    at = time.strftime("%H:%M:%S", time.localtime(stamp)) if stamp is not None and 0 <= stamp < 1 << 33 else ""
    seq, topic = shown.pop("seq"), shown.pop("topic")
    details = "  ".join(f"{key}={value}" for key, value in shown.items() if value not in (None, "", 0))
    if hashes:
        details += f"  {hashes[0]}" + (f" .. {hashes[-1]}" if len(hashes) > 1 else "")
    _coloured(f"{at:8}  {topic}  {seq:>8}  ", f"{name:16}", f"  {details}", _COLOURS.get(name, "default"), sys.stdout)


def _coloured(before: str, word: str, after: str, style: str, out: IO[str]) -> None:
    if not out.isatty():
        print(f"{before}{word}{after}", file=out, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=out, soft_wrap=True).print(Text.assemble(before, (word, style), after))


def _check(options: argparse.Namespace) -> int:
    expected = Expected(options.endpoint, options.topic, options.rank, options.block_size, options.bind)
    findings: list[Finding] = []
    replay = _address(options.replay) if options.replay else None
    page_size: int | None = None
    if options.http:
        sources, page_size, trouble = _ask_server(options.http)
        findings += trouble
        findings += of_sources(sources, expected)
        replay = replay or _replay_of(sources, expected)
    port = None if options.bind else of_port(find_peer(options.endpoint, 2.0), expected)
    if port is not None:
        findings.append(port)
    heard = Heard()
    if port is None or port.level == "ok":
        heard = listen(options.endpoint, bind=options.bind, clock=time.monotonic, seconds=options.seconds)
        findings += of_events(heard, expected, options.seconds)
    findings += of_block_size(heard, expected, page_size)
    if replay:
        split_address(replay)
        findings.append(of_replay(ask_replay(replay, clock=time.monotonic, seconds=options.seconds), replay))
    _report(findings, as_json=options.output == "json")
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _ask_server(url: str) -> tuple[dict[str, Any] | None, int | None, list[Finding]]:
    """(what the server says of its publishers, block size on its metrics page, what went wrong)"""
    base = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
    try:
        text = _get(f"{base}/metrics") or b""
        sources = json.loads(_get(f"{base}/kv_event_sources") or b"null")
    except (OSError, ValueError) as error:
        fix = "Give the URL of the server's API, such as http://10.0.0.7:8000."
        return None, None, [Finding("warning", "no-http", f"{base} cannot be asked: {error}.", fix)]
    found = _BLOCK_SIZE.search(text)
    return sources if isinstance(sources, dict) else None, int(found[1]) if found else None, []


def _get(url: str) -> bytes | None:
    """The body; None when the server does not have the page."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http:// and https:// URLs can be asked")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read(_MAX_PAGE)
            return body
    except urllib.error.HTTPError as error:
        error.close()
        return None


def _replay_of(sources: dict[str, Any] | None, expected: Expected) -> str | None:
    """The replay port that the server tells, on the host that we were given."""
    source = (sources or {}).get(str(expected.rank))
    told = source.get("replay_endpoint") if isinstance(source, dict) else None
    if not isinstance(told, str) or expected.bind:
        return None
    host = expected.address.removeprefix("tcp://").rpartition(":")[0]
    return f"tcp://{host}:{told.rpartition(':')[2]}"


def _report(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        word, style = _MARKS[finding.level]
        _coloured("", f"{word:8}", f" {finding.message}", style, sys.stdout)
        if finding.fix:
            print(f"{'':9}{finding.fix}")
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if problems or warnings:
        print(f"{problems} problem{'' if problems == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}")
    else:
        print("Everything is as it should be.")
