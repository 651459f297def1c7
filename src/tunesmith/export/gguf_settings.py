"""A model's settings in the words llama.cpp's converter reads, and what llama.cpp itself cannot compute.

The converter reads config.json by the names of the time when a family appeared; transformers 5 has renamed some. And llama.cpp has
some settings of a family in its code instead of the file: a model that differs there would load, and answer differently. Such a model
is refused here with the reason; where it differs only in long texts, the GGUF is declared as long as it is right.
Facts: llama.cpp b10605, conversion/ and src/models/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.model_config import completed


@dataclass
class Settings:
    """``words``: config.json for the converter. ``metadata``: keys to write whatever it finds, ``{arch}`` stands for the architecture.
    ``warnings``: sentences for the person."""

    words: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


PERIODS = {"gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5, "cohere2": 4, "olmo3": 4, "gpt_oss": 2, "llama4_text": 4}
"""Model types whose sliding windows llama.cpp has, and after how many layers one without a window comes unless the file says so."""
LLAMA4_CHUNK = 8192
# llama.cpp has these in its code: model type -> whether the chosen experts' weights are made to sum to 1.
NORMED_EXPERTS = {"qwen3_moe": True, "qwen3_next": True, "qwen2_moe": False, "olmoe": False}


def settings_for(config: Any) -> Settings:
    """What the converter needs to know of ``config`` (transformers'). Raises ExportError where llama.cpp cannot compute the model."""
    text = config.get_text_config()
    found = Settings(completed(json.loads(config.to_json_string(use_diff=False)), config))
    kind = str(text.model_type)
    rename = RENAMED.get(kind)
    if rename is not None:
        _text_part(found.words).update(rename(text))
    _sizes(kind, text, found)
    _rope(text, found)
    _experts(kind, text)
    for check in (_falcon, _no_rope_layers, _gemma_scale, _llama4_experts, _mamba_width):
        check(kind, text)
    _windows(kind, text, found)
    return found


def predicts_ahead(names: Collection[str], text: Any) -> bool:
    """Whether tensors among ``names`` belong to layers behind the last one, for predicting several tokens (MTP)."""
    layers = getattr(text, "num_hidden_layers", None)
    behind = [int(n.group(1)) for n in (re.search(r"\.layers\.(\d+)\.", name) for name in names) if n]
    return any(re.search(r"(^|\.)mtp\.", name) for name in names) or (
        layers is not None and max(behind, default=0) >= layers
    )


def _text_part(words: dict[str, Any]) -> dict[str, Any]:
    return words["text_config"] if isinstance(words.get("text_config"), dict) else words


def _gpt_neox(text: Any) -> dict[str, Any]:
    rope = text.rope_parameters
    return {"rotary_pct": rope.get("partial_rotary_factor", 1.0), "rotary_emb_base": rope["rope_theta"]}


def _falcon_heads(text: Any) -> dict[str, Any]:
    grouped, shared = text.new_decoder_architecture, text.multi_query
    return {"num_kv_heads": text.num_kv_heads if grouped else 1 if shared else text.num_attention_heads}


def _interval(text: Any) -> dict[str, Any]:
    period, regular = _full_layers(text.layer_types)
    if not regular:
        raise _refused(
            f"llama.cpp wants full attention at regular distances, this model's layers are {list(text.layer_types)}"
        )
    return {"full_attention_interval": period}


def _sigmoid(text: Any) -> dict[str, Any]:
    return {"scoring_func": "sigmoid"}


def _greedy(text: Any) -> dict[str, Any]:
    if text.topk_method != "greedy" and (text.n_group or 1) > 1:
        raise _refused("llama.cpp ranks groups of experts by their best two, DeepSeek V2 by the best one")
    return {"n_group": None, "topk_group": None, "scoring_func": "softmax"}


RENAMED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "gpt2": lambda text: {"n_ctx": text.n_positions},
    "gpt_neox": _gpt_neox,
    "falcon": _falcon_heads,
    "cohere2": lambda _: {"rotary_pct": 1.0},
    "deepseek_v2": _greedy,
    "deepseek_v3": _sigmoid,
    "qwen3_next": _interval,
}
"""Model type -> the keys its converter reads and transformers 5 does not write, as it has them in its code."""


WIDTHS = {"phi": "intermediate_size", "falcon": "ffn_hidden_size", "gpt2": "n_inner"}
"""Model type -> the width of its MLP, where the converter writes four times hidden_size instead."""


def _sizes(kind: str, text: Any, found: Settings) -> None:
    if kind in WIDTHS and getattr(text, WIDTHS[kind]) is not None:
        found.metadata["{arch}.feed_forward_length"] = int(getattr(text, WIDTHS[kind]))
    if kind == "falcon":  # the converter writes 2048
        found.metadata["{arch}.context_length"] = int(text.max_position_embeddings)


def _rope(text: Any, found: Settings) -> None:
    """Some of the converter's families leave the base out, and llama.cpp then takes 10000."""
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    base = rope.get("rope_theta")
    if base is not None and base != 10000 and rope.get("rope_type", "default") != "dynamic":
        found.metadata["{arch}.rope.freq_base"] = float(base)


def _experts(kind: str, text: Any) -> None:
    wanted, here = NORMED_EXPERTS.get(kind), getattr(text, "norm_topk_prob", None)
    if wanted is not None and here is not None and bool(here) != wanted:
        raise _refused(
            f"llama.cpp {'always' if wanted else 'never'} makes the weights of the chosen experts sum to 1 for {kind}, "
            f"this model has norm_topk_prob = {str(here).lower()}"
        )


def _falcon(kind: str, text: Any) -> None:
    if kind == "falcon" and text.alibi:
        raise _refused("llama.cpp computes rotary positions for Falcon, this model has ALiBi")
    if kind == "falcon" and not (text.parallel_attn or text.new_decoder_architecture):
        raise _refused("llama.cpp computes attention and MLP of Falcon side by side, this model one after the other")


def _no_rope_layers(kind: str, text: Any) -> None:
    if kind not in ("smollm3", "llama4_text"):
        return
    every_fourth = [int((layer + 1) % 4 != 0) for layer in range(text.num_hidden_layers)]
    if list(text.no_rope_layers) != every_fourth:
        raise _refused(
            f"llama.cpp leaves every fourth layer of {kind} without rotary positions, this model's no_rope_layers are "
            f"{list(text.no_rope_layers)}"
        )


def _gemma_scale(kind: str, text: Any) -> None:
    """llama.cpp divides by the root of the head's width; in the 27B models (told by their layers) by that of hidden_size / heads."""
    largest = {"gemma2": 46, "gemma3_text": 62}.get(kind)
    if largest is None:
        return
    wide = text.hidden_size / text.num_attention_heads if text.num_hidden_layers == largest else text.head_dim
    if text.query_pre_attn_scalar != wide:
        raise _refused(
            f"llama.cpp scales attention for a query_pre_attn_scalar of {wide:g}, this model has {text.query_pre_attn_scalar:g}"
        )


def _llama4_experts(kind: str, text: Any) -> None:
    if kind != "llama4_text":
        return
    step = text.interleave_moe_layer_step
    if list(text.moe_layers) != list(range(step - 1, text.num_hidden_layers, step)):
        raise _refused(
            f"llama.cpp wants every {step}th layer with experts (interleave_moe_layer_step), this model's are {list(text.moe_layers)}"
        )


def _mamba_width(kind: str, text: Any) -> None:
    if kind in ("mamba", "falcon_mamba") and text.intermediate_size != 2 * text.hidden_size:
        raise _refused(
            f"llama.cpp wants a Mamba twice as wide inside ({2 * text.hidden_size}), this model has {text.intermediate_size}"
        )


def _windows(kind: str, text: Any, found: Settings) -> None:
    longest = text.max_position_embeddings if hasattr(text, "max_position_embeddings") else None
    window = _window(text)
    if longest is None or window is None or window >= longest:
        return
    if kind in PERIODS:
        _period(kind, list(text.layer_types), found)
        if kind != "llama4_text" or window == LLAMA4_CHUNK:
            return
        window = min(window, LLAMA4_CHUNK)
    found.metadata["{arch}.context_length"] = int(window)
    found.warnings.append(
        f"llama.cpp does not compute this model's sliding window of {window} tokens; its answers are equal up to that length, so the "
        f"GGUF is declared as reading {window} tokens and not {longest}"
    )


def _window(text: Any) -> int | None:
    """Tokens that the model's windowed layers look back over (or the length of a chunk); None without such layers."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and not any(k in ("sliding_attention", "chunked_attention") for k in kinds):
        return None
    if kinds is None and not getattr(text, "use_sliding_window", True):
        return None
    chunked = kinds is not None and "chunked_attention" in kinds
    found = getattr(text, "attention_chunk_size" if chunked else "sliding_window", None)
    return None if found is None else int(found)


def _full_layers(layers: list[str]) -> tuple[int, bool]:
    """After how many layers one with full attention comes (0: there is none), and whether that holds throughout."""
    full = [layer == "full_attention" for layer in layers]
    period = full.index(True) + 1 if True in full else 0
    return period, full == [bool(period) and (i + 1) % period == 0 for i in range(len(full))]


def _period(kind: str, layers: list[str], found: Settings) -> None:
    period, regular = _full_layers(layers)
    if not regular:
        full = [i for i, layer in enumerate(layers) if layer == "full_attention"]
        raise _refused(
            f"llama.cpp wants the layers without sliding window at regular distances, this model's are {full}"
        )
    if period != PERIODS[kind]:
        found.metadata["{arch}.attention.sliding_window_pattern"] = period


def _refused(why: str) -> ExportError:
    return ExportError(
        f"llama.cpp would compute something else than this model: {why}",
        hint="no GGUF is written; --to hf and the other targets are not concerned",
    )
