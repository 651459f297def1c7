"""Pushing to ModelScope over its public HTTP API; no SDK is needed.

As ModelScope's own client (package modelscope-hub, Apache-2.0) does it: ``POST /api/v1/models`` makes a repository, ``POST
/api/v1/repos/models/{id}/info/lfs/objects/batch`` says where large files go (git-LFS), ``PUT`` sends one there, ``POST
/api/v1/repos/models/{id}/commit/{revision}`` makes a commit of large files by hash and small ones in base64.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from ..config.errors import ServerError, UserError
from ..config.progress import Progress
from . import net
from .modelscope import NAME, endpoint, headers

PRIVATE, PUBLIC = 1, 5
REVISION = "master"
INLINE = ("README.md", ".gitattributes", "configuration.json", "config.json")
"""Files that the hub reads itself: always in the commit."""
LARGE = 64 * 1024
SUFFIXES = (".safetensors", ".gguf", ".model")
PIECE = 1 << 20
AGAIN = "give the command again: files that have arrived are not sent again; nothing shows there before the last one"


def check_access() -> None:
    """Raise UserError when there is no token to write with."""
    if not headers():
        raise UserError(f"there is no token for {NAME}", "set MODELSCOPE_API_TOKEN (modelscope.cn, Access Tokens)")


def push(name: str, files: dict[str, Path], progress: Progress, *, public: bool, message: str) -> str:
    """See ``push.Pusher``."""
    place = f"{net.plain(endpoint())}/models/{name}"
    with httpx.Client(timeout=net.TIMEOUT, headers={"User-Agent": "tunesmith", **headers()}) as http:
        _make(http, name, public, progress)
        progress.start(f"pushing to {NAME} {name}", sum(file.stat().st_size for file in files.values()), "B")
        actions = []
        for path, file in sorted(files.items(), key=lambda item: item[1].stat().st_size):
            actions.append(_file(http, name, path, file, progress))
        _ask(http, "POST", f"repos/models/{name}/commit/{REVISION}", {"commit_message": message, "actions": actions})
    progress.finish(place)
    return place


def _make(http: httpx.Client, name: str, public: bool, progress: Progress) -> None:
    found = _send(http, "GET", f"models/{name}", None)
    if found.status_code == 200 and found.json().get("Success", True):
        if not public and (found.json().get("Data") or {}).get("Visibility") == PUBLIC:
            progress.say(f"warning: {name} was there already and is public; what you push is, too")
        return
    org, _, short = name.partition("/")
    body = {"Path": org, "Name": short, "Visibility": PUBLIC if public else PRIVATE, "License": "other"}
    _ask(http, "POST", "models", body)


def _file(http: httpx.Client, name: str, path: str, file: Path, progress: Progress) -> dict[str, Any]:
    """The commit's action for one file, which is sent first when it is large."""
    size = file.stat().st_size
    if path in INLINE or (size <= LARGE and not path.endswith(SUFFIXES)):
        progress.advance(size, path)
        content = base64.b64encode(file.read_bytes()).decode("ascii")
        return {"action": "create", "path": path, "type": "normal", "size": size, "sha256": "", "content": content, "encoding": "base64"}  # fmt: skip
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    answer = _ask(
        http, "POST", f"repos/models/{name}/info/lfs/objects/batch",
        {"operation": "upload", "objects": [{"oid": digest, "size": size}]},
    )  # fmt: skip
    entry: dict[str, Any] = next((one for one in answer.get("objects") or [] if one.get("oid") == digest), {})
    upload = (entry.get("actions") or {}).get("upload") or {}
    if href := upload.get("href"):
        _put(http, str(href), file, size, progress, path)
    else:
        progress.advance(size, path)  # the hub has it already
    return {"action": "create", "path": path, "type": "lfs", "size": size, "sha256": digest, "content": "", "encoding": ""}  # fmt: skip


def _put(http: httpx.Client, href: str, file: Path, size: int, progress: Progress, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        with file.open("rb") as stream:
            while piece := stream.read(PIECE):
                yield piece
                progress.advance(len(piece), path)

    same = httpx.URL(href).host == httpx.URL(endpoint()).host
    sent = {"Content-Length": str(size), **(headers() if same else {"Authorization": "", "Cookie": ""})}
    try:
        answer = http.put(
            href, content=pieces(), headers=sent, timeout=httpx.Timeout(None, connect=net.CONNECT_SECONDS)
        )
    except httpx.HTTPError as error:
        raise ServerError(f"{NAME} did not take {path}: {net.in_words(error)}", AGAIN) from error
    if answer.status_code >= 300:
        raise ServerError(f"{NAME} did not take {path}: HTTP {answer.status_code}", AGAIN)


def _ask(http: httpx.Client, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The ``Data`` of the answer. Raises UserError when the hub refuses, ServerError when it does not answer well."""
    answer = _send(http, method, path, body)
    try:
        content = answer.json()
    except ValueError:
        content = {}
    told = str(content.get("Message") or "") if isinstance(content, dict) else ""
    told = net.masked(told, os.environ.get("MODELSCOPE_API_TOKEN"))
    if answer.status_code in (401, 403):
        raise UserError(
            f"{NAME} does not let this token do that{f' ({told})' if told else ''}",
            "set MODELSCOPE_API_TOKEN to one that may write there",
        )
    if answer.status_code != 200 or not isinstance(content, dict) or content.get("Success") is False:
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) answers HTTP {answer.status_code}{f': {told}' if told else ''}", AGAIN
        )
    data = content.get("Data", content)
    return data if isinstance(data, dict) else {}


def _send(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
    try:
        return http.request(method, f"{endpoint()}/api/v1/{path}", json=body)
    except httpx.HTTPError as error:
        raise ServerError(
            f"{NAME} ({net.plain(endpoint())}) cannot be reached: {net.in_words(error)}", AGAIN
        ) from error
