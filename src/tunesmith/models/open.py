"""Open weights and tokenizers from a local folder. What a reference points to is the hub's business."""

from __future__ import annotations

import logging
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
    quantize: Any = None,
) -> Any:
    """The causal language model in ``folder``, on ``device``, weights in ``dtype``.

    ``quantize``: a config of ``models.quantization``, which packs the linear layers while they are read. A checkpoint that is
    stored quantized is opened as it is stored, and then refuses ``quantize``.

    ``attention``: ``varlen``, our own (``kernels.interface``), for packed rows, padded rows and generation; or one of transformers'.
    A model whose code knows no attention but its own keeps that. ``changes``: keys of its config to be read otherwise (RoPE scaling). Raises UserError when the folder holds no readable safetensors
    weights.
    """
    quiet()
    from transformers import AutoModelForCausalLM

    from tunesmith.models.quantization._opening import arguments
    from tunesmith.models.quantization.bnb import keep_as_stored

    if attention == "varlen":
        from tunesmith.kernels.interface import register

        attention = register()
    further = arguments(folder, quantize, dtype, trust_remote_code=trust_remote_code)
    packed = bool(further)
    if packed:
        further |= {"device_map": {"": device}}
    if changes:
        further["config"] = apply_keys(
            further.get("config") or open_config(folder, trust_remote_code=trust_remote_code), dict(changes)
        )

    def opened(attention: str | None) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code,
            local_files_only=True, use_safetensors=True, output_loading_info=True, **further,
        )  # fmt: skip

    try:
        try:
            model, told = opened(attention)
        except (KeyError, ValueError) as error:  # before a weight is read: the model has a table of its own (Falcon)
            if attention not in str(error):
                raise
            model, told = opened(None)
    except Exception as error:
        raise UserError(
            f"{folder}: the model cannot be opened: {type(error).__name__}: {_first_line(error)}",
            hint="the folder needs config.json and complete .safetensors weights",
        ) from error
    if not packed:
        return model.to(device)
    if told["missing_keys"]:
        absent = sorted(told["missing_keys"])
        raise UserError(
            f"{folder}: {len(absent)} weights of the model were not found in the form its layers have, first {absent[0]}",
            hint="a quantized mixture of experts cannot be opened yet; name the 16-bit model",
        )
    keep_as_stored(model)
    return model


def quiet() -> None:
    """Keep the libraries' own progress bars and advice out of our output; errors still come through."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|bitsandbytes)\..*")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
