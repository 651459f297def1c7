"""Every optimizer through the loop: stopped and gone on with in new objects, it is bit for bit the run that was never stopped."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_training
from tunesmith.config.errors import TrainingError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.plugins import names
from tunesmith.runs.folder import RunFolder
from tunesmith.train import checkpoint, optimizer_state
from tunesmith.train.config import OPTIMIZERS, TrainConfig
from tunesmith.train.evaluation import evaluate
from tunesmith.train.loop import train

ALONE = {"badam": {"kind": "badam", "embeddings": True}}
"""The model has no numbered layers, so it is BAdam's one block."""
KINDS: list[Any] = [*(ALONE.get(name, name) for name in names(OPTIMIZERS)), {"kind": "adamw_torchao", "state": "4bit"}, {"kind": "adamw_torchao", "state": "fp8"}, {"kind": "sgd", "momentum": 0.0}]  # fmt: skip


def config_for(kind: Any, **changes: Any) -> TrainConfig:
    """Six steps; dropout and evaluations on the way, so that random states and evaluation weights matter."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "batch": 8,
        "lr": 3e-3,
        "warmup": 2,
        "weight_decay": 0.01,
        "eval_every": 2,
        "save_every": 100,
    }
    config = TrainConfig(optimizer=kind, **settings | changes)
    plugin = load_plugin(OPTIMIZERS, config.optimizer.kind)
    if hasattr(plugin, "REQUIRES"):
        pytest.importorskip(plugin.REQUIRES[0])
    return config


def new_run(tmp_path: Path, name: str) -> RunFolder:
    return RunFolder.create("model: x\n", name, tmp_path / "runs")


def stopped_after(setup: Any, step: int) -> Any:
    """``setup`` whose process is asked to stop within that step."""
    real = setup.run.append_metrics

    def record_then_signal(record: Any) -> None:
        real(record)
        if record["kind"] == "step" and record["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    setup.run.append_metrics = record_then_signal
    return setup


def figures(run: RunFolder) -> list[tuple[Any, ...]]:
    changing = {"time", "tokens_per_s", "eta_s", "memory"}
    return [tuple((k, v) for k, v in record.items() if k not in changing) for record in run.metrics()]


def files_of(run: RunFolder) -> tuple[dict[str, torch.Tensor], Any]:
    folder = run.checkpoint()
    found = {f"{file.name}: {key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}  # fmt: skip
    return found, json.loads((folder / "trainer.json").read_text())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind if isinstance(kind, str) else "-".join(map(str, kind.values())))  # fmt: skip
def test_three_and_three_steps_are_six(tmp_path: Path, kind: Any) -> None:
    config = config_for(kind)
    straight, halves = new_run(tmp_path, "straight"), new_run(tmp_path, "halves")
    outcome = train(tiny_training.setup(straight, config))
    assert outcome.finished

    first = train(stopped_after(tiny_training.setup(halves, config), 3))
    assert not first.finished and first.position.step == 3
    torch.manual_seed(999)
    train(tiny_training.setup(halves, config), resume=tiny_training.saved(halves))

    assert figures(halves) == figures(straight)
    (mine, trainer), (expected, its_trainer) = files_of(halves), files_of(straight)
    assert mine.keys() == expected.keys() and trainer == its_trainer
    assert [key for key in expected if not torch.equal(mine[key], expected[key])] == []

    losses = [record["loss"] for record in straight.metrics() if record["kind"] == "step"]
    assert losses[-1] < losses[0], "nothing was learned, so nothing was compared"
    # What lies in the checkpoint is what was evaluated: with some optimizers other weights than those in training.
    model = tiny_training.Adder()
    model.load_state_dict(tiny_training.saved(straight)[1])
    fresh = tiny_training.setup(straight, config)
    loss = evaluate(model, fresh.stage, fresh.eval, fresh.micro_tokens, packed=config.packing)
    assert loss == pytest.approx(outcome.position.last["eval_loss"], rel=1e-6)


def test_bf16_evaluates_and_saves_the_average(tmp_path: Path) -> None:
    """With masters, the model's own numbers are those of the average within an evaluation and of training after it."""
    config = config_for("schedule_free")
    straight, halves = new_run(tmp_path, "straight"), new_run(tmp_path, "halves")
    made = tiny_training.setup(straight, config, dtype=torch.bfloat16)
    train(made)
    for parameter, master in made.masters.pairs.values():
        assert torch.equal(parameter, master.to(torch.bfloat16))
    kept = tiny_training.saved(straight)[1]
    assert all(not torch.equal(kept[name], master) for name, master in made.masters.named().items())
    train(stopped_after(tiny_training.setup(halves, config, dtype=torch.bfloat16), 3))
    train(tiny_training.setup(halves, config, dtype=torch.bfloat16), resume=tiny_training.saved(halves))
    assert figures(halves) == figures(straight)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = new_run(tmp_path_factory.mktemp("three"), "adamw")
    train(tiny_training.setup(run, config_for("adamw", max_steps=3)))
    return run


def load_into(run: RunFolder, folder: Path, config: TrainConfig) -> Any:
    made = tiny_training.setup(run, config)
    checkpoint.load(folder, made.masters, made.optimizer, load_file(folder / "model.safetensors"))
    return made


def copy_of(run: RunFolder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.checkpoint(), tmp_path / "step-3"))


def test_the_state_of_another_optimizer_is_refused(three_steps: RunFolder, tmp_path: Path) -> None:
    words = r"state of the optimizer torch\.AdamW, and this run's is tunesmith\.Lion[\s\S]*the run began with"
    with pytest.raises(TrainingError, match=words):
        load_into(three_steps, three_steps.checkpoint(), config_for("lion"))


def test_the_state_of_other_shapes_is_refused(three_steps: RunFolder, tmp_path: Path) -> None:
    folder = copy_of(three_steps, tmp_path)
    record = json.loads((folder / "trainer.json").read_text())
    record["optimizer"]["shapes"]["up.weight"] = [9, 64]
    del record["optimizer"]["shapes"]["norm.bias"]
    (folder / "trainer.json").write_text(json.dumps(record))
    words = r"up\.weight: \[9, 64\] there, \[128, 64\] here; norm\.bias: nothing there, \[128\] here"
    with pytest.raises(TrainingError, match=words):
        load_into(three_steps, folder, config_for("adamw"))


def test_a_lost_tensor_is_named(three_steps: RunFolder, tmp_path: Path) -> None:
    folder = copy_of(three_steps, tmp_path)
    tensors = load_file(folder / "optimizer.safetensors")
    del tensors["down.weight|exp_avg"]
    save_file(tensors, folder / "optimizer.safetensors")
    with pytest.raises(TrainingError, match=r"no tensor 'down\.weight\|exp_avg'[\s\S]*another one"):
        load_into(three_steps, folder, config_for("adamw"))


def test_a_class_named_in_a_checkpoint_is_not_imported_from_anywhere(three_steps: RunFolder, tmp_path: Path) -> None:
    folder = copy_of(three_steps, tmp_path)
    record = json.loads((folder / "trainer.json").read_text())
    record["optimizer"]["state"]["down.weight"]["exp_avg"] = {"is": "subclass", "module": "antigravity", "class": "X"}
    (folder / "trainer.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match="foreign class antigravity"):
        load_into(three_steps, folder, config_for("adamw"))


def test_settings_come_from_the_config_and_counts_from_the_checkpoint(three_steps: RunFolder) -> None:
    """A run that goes on with other settings gets them."""
    config = config_for({"kind": "adamw", "beta2": 0.95}, weight_decay=0.0)
    optimizer = load_into(three_steps, three_steps.checkpoint(), config).optimizer
    assert [(group["betas"], group["weight_decay"]) for group in optimizer.param_groups] == [((0.9, 0.95), 0.0)]
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


def test_a_checkpoint_of_the_first_version_goes_on(three_steps: RunFolder, tmp_path: Path) -> None:
    """Version 0.1.0 kept AdamW's tensors and no record of them."""
    folder = copy_of(three_steps, tmp_path)
    record = json.loads((folder / "trainer.json").read_text())
    del record["optimizer"]
    (folder / "trainer.json").write_text(json.dumps(record))
    found, expected = (load_into(three_steps, f, config_for("adamw")) for f in (folder, three_steps.checkpoint()))
    for name, parameter in found.masters.named().items():
        mine, its = found.optimizer.state[parameter], expected.optimizer.state[expected.masters.named()[name]]
        assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    """Numbers, texts, tuples, types and nested dictionaries; tensors that are shared, parts of others, empty, or of few bits."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    shared, whole = torch.arange(4, dtype=torch.uint8), torch.arange(10.0)
    values: dict[str, Any] = {
        "shared": shared, "again": shared, "part": whole[2:4], "transposed": torch.arange(6.0).view(2, 3).T, "none": None,
        "empty": torch.zeros(0), "bf16": torch.full((2,), 1 / 3, dtype=torch.bfloat16), "flag": True, "count": 7, "pi": 0.1 + 0.2,
        "infinite": float("inf"), "pair": (1, [2.0, "x"]), "size": torch.Size([2, 3]), "dtype": torch.float16,
        "nested": {3: {"a": torch.ones(1)}}, "step": torch.tensor(5.0),
    }  # fmt: skip
    optimizer.state[parameter] = dict(values)
    tensors, record = optimizer_state.dump(optimizer, {"w": parameter})
    save_file(tensors, tmp_path / "x.safetensors")
    fresh = torch.optim.SGD([parameter], lr=0.1)
    read = json.loads(json.dumps(record))
    optimizer_state.restore(fresh, {"w": parameter}, load_file(tmp_path / "x.safetensors"), read)
    found = fresh.state[parameter]
    assert found.keys() == values.keys() and found["shared"] is not shared
    for key, value in values.items():
        same = (
            torch.equal(found[key], value) and found[key].dtype == value.dtype
            if torch.is_tensor(value)
            else found[key] == value
        )
        assert key == "nested" or (same and type(found[key]) is type(value)), key
    assert torch.equal(found["nested"][3]["a"], torch.ones(1))
    assert found["shared"].data_ptr() == found["again"].data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_states_are_paged_again(kind: str) -> None:
    """On a GPU: a restored moment lies in memory that moves, and further steps are the same."""
    pytest.importorskip("bitsandbytes")
    from tunesmith.train.optimizers.base import parameter_groups

    plugin = load_plugin(OPTIMIZERS, kind)
    gradients = torch.randn(4, 512, 512, generator=torch.Generator().manual_seed(0)).cuda()

    def made(value: torch.Tensor) -> tuple[torch.nn.Parameter, Any]:
        parameter = torch.nn.Parameter(value.clone())
        return parameter, plugin.build(parameter_groups({"w": parameter}, lr=1e-3, weight_decay=0.1), plugin.Config())

    def steps(parameter: torch.nn.Parameter, optimizer: Any, which: Any) -> None:
        for gradient in which:
            parameter.grad = gradient.clone()
            optimizer.step()

    parameter, optimizer = made(torch.ones(512, 512, device="cuda"))
    steps(parameter, optimizer, gradients[:2])
    tensors, record = optimizer_state.dump(optimizer, {"w": parameter})
    kept = {key: value.cpu().clone() for key, value in tensors.items()}
    again, fresh = made(parameter.detach())
    optimizer_state.restore(fresh, {"w": again}, kept, json.loads(json.dumps(record)))
    assert fresh.state[again]["state1"].is_paged
    steps(parameter, optimizer, gradients[2:])
    steps(again, fresh, gradients[2:])
    assert torch.equal(parameter, again)
