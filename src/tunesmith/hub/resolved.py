"""What a reference turned out to be on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["safetensors", "gguf"]


@dataclass(frozen=True)
class Resolved:
    """A complete model (or adapter) on this disk.

    ``path`` is its folder; with layout ``gguf`` the model is ``path / gguf_file``. ``source`` says in words where it came
    from, ``revision`` is the hub's commit or branch when it came from one.
    """

    path: Path
    layout: Layout
    source: str
    gguf_file: str = ""
    revision: str | None = None
    license_files: tuple[Path, ...] = ()

    @property
    def file(self) -> Path:
        """The .gguf file of a ``gguf`` layout."""
        assert self.layout == "gguf", self.layout
        return self.path / self.gguf_file
