"""Tiny random models of every architecture with a small tokenizer of real form, for GGUF; and how far llama.cpp is from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import tiny_tokenizers

FOUR_LAYERS = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}
DEFAULT_SCALE = {"query_pre_attn_scalar": 16}
LIKE_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": DEFAULT_SCALE,
    "gemma3": DEFAULT_SCALE,
    "phi3": {"sliding_window": None},
    "smollm3": FOUR_LAYERS,
    "cohere": {"tie_word_embeddings": True},
    "starcoder2": {"sliding_window": None},
    "mamba": {"intermediate_size": 64},
    "qwen3_moe": {"norm_topk_prob": True},
    "llama4": {
        **FOUR_LAYERS, "attention_chunk_size": 8192, "moe_layers": None, "interleave_moe_layer_step": 2, "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    },
}  # fmt: skip
"""What the families' published models have and llama.cpp takes for granted, where the tiny ones of ``families`` differ."""
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi3-longrope": ("Phi3Config", {**families.GROUPED, "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 256, "partial_rotary_factor": 1.0}}),
    "qwen2_moe": ("Qwen2MoeConfig", {**families.GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}),
    "cohere2": ("Cohere2Config", {**families.GROUPED, "sliding_window": families.WINDOW, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True}),
    "olmo3": ("Olmo3Config", {**families.GROUPED, "sliding_window": families.WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "exaone4": ("Exaone4Config", {**families.GROUPED, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "hunyuan": ("HunYuanDenseV1Config", families.WIDE_HEADS),
    "yarn": ("LlamaConfig", {**families.GROUPED, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}}),
    "gpt2": ("GPT2Config", {"n_inner": 48}),
    "seed_oss": ("SeedOssConfig", families.WIDE_HEADS),
    "nemotron": ("NemotronConfig", {**families.GROUPED, "partial_rotary_factor": 0.5}),
    "gpt_bigcode": ("GPTBigCodeConfig", {}),
    "falcon_h1": ("FalconH1Config", {
        **families.GROUPED, "head_dim": 16, "tie_word_embeddings": False, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
        "embedding_multiplier": 5.65, "lm_head_multiplier": 0.04, "key_multiplier": 0.39, "attention_out_multiplier": 0.94, "mlp_multipliers": [0.88, 0.59],
        "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.23, "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.41],
    }),
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (config, {**how, **LIKE_LLAMA_CPP.get(name, {})}) for name, (config, how) in families.FAMILIES.items()},
    **MORE,
}
TEXT = "In 2024, 12 quick foxes  jumped. 你好，世界！🙂\ndef f(x):\n    return x ** 2\n" * 4
REFUSED = ("falcon-alibi",)
EXPERTS = [f"blk.*.ffn_{part}_exps.weight" for part in ("down", "gate", "up")]
CUT = ["blk.*.attn_k_b.weight", "blk.*.attn_v_b.weight"]
NOT_COMPARED: dict[str, list[str]] = {
    **dict.fromkeys(("mixtral", "qwen3_moe", "qwen2_moe", "granitemoe", "llama4"), EXPERTS),
    "gpt_neox": ["blk.*.attn_qkv.bias", "blk.*.attn_qkv.weight"],
    "gpt_oss": ["blk.*.attn_sinks.weight", *sorted(kind.replace("weight", end) for kind in EXPERTS for end in ("bias", "weight"))],
    "deepseek_v2": [*CUT, *EXPERTS],
    "deepseek_v3": [*CUT, "blk.*.exp_probs_b.bias", *EXPERTS],
    "mamba": ["blk.*.ssm_a", "blk.*.ssm_conv1d.weight"],
    "jamba": [*EXPERTS, "blk.*.ssm_a", "blk.*.ssm_conv1d.weight"],
    "lfm2": ["blk.*.shortconv.conv.weight"],
    "qwen3_next": ["blk.*.attn_gate.weight", "blk.*.attn_qkv.weight", *EXPERTS, "blk.*.ssm_a", "blk.*.ssm_conv1d.weight", "blk.*.ssm_dt.bias"],
    "falcon_h1": ["blk.*.ssm_a", "blk.*.ssm_conv1d.weight", "blk.*.ssm_d", "blk.*.ssm_dt.bias"],
}  # fmt: skip
"""Kinds of tensors that the converter stacks, cuts, computes or arranges in a way of the family. Every other is compared with its source."""


def make(
    folder: Path,
    family: str,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: Any = None,
    loud: float = 4.0,
    **changes: Any,
) -> Path:
    """A random model of ``family`` saved by transformers, with ``tokenizer`` (default: GPT-2's form) beside it."""
    import torch
    import transformers

    name, settings = FAMILIES[family]
    own = {
        "vocab_size": tiny_tokenizers.SIZE,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 256,
    }
    config = getattr(transformers, name)(**families.SIZES | own | settings | changes)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():  # louder than the usual start, so that what is wrong shows
            parameter.mul_(loud if parameter.ndim > 1 else 1.0)
            if parameter.ndim == 1:  # norms and biases that a mapping could lose
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tiny_tokenizers.save(tokenizer or tiny_tokenizers.byte_level(), folder)
    return folder


def distance(folder: Path, file: Path, tokens: int = 200) -> Any:
    """``Parity`` of llama.cpp with transformers in float32, over the first ``tokens`` of ``TEXT`` (200: more than any sliding window here)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.evaluate.parity import compare_distributions

    ids = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids[:tokens]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1).numpy()
    with LlamaCppEngine(file, threads=1, n_ctx=256) as engine:
        return compare_distributions(wanted, engine.logprobs(ids))
