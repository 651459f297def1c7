"""GGUF -> a folder of bf16 safetensors with config and tokenizer, so that a GGUF can be trained and exported like any model.

The weights are dequantized by transformers. What its tokenizer conversion does not carry over is mended here and checked:
the pre-tokenizer of the family, and the special tokens that the metadata names.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunesmith.config.errors import UserError
from tunesmith.config.files import write_json
from tunesmith.config.home import models_folder
from tunesmith.config.progress import SILENT, Progress
from tunesmith.models.open import quiet

ORIGIN = "origin.json"
"""In a dequantized folder: which file it came from."""


def safetensors_of(gguf: Path, progress: Progress = SILENT, licenses: tuple[Path, ...] = ()) -> Path:
    """The folder with the dequantized weights of ``gguf``, made on first use and kept in the model cache.

    Raises UserError for a GGUF that is no model, and when the family's tokenizer cannot be carried over faithfully.
    """
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = models_folder() / "from-gguf" / f"{gguf.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            temporary = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                _dequantize(gguf, temporary, progress)
                for file in licenses:
                    shutil.copyfile(file, temporary / file.name)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_import(folder: Path) -> bool:
    """Whether a model's folder was made from a GGUF here."""
    return folder.parent == models_folder() / "from-gguf"


def _dequantize(gguf: Path, out: Path, progress: Progress) -> None:
    import torch

    quiet()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    metadata = _metadata(gguf)
    if "general.architecture" not in metadata or "tokenizer.ggml.model" not in metadata:
        raise UserError(
            f"{gguf} is a GGUF file, but no model: it names no architecture or has no tokenizer",
            hint="an importance matrix or an adapter lies in such files too; name the file of the model itself",
        )
    progress.start(f"dequantizing {gguf.name} to bf16")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    _mend_tokenizer(tokenizer, metadata, gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    config = model.config
    if hasattr(config, "rms_norm_eps"):
        config.rms_norm_eps = _short_float(config.rms_norm_eps)
    eos = tokenizer.eos_token_id
    for holder in (config, model.generation_config):
        holder.eos_token_id, holder.bos_token_id, holder.pad_token_id = (
            eos,
            tokenizer.bos_token_id,
            tokenizer.pad_token_id,
        )
    context = next((v for k, v in metadata.items() if k.endswith(".context_length")), None)
    if context:
        tokenizer.model_max_length = int(context)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / ORIGIN, {"gguf": str(gguf), "bytes": gguf.stat().st_size})
    progress.finish()


def _metadata(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    wanted = ("tokenizer.ggml.pre", "tokenizer.ggml.model", "_token_id", "context_length", "general.architecture")
    try:
        reader = GGUFReader(str(gguf))
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, struct.error) as error:
        raise UserError(
            f"{gguf} cannot be read as GGUF: {error}", hint="the file is damaged or not whole; fetch it again"
        ) from error
    return {name: field.contents() for name, field in reader.fields.items() if name.endswith(wanted)}


def _mend_tokenizer(tokenizer: Any, metadata: dict[str, Any], gguf: Path) -> None:
    """Give a byte-level BPE tokenizer the pre-tokenizer its family trained with, and the metadata's special tokens."""
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        name = metadata.get("tokenizer.ggml.pre", "default")
        if name not in PRE_TOKENIZERS:
            raise UserError(
                f"{gguf}: its pre-tokenizer {name!r} cannot be carried over, so text would be split differently from training",
                hint="use the model's safetensors version (hf:org/name) as the base",
            )
        tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]()
    for word in ("bos", "eos"):
        token_id = metadata.get(f"tokenizer.ggml.{word}_token_id")
        if token_id is not None:
            setattr(tokenizer, f"{word}_token", tokenizer.convert_ids_to_tokens(int(token_id)))


def _digits_then_bytes() -> Any:
    """Every digit alone, then GPT-2's splitting (SmolLM, StarCoder)."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _gpt2() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False)


def _split_by(pattern: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    return Sequence([Split(Regex(pattern), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": _digits_then_bytes,
    "starcoder": _digits_then_bytes,
    "gpt-2": _gpt2,
    "default": _gpt2,
    "llama-bpe": lambda: _split_by(_WORDS % "{1,3}"),
    "qwen2": lambda: _split_by(_WORDS % ""),
}
"""Name in the GGUF (``tokenizer.ggml.pre``) -> the published pre-tokenizer of the family."""


def _short_float(value: float) -> float:
    """A float32 written out as a double (9.999999747378752e-06) as the number that was meant (1e-05)."""
    import numpy as np

    return float(str(np.float32(value)))
