"""The licence, notice and use-policy files of a model: which they are by name, and what they say.

A link that leads out of a model's folder is somebody else's file, whatever it is called (``LICENSE -> ~/.ssh/id_rsa``): it is neither
copied nor sent.
"""

from __future__ import annotations

import re
from pathlib import Path

NAMES = re.compile(
    r"(?:\w[\w.+-]*[-_.])?(?:LICEN[SC]ES?|NOTICES?|(?:ACCEPTABLE[-_])?USE[-_]POLICY|USAGE[-_]POLICY|COPYING)"
    r"(?:[-_][A-Z0-9+]+(?:\.\d+)*)*(?:\.(?:TXT|MD|RST|HTML|PDF))?",
    re.IGNORECASE,
)
"""``LICENSE``, ``LICENSE-APACHE-2.0.txt``, ``USE_POLICY.md``, ``Notice``; not ``license.key`` or ``noticeboard.txt``."""
TEXTS = ("", ".txt", ".md", ".rst")
MOST = 2**20
"""A licence is read up to so many characters."""
TITLES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "gemma terms of use": "gemma",
    "llama 3.1 community license": "llama3.1",
    "llama 3.2 community license": "llama3.2",
    "llama 3.3 community license": "llama3.3",
    "meta llama 3 community license": "llama3",
    "llama 4 community license": "llama4",
}
"""How a licence begins -> what model cards call it."""
BEFORE_TITLE = 12
"""``# The MIT License``: so many characters may stand before the title."""


def is_licence(name: str) -> bool:
    """Whether a file of this name (no folder) is a licence, a notice or a use policy."""
    return NAMES.fullmatch(name) is not None


def is_own(path: Path, folder: Path) -> bool:
    """Whether ``path`` is a file that lies in ``folder``; links count within it, and into the cache of Hugging Face."""
    if not path.is_file():
        return False
    real = path.resolve()
    in_cache = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return in_cache or real.is_relative_to(folder.resolve())


def may_travel(path: Path, folder: Path) -> bool:
    """Whether a file that is meant by its name may be copied from ``folder``: its own, or a link to a file of the same name elsewhere."""
    return is_own(path, folder) or (path.is_file() and path.resolve().name == path.name)


def licence_files(folder: Path) -> tuple[Path, ...]:
    """The licence, notice and use-policy files of a model folder, by name."""
    return tuple(sorted(p for p in folder.iterdir() if is_licence(p.name) and may_travel(p, folder)))


def text_of(path: Path) -> str:
    """A licence's text; "" for one that is no plain text."""
    if path.suffix.lower() not in TEXTS:
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MOST)


def told_by_text(folder: Path) -> str | None:
    """What model cards call the licence whose text lies in ``folder``; None when its title is not known here."""
    for path in licence_files(folder):
        start = " ".join(text_of(path)[:400].lower().split())
        for title, name in TITLES.items():
            if 0 <= start.find(title) <= BEFORE_TITLE:
                return name
    return None
