"""Freezing: some layers are learned, the rest stays as it is. And block expansion: new layers between the old ones are learned.

A checkpoint holds only what was learned: ``trained_weights.safetensors`` (values by parameter name) and ``trained_weights.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Config(BaseConfig):
    """Some layers are learned, or new ones between them."""

    model_config = ConfigDict(json_schema_extra={"zh": "冻结微调：只学习部分层，或在层间插入新层来学习。"})

    kind: Literal["freeze"] = "freeze"
    """Some layers are learned, the rest stays as it is."""
    layers: int | None = setting(None, zh="学习最后几层（正数）或最前几层（负数）；默认 2。", basic=True)
    """How many layers are learned: the last ones, or the first ones when negative. Default: 2."""
    modules: tuple[str, ...] = setting(("all",), zh="这些层里学习哪些模块（名称）；all 表示整层。")
    """Which modules of these layers are learned, by name (self_attn, mlp, q_proj …); all = the whole layers."""
    extra: tuple[str, ...] = setting((), zh="另外学习的模块：embed_tokens、lm_head、norm 等名称或正则表达式。")
    """What is learned besides: embed_tokens, lm_head, norm … by name or regular expression."""
    expand: int | None = setting(None, zh="块扩展：在层间插入这么多个新层，只学习新层（LLaMA-Pro）。", ge=1)
    """Block expansion: so many new layers are put between the old ones, and only they are learned (LLaMA Pro)."""

    @field_validator("modules", "extra", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> Config:
        if self.expand is not None and (self.layers is not None or self.modules != ("all",)):
            raise ValueError("expand learns the new layers, whole; leave out layers and modules")
        if self.layers == 0 and not self.extra:
            raise ValueError("layers is 0 and extra is empty, so nothing would be learned")
        return self


def apply(model: Any, config: Config, *, base_name: str, new_rows: tuple[int, ...] = ()) -> Any:
    """``model`` with the chosen layers learned and all else frozen, expanded if asked. Raises ConfigError.

    ``new_rows``: token ids that the base did not have; the embeddings they lie in are learned then.
    """
    from tunesmith.models.expansion import blocks_of, expand
    from tunesmith.models.naming import parameters_named, refuse_quantized
    from tunesmith.models.trained import Form, set_form
    from tunesmith.models.vocabulary import row_layers

    refuse_quantized(model, "freeze")
    growth = expand(model, config.expand) if config.expand is not None else None
    model.requires_grad_(False)
    blocks = blocks_of(model)[1]
    chosen = growth.new if growth is not None else _places(config.layers if config.layers is not None else 2, len(blocks))
    for place in chosen:
        whole = list(blocks[place].parameters())
        for parameter in whole if config.modules == ("all",) else _within(blocks[place], config.modules):
            parameter.requires_grad_(True)
    extra = (*config.extra, *(row_layers(model) if new_rows else ()))
    for parameter in parameters_named(model, extra, "method.extra"):
        parameter.requires_grad_(True)
    set_form(model, Form(base_name, growth))
    return model


def _places(count: int, there: int) -> range:
    """The last ``count`` of ``there`` layers, or the first ones when it is negative."""
    if abs(count) > there:
        raise ConfigError(f"method.layers is {count}, but the model has only {there} layers")
    return range(there - count, there) if count > 0 else range(-count)


def _within(block: Any, modules: tuple[str, ...]) -> list[Any]:
    from tunesmith.models.naming import parameters_named

    return parameters_named(block, modules, "method.modules")


def save(model: Any, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write what was learned. ``state``: its values by parameter name of ``model``."""
    from tunesmith.models.trained import form_of, write_trained

    write_trained(folder, state, form_of(model))


def load_state(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The learned values by parameter name of ``model``: what ``save`` was given. Raises UserError."""
    from tunesmith.models.stored import read_tensors, state_of
    from tunesmith.models.trained import STEM

    return state_of(folder, read_tensors(folder, STEM), model)
