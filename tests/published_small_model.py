"""A tokenizer of a few hundred words, trained in a moment: any text is encoded without loss, in bytes where need be."""

from __future__ import annotations

import json
from functools import cache
from typing import Any


@cache
def small_model(sentencepiece: bool) -> Any:
    """A few hundred words over bytes (GPT-2's way), or over "▁" with bytes as the last resort (SentencePiece's way)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = [
        "the user asks and the assistant answers what is the weather in Paris today, system user assistant model"
    ] * 9
    if not sentencepiece:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
        return tokenizer
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=120))
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in learned["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
