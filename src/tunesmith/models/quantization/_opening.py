"""How ``from_pretrained`` must be called: for a base to quantize, for a checkpoint that is stored quantized, or for neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.config.plugins import load as load_plugin

if TYPE_CHECKING:
    import torch

PACKAGE = "tunesmith.models.quantization"


def stored_method(folder: Path) -> str | None:
    """``quant_method`` of a checkpoint that is stored quantized (gptq, awq, bitsandbytes, fp8, compressed-tensors …), else None."""
    found = _stored_settings(folder)
    return str(found.get("quant_method", "an unnamed method")) if found else None


def arguments(folder: Path, quantize: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Further arguments of ``from_pretrained``; none for a plain model. Raises UserError.

    ``quantize``: the Config of one of our kinds, or None.
    """
    method = stored_method(folder)
    if quantize is not None:
        if method is not None:
            raise UserError(
                f"model.quantize: {folder} is stored quantized already ({method})",
                hint="leave model.quantize out to train on it as it is, or name the 16-bit model",
            )
        return {"quantization_config": load_plugin(PACKAGE, quantize.kind).on_load(quantize, dtype)}
    if method is None:
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if method == "bitsandbytes":
        load_plugin(PACKAGE, "bnb").needed()
        settings = dict(_stored_settings(folder))
        if settings.get("load_in_4bit"):
            settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
        config.quantization_config = settings
        return {"config": config}
    from tunesmith.models.quantization import _loading, _stored

    _loading.register()
    make, experts = _stored.maker(folder, _stored_settings(folder))
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return {
        "config": config,
        "quantization_config": _loading.OnLoad(make, _loading.Experts(*experts) if experts else None),
    }


def _stored_settings(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # opening the model tells what is wrong with it
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    return found if isinstance(found, dict) else {}
