"""Which parameters a person means by a name: a part of the dotted name as it stands, else a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.config.errors import ConfigError


def parameters_named(model: Any, words: Sequence[str], key: str) -> list[Any]:
    """The parameters of ``model`` meant by ``words``; tied ones go by each of their names. Raises ConfigError.

    A word is one or more whole parts of a dotted name (``embed_tokens``, ``mlp``, ``layers.0``); when there is no such parameter it
    is a regular expression found anywhere in the name (``layers\\.[0-3]\\.``). ``key``: the setting, for messages.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    found: dict[int, Any] = {}
    for word in words:
        hits = [p for name, p in named if f".{word}." in f".{name}."]
        if not hits:
            try:
                pattern = re.compile(word)
            except re.error as error:
                raise ConfigError(
                    f"{key}: {word!r} is no part of the model and no regular expression ({error})"
                ) from None
            hits = [p for name, p in named if pattern.search(name)]
        if not hits:
            raise ConfigError(f"{key}: no weight of this model is called {word!r}", hint=f"its parts: {parts(model)}")
        found |= {id(p): p for p in hits}
    return list(found.values())


def parts(model: Any) -> str:
    """The words that name parts of the model's weights, for messages."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    words = {part for name in names for part in name.split(".")[:-1] if not part.isdigit()}
    return ", ".join(sorted(words))


def refuse_quantized(model: Any, method: str) -> None:
    """Raise ConfigError for weights that are stored quantized: they can be read, not learned."""
    quantized = getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False)
    if quantized or any(not p.is_floating_point() for p in model.parameters()):
        raise ConfigError(
            f"method={method} learns the model's own weights, but these are stored quantized",
            hint="use method=lora, or a model in its original precision without model.quantize",
        )
