"""RoPE scaling: the positions of a model stretched, so that it reads longer texts than it was trained for.

A rotary embedding turns dimension pair i of queries and keys at position m by the angle m * f_i, f_i = theta^(-2i/d)
(Su et al., 2021, arXiv:2104.09864). What changes, for a ``factor`` s and an original length L:

- ``linear``: f_i / s (Chen et al., 2023, position interpolation, arXiv:2306.15595)
- ``dynamic``: theta grows with the length of the text once that exceeds L ("NTK-aware", in Peng et al., 2023, section 3.1)
- ``yarn``: f_i / s only for waves longer than L, a ramp between, and sharper attention (Peng et al., 2023, arXiv:2309.00071)
- ``llama3``: f_i / s only for waves longer than L, smoothed (Llama 3.1, Dubey et al., 2024, arXiv:2407.21783)

The formulas are transformers' own (``modeling_rope_utils``); here is only what is written into the model's config.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from tunesmith.config.base import Config, setting
from tunesmith.config.errors import ConfigError

STRETCHED_LAYERS = "full_attention"
"""Where a model has several rotary embeddings (Gemma 3), the one whose layers see the whole text; sliding windows need none."""


class RopeConfig(Config):
    """How the positions are stretched."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"] = setting(
        "yarn", zh="缩放方法：linear、dynamic、yarn（通常最好）或 llama3。"
    )
    """linear, dynamic, yarn (mostly the best) or llama3."""
    factor: float = setting(..., zh="倍数：上下文长度变为原来的多少倍。", gt=1)
    """How many times longer than the original length the context becomes."""
    original_max: int | None = setting(None, zh="模型原来训练的长度，单位 token（默认取模型配置里的值）。", ge=1)
    """The length the model was trained for, in tokens; by default what its config says."""


def rope_changes(config: Any, rope: RopeConfig) -> dict[str, Any]:
    """The keys of a (text) ``config`` of transformers that ``rope`` changes, with their new values.

    Raises ConfigError for models without rotary positions, for those that are stretched by tables of their own (LongRoPE),
    and for a factor that makes the context no longer than it is.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ConfigError(f"model.rope: a {config.model_type} model has no rotary positions that could be stretched")
    parts = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    part = parts.get(STRETCHED_LAYERS) if parts else parameters
    if part is None:
        raise ConfigError(
            f"model.rope: this {config.model_type} model has rotary positions per kind of layer ({', '.join(parts)}), "
            f"none of them for {STRETCHED_LAYERS}"
        )
    kind = part.get("rope_type", "default")
    if kind not in ("default", "linear", "dynamic", "yarn", "llama3"):
        raise ConfigError(f"model.rope: this model stretches its positions in a way of its own ({kind})")
    limit = int(config.max_position_embeddings)
    # linear and dynamic keep no original length beside the factor: one that is stretched so must be told it
    known = part.get("original_max_position_embeddings") or (limit if kind in ("default", "dynamic") else None)
    original = rope.original_max or known or round(limit / float(part.get("factor") or 1.0))
    longest = int(original * rope.factor)
    if longest <= limit:
        raise ConfigError(
            f"model.rope: {rope.factor:g} x {original} = {longest} positions, but the model has {limit} already",
            hint=f"a factor above {limit / original:g} makes its context longer",
        )
    changed = {key: part[key] for key in ("rope_theta", "partial_rotary_factor") if part.get(key) is not None}
    changed |= {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in ("yarn", "llama3"):
        changed["original_max_position_embeddings"] = original
    if rope.kind == "llama3":
        changed |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # Llama 3.1's own
    result: dict[str, Any] = {
        "rope_parameters": {**parameters, STRETCHED_LAYERS: changed} if parts else changed,
        # dynamic counts from this number: it stays the original length, and the context is factor times as long
        "max_position_embeddings": original if rope.kind == "dynamic" else longest,
    }
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3 keeps it beside, and there it has precedence
        result["original_max_position_embeddings"] = original
    return result


def context_length(config: Any) -> int | None:
    """How many tokens a model reads at most, by its (text) config; None when that does not say."""
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    part = parameters.get(STRETCHED_LAYERS) or parameters
    factor = float(part.get("factor") or 1.0) if part.get("rope_type") == "dynamic" else 1.0
    return int(limit * factor)


def too_long(config: Any, max_length: int) -> str | None:
    """The warning for rows of up to ``max_length`` tokens in a model that reads fewer; None when they fit."""
    limit = context_length(config)
    if limit is None or max_length <= limit:
        return None
    if not getattr(config, "rope_parameters", None):
        return f"data.max_length is {max_length}, but the model reads at most {limit} tokens; set data.max_length={limit}"
    factor = math.ceil(max_length / limit * 2) / 2
    return (
        f"data.max_length is {max_length}, but the model was made for {limit} tokens: positions beyond are new to it; "
        f"set data.max_length={limit}, or stretch them: 'model.rope={{kind: yarn, factor: {factor:g}}}'"
    )


def check_stretched(model: Any, rope: RopeConfig) -> None:
    """Raise ConfigError unless a rotary embedding of ``model`` computes what ``rope`` says (code of its own may not)."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if kind == rope.kind or (isinstance(kind, dict) and rope.kind in kind.values()):
            return
    raise ConfigError(f"model.rope: {type(model).__name__} does not follow its config's rope_parameters")


def forget_lengths(model: Any) -> None:
    """Make dynamic rotary embeddings a function of the text alone.

    transformers keeps the frequencies of the longest text so far; then what a batch gives depends on the batches before
    it, and a resumed run computes otherwise than an uninterrupted one. Called before each use, this starts them afresh.
    """

    def afresh(module: Any, arguments: Any) -> None:
        for name in [n for n, _ in module.named_buffers(recurse=False) if n.endswith("inv_freq") and "original" not in n]:
            first = getattr(module, name.replace("inv_freq", "original_inv_freq"))
            setattr(module, name, first.to(getattr(module, name).device, copy=True))
        module.max_seq_len_cached = module.original_max_seq_len
        for name in [n for n in vars(module) if n.endswith("_max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)

    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if kind == "dynamic" or (isinstance(kind, dict) and "dynamic" in kind.values()):
            module.register_forward_pre_hook(afresh)
