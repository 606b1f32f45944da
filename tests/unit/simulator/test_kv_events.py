"""The consumer of KV events against simulated servers, through real sockets: it knows what their caches hold."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
import zmq

from epp.kvevents.decoding import Decoder
from epp.kvevents.events import BlockExtras
from epp_simulator.kv_events import RELEASES, Cleared, EventEncoder, Group, Removed, Stored, schema

PROMPT = list(range(1000, 1030))  # three blocks of eight, and six tokens


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("int_hashes", [True, False])
async def test_the_index_follows_the_cache(stage: Any, release: str, int_hashes: bool) -> None:
    fleet = await stage.fleet(kv_events_schema=release, kv_events_int_hashes=int_hashes, kv_cache_size=16)
    server = fleet.servers[0]
    before = await stage.complete(server, PROMPT, 20)  # partly told before anybody listens
    receiver = await stage.follow(server)
    await stage.same(server)
    for number in range(6):  # far more than the cache holds
        await stage.complete(server, [*PROMPT[: 8 * (number % 3)], *[2000 + number] * 20], 10)
    await stage.same(server)
    assert before["usage"]["completion_tokens"] == 20
    (state,) = receiver.states()
    assert (state.gaps, state.lost, state.restarts, state.bad_frames) == (0, 0, 0, 0)
    assert state.decode.errors == {}
    assert state.decode.skipped == {}
    assert state.decode.blocks_removed > 0
    assert state.topic == f"kv@127.0.0.1:{server.port}@tiny"


async def test_tokens_in_events_are_those_of_tokenize_and_render(stage: Any) -> None:
    fleet = await stage.fleet()
    server = fleet.servers[0]
    await stage.follow(server)
    messages = [{"role": "system", "content": "Be brief. " * 8}, {"role": "user", "content": "one, two: three?"}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 1}
    answer = await stage.post(server, "/v1/chat/completions", chat | {"return_token_ids": True})
    rendered = await stage.post(server, "/v1/chat/completions/render", chat)
    tokenized = await stage.post(server, "/tokenize", chat)
    await stage.until(lambda: bool(stage.ledger.stored))
    (stored,) = stage.ledger.stored
    tokens = rendered["token_ids"]
    assert answer["prompt_token_ids"] == tokens == tokenized["tokens"]
    assert stored.token_ids == struct.pack(f"<{len(tokens) // 8 * 8}I", *tokens[: len(tokens) // 8 * 8])
    assert stored.parent_hash is None


async def test_the_next_turn_of_a_conversation_finds_the_last_answer(stage: Any) -> None:
    fleet = await stage.fleet()
    server = fleet.servers[0]
    messages = [{"role": "user", "content": "count to ten, please, as slowly as you can"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 40, "ignore_eos": True}
    first = await stage.post(server, "/v1/chat/completions", body)
    computed = first["usage"]["total_tokens"] - 1
    said = first["choices"][0]["message"]["content"].strip()
    turns = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "and back"}]
    second = await stage.post(server, "/v1/chat/completions", body | {"messages": turns})
    assert stage.cached(second) == computed // 8 * 8


@pytest.mark.parametrize("tagged", [True, False])
async def test_adapters_salts_sessions_and_media(stage: Any, tagged: bool) -> None:
    fleet = await stage.fleet(kv_events_tagged_extra_keys=tagged, lora_modules=("a", "b"))
    server = fleet.servers[0]
    await stage.follow(server)
    await stage.complete(server, PROMPT, model="b", cache_salt="secret")
    again = await stage.complete(server, PROMPT, model="b", cache_salt="secret")
    other = await stage.complete(server, PROMPT, model="b")
    base = await stage.complete(server, PROMPT)
    assert [stage.cached(answer) for answer in (again, other, base)] == [24, 0, 0]
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": "http://a/b.png"}}]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    await stage.post(server, "/v1/chat/completions", chat)
    rendered = await stage.post(server, "/v1/chat/completions/render", chat)
    await stage.until(lambda: len(stage.ledger.stored) == 4)
    salted, adapter, plain, image = stage.ledger.stored
    assert salted.lora_name == adapter.lora_name == "b"
    assert salted.extras == (BlockExtras(cache_salt="secret"), None, None)
    assert adapter.extras == plain.extras == ()
    assert plain.lora_name == ""
    (identifier,) = rendered["features"]["mm_hashes"]["image"]
    (place,) = rendered["features"]["mm_placeholders"]["image"]
    with_image = [
        start < place["offset"] + place["length"] and start + 8 > place["offset"]
        for start in range(0, len(image.extras) * 8, 8)
    ]
    assert any(with_image)
    assert [extra == BlockExtras((identifier,)) for extra in image.extras] == with_image
    generated = await stage.post(
        server,
        "/inference/v1/generate",
        {"model": "tiny", "token_ids": rendered["token_ids"], "features": rendered["features"], "max_tokens": 1},
    )
    assert stage.cached(generated) == (len(rendered["token_ids"]) - 1) // 8 * 8


async def test_reset_is_told_with_the_next_step(stage: Any) -> None:
    fleet = await stage.fleet()
    server = fleet.servers[0]
    receiver = await stage.follow(server)
    await stage.complete(server, PROMPT)
    await stage.same(server)
    assert await stage.post(server, "/reset_prefix_cache", None) == {"success": True}
    await asyncio.sleep(0.1)
    assert receiver.states()[0].last_seq == 0
    answer = await stage.complete(server, PROMPT[:10])
    assert stage.cached(answer) == 0
    await stage.same(server)
    assert stage.ledger.clears == 1
    assert receiver.states()[0].last_seq == 1  # both in one batch


async def test_reset_fails_while_requests_run(stage: Any) -> None:
    fleet = await stage.fleet(inter_token_latency=0.02)
    server = fleet.servers[0]
    running = asyncio.create_task(stage.complete(server, PROMPT, 20))
    await stage.until(lambda: bool(server.engines[0].running))
    assert await stage.post(server, "/reset_prefix_cache", None) == {"success": False}
    await running
    assert stage.cached(await stage.complete(server, PROMPT)) == 24


async def test_what_a_cancelled_request_stored_is_told(stage: Any) -> None:
    fleet = await stage.fleet(time_to_first_token=30.0)
    server = fleet.servers[0]
    await stage.follow(server)
    running = asyncio.create_task(stage.complete(server, PROMPT))
    await stage.until(lambda: bool(server.engines[0].running))
    running.cancel()
    await stage.until(lambda: len(stage.ledger.tier(stage.endpoint(server))) == 3)
    await stage.same(server)


async def test_cpu_tier_is_a_medium_of_its_own(stage: Any) -> None:
    fleet = await stage.fleet(kv_cache_size=7, kv_cpu_cache_size=64)
    server = fleet.servers[0]
    await stage.follow(server)
    await stage.complete(server, PROMPT)
    await stage.complete(server, [5] * 47)  # pushes the first one out of the GPU
    await stage.same(server)
    await stage.same(server, "CPU")
    held = set(stage.ledger.tier(stage.endpoint(server)))
    assert len(held) == 5
    answer = await stage.complete(server, PROMPT)
    assert stage.cached(answer) == 24
    await stage.same(server)
    await stage.same(server, "CPU")
    assert len(stage.ledger.tier(stage.endpoint(server)) - held) == 3


async def test_other_groups_are_skipped_by_the_consumer(stage: Any) -> None:
    groups = ("sliding_window:16", "full_attention", "sliding_window:8")
    fleet = await stage.fleet(kv_cache_groups=groups, kv_cache_size=12)
    server = fleet.servers[0]
    receiver = await stage.follow(server)
    for number in range(4):
        await stage.complete(server, [*PROMPT, number], 10)
        await stage.complete(server, [number] * 40, 10)
    await stage.same(server)
    (state,) = receiver.states()
    assert state.decode.errors == {}
    assert set(state.decode.skipped) == {
        ("BlockStored", "sliding_window", "unsupported_cache_kind"),
        ("BlockRemoved", "sliding_window", "unsupported_cache_kind"),
    }
    assert {event.group for event in stage.ledger.stored} == {1}


async def test_ranks_have_ports_numbers_and_caches_of_their_own(stage: Any) -> None:
    port = stage.free_ports_in_a_row(4)
    replay = port + 2
    config = {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{replay}"}
    fleet = await stage.fleet(config=config, data_parallel_size=2)
    server = fleet.servers[0]
    sources = await stage.get(server, "/kv_event_sources")
    assert [sources[rank]["endpoint"] for rank in "01"] == [f"tcp://127.0.0.1:{port + rank}" for rank in (0, 1)]
    assert [sources[rank]["replay_endpoint"] for rank in "01"] == [
        f"tcp://127.0.0.1:{replay + rank}" for rank in (0, 1)
    ]
    await stage.complete(server, PROMPT, headers={"x-data-parallel-rank": "1"})
    await stage.complete(server, PROMPT[:20], headers={"x-data-parallel-rank": "1"})
    receiver = await stage.follow(server)
    other = await stage.complete(server, PROMPT[::-1], headers={"x-data-parallel-rank": "0"})
    same = await stage.complete(server, PROMPT, headers={"x-data-parallel-rank": "1"})
    assert [stage.cached(answer) for answer in (other, same)] == [0, 24]
    await stage.same(server)
    assert {state.rank: state.last_seq for state in receiver.states()} == {0: 0, 1: 0}
    assert len(stage.numbers(server.engines[0])) == len(stage.numbers(server.engines[1])) == 3


async def test_each_rank_can_be_a_server(stage: Any) -> None:
    fleet = await stage.fleet(data_parallel_size=2, data_parallel_external_lb=True, instances=2)
    assert [engine.rank for server in fleet.servers for engine in server.engines] == [0, 1, 0, 1]
    for server in fleet.servers:
        await stage.follow(server)
        await stage.complete(server, PROMPT)
        await stage.same(server)
        assert list(await stage.get(server, "/kv_event_sources")) == [str(server.engines[0].rank)]


async def test_publishers_that_connect(stage: Any) -> None:
    receiver = stage.receiver()
    address = f"tcp://127.0.0.1:{receiver.bind('tcp://127.0.0.1:*').rpartition(':')[2]}"
    fleet = await stage.fleet(config={"endpoint": address, "replay_endpoint": None}, instances=1)
    server = fleet.servers[0]
    receiver.add(stage.endpoint(server), [])

    for number in range(500):  # what is published before the subscription arrives is lost, as with vLLM
        await stage.complete(server, [number, *PROMPT])
        if stage.ledger.stored:
            break
        await asyncio.sleep(0.02)
    stage.ledger.held.clear()
    await stage.post(server, "/reset_prefix_cache", None)
    await stage.complete(server, PROMPT)
    await stage.same(server)


@pytest.mark.parametrize("release", ["0.24", "0.26"])
async def test_restart_and_replay_of_what_was_missed(stage: Any, release: str) -> None:
    port = stage.free_ports_in_a_row(3)
    config = {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{port + 1}"}
    options: dict[str, Any] = {"config": config, "port": port + 2, "kv_events_schema": release}
    fleet = await stage.fleet(**options)
    server = fleet.servers[0]
    receiver = await stage.follow(server, reconnect=0.02, reconnect_limit=0.05)
    for number in range(5):
        await stage.complete(server, [number, *PROMPT])
    await stage.same(server)
    await fleet.close()
    fleet = await stage.fleet(**options, hash_seed="another")
    server = fleet.servers[0]
    await stage.complete(server, [7, *PROMPT])
    await stage.complete(server, [8, *PROMPT], 30)
    await stage.same(server)
    (state,) = receiver.states()
    assert state.restarts >= 1
    assert state.last_seq == server.publishers[0].seq - 1


async def test_replay_has_vllms_layout_and_a_bounded_buffer(stage: Any) -> None:
    fleets = [
        await stage.fleet(config={"buffer_steps": 3, "topic": "kv@x"}, kv_events_schema=release)
        for release in ("0.32", "0.24")
    ]
    with zmq.Context() as context:
        for fleet, topic in zip(fleets, ([b"kv@x"], []), strict=True):
            server = fleet.servers[0]
            for number in range(5):
                await stage.complete(server, [number] * 20)
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(server.publishers[0].config.replay_endpoint)

                async def ask(start: int, dealer: Any = dealer) -> list[list[bytes]]:
                    dealer.send_multipart([b"", start.to_bytes(8, "big")])
                    answers: list[list[bytes]] = []
                    while not answers or answers[-1][-2] != b"\xff" * 8:
                        await stage.until(lambda: bool(dealer.poll(0)))
                        answers.append(dealer.recv_multipart())
                    return answers

                dealer.send_multipart([b"", b"short"])  # is ignored
                everything = await ask(0)
                end = [b"", *([b""] if topic else []), b"\xff" * 8, b""]
                assert [frames[:-1] for frames in everything[:-1]] == [
                    [b"", *topic, seq.to_bytes(8, "big")] for seq in (2, 3, 4)
                ]
                assert everything[-1] == end
                assert await ask(4) == everything[2:]
                assert await ask(1_000_000) == [end]


async def test_answers_meanwhile_more_requests_than_memory(stage: Any) -> None:
    fleet = await stage.fleet(kv_cache_size=12, max_num_seqs=8, inter_token_latency=0.001)
    server = fleet.servers[0]
    receiver = await stage.follow(server)
    answers = await asyncio.gather(*(stage.complete(server, [number % 3] * 30, 12) for number in range(24)))
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {12}
    assert sum(stage.cached(answer) > 0 for answer in answers) > 0
    assert server.engines[0].cache.usage == 0.0
    assert receiver.states()[0].decode.errors == {}


def test_old_releases_leave_out_what_they_cannot_say() -> None:
    window = Group(1, "sliding_window", 8)
    events = [
        Stored([b"\1" * 32], tokens=[1] * 4, group=Group(), extras=[(("mm", "f" * 64, -2), ("cache_salt", "s"))]),
        Stored([b"\1" * 32], tokens=[1] * 4, group=window),
        Removed(b"\1" * 32, group=window),
        Cleared(),
    ]
    kinds = {}
    for release in ("0.15", "0.18", "0.20", "0.22", "0.32"):
        batch = Decoder().decode(EventEncoder(schema(release), 4).encode(1.0, events))
        assert batch is not None
        kinds[release] = [type(event).__name__ for event in batch.events]
        stored = batch.events[0]
        expected = () if release == "0.15" else (BlockExtras(("f" * 64,), "s"),)
        assert getattr(stored, "extras", None) == expected
    assert kinds["0.18"] == ["BlockStored", "AllBlocksCleared"]
    assert kinds["0.32"] == ["BlockStored", "AllBlocksCleared"]  # told, and skipped by the decoder
    assert kinds["0.20"] == ["BlockStored", "BlockStored", "BlockRemoved", "AllBlocksCleared"]  # kinds are not told yet
    with pytest.raises(ValueError, match=r"--kv-events-schema '0.1'"):
        schema("0.1")
