"""Importance matrices as llama.cpp keeps them: for each weight, the mean square of what enters each of its columns.

Two formats are read: the GGUF that ``llama-imatrix`` writes today (sums of squares and counts) and its older ``.dat``; the GGUF is
written. Formats: ``tools/imatrix/imatrix.cpp`` and ``common/imatrix-loader.cpp`` of llama.cpp. Knows files, not models.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.base import whole_or_nothing

NAME = "imatrix.gguf"
CHUNK = 512
"""Tokens that are counted as one chunk, as in llama-imatrix."""
MADE_FROM = "tunesmith.made_from"
"""Key of ours: what model and text a file was computed from, so that it is not taken for another's."""


@dataclass(frozen=True)
class Entry:
    """``sums`` [matrices, width] of squares (experts are matrices), ``counts`` [matrices] of rows that were added up."""

    sums: Any
    counts: Any

    @property
    def means(self) -> Any:
        """[matrices, width] float32; 1 for an expert that nothing was sent to."""
        counts = np.asarray(self.counts, np.float32)[:, None]
        return np.where(counts > 0, np.asarray(self.sums, np.float32) / np.maximum(counts, 1), np.float32(1))


@dataclass(frozen=True)
class Matrix:
    """``entries``: tensor of the GGUF -> its entry; ``chunks`` and ``datasets`` as llama.cpp writes them into what it makes."""

    file: Path
    entries: Mapping[str, Entry]
    chunks: int = 0
    datasets: tuple[str, ...] = ()
    made_from: str = ""
    covered: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "covered", frozenset(self.entries))

    def means(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Tensor -> [matrices, width], for the tensors of ``shapes`` that it knows. Raises ExportError when an entry has another size."""
        found = {}
        for name, shape in shapes.items():
            if name not in self.entries:
                continue
            means, wanted = self.entries[name].means, (shape[-3] if len(shape) > 2 else 1, shape[-1])
            if means.size != wanted[0] * wanted[1]:
                if name == "token_embd.weight":  # looked up, not multiplied: what a file says of it has no meaning
                    continue
                raise ExportError(
                    f"{self.file}: {name} has {means.size} importances, this model's has {wanted[0] * wanted[1]}",
                    hint="this importance matrix belongs to another model",
                )
            if not np.isfinite(means).all():
                raise ExportError(f"{self.file}: the importances of {name} are not finite")
            found[name] = means.reshape(wanted)
        return found


def for_export(
    source: Path, out: Path, wanted: str, calibration: Sequence[Sequence[int]] | None, log: Path, progress: Progress,
    *, known: Path | None = None,
) -> Matrix | None:  # fmt: skip
    """What ``imatrix: auto | off | PATH`` means for this export; ``auto`` computes and keeps it beside ``out``, or takes ``known`` if that
    was computed from this model and text. One that an export computed from something else is replaced. Raises ExportError."""
    if wanted == "off":
        return None
    if wanted != "auto":
        return read(Path(wanted).expanduser())
    rows = [list(row) for row in calibration or () if len(row)]
    if not rows:
        progress.say("no calibration text: the importance matrix is left out (imatrix=PATH names one)")
        return None
    file, made_from = out.parent / NAME, _made_from(source, rows)
    if known is not None and known.is_file() and (there := read(known)).made_from == made_from:
        return there
    old = read(file) if file.exists() else None
    if old is not None and old.made_from == made_from:
        progress.say(f"taking the importance matrix in {file}, computed from this model and text before")
        return old
    if old is not None and not old.made_from:
        raise ExportError(
            f"{file} exists already, and no export computed it",
            hint=f"remove it, choose another --out, or use it as it is: imatrix={file}",
        )
    if old is not None:
        progress.say(f"{file} was computed from another model or text: it is computed again and replaced")
    from tunesmith.export.gguf_plan import outline
    from tunesmith.export.importance import collect

    entries = collect(source, rows, outline(source, log), progress)
    tokens = sum(map(len, rows))
    file.unlink(missing_ok=True)
    write(Matrix(file, entries, -(-tokens // CHUNK), (f"{len(rows)} calibration rows",), made_from))
    return read(file)


def is_ours(file: Path) -> bool:
    """Whether an export computed ``file`` (``imatrix=auto``)."""
    try:
        return bool(read(file).made_from)
    except ExportError:
        return False


def write(matrix: Matrix) -> None:
    """Write ``matrix`` to its new file."""
    from gguf import GGUFWriter

    with whole_or_nothing(matrix.file) as work:
        writer = GGUFWriter(work, "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(matrix.datasets))
        writer.add_uint32("imatrix.chunk_count", matrix.chunks)
        writer.add_uint32("imatrix.chunk_size", CHUNK)
        writer.add_string(MADE_FROM, matrix.made_from)
        for name, entry in sorted(matrix.entries.items()):
            writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(entry.sums, np.float32))
            writer.add_tensor(f"{name}.counts", np.asarray(entry.counts, np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(file: Path) -> Matrix:
    """An importance matrix in either format. Raises ExportError."""
    try:
        with file.open("rb") as stream:
            new = stream.read(4) == b"GGUF"
        return _read_gguf(file) if new else _read_old(file)
    except FileNotFoundError:
        raise ExportError(
            f"there is no importance matrix {file}", hint="imatrix is auto, off, or the path of a file"
        ) from None
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(
            f"{file} cannot be read as an importance matrix: {error}",
            hint="llama-imatrix writes such files (.gguf, formerly .dat); imatrix=auto computes one",
        ) from error


def _read_gguf(file: Path) -> Matrix:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    tensors = {t.name: np.array(t.data, np.float32) for t in reader.tensors if t.tensor_type.name == "F32"}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    if not names:
        raise ValueError("it holds no importances")
    entries = {}
    for name in names:
        counts = tensors[f"{name}.counts"].reshape(-1)
        entries[name] = Entry(tensors[f"{name}.in_sum2"].reshape(len(counts), -1), counts)
    told = {key: one.contents() for key, one in reader.fields.items() if key.startswith(("imatrix.", MADE_FROM))}
    return Matrix(
        file, entries, int(told.get("imatrix.chunk_count", 0)), tuple(told.get("imatrix.datasets") or ()), str(told.get(MADE_FROM, ""))
    )  # fmt: skip


def _read_old(file: Path) -> Matrix:
    data, at = file.read_bytes(), 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("<i", data, at - 4)[0])

    def text() -> str:
        nonlocal at
        length = number()
        if not 0 <= length <= len(data) - at:
            raise ValueError("a name reaches beyond the end of the file")
        at += length
        return data[at - length : at].decode("utf-8")

    entries = {}
    count = number()
    if not 0 < count < 1_000_000:
        raise ValueError(f"it says that it holds {count} entries")
    for _ in range(count):
        name, calls, values = text(), number(), number()
        if values < 1 or calls < 0 or values * 4 > len(data) - at:
            raise ValueError(f"the entry {name!r} reaches beyond the end of the file")
        sums = np.frombuffer(data, "<f4", values, at)
        at += values * 4
        entries[name] = Entry(sums.reshape(1, -1), np.array([max(calls, 1)], np.float32))
    chunks = number() if at < len(data) else 0
    datasets = (text(),) if at < len(data) else ()
    return Matrix(file, entries, chunks, datasets)


def _made_from(source: Path, rows: Sequence[Sequence[int]]) -> str:
    """A hash of the model's files (names, sizes, times) and of the text."""
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    for row in rows:
        digest.update(np.asarray([len(row), *row], "<i8").tobytes())
    return digest.hexdigest()[:32]
