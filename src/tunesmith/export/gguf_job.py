"""All that the converting process must know of one model, decided before anything is written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tunesmith.export.converter import known_pre_tokenizer
from tunesmith.export.gguf_settings import predicts_ahead, settings_for
from tunesmith.export.gguf_tokens import conversation, metadata, model_name
from tunesmith.export.gguf_vocabulary import vocabulary


@dataclass(frozen=True)
class Prepared:
    """``job``: keys for convert_process.py (a type and ``metadata`` are added to them). ``metadata``: what the file must say.
    ``warnings``: sentences for the person, before the work; ``normalizer``: a Unicode form that llama.cpp does not apply."""

    job: dict[str, Any]
    metadata: dict[str, Any]
    warnings: list[str]
    normalizer: str | None

    def told(self, rare: list[str]) -> list[str]:
        """Sentences for the person about tokens, after the work. ``rare``: of ``check_tokens``."""
        lines = []
        if self.normalizer:
            lines.append(
                f"note: the tokenizer puts text into Unicode form {self.normalizer}, llama.cpp leaves it as it is typed"
            )
        if rare:
            lines.append(
                f"warning: llama.cpp splits some text in other tokens than the model was trained on: {', '.join(rare)}"
            )
        return lines


def prepare(name: str, names: Collection[str], config: Any, tokenizer: Any, stops: list[int]) -> Prepared:
    """For the model called ``name``, with tensors ``names``, transformers' ``config`` and ``tokenizer``, ending answers at ``stops``.

    Raises ExportError where llama.cpp cannot compute the model or read its tokenizer.
    """
    text, settings = config.get_text_config(), settings_for(config)
    words = vocabulary(tokenizer, text.vocab_size, known_pre_tokenizer(tokenizer), conversation(tokenizer))
    job = {
        "name": model_name(name, tokenizer),
        "settings": settings.words,
        "predicts_ahead": predicts_ahead(names, text),
        "vocabulary": words.as_job(),
    }
    found = settings.metadata | metadata(tokenizer, stops, getattr(text, "bos_token_id", None))
    return Prepared(job, found, [f"warning: {line}" for line in settings.warnings], words.normalizer)
