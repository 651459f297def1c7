"""Models from ModelScope over its public HTTP API, into ``models_folder()/modelscope``. No SDK is needed.

The API as ModelScope's own client (package modelscope-hub, Apache-2.0) uses it: ``GET /api/v1/models/{id}/repo/files``
lists ``{"Data": {"Files": [{"Path", "Type", "Size", "Sha256"}]}}``; ``GET /api/v1/models/{id}/repo`` with ``Revision``
and ``FilePath`` sends a file, in parts when ``Range`` asks. It reads MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from ..config.errors import ReferenceNotFoundError, ServerError, UserError
from ..config.home import models_folder
from ..config.progress import Progress
from . import net
from .choose import choose
from .fetch import fetch, need_space
from .folder import resolve_download
from .reference import Reference
from .resolved import Resolved
from .store import make_once

NAME = "ModelScope"


def endpoint() -> str:
    """The hub's address: ``$MODELSCOPE_ENDPOINT``, else https://modelscope.cn."""
    value = os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
    return (value if "://" in value else f"https://{value}").rstrip("/")


def address(reference: Reference) -> str:
    """What to knock at before a download."""
    return f"{_api(reference)}/repo/files"


def settled(reference: Reference) -> bool:
    """A copy of ours is taken as it is; remove its folder to fetch the model again."""
    return True


def cached(reference: Reference, adapter: bool = False) -> Resolved | None:
    """The whole model from our folder, without any network; None when it is not there or not whole any more."""
    try:
        return _resolved(_folder(reference, adapter), reference, adapter)
    except UserError:
        return None


def download(reference: Reference, progress: Progress, adapter: bool = False) -> Resolved:
    """The model, downloaded unless it is there; an interrupted download is continued, inside files too.

    Raises ReferenceNotFoundError when the hub has no such model, revision or file, or shows it only to others; ServerError
    when it stops answering or sends something else than it lists; UserError when it holds no weights that can be used.
    """

    def make(partial: Path) -> dict[str, str]:
        with net.client() as http:
            _fetch_all(http, reference, partial, progress, adapter)
        _resolved(partial, reference, adapter)  # raises when what came is no whole model
        return {"hub": endpoint(), "model": reference.name, "revision": _revision(reference)}

    def is_whole(folder: Path) -> bool:
        return cached(reference, adapter) is not None

    return _resolved(make_once(_folder(reference, adapter), make, is_whole, progress), reference, adapter)


def _revision(reference: Reference) -> str:
    return reference.revision or "master"


def _folder(reference: Reference, adapter: bool) -> Path:
    org, name = reference.name.split("/")
    part = f"+{quote(reference.file, safe='')}" if reference.file else "+adapter" if adapter else ""
    return models_folder() / "modelscope" / org / f"{name}@{quote(_revision(reference), safe='')}{part}"


def _resolved(folder: Path, reference: Reference, adapter: bool) -> Resolved:
    revision = _revision(reference)
    source = f"{NAME} {reference.name} ({revision})"
    return resolve_download(folder, source, revision=revision, file=reference.file or "", adapter=adapter)


def _api(reference: Reference) -> str:
    return f"{endpoint()}/api/v1/models/{reference.name}"


def headers() -> dict[str, str]:
    """The token, as the hub's client sends it; never over plain HTTP to another machine."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    parts = urlsplit(endpoint())
    if not token or (parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1")):
        return {}
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}


def _fetch_all(http: httpx.Client, reference: Reference, into: Path, progress: Progress, adapter: bool) -> None:
    files = _list(http, reference)
    choice = choose(files, f"{NAME} {reference.name}", file=reference.file, adapter=adapter)
    for path in choice.files:
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or ":" in path or "\0" in path:
            raise ServerError(f"{NAME} lists the impossible file {path!r} in {reference.name}", "do not use this model")
    sizes = {path: files[path].get("Size") for path in choice.files}
    total = sum(size for size in sizes.values() if isinstance(size, int))
    there = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    need_space(into, max(0, total - there))
    progress.start(f"fetching {reference.name} from {NAME}", total, "B")
    for path in sorted(choice.files, key=lambda path: sizes[path] or 0):
        size, sha256 = sizes[path], files[path].get("Sha256")
        fetch(
            http,
            f"{_api(reference)}/repo?{urlencode({'Revision': _revision(reference), 'FilePath': path})}",
            into / path,
            progress,
            size=size if isinstance(size, int) else None,
            sha256=sha256 if isinstance(sha256, str) and len(sha256) == 64 else None,
            headers=headers(),
        )
    progress.finish(str(_folder(reference, adapter)))


def _list(http: httpx.Client, reference: Reference) -> dict[str, dict[str, Any]]:
    """path -> entry of every file in the repository."""
    query = {"Revision": _revision(reference), "Recursive": "True"}
    try:
        response = http.get(f"{_api(reference)}/repo/files", params=query, headers=headers())
    except httpx.HTTPError as error:
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) stopped answering: {net.in_words(error)}", "try again"
        ) from error
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.status_code in (401, 403):
        raise ReferenceNotFoundError(
            f"{NAME} shows {reference.name} only to people with access",
            "ask for it there and set MODELSCOPE_API_TOKEN",
        )
    told = str(answer.get("Message") or "") if isinstance(answer, dict) else ""
    if response.status_code == 404 or (isinstance(answer, dict) and answer.get("Success") is False):
        raise ReferenceNotFoundError(
            f"{NAME} has no model {reference.name} with a revision {_revision(reference)!r}{f' ({told})' if told else ''}",
            "check the spelling; for a private model set MODELSCOPE_API_TOKEN",
        )
    data = answer.get("Data") if isinstance(answer, dict) else None
    files = data.get("Files") if isinstance(data, dict) else data
    if response.status_code != 200 or not isinstance(files, list):
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) answers HTTP {response.status_code} and no list of files",
            "try again later",
        )
    entries = [entry for entry in files if isinstance(entry, dict) and entry.get("Type") != "tree"]
    table = {str(entry["Path"]): entry for entry in entries if entry.get("Path")}
    if not table:
        raise UserError(f"{NAME} {reference.name} is empty", "check the name")
    return table
