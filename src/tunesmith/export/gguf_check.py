"""Is a written GGUF complete? Its tensors against the safetensors they came from, its metadata against what it must say."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.changes import same_values
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.tensor_files import StoredTensor

# Buffers that old checkpoints store and every program computes again.
COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")
# GPT-2 stores its linear layers with inputs first; others call theirs the same and do not.
TURNED = re.compile(r"(?:^|\.)h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# Tensors a GGUF carries for llama.cpp's rotary embedding, which safetensors keep as numbers in config.json.
ROPE = re.compile(r"^rope_(freqs|factors_(long|short))\.weight$")


def check_file(
    path: Path, stored: dict[str, StoredTensor], expected: dict[str, Any], *, tied: bool = False
) -> dict[str, Any]:
    """Check ``path`` against the source's tensors and ``expected`` metadata; returns figures for the report. Raises ExportError.

    ``tied``: whether the model's output layer is its embedding, by its config.
    """
    header = read_gguf(path)
    for pattern, value in expected.items():
        key = pattern.format(arch=header.metadata.get("general.architecture"))
        found = header.metadata.get(key)
        if found != value and not (
            isinstance(value, float) and isinstance(found, float) and math.isclose(found, value, rel_tol=1e-6)
        ):
            raise ExportError(f"the GGUF says {key} = {_short(found)}, it must be {_short(value)}")
    tensors = {name: t.shape for name, t in header.tensors.items() if not ROPE.match(name)}
    unknown = _check_shapes(header.metadata, tensors, stored, tied)
    types = dict(Counter(t.type for t in header.tensors.values()))
    return {"tensors": len(header.tensors), "types": types, "unmapped": unknown}


def _check_shapes(
    metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor], is_tied: bool
) -> int:
    """Every source tensor that has a place in this architecture is there in its shape, and no number is lost or added in all.

    Returns how many source tensors have no one-to-one place (fused or stacked ones); these are checked by the total only.
    """
    names, wanted = name_map(metadata), {name: t for name, t in stored.items() if not COMPUTED.search(name)}
    tied = _left_out(wanted, is_tied) if "output.weight" not in tensors else set()
    lost, unknown = [], 0
    for name, tensor in wanted.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias")) if names else None
        if name in tied:
            continue
        if place is None:
            unknown += 1
        elif place not in tensors:
            lost.append(name)  # or cut in two, as MLA's kv_b_proj is: then the total is right
        elif _plain(tensors[place]) != _plain(tensor.shape[::-1] if is_turned(name, metadata) else tensor.shape):
            raise ExportError(
                f"the GGUF holds {place} as {list(tensors[place])}, the source {name} as {list(tensor.shape)}"
            )
    here = sum(math.prod(shape) for shape in tensors.values())
    there = sum(math.prod(t.shape) for name, t in wanted.items() if name not in tied)
    if here != there and lost:
        raise ExportError(f"the GGUF lacks {len(lost)} of the source's tensors, first {lost[0]}")
    if here != there:
        raise ExportError(f"the GGUF holds {here:,} numbers, the source {there:,}")
    return unknown + len(lost)


def _left_out(wanted: dict[str, StoredTensor], is_tied: bool) -> set[str]:
    """Output layers that need no tensor of their own: llama.cpp takes the embedding, and so does the model, or they are equal."""
    heads = {name for name in wanted if name.endswith("lm_head.weight")}
    embeddings = [
        t for name, t in wanted.items() if name.endswith(("embed_tokens.weight", "embeddings.weight", "wte.weight"))
    ]
    return {name for name in heads if is_tied or any(same_values(wanted[name], one) for one in embeddings)}


def is_turned(name: str, metadata: dict[str, Any]) -> bool:
    """Whether the converter turns the source's matrix ``name`` for a file with these ``metadata``."""
    return metadata.get("general.architecture") == "gpt2" and TURNED.search(name) is not None


def _plain(shape: tuple[int, ...]) -> list[int]:
    return [n for n in shape if n != 1]


def name_map(metadata: dict[str, Any]) -> Any:
    """llama.cpp's names of tensors by those of checkpoints, for the architecture that the metadata name; None for an unknown one."""
    import gguf

    architecture = metadata.get("general.architecture")
    known = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    blocks = metadata.get(f"{architecture}.block_count")
    return gguf.get_tensor_name_map(known[0], int(blocks)) if known and blocks else None


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "…"


def check_types(path: Path, planned: Mapping[str, str]) -> None:
    """Every tensor of ``path`` has its ``planned`` type, and there is no other tensor. Raises ExportError."""
    found = {name: tensor.type for name, tensor in read_gguf(path).tensors.items()}
    wrong = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
    if wrong:
        raise ExportError(
            f"the GGUF holds {wrong[0]} as {found.get(wrong[0], 'nothing')}, planned was {planned.get(wrong[0], 'nothing')}"
            f"; {len(wrong)} tensors differ"
        )
