"""Reading metrics.jsonl as it grows, without reading it all each time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class Follower:
    """All records so far; ``poll`` reads only what was appended. A replaced or shortened file is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._offset = 0
        self._inode = 0

    def poll(self) -> bool:
        """Read what is new; True when the records changed."""
        try:
            with self.path.open("rb") as file:
                info = os.fstat(file.fileno())
                changed = False
                if info.st_ino != self._inode or info.st_size < self._offset:
                    changed = bool(self.records)
                    self.records, self._offset, self._inode = [], 0, info.st_ino
                file.seek(self._offset)
                block = file.read(info.st_size - self._offset)
        except OSError:
            changed = bool(self.records)
            self.records, self._offset, self._inode = [], 0, 0
            return changed
        whole = block[: block.rfind(b"\n") + 1]  # a torn last line is left for the next poll
        self._offset += len(whole)
        new = [r for r in map(_parse, whole.splitlines()) if r is not None]
        self.records += new
        return changed or bool(new)


def last_record(path: Path, kind: str) -> Record | None:
    """The newest record of ``kind``, found from the end of the file (at most its last 64 KiB)."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            block = file.read()
    except OSError:
        return None
    for line in reversed(block[: block.rfind(b"\n") + 1].splitlines()):
        record = _parse(line)
        if record is not None and record.get("kind") == kind:
            return record
    return None
