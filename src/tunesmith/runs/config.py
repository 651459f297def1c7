"""Where a run goes and what it is called."""

from __future__ import annotations

from tunesmith.config.base import Config, setting


class OutputConfig(Config):
    """The run folder."""

    name: str | None = setting(None, zh="运行的名称（默认由训练阶段与模型名组成）。", basic=True, max_length=60)
    """Name of the run; by default made of the stage and the model."""
