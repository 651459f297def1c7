"""The named chat templates: ``templates/<name>.jinja``, each telling in its first comment what it is and what it needs.

For base models, which have no template of their own, and for whoever wants another than the model's. Knows files and
vocabularies; which template a run renders with is decided in ``render.template``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.errors import RenderError
from tunesmith.config.plugins import suggestion

FOLDER = Path(__file__).parent / "templates"
_COMMENT = re.compile(r"\{#-\n(?P<about>.*?)\nfamily: (?P<rest>.*?)\n-#\}", re.DOTALL)
_BY_ROLE = {"bos_token": "bos", "eos_token": "eos"}
"""Tokens that a template names by their role; the tokenizer says which they are."""


@dataclass(frozen=True)
class NamedTemplate:
    """A template and what its first comment says. ``tokens`` must be single tokens of the vocabulary (``eos_token`` and
    ``bos_token``: the tokenizer must have one), ``pieces`` must stand in it; ``tools`` and ``thinking`` are ``no`` or say how."""

    name: str
    text: str
    about: str
    family: str
    end_of_turn: str
    tokens: tuple[str, ...]
    pieces: tuple[str, ...]
    tools: str
    thinking: str
    automatic: Literal["yes", "no", "last"]
    """Whether it may be chosen for a model without a template; ``last``: when no other fits."""
    checked: tuple[str, ...] = ()
    """Published templates that a test compares it with; none: it is unverified."""
    unchecked: tuple[str, ...] = ()
    """What those do not show: ``tools``, ``thinking``."""


def described(name: str, text: str) -> NamedTemplate | None:
    """What the first comment of ``text`` says; None when it has none of this kind (a template of somebody else)."""
    found = _COMMENT.search(text)
    if found is None:
        return None
    lines = ("family: " + found["rest"]).splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    automatic = said.get("automatic", "no")
    return NamedTemplate(
        name, text, " ".join(found["about"].split()), said["family"], said.get("end-of-turn", ""),
        tuple(said.get("tokens", "").split()), tuple(said.get("pieces", "").split()),
        said.get("tools", "no"), said.get("thinking", "no"),
        "yes" if automatic == "yes" else "last" if automatic == "last" else "no",
        tuple(said.get("checked", "").split()), tuple(said.get("unchecked", "").split()),
    )  # fmt: skip


@cache
def all_named() -> dict[str, NamedTemplate]:
    """Every template of the folder by its name, in alphabetical order."""
    found = {}
    for name, path in sorted((path.name.removesuffix(".jinja"), path) for path in FOLDER.glob("*.jinja")):
        template = described(name, path.read_text(encoding="utf-8"))
        assert template is not None, f"{path}: the first comment is not in the form of the others"
        found[name] = template
    return found


def named(name: str) -> NamedTemplate:
    """The template ``name``. Raises RenderError with those of a like name."""
    known = all_named()
    if name not in known:
        alike = [n for n in known if n.startswith(name)]
        hint = f"there are: {', '.join(alike)}" if alike else suggestion(name, known)
        raise RenderError(
            f"there is no chat template {name!r}",
            hint=f"{hint}; `tunesmith data templates` lists them; a file of your own is written with its folder or .jinja",
        )
    return known[name]


def missing_tokens(template: NamedTemplate, tokenizer: Any) -> list[str]:
    """The tokens that ``template`` writes and ``tokenizer`` does not have as one token each."""
    return [token for token in template.tokens if not _has(tokenizer, token)]


def fitting(tokenizer: Any) -> list[NamedTemplate]:
    """The templates that ``tokenizer`` has every token for; those that need the most tokens of their own first."""
    fit = [t for t in all_named().values() if not missing_tokens(t, tokenizer) and _pieces(t, tokenizer)]
    return sorted(fit, key=lambda t: (-len(t.tokens) - len(t.pieces), t.name))


def chosen(tokenizer: Any) -> tuple[NamedTemplate, str]:
    """The template for a model that has none, told by its vocabulary, and why.

    Raises RenderError when the tokenizer has not even a token that could end an answer.
    """
    fit = fitting(tokenizer)
    for template in fit:
        if template.automatic == "yes":
            own = [t for t in template.tokens if t not in _BY_ROLE]
            return template, f"its vocabulary has {', '.join(own)}"
    for template in fit:
        if template.automatic == "last":
            return template, "its vocabulary has no tokens for turns: plain text, and the token eos after every answer"
    raise RenderError(
        "this model has no chat template, and its tokenizer no token that could end an answer (no eos_token)",
        hint="give its tokenizer_config.json an eos_token, or write model.template=path/to/own.jinja",
    )


def check_tokens(template: NamedTemplate, tokenizer: Any) -> None:
    """Raises RenderError when ``tokenizer`` lacks tokens of ``template``: cut into pieces they would mean nothing to it."""
    missing = missing_tokens(template, tokenizer)
    if missing:
        names = ", ".join(_BY_ROLE.get(token, token) for token in missing)
        fit = ", ".join(t.name for t in fitting(tokenizer))
        raise RenderError(
            f"the chat template {template.name} writes {names}, which {'is no token' if len(missing) == 1 else 'are no tokens'} "
            "of this model's vocabulary",
            hint=f"templates that fit this model: {fit or 'none'}",
        )


def _has(tokenizer: Any, token: str) -> bool:
    """Is ``token`` read as one token wherever it stands in a text?"""
    if token in _BY_ROLE:
        return bool(getattr(tokenizer, token, None))
    ids = tokenizer(f"a{token}a", add_special_tokens=False)["input_ids"]
    number = tokenizer.get_vocab().get(token)
    return number is not None and number in ids


def _pieces(template: NamedTemplate, tokenizer: Any) -> bool:
    return not template.pieces or all(piece in tokenizer.get_vocab() for piece in template.pieces)
