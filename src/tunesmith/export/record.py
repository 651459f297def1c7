"""What an export was made from, kept with it: one that is there already is taken again only when it would come out the same.

In a folder that is the file ``tunesmith-export.json``, beside a file it is ``NAME.made.json``. It holds what went in, part by part
(``verbs.made_from``), and of every file its size, time of change and SHA-256: a file that was put in the place of another, or changed, is
no export any more. A copy keeps its content and so its record. No path of this machine is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.files import write_json
from tunesmith.config.progress import Progress
from tunesmith.export.companions import CHECKSUMS
from tunesmith.export.fingerprint import sha256_of

NAME, ENDING = "tunesmith-export.json", ".made.json"
FORMAT = 1
ABOUT = "What this export was made from. Tunesmith takes the export again only when that is still what is asked for."
UNKNOWN = "nothing tells what it was made from"
WORDS = {
    "target": "it is another kind of export",
    "base": "its base is another",
    "learned": "what was learned is another",
    "template": "its chat template was another",
    "text": "its calibration text was another",
    "numbers": "what was learned was in other numbers in the merged model",
}
"""What is said of a part that differs; ``settings`` and ``programs`` are told one by one."""


def record_of(place: Path) -> Path:
    """Where the record of the export ``place`` lies."""
    return place / NAME if place.is_dir() else place.with_name(place.name + ENDING)


def keep(
    place: Path, made_from: Mapping[str, Any], checks: Mapping[str, Any], progress: Progress, *, trial: bool
) -> None:
    """Write down what the finished export ``place`` was made from. ``trial``: whether it may yet be taken away again.

    It is there at once, and once more with the SHA-256 of every file: those take a while for large ones. Folders go to hubs: of what was
    checked theirs holds figures, and no text (a question out of somebody's data).
    """
    if place.is_dir():
        checks = {name: value for name, value in checks.items() if isinstance(value, (bool, int, float))}
    record = {
        "format": FORMAT, "about": ABOUT, "made_from": dict(made_from), "trial": trial, "files": _files(place),
        "checks": json.loads(json.dumps(dict(checks), default=str)),
    }  # fmt: skip
    write_json(record_of(place), record)
    known = _sums(place)
    unknown = sum(entry["bytes"] for name, entry in record["files"].items() if name not in known)
    progress.start("checksums", unknown, "B")
    for path in _members(place):
        name = _name(place, path)
        record["files"][name]["sha256"] = known.get(name) or sha256_of(path, progress)
    progress.finish()
    write_json(record_of(place), record)


def read(place: Path) -> dict[str, Any] | None:
    """The record of ``place``; None when there is none that can be read."""
    try:
        found = json.loads(record_of(place).read_text(encoding="utf-8"))
        whole = found["format"] == FORMAT and isinstance(found["files"], dict) and isinstance(found["made_from"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def changed(place: Path, *, hidden: bool = False) -> str | None:
    """Why ``place`` is not as its record says, in words; None when every file is what it was and nothing was put there.

    ``hidden``: whether a hidden file that was added counts (a file manager's own): nothing reads it, but it may be somebody's.
    """
    record = read(place)
    if record is None:
        return UNKNOWN
    there = {_name(place, path): path for path in _members(place)}
    for name, entry in record["files"].items():
        path = there.get(name)
        if path is None:
            return f"{name} is gone"
        found = path.stat()
        same = found.st_size == entry.get("bytes")
        if same and found.st_mtime_ns != entry.get("time"):  # copied, or another file
            same = entry.get("sha256") == sha256_of(path)
        if not same:
            return f"{name} was changed after it was made"
    for name in there:
        if name not in record["files"] and (hidden or not any(part.startswith(".") for part in name.split("/"))):
            return f"{name} was added after it was made"
    return None


def difference(place: Path, made_from: Mapping[str, Any]) -> str | None:
    """Why ``place`` is not what would be made from ``made_from``, in words; None when it is."""
    record = read(place)
    if record is None:
        return UNKNOWN
    then, now = record["made_from"], json.loads(json.dumps(dict(made_from)))
    for part, words in WORDS.items():
        if then.get(part) != now.get(part):
            return words
    for part, words in (("settings", "its settings were others"), ("programs", "other versions made it")):
        before, after = then.get(part) or {}, now.get(part) or {}
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if names:
            return f"{words} ({', '.join(_step(name, before.get(name), after.get(name)) for name in names)})"
    return changed(place)


def beside_of(place: Path) -> dict[str, str]:
    """SHA-256 of what was written beside the export ``place`` (Modelfile, card), by file name."""
    found = (read(place) or {}).get("beside")
    return found if isinstance(found, dict) else {}


def note_beside(place: Path, written: Mapping[str, str]) -> None:
    """Note the SHA-256 of files written beside ``place``; without a record there is nothing to note it in."""
    record = read(place)
    if record is not None and written.items() - beside_of(place).items():
        write_json(record_of(place), record | {"beside": beside_of(place) | dict(written)})


def on_trial(place: Path) -> bool:
    """Whether ``place`` was made to be looked at, and nobody has decided to keep it yet."""
    return bool((read(place) or {}).get("trial"))


def settle(place: Path) -> None:
    """``place`` is kept."""
    record = read(place)
    if record is not None and record["trial"]:
        write_json(record_of(place), record | {"trial": False})


def _step(name: str, before: Any, after: Any) -> str:
    short = [str(value) for value in (before, after) if not isinstance(value, (dict, list))]
    return f"{name} {short[0]}, now {short[1]}" if len(short) == 2 else name


def _members(place: Path) -> Iterator[Path]:
    """The files of an export, but for its record and the list of checksums."""
    if place.is_file():
        yield place
        return
    for path in sorted(place.rglob("*")):
        if path.is_file() and path not in (place / NAME, place / CHECKSUMS):
            yield path


def _name(place: Path, path: Path) -> str:
    return path.name if place.is_file() else path.relative_to(place).as_posix()


def _files(place: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in _members(place):
        stat = path.stat()
        found[_name(place, path)] = {"bytes": stat.st_size, "time": stat.st_mtime_ns}
    return found


def _sums(place: Path) -> dict[str, str]:
    """What the folder's own list of checksums says: it was written with the files."""
    try:
        lines = (place / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
