"""From a reference to a folder of safetensors on this machine: the hub finds it, a GGUF is dequantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.config.progress import SILENT, Progress
from tunesmith.hub.resolve import resolve_model


@dataclass(frozen=True)
class LocalModel:
    """``folder`` holds config, tokenizer and safetensors. ``name``: what others can find it by (hub id, else the folder)."""

    folder: Path
    source: str
    name: str


def localize(reference: str, progress: Progress = SILENT) -> LocalModel:
    """Resolve ``reference`` (downloading if need be) and make it openable. Raises ReferenceNotFoundError, UserError."""
    found = resolve_model(reference, progress)
    if found.layout == "gguf":
        from tunesmith.models.gguf_import import safetensors_of

        folder = safetensors_of(found.path / found.gguf_file, progress, tuple(found.license_files))
        return LocalModel(folder, found.source, str(folder))
    return LocalModel(found.path, found.source, str(found.path))
