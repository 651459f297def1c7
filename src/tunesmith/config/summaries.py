"""What the plug-ins of a package say of themselves, read from their files: nothing is imported, so that ``--help`` can tell it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path


def summaries(package: str) -> dict[str, str]:
    """Every plug-in (see ``config.plugins``) with the first paragraph of its docstring in one line, sorted by name."""
    folder = Path(str(importlib.import_module(package).__path__[0]))
    lines = {}
    for file in sorted(folder.glob("*.py")):
        if file.stem != "base" and not file.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            lines[file.stem] = " ".join(text.partition("\n\n")[0].split())
    return lines
