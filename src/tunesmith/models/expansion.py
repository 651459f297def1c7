"""Block expansion: copies of a model's layers between its layers, which change nothing until they are learned.

After each group of layers stands a copy of the group's last one, whose outputs (of attention and of the feed-forward part) are
multiplied by zero weights, so that x + 0 + 0 = x: the expanded model computes what the base computes, and only the copies are learned
(LLaMA Pro, Wu et al., 2024, arXiv:2401.02415, section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.config.errors import ConfigError

OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "output_linear")
"""Names that the families give to the layers which write to the residual stream."""
SMALL = 0.1
"""Share of the origin's weights at which a new layer must change the text by about that share of what the origin does."""


@dataclass(frozen=True)
class Growth:
    """``origins[i]``: the base's layer that layer i of the expanded model is, or was copied from. ``new``: the copies."""

    origins: tuple[int, ...]
    new: tuple[int, ...]


def grown(layers: int, count: int) -> Growth:
    """``count`` new layers among ``layers``: one after each of ``count`` groups as equal as they can be."""
    if count > layers:
        raise ConfigError(
            f"method.expand is {count}, but the model has only {layers} layers", hint="at most one new layer for each"
        )
    after = {(k + 1) * layers // count - 1 for k in range(count)}
    origins: list[int] = []
    new: list[int] = []
    for layer in range(layers):
        origins.append(layer)
        if layer in after:
            new.append(len(origins))
            origins.append(layer)
    return Growth(tuple(origins), tuple(new))


def expand(model: Any, count: int) -> Growth:
    """Expand ``model`` in place by ``count`` layers that change nothing yet. Raises ConfigError when it cannot be so.

    That zero weights change nothing, and small ones little, is measured: a norm behind the output (Gemma, OLMo 2) would blow small
    weights up to full size at the first step.
    """
    import torch

    growth = grown(len(blocks_of(model)[1]), count)
    stretch(model, growth)
    _check_same_class(model)
    _, blocks = blocks_of(model)
    pairs = [
        (ours, theirs)
        for place in growth.new
        for (name, ours), theirs in zip(blocks[place].named_parameters(), blocks[place - 1].parameters(), strict=True)
        if any(part == word or part == f"{word}_bias" for part in name.split(".") for word in OUTPUTS)
    ]
    with torch.no_grad():
        for ours, _ in pairs:
            ours.zero_()
        still = _changes(model, growth)
        for ours, theirs in pairs:
            ours.copy_(theirs * SMALL)
        moved = _changes(model, growth)
        for ours, _ in pairs:
            ours.zero_()
    for (by_new, _), (by_small, by_origin) in zip(still, moved):
        if by_new != 0.0 or by_small > 5 * SMALL * by_origin:
            raise ConfigError(
                f"method.expand: the layers of a {model.config.model_type} model are not built so that a new one could begin by "
                "changing nothing" + ("" if by_new else " and then little (their output is normalized once more)"),
                hint="use method=lora, or method=freeze with layers",
            )
    return growth


def stretch(model: Any, growth: Growth) -> None:
    """Put copies of the layers where ``growth`` says, number all anew, and make the config say so."""
    from torch import nn

    name, blocks = blocks_of(model)
    config = model.config.get_text_config()
    shared = {id(c): c for c in (config, model.config)}
    stretched = []
    for place, origin in enumerate(growth.origins):
        block = copy.deepcopy(blocks[origin], dict(shared)) if place in growth.new else blocks[origin]
        stretched.append(block)
    for place, block in enumerate(stretched):
        for module in block.modules():
            if type(getattr(module, "layer_idx", None)) is int:
                module.layer_idx = place
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList(stretched))
    for key, value in stretched_keys(config.to_dict(), growth).items():
        setattr(config, key, value)


def stretched_keys(config: dict[str, Any], growth: Growth) -> dict[str, Any]:
    """The keys of a text config that change: the number of layers, and every list with one entry per layer."""
    layers = config["num_hidden_layers"] if "num_hidden_layers" in config else config["n_layer"]
    changed: dict[str, Any] = {
        key: [value[origin] for origin in growth.origins]
        for key, value in config.items()
        if isinstance(value, list) and len(value) == layers and ("layer" in key or "block" in key)
    }
    return changed | {"num_hidden_layers": len(growth.origins)}


def blocks_of(model: Any) -> tuple[str, Any]:
    """Name and list of the model's layers. Raises ConfigError for a model without such a list."""
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ConfigError(f"the layers of a {model.config.model_type} model were not found, so none can be chosen")
    return min(lists, key=lambda entry: entry[0].count("."))


def _check_same_class(model: Any) -> None:
    """The config alone must describe the expanded model: build it from there (without memory) and compare.

    Some families decide by a layer's number what it is (dense or experts, window or not, rotary or not).
    """
    import torch

    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    for place, (ours, theirs) in enumerate(zip(blocks_of(model)[1], blocks_of(twin)[1], strict=True)):
        for (name, one), (_, other) in zip(_described(ours), _described(theirs), strict=False):
            if one != other:
                raise ConfigError(
                    f"method.expand: in a {model.config.model_type} model a layer's number decides what it is "
                    f"(layer {place}, {name}), so none can be put between",
                    hint="use method=lora, or method=freeze with layers",
                )


def _described(block: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each module of a layer its class, the shapes of its parameters and its plain numbers and words."""
    for name, module in block.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, type(None))) and not key.startswith("_") and key != "training"
        }
        shapes = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        yield name, {"class": type(module).__name__, "name": name, **plain, **shapes}


def _changes(model: Any, growth: Growth) -> list[tuple[float, float]]:
    """How much each new layer changes the residual stream, and its origin does, on a few tokens (relative norms)."""
    import torch

    _, blocks = blocks_of(model)
    seen: dict[int, float] = {}

    def hook(place: int) -> Any:
        def measure(module: Any, arguments: Any, keywords: Any, out: Any) -> None:
            before = arguments[0] if arguments else keywords["hidden_states"]
            after = out[0] if isinstance(out, tuple) else out
            seen[place] = float((after - before).float().norm() / before.float().norm())

        return blocks[place].register_forward_hook(measure, with_kwargs=True)

    hooks = [hook(place) for new in growth.new for place in (new - 1, new)]
    training = model.training
    model.eval()
    try:
        ids = torch.arange(8, device=next(model.parameters()).device)[None]
        model(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    return [(seen[new], seen[new - 1]) for new in growth.new]
