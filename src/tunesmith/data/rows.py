"""Raw rows of a data file, each with its place (``file:row``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.config.errors import DataError


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """``(origin, row)`` of every row of a .json list or .jsonl file. Raises DataError naming file and line.

    A JSON list's rows are counted from 1; JSONL rows are named by their line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text", hint=f"convert it, for example: iconv -f GB18030 -t UTF-8 {path.name}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    yield from (_lines(text, path) if path.suffix == ".jsonl" else _list(text, path))


def _list(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be a data set") from None
    except ValueError as error:
        if _looks_like_lines(text):
            raise DataError(f"{path}: this is JSON Lines (one object per line)", hint="rename it to .jsonl") from None
        raise DataError(
            f"{path}:{_line(error)}: not valid JSON: {error}",
            hint="check for a missing or trailing comma or an open quote there",
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows [{{…}}, {{…}}], found a {type(rows).__name__}")
    for i, row in enumerate(rows):
        yield f"{path}:row {i + 1}", row


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not valid JSON: {error}: {line[:60]!r}",
                hint="each line must be one complete JSON object",
            ) from None


def _looks_like_lines(text: str) -> bool:
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _line(error: ValueError) -> int:
    return error.lineno if isinstance(error, json.JSONDecodeError) else 1
