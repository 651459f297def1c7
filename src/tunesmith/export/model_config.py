"""``config.json`` and ``generation_config.json`` that every consumer can read.

transformers 5 writes ``rope_parameters`` and ``dtype``; other programs (and transformers 4) read ``rope_theta``, ``rope_scaling`` and
``torch_dtype``. An export carries both spellings of the same facts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.tensor_files import read_json

# Where rope settings live in older configs besides rope_theta and rope_scaling: transformers 5 keeps them in rope_parameters.
BESIDE_ROPE = ("partial_rotary_factor",)
BEFORE_5 = {"gpt_neox": {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}}
"""Model type -> what transformers 4 calls settings of its rope."""
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
"""Keys that name Python files in a model folder."""


def load_config(folder: Path) -> Any:
    """The folder's config as transformers reads it, running no code from the folder. Raises ExportError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"transformers cannot read {folder / 'config.json'}: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="models that need code from their own folder cannot be exported",
        ) from error


def without_code(value: Any) -> Any:
    """The same JSON value without the keys that name Python files, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(inner) for key, inner in value.items() if key not in CODE_KEYS}
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return [without_code(inner) for inner in value]
    return value  # lists of words, of which a tokenizer has some hundred thousand, stay what they are


def changed_config(raw: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """``raw`` (config.json) with ``keys`` of its text part set. Keys that the file spells otherwise (GPT-2's ``n_layer``) are
    set under its own name."""
    out = copy.deepcopy(raw)
    part = out["text_config"] if isinstance(out.get("text_config"), dict) else out
    own = {"num_hidden_layers": ("n_layer", "n_layers", "num_layers"), "max_position_embeddings": ("n_positions",)}
    for key, value in keys.items():
        part[next((name for name in own.get(key, ()) if name in part and key not in part), key)] = value
    return out


def completed(raw: dict[str, Any], config: Any, dtype: str | None = None) -> dict[str, Any]:
    """``raw`` (config.json) with both spellings of rope settings, type and renamed keys, and no pointer to code.

    ``config`` is what ``load_config`` gave for it; ``dtype`` (``bfloat16`` …) is what the weights are stored as.
    """
    out = without_code(copy.deepcopy(raw))
    dtype = dtype or out.get("dtype") or out.get("torch_dtype")
    for part, read in [(out, config), (out.get("text_config"), getattr(config, "text_config", None))]:
        if not isinstance(part, dict) or read is None:
            continue
        if dtype is not None:
            part["dtype"] = part["torch_dtype"] = dtype
        for name, now in (getattr(read, "attribute_map", None) or {}).items():
            if part.get(now) is not None:  # a key that was renamed since (num_experts): both names say the same
                part.setdefault(name, part[now])
        rope = getattr(read, "rope_parameters", None)
        if rope:
            _both_ropes(part, copy.deepcopy(dict(rope)))
    return out


def _both_ropes(part: dict[str, Any], rope: dict[str, Any]) -> None:
    part["rope_parameters"] = rope
    layered = all(isinstance(value, dict) for value in rope.values())
    main = rope.get("full_attention") or next(iter(rope.values())) if layered else rope
    if layered and "sliding_attention" in rope and "rope_theta" in rope["sliding_attention"]:
        part["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if main.get("rope_theta") is not None:
        part["rope_theta"] = main["rope_theta"]
    for key in BESIDE_ROPE:
        if main.get(key) is not None:
            part[key] = main[key]
    for key, older in BEFORE_5.get(str(part.get("model_type")), {}).items():
        if main.get(key) is not None:
            part[older] = main[key]
    kind = main.get("rope_type", "default")
    if kind == "default":
        part.pop("rope_scaling", None)
    else:
        scaling = {key: value for key, value in main.items() if key not in ("rope_theta", *BESIDE_ROPE)}
        part["rope_scaling"] = scaling


def stop_tokens(folder: Path, extra: Iterable[int] = ()) -> list[int]:
    """Ids that end an answer: of generation_config.json, else of config.json, then ``extra``; none twice."""
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        if found is None and (folder / name).exists():
            found = read_json(folder / name).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return list(dict.fromkeys([*(int(i) for i in ids), *(int(i) for i in extra)]))


def generation_config(folder: Path, stops: Sequence[int]) -> dict[str, Any]:
    """The folder's generation_config.json (or one made from config.json) with ``stops`` as ``eos_token_id``."""
    path = folder / "generation_config.json"
    out = without_code(read_json(path)) if path.exists() else {}
    out.pop("_from_model_config", None)
    config = read_json(folder / "config.json")
    for key in ("bos_token_id", "pad_token_id"):
        if out.get(key) is None and config.get(key) is not None:
            out[key] = config[key]
    if stops:
        out["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    return out


def tied_names(config: Any) -> dict[str, str]:
    """Output tensor -> the tensor it shares, for models with tied embeddings; empty when they are not tied."""
    if not getattr(config.get_text_config(), "tie_word_embeddings", getattr(config, "tie_word_embeddings", False)):
        return {}
    tied = getattr(model_class(config), "_tied_weights_keys", None)
    return dict(tied) if isinstance(tied, dict) else {}


def model_class(config: Any) -> Any:
    """The transformers class that holds this config's weights. Raises ExportError."""
    import transformers

    for name in config.architectures or []:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    try:
        return transformers.AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ExportError(f"transformers knows no language model of type {config.model_type}") from None
