"""The last look at a finished model folder: transformers finds every weight, and the tokenizer is the base's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.model_config import load_config, model_class

PROBES = (
    "Hello, world!",
    " two  spaces,   three\n\n\ttab",
    "In 2024: 3.14159, 1,000,000 and 0x7f",
    "a  42 b   7\n  1. x",  # runs of spaces before digits: the only place where some pre-tokenizers differ
    "你好，世界！こんにちは 안녕하세요",
    "🙂👩‍👩‍👧 naïve café Ünïcode",
    "def f(x):\n    return x**2  # it's",
)
"""Texts over which tokenizers are compared: digits, runs of spaces, Chinese, emoji, code, contractions."""


def check_loads(folder: Path, wanted: Any, words: Path, template: str | None) -> dict[str, Any]:
    """Load ``folder`` on the meta device (headers are read, weights are not), and compare it with what it was made from.

    A folder that is stored quantized is read by our own layers, which need none of the packages that transformers would ask for.
    ``wanted``: transformers' config that it must read as; ``words``: the folder whose tokenizer it must have. Returns the figures for the report. Raises ExportError with the first difference.
    """
    config = load_config(folder)
    for key in ("rope_parameters", "vocab_size", "num_hidden_layers", "max_position_embeddings"):
        here, there = (getattr(c.get_text_config(), key, None) for c in (config, wanted))
        if here != there:
            raise ExportError(f"the exported config reads {key} = {here}, not {there} as the model it was made from")
    with quiet():
        try:
            import torch

            from tunesmith.models.quantization._opening import arguments

            _, found = model_class(config).from_pretrained(
                folder,
                device_map="meta",
                dtype="auto",
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                **arguments(folder, None, torch.float32),
            )
        except Exception as error:
            raise ExportError(f"transformers cannot load the exported model: {error}") from error
    wrong = {kind: sorted(map(str, names))[:3] for kind, names in found.items() if names and kind != "unexpected_keys"}
    if wrong:
        raise ExportError(f"transformers does not find every weight in the exported model: {wrong}")
    new, old = load_tokenizer(folder), load_tokenizer(words)
    for probe in PROBES:
        if new(probe).input_ids != old(probe).input_ids:
            raise ExportError(f"the exported tokenizer reads {probe!r} differently from the one it was made from")
    if template is not None and new.chat_template != template:
        raise ExportError("the exported tokenizer does not carry the chat template it was given")
    return {"loads": True, "unexpected": len(found.get("unexpected_keys", ()))}


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, running no code from the folder. Raises ExportError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ExportError(f"transformers cannot load the tokenizer of {folder}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and warnings, put back afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
