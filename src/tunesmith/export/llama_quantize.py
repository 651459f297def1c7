"""The two who round a GGUF: ggml in the converter's process (what it is told), and the system's ``llama-quantize`` (how it is run)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export.gguf_plan import Plan
from tunesmith.export.imatrix import Matrix
from tunesmith.models.devices import usable_cores

PROGRAM = "llama-quantize"


def rounding_job(how: Plan, matrix: Matrix | None, folder: Path) -> dict[str, Any]:
    """Keys of the converter's job that make it write ``how``; ``folder``: where the importances lie until it is done."""
    from tunesmith.chat.llama_library import library

    place = None
    if matrix is not None:
        place = folder / "importance.npz"
        np.savez(place, **matrix.means(how.outline.tensors))
    return {
        "level": how.level.name,
        "quantize": {
            "types": dict(how.types),
            "library": str(library()._name),
            "threads": usable_cores(),
            "importance": None if place is None else str(place.absolute()),
        },
        "added": keys(how, matrix),
    }


def keys(how: Plan, matrix: Matrix | None) -> dict[str, Any]:
    """The metadata by which llama.cpp's own quantizer says what it made."""
    found: dict[str, Any] = {"general.file_type": how.level.file_type, "general.quantization_version": 2}
    if matrix is not None:
        found["quantize.imatrix.file"] = matrix.file.name
        if matrix.datasets:
            found["quantize.imatrix.dataset"] = matrix.datasets[0]
        found["quantize.imatrix.entries_count"] = len(matrix.entries)
        found["quantize.imatrix.chunks_count"] = matrix.chunks
    return found


def quantized_by_llama_cpp(
    f16: Path, out: Path, how: Plan, matrix: Matrix | None, progress: Progress
) -> dict[str, Any]:
    """Have the system's llama-quantize make ``out`` from ``f16``. Returns metadata to be found in it. Raises ExportError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise ExportError(
            f"there is no {PROGRAM} on this system",
            hint="install llama.cpp, or take quantizer=ggml, which needs nothing",
        )
    command = [
        program,
        *(["--imatrix", str(matrix.file)] if matrix else []),
        str(f16),
        str(out),
        how.level.name.upper(),
        str(usable_cores()),
    ]
    progress.start(f"{PROGRAM} to {how.level.name}")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0 or not out.exists():
        progress.finish("failed")
        lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        raise ExportError(
            f"{PROGRAM} failed (exit code {done.returncode}): {(lines or ['no message'])[-1]}",
            hint=f"the program: {program}",
        )
    progress.finish()
    return {"general.file_type": how.level.file_type}
