"""Pushing to Hugging Face through huggingface_hub: large files first, one by one, then one commit with everything."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.errors import ServerError, UserError
from ..config.progress import Progress
from . import net
from .huggingface import NAME, endpoint

WEIGHTS = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")
"""A file of weights in the top folder; group 1 is what it has in common with the other shards and the index: ``model``."""


def check_access() -> None:
    """Raise UserError when there is no token to write with."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"there is no token for {NAME}", "set HF_TOKEN to one that may write, or run `hf auth login`")


def push(name: str, files: dict[str, Path], progress: Progress, *, public: bool, message: str) -> str:
    """See ``push.Pusher``. Of weights that are in ``files``, other shards and the index of an earlier push are removed in the same commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    api = HfApi(endpoint=endpoint(), library_name="tunesmith")
    additions = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    sizes = {path: file.stat().st_size for path, file in files.items()}
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        info = api.model_info(name)
        if not public and not info.private:
            progress.say(f"warning: {name} was there already and is public; what you push is, too")
        progress.start(f"pushing to {NAME} {name}", sum(sizes.values()), "B")
        for addition in sorted(additions, key=lambda one: sizes[one.path_in_repo]):
            api.preupload_lfs_files(name, [addition])  # what the hub has already is not sent again
            progress.advance(sizes[addition.path_in_repo], addition.path_in_repo)
        gone = replaced(files, {file.rfilename for file in info.siblings or []})
        if gone:
            progress.say(f"removed from {name}, since what is pushed takes their place: {', '.join(gone)}")
        api.create_commit(name, [*additions, *map(CommitOperationDelete, gone)], commit_message=message)
    except Exception as error:  # the library's transport errors come from another package in each of its generations
        raise _explained(error, name) from error
    finally:
        if shown:
            enable_progress_bars()
    place = f"{net.plain(endpoint())}/{name}"
    progress.finish(place)
    return place


def replaced(files: Iterable[str], there: Iterable[str]) -> list[str]:
    """Which files ``there`` are of the same weights as some of ``files`` and not among them: ``model-00001-of-00002.safetensors`` and
    ``model.safetensors.index.json`` when ``model.safetensors`` is pushed. An adapter's, and all in folders, are other weights."""
    new = set(files)
    stems = {found[1] for path in new if "/" not in path and (found := WEIGHTS.fullmatch(path))}
    return [
        path
        for path in sorted(set(there) - new)
        if "/" not in path and (found := WEIGHTS.fullmatch(path)) and found[1] in stems
    ]


def _explained(error: Exception, name: str) -> UserError:
    from huggingface_hub import get_token

    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    token = get_token()
    told = " ".join(str(getattr(error, "server_message", None) or "").split())
    words = net.masked(told or net.in_words(error), token)
    if status in (401, 403):
        return UserError(
            f"{NAME} does not let this token write to {name}",
            "it needs the right to write there (huggingface.co/settings/tokens); set it as HF_TOKEN",
        )
    return ServerError(
        f"{NAME} ({net.plain(endpoint())}) did not take {name}: {words}",
        "give the command again: files that have arrived are not sent again; nothing shows there before the last one",
    )
