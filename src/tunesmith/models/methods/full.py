"""Full fine-tuning: every weight is learned.

A checkpoint is a complete model folder (config.json, generation_config.json, safetensors) that transformers opens as it is. Learned
weights lie in it once, in the numbers they are learned in (fp32 masters, so that a resumed run goes on bit for bit); the model computes
with their rounding. Weights that are left out of learning keep the model's own numbers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, field_validator

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Config(BaseConfig):
    """Every weight of the model is learned."""

    model_config = ConfigDict(json_schema_extra={"zh": "全参数微调：模型的每个权重都参与学习。"})

    kind: Literal["full"] = "full"
    """Full fine-tuning."""
    freeze: tuple[str, ...] = setting((), zh="不学习的部分：权重名称的一段（如 embed_tokens）或正则表达式。")
    """Parts that are left as they are: a part of a weight's name (embed_tokens), or a regular expression."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def apply(model: Any, config: Config, *, base_name: str, new_rows: tuple[int, ...] = ()) -> Any:
    """``model`` with every weight learned but those of ``config.freeze``. Raises ConfigError.

    ``new_rows``: token ids that the base did not have; their embeddings must be learned.
    """
    from tunesmith.models.naming import parameters_named, refuse_quantized

    refuse_quantized(model, "full")
    model.requires_grad_(True)
    for parameter in parameters_named(model, config.freeze, "method.freeze"):
        parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("method.freeze leaves no weight to learn", hint="name fewer parts")
    if new_rows and not model.get_input_embeddings().weight.requires_grad:
        raise ConfigError(
            "method.freeze keeps the embeddings from learning, but model.add_tokens gives them new rows",
            hint="leave the embeddings out of method.freeze",
        )
    return model


def save(model: Any, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the complete model. ``state``: the learned values by parameter name of ``model``."""
    from tunesmith.models.stored import write_tensors

    kept = {name: p for name, p in model.named_parameters() if name not in state}
    write_tensors(folder, {**state, **kept, **_buffers(model)})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        # not its save_pretrained, which refuses what some models' own files say (a temperature without sampling)
        model.generation_config.to_json_file(folder / "generation_config.json", use_diff=True)


def load_state(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The learned values by parameter name of ``model``: what ``save`` was given. Raises UserError."""
    from tunesmith.models.stored import read_tensors, state_of

    return state_of(folder, read_tensors(folder), model)


def _buffers(model: Any) -> dict[str, torch.Tensor]:
    """Tensors that belong to the model and are no parameters (the few that are saved)."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
