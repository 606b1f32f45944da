"""Options of KV events, their aliases and errors; the command."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import pytest

from epp_simulator.event_config import KVEventsConfig, advertised, binds, offset
from epp_simulator.main import run
from epp_simulator.options import SimOptions, parse


def test_environment_and_aliases(tmp_path: Path) -> None:
    environment = {"PYTHONHASHSEED": "42", "POD_IP": "10.0.0.9", "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"}
    options = parse(
        ["--model", "m", "--num-gpu-blocks-override", "77", "--use-vllm-map-event-format=false"], environment
    )
    assert (options.hash_seed, options.advertise_host, options.kv_events_int_hashes) == ("42", "10.0.0.9", False)
    assert (options.kv_cache_size, options.kv_events_schema) == (77, "0.15")
    config = tmp_path / "sim.yaml"
    config.write_text("model: m\nuse-vllm-map-event-format: true\nhash-seed: 5\nkv-cache-groups: [full_attention]\n")
    options = parse(["--config", str(config), "--event-batch-size", "4"], {})
    assert (options.kv_events_schema, options.hash_seed) == ("0.32", "5")
    assert parse(["--config", str(config), "--kv-events-schema", "0.20"], {}).kv_events_schema == "0.20"


def test_the_sample_configuration_of_llm_d_inference_sim(tmp_path: Path) -> None:
    config = tmp_path / "sim.yaml"
    config.write_text(
        "port: 8001\nmodel: Qwen/Qwen2-0.5B\nmax-num-seqs: 5\nmode: random\ntime-to-first-token: 2000\n"
        "inter-token-latency: 1s\nkv-cache-transfer-latency: 100ms\nevent-batch-size: 16\n"
        'fake-metrics-refresh-interval: 100ms\nlora-modules:\n- \'{"name":"food-review-1"}\'\nseed: 100100100\n'
    )
    options = parse(["--config", str(config)], {})
    assert (options.time_to_first_token, options.kv_cache_transfer_latency) == (2.0, 0.1)
    assert options.lora_modules == ("food-review-1",)


def test_misspelled_options_are_one_line_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^unknown argument '--max-num-seq' \(did you mean `max-num-seqs`\?\)$"):
        parse(["--model", "m", "--max-num-seq", "5"], {})
    with pytest.raises(ValueError, match="--port: expected one argument"):
        parse(["--model", "m", "--port"], {})
    (tmp_path / "sim.yaml").write_text("model: m\nmax_num_seq: 5\n")
    with pytest.raises(ValueError, match=r"unknown key 'max_num_seq' \(did you mean `max-num-seqs`\?\)"):
        parse(["--config", str(tmp_path / "sim.yaml")], {})


def test_zmq_endpoint_is_short_for_the_configuration() -> None:
    options = SimOptions(
        model="m", enable_kvcache=True, zmq_endpoint="tcp://127.0.0.1:5557", kv_events_replay_endpoint="tcp://*:6000"
    )
    config = options.events.for_rank(2, host="10.0.0.1", port=8000, model="m")
    assert config == KVEventsConfig(
        enable_kv_cache_events=True,
        endpoint="tcp://127.0.0.1:5559",
        replay_endpoint="tcp://*:6002",
        buffer_steps=1024,
        topic="kv@10.0.0.1:8000@m",
    )
    assert not SimOptions(model="m").events.publishes
    assert not KVEventsConfig.parse('{"enable_kv_cache_events": true, "publisher": "null"}').publishes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "--kv-events-config"),
        ("[]", "a JSON object"),
        ('{"end": 1}', "unknown key 'end'"),
        ('{"publisher": "kafka"}', "publisher 'kafka'"),
        ('{"buffer_steps": -1}', "buffer_steps -1"),
        ('{"endpoint": "udp://*:1"}', "endpoint 'udp"),
        ('{"endpoint": 5}', "--kv-events-config"),
        ('{"enable_kv_cache_events": true}', "--enable-kvcache"),
    ],
)
def test_bad_event_configuration(config: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimOptions(model="m", kv_events_config=config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kv_events_schema": "0.1"}, "--kv-events-schema"),
        ({"ssl_certfile": "x"}, "--ssl-keyfile"),
        ({"kv_cache_size": 1}, "--kv-cache-size"),
        ({"port": 65535, "instances": 2}, "--port 65535: 2 in a row"),
        ({"data_parallel_size": 0}, "--data-parallel-size 0"),
        ({"zmq_endpoint": "tcp://*:1", "kv_events_config": "{}", "enable_kvcache": True}, "say the same"),
        ({"zmq_endpoint": "nowhere"}, "--zmq-endpoint"),
    ],
)
def test_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimOptions(model="m", **values)  # type: ignore[arg-type]


def test_addresses() -> None:
    assert [binds(address) for address in ("tcp://*:1", "tcp://[::]:1", "ipc:///x", "inproc://x", "tcp://h:1")] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert offset("inproc://x", 0) == "inproc://x"
    assert offset("ipc:///x", 2) == "ipc:///x_dp2"
    assert offset("tcp://*:0", 3) == "tcp://*:0"
    assert advertised("tcp://[::]:7", "h") == "tcp://h:7"
    assert advertised("tcp://10.0.0.1:7", "h") == "tcp://10.0.0.1:7"


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--model", "m", "--block-size", "3"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        events = json.dumps(
            {"enable_kv_cache_events": True, "endpoint": "tcp://*:0", "replay_endpoint": f"tcp://*:{port}"}
        )
        assert run(["--model", "m", "--port", "0", "--enable-kvcache", "--kv-events-config", events]) == 2
        assert run(["--model", "m", "--port", str(port)]) == 2
    errors = capsys.readouterr().err
    assert "block-size" in errors
    assert f"--port {port}: " in errors
    assert f"cannot bind tcp://*:{port} for KV events" in errors


async def test_the_command_serves_until_a_signal() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "epp", "sim", "--model", "m", "--port", "0", "--self-signed-certs",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"m on https://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("a: [", "while parsing"), ("- a", "got list")])
def test_a_configuration_that_cannot_be_read_is_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sim.yaml"
    if text is not None:
        config.write_text(text)
    assert run(["--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("epp sim: --config: ")
    assert said in told
