"""From a reference to a whole model on this disk, downloading what is not there yet.

Runs, Ollama's models and servers are not known here: who can resolve them asks before coming here.
"""

from __future__ import annotations

from typing import Protocol

from ..config.errors import ReferenceNotFoundError, UserError
from ..config.progress import SILENT, Progress
from . import demo, huggingface, modelscope, net
from .folder import resolve_adapter_folder, resolve_folder
from .reference import Reference, hub_order, parse
from .resolved import Resolved


class Hub(Protocol):
    """What the module of a hub offers."""

    NAME: str

    def endpoint(self) -> str:
        """Its address."""

    def address(self, reference: Reference) -> str:
        """What to knock at before a download."""

    def settled(self, reference: Reference) -> bool:
        """Whether a copy on this disk is taken without asking the hub."""

    def cached(self, reference: Reference, adapter: bool = False) -> Resolved | None:
        """The whole copy on this disk, or None."""

    def download(self, reference: Reference, progress: Progress, adapter: bool = False) -> Resolved:
        """The model, downloaded or updated; raises UserError."""


MODULES: dict[str, Hub] = {"hf": huggingface, "ms": modelscope}
ELSEWHERE = {
    "run": "names a run, which is found among the run folders and not on a hub",
    "ollama": "names a model inside Ollama, which keeps its own files",
    "url": "names a model behind a server; it has no files here",
}
WHAT_TO_DO = (
    "check the network and its proxy (HTTPS_PROXY), use a mirror (HF_ENDPOINT, MODELSCOPE_ENDPOINT, PIP_INDEX_URL), or "
    "download the model where there is a network and name its folder"
)


def resolve_model(reference: Reference | str, progress: Progress = SILENT, *, offline: bool | None = None) -> Resolved:
    """The whole model that ``reference`` names: a folder with config.json and safetensors, or a .gguf file.

    ``offline`` forbids the network; None leaves it to TUNESMITH_OFFLINE, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE.
    ``progress`` counts bytes. Raises ReferenceNotFoundError that lists every place tried and why it failed; UserError for
    references that are resolved elsewhere (runs, Ollama, servers), for models that are not whole or only pickled.
    """
    reference = _one(reference)
    if reference.kind == "path":
        return resolve_folder(reference.path, f"the path {reference.name}")
    if reference.kind == "demo":
        return _demo(progress, net.offline_asked(offline))
    return _from_hubs(reference, progress, net.offline_asked(offline), adapter=False)


def resolve_adapter(
    reference: Reference | str, progress: Progress = SILENT, *, offline: bool | None = None
) -> Resolved:
    """The whole adapter (adapter_config.json, adapter_model.safetensors) that ``reference`` names. As ``resolve_model``."""
    reference = _one(reference)
    if reference.kind == "path":
        return resolve_adapter_folder(reference.path, f"the path {reference.name}")
    if reference.kind == "demo":
        raise UserError("demo is a model, not an adapter", "name a folder, a hub name or run:ID")
    return _from_hubs(reference, progress, net.offline_asked(offline), adapter=True)


def _one(reference: Reference | str) -> Reference:
    reference = parse(reference) if isinstance(reference, str) else reference
    if reference.adapter is not None:
        raise UserError(f"{reference} names a model with an adapter; one of the two is wanted here", "name only one")
    if reference.kind in ELSEWHERE:
        raise UserError(
            f"{reference} {ELSEWHERE[reference.kind]}",
            "here a model's folder, hf:org/name, ms:org/name or demo is wanted",
        )
    return reference


def _from_hubs(reference: Reference, progress: Progress, offline: bool, *, adapter: bool) -> Resolved:
    hubs = hub_order() if reference.kind == "hub" else (reference.kind,)
    if not hubs:
        raise UserError(f"TUNESMITH_HUBS is empty, so {reference} is looked for nowhere", "write hf:… or ms:… in front")
    local = {hub: MODULES[hub].cached(reference, adapter) for hub in hubs}
    hubs = tuple(sorted(hubs, key=lambda hub: local[hub] is None))
    first = local[hubs[0]]
    if first is not None and (offline or MODULES[hubs[0]].settled(reference)):
        return first
    if offline:
        raise ReferenceNotFoundError(
            f"{reference} is not on this disk as a whole, and the network is switched off",
            "unset TUNESMITH_OFFLINE / HF_HUB_OFFLINE and fetch it once, or name a folder",
        )
    silences = net.why_silent_each([MODULES[hub].address(reference) for hub in hubs])
    failures: list[UserError] = []
    for hub, silence in zip(hubs, silences, strict=True):
        kept = local[hub]
        try:
            if silence is None:
                return MODULES[hub].download(reference, progress, adapter)
            raise _unreachable(hub, silence)
        except UserError as error:
            if kept is not None:
                progress.say(f"{error.message}; the copy on this disk is used: {kept.source}")
                return kept
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise _nowhere(str(reference), failures)


def _demo(progress: Progress, offline: bool) -> Resolved:
    hubs = hub_order()
    for hub in hubs:
        if (found := MODULES[hub].cached(demo.on_hub(hub))) is not None:
            return found
    if (kept := demo.cached_gguf()) is not None:
        return kept
    if offline:
        raise ReferenceNotFoundError(
            "the demo model is not on this disk, and the network is switched off",
            "unset TUNESMITH_OFFLINE / HF_HUB_OFFLINE and fetch it once, or name a model's folder",
        )
    failures: list[UserError] = []
    silences = net.why_silent_each([MODULES[hub].address(demo.on_hub(hub)) for hub in hubs])
    for hub, silence in zip(hubs, silences, strict=True):
        try:
            if silence is None:
                return MODULES[hub].download(demo.on_hub(hub), progress)
            failures.append(_unreachable(hub, silence))
        except UserError as error:
            failures.append(error)
    try:
        return demo.fetch_gguf(progress)
    except UserError as error:
        failures.append(error)
    raise _nowhere("the demo model", failures)


def _unreachable(hub: str, silence: str) -> ReferenceNotFoundError:
    module = MODULES[hub]
    return ReferenceNotFoundError(
        f"{module.NAME} ({net.plain(module.endpoint())}) cannot be reached: {silence}", WHAT_TO_DO
    )


def _nowhere(what: str, failures: list[UserError]) -> ReferenceNotFoundError:
    places = "\n".join(f"  - {error.message}" for error in failures)
    return ReferenceNotFoundError(f"{what} could not be had from any of {len(failures)} places:\n{places}", WHAT_TO_DO)
