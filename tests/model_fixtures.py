"""Tiny random models with a real tokenizer, and adapters for them: made from configs, never downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama3-rope": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 32, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {}),
}  # fmt: skip


def few_words(smol: Path, folder: Path, size: int = 4096) -> Path:
    """SmolLM2's tokenizer with the first ``size`` of its tokens, in the new ``folder``: its merges are learned in the order of their ids, so the
    shorter vocabulary is whole. What reads or writes a vocabulary takes a twelfth of the time."""
    folder.mkdir(parents=True)
    for file in TOKENIZER[1:]:
        shutil.copyfile(smol / file, folder / file)
    raw = json.loads((smol / "tokenizer.json").read_text(encoding="utf-8"))
    kept = {token: index for token, index in raw["model"]["vocab"].items() if index < size}
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in raw["model"]["merges"]]
    raw["model"] |= {"vocab": kept, "merges": [merge for merge in merges if "".join(merge) in kept]}
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def make_model(smol: Path, folder: Path, family: str, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """A random model of ``family`` saved by transformers into ``folder``, with the tokenizer of ``smol`` (or of ``few_words``) beside it."""
    import torch
    import transformers

    name, settings = FAMILIES[family]
    vocabulary = json.loads((smol / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    config = getattr(transformers, name)(**SMALL | {"vocab_size": len(vocabulary)} | settings | changes)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():  # louder than the usual start, so that distributions are not flat
            parameter.mul_(15.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copyfile(smol / file, folder / file)
    (folder / "LICENSE").write_text("Apache License 2.0, of the base\n", encoding="utf-8")
    return folder


def make_adapter(base: Path, folder: Path, dtype: str = "float32", seed: int = 1, **settings: Any) -> Path:
    """A LoRA adapter for ``base`` with random A and B, saved by peft."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    defaults: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    wrapped = get_peft_model(model, LoraConfig(**defaults | settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(folder)
    return folder


def peft_merge(base: Path, adapter: Path, dtype: str = "float32", **how: Any) -> Any:
    """The oracle: the model merged by peft itself."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(model, adapter).merge_and_unload(**how)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
