"""A copy of a model folder that is safe and complete for llama.cpp's converter.

The converter trusts code in model folders. So it sees a folder of links to the weights and cleaned copies of JSON files: no Python file,
no key that names one, no pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tunesmith.export.model_config import completed, without_code
from tunesmith.export.tensor_files import INDEX, read_json
from tunesmith.hub.licences import is_licence, may_travel

COPIED = (".model", ".txt", ".jinja", ".tiktoken")


def stage(source: Path, folder: Path, config: Any) -> Path:
    """Fill the new ``folder`` from ``source``; ``config`` is the source's, as transformers reads it. Returns ``folder``."""
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        target = folder / path.name
        if path.suffix == ".safetensors":
            _link(path.resolve(), target)
        elif not may_travel(path, source):
            continue
        elif path.name == INDEX or path.suffix in COPIED or path.name == "README.md" or is_licence(path.name):
            shutil.copyfile(path, target)
        elif path.suffix == ".json":
            target.write_text(json.dumps(without_code(read_json(path)), ensure_ascii=False), encoding="utf-8")
    settings = completed(read_json(source / "config.json"), config)
    (folder / "config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return folder


def _link(source: Path, target: Path) -> None:
    """A symbolic link, else a hard link (Windows without the right to link), else a copy."""
    for way in (os.symlink, os.link, shutil.copyfile):
        try:
            way(source, target)
            return
        except OSError:
            if way is shutil.copyfile:
                raise
