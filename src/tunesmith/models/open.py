"""Open weights and tokenizers from a local folder. What a reference points to is the hub's business."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.models.changes import apply_keys

if TYPE_CHECKING:
    import torch


def open_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in ``folder``. Raises UserError when there is none that can be read."""
    quiet()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"{folder}: the tokenizer cannot be opened: {type(error).__name__}: {_first_line(error)}",
            hint="the folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json",
        ) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The config of the model in ``folder``. Raises UserError when it cannot be read."""
    quiet()
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"{folder}: the model's config.json cannot be read: {type(error).__name__}: {_first_line(error)}",
            hint="the folder needs config.json and complete .safetensors weights",
        ) from error


def open_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "varlen",
    trust_remote_code: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """The causal language model in ``folder``, on ``device``, weights in ``dtype``.

    ``attention``: ``varlen``, our own (``kernels.interface``), for packed rows, padded rows and generation; or one of transformers'.
    A model whose code knows no attention but its own keeps that. ``changes``: keys of its config to be read otherwise (RoPE scaling). Raises UserError when the folder holds no readable safetensors
    weights.
    """
    quiet()
    from transformers import AutoModelForCausalLM

    if attention == "varlen":
        from tunesmith.kernels.interface import register

        attention = register()
    if changes:
        config = apply_keys(open_config(folder, trust_remote_code=trust_remote_code), dict(changes))

    def opened(attention: str | None) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, **({"config": config} if changes else {}), dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code,
            local_files_only=True, use_safetensors=True,
        )  # fmt: skip

    try:
        try:
            model = opened(attention)
        except (KeyError, ValueError) as error:  # before a weight is read: the model has a table of its own (Falcon)
            if attention not in str(error):
                raise
            model = opened(None)
    except Exception as error:
        raise UserError(
            f"{folder}: the model cannot be opened: {type(error).__name__}: {_first_line(error)}",
            hint="the folder needs config.json and complete .safetensors weights",
        ) from error
    return model.to(device)


def quiet() -> None:
    """Keep the libraries' own progress bars and advice out of our output; errors still come through."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\..*")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
