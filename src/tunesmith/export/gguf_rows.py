"""Does a GGUF hold the numbers of its source? A sample of rows of every tensor, read back and compared with what rounding makes of the source's.

Independent of what the model answers, so that a wrong, swapped, shifted, scaled or zeroed tensor is found at any level: rows of the source are
rounded again by ggml, with the same importances, and must come out as they stand in the file. A few rows are in memory at a time.

The converter stores some tensors otherwise than the source: it turns matrices, interleaves the rows of q and k for llama.cpp's rotary
embedding, adds 1 to norms. These three are known here. A kind of tensor (``blk.*.attn_q.weight``) of which not one is found in a known
arrangement is not compared, and counted; one among others that are found is damaged.
"""

from __future__ import annotations

import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import FLOATS, bytes_of
from tunesmith.export.ggml_quantize import Quantizer
from tunesmith.export.gguf_check import ROPE, TURNED, name_map
from tunesmith.export.gguf_file import GgufTensor, read_gguf
from tunesmith.export.tensor_files import ITEM_BYTES, StoredTensor

if TYPE_CHECKING:
    from tunesmith.export.gguf_file import GgufHeader

ROWS, NUMBERS = 8, 2048
"""So many rows of a matrix, so many numbers of a vector, evenly spread from the first to the last."""
TOLERANCE = 0.01
"""‖file - source rounded again‖ / ‖source rounded again‖ over the rows; 0 is usual."""
THROUGH_F16 = 0.03
"""The same where another program rounded numbers that were rounded to 16 bits before: the scale of a few blocks may come out otherwise."""
PLAIN = ("F32", "F16", "BF16", "F64")
ALONE = ("token_embd.weight", "output.weight", "output_norm.weight")
"""Stored as they are by every family, so that they need no others of their kind."""

Take = Callable[[np.ndarray], np.ndarray]
"""Numbers of rows in the file -> numbers of the same rows in the source."""


def check_rows(
    path: Path, stored: Mapping[str, StoredTensor], importances: Mapping[str, Any], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Compare ``path`` with ``stored``. ``importances``: tensor -> [matrices, width], as it was rounded with.

    Returns ``compared``, the number of tensors that were, and ``not_compared``, the kinds that could not be. Raises ExportError that names the tensor.
    """
    from tunesmith.chat.llama_library import library

    header = read_gguf(path)
    names, quantizer = name_map(header.metadata), Quantizer(str(library()._name), 1)
    found: dict[str, list[tuple[str, str, float, bool]]] = defaultdict(list)
    known: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, tensor in stored.items():
            place = names.get_name(name, try_suffixes=(".weight", ".bias")) if names else None
            if place not in header.tensors or place in known or not _same_shape(name, tensor, header.tensors[place]):
                continue
            known.add(place)
            try:
                distance, telling = _distance(
                    name, tensor, header.tensors[place], header, data, quantizer, importances.get(place)
                )
            except ValueError as error:
                raise ExportError(f"{name} cannot be rounded to {header.tensors[place].type}: {error}") from error
            found[_kind(place)].append((place, name, distance, telling))
    unknown = {_kind(place) for place in header.tensors if place not in known and not ROPE.match(place)}
    compared = 0
    for kind, ones in found.items():
        wrong = any(not distance <= tolerance for _, _, distance, _ in ones)
        known_order = any(distance <= tolerance and telling for _, _, distance, telling in ones)
        if wrong and not known_order and kind not in ALONE:
            unknown.add(kind)
            continue
        compared += len(ones)
        for place, name, distance, _ in ones:
            if not distance <= tolerance:
                raise ExportError(
                    f"the GGUF's {place} does not hold the numbers of {name}: they differ by {distance:.0%} of their size, rounded alike",
                    hint="the file was damaged while it was written, or written wrongly; export again",
                )
    return {"compared": compared, "not_compared": sorted(unknown)}


def _kind(place: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", place)


def _same_shape(name: str, tensor: StoredTensor, placed: GgufTensor) -> bool:
    shape = tensor.shape[::-1] if TURNED.search(name) else tensor.shape
    return tensor.dtype in FLOATS and len(shape) in (1, 2) and shape == placed.shape


def _distance(
    name: str, tensor: StoredTensor, placed: GgufTensor, header: GgufHeader, data: mmap.mmap, quantizer: Quantizer, importance: Any
) -> tuple[float, bool]:  # fmt: skip
    """The smallest relative distance over the arrangements that are known; and whether rows differ, so that their order can be told."""
    count, width = placed.shape[0], placed.shape[1] if len(placed.shape) == 2 else 1
    most = ROWS if len(placed.shape) == 2 else NUMBERS
    rows = np.unique(np.linspace(0, count - 1, most).astype(np.int64))
    there = _rows_of_file(placed, width, rows, data)
    best = float("inf")
    for take in _arrangements(placed.name, count, header):
        source = _rows_of_source(tensor, width, take(rows), turned=bool(TURNED.search(name)))
        for more in (0.0, 1.0) if len(placed.shape) == 1 else (0.0,):
            wanted = _rounded(source + np.float32(more), placed.type, quantizer, importance)
            distance, size = float(np.linalg.norm(there - wanted)), float(np.linalg.norm(wanted))
            best = min(best, distance / size if size else (0.0 if distance == 0 else float("inf")))
        if best <= TOLERANCE:
            break
    return best, bool((there != there[:1]).any())


def _arrangements(place: str, count: int, header: GgufHeader) -> Iterator[Take]:
    """As it is; rows of q and k interleaved within each head: row 2 i + s of a head is its row i + s · d/2 in the source."""
    yield lambda rows: rows
    found = re.search(r"\.attn_([qk])\.", place)
    if found is None:
        return
    architecture = header.metadata.get("general.architecture")
    heads = header.metadata.get(f"{architecture}.attention.head_count{'' if found[1] == 'q' else '_kv'}")
    if isinstance(heads, int) and heads > 0 and count % (2 * heads) == 0:
        d = count // heads
        yield lambda rows: rows // d * d + rows % d // 2 + rows % 2 * (d // 2)


def _rows_of_file(placed: GgufTensor, width: int, rows: np.ndarray, data: mmap.mmap) -> np.ndarray:
    """[rows, width] float32, made of the blocks in the file."""
    import gguf

    kind = gguf.GGMLQuantizationType[placed.type]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    step = width // block * size
    parts = [np.frombuffer(data, np.uint8, step, placed.offset + int(row) * step) for row in rows]
    return _numbers(np.stack(parts), kind)


def _rows_of_source(tensor: StoredTensor, width: int, rows: np.ndarray, *, turned: bool) -> np.ndarray:
    """[rows, width] float32. ``turned``: its rows are columns in the source, which is then read whole."""
    import torch

    dtype = getattr(torch, FLOATS[tensor.dtype])
    if turned:
        whole = torch.empty(tensor.shape, dtype=dtype)
        tensor.read_into(bytes_of(whole), 0)
        return np.ascontiguousarray(whole.float().numpy().T[rows])
    if width == 1:
        vector = torch.empty(tensor.shape, dtype=dtype)
        tensor.read_into(bytes_of(vector), 0)
        return np.ascontiguousarray(vector.float().numpy()[rows][:, None])
    part, size = torch.empty(len(rows), width, dtype=dtype), width * ITEM_BYTES[tensor.dtype]
    for i, row in enumerate(rows):
        tensor.read_into(bytes_of(part[i]), int(row) * size)
    found: np.ndarray = part.float().numpy()
    return found


def _rounded(rows: np.ndarray, kind: str, quantizer: Quantizer, importance: Any) -> np.ndarray:
    """What a file of this type holds for ``rows``, as float32."""
    import gguf

    if kind in PLAIN:
        return rows
    number = gguf.GGMLQuantizationType[kind]
    weights = None if importance is None else np.asarray(importance)[0]
    return _numbers(np.concatenate(list(quantizer.blocks(rows, (kind, int(number)), weights))), number)


def _numbers(blocks: np.ndarray, kind: Any) -> np.ndarray:
    from gguf import quants

    found: np.ndarray = quants.dequantize(blocks, kind)
    return found.astype(np.float32)
