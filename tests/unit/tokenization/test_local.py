"""The model's own tokenizer and template, against what a vLLM server of that model answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from epp.api import ConfigError
from epp_plugins.tokenization.local import INLINE, LocalBackend
from epp_plugins.tokenization.params import LocalParams
from epp_plugins.tokenization.pieces import PieceTokenizer
from epp_plugins.tokenization.tokenized import Reason, TokenizationError, Tokenized

ANSWERS = json.loads((Path(__file__).parents[2] / "data" / "tokenization" / "answers.json").read_text())


def ids(made: Tokenized) -> list[list[int]]:
    return [np.frombuffer(data, "<u4").tolist() for data in made.data]


async def started(path: Path, **params: Any) -> LocalBackend:
    backend = LocalBackend(LocalParams(tokenizer_path=str(path), **params), lambda: 0.0)
    await backend.start()
    return backend


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["name"])
async def test_the_same_tokens_as_the_server(answer: dict[str, Any], data: Path) -> None:
    backend = await started(data)
    made = await backend.tokenize(answer["kind"], answer["body"].encode(), None)
    if "ids" in answer:
        assert ids(made) == answer["ids"]
    else:
        assert sum(map(len, ids(made))) == answer["count"]
    await backend.stop()


async def test_a_shared_system_prompt_is_tokenized_once(data: Path) -> None:
    backend = await started(data)
    library = Tokenizer.from_file(str(data / "tokenizer.json"))
    system = "".join([f"Rule {n}: answer in sentences of {n} words, never more.\n" for n in range(300)])
    model = backend._model
    assert model is not None
    reused = 0
    for question in ("What is it?", "And why?", "Who says so?"):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        made = await backend.tokenize("chat completions", json.dumps({"messages": messages}).encode(), None)
        text = "".join([f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages])
        assert ids(made) == [library.encode(text + "<|im_start|>assistant\n").ids]
        reused, before = model.tokenizer.reused, reused
        assert (reused - before > 5) == (question != "What is it?")
    assert 0 < model.tokenizer.cached_bytes <= 64 << 20
    await backend.stop()


async def test_short_bodies_are_done_at_once(data: Path) -> None:
    backend = await started(data)
    made = backend.inline("completions", b'{"prompt": "def main():"}')
    assert made is not None
    assert ids(made) == [[444, 2947, 859]]
    assert backend.inline("completions", b'{"prompt": "' + b"a" * INLINE + b'"}') is None
    assert backend.handles("responses")
    assert not backend.handles("embeddings")
    await backend.trial()
    assert backend.variant == ""
    await backend.stop()
    await backend.stop()
    with pytest.raises(TokenizationError, match="not running"):
        await backend.tokenize("completions", b"{}", None)


async def test_what_it_does_not_tokenize(data: Path) -> None:
    backend = await started(data)
    for body, reason in (
        (b'{"prompt": "a", "truncate_prompt_tokens": 1}', Reason.UNSUPPORTED),
        (b'{"prompt": 1}', Reason.REFUSED),
    ):
        with pytest.raises(TokenizationError) as caught:
            await backend.tokenize("completions", body, None)
        assert caught.value.reason is reason
    with pytest.raises(TokenizationError, match="has no role"):
        await backend.tokenize("chat completions", b'{"messages": [{"role": "user", "content": null}, {}]}', None)
    await backend.stop()


async def test_where_the_template_comes_from(data: Path, tmp_path: Path) -> None:
    body = b'{"messages": [{"role": "user", "content": "def main():"}]}'
    shutil.copy(data / "tokenizer.json", tmp_path)
    backend = await started(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizationError, match="there is no chat template"):
        await backend.tokenize("chat completions", body, None)
    await backend.trial()
    await backend.stop()

    written = {
        "chat_template": "{{ messages[0].content }}",
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": None,
    }
    for chat_template in (written["chat_template"], [{"name": "default", "template": written["chat_template"]}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**written, "chat_template": chat_template}))
        backend = await started(tmp_path)
        assert ids(await backend.tokenize("chat completions", body, None)) == [[444, 2947, 859]]
        await backend.stop()

    (tmp_path / "mine.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    for given in (str(tmp_path / "mine.jinja"), "{{ bos_token }}{{ messages[0].content }}"):
        backend = await started(tmp_path, chat_template=given, content_format="string")
        assert ids(await backend.tokenize("chat completions", body, None)) == [[1, 444, 2947, 859]]
        await backend.stop()

    refusing = await started(tmp_path, chat_template="{{ raise_exception('system first') }}")
    await refusing.trial()
    await refusing.stop()


@pytest.mark.parametrize(
    ("files", "params", "message"),
    [
        ({}, {}, "cannot read .*tokenizer.json"),
        ({"tokenizer.json": "{}"}, {}, "no tokenizer"),
        ({"tokenizer.json": None, "tokenizer_config.json": "["}, {}, "no JSON"),
        ({"tokenizer.json": None}, {"chat_template": "/no/such.jinja"}, "cannot read /no/such.jinja"),
        ({"tokenizer.json": None}, {"chat_template": "{% if %}"}, "does not compile"),
    ],
)
async def test_files_that_cannot_be_used(
    data: Path, tmp_path: Path, files: dict[str, str | None], params: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text((data / name).read_text() if content is None else content)
    backend = LocalBackend(LocalParams(tokenizer_path=str(tmp_path), **params), lambda: 0.0)
    with pytest.raises(ConfigError, match=message):
        await backend.start()
    await backend.stop()


def changed(data: Path, **fields: Any) -> str:
    return json.dumps({**json.loads((data / "tokenizer.json").read_text()), **fields})


BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<|im_start|>"]}}


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ([BOS, TEXT], [1, 444, 2947, 859]),
        ([TEXT, BOS, BOS], [444, 2947, 859, 1, 1]),
        ([TEXT, TEXT], [444, 2947, 859, 444, 2947, 859]),
    ],
)
def test_special_tokens_around_a_text(data: Path, single: list[Any], expected: list[int]) -> None:
    processor = {"type": "TemplateProcessing", "single": single, "pair": [TEXT], "special_tokens": SPECIAL}
    ours = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            processor,
        ],
    }
    source = changed(data, post_processor=ours)
    made = PieceTokenizer(source, (), 1 << 20)
    library = Tokenizer.from_str(source).encode("def main():").ids
    assert np.frombuffer(made.encode("def main():", special_tokens=True), "<u4").tolist() == library
    assert library == expected
    library = Tokenizer.from_str(source).encode("def main():", add_special_tokens=False).ids
    assert np.frombuffer(made.encode("def main():"), "<u4").tolist() == library
    assert made.encode("") == b""


def test_a_processor_that_is_not_known_is_left_to_the_library(data: Path) -> None:
    processor = {"type": "BertProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1]}
    made = PieceTokenizer(changed(data, post_processor=processor), (), 1 << 20)
    assert np.frombuffer(made.encode("def main():", special_tokens=True), "<u4").tolist() == [1, 444, 2947, 859, 2]


def test_tokenizers_that_allow_no_cut_keep_nothing(data: Path) -> None:
    added = json.loads((data / "tokenizer.json").read_text())["added_tokens"]
    greedy = [{**token, "rstrip": True} for token in added]
    made = PieceTokenizer(changed(data, added_tokens=greedy), ["<|im_start|>"], 1 << 20)
    assert not made.cuts.any
    text = "<|im_start|>   a b c\n" * 200
    expected = Tokenizer.from_str(changed(data, added_tokens=greedy)).encode(text).ids
    assert np.frombuffer(made.encode(text), "<u4").tolist() == expected
    assert made.cached_bytes == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": r"(?<=a) |\p{L}+|\s+"},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
        },
    ],
)
def test_words_are_cut_where_that_is_known_to_be_safe(data: Path, fields: dict[str, Any]) -> None:
    made = PieceTokenizer(changed(data, **fields), ["<|im_start|>"], 1 << 20)
    assert not made.cuts.words
    assert made.cuts.tokens == ("<|im_start|>",)
