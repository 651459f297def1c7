"""The settings that every kind of adapter has: which layers, what it starts from. Knows no kind of adapter."""

from __future__ import annotations

import re
from typing import Any

from pydantic import field_validator

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

REGEX = "re:"


class AdapterConfig(BaseConfig):
    """Where adapters sit and what they build on."""

    targets: tuple[str, ...] = setting(
        ("all",),
        zh="要加适配器的层：层名（可多个）；all 表示除输出层外的全部线性层；re:… 是匹配完整层名的正则表达式。",
    )
    """Layers that get an adapter: names; all = every linear layer but the output; re:… = a regular expression for the
    whole name of a layer, for example re:.*self_attn.(q|v)_proj."""
    exclude: tuple[str, ...] = setting((), zh="不加适配器的层：层名或 re:正则表达式，从 targets 中去掉。")
    """Layers left out of the targets: names or re:…, as in targets."""
    layers: tuple[int, ...] | None = setting(
        None, zh="只在这些解码层加适配器（从 0 数起，负数从末尾数）；不填为全部。", min_length=1
    )
    """Decoder layers that get adapters, counted from 0, or from the end with -1, -2, … . Default: all."""
    modules_to_save: tuple[str, ...] = setting(
        (), zh="整体训练并随适配器保存的模块名；embeddings 与 head 指输入嵌入与输出层，共享权重的模型仍保持共享。"
    )
    """Modules that are learned in full and saved with the adapter, by name; embeddings and head name the input embeddings
    and the output layer of any model. Where the model ties the two, they stay tied."""
    start_from: str | None = setting(
        None, zh="从已有适配器继续训练：文件夹、hub 名称或 run:ID[@step-N]；沿用它自己的设置。", min_length=1
    )
    """Go on with this adapter: a folder, a hub name or run:ID[@step-N]. Its own settings hold; settings given beside it that
    differ are an error."""
    merge_first: tuple[str, ...] = setting(
        (), zh="先按顺序并入基础模型的适配器（文件夹、hub 名称或 run:ID），再在其上学习新的适配器。"
    )
    """Adapters that are merged into the base first, in this order, before a fresh one is learned on top: folders, hub names
    or run:ID[@step-N]. The new adapter then needs them; chat, compare, export and merging put them in by themselves."""

    @field_validator("targets", "exclude", "modules_to_save", "merge_first", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """One text stands for a list of one; names may be written with commas between them."""
        if not isinstance(value, str):
            return value
        pattern = value.startswith(REGEX) or not re.fullmatch(r"[\w.,\s:/@~+-]*", value)
        return (value,) if pattern else tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("targets", "exclude")
    @classmethod
    def _valid_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                re.compile(pattern_of(text) or "")
            except re.error as error:
                raise ValueError(f"not a regular expression: {text!r} ({error})") from error
        if "all" in value and len(value) > 1:
            raise ValueError("'all' stands for every linear layer and takes no other names beside it")
        return value


def pattern_of(text: str) -> str | None:
    """The regular expression that ``text`` writes (``re:…``, or a text with signs that no name has), None for a name."""
    if text.startswith(REGEX):
        return text.removeprefix(REGEX)
    return text if re.search(r"[*+?()\[\]{}|^$\\]", text) else None
