"""From the name of a data set on a hub to its files, on this disk or to be read over the net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..config.errors import ReferenceNotFoundError, UserError
from ..config.progress import SILENT, Progress
from . import huggingface, huggingface_data, modelscope, modelscope_data, net
from .reference import hub_order
from .repository import DataReference, Repository, keep, kept

WHAT_TO_DO = (
    "check the network and its proxy (HTTPS_PROXY), use a mirror (HF_ENDPOINT, MODELSCOPE_ENDPOINT), or fetch the files "
    "where there is a network and name their folder"
)


class DataHub(Protocol):
    """What the module of a hub offers."""

    def address(self, reference: DataReference) -> str: ...
    def settled(self, reference: DataReference) -> bool: ...
    def ask(self, reference: DataReference) -> Repository: ...
    def here(self, repository: Repository, paths: Sequence[str]) -> dict[str, Path] | None: ...
    def fetch(self, repository: Repository, paths: Sequence[str], progress: Progress) -> dict[str, Path]: ...
    def remote(self, repository: Repository, path: str) -> tuple[str, dict[str, str]]: ...


HUBS: dict[str, DataHub] = {"hf": huggingface_data, "ms": modelscope_data}
NAMES = {"hf": (huggingface.NAME, huggingface.endpoint), "ms": (modelscope.NAME, modelscope.endpoint)}


def find_repository(
    references: Sequence[DataReference], progress: Progress = SILENT, *, offline: bool | None = None
) -> Repository:
    """The first of ``references`` (the same data set on several hubs) that can be had; of kind ``hub``: on each hub of
    $TUNESMITH_HUBS. Without a network, what it was when it was last asked for.

    Raises ReferenceNotFoundError that lists every place tried and why it failed.
    """
    tried = [one for reference in references for one in _each(reference)]
    if not tried:
        raise UserError("TUNESMITH_HUBS is empty, so data sets are looked for nowhere", "write hf:… or ms:… in front")
    known = {one: kept(one) for one in tried}
    for one in tried:
        found = known[one]
        if found is not None and (net.offline_asked(offline) or HUBS[one.hub].settled(one)):
            return found
    if net.offline_asked(offline):
        raise ReferenceNotFoundError(
            f"the data set {tried[0]} is not on this disk, and the network is switched off",
            "unset TUNESMITH_OFFLINE / HF_HUB_OFFLINE and fetch it once, or name a file",
        )
    failures: list[UserError] = []
    for one, silence in zip(tried, net.why_silent_each([HUBS[one.hub].address(one) for one in tried]), strict=True):
        try:
            if silence is not None:
                name, endpoint = NAMES[one.hub]
                raise ReferenceNotFoundError(
                    f"{name} ({net.plain(endpoint())}) cannot be reached: {silence}", WHAT_TO_DO
                )
            repository = HUBS[one.hub].ask(one)
            keep(one, repository)
            return repository
        except UserError as error:
            if (before := known[one]) is not None and silence is not None:
                progress.say(f"{error.message}; what was fetched earlier is used: {before.title}")
                return before
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    places = "\n".join(f"  - {error.message}" for error in failures)
    hints = "; ".join(dict.fromkeys(error.hint for error in failures if error.hint))
    raise ReferenceNotFoundError(
        f"the data set {tried[0].name} could not be had from any of {len(failures)} places:\n{places}", hints
    )


def _each(reference: DataReference) -> list[DataReference]:
    if reference.hub != "hub":
        return [reference]
    return [DataReference(hub, reference.name, reference.revision) for hub in hub_order()]


def local_files(
    repository: Repository, paths: Sequence[str], progress: Progress = SILENT, *, offline: bool | None = None
) -> dict[str, Path]:
    """path -> file on this disk, fetched unless it is there. Raises ReferenceNotFoundError offline, ServerError."""
    hub = HUBS[repository.hub]
    there = hub.here(repository, paths)
    if there is not None:
        return there
    if net.offline_asked(offline):
        raise ReferenceNotFoundError(
            f"{repository.title} is not on this disk as a whole, and the network is switched off",
            "unset TUNESMITH_OFFLINE / HF_HUB_OFFLINE and fetch it once, or name a file",
        )
    progress.start(f"fetching {repository.title}", sum(repository.files[path].size for path in paths), "B")
    found = hub.fetch(repository, paths, progress)
    progress.finish()
    return found


def remote_file(repository: Repository, path: str) -> tuple[str, int, dict[str, str]]:
    """Address, size in bytes and headers of a file that is read over the net."""
    url, headers = HUBS[repository.hub].remote(repository, path)
    return url, repository.files[path].size, headers
