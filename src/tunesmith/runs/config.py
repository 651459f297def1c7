"""Where a run goes, what it is called, and who else is told of its figures."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import names, suggestion

TRACKERS = "tunesmith.runs.trackers"


class OutputConfig(Config):
    """The run folder."""

    name: str | None = setting(None, zh="运行的名称（默认由训练阶段与模型名组成）。", basic=True, max_length=60)
    """Name of the run; by default made of the stage and the model."""


class TrackingConfig(Config):
    """Trackers that get the figures of the run; they never stop or slow it."""

    shorthand: ClassVar[str] = "to"

    to: tuple[str, ...] = setting(
        (), zh="把指标同时发送到哪里：tensorboard、wandb、swanlab、mlflow、trackio，可写多个。", choices=names(TRACKERS)
    )
    """Where the figures are sent as well: tensorboard, wandb, swanlab, mlflow, trackio; several may be named."""
    project: str = setting("tunesmith", zh="跟踪服务中的项目名。", min_length=1)
    """Name of the project there."""
    name: str | None = setting(None, zh="跟踪服务中的运行名（默认为运行编号）。", min_length=1)
    """Name of the run there; by default its id."""
    offline: bool = setting(False, zh="只写入运行文件夹，不联网（wandb、swanlab、mlflow 可稍后同步）。")
    """Write into the run folder only, nothing is sent (wandb and swanlab can send it later)."""

    @field_validator("to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("to")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in names(TRACKERS):
                raise ValueError(f"there is no tracker {name!r}; {suggestion(name, names(TRACKERS))}")
        return value
