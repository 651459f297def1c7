"""Data sets on ModelScope over its public HTTP API, into ``data_folder()/modelscope``. No SDK is needed.

As ModelScope's own client (package modelscope-hub, Apache-2.0) asks: ``GET /api/v1/datasets/{id}/repo/tree`` with
``Revision``, ``Recursive``, ``PageNumber`` and ``PageSize`` lists ``{"Data": {"Files": [{"Path", "Type", "Size", "Sha256"}]}}``;
``GET /api/v1/datasets/{id}/repo`` with ``Revision`` and ``FilePath`` sends a file, in parts when ``Range`` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from filelock import FileLock

from ..config.errors import ReferenceNotFoundError, ServerError
from ..config.files import write_json
from ..config.progress import Progress
from . import net
from .fetch import fetch as fetch_file
from .fetch import need_space
from .modelscope import NAME, endpoint, headers
from .repository import DataReference, Repository, RepositoryFile, checked, data_folder

PAGE = 200
MOST_PAGES = 5_000


def address(reference: DataReference) -> str:
    """What to knock at before asking."""
    return f"{_api(reference.name)}/repo/tree"


def settled(reference: DataReference) -> bool:
    """ModelScope's revisions are branches and tags, which may move."""
    return False


def ask(reference: DataReference) -> Repository:
    """What the repository holds now. Raises ReferenceNotFoundError (unknown, private) and ServerError."""
    revision = reference.revision or "master"
    files: dict[str, RepositoryFile] = {}
    with net.client() as http:
        for page in range(1, MOST_PAGES + 1):
            entries = _page(http, reference.name, revision, page)
            for entry in entries:
                if isinstance(entry, dict) and entry.get("Path") and entry.get("Type") != "tree":
                    sha256 = entry.get("Sha256")
                    whole = isinstance(sha256, str) and len(sha256) == 64
                    files[str(entry["Path"])] = RepositoryFile(int(entry.get("Size") or 0), sha256 if whole else None)
            if len(entries) < PAGE:
                break
    return Repository("ms", reference.name, revision, checked(files, f"{NAME} {reference.name}"))


def here(repository: Repository, paths: Sequence[str]) -> dict[str, Path] | None:
    """path -> file on this disk, when all of them were fetched and are those of the listing."""
    folder = _folder(repository)
    found = {path: folder / path for path in paths}
    whole = all(
        file.is_file()
        and file.stat().st_size == repository.files[path].size
        and _mark(folder, path).is_file()
        and _mark(folder, path).read_text(encoding="utf-8").strip().strip('"') == _told(repository, path)
        for path, file in found.items()
    )
    return found if whole else None


def fetch(repository: Repository, paths: Sequence[str], progress: Progress) -> dict[str, Path]:
    """path -> file on this disk; an interrupted download is continued, inside files too; what changed is fetched anew."""
    folder = _folder(repository)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")), net.client() as http:
        missing = [path for path in paths if here(repository, [path]) is None]
        need_space(folder, sum(repository.files[path].size for path in missing))
        for path in missing:
            file = repository.files[path]
            (folder / path).unlink(missing_ok=True)
            url, asked = remote(repository, path)
            fetch_file(http, url, folder / path, progress, size=file.size, sha256=file.sha256, headers=asked)
            write_json(_mark(folder, path), _told(repository, path))
    return {path: folder / path for path in paths}


def remote(repository: Repository, path: str) -> tuple[str, dict[str, str]]:
    """The address of a file and the headers to ask with."""
    query = urlencode({"Revision": repository.revision, "FilePath": path})
    return f"{_api(repository.name)}/repo?{query}", headers()


def _api(name: str) -> str:
    return f"{endpoint()}/api/v1/datasets/{name}"


def _folder(repository: Repository) -> Path:
    return data_folder() / "modelscope" / f"{repository.name}@{quote(repository.revision, safe='')}"


def _mark(folder: Path, path: str) -> Path:
    """A note beside the files on what was fetched: a branch may move without a file changing its size."""
    return folder / ".fetched" / f"{quote(path, safe='')}.json"


def _told(repository: Repository, path: str) -> str:
    file = repository.files[path]
    return file.sha256 or str(file.size)


def _page(http: httpx.Client, name: str, revision: str, page: int) -> list[Any]:
    query = {"Revision": revision, "Recursive": "True", "PageNumber": str(page), "PageSize": str(PAGE)}
    try:
        response = http.get(f"{_api(name)}/repo/tree", params=query, headers=headers())
    except httpx.HTTPError as error:
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) stopped answering: {net.in_words(error)}", "try again"
        ) from error
    if response.status_code in (401, 403):
        raise ReferenceNotFoundError(
            f"{NAME} shows the data set {name} only to people with access",
            "ask for it there and set MODELSCOPE_API_TOKEN",
        )
    try:
        answer = response.json()
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if response.status_code == 404 or answer.get("Success") is False:
        told = str(answer.get("Message") or "")
        raise ReferenceNotFoundError(
            f"{NAME} has no data set {name} with a revision {revision!r}{f' ({told})' if told else ''}",
            "check the spelling; for a private one set MODELSCOPE_API_TOKEN",
        )
    data = answer.get("Data")
    files = data.get("Files") if isinstance(data, dict) else data
    if response.status_code != 200 or not isinstance(files, list):
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) answers HTTP {response.status_code} and no list of files",
            "try again later",
        )
    return files
