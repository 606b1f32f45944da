"""How many tokens an image, a video or an audio clip stands for, when nobody has run the model's processor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from epp.api import MediaPart, Params
from epp_plugins.producers.image_size import inline_image_size

VIDEO_FPS = "x-llm-d-video-fps"
VIDEO_DURATION = "x-llm-d-video-duration-seconds"
VIDEO_RESOLUTION = "x-llm-d-video-resolution"

MAX_TOKENS = 1 << 17
"""Tokens one medium may stand for: as many as a prefix index looks at. A forged size must not cost memory."""


class Resolution(Params, frozen=True):
    """Pixels; 360p unless configured. 0 means the default, here and below."""

    width: int = 640
    height: int = 360


class DynamicTokens(Params, frozen=True):
    """Tokens from the area: width x height / factor."""

    factor: int = 1024


class StaticImageTokens(Params, frozen=True):
    """The same number for every image."""

    static_token: int = 1


class StaticFrameTokens(Params, frozen=True):
    """The same number for every frame."""

    num_tokens_per_frame: int = 1


class ImageParams(Params, frozen=True):
    """`mode` dynamic: by the size of an inline image, else by `defaultResolution`."""

    mode: Literal["dynamic", "static"] = "dynamic"
    default_resolution: Resolution = Resolution()
    dynamic: DynamicTokens = DynamicTokens()
    static: StaticImageTokens = StaticImageTokens()


class TokensPerFrameParams(Params, frozen=True):
    """Tokens of one frame of a video."""

    mode: Literal["dynamic", "static"] = "dynamic"
    dynamic: DynamicTokens = DynamicTokens()
    static: StaticFrameTokens = StaticFrameTokens()


class SampledFrames(Params, frozen=True):
    """Duration x sampleFPS frames, every `temporalPatchSize` of them merged into one (below 2: none merged)."""

    sample_fps: float = msgspec.field(default=2.0, name="sampleFPS")
    temporal_patch_size: int = 0


class StridedFrames(Params, frozen=True):
    """Every `frameStride`th frame of the source, whose rate is told by a header or assumed."""

    default_source_fps: float = msgspec.field(default=24.0, name="defaultSourceFPS")
    frame_stride: int = 1


class FramesParams(Params, frozen=True):
    """How many frames of a video count; `minFrames` and `maxFrames` bound it (0: no bound)."""

    mode: Literal["sampled", "strided"] = "sampled"
    min_frames: int = 0
    max_frames: int = 0
    sampled: SampledFrames = SampledFrames()
    strided: StridedFrames = StridedFrames()


class VideoParams(Params, frozen=True):
    """min(frames x tokens per frame, `maxVideoTokens`); seconds for `defaultDuration`, 0 for no maximum."""

    tokens_per_frame: TokensPerFrameParams = TokensPerFrameParams()
    frames: FramesParams = FramesParams()
    default_resolution: Resolution = Resolution()
    default_duration: float = 10.0
    max_video_tokens: int = 0


class EstimateParams(Params, frozen=True):
    """How the `estimate` backend counts media."""

    image: ImageParams = ImageParams()
    video: VideoParams = VideoParams()


def media_tokens(part: MediaPart, params: EstimateParams, headers: Mapping[str, str]) -> int:
    """Tokens that stand for one medium: at least 1, at most `MAX_TOKENS`."""
    match part.modality:
        case "image":
            tokens = _image_tokens(part.content, params.image)
        case "video":
            tokens = _video_tokens(params.video, headers)
        case _:
            tokens = -(-len(part.content) // 4)
    return min(max(tokens, 1), MAX_TOKENS)


def _image_tokens(content: str, params: ImageParams) -> int:
    if params.mode == "static":
        return params.static.static_token
    size = inline_image_size(content) or _pixels(params.default_resolution)
    return _area_tokens(size, params.dynamic)


def _video_tokens(params: VideoParams, headers: Mapping[str, str]) -> int:
    if params.tokens_per_frame.mode == "static":
        per_frame = max(1, params.tokens_per_frame.static.num_tokens_per_frame)
    else:
        size = _resolution(headers.get(VIDEO_RESOLUTION, "")) or _pixels(params.default_resolution)
        per_frame = _area_tokens(size, params.tokens_per_frame.dynamic)
    tokens = _frames(params, headers) * per_frame
    return min(tokens, params.max_video_tokens) if params.max_video_tokens > 0 else tokens


def _frames(params: VideoParams, headers: Mapping[str, str]) -> int:
    duration = _positive(headers.get(VIDEO_DURATION, "")) or _or_default(params.default_duration, 10.0)
    frames = params.frames
    if frames.mode == "strided":
        fps = _positive(headers.get(VIDEO_FPS, "")) or _or_default(frames.strided.default_source_fps, 24.0)
        return _bounded(_whole(duration * fps) // max(1, frames.strided.frame_stride), frames)
    count = _bounded(_whole(duration * _or_default(frames.sampled.sample_fps, 2.0)), frames)
    return count // frames.sampled.temporal_patch_size if frames.sampled.temporal_patch_size > 1 else count


def _bounded(count: int, frames: FramesParams) -> int:
    if frames.min_frames > 0:
        count = max(count, frames.min_frames)
    return min(count, frames.max_frames) if frames.max_frames > 0 else count


def _area_tokens(size: tuple[int, int], dynamic: DynamicTokens) -> int:
    return max(1, size[0] * size[1] // (dynamic.factor if dynamic.factor > 0 else 1024))


def _pixels(resolution: Resolution) -> tuple[int, int]:
    return (
        resolution.width if resolution.width > 0 else 640,
        resolution.height if resolution.height > 0 else 360,
    )


def _or_default(value: float, default: float) -> float:
    return value if value > 0 else default


def _whole(value: float) -> int:
    return int(min(value, MAX_TOKENS))


def _positive(text: str) -> float:
    """A finite number above 0 from a header; 0.0 when it says nothing of the kind."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if number > 0 and math.isfinite(number) else 0.0


def _resolution(text: str) -> tuple[int, int] | None:
    """`WIDTHxHEIGHT`."""
    width, _, height = text.lower().partition("x")
    width, height = width.strip(), height.strip()
    # More digits than any screen has pixels would make the product grow without bound.
    if not (width.isdecimal() and height.isdecimal() and len(width) <= 6 and len(height) <= 6):
        return None
    size = int(width), int(height)
    return size if size[0] > 0 and size[1] > 0 else None
