from __future__ import annotations

import base64
import json
import logging
import random
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash

from epp.api import (
    DataKey,
    EndpointTable,
    InferenceRequest,
    MediaFeature,
    MediaPart,
    NoParams,
    Payload,
    PluginContext,
    TextPart,
)
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.parsers.vllmhttp import VLLMHTTPParser
from epp_plugins.producers.token_producer import TokenProducer
from epp_plugins.tokenization import estimate
from epp_plugins.tokenization.tokenized import pack_ids

TABLE = EndpointTable()


def _context() -> PluginContext:
    def find(name: str) -> Any:
        raise LookupError(name)

    return PluginContext("tokens", lambda: 0.0, random.Random(0), logging.getLogger("test"), TABLE, find)


def producer(**params: Any) -> TokenProducer:
    return TokenProducer(msgspec.convert(params, TokenProducer.Params), _context())


def request(payload: Payload, headers: dict[str, str] | None = None) -> InferenceRequest:
    return InferenceRequest(id="r", headers=headers or {}, path="/", body=b"", payload=payload, received_at=0.0)


def produced(payload: Payload, headers: dict[str, str] | None = None, **params: Any) -> InferenceRequest:
    made = request(payload, headers)
    producer(**params).produce(made, TABLE.all(0.0))
    return made


def openai(path: str, **body: Any) -> Payload:
    return OpenAIParser(NoParams(), _context()).parse(path, {}, json.dumps(body).encode())


class _Parts(Payload):
    __slots__ = ("_prompts",)

    def __init__(self, *prompts: list[TextPart | MediaPart]) -> None:
        super().__init__("test")
        self._prompts = prompts

    def parts(self) -> Any:
        return iter(self._prompts)


def test_text_is_packed_four_bytes_to_an_id() -> None:
    prompt = produced(openai("completions", prompt="héllo")).prompt
    assert prompt is not None
    assert prompt.data == ("héllo".encode() + b"\0\0",)
    assert prompt.estimated
    assert prompt.tokens == 2
    assert np.frombuffer(prompt.data[0], dtype="<u4").tolist() == [
        int.from_bytes(b"h\xc3\xa9l", "little"),
        int.from_bytes(b"lo\0\0", "little"),
    ]


def test_each_string_is_a_prompt_of_its_own() -> None:
    made = produced(openai("completions", prompt=["abcd", "e", ""]))
    assert made.prompt is not None
    assert made.prompt.data == (b"abcd", b"e\0\0\0", b"")
    assert made.input_tokens == 2


def test_chat_is_tools_role_text() -> None:
    payload = openai(
        "chat/completions",
        tools=[{"a": 1}],
        messages=[{"role": "user", "content": "hi"}, {"role": "tool", "content": "x"}],
    )
    prompt = produced(payload).prompt
    assert prompt is not None
    assert prompt.data[0].rstrip(b"\0") == b'[{"a": 1}]userhitoolx'


def test_token_ids_pass_through() -> None:
    prompt = produced(openai("completions", prompt=[[1, 2], [4294967295]])).prompt
    assert prompt is not None
    assert prompt.data == (struct.pack("<2I", 1, 2), struct.pack("<I", 4294967295))
    assert not prompt.estimated
    assert pack_ids([]) == b""


def test_token_ids_keep_their_media() -> None:
    body = {
        "token_ids": [1, 2, 3],
        "features": {"mm_hashes": {"image": ["h"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}},
    }
    prompt = produced(VLLMHTTPParser(NoParams(), _context()).parse("/", {}, json.dumps(body).encode())).prompt
    assert prompt is not None
    assert prompt.features == (MediaFeature("image", "h", 1, 2),)


def test_opaque_payloads_get_no_prompt() -> None:
    assert produced(Payload()).prompt is None
    assert produced(openai("images/generations", prompt="a cat")).prompt is None


def test_a_prompt_that_is_there_stays() -> None:
    made = produced(openai("completions", prompt="first"))
    first = made.prompt
    producer().produce(made, TABLE.all(0.0))
    assert made.prompt is first


def test_what_it_produces() -> None:
    assert producer().produces == (DataKey("TokenizedPrompt", "tokens"),)


def test_releasing_a_prompt_keeps_its_size() -> None:
    prompt = produced(openai("completions", prompt="abcdefgh")).prompt
    assert prompt is not None
    prompt.release()
    assert (prompt.data, prompt.tokens) == ((), 2)


def test_media_is_aligned_and_repeated() -> None:
    image = MediaPart("image", "https://h/i.png")
    prompt = produced(_Parts([TextPart("ab"), image, TextPart("c")], [image])).prompt
    digest = xxhash.xxh64_intdigest(b"https://h/i.png")
    token = struct.pack("<I", digest & 0xFFFFFFFF)
    assert prompt is not None
    assert prompt.data == (b"ab\0\0" + token * 225 + b"c\0\0\0", token * 225)
    assert prompt.features == (
        MediaFeature("image", f"{digest:x}", 1, 225, 0),
        MediaFeature("image", f"{digest:x}", 0, 225, 1),
    )


def _png(width: int, height: int) -> str:
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\2\0\0\0" * 20
    ).decode()


def _gif(width: int, height: int) -> str:
    return base64.b64encode(b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 50).decode()


def _jpeg(width: int, height: int, metadata: int = 5000) -> str:
    app1 = b"\xff\xe1" + struct.pack(">H", metadata) + b"\1" * (metadata - 2)
    table = b"\xff\xc4\x00\x05abc"
    frame = b"\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + b"\3" * 12
    return base64.b64encode(b"\xff\xd8\xff\x01" + app1 + table + frame).decode()


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("https://h/i.png", 225),
        (_png(1024, 768), 768),
        ("data:image/png;base64," + _png(1024, 768), 768),
        ("data:image/gif;base64," + _gif(320, 320), 100),
        ("data:image/jpeg;base64," + _jpeg(640, 640), 400),
        (_jpeg(640, 640, metadata=60_000), 400),
        (_png(1, 1), 1),
        (_png(0, 100), 225),
        (_png(4_000_000_000, 4_000_000_000), 1 << 17),
        ("data:image/png;base64", 225),
        ("data:image/png,plain", 225),
        ("data:image/webp;base64,UklGRgAAAABXRUJQ", 225),
        ("data:image/png;base64,!!!!", 225),
        ("data:image/png;base64,QUJDRA=A", 225),
        ("data:image/png;base64,é", 225),
        ("/9j/" + "A" * 100, 225),
        (base64.b64encode(b"\xff\xd8\xff\xe0\x00\x02" + b"\xff\xd9" * 9).decode(), 225),
    ],
)
def test_images_count_by_their_size(content: str, tokens: int) -> None:
    prompt = produced(_Parts([MediaPart("image", content)])).prompt
    assert prompt is not None
    assert prompt.tokens == prompt.features[0].length == tokens


@pytest.mark.parametrize(
    ("image", "tokens"),
    [
        ({"mode": "static", "static": {"staticToken": 7}}, 7),
        ({"mode": "static"}, 1),
        ({"defaultResolution": {"width": 1024, "height": 1024}}, 1024),
        ({"defaultResolution": {"width": 0, "height": 0}, "dynamic": {"factor": 0}}, 225),
        ({"dynamic": {"factor": 2304}}, 100),
    ],
)
def test_image_parameters(image: dict[str, Any], tokens: int) -> None:
    assert produced(_Parts([MediaPart("image", "u")]), estimate={"image": image}).input_tokens == tokens


@pytest.mark.parametrize(
    ("video", "headers", "tokens"),
    [
        ({}, {}, 20 * 225),
        ({}, {"x-llm-d-video-duration-seconds": "3.5"}, 7 * 225),
        ({}, {"x-llm-d-video-resolution": "1024X512"}, 20 * 512),
        ({}, {"x-llm-d-video-resolution": "0x512", "x-llm-d-video-duration-seconds": "-1"}, 20 * 225),
        ({}, {"x-llm-d-video-resolution": "wide", "x-llm-d-video-duration-seconds": "long"}, 20 * 225),
        ({}, {"x-llm-d-video-duration-seconds": "nan"}, 20 * 225),
        ({}, {"x-llm-d-video-duration-seconds": "1e300"}, 1 << 17),
        ({"maxVideoTokens": 1000}, {}, 1000),
        ({"defaultDuration": 1.0}, {}, 2 * 225),
        ({"frames": {"sampled": {"sampleFPS": 1.0, "temporalPatchSize": 2}}}, {}, 5 * 225),
        ({"frames": {"maxFrames": 4}}, {}, 4 * 225),
        ({"frames": {"minFrames": 30}}, {}, 30 * 225),
        ({"frames": {"mode": "strided", "strided": {"frameStride": 12}}}, {}, 20 * 225),
        ({"frames": {"mode": "strided", "strided": {"frameStride": 0}}}, {"x-llm-d-video-fps": "1"}, 10 * 225),
        ({"frames": {"mode": "strided", "strided": {"defaultSourceFPS": 2.0}}}, {}, 20 * 225),
        ({"tokensPerFrame": {"mode": "static", "static": {"numTokensPerFrame": 9}}}, {}, 180),
        ({"tokensPerFrame": {"dynamic": {"factor": 100}}, "defaultResolution": {"width": 10, "height": 10}}, {}, 20),
        ({}, {"x-llm-d-video-duration-seconds": "0.1"}, 1),
    ],
)
def test_video_tokens(video: dict[str, Any], headers: dict[str, str], tokens: int) -> None:
    made = produced(_Parts([MediaPart("video", "https://h/v.mp4")]), headers, estimate={"video": video})
    assert made.input_tokens == tokens


def test_audio_counts_by_its_length() -> None:
    assert produced(_Parts([MediaPart("audio", "A" * 9)])).input_tokens == 3


def test_media_of_one_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MAX_MEDIA_TOKENS", 300)
    images: list[TextPart | MediaPart] = [MediaPart("image", str(n)) for n in range(4)]
    prompt = produced(_Parts(images)).prompt
    assert prompt is not None
    assert [feature.length for feature in prompt.features] == [225, 225, 1, 1]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"vllm": {"url": "http://render:8000"}}, "vllm needs modelName"),
        ({"vllm": {"url": "https://render"}, "modelName": "m"}, "no plain HTTP address"),
        ({"vllm": {"url": "http://a", "http": "http://b"}, "modelName": "m"}, "keep url"),
        ({"vllm": {"budget": 0}, "modelName": "m"}, "budget: must be above 0"),
        ({"vllm": {}, "local": {"tokenizerPath": "/t"}, "modelName": "m"}, "exclude each other"),
        ({"local": {}}, "missing required field `tokenizerPath`"),
        ({"local": {"tokenizerPath": ""}}, "length >= 1"),
        ({"udsTokenizerConfig": {"socketFile": "/s"}}, "udsTokenizerConfig is not supported: replace the tokenizer"),
        ({"estimate": {"image": {"mode": "guess"}}}, r"Invalid enum value 'guess' - at `\$.estimate.image.mode`"),
        ({"estimate": {"audio": {}}}, "unknown field `audio`"),
        ({"modelname": "m"}, "unknown field `modelname`"),
    ],
)
def test_parameters_that_are_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        producer(**params)


def test_model_name_beside_estimate_is_accepted() -> None:
    made = produced(openai("completions", prompt="abcd"), modelName="m", estimate={})
    assert made.input_tokens == 1
