"""What the page's forms for export, deploy and compare ask: the options of these commands as configs, with help in two languages.

A field is the command's option of the same name; the union ``to`` is ``--to KIND`` with the settings of that target. A test compares
them with the commands themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from tunesmith.config.base import Config, setting
from tunesmith.config.plugins import config_of, load, names

TARGETS = "tunesmith.export.targets"


def _targets() -> Any:
    """The configs of all targets, told apart by a ``kind`` that is the file's name."""
    from typing import Annotated, Union

    from pydantic import Discriminator, Tag

    members = []
    for name in names(TARGETS):
        plain = config_of(TARGETS, name)
        kind: Any = Literal[name]
        made = create_model(
            f"{name.title().replace('_', '')}Target",
            __base__=plain,
            kind=(kind, Field(name, description=f"`--to {name.replace('_', '-')}`.")),
        )
        made.__doc__ = plain.__doc__
        members.append(Annotated[made, Tag(name)])
    union = Union[tuple(members)]  # type: ignore[valid-type]  # noqa: UP007
    return Annotated[union, Discriminator(lambda value: value.get("kind") if isinstance(value, dict) else value.kind)]


if TYPE_CHECKING:
    Target = Any
else:
    Target = _targets()


class ExportRequest(Config):
    """Files of the model for other programs."""

    to: Target = setting(
        {"kind": "gguf"},
        zh="gguf 供 llama.cpp 与 Ollama 使用；hf、gptq、awq、fp8 供 transformers 与 vLLM 使用；adapter 与 gguf_adapter 只含训练所得。",
        basic=True,
        label=("What to make", "导出格式"),
    )
    """gguf is for llama.cpp and Ollama; hf, gptq, awq and fp8 for transformers and vLLM; adapter and gguf_adapter hold only what was learned."""
    base: str | None = setting(
        None,
        zh="以量化形式存储的基座的 16 位原模型：适配器合并到它里面。",
        label=("16-bit original of the base", "基座的 16 位原模型"),
    )
    """16-bit original to merge into, for a base that is stored quantized."""
    data: str | None = setting(
        None, zh="用来校准和测量的数据集，代替运行自己的数据。", label=("Data set for calibration", "校准数据集")
    )
    """A data set to calibrate with and to measure on, in place of the run's own."""
    levels: str | None = setting(
        None,
        zh="一次制作多个 GGUF 级别并列表比较：all（全部）、usual（常用），或用逗号分隔的级别名。",
        label=("Several levels", "多个级别"),
    )
    """Several GGUF levels in one table: all, usual, or names between commas."""
    keep: Literal["all", "recommended"] = setting(
        "all",
        zh="levels 的文件保留哪些：all（全部）或 recommended（推荐的）。",
        label=("Files that stay", "保留的文件"),
    )
    """Which files of levels stay: all, or the recommended one."""
    target_size: str | None = setting(
        None, zh="选择能放进该大小的最精细的 GGUF 级别，例如 4GB、3.5GiB、700MB。", label=("Largest size", "大小上限")
    )
    """The finest GGUF level that fits: 4GB, 3.5GiB, 700MB."""
    max_kl: float | None = setting(
        None,
        zh="选择在您的文本上平均 KL（nat）不超过该值的最小 GGUF 级别。",
        gt=0,
        label=("Largest mean KL", "平均 KL 上限"),
    )
    """The smallest GGUF level with at most this mean KL (nats) on your text."""
    report: bool = setting(True, zh="测量量化后损失了多少，并说明该用哪个。", label=("Quality report", "质量报告"))
    """Measure what a quantized export lost, and say which to use."""
    report_rows: int = setting(
        16, zh="测量多少行留出的数据（通用文本按比例）。", ge=1, label=("Rows that are measured", "测量的行数")
    )
    """So many held-out rows are measured, and general text in proportion."""
    push: str | None = setting(
        None,
        zh="结果也上传到：org/name、hf:org/name（Hugging Face）或 ms:org/name（ModelScope）。",
        label=("Send to a hub", "上传到模型库"),
    )
    """Send the result to a hub too: org/name, hf:org/name or ms:org/name (ModelScope)."""
    public: bool = setting(
        False, zh="上传的内容是否对所有人可见；默认仅自己可见。", label=("Visible to everybody", "对所有人可见")
    )
    """Whether everybody can see what is sent to the hub."""


class DeployRequest(Config):
    """The model in Ollama, with the proof that it is the one that was trained."""

    name: str = setting(
        zh="在 Ollama 中的名字，例如 my-model:7b。",
        basic=True,
        min_length=1,
        label=("Name in Ollama", "在 Ollama 中的名字"),
    )
    """What it is called in Ollama, for example my-model:7b."""
    level: str = setting(
        "q8_0",
        zh="GGUF 权重的数值类型。",
        basic=True,
        choices=load(TARGETS, "gguf").LEVELS,
        label=("Level of the GGUF", "GGUF 级别"),
    )
    """Numbers of the GGUF."""
    url: str | None = setting(
        None, zh="Ollama 服务器的地址；默认为本机（OLLAMA_HOST）。", label=("Ollama server", "Ollama 服务器")
    )
    """The Ollama server; by default the one on this machine (OLLAMA_HOST)."""
    verify: bool = setting(
        True, zh="证明所提供的模型就是训练出来的那个。", label=("Prove that it is the same model", "证明是同一个模型")
    )
    """Prove that the served model is the trained one."""
    force: bool = setting(
        False, zh="即使证明失败也提供该模型。", label=("Serve it even if the proof fails", "证明失败也部署")
    )
    """Serve it even if the proof fails."""
    as_: Literal["model", "adapter"] = setting(
        "model",
        zh="以什么形式：model（合并后的模型）或 adapter（放到 Ollama 中已有基座上的 GGUF LoRA）。",
        label=("As model or adapter", "模型或适配器"),
    )
    """As a merged model, or as adapter: a GGUF LoRA on a base that Ollama has."""
    on: str | None = setting(
        None, zh="adapter 形式时：基座在 Ollama 中的名字。", label=("Base in Ollama", "Ollama 中的基座")
    )
    """With the form adapter: the base's name in Ollama."""
    quantize_on_server: str | None = setting(
        None,
        zh="发送 16 位文件，由 Ollama 自己量化成 q8_0、q4_k_m 或 q4_k_s。",
        label=("Let Ollama quantize", "由 Ollama 量化"),
    )
    """Send 16 bits and let Ollama make q8_0, q4_k_m or q4_k_s of them."""


class CompareRequest(Config):
    """The base and the tuned model answer the same prompts."""

    prompt: list[str] = setting(
        list, zh="要问的问题，每行一个；不填则使用留出的样本。", basic=True, label=("Prompts", "问题")
    )
    """Prompts, one a line; by default rows that were held out are asked."""
    data: str | None = setting(None, zh="数据集：问其中的问题，并测量损失。", label=("Data set", "数据集"))
    """A data set: its questions are asked and its loss is measured."""
    system: str | None = setting(None, zh="没有系统提示的问题所用的系统提示。", label=("System prompt", "系统提示"))
    """System prompt, for questions without one."""
    limit: int = setting(12, zh="最多问多少个问题。", ge=1, label=("Most prompts", "问题数上限"))
    """Most prompts that are asked."""
    max_tokens: int = setting(
        128, zh="每个回答的最多词元数。", ge=1, label=("Longest answer in tokens", "回答的最多词元数")
    )
    """Most tokens of an answer."""


REQUESTS: dict[str, type[Config]] = {"export": ExportRequest, "deploy": DeployRequest, "compare": CompareRequest}
