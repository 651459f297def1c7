"""What a step and an evaluation compute, in numbers derived by hand: rates by group, sums over micro-batches, means, modes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_loop import Number, tiny_setup
from tunesmith.config.errors import TrainingError
from tunesmith.runs.folder import RunFolder
from tunesmith.stages.base import Loss
from tunesmith.train import step
from tunesmith.train.evaluation import Measured, evaluate_and_record
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.position import Position


def new_run(tmp_path: Path, name: str = "n") -> RunFolder:
    return RunFolder.create("model: x\n", name, tmp_path / "runs")


@pytest.mark.parametrize("in_backward", [False, True])
def test_each_group_moves_at_its_own_rate(tmp_path: Path, in_backward: bool) -> None:
    """SGD without momentum on (w - 1)^2 from w = 0: gradient -2, so one step of rate 0.1 x scale 3 moves w to 0.6."""
    setup = tiny_setup(
        new_run(tmp_path),
        [Number(1.0)],
        optimizer={"kind": "sgd", "momentum": 0.0},
        update_in_backward=in_backward,
        lr=0.1,
    )
    for group in setup.optimizer.param_groups:
        group["lr_scale"] = 3.0
    setup.model.eval()  # no noise in the loss
    found = step.gradients(setup, setup.train, 0.1, 1)
    if not found.moved:
        step.apply(setup, 0.1)
    assert float(setup.model.weight) == pytest.approx(0.6) and found.norm == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_several_passes_add_up(dtype: torch.dtype) -> None:
    """d(w/4)/dw + d(w/2)/dw = 3/4, in fp32, whatever the loss is scaled by."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    masters = Masters(model, dtype)
    for factor in (0.25, 0.5):
        masters.scaled(factor * model.weight.float().sum()).backward()
        masters.collect()
    (master,) = masters.parameters()
    assert master.grad is not None and master.grad.dtype == torch.float32 and float(master.grad) == 0.75


def test_a_spike_that_is_left_out_moves_nothing(tmp_path: Path) -> None:
    rows = [Number(1.0 + 0.01 * (i % 3), i) for i in range(40)]
    rows[20] = replace(rows[20], loss_times=1e6)
    moved: dict[str, float] = {}
    for action in ("warn", "skip"):
        setup = tiny_setup(
            new_run(tmp_path, action), rows, epochs=1, on_spike=action, optimizer={"kind": "sgd", "momentum": 0.0}
        )
        train(setup)
        spike = next(r for r in setup.run.metrics() if "spike" in r)
        after = [r["loss"] for r in setup.run.metrics() if r["kind"] == "step" and r["step"] > spike["step"]]
        moved[action] = max(after)
    assert moved["skip"] < 10 and moved["warn"] > 1e3, (
        "taken, the leap throws the weight far away; left out, it does not"
    )


def test_means_are_of_all_rows_and_not_of_means() -> None:
    """Losses 10 over 5 tokens and 8 over 1: 18 / 6 = 3, not (2 + 8) / 2; accuracy (4 + 0) / (5 + 1)."""
    both = Measured(10.0, 5.0, {"accuracy": (4.0, 5.0)}) + Measured(8.0, 1.0, {"accuracy": (0.0, 1.0)})
    assert both.loss == 3.0 and both.means["accuracy"] == pytest.approx(4 / 6)
    losses = [
        Loss(torch.tensor(10.0), 5.0, {"accuracy": (4.0, 5.0)}),
        Loss(torch.tensor(8.0), 1.0, {"accuracy": (0.0, 1.0)}),
    ]
    totals, norm, means = step._read(losses, torch.tensor(2.0))
    assert totals == [10.0, 8.0] and norm == 2.0 and means["accuracy"] == pytest.approx(4 / 6)


def test_the_best_and_the_patience() -> None:
    """The evaluation before the first step is no candidate; with min_delta 0.1 a fall of 0.05 is better, but no improvement."""
    assert Position().evaluated(0.1, {}, 0.0).best_step is None
    first = Position(step=1).evaluated(1.0, {}, 0.1)
    second = replace(first, step=2).evaluated(0.95, {}, 0.1)
    assert (second.best_eval, second.best_step, second.stale, second.mark) == (0.95, 2, 1, 1.0)
    third = replace(second, step=3).evaluated(0.85, {}, 0.1)
    assert (third.best_step, third.stale, third.mark) == (3, 0, 0.85)


def test_an_evaluation_leaves_the_model_in_training(tmp_path: Path) -> None:
    setup = tiny_setup(new_run(tmp_path), [Number(1.0)], [Number(2.0), Number(4.0)])
    setup.model.train()
    found = evaluate_and_record(setup, Position(step=1))
    assert setup.model.training and found.last["eval_loss"] == pytest.approx((4 + 16) / 2)


def test_an_evaluation_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    setup = tiny_setup(new_run(tmp_path), [Number(1.0)], [Number(math.inf)])
    with pytest.raises(TrainingError, match="evaluation loss became inf at step 3") as caught:
        evaluate_and_record(setup, Position(step=3))
    assert "runs continue" in str(caught.value.hint)
    assert not [r for r in setup.run.metrics() if r["kind"] == "eval"], "nothing that is no JSON is written"


def test_only_the_learned_copy_of_a_module_counts_as_work() -> None:
    """A head of 4 x 6 weights learned in full under LoRA: 6 x 24 operations a token; what is frozen 4 x its weights."""
    from tunesmith.models.flops import flops_per_token

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.original_module = torch.nn.Linear(4, 6, bias=False).requires_grad_(False)
            self.modules_to_save = torch.nn.ModuleDict({"default": torch.nn.Linear(4, 6, bias=False)})
            self.in_features, self.out_features = 4, 6

    class Model(torch.nn.Module):
        config: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
            self.lm_head = Wrapper()
            self.config = type("C", (), {"get_text_config": lambda self: self})()

    assert flops_per_token(Model()) == 4 * 16 + 6 * 24


def test_the_best_is_saved_when_it_is_measured_and_kept(tmp_path: Path) -> None:
    """SGD of rate 0.1 on (w - 1)^2: w = 1 - 0.8^n = 0.2, 0.36, 0.488, 0.59 …; held-out 0.5 is nearest at step 3."""
    setup = tiny_setup(
        new_run(tmp_path), [Number(1.0)] * 6, [Number(0.5)], epochs=1, lr=0.1, optimizer={"kind": "sgd", "momentum": 0.0},
        eval_every=1, save_every=1000, keep=1,
    )  # fmt: skip
    outcome = train(setup)
    assert outcome.position.best_step == 3 and setup.run.checkpoint_steps() == [3, 6]
    assert setup.run.best_checkpoint().name == "step-3"
