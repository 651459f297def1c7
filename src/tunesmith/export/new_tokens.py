"""New tokens in a tokenizer's files: added to what is there, so that everything else stays as its authors wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.load_back import load_tokenizer
from tunesmith.export.tensor_files import read_json
from tunesmith.models.changes import NewToken


def write_tokens(folder: Path, tokens: Sequence[NewToken]) -> None:
    """Add ``tokens`` to the tokenizer files in ``folder`` and read it back. Raises ExportError when it reads them otherwise.

    tokenizer.json holds them for transformers and llama.cpp; where a sentencepiece file is the vocabulary, llama.cpp takes
    added tokens from tokenizer_config.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        load_tokenizer(folder).save_pretrained(folder)  # a fast tokenizer made from the files of a slow one
    whole = read_json(path)
    forms = {str(token.id): _form(token) for token in tokens}
    whole["added_tokens"] = sorted(
        [*whole.get("added_tokens", ()), *({"id": int(number), **form} for number, form in forms.items())],
        key=lambda t: t["id"],
    )
    _write(path, whole)
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if "added_tokens_decoder" in settings or (folder / "tokenizer.model").is_file():
        settings["added_tokens_decoder"] = {**settings.get("added_tokens_decoder", {}), **forms}
        _write(folder / "tokenizer_config.json", settings)
    made = load_tokenizer(folder)
    for token in tokens:
        if made(token.text, add_special_tokens=False).input_ids != [token.id]:
            raise ExportError(f"{folder}: the saved tokenizer does not read {token.text!r} as the token {token.id}")


def _form(token: NewToken) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token.text, **plain, "special": token.special}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
