"""Models from Hugging Face, through huggingface_hub and into its own cache, so that what other tools have downloaded is
found and what we download is theirs too. It reads HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_CACHE."""

from __future__ import annotations

import glob
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from ..config.errors import ReferenceNotFoundError, ServerError, UserError
from ..config.progress import Progress
from . import net
from .choose import Choice, choose
from .folder import resolve_download
from .reference import Reference
from .resolved import Resolved

NAME = "Hugging Face"
TRIES = 3
BROKEN_ON_THE_WAY = ("RemoteProtocolError", "ReadError", "ReadTimeout")  # httpx's names, and those of its successor


def endpoint() -> str:
    """The hub's address: ``$HF_ENDPOINT``, else https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def address(reference: Reference) -> str:
    """What to knock at before a download."""
    return f"{endpoint()}/api/models/{reference.name}"


def cache_folder() -> Path:
    """Where huggingface_hub keeps models: ``$HF_HUB_CACHE``, else ``$HF_HOME/hub``, else ~/.cache/huggingface/hub."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("HF_HOME"):
        return Path(folder).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def settled(reference: Reference) -> bool:
    """Whether a cached copy can never be outdated: the reference names a commit."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", reference.revision or ""))


def cached(reference: Reference, adapter: bool = False) -> Resolved | None:
    """The whole model from the cache, without any network; None when it is not there or not whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            reference.name,
            revision=reference.revision,
            cache_dir=cache_folder(),
            local_files_only=True,
            allow_patterns=["config.json"],
        )
        return _resolved(Path(folder), reference, adapter, reference.file or "")
    except (OSError, ValueError):  # not cached, or (UserError is a ValueError) not whole
        return None


def download(reference: Reference, progress: Progress, adapter: bool = False) -> Resolved:
    """The model, downloaded or updated. Finished files are kept when it is interrupted.

    Raises ReferenceNotFoundError when the hub has no such model, revision or file, or shows it only to others; ServerError
    when it stops answering; UserError when it holds no weights that can be used.
    """
    from huggingface_hub import HfApi

    name, revision = reference.name, reference.revision
    try:
        info = HfApi(endpoint=endpoint()).model_info(name, revision=revision, files_metadata=True, timeout=30)
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
        choice = choose(sizes, f"{NAME} {name}", file=reference.file, adapter=adapter)
        progress.start(f"fetching {name} from {NAME}", sum(sizes[file] for file in choice.files), "B")
        folder = _snapshot(reference, choice, progress)
    except UserError:
        raise
    except Exception as error:  # the library's transport errors come from another package in each of its generations
        raise _explained(error, reference) from error
    progress.finish(folder)
    return _resolved(Path(folder), reference, adapter, choice.gguf)


def _snapshot(reference: Reference, choice: Choice, progress: Progress) -> str:
    """The snapshot's folder; a connection that breaks on the way is taken up again, which older libraries leave to us."""
    from huggingface_hub import snapshot_download

    counting = bar(progress)
    for left in range(TRIES - 1, -1, -1):
        try:
            return snapshot_download(
                reference.name,
                revision=reference.revision,
                cache_dir=cache_folder(),
                endpoint=endpoint(),
                allow_patterns=[glob.escape(file) for file in choice.files],
                tqdm_class=counting,
                max_workers=4,
            )
        except Exception as error:
            if left == 0 or type(error).__name__ not in BROKEN_ON_THE_WAY:
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")


def _resolved(folder: Path, reference: Reference, adapter: bool, gguf: str) -> Resolved:
    source = f"{NAME} {reference.name} at commit {folder.name[:12]}"
    return resolve_download(folder, source, revision=folder.name, file=gguf, adapter=adapter)


def _explained(error: Exception, reference: Reference) -> UserError:
    from huggingface_hub import errors

    name = reference.name
    if isinstance(error, errors.GatedRepoError):
        return ReferenceNotFoundError(
            f"{NAME} shows {name} only to people who accepted its licence",
            f"accept it at {endpoint()}/{name}, then set HF_TOKEN (or run `hf auth login`)",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ReferenceNotFoundError(
            f"{NAME} has {name}, but no revision {reference.revision or 'main'!r} of it",
            "look at its branches and tags",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return ReferenceNotFoundError(
            f"{NAME} has no model {name}, or shows it only to its owners",
            "check the spelling; for a private model set HF_TOKEN (or run `hf auth login`)",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ReferenceNotFoundError(f"HF_HUB_OFFLINE forbids to ask {NAME}", "unset it to download")
    words = net.in_words(error)
    return ServerError(
        f"{NAME} ({net.plain(endpoint())}) did not deliver {name}: {words}", "start again; finished files are kept"
    )


def bar(progress: Progress) -> type[Any]:
    """A class that huggingface_hub takes for its progress bars and that tells ours the bytes.

    The library counts the same bytes on one or two bars, depending on its version: the bar that is ahead is the truth.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    lock = threading.Lock()
    told = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self.bytes = 0.0

        def update(self, n: float | None = 1) -> None:
            nonlocal told
            if not self.counts_bytes:
                return
            with lock:
                self.bytes += n or 0
                if self.bytes > told:
                    progress.advance(self.bytes - told)
                    told = self.bytes

    return Bar
