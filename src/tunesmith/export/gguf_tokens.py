"""What a GGUF must say about its tokenizer, from the Hugging Face side; and the proof that llama.cpp reads it so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError, UserError
from tunesmith.export.load_back import PROBES

TEMPLATE = "tokenizer.chat_template"
BOS, EOS, EOT, EOM = (f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom"))
ADD_BOS, ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"

# The splitting expressions of the pre-tokenizers that most models use, as Hugging Face writes them, and llama.cpp's name for each.
# llama.cpp's converter knows tokenizers by a hash that depends on the vocabulary too; these serve vocabularies it has not seen.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_BY_EXPRESSION = {_QWEN2: "qwen2", _LLAMA3: "llama-bpe"}


def metadata(tokenizer: Any, stops: list[int]) -> dict[str, Any]:
    """Metadata key -> value (id, flag or text) as ``tokenizer`` and ``stops`` (ids that end an answer) demand."""
    eos = tokenizer.eos_token_id
    if stops and eos not in stops:
        eos = stops[0]
    plain, special = (tokenizer("a", add_special_tokens=add).input_ids for add in (False, True))
    found: dict[str, Any] = {
        ADD_BOS: bool(special) and special[0] == tokenizer.bos_token_id and special[0] != plain[0],
        ADD_EOS: bool(special) and special[-1] == tokenizer.eos_token_id and special[-1] != plain[-1],
    }
    if tokenizer.bos_token_id is not None:
        found[BOS] = int(tokenizer.bos_token_id)
    if eos is not None:
        found[EOS] = int(eos)
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template:
        found[TEMPLATE] = str(template)
    return found


def pre_tokenizer_name(tokenizer: Any) -> str | None:
    """llama.cpp's name for the way ``tokenizer`` splits text before merging, if it is one of the common ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    found = json.loads(backend.to_str()).get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        return _BY_EXPRESSION.get(steps[0].get("pattern", {}).get("Regex", ""))
    return None


def check_tokens(path: Path, tokenizer: Any, stops: list[int]) -> list[int]:
    """Compare llama.cpp's reading of ``path`` with ``tokenizer``. Returns the stops that llama.cpp would not stop at.

    Raises ExportError when the two tokenize any probe (or a rendered conversation) differently.
    """
    from tunesmith.chat.llama_library import library
    from tunesmith.chat.llama_model import Vocabulary, load_model

    try:
        model = load_model(path, vocabulary_only=True)
    except UserError as error:
        raise ExportError(
            f"llama.cpp cannot read the GGUF that was written: {error.message}", hint=error.hint
        ) from error
    try:
        vocabulary = Vocabulary(model)
        for probe in [*PROBES, *_conversation(tokenizer)]:
            ours = vocabulary.tokenize(probe)
            theirs = tokenizer(probe, add_special_tokens=False).input_ids
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
                raise ExportError(
                    f"llama.cpp reads {probe!r} as other tokens than the model was trained on (from token {at}: "
                    f"{ours[at : at + 4]} instead of {theirs[at : at + 4]})",
                    hint="llama.cpp has no pre-tokenizer for this tokenizer, so the GGUF would answer differently; it was not kept",
                )
        return [token for token in stops if not vocabulary.ends(token)]
    finally:
        library().llama_model_free(model)


def _conversation(tokenizer: Any) -> list[str]:
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "What is 12 × 34? 你好 🙂"}, {"role": "assistant", "content": "408"}]
    try:
        return [tokenizer.apply_chat_template(turns, tokenize=False)]
    except Exception:  # a template that wants other roles is tried where conversations are rendered, not here
        return []
