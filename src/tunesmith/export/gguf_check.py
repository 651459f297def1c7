"""Is a written GGUF complete? Its tensors against the safetensors they came from, its metadata against what it must say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.tensor_files import StoredTensor

# Buffers that old checkpoints store and every program computes again.
COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")
# Tensors a GGUF carries for llama.cpp's rotary embedding, which safetensors keep as numbers in config.json.
ROPE = re.compile(r"^rope_(freqs|factors_(long|short))\.weight$")


def check_file(path: Path, stored: dict[str, StoredTensor], expected: dict[str, Any]) -> dict[str, Any]:
    """Check ``path`` against the source's tensors and ``expected`` metadata; returns figures for the report. Raises ExportError."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except Exception as error:
        raise ExportError(f"the GGUF that was written cannot be read back: {error}") from error
    for key, value in expected.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        if found != value:
            raise ExportError(f"the GGUF says {key} = {_short(found)}, it must be {_short(value)}")
    tensors = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors if not ROPE.match(t.name)}
    unknown = _check_shapes(reader, tensors, stored)
    return {"tensors": len(reader.tensors), "types": _types(reader), "unmapped": unknown}


def _check_shapes(reader: Any, tensors: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]) -> int:
    """Every source tensor that has a place in this architecture is there in its shape, and no number is lost or added in all.

    Returns how many source tensors have no one-to-one place (fused or stacked ones); these are checked by the total only.
    """
    names = _name_map(reader)
    wanted = {name: t for name, t in stored.items() if not COMPUTED.search(name)}
    tied = {name for name in wanted if name.endswith("lm_head.weight")} if "output.weight" not in tensors else set()
    lost, unknown = [], 0
    for name, tensor in wanted.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias")) if names else None
        if name in tied:
            continue
        if place is None:
            unknown += 1
        elif place not in tensors:
            lost.append(name)
        elif [n for n in tensors[place] if n != 1] != [n for n in tensor.shape if n != 1]:
            raise ExportError(
                f"the GGUF holds {place} as {list(tensors[place])}, the source {name} as {list(tensor.shape)}"
            )
    if lost:
        raise ExportError(f"the GGUF lacks {len(lost)} of the source's tensors, first {lost[0]}")
    here = sum(math.prod(shape) for shape in tensors.values())
    there = sum(math.prod(t.shape) for name, t in wanted.items() if name not in tied)
    if here != there:
        raise ExportError(f"the GGUF holds {here:,} numbers, the source {there:,}")
    return unknown


def _name_map(reader: Any) -> Any:
    import gguf

    architecture = reader.get_field("general.architecture").contents()
    known = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    blocks = reader.get_field(f"{architecture}.block_count")
    return gguf.get_tensor_name_map(known[0], int(blocks.contents())) if known and blocks else None


def _types(reader: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in reader.tensors:
        found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
    return found


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "…"
