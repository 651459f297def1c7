"""fp16 with loss scaling and pure bf16 with stochastic rounding: the rules by themselves, and whole runs with resume."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config.errors import ConfigError, TrainingError
from tunesmith.config.progress import SILENT
from tunesmith.models.devices import dtype_for
from tunesmith.models.precision import resolve_precision
from tunesmith.runs.folder import RunFolder
from tunesmith.train.footprint import state_bytes
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import Groups, parameter_groups
from tunesmith.train.rounding import StochasticallyRounded, stochastic_round
from tunesmith.train.scaler import MOST_SKIPPED, LossScaler
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import create, execute

SETTINGS = [
    "data=lantern_bay", "data.limit=12", "data.eval_share=0", "data.max_length=224", "data.date=2026-01-01",
    "method.rank=4", "method.dropout=0.1", "train.max_steps=6", "train.batch=4", "train.micro_tokens=256",
    "train.lr=5e-3", "train.save_every=1", "train.keep=9",
]  # fmt: skip
POISONED = 3
"""The step whose gradient is infinite in the fp16 run."""


# -- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One run of six steps for each precision."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_RUNS", str(tmp_path_factory.mktemp("runs")))
        for precision in ("fp32", "fp16", "pure_bf16"):
            made[precision] = create(load_config(None, [f"model={tiny}", *SETTINGS, f"precision={precision}"]))
            with patch.context() as poison:
                if precision == "fp16":
                    _make_step_infinite(poison, made[precision], POISONED)
                execute(made[precision], SILENT)
    return made


def _make_step_infinite(patch: pytest.MonkeyPatch, run: RunFolder, step: int) -> None:
    """One gradient of one micro-batch of that step overflows, as happens when the scale is too high."""
    real = Masters.collect

    def collect(self: Masters) -> None:
        if len(run.checkpoint_steps()) == step - 1:
            gradient = next(p.grad for p, _ in self.pairs.values() if p.grad is not None)
            gradient.view(-1)[0] = math.inf
        real(self)

    patch.setattr(Masters, "collect", collect)


def steps(run: RunFolder) -> list[dict[str, Any]]:
    return [r for r in run.metrics() if r["kind"] == "step"]


def tensors(run: RunFolder, step: int, file: str = "adapter_model") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run.checkpoint(step) / f"{file}.safetensors")
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_fp16_follows_fp32(runs: dict[str, RunFolder]) -> None:
    full, half = ([r["loss"] for r in steps(runs[p])][:POISONED] for p in ("fp32", "fp16"))
    assert half == pytest.approx(full, rel=2e-3) and half != full
    assert all(t.dtype == torch.float32 for t in tensors(runs["fp16"], 6).values()), "masters are fp32"


def test_an_infinite_gradient_skips_one_step_and_halves_the_scale(runs: dict[str, RunFolder]) -> None:
    run = runs["fp16"]
    assert [r.get("skipped", False) for r in steps(run)] == [step == POISONED for step in range(1, 7)]
    assert [r["loss_scale"] for r in steps(run)] == [65536.0] * (POISONED - 1) + [32768.0] * (7 - POISONED)
    assert steps(run)[POISONED - 1]["grad_norm"] is None
    assert f"step {POISONED} skipped" in run.log_path.read_text()
    for file in ("adapter_model", "optimizer"):
        assert same(tensors(run, POISONED, file), tensors(run, POISONED - 1, file)), "a skipped step moves nothing"
        assert not same(tensors(run, POISONED + 1, file), tensors(run, POISONED, file))


def test_pure_bf16_learns_and_keeps_two_bytes(runs: dict[str, RunFolder]) -> None:
    full, pure = ([r["loss"] for r in steps(runs[p])] for p in ("fp32", "pure_bf16"))
    assert pure == pytest.approx(full, rel=0.02)
    run = runs["pure_bf16"]
    assert all(t.dtype == torch.bfloat16 for t in tensors(run, 6).values())
    states = {k: t for k, t in tensors(run, 6, "optimizer").items() if t.ndim}
    assert states and all(t.dtype == torch.bfloat16 for t in states.values())


@pytest.mark.parametrize("precision", ["fp16", "pure_bf16"])
def test_resumed_is_uninterrupted_bit_for_bit(runs: dict[str, RunFolder], tmp_path: Path, precision: str) -> None:
    """Three steps, then three more by another process: masters, optimizer, random states and the scaler are the same."""
    whole = runs[precision]
    shutil.copytree(whole.path, tmp_path / "half")
    half = RunFolder(tmp_path / "half")
    for step in (4, 5, 6):
        shutil.rmtree(half.checkpoint(step))
    execute(half, SILENT)
    assert same(tensors(half, 6), tensors(whole, 6)) and same(
        tensors(half, 6, "optimizer"), tensors(whole, 6, "optimizer")
    )
    records = [json.loads((r.checkpoint(6) / "trainer.json").read_text()) for r in (half, whole)]
    assert records[0] == records[1] and ("scaler" in records[0]) == (precision == "fp16")
    assert [r["loss"] for r in steps(half)] == [r["loss"] for r in steps(whole)]


# -- which precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert resolve_precision("auto", torch.device("cuda"))[0] == expected
    assert dtype_for("auto", torch.device("cuda")) == dtype_for(expected, torch.device("cuda"))


# -- loss scaling ----------------------------------------------------------------------------------------------------


def test_the_scale_moves_as_torch_s_own_scaler() -> None:
    """The same steps, some infinite, beside torch.amp.GradScaler with its state saved and loaded halfway."""
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    ours = LossScaler(1024.0, interval=3)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for step, finite in enumerate([True] * 4 + [False, False] + [True] * 7 + [False, True], start=1):
        theirs.scale(weight.sum() * (1.0 if finite else math.inf)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(finite, step)
        assert ours.scale == theirs.get_scale(), step
        fresh = LossScaler(1024.0, interval=3)
        fresh.load(json.loads(json.dumps(ours.state())))
        ours = fresh
    assert ours.skipped == 3


def test_too_many_skipped_steps_stop_with_a_diagnosis() -> None:
    scaler = LossScaler()
    for step in range(1, MOST_SKIPPED):
        scaler.update(False, step)
    with pytest.raises(TrainingError, match=rf"{MOST_SKIPPED} steps in a row[\s\S]*precision=bf16"):
        scaler.update(False, MOST_SKIPPED)


def test_small_gradients_survive_in_fp16() -> None:
    """A gradient of 1e-9 is zero in fp16; scaled it comes through to the master, exactly unscaled."""
    model = torch.nn.Linear(1, 1, bias=False).half()
    masters = Masters(model, torch.float16)
    x = torch.full((1, 1), 2.0**-15, dtype=torch.float16)
    (model(x).float() * 2.0**-15).sum().backward()
    assert model.weight.grad is not None and float(model.weight.grad) == 0
    masters.forget_gradients()
    for _ in range(2):
        masters.scaled((model(x).float() * 2.0**-15).sum()).backward()
        masters.collect()
    (master,) = masters.parameters()
    assert master.grad is not None and float(master.grad) == 2 * 2.0**-30


# -- stochastic rounding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, -1e-20, 1.5e30, 0.0])
def test_stochastic_rounding_is_unbiased(value: float) -> None:
    """Only the two neighbours appear, and their mean over n draws is the value within 5 standard errors: gap / 2 / sqrt(n)."""
    draws = 200_000
    exact = torch.full((draws,), value)
    rounded = stochastic_round(exact, torch.Generator().manual_seed(0)).double()
    low, high = rounded.min().item(), rounded.max().item()
    assert low <= exact[0].item() <= high
    gap = high - low
    assert gap <= abs(value) / 64 and set(rounded.unique().tolist()) == {low, high}
    assert rounded.mean().item() == pytest.approx(exact[0].double().item(), abs=5 * gap / 2 / math.sqrt(draws))


def test_what_is_bf16_or_not_finite_stays() -> None:
    already = torch.randn(1000).bfloat16().float()
    odd = torch.tensor([math.inf, -math.inf, math.nan])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(stochastic_round(already, generator).float(), already)
    assert torch.equal(stochastic_round(odd[:2], generator).float(), odd[:2])
    assert stochastic_round(odd, generator)[2].isnan()


def rounded(model: torch.nn.Module, lr: float, build: Any = None) -> StochasticallyRounded:
    groups = parameter_groups(dict(model.named_parameters()), lr=lr, weight_decay=0.0)
    return StochasticallyRounded(groups, build or (lambda groups: adamw.build(groups, adamw.Config())), seed=1)


def rounded_like(groups: Groups) -> StochasticallyRounded:
    return StochasticallyRounded(groups, lambda groups: adamw.build(groups, adamw.Config()), seed=1)


def test_it_learns_where_rounding_to_nearest_stalls() -> None:
    """AdamW moves a weight by its rate each step: 300 steps of 1e-4 from 1 make 0.97. Neighbours of 1 in bf16 are 2^-8 away,
    so that nearest rounding never moves; stochastic rounding arrives, on average."""

    def learn(model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        for _ in range(300):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        return model.weight.detach().float()

    def ones() -> torch.nn.Linear:
        model = torch.nn.Linear(40, 50, bias=False, dtype=torch.bfloat16)
        torch.nn.init.ones_(model.weight)
        return model

    nearest, stochastic = ones(), ones()
    stalled = learn(nearest, torch.optim.AdamW(nearest.parameters(), lr=1e-4, weight_decay=0.0))
    assert torch.equal(stalled, torch.ones_like(stalled))
    assert learn(stochastic, rounded(stochastic, 1e-4)).mean().item() == pytest.approx(0.97, abs=0.002)


def test_it_takes_two_bytes_for_each_of_weight_and_both_moments() -> None:
    model = torch.nn.Linear(300, 200, dtype=torch.bfloat16)
    optimizer = rounded(model, 1e-3)
    model(torch.randn(4, 300, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    count = sum(p.numel() for p in model.parameters())
    states = [t for p in model.parameters() for t in optimizer.state[p].values() if t.ndim]
    assert sum(t.numel() * t.element_size() for t in (*model.parameters(), *states)) == (2 + 2 + 2) * count
    named = dict(model.named_parameters())
    groups = parameter_groups(named, lr=1e-3, weight_decay=0.0)
    foretold = state_bytes(named, groups, rounded_like)
    passing = (4 + 4 + 4 + 4) * model.weight.numel()  # fp32 copies of the largest tensor, its gradient and its moments
    assert foretold == (2 + 2) * count + passing


def test_gradients_of_micro_batches_are_added_up_without_loss() -> None:
    """1 and then 128 times 2^-9: in bf16 each of the small ones is below half a step and vanishes; the sum is 1.25."""
    model = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    optimizer = rounded(model, 1e-3)
    for size in [1.0] + [2.0**-9] * 128:
        (model.weight * size).sum().backward()
    assert model.weight.grad is not None and model.weight.grad.dtype == torch.bfloat16
    assert model.weight.grad.float().mean().item() == pytest.approx(1.25, abs=0.005)
    once = model.weight.grad.clone()
    optimizer.zero_grad()
    for size in [1.0] + [2.0**-9] * 128:
        (model.weight * size).sum().backward()
    assert torch.equal(model.weight.grad, once), "a repeated step draws the same numbers"


class _Counting(torch.optim.SGD):
    """Counts its steps in the group, as schedule-free optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        super().step(closure)


def test_what_an_optimizer_counts_per_group_moves_once_a_step() -> None:
    model = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    optimizer = rounded(model, 1e-3, lambda groups: _Counting(groups))
    for _ in range(3):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {group["count"] for group in optimizer.param_groups} == {3}


def test_an_optimizer_that_swaps_weights_is_refused() -> None:
    class Swapping(torch.optim.SGD):
        def eval(self) -> None: ...

    with pytest.raises(ConfigError, match=r"pure_bf16[\s\S]*precision=bf16"):
        rounded(torch.nn.Linear(2, 2, dtype=torch.bfloat16), 1e-3, lambda groups: Swapping(groups))


# -- the optimizer's memory, before it exists ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "momentum", "none"])
def test_states_are_counted_before_they_exist(kind: str) -> None:
    def build(groups: Groups) -> torch.optim.Optimizer:
        made: dict[str, Any] = {
            "adamw": lambda: torch.optim.AdamW(groups), "adafactor": lambda: torch.optim.Adafactor(groups),
            "momentum": lambda: torch.optim.SGD(groups, momentum=0.9), "none": lambda: torch.optim.SGD(groups),
        }  # fmt: skip
        return made[kind]()

    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 30), torch.nn.Linear(30, 20))
    named = dict(model.named_parameters())
    groups = parameter_groups(named, lr=0.1, weight_decay=0.1)
    expected = state_bytes(named, groups, build)
    optimizer = build(parameter_groups(named, lr=0.1, weight_decay=0.1))
    model(torch.randn(3, 30)).sum().backward()
    optimizer.step()
    states = [t for p in named.values() for t in optimizer.state[p].values() if torch.is_tensor(t) and t.ndim]
    assert expected == sum(t.numel() * t.element_size() for t in states)
