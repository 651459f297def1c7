"""Does a GGUF hold the numbers of its source? A sample of rows of every tensor, read back and compared with what rounding makes of the source's.

Independent of what the model answers, and so as sharp at two bits as at sixteen: rows of the source are rounded again by ggml, with the same
importances, and must come out as they stand in the file. A few rows are in memory at a time.

The converter stores some tensors otherwise than the source: it turns matrices, interleaves the rows of q and k for llama.cpp's rotary
embedding, adds 1 to norms, multiplies rows by factors of config.json that the file does not name (Falcon-H1). These four are known here. A kind of
tensor (``blk.*.attn_q.weight``) of which not one is found in a known arrangement is not compared, and named, unless it is empty or holds another
tensor of its layer; one among others that are found is damaged.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import bytes_of
from tunesmith.export.ggml_quantize import Quantizer
from tunesmith.export.gguf_check import ROPE, is_turned, name_map
from tunesmith.export.gguf_file import GgufTensor, read_gguf
from tunesmith.export.numbers import FLOATS
from tunesmith.export.tensor_files import ITEM_BYTES, StoredTensor

if TYPE_CHECKING:
    from tunesmith.export.gguf_file import GgufHeader

ROWS, NUMBERS = 8, 2048
"""So many rows of a matrix, so many numbers of a vector, evenly spread from the first to the last."""
TOLERANCE = 0.01
"""‖file - source rounded again‖ / ‖source rounded again‖ over the rows; 0 is usual."""
THROUGH_F16 = 0.03
"""The same where another program rounded numbers that were rounded to 16 bits before: the scale of a few blocks may come out otherwise."""
ROUNDED, PLAIN = ("F16", "BF16"), ("F32", "F64")
"""Types of single numbers; the smallest are rounded at 16 bits too."""
ALONE = ("token_embd.weight", "output.weight", "output_norm.weight")
"""Always in a known arrangement, so that they need no others of their kind."""

Take = Callable[[np.ndarray], np.ndarray]
"""Numbers of rows in the file -> numbers of the same rows in the source."""


@dataclass(frozen=True)
class _File:
    """A GGUF that is open. ``factors``: what rows may have been multiplied by."""

    header: GgufHeader
    data: mmap.mmap
    quantizer: Quantizer
    factors: list[float]


@dataclass(frozen=True)
class _Found:
    """A tensor of the file beside its source. ``telling``: rows differ, so that their order can be told; ``emptied``: nothing but zeros, unlike the source."""

    place: str
    name: str
    distance: float
    telling: bool
    emptied: bool


def check_rows(
    path: Path, stored: Mapping[str, StoredTensor], importances: Mapping[str, Any], tolerance: float = TOLERANCE,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare ``path`` with ``stored``. ``importances``: tensor -> [matrices, width], as it was rounded with; ``settings``: of config.json.

    Returns ``compared``, the number of tensors that were, and ``not_compared``, the kinds that could not be. Raises ExportError that names the tensor.
    """
    from tunesmith.chat.llama_library import library

    header = read_gguf(path)
    names, quantizer = name_map(header.metadata), Quantizer(str(library()._name), 1)
    found: dict[str, list[_Found]] = defaultdict(list)
    known: dict[str, str] = {}
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        file = _File(header, data, quantizer, _factors(settings or {}, header.metadata))
        for name, tensor in stored.items():
            place = names.get_name(name, try_suffixes=(".weight", ".bias")) if names else None
            if place not in header.tensors or place in known or not _same_shape(name, tensor, place, header):
                continue
            known[place] = name
            found[_kind(place)].append(_compare(name, tensor, place, file, importances.get(place)))
        unknown = {_kind(place) for place in header.tensors if place not in known and not ROPE.match(place)}
        compared = 0
        for kind, ones in found.items():
            wrong = [one for one in ones if not one.distance <= tolerance]
            in_order = any(one.distance <= tolerance and one.telling for one in ones)
            if wrong and (in_order or kind in ALONE or any(one.emptied for one in wrong)):
                raise _damaged(next((one for one in wrong if one.emptied), wrong[0]))
            if wrong:
                _refuse_swapped(wrong, stored, known, file, importances, tolerance)
                unknown.add(kind)
            else:
                compared += len(ones)
    return {"compared": compared, "not_compared": sorted(unknown)}


def _damaged(one: _Found, holds: str = "") -> ExportError:
    differ = holds or f": they differ by {one.distance:.0%} of their size, rounded alike"
    return ExportError(
        f"the GGUF's {one.place} does not hold the numbers of {one.name}{differ}",
        hint="the file was damaged while it was written, or written wrongly; export again",
    )


def _refuse_swapped(
    wrong: list[_Found], stored: Mapping[str, StoredTensor], known: Mapping[str, str], file: _File, importances: Mapping[str, Any], tolerance: float,
) -> None:  # fmt: skip
    """Raise ExportError where one of the ``wrong`` holds what belongs elsewhere in its layer, rounded for either place."""
    for one in wrong:
        layer = re.match(r"blk\.\d+\.", one.place)
        near = (
            tolerance if len(file.header.tensors[one.place].shape) == 2 else 1e-4
        )  # norms are alike, and never rounded
        for place, name in known.items():
            if layer is None or place == one.place or not place.startswith(layer[0]):
                continue
            if not one.telling or not _same_shape(name, stored[name], one.place, file.header):
                continue
            for weights in (importances.get(one.place), importances.get(place)):
                if _compare(name, stored[name], one.place, file, weights).distance <= near:
                    raise _damaged(one, f" but those of {name}")


def _factors(settings: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[float]:
    """Multipliers of config.json that ``metadata`` do not hold, and so the weights may; and their products in pairs."""
    told = [v for key, v in metadata.items() if "scale" in key and isinstance(v, float)]
    known: list[float] = [1.0]
    for key, value in {**settings, **(settings.get("text_config") or {})}.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if not re.search("multiplier|scale", key) or isinstance(one, bool) or not isinstance(one, (int, float)):
                continue
            if one and not any(math.isclose(one, v, rel_tol=1e-6) for v in told):
                known.append(float(one))
    return sorted({a * b for a in known for b in known}) if len(known) > 1 else []


def _kind(place: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", place)


def _same_shape(name: str, tensor: StoredTensor, place: str, header: GgufHeader) -> bool:
    shape = tensor.shape[::-1] if is_turned(name, header.metadata) else tensor.shape
    return tensor.dtype in FLOATS and len(shape) in (1, 2) and shape == header.tensors[place].shape


def _compare(name: str, tensor: StoredTensor, place: str, file: _File, importance: Any) -> _Found:
    """With the smallest relative distance over the arrangements that are known. Raises ExportError where the source cannot be rounded."""
    placed = file.header.tensors[place]
    count, width = placed.shape[0], placed.shape[1] if len(placed.shape) == 2 else 1
    most = ROWS if len(placed.shape) == 2 else NUMBERS
    rows = np.unique(np.linspace(0, count - 1, most).astype(np.int64))
    there = _rows_of_file(placed, width, rows, file.data)
    best, emptied = float("inf"), not there.any()
    for take in _arrangements(place, count, file.header):
        source = _rows_of_source(tensor, width, take(rows), turned=is_turned(name, file.header.metadata))
        try:
            for more in (0.0, 1.0) if len(placed.shape) == 1 else (0.0,):
                wanted = _rounded(source + np.float32(more), placed.type, file.quantizer, importance)
                best, emptied = min(best, _relative(there, wanted)), emptied and bool(wanted.any())
            if best > TOLERANCE and len(placed.shape) == 2 and file.factors:
                best = min(best, _multiplied(there, source, placed.type, file, importance))
        except ValueError as error:
            raise ExportError(f"{name} cannot be rounded to {placed.type}: {error}") from error
        if best <= TOLERANCE:
            break
    return _Found(place, name, best, bool((there != there[:1]).any()), emptied)


def _relative(there: np.ndarray, wanted: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # beyond the end of F16
        distance, size = float(np.linalg.norm(there - wanted)), float(np.linalg.norm(wanted))
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def _multiplied(there: np.ndarray, source: np.ndarray, kind: str, file: _File, importance: Any) -> float:
    """The relative distance when each row was multiplied by that of the file's factors which brings it nearest."""
    size = (source.astype(np.float64) ** 2).sum(1)
    about = (there.astype(np.float64) * source).sum(1) / np.where(
        size > 0, size, 1
    )  # few bits make it less than it was
    chosen, least = np.zeros_like(source), np.full(len(source), np.inf)
    for factor in file.factors:
        if (np.abs(about - factor) > abs(factor) / 2).all():
            continue
        wanted = _rounded(source * np.float32(factor), kind, file.quantizer, importance)
        distance = ((there - wanted) ** 2).sum(1)
        chosen = np.where((distance < least)[:, None], wanted, chosen)
        least = np.minimum(distance, least)
    return _relative(there, chosen)


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

    number = gguf.GGMLQuantizationType[kind]
    if kind in ROUNDED:
        with np.errstate(over="ignore"):
            return _numbers(gguf.quants.quantize(rows, number), number)
    if kind in PLAIN:
        return rows
    weights = None if importance is None else np.asarray(importance)[0]
    return _numbers(np.concatenate(list(quantizer.blocks(rows, (kind, int(number)), weights))), number)


def _numbers(blocks: np.ndarray, kind: Any) -> np.ndarray:
    from gguf import quants

    found: np.ndarray = quants.dequantize(blocks, kind)
    return found.astype(np.float32)
