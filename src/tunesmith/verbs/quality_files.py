"""What a quality report keeps on disk: one JSON file for each export, under a key of all that decides its figures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.evaluate.tasks.quality import Figures, Measured, Speed
from tunesmith.export.tensor_files import ITEM_BYTES, read_model


def identity(folder: Path) -> list[Any]:
    """What the weights in a folder are, without reading them."""
    files = sorted(folder.glob("*.safetensors"))
    return [str(folder), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]


def weights_of(folder: Path) -> int:
    """Bytes of a model's weights in the numbers that it is served in."""
    return sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.served] for tensor in read_model(folder).values())


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def measured_from(found: Mapping[str, Any]) -> Measured:
    figures = {name: Figures(**{k: _number(v) for k, v in one.items()}) for name, one in found["figures"].items()}
    return Measured(
        found["name"],
        found["bytes"],
        figures,
        tuple(found["answers"]),
        found["changed"],
        Speed(**found["speed"]) if found["speed"] else None,
    )


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value
