"""The cleaned copy of a set: rows in their own format and keys, and beside it everything that was dropped or changed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config.errors import DataError
from tunesmith.config.files import sync_folder
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.doctor.base import Check, Finding, Row, row_of
from tunesmith.data.doctor.findings import Findings
from tunesmith.data.doctor.sets import Source


@dataclass(frozen=True)
class Fixed:
    """What ``--fix`` did: numbers of rows, and where the two files are."""

    kept: int
    changed: int
    dropped: int
    path: Path
    list_path: Path


def list_of(out: Path) -> Path:
    """The list beside a cleaned copy."""
    return out.with_name(out.name + ".dropped.jsonl")


def check_out(out: Path) -> None:
    """Raises DataError when ``out`` cannot become a new JSON Lines file."""
    if out.suffix != ".jsonl":
        raise DataError(f"{out}: the cleaned copy is JSON Lines", hint="give it a name that ends in .jsonl")
    for path in (out, list_of(out)):
        if path.exists():
            raise DataError(f"{path} is there already; nothing is overwritten", hint="give another name, or remove it")
    if not out.absolute().parent.is_dir():
        raise DataError(f"{out.absolute().parent}: no such folder", hint="make it, or write elsewhere")


def write_fixed(
    source: Source, findings: Findings, checks: Mapping[str, Check], out: Path, progress: Progress = SILENT
) -> Fixed:
    """Write ``out`` and its list from the findings of one examination of ``source``. Both are whole or not there.

    A row is dropped when any finding says so, else its texts are cleaned by the checks that found something in them. Only strings
    of the row that became text of the example are touched. Raises DataError when ``out`` is there already.
    """
    check_out(out)
    todo = findings.fixable()
    following = next(todo, None)
    kept = changed = dropped = 0
    progress.start(f"writing {out.name}", None, "rows")
    with _both(out, list_of(out)) as (rows, listed):
        for index, ((origin, row), example) in enumerate(zip(source.raw(), source.examples())):
            progress.advance()
            entries: list[tuple[str, Finding]] = []
            while following is not None and following[0] <= index:
                if following[0] == index:
                    entries = following[1]
                following = next(todo, None)
            reasons = [{"check": check, "found": finding.message} for check, finding in entries]
            if any(finding.fix == "drop" for _, finding in entries):
                dropped += 1
                reasons = [r for r, (_, f) in zip(reasons, entries) if f.fix == "drop"]
                _write(
                    listed,
                    {
                        "action": "dropped",
                        "origin": origin,
                        "reasons": reasons,
                        "row": None if isinstance(row, DataError) else row,
                    },
                )
                continue
            if entries and not isinstance(example, DataError):
                before, row = (
                    row,
                    _cleaned(row, [checks[check] for check, _ in entries], row_of(index, "train", example)),
                )
                changed += 1
                _write(listed, {"action": "changed", "origin": origin, "reasons": reasons, "row": before, "after": row})
            kept += 1
            _write(rows, row)
    progress.finish(f"{kept:,} rows kept")
    return Fixed(kept, changed, dropped, out, list_of(out))


def _cleaned(value: Any, checks: list[Check], row: Row) -> Any:
    if isinstance(value, str):
        word = value.strip()
        if word and (word in row.text or any(p.text and p.text in value for p in row.pieces)):
            for check in dict.fromkeys(checks):
                value = check.clean(value)
        return value
    if isinstance(value, Mapping):
        return {key: _cleaned(item, checks, row) for key, item in value.items()}
    return [_cleaned(item, checks, row) for item in value] if isinstance(value, list | tuple) else value


def _write(file: IO[bytes], value: Any) -> None:
    try:
        line = json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # half a character: JSON can escape it, UTF-8 cannot hold it
        line = json.dumps(value, default=str).encode()
    file.write(line + b"\n")


@contextmanager
def _both(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files that appear under their names when all is written, flushed to disk, and never replace another."""
    with ExitStack() as stack:
        temporaries: list[Path] = []
        try:
            files: list[IO[bytes]] = []
            for path in paths:
                descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".tmp")
                temporaries.append(Path(name))
                files.append(stack.enter_context(os.fdopen(descriptor, "wb")))
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            for temporary, path in reversed(
                list(zip(temporaries, paths))
            ):  # the copy last: it is never without its list
                temporary.chmod(0o644)
                temporary.replace(path)
            sync_folder(paths[0].absolute().parent)
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
