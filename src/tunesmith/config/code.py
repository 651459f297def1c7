"""Which code this is: for caches, whose content another version would make otherwise."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_of(*rooms: str) -> str:
    """SHA-256 over the source files and templates of some rooms: another version of them is another hash."""
    root = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(p for room in rooms for p in (root / room).rglob("*") if p.suffix in (".py", ".jinja")):
        whole.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return whole.hexdigest()
