"""What a repository of data holds, as a hub lists it; listings are kept, so that what was fetched is found offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ..config.errors import ServerError, UserError
from ..config.files import write_json
from ..config.home import home
from . import names

KINDS = ("hf", "ms", "hub")


@dataclass(frozen=True)
class DataReference:
    """``hub``: hf, ms, or hub for the hubs of $TUNESMITH_HUBS in their order. ``name``: org/name, on Hugging Face also a
    bare name. ``revision``: branch, tag or commit."""

    hub: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return (
            ("" if self.hub == "hub" else f"{self.hub}:") + self.name + (f"@{self.revision}" if self.revision else "")
        )


def parse_data(text: str) -> DataReference | None:
    """``hf:org/name[@revision]``, ``ms:…`` or a bare ``org/name``; None when it is of no such form. Raises UserError when it
    begins as one and is none."""
    prefix, colon, rest = text.partition(":")
    hub = prefix if colon and prefix in ("hf", "ms") else "hub"
    name, at, revision = (rest if hub != "hub" else text).partition("@")
    if hub == "hub" and (name.count("/") != 1 or not all(map(names.REPO.fullmatch, name.split("/")))):
        return None
    if not (hub == "hf" and names.REPO.fullmatch(name) and len(name) <= 96):
        try:
            names.check_repo(name, "hf" if hub == "hf" else "ms")
        except UserError:
            raise UserError(
                f"{text!r} is not a data set's name on a hub",
                "write it as the hub shows it, for example hf:HuggingFaceH4/ultrachat_200k",
            ) from None
    if at:
        names.check_revision(revision)
    return DataReference(hub, name, revision if at else None)


@dataclass(frozen=True)
class RepositoryFile:
    """``size`` in bytes; ``sha256`` where the hub tells it."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Repository:
    """``revision`` is a commit on Hugging Face, on ModelScope the branch or tag that was asked for."""

    hub: str
    name: str
    revision: str
    files: Mapping[str, RepositoryFile]

    @property
    def title(self) -> str:
        return f"{self.hub}:{self.name}@{self.revision[:12]}"


def keep(reference: DataReference, repository: Repository) -> None:
    """Remember what ``reference`` was found to be."""
    write_json(_place(reference), asdict(repository))


def kept(reference: DataReference) -> Repository | None:
    """What the reference was when the hub was last asked."""
    try:
        found = json.loads(_place(reference).read_text(encoding="utf-8"))
        files = {path: RepositoryFile(**entry) for path, entry in found.pop("files").items()}
        return Repository(**found, files=checked(files, found["name"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def checked(files: dict[str, RepositoryFile], where: str) -> dict[str, RepositoryFile]:
    """The listing, or ServerError when it names a file that would lie outside of the repository's folder."""
    for path in files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path or "\0" in path:
            raise ServerError(f"{where} lists the impossible file {path!r}", "do not use this data set")
    return files


def data_folder() -> Path:
    """Where listings and what is fetched from ModelScope lie."""
    return home() / "data"


def _place(reference: DataReference) -> Path:
    name = quote(f"{reference.name}@{reference.revision or ''}", safe="@")
    return data_folder() / "listings" / reference.hub / f"{name}.json"
