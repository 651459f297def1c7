"""What is finished of a long quantization: one file for each block, so that a killed export goes on where it was.

Knows tensors by name only. The folder belongs to one ``fingerprint`` of everything that decides the result; found with another, it is
emptied.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ExportError
from tunesmith.config.files import sync_folder, write_json
from tunesmith.export.base import WORKED_IN
from tunesmith.export.tensor_files import StoredTensor, read_header

if TYPE_CHECKING:
    import torch

STATE = "state.json"


def fingerprint(source: Path, stored: Mapping[str, StoredTensor], rows: Sequence[Sequence[int]], *settings: str) -> str:
    """SHA-256 over the model's config, every weight, the calibration rows and ``settings``."""
    whole = hashlib.sha256(json.dumps([settings, [list(row) for row in rows]]).encode())
    for path in [source / "config.json", *sorted({tensor.file for tensor in stored.values()})]:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


class BlockFiles:
    """The finished blocks in ``folder``."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        WORKED_IN.add(folder.absolute())
        try:
            known = json.loads((folder / STATE).read_text(encoding="utf-8")).get("fingerprint")
        except (OSError, ValueError, AttributeError):
            known = None
        if known != fingerprint:
            if folder.is_dir():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            write_json(folder / STATE, {"fingerprint": fingerprint})

    def path(self, block: int) -> Path:
        """Of the file of a block, there or not."""
        return self.folder / f"block-{block:05d}.safetensors"

    def finished(self) -> int:
        """How many blocks are finished, from the first on. What follows a missing or damaged file is removed."""
        count = 0
        while self._whole(self.path(count)):
            count += 1
        for path in self.folder.glob("block-*"):
            if path.name not in {self.path(i).name for i in range(count)}:
                path.unlink()
        return count

    def save(self, block: int, tensors: Mapping[str, torch.Tensor], figures: Mapping[str, Any]) -> None:
        """The ``tensors`` of a block, and ``figures`` about them: there as a whole or not at all."""
        from safetensors.torch import save_file

        path = self.path(block)
        beside = path.with_suffix(".writing")
        whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(whole, beside, {"figures": json.dumps(dict(figures))})
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(self.folder)

    def load(self, block: int) -> dict[str, torch.Tensor]:
        """What was saved of a block."""
        from safetensors.torch import load_file

        return dict(load_file(self.path(block)))

    def stored(self, block: int) -> dict[str, StoredTensor]:
        """The tensors of a block as they lie in its file."""
        return read_header(self.path(block))

    def figures(self, block: int) -> dict[str, Any]:
        """The figures that were saved with a block."""
        from safetensors import safe_open

        with safe_open(self.path(block), "pt") as file:
            return dict(json.loads(file.metadata()["figures"]))

    def remove(self) -> None:
        """Everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self, path: Path) -> bool:
        try:
            return path.is_file() and bool(read_header(path))
        except ExportError:
            return False
