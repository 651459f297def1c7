"""A stand-in for the ``tunesmith`` command in tests of the page: the same doors, with a config of its own and no model.

``schema train``, ``train FILE --detach``, ``runs resume ID``; ``work ID`` is the process that "trains". Other schemas are the real ones.
``web PORT`` serves the page with this file as its command.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import BeforeValidator, Discriminator, Tag

from tunesmith.config.base import Config, setting
from tunesmith.config.errors import UserError
from tunesmith.config.home import runs_folder
from tunesmith.config.load import dump, read_yaml, validate
from tunesmith.runs.folder import RunFolder

COMMAND = (sys.executable, str(Path(__file__).resolve()))


class Rope(Config):
    """Stretching of positions."""

    factor: float = setting(2.0, zh="拉伸倍数。", gt=1)
    """How many times longer."""


class Model(Config):
    """The model to begin with."""

    ref: str = setting(zh="模型的引用：路径、仓库名或 demo。", basic=True)
    """Reference of the model: a path, a name on a hub, or demo."""
    quantize: Literal["none", "nf4", "int8"] = setting("none", zh="加载时的量化方式。")
    """Quantization while loading."""
    rope: Rope | None = setting(None, zh="位置编码的拉伸。")
    """Stretching of positions."""


class Data(Config):
    """What is learned."""

    train: list[str] = setting(list, zh="训练数据的文件。", basic=True)
    """Files of training data."""
    weights: dict[str, float] = setting(dict, zh="混合权重。")
    """Mixing weights by file."""
    seed: int | None = setting(None, zh="打乱顺序的种子。", ge=0)
    """Seed of the shuffle."""


class Lora(Config):
    """Small adapters beside the frozen weights."""

    kind: Literal["lora"] = "lora"
    rank: int = setting(8, zh="适配器的秩。", basic=True, ge=1, le=1024)
    """Rank of the adapters."""
    dropout: float = setting(0.0, zh="丢弃率。", ge=0, lt=1)
    """Share of inputs dropped."""
    targets: list[str] = setting(lambda: ["all-linear"], zh="作用的层。")
    """Layers that get an adapter."""


class Full(Config):
    """All weights are trained."""

    kind: Literal["full"] = "full"
    embeddings: bool = setting(True, zh="是否训练词嵌入。", basic=True)
    """Whether the embeddings are trained too."""


def _expand(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


def _tag(value: object) -> object:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Method = Annotated[
    Union[Annotated[Lora, Tag("lora")], Annotated[Full, Tag("full")]],  # noqa: UP007
    Discriminator(_tag),
    BeforeValidator(_expand),
]


class Train(Config):
    """The loop."""

    steps: int = setting(30, zh="步数。", basic=True, ge=1)
    """Optimizer steps."""
    lr: float = setting(2e-4, zh="学习率。", basic=True, gt=0, le=1)
    """Peak learning rate."""
    pause: float = setting(0.05, zh="每步的秒数。", ge=0)
    """Seconds per step."""
    batch: int | Literal["auto"] = setting("auto", zh="批大小。")
    """Conversations per step, or auto."""
    packing: bool = setting(True, zh="是否拼接。")
    """Whether rows are packed."""


class Output(Config):
    """Where it goes."""

    name: str = setting("run", zh="运行的名字。", basic=True, min_length=1)
    """Name of the run."""


class FakeConfig(Config):
    """Everything about a run."""

    model: Model = setting(zh="从哪个模型开始。")
    """The model to begin with."""
    data: Data = setting(Data(), zh="学习什么。")
    """What is learned."""
    method: Method = setting(Lora(), zh="训练哪些权重。", basic=True)
    """Which weights are trained."""
    train: Train = setting(Train(), zh="训练循环。")
    """The loop."""
    precision: Literal["auto", "bf16", "fp32"] = setting("auto", zh="计算精度。")
    """Number format of the computation."""
    output: Output = setting(Output(), zh="结果放在哪里。")
    """Where the result goes."""


def begin(file: Path) -> RunFolder:
    values, source = read_yaml(file)
    config = validate(FakeConfig, values, source)
    if config.model.ref == "missing":
        raise UserError("'model.ref': there is no model 'missing'", hint="try demo, or give the path of a model folder")
    if config.model.ref == "slow":
        time.sleep(1.5)
    return RunFolder.create(dump(config), config.output.name)


def work(run: RunFolder) -> None:
    config = FakeConfig.model_validate(run.config_values())
    steps = config.train.steps
    first = run.status().step
    run.claim("training")
    run.update_status(total_steps=steps, step=first)
    print(f"training {config.model.ref} for {steps} steps")
    for step in range(first + 1, steps + 1):
        time.sleep(config.train.pause)
        loss = 1.2 + 2 * math.exp(-step / 12) + 0.1 * math.sin(step * 7)
        run.append_metrics(
            {
                "kind": "step", "step": step, "epoch": step / steps, "loss": loss, "lr": config.train.lr, "grad_norm": 0.8,
                "tokens": 400 * step, "tokens_per_s": 410.5, "eta_s": (steps - step) * config.train.pause, "time": time.time(),
            }
        )  # fmt: skip
        if step % 10 == 0:
            run.append_metrics(
                {"kind": "eval", "step": step, "eval_loss": loss + 0.1, "eval_perplexity": 6.7, "time": time.time()}
            )
        print(f"step {step}/{steps} loss {loss:.3f}")
        run.update_status(step=step)
    run.update_status(state="finished", what="", result={"loss": loss})


def main(arguments: list[str]) -> None:
    match arguments:
        case ["schema", "train"]:
            import json

            from tunesmith.config.schema import schema

            print(json.dumps(schema(FakeConfig), ensure_ascii=False))
        case ["schema", kind]:
            from tunesmith.__main__ import main as real

            sys.argv = ["tunesmith", "schema", kind]
            real()
        case ["train", file, "--detach"]:
            run = begin(Path(file))
            _spawn(run)
            print(run.path)
        case ["runs", "resume", id, "--detach"]:
            run = RunFolder.open(runs_folder() / id)
            _spawn(run)
            print(run.path)
        case ["work", id]:
            work(RunFolder.open(runs_folder() / id))
        case ["web", port, *rest]:
            from tunesmith.web.app import serve_with

            host, token = rest[0] if rest else "127.0.0.1", rest[1] if len(rest) > 1 else None
            command = tuple(os.environ.get("WEB_COMMAND", "").split("\n")) if "WEB_COMMAND" in os.environ else COMMAND
            serve_with(command, host, int(port), False, token)
        case _:
            raise UserError(f"unknown command {arguments}")


def _spawn(run: RunFolder) -> None:
    import subprocess

    from tunesmith.runs.folder import process_start

    with run.log_path.open("ab") as log:
        started = subprocess.Popen(
            [*COMMAND, "work", run.id], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    run.update_status(state="running", what="starting", pid=started.pid, pid_started=process_start(started.pid))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
