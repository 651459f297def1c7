"""Small tokenizers in the exact form of each family's tokenizer.json, trained here on this project's own texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZE = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>")
"""The last is not special: it is an added token that people see."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts() -> list[str]:
    """What the vocabularies are learned from: English, Chinese, code, digits."""
    return [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md", "pyproject.toml")]


def byte_level(
    pre_tokenizer: Any = None, *, normalizer: Any = None, ignore_merges: bool = False, size: int = SIZE, special: Sequence[str] = SPECIAL
) -> Any:
    """A byte-level BPE with ``pre_tokenizer`` (default: GPT-2's), its special tokens first: ids 0, 1, 2 …"""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Write ``tokenizer`` into ``folder`` as transformers does, with a ChatML template."""
    from transformers import PreTrainedTokenizerFast

    known = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known | settings).save_pretrained(folder)
