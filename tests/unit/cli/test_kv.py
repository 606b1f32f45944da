"""`epp kv watch` and `epp kv check` against real sockets: every diagnosis has its case."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import zmq

from epp.cli import kv, main
from epp.demo.ports import free_ports

_TOPIC = b"kv@127.0.0.1:8000@m"


class Publisher:
    """Publishes an event every few milliseconds from a thread, and answers replays, until closed."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.stopping = threading.Event()
        self.threads: list[threading.Thread] = []

    def _thread(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        self.threads.append(thread)

    def publish(
        self,
        *,
        topic: bytes = _TOPIC,
        rank: int = 0,
        step: int = 1,
        block_size: int = 2,
        connect: str | None = None,
        payload: bytes | None = None,
        events: list[dict[str, Any]] | None = None,
        silent: bool = False,
    ) -> int:
        pub = self.context.socket(zmq.PUB)
        pub.linger = 0
        port = 0
        if connect:
            pub.connect(connect)
        else:
            port = pub.bind_to_random_port("tcp://127.0.0.1")
        stored = {
            "type": "BlockStored",
            "block_hashes": [255],
            "token_ids": [1] * block_size,
            "block_size": block_size,
            "lora_name": "ada",
            "extra_keys": [["ada", "salty"]],
        }

        def work() -> None:
            seq = 0
            while not self.stopping.wait(0.005):
                body = payload or msgspec.msgpack.encode([time.time(), events or [stored], rank])
                if not silent:
                    pub.send_multipart([topic, seq.to_bytes(8, "big"), body])
                seq += step
            pub.close()

        self._thread(work)
        return port

    def replay(self, *, mute: bool = False) -> int:
        router = self.context.socket(zmq.ROUTER)
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def work() -> None:
            while not self.stopping.is_set():
                if router.poll(20):
                    client, *_ = router.recv_multipart()
                    if not mute:
                        router.send_multipart([client, b"", _TOPIC, bytes(8), b"x"])
                        router.send_multipart([client, b"", b"", b"\xff" * 8, b""])
            router.close()

        self._thread(work)
        return port

    def tcp(self, answer: bytes | None) -> int:
        """A port that is not ZMQ: it sends `answer` to whoever writes to it, or nothing at all."""
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(0.05)

        def work() -> None:
            kept: list[socket.socket] = []
            while not self.stopping.is_set():
                with suppress(TimeoutError):
                    kept.append(server.accept()[0])
                    if answer is not None:
                        kept[-1].recv(100)
                        kept[-1].sendall(answer)
            for connection in (*kept, server):
                connection.close()

        self._thread(work)
        port: int = server.getsockname()[1]
        return port

    def api(self, pages: dict[str, str]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.get(self.path)
                self.send_response(200 if page is not None else 404)
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, *_: Any) -> None:
                return

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

        def work() -> None:
            serving = threading.Thread(target=server.serve_forever, args=(0.05,))
            serving.start()
            self.stopping.wait()
            server.shutdown()
            server.server_close()
            serving.join()

        self._thread(work)
        return f"127.0.0.1:{server.server_address[1]}"

    def close(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.context.term()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Runs `epp kv check`; returns its exit status and its findings by code."""

    def run(address: str, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
        status = main.main(["kv", "check", address, "--output", "json", "--seconds", "10", *arguments])
        return status, {finding["code"]: finding for finding in json.loads(capsys.readouterr().out)}

    return run


def test_a_healthy_publisher(publisher: Publisher, check: Any, capsys: Any) -> None:
    port, replay = publisher.publish(), publisher.replay()
    status, findings = check(f"127.0.0.1:{port}", "--replay", f"127.0.0.1:{replay}", "--block-size", "2")
    assert status == 0
    assert set(findings) == {"publisher", "events", "block-size", "replay"}
    assert {finding["level"] for finding in findings.values()} == {"ok"}
    assert main.main(["kv", "check", f"tcp://127.0.0.1:{port}"]) == 0
    text = capsys.readouterr().out
    assert "is a ZMQ publisher" in text
    assert text.endswith("Everything is as it should be.\n")


def test_nothing_listens(check: Any, capsys: Any) -> None:
    port = free_ports(1)[0]
    status, findings = check(f"127.0.0.1:{port}")
    assert status == 1
    assert "connects instead of binding" in findings["nothing-listens"]["fix"]
    assert main.main(["kv", "check", f"127.0.0.1:{port}"]) == 1
    assert "1 problem, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server"),
        (b"220 smtp", "begins with b'220 smtp'"),
        (None, "greet"),
    ],
)
def test_something_else_listens(publisher: Publisher, check: Any, answer: bytes | None, said: str) -> None:
    status, findings = check(f"127.0.0.1:{publisher.tcp(answer)}")
    assert status == 1
    assert said in findings["not-zmq"]["message"]


def test_a_name_that_does_not_exist(check: Any) -> None:
    status, findings = check("no-such-host.invalid:5557")
    assert status == 1
    assert "unknown-host" in findings


def test_the_replay_port_and_other_sockets(publisher: Publisher, check: Any) -> None:
    assert "replay-port" in check(f"127.0.0.1:{publisher.replay()}")[1]
    sub = publisher.context.socket(zmq.SUB)
    port = sub.bind_to_random_port("tcp://127.0.0.1")
    status, findings = check(f"127.0.0.1:{port}")
    assert status == 1
    assert "ZMQ SUB socket" in findings["not-a-publisher"]["message"]
    sub.close(0)


def test_a_publisher_that_says_nothing(publisher: Publisher, check: Any) -> None:
    status, findings = check(f"127.0.0.1:{publisher.publish(silent=True)}", "--seconds", "0.4")
    assert status == 0
    assert findings["no-events"]["level"] == "warning"
    assert "new prompt" in findings["no-events"]["fix"]


@pytest.mark.parametrize("topic", [b"", b"events@x"])
def test_wrong_topic(publisher: Publisher, check: Any, topic: bytes) -> None:
    port = publisher.publish(topic=topic)
    status, findings = check(f"127.0.0.1:{port}")
    assert status == 1
    assert "topicFilter" in findings["wrong-topic"]["fix"]
    assert check(f"127.0.0.1:{port}", "--topic", topic.decode())[0] == 0


def test_wrong_rank_gaps_and_garbage(publisher: Publisher, check: Any) -> None:
    port = publisher.publish(rank=2, step=3)
    status, findings = check(f"127.0.0.1:{port}")
    assert status == 1
    assert str(port - 2) in findings["wrong-rank"]["fix"]
    assert findings["gaps"]["level"] == "warning"
    assert "wrong-rank" not in check(f"127.0.0.1:{port}", "--rank", "2")[1]
    status, findings = check(f"127.0.0.1:{publisher.publish(payload=b'garbage')}")
    assert status == 1
    assert "unreadable" in findings


@pytest.mark.parametrize("kind", ["dead", "mute", "publisher"])
def test_replay_ports_that_do_not_work(publisher: Publisher, check: Any, kind: str) -> None:
    port = publisher.publish()
    replay = {"dead": lambda: free_ports(1)[0], "mute": lambda: publisher.replay(mute=True), "publisher": lambda: port}[
        kind
    ]()
    status, findings = check(f"127.0.0.1:{port}", "--replay", f"127.0.0.1:{replay}", "--seconds", "1")
    assert status == 1
    assert "replay-dead" in findings


def test_publishers_that_connect(publisher: Publisher, check: Any) -> None:
    port = free_ports(1)[0]
    status, findings = check(f"127.0.0.1:{port}", "--bind", "--seconds", "0.3")
    assert status == 1
    assert "nobody-connects" in findings
    publisher.publish(connect=f"tcp://127.0.0.1:{port}")
    assert check(f"127.0.0.1:{port}", "--bind")[0] == 0
    other = free_ports(1)[0]
    publisher.publish(connect=f"tcp://127.0.0.1:{other}", topic=b"kv@nothing")
    assert "topic-without-endpoint" in check(f"127.0.0.1:{other}", "--bind")[1]


def _source(**fields: Any) -> str:
    source = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:1", "topic": "kv@a@m", **fields}
    return json.dumps({"0": source})


def test_block_size_and_what_the_server_says(publisher: Publisher, check: Any) -> None:
    port, replay = publisher.publish(), publisher.replay()
    pages = {
        "/kv_event_sources": _source(endpoint=f"tcp://*:{port}", replay_endpoint=f"tcp://*:{replay}"),
        "/metrics": 'x 1\nvllm:cache_config_info{block_size="16",engine="0"} 1.0\n',
    }
    status, findings = check(f"127.0.0.1:{port}", "--http", publisher.api(pages), "--block-size", "64")
    assert status == 1
    assert "blocks have 2 tokens" in findings["block-size"]["message"]
    assert "metrics page says 16" in findings["block-size-page"]["message"]
    assert findings["replay"]["level"] == "ok"
    assert not {"may-connect", "wrong-port", "wrong-topic"} & set(findings)


@pytest.mark.parametrize(
    ("sources", "code"),
    [
        (_source(enable_kv_cache_events=False), "disabled"),
        (_source(publisher="null"), "disabled"),
        (_source(endpoint="tcp://127.0.0.1:1"), "may-connect"),
        (_source(endpoint="tcp://*:2"), "wrong-port"),
        (_source(topic=""), "wrong-topic"),
        (json.dumps({"1": {}}), "no-such-rank"),
    ],
)
def test_the_server_tells_why(publisher: Publisher, check: Any, sources: str, code: str) -> None:
    api = publisher.api({"/kv_event_sources": sources, "/metrics": 'sglang:cache_config_info{page_size="64"} 1'})
    status, findings = check("127.0.0.1:1", "--http", f"http://{api}/", "--block-size", "64")
    assert status == 1
    assert code in findings
    assert findings["block-size"]["level"] == "ok"


def test_servers_without_the_page_or_without_http(publisher: Publisher, check: Any) -> None:
    port = publisher.publish()
    assert check(f"127.0.0.1:{port}", "--http", publisher.api({}))[0] == 0
    for url in (f"127.0.0.1:{free_ports(1)[0]}", "ftp://x"):
        status, findings = check(f"127.0.0.1:{port}", "--http", url)
        assert status == 0
        assert findings["no-http"]["level"] == "warning"


def test_cache_kinds_that_are_not_indexed_are_named(publisher: Publisher, check: Any) -> None:
    event = {"type": "BlockStored", "block_hashes": [1], "kv_cache_spec_kind": "mamba"}
    assert "mamba" in check(f"127.0.0.1:{publisher.publish(events=[event])}")[1]["skipped"]["message"]


def test_watch_in_a_pipe(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        {
            "type": "BlockStored",
            "block_hashes": [255, 1],
            "parent_block_hash": 16,
            "token_ids": [1, 2],
            "block_size": 1,
        },
        {"type": "BlockRemoved", "block_hashes": [3], "medium": "CPU"},
        {"type": "AllBlocksCleared"},
        {"type": "BlockStored", "block_hashes": [1], "kv_cache_spec_kind": "mamba"},
        {"type": "Unknown"},
    ]
    port = publisher.publish(events=events, step=2)
    assert kv.run(["watch", f"127.0.0.1:{port}", "--count", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines[:5]] == [
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
        "BlockStored",
        "Problem",
    ]
    assert lines[0]["hashes"] == ["00000000000000ff", "0000000000000001"]
    assert (lines[0]["parent"], lines[0]["tokens"], lines[1]["medium"]) == ("0000000000000010", 2, "cpu")
    assert (lines[3]["not_indexed"], lines[3]["cache_kind"]) == ("unsupported_cache_kind", "mamba")
    assert lines[4]["unreadable"] == "event"
    assert lines[5]["missed"] == 1


class _Terminal:
    """Standard output that claims to be a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return True


def test_watch_on_a_terminal(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    out = _Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    port = publisher.publish()
    assert kv.run(["watch", f"127.0.0.1:{port}", "--count", "1", "--topic", "kv@"]) == 0
    assert "BlockStored" in out.text
    assert "lora=ada" in out.text
    assert "salt=salty" in out.text
    assert "\x1b[" in out.text


def test_watch_as_plain_text_ends_after_its_time(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    port = publisher.publish(topic=b"")
    arguments = ["watch", f"127.0.0.1:{port}", "--output", "text", "--seconds"]
    assert kv.run([*arguments, "0.2", "--topic", "other"]) == 0
    assert capsys.readouterr().out == ""
    assert kv.run([*arguments, "20", "--count", "1"]) == 0
    assert "BlockStored" in capsys.readouterr().out


@pytest.mark.parametrize("endpoint", ["127.0.0.1", "tcp://127.0.0.1:x", "ftp://1.1.1.1:1", "1.1.1.1:99999"])
def test_addresses_that_cannot_be(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kv.run(["check", endpoint]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_watch_says_when_there_is_nothing_to_watch(capsys: pytest.CaptureFixture[str]) -> None:
    assert kv.run(["watch", "no-such-host.invalid:5557", "--seconds", "1"]) == 1
    assert "cannot be resolved" in capsys.readouterr().err
    assert kv.run(["watch", "127.0.0.1:1", "--seconds", "0.1"]) == 0
    told = capsys.readouterr()
    assert "Nothing listens on tcp://127.0.0.1:1. Waiting" in told.err
    assert told.out == ""
    assert kv.run(["watch", "tcp://*:99999", "--bind", "--seconds", "1"]) == 2
