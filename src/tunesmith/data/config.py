"""What to learn from: the settings of the data."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import names, suggestion

FORMATS = ("auto", *names("tunesmith.data.formats"))
TextUnit = Literal["line", "paragraph", "document"]


def _known_format(value: str) -> str:
    if value not in FORMATS:
        raise ValueError(f"no such format; {suggestion(value, FORMATS)}")
    return value


class SetConfig(Config):
    """One data set: where it is and how it is read."""

    model_config = ConfigDict(json_schema_extra={"short": "set"})
    shorthand: ClassVar[str] = "set"

    set: str = setting(
        ..., min_length=1,
        zh="数据集：已登记的名称、文件、文件夹、通配符（data/*.jsonl）、hf:org/name、ms:org/name 或 org/name。",
    )  # fmt: skip
    """A registered name, a file, a folder, a pattern (data/*.jsonl), hf:org/name, ms:org/name or org/name."""
    format: str = setting("auto", choices=FORMATS, zh="行的格式；auto 表示按登记信息，其次按前几行自动判断。")
    """Format of the rows; auto: as registered, else told from the first rows."""
    subset: str | None = setting(None, zh="平台数据集的子集（配置名）。")
    """Subset (configuration) of a hub's data set."""
    split: str | None = setting(None, zh="划分，如 train、test；平台数据集默认 train。")
    """Split, such as train or test; train unless set for a hub's data set."""
    revision: str | None = setting(None, zh="平台数据集的分支、标签或提交。")
    """Branch, tag or commit of a hub's data set."""
    folder: str | None = setting(None, zh="平台仓库中只读取的文件夹。")
    """Folder inside a hub's repository; only its files are read."""
    streaming: bool = setting(False, zh="不先下载，直接从网络逐行读取平台数据集。")
    """Read a hub's rows over the net instead of downloading the files first."""
    limit: int | None = setting(None, zh="只取前多少行。", ge=1)
    """Take only the first so many rows."""
    sample: int | None = setting(None, zh="随机取多少行（固定随机数；超过总行数时重复），在 limit 之前。", ge=1)
    """Take so many rows drawn at random (always the same ones; some twice when there are fewer), before limit."""
    weight: float = setting(1.0, zh="每轮的权重：2 表示每行出现两次，0.5 表示随机取一半。", gt=0, le=1000)
    """How often a row comes per epoch: 2 = twice, 0.5 = a random half of the rows."""
    columns: dict[str, str] = setting({}, zh="列名映射：角色 -> 文件中的列名（同 dataset_info.json）。")
    """Column names: role -> the file's column, as in a dataset_info.json."""
    tags: dict[str, str] = setting({}, zh="标签映射（role_tag、user_tag 等，同 dataset_info.json）。")
    """Words of conversations (role_tag, user_tag …), as in a dataset_info.json."""
    ranking: bool = setting(False, zh="偏好数据（chosen / rejected）。")
    """The rows are preference pairs (chosen, rejected)."""
    field: str | None = setting(None, zh="JSON 对象中存放行列表的键，例如 data。")
    """Key of the list of rows when a JSON file is one object around it, for example data."""
    text_unit: TextUnit = setting("line", zh="纯文本文件中一行数据的单位：行、段落（以空行分隔）或整个文件。")
    """What one row of a plain text file is: a line, a paragraph (blank lines between) or the whole document."""

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        return _known_format(value)

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        """What was set and nothing else; a plain name when that is all."""
        fields = type(self).model_fields
        default = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        changed = {name: value for name, value in whole(self).items() if value != default[name]}
        return self.set if changed.keys() == {"set"} else changed

    def __str__(self) -> str:
        return self.set


class DataConfig(Config):
    """Data sets and how much of them."""

    shorthand: ClassVar[str] = "train"

    train: tuple[SetConfig, ...] = setting(
        ...,
        zh="训练数据：已登记的数据集名、文件、文件夹、通配符或 hf:/ms: 名称，可写多个；或写成带选项的 {set: …, limit: …}。",
        basic=True,
        min_length=1,
    )
    """Training sets: registered names, files, folders, patterns, hf:/ms: names, or {set: …, limit: …}; several are joined."""
    eval: tuple[SetConfig, ...] = setting((), zh="评估数据；不填时从训练数据中按 eval_share 划出。")
    """Evaluation sets; when empty, eval_share of the training rows is held out."""
    eval_share: float = setting(0.05, zh="划作评估、不参与训练的比例（0 表示不评估）。", ge=0, lt=1)
    """Share of the training rows held out for evaluation (0 = none)."""
    mix: Literal["concat", "interleave"] = setting("concat", zh="多个训练集如何合并：依次连接，或交替取行。")
    """How several training sets are joined: one after the other, or rows taken in turn."""
    probabilities: tuple[float, ...] = setting(
        (), zh="交替取行时各训练集的概率（与 train 一一对应，和为 1）；不填则轮流。"
    )
    """interleave: the chance of each training set, in their order, adding up to 1; in strict turn when empty."""
    stop: Literal["first_exhausted", "all_exhausted"] = setting(
        "first_exhausted", zh="交替取行何时结束：任一集用完，或全部用完（先用完的从头重复）。"
    )
    """interleave: end when the first set is used up, or when all are (those used up earlier start again)."""
    format: str = setting("auto", choices=FORMATS, zh="行的格式；auto 表示看前几行自动判断。")
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
    learn: Literal["answers", "last_answer", "everything"] = setting(
        "answers",
        zh="学习对话的哪些部分：所有回答、仅最后一个回答，或全部内容（含提问）；消息自带的 train/weight 优先。",
    )
    """What of a conversation is learned: all answers, the last one only, or everything (the prompt too)."""

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        return _known_format(value)

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, dict, SetConfig)) else value

    @model_validator(mode="after")
    def _mixing_fits(self) -> DataConfig:
        if self.probabilities:
            if self.mix != "interleave":
                raise ValueError("data.probabilities are for data.mix=interleave")
            if len(self.probabilities) != len(self.train):
                raise ValueError(f"data.probabilities has {len(self.probabilities)} numbers for {len(self.train)} sets")
            if any(p <= 0 for p in self.probabilities) or abs(sum(self.probabilities) - 1) > 1e-6:
                raise ValueError("data.probabilities should be above 0 and add up to 1")
        weighted = [choice.set for choice in self.eval if choice.weight != 1]
        if weighted:
            raise ValueError(f"weight is for training sets; the evaluation set {weighted[0]!r} has one")
        return self
