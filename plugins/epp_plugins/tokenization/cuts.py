"""Where a text may be cut so that the pieces, tokenized one by one, give exactly the tokens of the whole.

Two kinds of places are known to be safe; anything else is never used.

1. The start of an added token (`<|im_start|>`). The library takes added tokens out of the text first, leftmost and
   longest, and treats the text between two of them on its own: normalizer, pre-tokenizer and model see nothing beyond.
   An occurrence always is that token if no added token can overlap it: none contains it, and none ends with what it
   begins with. Tokens that take whitespace along or look at their neighbours forbid all cuts.

2. Between a letter and a space or line feed, for byte-level BPE behind one of the usual regular expressions. Each of
   their alternatives is known to match no text with a letter directly before whitespace inside, and to look at nothing
   before its match; so the expression always ends a word there, and what follows is found as if the text began there.
   Merges stay inside a word. NFC, the one normalizer allowed, composes nothing across a space or line feed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

CHUNK = 2048
"""Characters of a piece inside a long text: some 500 tokens, what a cut costs when nothing matches beyond it."""

SHORTEST = 256
"""Characters of a piece at least: shorter ones are cheaper to tokenize again than to keep."""

MAX_TOKENS = 64
"""Added tokens that are looked for: those of the chat template are a dozen."""

# Letters for every Unicode version in use: the library's tables and Python's may differ on younger ones.
_LETTERS = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u03b1-\u03c9\u0410-\u044f\u05d0-\u05ea\u0621-\u063a\u0641-\u064a"
    "\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
_WORD_END = re.compile(f"[{_LETTERS}][ \n]")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_LETTER_RUNS = frozenset(
    (
        rf"{_LEAD}\p{{L}}+",
        r" ?\p{L}+",
        *(
            f"{_LEAD}{run}{tail}"
            for run in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*")
            for tail in ("", f"{_CONTRACTIONS}?")
        ),
    )
)
_SAFE = _LETTER_RUNS | {
    _CONTRACTIONS,
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'(?:[sdmt]|ll|ve|re)"),
    *(r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?\p{N}+"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
}


class Cuts:
    """`pieces(text)`: the text in pieces. `tokenizer`: the parsed `tokenizer.json`; `wanted`: added tokens to cut at.

    Equal beginnings give equal pieces, except for the last one before the texts part.
    """

    def __init__(self, tokenizer: Mapping[str, Any], wanted: Iterable[str]) -> None:
        added = [token for token in tokenizer.get("added_tokens") or () if token.get("content")]
        free = all(not token.get(flag) for token in added for flag in ("lstrip", "rstrip", "single_word"))
        self.tokens: tuple[str, ...] = tuple(_unmistakable(added, wanted)) if free else ()
        self.words = free and _cuts_words(tokenizer) and not any(_WORD_END.search(token["content"]) for token in added)
        self._token = re.compile("|".join(map(re.escape, self.tokens))) if self.tokens else None

    @property
    def any(self) -> bool:
        """Whether texts can be cut at all."""
        return bool(self.tokens) or self.words

    def pieces(self, text: str) -> list[str]:
        """What joined gives `text`."""
        found: list[str] = []
        start = 0
        for end in self._token_starts(text):
            while self.words and end - start > CHUNK:
                word = _WORD_END.search(text, start + CHUNK, end)
                if word is None:
                    break
                found.append(text[start : word.start() + 1])
                start = word.start() + 1
            if end - start >= SHORTEST or end == len(text):
                found.append(text[start:end])
                start = end
        return found

    def _token_starts(self, text: str) -> Iterator[int]:
        if self._token is not None:
            for match in self._token.finditer(text):
                yield match.start()
        yield len(text)


def _unmistakable(added: list[Mapping[str, Any]], wanted: Iterable[str]) -> list[str]:
    contents = [token["content"] for token in added]
    verbatim = {token["content"] for token in added if not token.get("normalized")}
    ends = {content[at:] for content in contents for at in range(len(content))}
    found: list[str] = []
    for token in sorted(set(wanted) & verbatim):
        contained = sum(token in content for content in contents)
        if contained == 1 and not any(token[:length] in ends for length in range(1, len(token))):
            found.append(token)
    return found[:MAX_TOKENS]


def _cuts_words(tokenizer: Mapping[str, Any]) -> bool:
    model, normalizer = tokenizer.get("model") or {}, tokenizer.get("normalizer")
    if model.get("type") != "BPE" or model.get("dropout"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    before = tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers") or () if before.get("type") == "Sequence" else (before,)
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False} as bytes_step]:
            return bool(bytes_step.get("use_regex", True))  # the library's own expression is GPT-2's
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} as split,
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return not split.get("invert") and _ends_words(regex)
        case _:
            return False


def _ends_words(regex: str) -> bool:
    """Whether every alternative is one that is known, letters and whitespace among them."""
    alternatives = set(_alternatives(regex))
    return alternatives <= _SAFE and bool(alternatives & _LETTER_RUNS) and r"\s+" in alternatives


def _alternatives(regex: str) -> Iterator[str]:
    """The parts of an expression between the bars that are in no group."""
    depth, start, at = 0, 0, 0
    while at < len(regex):
        match regex[at]:
            case "\\":
                at += 1
            case "(":
                depth += 1
            case ")":
                depth -= 1
            case "|" if depth == 0:
                yield regex[start:at]
                start = at + 1
        at += 1
    yield regex[start:]
