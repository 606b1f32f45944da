"""What a chat model reads: role, text and media of each message, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from epp.api import MediaPart, TextPart

_T = TypeVar("_T")
_RAW_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


class _Link(msgspec.Struct):
    url: str | None = None


class _Audio(msgspec.Struct):
    data: str | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    image_url: _Link | str | None = None
    video_url: _Link | str | None = None
    audio_url: _Link | str | None = None
    input_audio: _Audio | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | list[_Block] | None = None


Messages = list[_Message]
_MESSAGES = msgspec.json.Decoder(Messages)
_MESSAGE = msgspec.json.Decoder(_Message)


def chat_parts(tools: msgspec.Raw, messages: msgspec.Raw) -> list[TextPart | MediaPart]:
    """The tools as the client wrote them, then role and content of each message."""
    decoded = items(messages, _MESSAGES, _MESSAGE)
    return message_parts(tools, decoded)


def message_parts(tools: msgspec.Raw, messages: Sequence[_Message | TextPart]) -> list[TextPart | MediaPart]:
    """The same of messages that have been decoded."""
    parts: list[TextPart | MediaPart] = tools_part(tools) if memoryview(tools) else []
    for message in messages:
        if isinstance(message, TextPart):
            parts.append(message)
            continue
        if message.role:
            parts.append(TextPart(message.role))
        if isinstance(message.content, str):
            parts.append(TextPart(message.content))
        elif message.content is not None:
            for block in message.content:
                part = _block_part(block)
                if part is not None:
                    parts.append(part)
    return parts


def tools_part(tools: msgspec.Raw) -> list[TextPart | MediaPart]:
    """The JSON of a non-empty array of tools; nothing otherwise."""
    text = bytes(tools)
    return [TextPart(text.decode())] if text[:1] == b"[" and text[1:-1].strip() else []


def items(
    raw: msgspec.Raw, decode_all: msgspec.json.Decoder[list[_T]], decode_one: msgspec.json.Decoder[_T]
) -> Sequence[_T | TextPart]:
    """The elements of an array. One of an unexpected shape comes as its JSON text.

    The server decides what it accepts; here the text only has to be the same each time the client sends the same.
    """
    try:
        return decode_all.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        pass  # one by one, then
    told: list[_T | TextPart] = []
    for item in attempt(_RAW_ITEMS, raw) or [raw]:
        one = attempt(decode_one, item)
        told.append(TextPart(bytes(item).decode()) if one is None else one)
    return told


def attempt(decoder: msgspec.json.Decoder[_T], raw: msgspec.Raw) -> _T | None:
    """None for another shape, or nesting that the decoder does not follow."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _block_part(block: _Block) -> TextPart | MediaPart | None:
    match block.type:
        case "text" | "input_text" | "output_text":
            return TextPart(block.text) if block.text else None
        case "image_url":
            return _linked("image", block.image_url)
        case "video_url":
            return _linked("video", block.video_url)
        case "audio_url":
            return _linked("audio", block.audio_url)
        case "input_audio":
            audio = block.input_audio
            return MediaPart("audio", audio.data) if audio is not None and audio.data else None
        case _:
            return None


def _linked(modality: str, link: _Link | str | None) -> MediaPart | None:
    url = link.url if isinstance(link, _Link) else link
    return MediaPart(modality, url) if url else None
