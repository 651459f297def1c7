"""How a learned model differs in form from its base: new tokens, other numbers in config.json. Kept beside its weights.

``model_changes.json`` lies in every checkpoint whose model has another form than its base, so that a checkpoint can be
opened and exported without the run it came from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.errors import UserError
from tunesmith.config.files import write_json

FILE = "model_changes.json"
_SAME_MODEL = {"dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures", "use_cache", "quantization_config"}
"""Keys that say how a model is used or where it came from, not what form it has."""


@dataclass(frozen=True)
class NewToken:
    """A token that the base does not have. ``pieces``: the base's tokens that its text consisted of."""

    text: str
    id: int
    special: bool
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Changes:
    """``config``: keys of the (text) config with their new values. ``tokens``: what was added to the tokenizer."""

    config: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[NewToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.config or self.tokens)


def read_changes(folder: Path) -> Changes:
    """The changes kept in ``folder``; none when there is no such file. Raises UserError when it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return Changes()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        tokens = tuple(NewToken(**{**token, "pieces": tuple(token["pieces"])}) for token in raw["tokens"])
        return Changes(dict(raw["config"]), tokens)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}", hint="the checkpoint is damaged; take another") from error


def write_changes(folder: Path, changes: Changes) -> None:
    """Keep ``changes`` in ``folder``; nothing is written when there are none."""
    if changes:
        write_json(folder / FILE, {"config": changes.config, "tokens": [asdict(token) for token in changes.tokens]})


def changed_keys(base: Any, now: Any) -> dict[str, Any]:
    """What a config of transformers has that its base's has not, as JSON values (of the text model's config)."""
    before, after = (json.loads(c.get_text_config().to_json_string(use_diff=False)) for c in (base, now))
    return {k: v for k, v in after.items() if k not in _SAME_MODEL and not (k in before and before[k] == v)}


def apply_keys(config: Any, keys: dict[str, Any]) -> Any:
    """``config`` (of transformers) with ``keys`` set in its text part."""
    text = config.get_text_config()
    for key, value in keys.items():
        setattr(text, key, value)
    return config
