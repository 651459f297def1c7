"""Data sets on Hugging Face: listed by its API, fetched through huggingface_hub into its own cache."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Sequence
from pathlib import Path

from ..config.errors import ReferenceNotFoundError, ServerError, UserError
from ..config.progress import Progress
from . import net
from .huggingface import BROKEN_ON_THE_WAY, NAME, TRIES, bar, cache_folder, endpoint
from .repository import DataReference, Repository, RepositoryFile, checked


def address(reference: DataReference) -> str:
    """What to knock at before asking."""
    return f"{endpoint()}/api/datasets/{reference.name}"


def settled(reference: DataReference) -> bool:
    """Whether what was found once can never be outdated: the reference names a commit."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", reference.revision or ""))


def ask(reference: DataReference) -> Repository:
    """What the repository holds now. Raises ReferenceNotFoundError (unknown, private, gated) and ServerError."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint()).dataset_info(
            reference.name, revision=reference.revision, files_metadata=True, timeout=30
        )
    except Exception as error:  # the library's transport errors come from another package in each of its generations
        raise _explained(error, reference) from error
    files = {}
    for file in info.siblings or []:
        sha256 = file.lfs.sha256 if file.lfs is not None else None
        files[file.rfilename] = RepositoryFile(int(file.size or 0), sha256)
    return Repository("hf", reference.name, str(info.sha), checked(files, f"{NAME} {reference.name}"))


def here(repository: Repository, paths: Sequence[str]) -> dict[str, Path] | None:
    """path -> file on this disk, when all of them are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found: dict[str, Path] = {}
    for path in paths:
        file = try_to_load_from_cache(
            repository.name, path, cache_dir=cache_folder(), revision=repository.revision, repo_type="dataset"
        )
        if not isinstance(file, str):
            return None
        found[path] = Path(file)
    return found


def fetch(repository: Repository, paths: Sequence[str], progress: Progress) -> dict[str, Path]:
    """path -> file on this disk, downloaded unless it is there. Finished files are kept when it is interrupted."""
    from huggingface_hub import snapshot_download

    counting = bar(progress)
    for left in range(TRIES - 1, -1, -1):
        try:
            folder = snapshot_download(
                repository.name,
                repo_type="dataset",
                revision=repository.revision,
                cache_dir=cache_folder(),
                endpoint=endpoint(),
                allow_patterns=[glob.escape(path) for path in paths],
                tqdm_class=counting,
                max_workers=4,
            )
            return {path: Path(folder) / path for path in paths}
        except Exception as error:
            if left == 0 or type(error).__name__ not in BROKEN_ON_THE_WAY:
                raise _explained(error, DataReference("hf", repository.name, repository.revision)) from error
            time.sleep(0.5)
    raise AssertionError("unreachable")


def remote(repository: Repository, path: str) -> tuple[str, dict[str, str]]:
    """The address of a file and the headers to ask with."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(
        repository.name, path, repo_type="dataset", revision=repository.revision, endpoint=endpoint()
    )  # fmt: skip
    return url, {key: value for key, value in build_hf_headers().items() if key.lower() == "authorization"}


def _explained(error: Exception, reference: DataReference) -> UserError:
    from huggingface_hub import errors

    name = reference.name
    if isinstance(error, UserError):
        return error
    if isinstance(error, errors.GatedRepoError):
        return ReferenceNotFoundError(
            f"{NAME} shows the data set {name} only to people who accepted its terms",
            f"accept them at {endpoint()}/datasets/{name}, then set HF_TOKEN (or run `hf auth login`)",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ReferenceNotFoundError(
            f"{NAME} has the data set {name}, but no revision {reference.revision or 'main'!r} of it",
            "look at its branches and tags",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return ReferenceNotFoundError(
            f"{NAME} has no data set {name}, or shows it only to its owners",
            "check the spelling; for a private one set HF_TOKEN (or run `hf auth login`)",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ReferenceNotFoundError(f"HF_HUB_OFFLINE forbids to ask {NAME}", "unset it to download")
    return ServerError(
        f"{NAME} ({net.plain(endpoint())}) did not deliver {name}: {net.in_words(error)}",
        "start again; finished files are kept",
    )
