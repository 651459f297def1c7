"""A tiny model that opens, converts and answers in a moment: a small vocabulary is most of what makes it quick."""

from __future__ import annotations

from pathlib import Path

from model_fixtures import FAMILIES, SMALL
from test_go_template import SMOLLM2
from tiny_tokenizers import byte_level, pre_tokenizer_of, save

VOCABULARY = 1500


def small_model(folder: Path) -> Path:
    """A random llama with a tokenizer that splits as SmolLM2's does, and SmolLM2's chat template."""
    import torch
    import transformers

    from tunesmith.export.pre_tokenizers import NAMES

    chain = next(chain for chain, name in NAMES.items() if name == "smollm")
    tokenizer = byte_level(
        pre_tokenizer_of(chain), size=VOCABULARY, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    name, settings = FAMILIES["llama"]
    config = getattr(transformers, name)(**SMALL | {"vocab_size": tokenizer.get_vocab_size()} | settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # louder than the usual start, so that distributions are not flat
            parameter.mul_(15.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    save(tokenizer, folder, bos_token="<|im_start|>", chat_template=SMOLLM2)
    (folder / "LICENSE").write_text("Apache License 2.0, of the base\n", encoding="utf-8")
    return folder
