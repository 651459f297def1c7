"""Which files of a data repository are which subset and split, by the rules of the ``datasets`` library.

The library is shown a folder of empty files with the repository's names and its README.md (whose ``configs:`` say how the
files belong together); it opens no data and runs no code.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.errors import UserError

CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class Chosen:
    """The files (paths inside the repository) of one split; ``field`` is the JSON key of the rows where the README says one."""

    files: tuple[str, ...]
    subset: str
    split: str
    field: str | None = None


def choose_files(
    paths: Iterable[str],
    readme: str | None,
    where: str,
    *,
    subset: str | None = None,
    split: str | None = None,
    folder: str | None = None,
) -> Chosen:
    """The files of ``subset`` and ``split`` (the only one, or ``train``, unless named) in a repository of ``paths``.

    Raises UserError that says what there is, and for repositories that only have a loading script.
    """
    paths = sorted(paths)
    with tempfile.TemporaryDirectory(prefix="tunesmith-layout-") as name:
        root = Path(name, "set").resolve()
        root.mkdir()
        for path in paths:
            if not any(part.startswith(".") for part in path.split("/")):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                _stand_in(root / path)
        (root / "README.md").unlink(missing_ok=True)
        if readme is not None and readme.startswith("---"):
            (root / "README.md").write_text(readme, encoding="utf-8")
        if folder is not None and not (root / folder).is_dir():
            folders = sorted({path.split("/")[0] for path in paths if "/" in path})
            raise UserError(f"{where} has no folder {folder!r}", f"it has: {', '.join(folders) or 'none'}")
        try:
            return _choose(root, where, subset, split, folder, Path(name, "cache"))
        except UserError:
            raise
        except Exception as error:  # the library raises many kinds for a repository that it cannot make sense of
            raise _explained(error, paths, str(root), where) from error


def _stand_in(path: Path) -> None:
    """An empty file; in a zip file, which the library looks into to tell its kind, an empty file of rows."""
    if path.suffix.lower() != ".zip":
        path.touch()
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", "")


def _choose(root: Path, where: str, subset: str | None, split: str | None, folder: str | None, cache: Path) -> Chosen:
    from datasets import get_dataset_config_names, load_dataset_builder

    subsets = [str(name) for name in get_dataset_config_names(str(root), data_dir=folder)]
    if subset is not None and subset not in subsets and subsets != ["default"]:
        raise UserError(f"{where} has no subset {subset!r}", f"it has: {_some(subsets)}")
    if subset is not None and subsets == ["default"] and subset != "default":
        raise UserError(f"{where} has no subsets, so no {subset!r}", "leave the subset out")
    if subset is None and len(subsets) > 1 and "default" not in subsets:
        default = _default(str(root), folder)
        if default is None:
            raise UserError(f"{where} has several subsets: {_some(subsets)}", f"say which one: subset: {subsets[0]}")
        subset = default
    builder: Any = load_dataset_builder(str(root), name=subset, data_dir=folder, cache_dir=str(cache))
    files = builder.config.data_files or {}
    splits = {str(name): [os.path.relpath(str(file), root) for file in listed] for name, listed in files.items()}
    chosen = split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if "[" in chosen:
        raise UserError(f"{where}: the split {chosen!r} is a slice, which is not read", "use limit or sample instead")
    if chosen not in splits:
        raise UserError(f"{where} has no split {chosen!r}", f"it has: {_some(list(splits))}")
    paths = tuple(Path(path).as_posix() for path in splits[chosen])
    return Chosen(paths, str(builder.config.name), chosen, getattr(builder.config, "field", None))


def _default(root: str, folder: str | None) -> str | None:
    from datasets import get_dataset_default_config_name

    found: str | None = get_dataset_default_config_name(root, data_dir=folder)
    return found


def _explained(error: Exception, paths: Sequence[str], root: str, where: str) -> UserError:
    if any(path.endswith(".py") for path in paths):
        return UserError(
            f"{where} is a loading script without data files; code of a data set is not run",
            f"on Hugging Face many such sets have a converted copy: revision: {CONVERTED} (and perhaps a subset)",
        )
    shown = ", ".join(paths[:6]) + (" …" if len(paths) > 6 else "")
    detail = str(error).replace(root, where).strip().splitlines()
    return UserError(
        f"{where} holds no rows that can be read ({detail[0] if detail else type(error).__name__})",
        f"it has the files: {shown or 'none'}",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" … ({len(names)} in all)" if len(names) > 20 else "")
