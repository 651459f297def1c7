"""What happens to the tensors in the converter's process: their outline is told, or they are rounded while they are written.

Loaded by its path from ``convert_process.py``, with the converter's own ``gguf``; imports nothing of this package. The converter
plans every tensor lazily in float32, exactly as stored. ``job["outline"]``: names, shapes and the model's key figures are written as
JSON to ``out``, and nothing is read. ``job["quantize"]``: ``types`` (tensor -> type), ``library``, ``threads`` and ``importance`` (an
.npz file, tensor -> [matrices, width]); each tensor is evaluated, rounded and written when its turn comes.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np


def install(gguf: Any, model: Any, job: dict[str, Any]) -> None:
    """``gguf``: the converter's package; ``model``: its ``ModelBase``."""
    if job.get("outline"):
        model.write = lambda self: _outline(self, Path(job["out"]))
    elif job.get("quantize"):
        _quantize(gguf, **job["quantize"])


def _outline(model: Any, out: Path) -> None:
    sources: dict[str, list[str]] = {}
    modify = model.modify_tensors

    def seen(data: Any, name: str, bid: int | None) -> Any:
        found = list(modify(data, name, bid))
        sources[name] = [new for new, _ in found]
        return found

    model.modify_tensors = seen
    model.prepare_tensors()
    model.set_gguf_parameters()
    writer = model.gguf_writer
    told = {
        "architecture": writer.arch,
        "tensors": {
            name: (info.dtype.name, [int(n) for n in info.shape])
            for part in writer.tensors
            for name, info in part.items()
        },
        "sources": sources,
        "metadata": {
            key: pair.value
            for part in writer.kv_data
            for key, pair in part.items()
            if isinstance(pair.value, (bool, int, str, list))
        },
    }
    out.write_text(json.dumps(told), encoding="utf-8")


def _quantize(gguf: Any, types: dict[str, str], library: str, threads: int, importance: str | None) -> None:
    quantizer = _neighbour("ggml_quantize").Quantizer(library, threads)
    weights: Any = np.load(importance, allow_pickle=False) if importance else {}
    write_header = gguf.GGUFWriter.write_header_to_file

    def write_planned(self: Any, path: Any = None) -> None:
        for info_of in self.tensors:
            if info_of.keys() - types.keys():
                raise ValueError(f"not planned: {', '.join(sorted(info_of.keys() - types.keys())[:3])}")
            for name, info in info_of.items():
                kind = gguf.GGMLQuantizationType[types[name]]
                if kind != info.dtype:
                    info.tensor = Rounded(name, info, (kind.name, int(kind)), quantizer, weights.get(name))
                    info.dtype, info.nbytes = kind, info.tensor.nbytes
        write_header(self, path)

    gguf.GGUFWriter.write_header_to_file = write_planned


class Rounded:
    """Stands for a lazy tensor [*, rows, width] in the writer. ``importance`` [matrices, width], one for each expert, or [1, width]."""

    def __init__(self, name: str, info: Any, kind: tuple[str, int], quantizer: Any, importance: Any | None) -> None:
        self.name, self.kind, self.quantizer, self.importance = name, kind, quantizer, importance
        self.lazy, self.shape = info.tensor, tuple(int(n) for n in info.shape)
        self.nbytes = math.prod(self.shape[:-1]) * quantizer.row_bytes(kind, self.shape[-1])

    def tofile(self, file: Any) -> None:
        data = np.ascontiguousarray(_evaluated(self.lazy), np.float32)
        self.lazy = None
        matrices = data.reshape(-1, *self.shape[-2:])
        for number, rows in enumerate(matrices):
            known = None if self.importance is None else self.importance[number % len(self.importance)]
            try:
                for block in self.quantizer.blocks(rows, self.kind, known):
                    file.write(
                        memoryview(block).cast("B")
                    )  # not numpy's tofile, which does not say that a disk is full
            except ValueError as error:
                raise ValueError(f"{self.name} cannot be rounded to {self.kind[0]}: {error}") from error


def _evaluated(value: Any) -> Any:
    """What a lazy tensor stands for. Unlike its own way, nothing on the way is kept: one step's input and output at a time."""
    if isinstance(value, (list, tuple)):
        return type(value)(_evaluated(one) for one in value)
    if not hasattr(value, "_func") or not hasattr(value, "_meta"):
        return value
    if value._data is not None:
        return value._data
    return value._func(*_evaluated(value._args), **value._kwargs)


def _neighbour(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"tunesmith_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
