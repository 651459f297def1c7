"""What a GGUF will hold before any of it is made: its tensors, the type of each, and the size to the byte.

Which tensors a model becomes is the converter's knowledge (names, fused and stacked weights), so the converter is asked: it runs
without vocabulary and reads no weight (``outline``, a few seconds, remembered while the source does not change). Types are ours (``gguf_mix``).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT
from tunesmith.export.converter import convert
from tunesmith.export.gguf_job import prepare
from tunesmith.export.gguf_levels import LEVELS, Level
from tunesmith.export.gguf_mix import Facts, needs_importance, tensor_types
from tunesmith.export.load_back import load_tokenizer
from tunesmith.export.model_config import load_config, stop_tokens
from tunesmith.export.staging import stage
from tunesmith.export.tensor_files import read_model

ALIGNMENT = 32
PLAIN = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Outline:
    """``tensors``: name -> shape (rows first), in the file's order. ``fixed``: those that the converter stores in few bits or as
    integers, name -> type. ``sources``: name of a stored tensor -> names of the tensors it became; of stacked ones the last stands for all.
    """

    facts: Facts
    tensors: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]
    header: int
    """Bytes before the first tensor, about."""


@dataclass(frozen=True)
class Plan:
    """``types``: tensor -> type as ggml names it."""

    level: Level
    outline: Outline
    types: Mapping[str, str]

    @cached_property
    def bytes(self) -> int:
        """Size of the file; exact but for some of its metadata."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        total = self.outline.header
        for name, shape in self.outline.tensors.items():
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.types[name]]]
            total += -(-(math.prod(shape) // block * size) // ALIGNMENT) * ALIGNMENT
        return total

    @cached_property
    def needy(self) -> list[str]:
        """Tensors that cannot be written without an importance matrix."""
        return needs_importance(self.level, self.types)


def plan(source: Path, level: str, *, importance: bool, log: Path | None = None) -> Plan:
    """How the model folder ``source`` is stored at ``level``. Raises ExportError where the converter does not know the model.

    ``importance``: whether there is an importance matrix, by which some types are chosen.
    """
    told = outline(source, log)
    types = tensor_types(LEVELS[level], told.tensors, told.facts, importance=importance)
    return Plan(LEVELS[level], told, types | dict(told.fixed))


def outline(source: Path, log: Path | None = None) -> Outline:
    """Ask the converter what ``source`` becomes. ``log``: where its report is left when it fails (default: a temporary file)."""
    signature = tuple(
        (p.name, p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(source.iterdir())
        if p.suffix in (".json", ".safetensors")
    )
    if (source.resolve(), signature) not in _told:
        if len(_told) >= REMEMBERED:
            _told.pop(next(iter(_told)))
        _told[source.resolve(), signature] = _outline(source.resolve(), log)
    return _told[source.resolve(), signature]


REMEMBERED = 8
_told: dict[tuple[Path, tuple[Any, ...]], Outline] = {}


def _outline(source: Path, log: Path | None) -> Outline:
    if log is None:  # a name of its own, which nobody else can have laid there
        handle, name = tempfile.mkstemp(prefix="tunesmith-", suffix=".log")
        os.close(handle)
        log = Path(name)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        settings = load_config(source)
        staged = stage(source, Path(folder) / "model", settings)
        out = Path(folder) / "outline.json"
        prepared = prepare(source.name, read_model(source), settings, load_tokenizer(source), stop_tokens(source))
        job = prepared.job | {"type": "f32", "metadata": {}, "outline": True}
        convert(staged, out, job, 0, log, SILENT)
        told = json.loads(out.read_text(encoding="utf-8"))
        header = _vocabulary_bytes(source)
    tensors = {name: tuple(shape) for name, (_, shape) in told["tensors"].items()}
    fixed = {name: kind for name, (kind, _) in told["tensors"].items() if kind not in PLAIN}
    header += sum(len(name) + 24 + 8 * len(shape) for name, shape in tensors.items())
    sources = {name: tuple(new) for name, new in told["sources"].items()}
    return Outline(facts_of(told["architecture"], told["metadata"]), tensors, fixed, sources, header)


def facts_of(architecture: str, metadata: Mapping[str, Any]) -> Facts:
    """What the mix asks about a model, from a GGUF's metadata."""

    def first(key: str, default: Any) -> int:
        found = metadata.get(f"{architecture}.{key}", default)
        return int(found[0] if isinstance(found, list) else found)

    heads = first("attention.head_count", 0)
    shared = first("attention.head_count_kv", heads)
    return Facts(architecture, first("block_count", 0), first("expert_count", 0), heads // shared if shared else 0)


def _vocabulary_bytes(source: Path) -> int:
    """About what the vocabulary, its merges and the chat template take in the file."""
    size = sum((source / name).stat().st_size for name in ("chat_template.jinja",) if (source / name).is_file())
    try:
        model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        vocabulary, merges = model["vocab"], model.get("merges") or []
        tokens = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]
        size += sum(12 + len(token.encode("utf-8")) for token in tokens)
        size += sum(8 + len((m if isinstance(m, str) else " ".join(m)).encode("utf-8")) for m in merges)
    except (OSError, ValueError, KeyError, TypeError):
        size += sum(p.stat().st_size for p in source.glob("tokenizer.model"))
    return size + 2048


def check_importance(plan: Plan, covered: Any | None) -> None:
    """Raise ExportError when the plan needs an importance matrix that is not there. ``covered``: names it holds, None = there is none."""
    lacking = plan.needy if covered is None else [name for name in plan.needy if name not in covered]
    if not lacking:
        return
    level = plan.level.name
    if covered is None:
        raise ExportError(
            f"{level} needs an importance matrix: without one {len(lacking)} tensors would be garbage, first {lacking[0]}",
            hint="leave imatrix=auto and give calibration text (a run's own rows are taken), name a file with imatrix=PATH, or take q2_k",
        )
    raise ExportError(
        f"{level} needs an importance matrix for {lacking[0]} and {len(lacking) - 1} more tensors, and this one lacks them",
        hint="these weights were never used by the calibration text, or this architecture computes them otherwise; take q2_k or a finer level",
    )
