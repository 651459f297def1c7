"""One tiny random model of each architecture, 2 layers and a vocabulary of 96 words, with a tokenizer made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<unk>", *(f"w{i}" for i in range(90))
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 16}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
}
ROUTED = {
    **MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
WINDOW = 8
"""Of the models with sliding windows or chunks: shorter than the rows of the tests, so that it matters."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama-tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "llama3-rope": ("LlamaConfig", {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", WIDE_HEADS),
    "mistral": ("MistralConfig", {**WIDE_HEADS, "sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", {**WIDE_HEADS, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**WIDE_HEADS, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {**WIDE_HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {**GROUPED, "sliding_window": WINDOW}),
    "glm4": ("Glm4Config", WIDE_HEADS),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-alibi": ("FalconConfig", {"alibi": True, "multi_query": False}),
    "granite": ("GraniteConfig", {**GROUPED, "attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    "olmo2": ("Olmo2Config", GROUPED),
    "smollm3": ("SmolLM3Config", {**GROUPED, "no_rope_layers": [1, 0]}),
    "stablelm": ("StableLmConfig", {**GROUPED, "partial_rotary_factor": 0.5}),
    "cohere": ("CohereConfig", GROUPED),
    "starcoder2": ("Starcoder2Config", {**GROUPED, "sliding_window": WINDOW}),
    "ernie4_5": ("Ernie4_5Config", WIDE_HEADS),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {**WIDE_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    "granitemoe": ("GraniteMoeConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOssConfig", {**WIDE_HEADS, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"]}),
    "deepseek_v2": ("DeepseekV2Config", {**ROUTED, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3Config", ROUTED),
    "llama4": ("Llama4TextConfig", {**WIDE_HEADS, "attention_chunk_size": WINDOW, "num_local_experts": 4, "intermediate_size_mlp": 48, "moe_layers": [1], "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "jamba": ("JambaConfig", {**GROUPED, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}),
    "lfm2": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("Qwen3NextConfig", {**WIDE_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
}  # fmt: skip
"""Name -> config class of transformers and what differs from ``SIZES``."""


def make_family(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A random model of ``family`` in ``folder``, saved by transformers, with a tokenizer of whole words; ``changes`` of its config."""
    import torch
    import transformers

    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**SIZES | settings | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # louder than the usual start, so that what is wrong shows
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Words between spaces, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>", unk_token="<unk>",
        chat_template=TEMPLATE, additional_special_tokens=["<|user|>", "<|assistant|>"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
