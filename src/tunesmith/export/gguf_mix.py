"""llama.cpp's mix: which type each tensor of a GGUF gets at a level.

A level names a type, but tensors that hurt more when they are rounded get more bits: the output, values of attention, the second
half of the feed-forward block in some layers. The rules are those of ``llama_tensor_get_type`` and its neighbours in
llama.cpp's ``src/llama-quant.cpp`` (b10605), told tensor by tensor; the tests compare every decision with a real
``llama_model_quantize``. Shapes are rows first, as in safetensors. Knows names and shapes, no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tunesmith.export.gguf_levels import Level

TINY = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
"""Levels of two bits and fewer, which have rules of their own."""
NEEDS_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
NARROW = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K"), "Q4_0"), "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""Types in blocks of 256 -> what a row whose length is no multiple of 256 gets, in blocks of 32."""
LARGE_LAYERS = {"llama": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}
"""Architecture -> number of layers by which llama.cpp knows a 70B model, whose few attention values get more bits."""
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight"
    r"|indexer\.[kq]_proj\.weight|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|^position_embd\.weight$|^token_types\.weight$"
)
"""Matrices that are small, or that decide (routers, convolutions, mixing of states): never rounded."""
ROLES = (
    ("qkv", "attn_qkv.weight"), ("kv_b", "attn_kv_b.weight"), ("v", "attn_v.weight"), ("k", "attn_k.weight"), ("q", "attn_q.weight"),
    ("attn_out", "attn_output.weight"), ("up", "ffn_up"), ("gate", "ffn_gate"), ("down", "ffn_down"),
)  # fmt: skip
VALUES = ("v", "qkv", "kv_b")
"""What mixes values of attention, alone or among others."""


@dataclass(frozen=True)
class Facts:
    """Of the model: ``heads_per_value`` = query heads that share one key and value head (of the first layer), ``experts`` 0 = none."""

    architecture: str
    layers: int
    experts: int = 0
    heads_per_value: int = 1


@dataclass
class _State:
    """How many values, downs, gates and ups have been seen, and how many values there are."""

    level: str
    facts: Facts
    importance: bool
    tied: bool
    values: int
    seen: dict[str, int] = field(default_factory=lambda: {"value": 0, "down": 0, "gate": 0, "up": 0})

    def layer(self, role: str, name: str) -> int:
        """Layers are counted, but of models with experts they are read from the name."""
        found = re.match(r"blk\.(\d+)\.", name)
        if self.facts.experts > 1 and found:
            return int(found[1])
        return self.seen[role]


def may_quantize(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp rounds this tensor at all; what it does not stays in 32 bits."""
    return name.endswith("weight") and any(n > 1 for n in shape[:-1]) and not KEPT.search(name)


def order(name: str) -> tuple[int, bytes]:
    """llama.cpp decides in this order: what lies outside the layers, then layer by layer, each by name."""
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]) if found else -1, name.encode())


def tensor_types(
    level: Level, tensors: Mapping[str, tuple[int, ...]], facts: Facts, *, importance: bool
) -> dict[str, str]:
    """Tensor -> type (as ggml names it), for all tensors of the file. ``importance``: whether there is an importance matrix."""
    roles = {name: role_of(name) for name in tensors}
    values = sum(role in VALUES for role in roles.values())
    state = _State(level.name.upper(), facts, importance, "output.weight" not in tensors, values)
    types = {}
    for name in sorted(tensors, key=order):
        shape = tensors[name]
        if not may_quantize(name, shape):
            types[name] = "F32"
        elif level.type in ("F32", "F16", "BF16"):
            types[name] = level.type
        else:
            types[name] = fitting(_choose(state, name, roles[name], shape[-1], level.type), shape[-1])
    return types


def needs_importance(level: Level, types: Mapping[str, str]) -> list[str]:
    """The tensors that would be garbage without an importance matrix."""
    needy = NEEDS_IMPORTANCE | ({"Q2_K"} if level.name == "q2_k_s" else set())
    return [name for name, kind in types.items() if kind in needy and role_of(name) not in ("output", "embedding")]


def role_of(name: str) -> str:
    """What a tensor does, as far as the mix asks."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((role for role, part in ROLES if part in name), "other")


def block_size(kind: str) -> int:
    """How many numbers of a row a block of this type holds."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def fitting(kind: str, width: int) -> str:
    """``kind``, or what takes its place where rows of ``width`` do not divide into its blocks."""
    if width % block_size(kind) == 0:
        return kind
    other = NARROW.get(kind, "F16")
    return other if width % block_size(other) == 0 else "F16"


def more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _choose(s: _State, name: str, role: str, width: int, kind: str) -> str:
    """The type of one tensor; ``kind`` is the level's own."""
    if role == "output" or (s.tied and role == "embedding"):
        if s.facts.architecture == "falcon" or width % block_size(kind):
            return "Q8_0"
        if s.level in TINY or s.level == "IQ3_XXS":
            return "Q5_K"
        return kind if kind == "Q8_0" else "Q6_K"
    if role == "embedding":
        if s.level in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "Q2_K"
        return "IQ3_S" if s.level in ("IQ2_S", "IQ2_M", "IQ3_XXS") else kind
    if s.level in TINY:
        return _choose_tiny(s, role, kind)
    if role in VALUES:
        return _choose_value(s, kind)
    if role in ("k", "q"):
        if role == "k" and s.facts.experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(s.level, kind)
    if role == "attn_out":
        return _choose_attention_output(s, kind)
    if role in ("down", "gate", "up"):
        layer, layers = s.layer(role, name), s.facts.layers
        s.seen[role] += 1
        if role == "down":
            return _choose_down(s, kind, layer, layers)
        if s.level == "IQ3_XS" and layers // 8 <= layer < 7 * layers // 8:
            return "IQ3_XXS"
    return kind


def _choose_tiny(s: _State, role: str, kind: str) -> str:
    larger = "IQ3_S" if s.level in ("IQ2_S", "IQ2_M") else "Q2_K"
    if role in VALUES:
        s.seen["value"] += 1
        return "Q4_K" if s.facts.heads_per_value >= 4 or s.facts.experts >= 4 else larger
    if role == "k" and s.facts.experts == 8:
        return "Q4_K"
    if role == "down":
        s.seen["down"] += 1
        return larger if s.seen["down"] <= s.facts.layers // 8 else kind
    if role == "attn_out":
        if s.facts.experts == 8:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(s.level, kind)
    return kind


def _choose_value(s: _State, kind: str) -> str:
    level, shared, number = s.level, s.facts.heads_per_value >= 4, s.seen["value"]
    s.seen["value"] += 1
    if s.facts.experts == 8:
        return "Q8_0"
    if level == "Q2_K":
        kind = "Q4_K" if shared else "Q3_K"
    elif level == "IQ3_XXS":
        kind = "Q4_K" if shared else "IQ3_XXS" if s.importance else "IQ3_S"
    elif (level in ("Q2_K_S", "IQ3_XS", "IQ3_S") and shared) or level == "IQ3_M":
        kind = "Q4_K"
    elif level == "Q3_K_M":
        kind = "Q5_K" if number < 2 else "Q4_K"
    elif level == "Q3_K_L" or (level in ("IQ4_NL", "IQ4_XS") and shared) or (level == "Q4_K_S" and number < 4):
        kind = "Q5_K"
    elif level in ("Q4_K_M", "Q5_K_M") and more_bits(number, s.values):
        kind = "Q6_K"
    large = LARGE_LAYERS.get(s.facts.architecture) == s.facts.layers
    if s.facts.architecture == "llama" and s.facts.heads_per_value == 1:
        large = False
    return "Q5_K" if large and kind in ("Q3_K", "Q4_K") else kind


def _choose_down(s: _State, kind: str, layer: int, layers: int) -> str:
    level, early, falcon = s.level, layer < layers // 8, s.facts.architecture == "falcon"
    more = more_bits(layer, layers)
    if level == "Q2_K":
        return "Q3_K"
    if level == "Q2_K_S":
        return "Q4_K" if early else kind
    if level == "IQ3_XXS" and not s.importance:
        return "Q4_K" if early else "Q3_K"
    if level == "Q3_K_M":
        if layer < layers // 16:
            return "Q5_K"
        return "Q4_K" if not falcon or more else "Q3_K"
    if level == "IQ3_M" and (early or (s.facts.experts == 8 and more)):
        return "Q4_K"
    if level == "Q3_K_L":
        return "Q4_K" if falcon else "Q5_K"
    if level == "Q4_K_M" and falcon:
        return "Q6_K" if layer < layers // 16 else "Q5_K" if more else "Q4_K"
    if level in ("Q4_K_M", "Q5_K_M") and more:
        return "Q6_K"
    if early and level in ("IQ4_NL", "IQ4_XS") and not s.importance:
        return "Q5_K"
    if early and level == "Q4_K_S" and not falcon:
        return "Q5_K"
    if early and level in ("Q4_0", "Q5_0") and s.importance:
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[level]
    return kind


def _choose_attention_output(s: _State, kind: str) -> str:
    if s.facts.architecture == "falcon":
        return "Q4_K" if s.level == "Q3_K_L" else kind
    if s.facts.experts == 8:
        larger = (
            "Q2_K",
            "IQ3_XS",
            "IQ3_XXS",
            "Q3_K_S",
            "Q3_K_M",
            "IQ4_NL",
            "Q4_K_S",
            "Q4_K_M",
            "IQ3_S",
            "IQ3_M",
            "IQ4_XS",
        )
        return "Q5_K" if s.level in larger else kind
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(s.level, kind)
