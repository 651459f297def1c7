"""Rows and files that the tests of data sets share."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.example import Chat
from tunesmith.data.load import load_set

ROWS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def config(*sets: Any, **settings: Any) -> DataConfig:
    return DataConfig(train=sets or ("x",), **settings)


def put(path: Path, content: Any) -> Path:
    """Write text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def questions(choice: Any, **settings: Any) -> list[str]:
    """The questions of a set's rows, in order."""
    loaded = load_set(choice if isinstance(choice, SetConfig) else str(choice), config(**settings))
    assert not loaded.bad, loaded.bad
    return [e.messages[0].content for e in loaded.examples if isinstance(e, Chat)]


def zipped(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())
