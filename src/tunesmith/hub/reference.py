"""One grammar for every model that a person can name. Parsing looks at the disk for bare words only, never at a network.

=====================================  =====================================================================
``/folder``, ``./folder``, ``~/x``     a model folder or a .gguf file; also a bare relative path that exists
``hf:org/name[/file.gguf][@rev]``      Hugging Face
``ms:org/name[/file.gguf][@rev]``      ModelScope
``org/name[/file.gguf][@rev]``         the hubs of ``$TUNESMITH_HUBS`` in their order (``hf,ms`` when unset)
``demo`` (or ``demo:``)                the small built-in demo model
``run:ID[@step-N|@best|@last|@base]``  what a run made
``ollama:NAME``                        a model in Ollama; names may hold colons
``URL#MODEL``                          a model behind an OpenAI-style server
``A+B``                                the model A with the adapter B
``A+B*0.5+C``                          the model A with the adapters B and C together, each as often as its weight says (1)
=====================================  =====================================================================
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ..config.errors import ReferenceNotFoundError, UserError
from . import names

Kind = Literal["path", "hf", "ms", "hub", "demo", "run", "ollama", "url"]
HUBS = ("hf", "ms")
FORMS = "a folder (./name), hf:org/name, ms:org/name, org/name, demo, run:ID, ollama:NAME or URL#MODEL"


class AmbiguousReferenceError(UserError):
    """A bare word with two readings; the message names both and the hint says how to write each."""


@dataclass(frozen=True)
class Reference:
    """A parsed reference. ``parse(str(reference)) == reference`` as long as the disk gives no bare word a second meaning.

    ``name``: the path as written (a bare one gets ``./`` in front), org/name, the run's ID, the model in Ollama, or the
    MODEL of ``URL#MODEL``; empty for the demo. ``revision`` and ``file`` belong to hubs, ``point`` to runs
    (``step-N``, ``best``, ``last``, ``base``), ``url`` to servers.
    """

    kind: Kind
    name: str = ""
    revision: str | None = None
    file: str | None = None
    point: str | None = None
    url: str | None = None
    adapter: Reference | None = None
    """The (first) adapter on it; the next one is that one's ``adapter``."""
    weight: float = 1.0
    """Of an adapter: what its change is multiplied by."""

    @property
    def base(self) -> Reference:
        """The same reference without its adapters."""
        return replace(self, adapter=None)

    @property
    def adapters(self) -> tuple[tuple[Reference, float], ...]:
        """The adapters on it, in order, and their weights."""
        one, found = self.adapter, []
        while one is not None:
            found.append((replace(one, adapter=None, weight=1.0), one.weight))
            one = one.adapter
        return tuple(found)

    @property
    def path(self) -> Path:
        """Where a ``path`` reference points to, ``~`` expanded, absolute."""
        assert self.kind == "path", self.kind
        return Path(self.name).expanduser().absolute()

    def __str__(self) -> str:
        text = {
            "demo": "demo",
            "url": f"{self.url}#{self.name}",
            "run": f"run:{self.name}" + (f"@{self.point}" if self.point else ""),
            "ollama": f"ollama:{self.name}",
            "path": self.name,
        }.get(self.kind)
        if text is None:
            prefix = "" if self.kind == "hub" else f"{self.kind}:"
            text = prefix + self.name + (f"/{self.file}" if self.file else "")
            text += f"@{self.revision}" if self.revision else ""
        text += "" if self.weight == 1 else f"*{self.weight!r}"
        return text if self.adapter is None else f"{text}+{self.adapter}"


def hub_order() -> tuple[str, ...]:
    """The hubs that a bare ``org/name`` is looked for on, in order: ``$TUNESMITH_HUBS``, else ``hf,ms``; may be empty.

    Raises UserError when the setting names something that is no hub.
    """
    value = os.environ.get("TUNESMITH_HUBS")
    if value is None:
        return HUBS
    order = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    for hub in order:
        if hub not in HUBS:
            raise UserError(f"TUNESMITH_HUBS names {hub!r}, which is no hub", "it is a list of hf and ms: hf,ms")
    return order


def parse(text: str) -> Reference:
    """The reference that ``text`` writes.

    Raises ReferenceNotFoundError for a bare word that is neither on the disk nor known, AmbiguousReferenceError for one
    with two readings, UserError for text that no form allows. An explicit path need not exist.
    """
    text = text.strip()
    names.check_text(text)
    if "+" not in text or _exists(text):
        return _single(text)
    complaint: UserError | None = None
    for left, right in _cuts(text):
        try:
            adapter = _weighed(right)
            several = not _exists(left) and any(_both_valid(*cut) for cut in _cuts(left))
            return _with_adapter(parse(left) if several else _single(left), adapter)
        except (AmbiguousReferenceError, _NoAdapterError):
            raise
        except UserError as error:
            complaint = complaint or error
    try:
        return _single(text)
    except UserError as error:
        raise (complaint or error) from None


def _cuts(text: str) -> list[tuple[str, str]]:
    """What stands before and after each ``+``, the last one first."""
    return [(text[:at], text[at + 1 :]) for at in range(len(text) - 1, -1, -1) if text[at] == "+"]


def _both_valid(left: str, right: str) -> bool:
    try:
        return bool(_single(left) and _weighed(right))
    except UserError:
        return False


def _weighed(text: str) -> Reference:
    """An adapter, perhaps with ``*WEIGHT`` behind it."""
    name, star, factor = text.rpartition("*")
    if not star or _exists(text):
        return _single(text)
    try:
        weight = float(factor)
    except ValueError:
        return _single(text)
    if not math.isfinite(weight) or weight == 0:
        raise _NoAdapterError(
            f"{text}: the weight of an adapter is a number other than 0", f"write {name}*0.5, or {name} alone"
        )
    return replace(_single(name), weight=weight)


class _NoAdapterError(UserError):
    """Two valid references that cannot be base and adapter."""


def _with_adapter(base: Reference, adapter: Reference) -> Reference:
    if base.kind in ("ollama", "url"):
        raise _NoAdapterError(
            f"{base} is a model behind a server; no adapter can be put on it from here",
            "name the base as a folder or on a hub, or ask the server for the model that has the adapter in it",
        )
    if adapter.kind in ("ollama", "url", "demo"):
        raise _NoAdapterError(f"{adapter} is not an adapter", "after the + stands a folder, a hub name or run:ID")
    return replace(base, adapter=adapter if base.adapter is None else _with_adapter(base.adapter, adapter))


def _single(text: str) -> Reference:
    """A reference without an adapter."""
    names.check_text(text)
    if _is_explicit_path(text):
        return Reference("path", _tidy(text))
    other: Reference | None
    complaint: UserError | None = None
    try:
        other = _not_a_path(text)
    except UserError as error:
        other, complaint = None, error
    if not _exists(text):
        if other is not None:
            return other
        raise complaint or _unknown(text)
    if other is None or (other.kind == "hub" and text.lower().endswith(".gguf")):  # no hub names a model so
        return Reference("path", "./" + _tidy(text))
    explicit = {"demo": "demo: for the demo model", "hub": f"hf:{text} or ms:{text} for the hub"}.get(other.kind)
    raise AmbiguousReferenceError(
        f"{text!r} has two readings: the file or folder ./{text} on this disk, and {_in_words(other)}",
        f"write ./{text} for the one on this disk" + (f", {explicit}" if explicit else ", or rename it"),
    )


def _in_words(reference: Reference) -> str:
    return {
        "demo": "the built-in demo model",
        "hub": f"the model {reference.name} on a hub",
        "hf": f"the model {reference.name} on Hugging Face",
        "ms": f"the model {reference.name} on ModelScope",
        "run": f"the run {reference.name}",
        "ollama": f"the model {reference.name} in Ollama",
        "url": f"the model {reference.name} behind a server",
    }[reference.kind]


def _not_a_path(text: str) -> Reference | None:
    """What ``text`` means apart from the disk; None when it is of no such form; UserError when the form is broken."""
    if text in ("demo", "demo:"):
        return Reference("demo")
    if text.lower().startswith(("http://", "https://")):
        return _server(text)
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "hf":
        return _hub("hf", rest)
    if colon and prefix == "ms":
        return _hub("ms", rest)
    if colon and prefix == "ollama":
        names.check_ollama(rest)
        return Reference("ollama", rest)
    if colon and prefix == "run":
        run, at, point = rest.partition("@")
        names.check_run(run)
        if at:
            names.check_run_point(point)
        return Reference("run", run, point=point if at else None)
    repo = text.partition("@")[0]
    is_file = repo.endswith(".gguf") and repo.count("/") >= 2
    if repo.count("/") == 1 or is_file:
        return _hub("hub", text)
    return None


def _hub(kind: Literal["hf", "ms", "hub"], text: str) -> Reference:
    place, at, revision = text.partition("@")
    org, _, rest = place.partition("/")
    name, slash, file = rest.partition("/")
    names.check_repo(f"{org}/{name}" if name else place, "hf" if kind == "hf" else "ms")
    if slash:
        names.check_file(file)
    if at:
        names.check_revision(revision)
    return Reference(kind, f"{org}/{name}", revision=revision if at else None, file=file if slash else None)


def _server(text: str) -> Reference:
    url, _, model = text.partition("#")
    example = "write it as URL#MODEL, for example http://localhost:8000/v1#my-model"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    if not host or any(character.isspace() for character in text):
        raise UserError(f"{text!r} holds no valid address of a server", example)
    if parts.username is not None or parts.password is not None:
        shown = f"{parts.scheme}://…@{host}"
        raise UserError(f"the address {shown} holds a password", "put keys into the environment, not into references")
    if not model:
        raise UserError(f"{text!r} says no model", example)
    return Reference("url", model, url=url)


def _unknown(text: str) -> UserError:
    looks_like_path = "/" in text or "\\" in text or text.endswith((".gguf", ".safetensors"))
    if looks_like_path:
        return ReferenceNotFoundError(
            f"there is no file or folder {text!r} here ({Path.cwd()})", f"check the path; a reference is {FORMS}"
        )
    near = difflib.get_close_matches(text, ["demo"], n=1)
    meant = f"did you mean {near[0]}?" if near else f"a run is written run:{text}, a model in Ollama ollama:{text};"
    return ReferenceNotFoundError(
        f"nothing is known as {text!r}, and no such file is here", f"{meant} a reference is {FORMS}"
    )


def _is_explicit_path(text: str) -> bool:
    starts = ("./", "../", "/", "~") + ((".\\", "..\\") if os.name == "nt" else ())
    return text in (".", "..") or text.startswith(starts) or Path(text).is_absolute()


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _tidy(text: str) -> str:
    """Without slashes at the end, which would make two spellings of one folder."""
    stripped = text.rstrip("/" + (os.sep if os.name == "nt" else ""))
    return stripped if stripped else text[:1]
