"""The data files of a folder or a pattern, in a fixed order; what is left out is named, never dropped silently."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.config.errors import DataError
from tunesmith.data.part import Part, file_part, local, unzipped
from tunesmith.data.rows import JSON_KINDS, kinds

ABOUT = re.compile(
    r"(readme|license|licence|notice|changelog|citation)([._-].*)?$|.*\.(md|rst|py|lock)$", re.IGNORECASE
)
LISTS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""JSON files that say something about a data set and are no rows."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of files and folders, as the ``datasets`` library reads them."""
WILD = re.compile(r"[*?\[]")


def check_link(path: Path, root: Path) -> None:
    """Raise DataError for a link that leads out of the folder ``root`` (resolved), or nowhere."""
    if not path.is_symlink():
        return
    try:
        leads = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: a link that leads nowhere", hint="take it out of the folder") from error
    if not leads.is_relative_to(root):
        raise DataError(
            f"{path}: a link that leads out of the folder, to {leads}",
            hint="name the file it leads to beside the folder, or copy it into the folder",
        )


def folder_parts(folder: Path, split: str | None, note: Callable[[str], None]) -> list[Part]:
    """Every data file below ``folder``, sorted by path; with ``split`` those whose name or folder says so.

    Raises DataError when there is none, when they are of several kinds, when their names tell splits apart and none was
    asked for, and for links that lead out of the folder.
    """
    root = folder.resolve()
    files: list[Path] = []
    aside: list[str] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        check_link(path, root)
        if not path.is_file():
            continue
        if _about(inside):
            aside.append(str(inside))
        else:
            files.append(path)
    if saved := _saved_by_datasets(folder):
        split = split or saved
    chosen = _of_split([(path, path.relative_to(folder)) for path in files], split, folder)
    parts = _same_kind([part for path in chosen for part in unzipped(file_part(path))], str(folder), aside)
    if aside:
        note(f"{folder}: left aside: {', '.join(aside[:8])}{f' and {len(aside) - 8} more' if len(aside) > 8 else ''}")
    return parts


def root_of(pattern: str) -> Path:
    """The folder that a pattern begins in, resolved: the part before its first wildcard."""
    parts = local(pattern).parts
    wild = next((i for i, part in enumerate(parts) if WILD.search(part)), len(parts))
    return Path(*parts[:wild]).resolve()


def pattern_parts(pattern: str, note: Callable[[str], None]) -> list[Part]:
    """Every file that ``pattern`` fits (``*``, ``?``, ``[abc]``, ``**``), sorted. Raises DataError as above."""
    found = sorted(Path(name) for name in glob.glob(str(local(pattern)), recursive=True))  # noqa: PTH207
    fixed = root_of(pattern)
    for path in found:
        check_link(path, fixed)
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(
            f"data: no file fits the pattern {pattern!r} in {Path.cwd()}",
            hint="quote the pattern for the shell; ** goes into folders below",
        )
    aside = [str(path) for path in files if _about(Path(path.name))]
    kept = [path for path in files if not _about(Path(path.name))]
    parts = _same_kind([part for path in kept for part in unzipped(file_part(path))], pattern, aside)
    if aside:
        note(f"{pattern}: left aside: {', '.join(aside[:8])}")
    return parts


def _about(inside: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return hidden or inside.name in LISTS or bool(ABOUT.match(inside.name))


def _saved_by_datasets(folder: Path) -> str | None:
    """The split to take of a folder that ``DatasetDict.save_to_disk`` wrote: train, where there is one."""
    try:
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "train" if "train" in splits else None


def _split_of(inside: Path) -> str | None:
    """The split that a path tells: of the folders first, then of the file's name."""
    for part in inside.parts:
        for word in re.split(r"[^a-z]+", part.lower()):
            for split, words in SPLITS.items():
                if word in words:
                    return split
    return None


def _of_split(files: Sequence[tuple[Path, Path]], split: str | None, folder: Path) -> list[Path]:
    told = {path: _split_of(inside) for path, inside in files}
    there = sorted({name for name in told.values() if name is not None})
    if split is None:
        if len(there) > 1:
            raise DataError(
                f"{folder}: its files are several splits: {', '.join(there)}",
                hint=f"say which one: {{set: {folder}, split: {there[0]}}}; or name files, as {folder}/train*",
            )
        return [path for path, _ in files]
    exact = [path for path, inside in files if split in (*inside.parts[:-1], inside.name.split(".")[0])]
    chosen = exact or [path for path, name in told.items() if name == split or split in SPLITS.get(name or "", ())]
    if not chosen:
        raise DataError(
            f"{folder}: has no split {split!r}", hint=f"the names of its files tell: {', '.join(there) or 'no splits'}"
        )
    return chosen


def _same_kind(parts: list[Part], where: str, aside: list[str]) -> list[Part]:
    """The parts with a suffix that is read; the others are put ``aside``."""
    known = kinds()
    data = [part for part in parts if part.suffix in known]
    if not data:
        shown = ", ".join(part.name for part in parts[:5]) or "nothing but files about it" if aside else "nothing"
        raise DataError(f"{where}: there is no data file in it (found {shown})", hint=f"supported: {', '.join(known)}")
    aside += [part.name for part in parts if part.suffix not in known]
    found = {"json" if known[part.suffix] in JSON_KINDS else known[part.suffix] for part in data}
    if len(found) > 1:
        examples = ", ".join(next(p.name for p in data if known[p.suffix].startswith(kind)) for kind in sorted(found))
        raise DataError(
            f"{where}: files of several kinds lie together: {examples}",
            hint="name one kind, for example with a pattern such as folder/*.parquet",
        )
    return data
