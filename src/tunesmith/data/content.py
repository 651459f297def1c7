"""What a turn says: a text, or a list of parts (text, image_url, input_audio, video, …) as OpenAI's messages have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.columns import found, names_in, not_text
from tunesmith.data.media import Inline, Kind, placeholder, source_of
from tunesmith.data.thinking import take_apart

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS: Mapping[str, Kind] = {
    "image_url": "image", "image": "image", "input_image": "image",
    "input_audio": "audio", "audio": "audio", "audio_url": "audio",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip


@dataclass(frozen=True)
class Content:
    """Text with a placeholder where each medium stands, the media in their order, and what was thought before."""

    text: str
    media: tuple[Inline, ...] = ()
    thinking: str = ""


def read_content(turn: Mapping[str, Any], key: str, place: str, *, assistant: bool, optional: bool) -> Content:
    """The content of ``turn`` under ``key``; only an assistant thinks. ``optional``: null and no content are an empty text.

    Raises DataError.
    """
    value = turn.get(key)
    if value is None and optional:
        content = Content("")
    elif isinstance(value, str):
        content = Content(value)
    elif isinstance(value, list):
        content = _parts(value, place)
    elif key not in turn:
        raise DataError(
            f"{place}: it has no {key!r}",
            hint=f"this turn has: {names_in(turn)}; tell other names with `tags` (role_tag, content_tag)",
        )
    else:
        raise not_text(value, f"{place}: {key!r}")
    return _thought(turn, content, place, assistant)


def _thought(turn: Mapping[str, Any], content: Content, place: str, assistant: bool) -> Content:
    """The content with the thinking told by a key, a part or a ``<think>`` block; it may be told once."""
    told = {key: turn[key] for key in THINKING_KEYS if turn.get(key) not in (None, "", [])}
    for key, value in told.items():
        if not isinstance(value, str):
            raise not_text(value, f"{place}: {key!r}")
    if not assistant and not told and not content.thinking:
        return content
    parts = take_apart(content.text, place) if assistant else None
    texts = {*told.values(), *filter(None, [content.thinking, parts.thinking if parts else ""])}
    if not texts:
        return content
    if not assistant:
        raise DataError(
            f"{place}: only the assistant can have thoughts ({', '.join(told) or 'a thinking part'})",
            hint="take the key out, or write it into the text",
        )
    if len({text.strip("\n") for text in texts}) > 1:
        raise DataError(
            f"{place}: two different thoughts: {' and '.join(repr(t[:30]) for t in sorted(texts))}",
            hint=f"keep one of {', '.join(THINKING_KEYS)} or the <think> block",
        )
    assert parts is not None
    return Content(parts.answer, content.media, next(iter(told.values()), content.thinking or parts.thinking))


def _parts(value: list[Any], place: str) -> Content:
    texts: list[str] = []
    media: list[Inline] = []
    thinking: list[str] = []
    for i, part in enumerate(value):
        where = f"{place}, part {i + 1}"
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _TEXT_PARTS:
            texts.append(_text(part, "text", where))
        elif kind in ("thinking", "reasoning"):
            thinking.append(_text(part, kind if part.get(kind) is not None else "text", where))
        elif isinstance(kind, str) and kind in _MEDIA_PARTS:
            medium = _MEDIA_PARTS[kind]
            media.append(Inline(medium, _source(part, kind, medium, where)))
            texts.append(placeholder(medium))
        else:
            raise DataError(
                f"{where}: not a part of a turn: found {found(part)}",
                hint='expected {"type": "text", "text": "…"} or {"type": "image_url", "image_url": {"url": "…"}}; '
                f"known types: {', '.join((*_TEXT_PARTS, *_MEDIA_PARTS, 'thinking'))}",
            )
    return Content("".join(texts), tuple(media), "\n".join(thinking))


def _text(part: Mapping[str, Any], key: str, place: str) -> str:
    value = part.get(key)
    if not isinstance(value, str):
        raise not_text(value, f"{place}: {key!r}")
    return value


def _source(part: Mapping[str, Any], kind: str, medium: Kind, place: str) -> str | None:
    """Where a medium is: under the part's own type, or path / url / bytes beside it; None when nothing is told."""
    value = next((part[k] for k in (kind, medium, f"{medium}_url") if part.get(k) is not None), None)
    if value is None:
        beside = {k: part[k] for k in ("path", "url", "bytes") if part.get(k) is not None}
        return source_of(beside, medium, place) if beside else None
    if isinstance(value, dict) and isinstance(value.get("data"), str):  # input_audio: base64 and its format
        return f"data:{medium}/{value.get('format') or '*'};base64,{value['data']}"
    return source_of(value, medium, place)
