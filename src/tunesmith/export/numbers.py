"""The number types that weights are written in.

A base stored in bf16 has weights that lie on bf16's grid, and what few steps or a small learning rate change is often less than half of
its mesh: rounded back to bf16, such changes vanish altogether (SmolLM2-135M after 6 steps of LoRA: 59 % of the way that training moved it). So a
merged model that only serves to make something else of it holds what was learned in float32; its files say what it is to be served in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from tunesmith.export.tensor_files import FLOATS, read_model

__all__ = ["FINENESS", "FLOATS", "WRITTEN", "Numbers", "finer", "is_exact", "learned_in"]
FINENESS = ("BF16", "F16", "F32", "F64")
"""From coarse to fine."""
WRITTEN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def finer(one: str, other: str) -> str:
    """The finer of two float types."""
    return max(one, other, key=FINENESS.index)


@dataclass(frozen=True)
class Numbers:
    """``every``: the type of every float weight (``F32`` …); None: what the base stores it as. ``learned``: the type up to which weights
    that were learned are written finer than that; the files then tell what they are to be served as."""

    every: str | None = None
    learned: str | None = None

    def of(self, stored: str, new: str | None = None) -> str:
        """The type of a weight that the base has as ``stored``; ``new``: that of what was learned in its place, or is added to it."""
        if stored not in FLOATS or (new is not None and new not in FLOATS):
            return new or stored
        if self.every is not None:
            return self.every
        if self.learned is None or new is None:
            return stored
        return finer(stored, min(new, self.learned, key=FINENESS.index))

    def serves(self, stored: str) -> str | None:
        """What the weight is to be served as, where that is not what it is written as."""
        return None if self.every is not None or self.learned is None or stored not in FLOATS else stored


def learned_in(folder: Path) -> str | None:
    """The type that a merged model holds learned weights in, where that is finer than what they are to be served in. Raises ExportError."""
    found = [tensor.dtype for tensor in read_model(folder).values() if tensor.serves is not None]
    return reduce(finer, found) if found else None


def is_exact(folder: Path) -> bool:
    """Whether a merged model holds what was learned in float32 at least: so it says, or all that it holds is so. Raises ExportError."""
    stored = read_model(folder).values()
    learned = [t for t in stored if t.serves is not None] or [t for t in stored if t.dtype in FLOATS]
    return all(t.dtype in ("F32", "F64") for t in learned)
