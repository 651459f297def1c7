"""Finished models and adapters onto Hugging Face or ModelScope: private unless asked otherwise, whole or not at all.

``hf:org/name`` (or ``org/name``) and ``ms:org/name``. All files of a folder arrive as one commit; what was uploaded before an
interruption is not sent again. Licences that demand a name are obeyed before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..config.errors import UserError
from ..config.progress import SILENT, Progress
from . import names
from .licences import is_licence, is_own, licence_files, text_of

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".pyc")
"""Files that may run code when they are read, by their endings."""
CARD = "README.md"
DEMANDED = re.compile(
    r"include\s+[“\"']([^”\"']{2,30})[”\"']\s+at\s+the\s+beginning\s+of\s+any\s+such\s+AI\s+model\s+name"
)
"""The sentence of Meta's licences from Llama 3 on."""
BY_LICENCE = {"llama3": "Llama 3", "llama3.1": "Llama", "llama3.2": "Llama", "llama3.3": "Llama", "llama4": "Llama"}
"""The same, by what model cards call the licence."""


@dataclass(frozen=True)
class Destination:
    """``hub``: ``hf`` or ``ms``; ``name``: org/name."""

    hub: str
    name: str

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}"


class Pusher(Protocol):
    """What the module of a hub offers."""

    def push(self, name: str, files: dict[str, Path], progress: Progress, *, public: bool, message: str) -> str:
        """Upload ``files`` (path in the repository -> file) as one commit; returns the address. Raises UserError."""

    def check_access(self) -> None:
        """Raise UserError when there is no token to write with."""


def destination(text: str) -> Destination:
    """What ``--push`` says. Raises UserError."""
    hub, colon, name = text.partition(":")
    if not colon:
        hub, name = "hf", text
    if hub not in ("hf", "ms"):
        raise UserError(f"--push {text!r} names no hub", "write org/name or hf:org/name, or ms:org/name for ModelScope")
    names.check_repo(name, hub)
    return Destination(hub, name)


def check_push(to: str, base: Path) -> Destination:
    """Whether a model made from the folder ``base`` may be pushed as ``to``, asked before long work. Raises UserError."""
    where = destination(to)
    _pusher(where).check_access()
    check_name(where, {path.name: path for path in (*licence_files(base), base / CARD)})
    return where


def check_name(where: Destination, files: Mapping[str, Path]) -> None:
    """Raise UserError when a licence among ``files`` demands a name that ``where`` does not have."""
    demanded = demanded_name(files)
    if demanded is None:
        return
    have, want = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (where.name.partition("/")[2], demanded))
    if not have.startswith(want):
        org, _, name = where.name.partition("/")
        better = f"{where.hub}:{org}/{demanded.replace(' ', '-')}-{name}"
        raise UserError(
            f"the licence of the base demands that the name of what is made from it begins with {demanded!r}; "
            f"{where.name} does not",
            f"push it as {better}",
        )


def demanded_name(files: Mapping[str, Path]) -> str | None:
    """How a name must begin by the licences among ``files`` (their text, else what the card calls them); None: as you like."""
    for name, path in files.items():
        if is_licence(name) and (found := DEMANDED.search(text_of(path))):
            return found[1].strip()
    card = files.get(CARD)
    if card is not None and card.is_file():
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        said = re.findall(r"^license(?:_name)?:\s*['\"]?([\w.-]+)", head[1], re.MULTILINE) if head else []
        return next((BY_LICENCE[one.lower()] for one in said if one.lower() in BY_LICENCE), None)
    return None


def push(
    path: Path,
    to: str,
    progress: Progress = SILENT,
    *,
    beside: Mapping[str, Path] | None = None,
    public: bool = False,
    message: str = "Uploaded with Tunesmith",
) -> str:
    """Push the folder ``path``, or one file with what is named ``beside`` it (name on the hub -> file); returns its address.

    Raises UserError: no such hub, no token, a name that the licence forbids, or a hub that refuses or stops answering.
    """
    where = destination(to)
    files = dict(beside or {}) | {path.name: path} if path.is_file() else _files(path)
    check_name(where, files)
    pusher = _pusher(where)
    pusher.check_access()
    return pusher.push(where.name, files, progress, public=public, message=message)


def _pusher(where: Destination) -> Pusher:
    from . import push_huggingface, push_modelscope

    found: Pusher = push_huggingface if where.hub == "hf" else push_modelscope
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Everything in ``folder`` but what is hidden. Raises UserError for what must not leave this machine."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} to push", "export first, then push what it made")
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    found = {name: p for name, p in found.items() if not any(part.startswith(".") for part in Path(name).parts)}
    pickled: Sequence[str] = [name for name in found if name.lower().endswith(PICKLES)]
    if pickled:
        raise UserError(
            f"{folder / pickled[0]} is of a kind that may run code when it is read",
            "remove it from the folder; only safetensors are pushed",
        )
    if strange := [p for p in found.values() if not is_own(p, folder)]:
        raise UserError(
            f"{strange[0]} is a link to {strange[0].resolve()}, which lies elsewhere",
            "put the file itself there if it is to be pushed, or remove the link",
        )
    if not found:
        raise UserError(f"{folder} holds no files", "export first, then push what it made")
    return found
