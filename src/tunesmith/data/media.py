"""Pictures, sounds and films of a row: found and counted, never opened."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.config.errors import DataError
from tunesmith.data.columns import FieldMap, found
from tunesmith.data.example import MEDIA_KINDS, Media, Message

Kind = Literal["image", "audio", "video"]
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("images", "image"), "audio": ("audios", "audio"), "video": ("videos", "video"),
}  # fmt: skip
ROLES: Mapping[str, str] = {"images": "images", "audios": "audios", "videos": "videos"}
"""Names in ``columns`` for media, the same in every format that has turns."""


@dataclass(frozen=True)
class Inline:
    """Media among the parts of a turn's content; ``source`` None = the next one of the row's column."""

    kind: Kind
    source: str | None


def placeholder(kind: str) -> str:
    """What stands for it in a text."""
    return f"<{kind}>"


def read_media(
    row: Mapping[str, Any], origin: str, fields: FieldMap, inline: Sequence[Inline] = ()
) -> tuple[Media, ...]:
    """The media of a row: out of its columns, or those given in the turns themselves. Raises DataError."""
    media: list[Media] = []
    for kind in MEDIA_KINDS:
        column = fields.find(row, f"{kind}s", *COLUMNS[kind])
        value = None if column is None else row[column]
        if value is None and not inline:
            continue
        values = value if isinstance(value, list) else [] if value is None else [value]
        listed = [
            source_of(v, kind, f"{origin}: {column!r}" + (f", entry {i + 1}" if len(values) > 1 else ""))
            for i, v in enumerate(values)
        ]
        given = [m.source for m in inline if m.kind == kind and m.source is not None]
        if given and (listed or len(given) < sum(m.kind == kind for m in inline)):
            raise DataError(
                f"{origin}: some {kind}s are given in the turns, others in the column {column or kind + 's'!r}",
                hint="give all of them in one way, so that their order is told",
            )
        media += [Media(kind, source) for source in given or listed]  # type: ignore[arg-type]
    return tuple(media)


def source_of(value: Any, kind: str, place: str) -> str:
    """Path or address of one medium: text, or what ``datasets`` gives (``{"path", "bytes"}``); bytes become a data: address."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bytes):
        return _data_address(value, "")
    if isinstance(value, dict):
        path = next((v for v in (value.get("path"), value.get("url")) if isinstance(v, str) and v), "")
        if isinstance(value.get("bytes"), bytes) and value["bytes"]:
            return _data_address(value["bytes"], path)  # the path beside bytes is only a name inside the file
        if path:
            return path
    hint = "expected a path, an address, or {'path': …} / {'bytes': …}"
    if isinstance(value, list):
        hint = "a film as a list of pictures is not read; give the path of the film"
    raise DataError(f"{place}: not a {kind}: found {found(value)}", hint=hint)


def place_media(messages: tuple[Message, ...], media: Sequence[Media], origin: str) -> tuple[Message, ...]:
    """The turns with as many placeholders as there are media of each kind.

    Without any placeholder they belong to the first user turn, at its beginning. Raises DataError when the numbers differ.
    """
    for kind in dict.fromkeys(m.kind for m in media):  # without media, `<image>` is a word of the text
        count = sum(m.kind == kind for m in media)
        mark = placeholder(kind)
        marks = sum(m.content.count(mark) for m in messages)
        if marks == count:
            continue
        first = next((i for i, m in enumerate(messages) if m.role == "user"), None)
        if marks or first is None:
            raise DataError(
                f"{origin}: the texts have {marks} times {mark}, the row has {count} {kind}{'s' * (count > 1)}",
                hint=f"write one {mark} where each {kind} belongs, or none: they then belong to the first user turn",
            )
        turn = replace(messages[first], content=mark * count + messages[first].content)
        messages = (*messages[:first], turn, *messages[first + 1 :])
    return messages


def check_column(messages: Sequence[Message], row: Mapping[str, Any], origin: str, fields: FieldMap) -> None:
    """Raises DataError when the texts ask for media that a named column does not give."""
    for kind in MEDIA_KINDS:
        if f"{kind}s" not in fields.columns or row.get(fields.columns[f"{kind}s"]) not in (None, []):
            continue
        marks = sum(m.content.count(placeholder(kind)) for m in messages)
        if marks:
            raise DataError(
                f"{origin}: the texts have {marks} times {placeholder(kind)}, "
                f"the column {fields.columns[f'{kind}s']!r} is empty",
                hint=f"fill it in, or take the {placeholder(kind)} out",
            )


def _data_address(value: bytes, path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(value).decode('ascii')}"
