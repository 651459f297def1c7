"""What stands beside an export of one file (a GGUF): its model card and the licences of its base.

In a folder of its own they have their plain names. In a folder that holds other things a ``LICENSE`` or ``README.md`` would speak
for all of them, so there each carries the file's name in front (``small-Q8_0.LICENSE``). Nothing of others is overwritten.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunesmith.config.files import write_atomic
from tunesmith.export import record
from tunesmith.export.base import aside
from tunesmith.export.companions import front_matter
from tunesmith.export.fingerprint import sha256_of
from tunesmith.hub.licences import is_licence, licence_files

CARD = "README.md"
MODELFILE = "Modelfile"
ALSO = ("imatrix.gguf", "quality")
"""What exports put into the folder of a file besides."""


def renew(file: Path, place: Path, content: str) -> str | None:
    """Write ``content`` to ``place`` beside the export ``file``. What somebody changed there by hand is kept as NAME.old; said in words.

    What we wrote is known by its SHA-256 in the record of ``file``.
    """
    data, said = content.encode(), None
    digest = hashlib.sha256(data).hexdigest()
    if place.is_file() and sha256_of(place) not in (digest, record.beside_of(file).get(place.name)):
        said = f"{place} was changed by hand: that is kept as {aside(place)}, and it was written anew"
    write_atomic(place, data)
    record.note_beside(file, {place.name: digest})
    return said


def write_beside(file: Path, base: Path, card: str) -> list[str]:
    """The text ``card`` and the licences of the model folder ``base`` beside ``file``. Returns, in words, what was not written because
    something of others has its name, and what was kept of an older card (``renew``)."""
    prefix = _prefix(file)
    left = []
    place = file.parent / f"{prefix}{CARD}"
    if place.exists() and not _is_card(place, file):
        left.append(f"{place} is no card of {file.name} and stays as it is; no model card was written")
    elif said := renew(file, place, card):
        left.append(said)
    for licence in licence_files(base):
        place = file.parent / f"{prefix}{licence.name}"
        content = licence.read_bytes()
        if not place.exists():
            write_atomic(place, content)
        elif place.read_bytes() != content:
            left.append(f"{place} stays as it is; the base's own is {licence}")
    return left


def beside(file: Path) -> dict[str, Path]:
    """What belongs to ``file`` of what lies beside it: name on a hub -> file. Empty when no export wrote it."""
    prefix = _prefix(file)
    found = {}
    if (card := file.parent / f"{prefix}{CARD}").is_file() and _is_card(card, file):
        found[CARD] = card
        for path in sorted(file.parent.iterdir()):
            name = path.name.removeprefix(prefix)
            if path.name.startswith(prefix) and is_licence(name) and path.is_file() and not path.is_symlink():
                found[name] = path
    if (modelfile := modelfile_beside(file)).is_file() and _serves(modelfile, file):
        found[MODELFILE] = modelfile
    return found


def modelfile_beside(file: Path) -> Path:
    """Where the Modelfile of ``file`` goes: ``Modelfile``, unless that name serves another file."""
    place = file.parent / MODELFILE
    return file.with_suffix(f".{MODELFILE}") if place.exists() and not _serves(place, file) else place


def _prefix(file: Path) -> str:
    """ "" where the folder is the file's own, else the file's name and a dot."""
    if _is_card(file.parent / CARD, file):
        return ""
    return "" if all(_is_its(path, file) for path in file.parent.iterdir()) else f"{file.stem}."


def _is_its(path: Path, file: Path) -> bool:
    known = path.name.startswith((".", file.stem, f"{MODELFILE}.old")) or path.name in ALSO
    return known or (path.name == MODELFILE and _serves(path, file))


def _is_card(path: Path, file: Path) -> bool:
    """Whether ``path`` is a card that an export wrote for ``file``."""
    if not path.is_file() or "tunesmith" not in (front_matter(path).get("tags") or ()):
        return False
    return f"`{file.name}`" in path.read_text(encoding="utf-8", errors="replace")


def _serves(modelfile: Path, file: Path) -> bool:
    lines = modelfile.read_text(encoding="utf-8", errors="replace").splitlines() if modelfile.is_file() else []
    return any(line.startswith((f"FROM ./{file.name}", f"ADAPTER ./{file.name}")) for line in lines)
