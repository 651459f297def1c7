"""What to learn from: the settings of the data."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import names, suggestion

FORMATS = ("auto", *names("tunesmith.data.formats"))


class DataConfig(Config):
    """Data sets and how much of them."""

    shorthand: ClassVar[str] = "train"

    train: tuple[str, ...] = setting(
        ...,
        zh="训练数据：已登记的数据集名（dataset_info.json）或 .json / .jsonl 文件，可写多个。",
        basic=True,
        min_length=1,
    )
    """Training sets: names registered in a dataset_info.json, or .json / .jsonl files; several are joined."""
    eval: tuple[str, ...] = setting((), zh="评估数据；不填时从训练数据中按 eval_share 划出。")
    """Evaluation sets; when empty, eval_share of the training rows is held out."""
    eval_share: float = setting(0.05, zh="划作评估、不参与训练的比例（0 表示不评估）。", ge=0, lt=1)
    """Share of the training rows held out for evaluation (0 = none)."""
    format: str = setting("auto", choices=FORMATS, zh="行的格式；auto 表示看第一行自动判断。")
    """Format of the rows; auto looks at the keys of the rows."""
    registry: str | None = setting(
        None, zh="dataset_info.json 的路径；默认依次找 ./dataset_info.json、./data/dataset_info.json 与内置。"
    )
    """Path of a dataset_info.json; by default ./dataset_info.json, ./data/dataset_info.json, then the bundled one."""
    limit: int | None = setting(None, zh="每个数据集最多取多少行。", ge=1)
    """Take at most this many rows of each set."""
    max_length: int = setting(2048, zh="单个对话的最大 token 数；超出时从最早的轮次起整轮丢弃。", basic=True, ge=16)
    """Longest conversation in tokens; longer ones lose their earliest turns, whole turns at a time."""
    date: str | None = setting(
        None, zh="会打印日期的对话模板使用的日期（YYYY-MM-DD）；默认为运行创建之日。", pattern=r"^\d{4}-\d{2}-\d{2}$"
    )
    """Date (YYYY-MM-DD) given to chat templates that print one; the day the run is made unless set, kept with the run."""
    skip_bad: bool = setting(False, zh="跳过读不懂的行（会计数并写入日志）；默认遇到即报错。")
    """Leave out rows that cannot be read (counted and named in the log) instead of stopping."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"no such format; {suggestion(value, FORMATS)}")
        return value

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
