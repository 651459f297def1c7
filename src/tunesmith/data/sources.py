"""Where a data set's bytes are: from a name to its files, on this disk or on a hub. Nothing is known here about rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config.errors import DataError, UserError
from tunesmith.config.plugins import suggestion
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.config import SetConfig
from tunesmith.data.folders import WILD, check_link, folder_parts, pattern_parts
from tunesmith.data.part import Part, file_part, is_there, local, unzipped
from tunesmith.data.registry import Entry, lookup, registered
from tunesmith.data.rows import kinds
from tunesmith.hub.data_sets import find_repository, local_files, remote_file
from tunesmith.hub.layout import choose_files
from tunesmith.hub.remote_file import open_remote
from tunesmith.hub.repository import DataReference, Repository, parse_data

Note = Callable[[str], None]
HUB_ONLY = ("subset", "revision", "folder", "streaming")
README_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """The files of a set. ``place`` is where, for messages; ``field`` the JSON key of the rows that a hub's README names."""

    place: str
    parts: tuple[Part, ...]
    field: str | None = None
    remote: bool = False


def locate(choice: SetConfig, entry: Entry | None, note: Note, progress: Progress = SILENT) -> Source:
    """The files of ``choice``, whose registered entry, if any, is ``entry``; a hub's files are fetched unless streamed.

    Raises DataError, ReferenceNotFoundError or ServerError with what was looked for where.
    """
    if entry is not None and entry.repositories:
        return _from_hub(list(entry.repositories), choice, note, progress)
    kind, reference = _form(choice.set) if entry is None else ("path", None)
    if reference is not None:
        return _from_hub([reference], choice, note, progress)
    named = [key for key in HUB_ONLY if getattr(choice, key)]
    path = entry.path if entry is not None and entry.path is not None else local(choice.set)
    if named and not (path.is_dir() and set(named) <= {"subset", "folder"}):
        raise DataError(
            f"{choice.set}: {', '.join(named)} is for data sets on a hub, and this is a file or folder here",
            hint="take it out, or write hf:org/name for a data set on a hub",
        )
    if kind == "pattern":
        return Source(choice.set, tuple(pattern_parts(choice.set, note)))
    if path.is_dir():
        return _from_folder(path, choice, note)
    if choice.split is not None and choice.split != "train":
        raise DataError(
            f"{path}: split {choice.split!r} is asked for, but a single file has no splits",
            hint="name the file of that split",
        )
    return Source(str(path), tuple(unzipped(file_part(path))))


def pinned(choice: SetConfig, registry: str | None) -> SetConfig:
    """The same choice with the path of a file, folder or pattern made absolute, so that it is found from anywhere."""
    if lookup(choice.set, registry) is not None or _form(choice.set)[1] is not None:
        return choice
    return choice.model_copy(update={"set": str(local(choice.set).absolute())})


def unknown(name: str, registry: str | None) -> DataError:
    """The message for a name that is nothing."""
    if _looks_like_path(name):
        return DataError(
            f"data: there is no file or folder {name!r} in {Path.cwd()}",
            hint="check the path; it is taken from the current folder",
        )
    known, books = registered(registry)
    looked = ", ".join(map(str, books)) or "no dataset_info.json"
    return DataError(f"no data set or file {name!r} (looked in {looked})", hint=suggestion(name, known))


def exists(name: str) -> bool:
    """Whether an unregistered name is something: a path that is there, a pattern, or a name on a hub."""
    return _form(name)[0] != "nothing"


def _form(name: str) -> tuple[str, DataReference | None]:
    """path, pattern, hub or nothing; and the reference of a hub's name."""
    if name.startswith(("hf:", "ms:")):
        try:
            return "hub", parse_data(name)
        except UserError as error:
            raise DataError(error.message, hint=error.hint) from error
    if is_there(local(name)):
        return "path", None
    if WILD.search(name):
        return "pattern", None
    if not _looks_like_path(name) and (reference := parse_data(name)) is not None:
        return "hub", reference
    return "nothing", None


def _looks_like_path(name: str) -> bool:
    path = Path(name)
    suffixes = {suffix.lower() for suffix in path.suffixes}
    explicit = name.startswith((".", "/", "~", "\\")) or path.is_absolute() or path.parent.parent != Path()
    explicit = explicit or (bool(suffixes) and path.parent == Path())
    return explicit or bool(suffixes & (kinds().keys() | {".gz", ".bz2", ".xz", ".zst", ".zip"})) or name.endswith("/")


def _from_folder(folder: Path, choice: SetConfig, note: Note) -> Source:
    """A folder of files; one with a README.md that says ``configs:`` is read as the hub would."""
    readme = folder / "README.md"
    text = _readme(readme) if readme.is_file() else None
    if choice.subset is None and choice.folder is None and not (text and "\nconfigs:" in text):
        return Source(str(folder), tuple(folder_parts(folder, choice.split, note)))
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen = choose_files(
        files, text, str(folder), subset=choice.subset, split=choice.split, folder=choice.folder
    )  # fmt: skip
    note(f"{folder}: subset {chosen.subset}, split {chosen.split}: {len(chosen.files)} files")
    for path in chosen.files:
        check_link(folder / path, folder.resolve())
    parts = [part for path in chosen.files for part in unzipped(file_part(folder / path))]
    return Source(str(folder), tuple(parts), chosen.field)


def _from_hub(references: list[DataReference], choice: SetConfig, note: Note, progress: Progress) -> Source:
    if choice.revision is not None:
        for reference in references:
            if reference.revision not in (None, choice.revision):
                raise DataError(
                    f"{choice.set}: names the revision {reference.revision!r}, and revision says {choice.revision!r}",
                    hint="keep one of them",
                )
        references = [DataReference(r.hub, r.name, choice.revision) for r in references]
    repository = find_repository(references, progress)
    readme = None
    if "README.md" in repository.files and repository.files["README.md"].size <= README_BYTES:
        readme = _readme(local_files(repository, ["README.md"])["README.md"])
    chosen = choose_files(
        repository.files, readme, repository.title, subset=choice.subset, split=choice.split, folder=choice.folder
    )
    subset = f"subset {chosen.subset}, " if chosen.subset != "default" else ""
    note(f"{repository.title}: {subset}split {chosen.split}, {len(chosen.files)} files")
    if choice.streaming:
        remote = [_remote_part(repository, path) for path in chosen.files]
        opened = [p for part in remote for p in (unzipped(part) if part.name.endswith(".zip") else [part])]
        return Source(repository.title, tuple(opened), chosen.field, remote=True)
    files = local_files(repository, chosen.files, progress)
    local = [
        Part(name=part.name, open=part.open, size=part.size, digest=_digest(repository, path), packed=part.packed)
        for path in chosen.files
        for part in unzipped(file_part(files[path], f"{repository.title}/{path}"))
    ]
    return Source(repository.title, tuple(local), chosen.field)


def _remote_part(repository: Repository, path: str) -> Part:
    url, size, headers = remote_file(repository, path)
    return Part(
        f"{repository.title}/{path}", lambda: open_remote(url, size, headers), size, _digest(repository, path)
    )  # fmt: skip


def _digest(repository: Repository, path: str) -> Callable[[], str]:
    """A hub's file is told by its SHA-256, or by commit and path."""
    file = repository.files[path]
    return lambda: file.sha256 or f"{repository.hub}:{repository.name}@{repository.revision}/{path}:{file.size}"


def _readme(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
