"""The step within the backward pass: the same weights as the ordinary step, and gradients that never live together."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_fixtures import make_model
from test_loop import CPU, losses, new_run, rows_for
from tunesmith.config.errors import ConfigError, TrainingError
from tunesmith.config.plugins import load
from tunesmith.models.open import open_model
from tunesmith.runs.folder import RunFolder
from tunesmith.train import backward, step
from tunesmith.train.config import TrainConfig
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.setup import Setup

CONFIG: dict[str, Any] = {"batch": 2, "lr": 1e-2, "max_steps": 3, "warmup": 0, "clip": 0.3}

VOCABULARY = 256
"""Small, so that the embedding does not outweigh everything else; the rows' tokens are folded into it."""


@pytest.fixture(scope="module")
def tied(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(smol, tmp_path_factory.mktemp("tied") / "m", "llama-tied", hidden_size=32, vocab_size=VOCABULARY)


@cache
def small_rows(folder: Path) -> tuple[Any, list[Any]]:
    stage, rows = rows_for(folder, 6)
    return stage, [replace(row, ids=row.ids % VOCABULARY) for row in rows]


def whole_model(folder: Path, run: RunFolder, dtype: torch.dtype = torch.float32, **settings: Any) -> Setup:
    """Every weight of the model learned, saved as it is by name."""
    config = TrainConfig(**CONFIG | settings)
    stage, rows = small_rows(folder)
    model = open_model(folder, dtype=dtype, device=CPU, attention="varlen")
    model.requires_grad_(True)
    masters = Masters(model, dtype)
    plugin = load("tunesmith.train.optimizers", config.optimizer.kind)
    return Setup(
        model=model, stage=stage, train=rows, eval=[], config=config, run=run, masters=masters,
        optimizer=plugin.build(parameter_groups(masters.named(), lr=config.lr, weight_decay=0.01), config.optimizer),
        micro_tokens=100_000, save_model=lambda to, state: save_file(state, to / "weights.safetensors"),
    )  # fmt: skip


def learned(setup: Setup) -> tuple[dict[str, torch.Tensor], list[float]]:
    train(setup)
    return setup.masters.state(), [r["grad_norm"] for r in setup.run.metrics() if r["kind"] == "step"]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(found[name], expected[name], atol=1e-6, rtol=1e-5) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_two_passes_are_the_ordinary_step(tied: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Three steps of AdamW with the global norm clipped, tied embeddings included; and one pass, where nothing is clipped."""
    plain, norms = learned(whole_model(tied, new_run(tmp_path, "plain"), dtype))
    setup = whole_model(tied, new_run(tmp_path, "two"), dtype, update_in_backward="two_passes")
    found, found_norms = learned(setup)
    assert found_norms == pytest.approx(norms, rel=1e-6) and norms[0] > CONFIG["clip"]
    assert same(found, plain)
    assert all(torch.equal(p, m.to(dtype)) for p, m in setup.masters.pairs.values())
    plain, norms = learned(whole_model(tied, new_run(tmp_path, "free"), dtype, clip=0))
    found, found_norms = learned(whole_model(tied, new_run(tmp_path, "one"), dtype, clip=0, update_in_backward=True))
    assert found_norms == pytest.approx(norms, rel=1e-6) and same(found, plain)


@pytest.mark.parametrize(
    "kind", ["adamw", "galore", "apollo", "adam_mini", {"kind": "lomo", "adaptive": True}], ids=str
)
def test_one_pass_clips_each_tensor(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Equal to the ordinary step of the same optimizer with each tensor's gradient clipped by its own norm."""
    found, found_norms = learned(whole_model(tied, new_run(tmp_path, "one"), optimizer=kind, update_in_backward=True))

    def each(parameters: Any, most: float) -> torch.Tensor:
        return torch.stack([torch.nn.utils.clip_grad_norm_([p], most) for p in parameters]).norm()

    monkeypatch.setattr(TrainConfig, "in_backward", False)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", _first_each(each, torch.nn.utils.clip_grad_norm_))
    expected, norms = learned(whole_model(tied, new_run(tmp_path, "plain"), optimizer=kind))
    assert found_norms == pytest.approx(norms, rel=1e-5) and same(found, expected)


def _first_each(each: Any, real: Any) -> Any:
    """``each`` for the loop's call over all parameters, the real function for single ones."""
    return lambda parameters, most: each(parameters, most) if len(parameters) > 1 else real(parameters, most)


@pytest.mark.parametrize("passes", [True, "two_passes"])
def test_gradients_never_live_together(tied: Path, tmp_path: Path, passes: Any) -> None:
    """Every gradient that autograd hands to a weight is watched until it is freed: at no time do they take more bytes
    than the two largest weights; in the ordinary step all of them live at the end."""
    peak = {True: 0, False: 0}
    sizes: list[int] = []
    for fused in (True, False):
        setup = whole_model(tied, new_run(tmp_path, f"r{fused}"), update_in_backward=passes if fused else False)
        sizes = sorted(p.numel() * 4 for p, _ in setup.masters.pairs.values())
        parameters = [tensor for pair in setup.masters.pairs.values() for tensor in pair]
        alive: dict[int, int] = {}

        def watch(
            gradient: torch.Tensor, alive: dict[int, int] = alive, fused: bool = fused, parameters: Any = parameters
        ) -> None:
            storage = gradient.untyped_storage()
            alive[storage._cdata] = storage.nbytes()
            here = {p.grad.untyped_storage()._cdata for p in parameters if p.grad is not None}
            for key in [key for key in alive if key not in here | {storage._cdata}]:
                del alive[key]
            peak[fused] = max(peak[fused], sum(alive.values()))

        for parameter, _ in setup.masters.pairs.values():
            parameter.register_hook(watch)
        one_step(setup)
        assert all(tensor.grad is None for tensor in parameters)
    assert peak[True] <= sum(sizes[-2:]) < 0.9 * sum(sizes) <= peak[False] + sizes[-1]


def one_step(setup: Setup) -> None:
    found = step.gradients(setup, setup.train[:2], 1e-3, 1)
    if not found.moved:
        step.apply(setup, 1e-3)


def test_checkpointed_layers_give_the_same(tied: Path, tmp_path: Path) -> None:
    from tunesmith.models.checkpointing import checkpoint_layers, decoder_layers

    for passes in (True, "two_passes"):
        plain, _ = learned(whole_model(tied, new_run(tmp_path, f"p{passes}"), update_in_backward=passes, max_steps=1))
        setup = whole_model(tied, new_run(tmp_path, f"c{passes}"), update_in_backward=passes, max_steps=1)
        layers = decoder_layers(setup.model)
        checkpoint_layers(layers, len(layers))
        assert same(learned(setup)[0], plain)


KINDS: list[Any] = [
    {"kind": "galore", "rank": 4, "update_gap": 2}, {"kind": "apollo", "rank": 4, "update_gap": 2}, "adam_mini",
    {"kind": "badam", "switch_every": 2, "order": "random"}, {"kind": "badam", "mode": "ratio", "switch_every": 2},
    {"kind": "lomo", "adaptive": True},
]  # fmt: skip


@pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: str(kind if isinstance(kind, str) else list(kind.values())[:2])
)
def test_six_steps_are_three_and_three(tied: Path, tmp_path: Path, kind: Any) -> None:
    """Resumed at step 3 through the loop: bit for bit the weights of an uninterrupted run. And it learns."""
    settings = {"optimizer": kind, "max_steps": 6, "save_every": 3, "schedule": "constant", "keep": 3}
    whole = whole_model(tied, new_run(tmp_path, "whole"), **settings)
    train(whole)
    assert losses(whole.run)[-1] < losses(whole.run)[0]
    again = whole_model(tied, new_run(tmp_path, "again"), **settings)
    folder = whole.run.checkpoints / "step-3"
    train(again, resume=(folder, load_file(folder / "weights.safetensors")))
    assert all(torch.equal(again.masters.state()[name], value) for name, value in whole.masters.state().items())


def test_badam_s_other_layers_get_no_gradient(tied: Path, tmp_path: Path) -> None:
    """Only the first layer moves in its turn; no other weight has a gradient in the backward pass; afterwards all may again."""
    setup = whole_model(tied, new_run(tmp_path), torch.bfloat16, optimizer="badam")
    before = {name: master.clone() for name, master in setup.masters.state().items()}
    touched: set[str] = set()
    for name, (parameter, _) in setup.masters.pairs.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: touched.add(name))
    one_step(setup)
    moved = {name for name, value in setup.masters.state().items() if not torch.equal(value, before[name])}
    assert moved == touched == {name for name in before if ".layers.0." in name}
    assert all(parameter.requires_grad for parameter, _ in setup.masters.pairs.values())


def test_what_is_not_finite_stops_before_it_is_applied(tied: Path, tmp_path: Path) -> None:
    """A gradient of infinities in the first layer: two passes move nothing; one pass has moved what came before, and says so."""
    for passes in ("two_passes", True):
        setup = whole_model(tied, new_run(tmp_path, f"r{passes}"), update_in_backward=passes)
        broken = "model.layers.0.self_attn.q_proj.weight"
        setup.masters.pairs[broken][0].register_hook(lambda gradient: gradient * math.inf)
        before = {name: master.clone() for name, master in setup.masters.state().items()}
        with pytest.raises(TrainingError) as caught:
            one_step(setup)
        moved = [name for name, value in setup.masters.state().items() if not torch.equal(value, before[name])]
        assert broken not in moved and bool(moved) == (passes is True)
        if passes is True:
            assert f"gradient norm of {broken}" in str(caught.value) and "last checkpoint" in str(caught.value)
            assert f"{len(moved)} other tensors had been moved" in str(caught.value)


def test_a_step_that_does_not_fit_is_refused_in_words(tied: Path, tmp_path: Path) -> None:
    setup = whole_model(tied, new_run(tmp_path), update_in_backward=True, micro_tokens=20)
    with pytest.raises(TrainingError, match=r"2 rows of step 1 hold \d+ tokens, too many for train.micro_tokens=20"):
        train(setup)


def test_which_optimizers_may(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.verbs.run_config import load_config

    with pytest.raises(ConfigError, match=r"steps each tensor on its own \(.*adamw.*galore.*\), not badam"):
        load_config(None, ["model=demo", "data=x", "train.optimizer=badam", "train.update_in_backward=true"])
    assert TrainConfig(optimizer="lomo").in_backward and not TrainConfig().in_backward

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    setup = whole_model(tied, new_run(tmp_path), update_in_backward=True)
    monkeypatch.setattr(backward, "backward_and_step", full)
    with pytest.raises(TrainingError, match=r"too many for the memory of the device in one pass[\s\S]*train.batch"):
        train(setup)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_on_a_gpu() -> None:
    """64 square layers of 4 MiB: stepping within the backward pass saves nearly all of the 256 MiB of gradients."""
    peaks = []
    for fused in (False, True):
        layers = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(64)]).cuda()
        masters = Masters(layers, torch.float32)
        plugin = load("tunesmith.train.optimizers", "lomo")
        optimizer = plugin.build(parameter_groups(masters.named(), lr=1e-3, weight_decay=0.0), plugin.Config())
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = layers(torch.ones(1, 1024, device="cuda")).sum()
        if fused:
            backward.backward_and_step(loss, masters, optimizer, math.inf)
        else:
            loss.backward()
            optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del layers, masters, optimizer, loss
    assert peaks[1] < peaks[0] - 200 * 2**20
