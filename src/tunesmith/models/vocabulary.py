"""New tokens: the tokenizer gets them, the embeddings get rows for them, and the rows start somewhere sensible.

Rows that the base has to spare (many models pad their vocabulary) are used first; else embeddings and output layer grow by exactly
the rows that are missing. Starting at the mean of the old rows leaves the model's predictions nearly as they were (Hewitt, 2021,
https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.config.errors import ConfigError
from tunesmith.models.changes import NewToken


def add_tokens(tokenizer: Any, plain: Sequence[str], special: Sequence[str]) -> tuple[NewToken, ...]:
    """Add the texts to ``tokenizer`` (in place); their ids follow the highest one. Raises ConfigError for one it has."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    for key, texts in (("add_tokens", plain), ("add_special_tokens", special)):
        for text in texts:
            if text in known:
                raise ConfigError(
                    f"model.{key}: {text!r} is a token of this model already (id {known[text]})", hint="leave it out"
                )
    wanted = [(text, False) for text in plain] + [(text, True) for text in special]
    pieces = {text: tuple(tokenizer(text, add_special_tokens=False).input_ids) for text, _ in wanted}
    for text, is_special in wanted:
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=is_special)], special_tokens=is_special)
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text, _ in wanted}
    for text, _ in wanted:
        if ids[text] in known.values() or tokenizer(text, add_special_tokens=False).input_ids != [ids[text]]:
            raise ConfigError(f"model.add_tokens: this model's tokenizer does not read {text!r} as one token")
    return tuple(NewToken(text, ids[text], is_special, pieces[text]) for text, is_special in wanted)


def grow(model: Any, tokens: Sequence[NewToken], how: str) -> None:
    """Give ``tokens`` their rows in the embeddings and in an output layer of its own. ``how``: ``mean`` or ``pieces``.

    The same model and tokens always give the same rows. Raises ConfigError when these layers cannot be changed.
    """
    import torch

    if not tokens:
        return
    fit(model, max(token.id for token in tokens) + 1)
    old = min(token.id for token in tokens)
    for layer in _layers(model):
        with torch.no_grad():
            weight_VD = layer.weight
            mean_D = weight_VD[:old].double().mean(0)
            for token in tokens:
                start_D = weight_VD[list(token.pieces)].double().mean(0) if how == "pieces" and token.pieces else mean_D
                weight_VD[token.id] = start_D.to(weight_VD.dtype)
            bias_V = getattr(layer, "bias", None)
            if bias_V is not None:
                bias_V[[token.id for token in tokens]] = bias_V[:old].mean()


def fit(model: Any, size: int) -> None:
    """At least ``size`` rows in the embeddings; more than that stay as they are. Values of new rows are not settled."""
    if any(not layer.weight.is_floating_point() for layer in _layers(model)):
        raise ConfigError("model.add_tokens: the embeddings of this model are stored quantized and cannot grow")
    if model.get_input_embeddings().weight.shape[0] < size:
        model.resize_token_embeddings(size, mean_resizing=False)


def _layers(model: Any) -> list[Any]:
    """The embeddings, and the output layer unless it is the same tensor."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    return [embeddings] if output is None or output.weight is embeddings.weight else [embeddings, output]


def row_layers(model: Any) -> list[str]:
    """Full names of the layers that hold one row per token (one name when they are tied)."""
    layers = _layers(model)
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
