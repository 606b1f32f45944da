"""Cutting a text, and remembering its pieces, never changes its tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from epp_plugins.tokenization import cuts
from epp_plugins.tokenization.pieces import PieceTokenizer

DATA = Path(__file__).parents[1] / "data" / "tokenization"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = {
    "gpt2": None,  # built into the library
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{TAIL}",
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{TAIL}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{TAIL}",
}
EXTRA = ["<tool>", "<tool>>", "  ", "<call>", "x<call", "a<|im_end|>b", "\n\n"]
"""Added tokens that overlap others, or are whitespace: the library prefers the longest at the leftmost place."""


@cache
def source(regex: str, *, nfc: bool, extra: bool) -> str:
    """The tokenizer of the test model with another pre-tokenizer, normalizer, and more added tokens."""
    made: dict[str, Any] = json.loads((DATA / "tokenizer.json").read_text())
    if regex == "metaspace":  # as SentencePiece does: a space before the first word only
        made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    elif regex == "prepend":
        made["normalizer"] = {"type": "Prepend", "prepend": " "}
        nfc = False
    elif WORDS[regex] is not None:
        split = {"type": "Split", "pattern": {"Regex": WORDS[regex]}, "behavior": "Isolated", "invert": False}
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, step]}
    if nfc:
        made["normalizer"] = {"type": "NFC"}
    if extra:
        first = len(made["model"]["vocab"])
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
        made["added_tokens"] += [
            {"id": first + n, "content": content, "normalized": n == 2, **plain} for n, content in enumerate(EXTRA)
        ]
    return json.dumps(made)


@cache
def tokenizers(regex: str, nfc: bool, extra: bool) -> tuple[Any, PieceTokenizer]:
    """The library alone, and ours, whose memory lives through all examples: hits come from texts of others."""
    text = source(regex, nfc=nfc, extra=extra)
    wanted = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool>", "<call>"]
    return Tokenizer.from_str(text), PieceTokenizer(text, wanted, 1 << 18)


FRAGMENTS = [
    *EXTRA,
    *("<|im_start|>", "<|im_end|>", "<|im_", "|>", "<", "<tool>", "<tool>>", "<|endoftext|>"),
    *(" ", "  ", "\n", "\r\n", "\n\n", "\t", " \n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85"),
    *(
        "a",
        "word",
        "I'm",
        "don't",
        "'s",
        "'S",
        "DON'T",
        "naïve",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "²",
        "Ⅷ",
        "\u200d",
        "\ufeff",
    ),
    *("日本語", "かな", "한국어", "привет", "שלום", "مرحبا", "ǅ", "ʰ", "😀", "👩\u200d👩", "\U0001e030", "\u1c89"),
    *("1", "1234567", "٣", "1.5", "/", "//", "!?", "...", "_", "__init__", "def f(x):\n    return x", '{"a": "b c"}'),
]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=60).map("".join)
REGEXES = [*WORDS, "metaspace", "prepend"]
kinds = st.sampled_from([(regex, nfc, extra) for regex in REGEXES for nfc in (False, True) for extra in (False, True)])


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts everywhere they are allowed."""
    monkeypatch.setattr(cuts, "CHUNK", 1)
    monkeypatch.setattr(cuts, "SHORTEST", 1)
    monkeypatch.setattr("epp_plugins.tokenization.pieces.SHORTEST", 1)


@settings(max_examples=400, deadline=None)
@given(kinds, texts, texts, texts)
def test_pieces_have_the_tokens_of_the_whole(kind: tuple[str, bool, bool], shared: str, one: str, two: str) -> None:
    library, ours = tokenizers(*kind)
    assert ours.cuts.words == (kind[0] in WORDS)
    assert ours.cuts.tokens
    for text in (shared + one, shared + two, one + shared, shared + one):
        assert "".join(ours.cuts.pieces(text)) == text
        expected = library.encode(text, add_special_tokens=False).ids
        assert np.frombuffer(ours.encode(text), "<u4").tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=200, max_size=600).map("".join), texts, texts)
def test_long_texts_with_pieces_as_they_are(shared: str, one: str, two: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "CHUNK", 200)
        patch.setattr(cuts, "SHORTEST", 50)
        library, ours = tokenizers("qwen2", True, True)
        for text in (shared + one, shared + two):
            expected = library.encode(text, add_special_tokens=False).ids
            assert np.frombuffer(ours.encode(text), "<u4").tolist() == expected


def test_the_cuts_really_happen_and_pieces_are_found_again() -> None:
    library, ours = tokenizers("llama3", False, False)
    text = "<|im_start|>system\nOne two three.\nFour five.<|im_end|>\n<|im_start|>user\n"
    assert len(ours.cuts.pieces(text)) > 5
    before = ours.reused
    ours.encode(text)
    ours.encode(text + "something else")
    assert ours.reused > before
    assert np.frombuffer(ours.encode(text), "<u4").tolist() == library.encode(text).ids
