"""The last look at a finished adapter folder: peft alone puts it on the base, and every number is the one that was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.export.adapters import WEIGHTS
from tunesmith.export.experts import empty_model
from tunesmith.export.load_back import load_tokenizer, quiet


def check_adapter(folder: Path, base: Path, template: str | None) -> dict[str, Any]:
    """Load the adapter in ``folder`` with peft on the ``base`` without its weights, and compare what it holds with the file.

    Returns figures for the report. Raises ExportError with the first difference.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS)
    with quiet():
        try:
            model = PeftModel.from_pretrained(
                _hollow(base), str(folder), autocast_adapter_dtype=False, local_files_only=True
            )
            found = get_peft_model_state_dict(model, save_embedding_layers=False)
        except Exception as error:
            raise ExportError(f"peft cannot load the exported adapter: {str(error).splitlines()[0]}") from error
    odd = sorted(found.keys() ^ stored.keys())
    if odd:
        raise ExportError(f"peft reads other weights than the exported adapter holds, first {odd[0]}")
    for name, tensor in stored.items():
        if not torch.equal(found[name], tensor):
            raise ExportError(f"peft does not read {name} of the exported adapter as it was learned")
    if template is not None and load_tokenizer(folder).chat_template != template:
        raise ExportError("the exported tokenizer does not carry the chat template it was given")
    return {"loads": True, "tensors": len(stored)}


def _hollow(base: Path) -> Any:
    """The model of ``base``, every weight of it one zero that is shown in all places: a whole model in no memory."""
    import torch

    model = empty_model(base)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return model


def why_not_vllm(config: dict[str, Any]) -> str | None:
    """Why vLLM's loader refuses an adapter of this adapter_config.json; None when it takes it."""
    if config.get("peft_type") != "LORA":
        return f"it knows LoRA only, not {config.get('peft_type')}"
    for key, words in (("modules_to_save", "modules that were trained in full"), ("use_dora", "DoRA"),
                       ("target_parameters", "adapters on fused experts"), ("trainable_token_indices", "trained tokens")):  # fmt: skip
        if config.get(key):
            return f"it knows no {words}"
    return "it knows no biases" if config.get("bias", "none") != "none" else None
