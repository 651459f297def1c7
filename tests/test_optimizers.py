"""Optimizers against those they stand on, their rules by hand, and what is said when a library is missing."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunesmith.config.errors import ConfigError, UserError
from tunesmith.config.plugins import config_of, load, names
from tunesmith.train.config import OPTIMIZERS, TrainConfig
from tunesmith.train.optimizers.base import check_installed, parameter_groups
from tunesmith.verbs.run_config import load_config

RATE, DECAY, STEPS = 1e-3, 0.1, 5
Tensors = dict[str, torch.nn.Parameter]


def tensors() -> Tensors:
    """A matrix each way, an embedding, a stack of matrices and a norm."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"up": (96, 64), "down": (64, 96), "embed": (128, 64), "experts": (3, 64, 96), "norm": (64,)}
    return {name: torch.nn.Parameter(torch.randn(*shape, generator=generator)) for name, shape in shapes.items()}


def run(optimizer: torch.optim.Optimizer, of: Tensors, steps: int = STEPS) -> Tensors:
    """``of`` after a few steps with made-up gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in of.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.3
        optimizer.step()
        optimizer.zero_grad()
    return of


def ours(kind: str, only: tuple[str, ...] = (), lr: float = RATE, **settings: Any) -> Tensors:
    found = {name: value for name, value in tensors().items() if not only or name in only}
    plugin = load(OPTIMIZERS, kind)
    groups = parameter_groups(found, lr=lr, weight_decay=DECAY)
    return run(plugin.build(groups, plugin.Config(**settings)), found)


def theirs(
    make: Callable[..., torch.optim.Optimizer], only: tuple[str, ...] = (), lr: float = RATE, **settings: Any
) -> Tensors:
    found = {name: value for name, value in tensors().items() if not only or name in only}
    groups = [{"params": [p], "lr": lr, "weight_decay": DECAY if name != "norm" else 0.0} for name, p in found.items()]
    return run(make(groups, **settings), found)


def assert_close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    """Equal within ``tolerance`` of the change that training made."""
    start = tensors()
    for name in expected:
        change = (expected[name] - start[name]).norm()
        assert change > 0 and (found[name] - expected[name]).norm() <= tolerance * change, name


def test_adamw_is_torch_s_plain_one() -> None:
    assert_close(ours("adamw", beta2=0.95), theirs(torch.optim.AdamW, betas=(0.9, 0.95), foreach=False), 1e-5)


def test_adafactor_is_transformers_own() -> None:
    """Another implementation of the paper: the same while the rate is below 1 / sqrt(step), where torch's caps it."""
    from transformers import Adafactor

    settings = {"scale_parameter": True, "relative_step": False, "warmup_init": False}
    assert_close(ours("adafactor", lr=1e-2), theirs(Adafactor, lr=1e-2, **settings), 1e-3)


def test_sgd_by_hand() -> None:
    """With momentum m and gradients g1, g2: v1 = g1, v2 = m v1 + g2; Nesterov steps along g + m v."""
    parameter = torch.nn.Parameter(torch.tensor([[2.0]]))
    plugin = load(OPTIMIZERS, "sgd")
    optimizer = plugin.build(parameter_groups({"w": parameter}, lr=0.1, weight_decay=0.0), plugin.Config(momentum=0.5))
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
    # 2 - 0.1 (1 + 0.5 * 1) = 1.85; v = 0.5 * 1 + 3 = 3.5; 1.85 - 0.1 (3 + 0.5 * 3.5) = 1.375
    assert parameter.item() == pytest.approx(1.375)


def test_lion_by_hand() -> None:
    """Two steps of one weight: the second gradient is too small to turn the direction, not to enter the momentum."""
    parameter = torch.nn.Parameter(torch.tensor([[2.0]]))
    plugin = load(OPTIMIZERS, "lion")
    optimizer = plugin.build(parameter_groups({"w": parameter}, lr=0.1, weight_decay=0.5), plugin.Config())
    expected, momentum = 2.0, 0.0
    for gradient in (1.0, -0.05):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        direction = math.copysign(1, 0.9 * momentum + 0.1 * gradient)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * direction
        momentum = 0.99 * momentum + 0.01 * gradient
    # 2 * 0.95 - 0.1 = 1.8; 0.9 * 0.01 - 0.1 * 0.05 > 0, so 1.8 * 0.95 - 0.1 = 1.61
    assert parameter.item() == pytest.approx(1.61) == pytest.approx(expected)
    assert optimizer.state[parameter]["exp_avg"].item() == pytest.approx(momentum)


def test_lion_is_bitsandbytes_own() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    assert_close(ours("lion"), theirs(bitsandbytes.optim.Lion, betas=(0.9, 0.99)), 1e-5)


MATRICES = ("up", "down")


@pytest.mark.parametrize(("scale", "name"), [("rms", "match_rms_adamw"), ("original", "original")])
def test_muon_on_matrices_is_torch_s(scale: str, name: str) -> None:
    """torch computes the iteration in bf16, we on a CPU in fp32: the updates agree to bf16's precision."""
    assert_close(ours("muon", MATRICES, scale=scale), theirs(torch.optim.Muon, MATRICES, adjust_lr_fn=name), 0.03)


def test_muon_makes_matrices_orthogonal_one_by_one() -> None:
    """All singular values come near 1, those of a stack of matrices each for itself; bf16 agrees with fp32."""
    from tunesmith.train.optimizers._muon import newton_schulz

    matrices = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrices, 5, torch.float32)
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.6 and singular.max() < 1.25
    for i in range(3):
        assert torch.allclose(found[i], newton_schulz(matrices[i].mT, 5, torch.float32).mT, atol=1e-5)
    assert torch.allclose(newton_schulz(matrices, 5).float(), found, atol=0.03)


def test_muon_leaves_embeddings_and_norms_to_adamw() -> None:
    """… and LoRA's factors, which are matrices, to itself; AdamW's learning rate follows its ratio."""
    rest = ("embed", "norm")
    assert_close(ours("muon", rest, adamw_ratio=0.5), theirs(torch.optim.AdamW, rest, lr=RATE / 2, foreach=False), 1e-5)
    plugin = load(OPTIMIZERS, "muon")
    named = {name: torch.nn.Parameter(torch.zeros(4, 64)) for name in ("q_proj.lora_A", "lm_head.lora_A")}
    groups = parameter_groups(named, lr=RATE, weight_decay=DECAY, lr_scales={"q_proj.lora_A": 16.0})
    optimizer = plugin.build(groups, plugin.Config(adamw_ratio=0.5))
    run(optimizer, named, 1)
    assert "momentum_buffer" in optimizer.state[named["q_proj.lora_A"]]
    assert "exp_avg" in optimizer.state[named["lm_head.lora_A"]]
    assert {g["names"][0]: g["lr_scale"] for g in optimizer.param_groups} == {
        "q_proj.lora_A": 16.0, "lm_head.lora_A": 0.5,
    }  # fmt: skip


def test_8_bit_adamw_is_bitsandbytes_own_and_near_adamw() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    found = ours("adamw_8bit")
    assert_close(found, theirs(bitsandbytes.optim.AdamW8bit), 0.0)
    assert_close(found, ours("paged_adamw_8bit"), 0.0)  # on a CPU nothing is paged
    assert_close(found, ours("adamw"), 0.1)
    assert_close(ours("paged_adamw"), ours("adamw"), 1e-4)


@pytest.mark.parametrize(("state", "tolerance"), [("8bit", 0.1), ("4bit", 0.3), ("fp8", 0.3)])
def test_torchao_s_adamw_is_near_adamw(state: str, tolerance: float) -> None:
    pytest.importorskip("torchao")
    assert_close(ours("adamw_torchao", state=state), ours("adamw"), tolerance)


def test_schedule_free_is_the_package_s() -> None:
    """Bit for bit, although here the weights were evaluated after every step, which rounds in the package's own way."""
    schedulefree = pytest.importorskip("schedulefree")
    reference = tensors()
    groups = [{"params": [p], "weight_decay": DECAY if n != "norm" else 0.0} for n, p in reference.items()]
    optimizer = schedulefree.AdamWScheduleFree(groups, lr=RATE, betas=(0.9, 0.999))
    optimizer.train()
    run(optimizer, reference)
    training = {name: value.detach().clone() for name, value in reference.items()}
    optimizer.eval()
    found, plugin = tensors(), load(OPTIMIZERS, "schedule_free")
    mine = plugin.build(parameter_groups(found, lr=RATE, weight_decay=DECAY), plugin.Config())
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for parameter in found.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.3
        mine.step()
        with mine.evaluation_weights():
            averaged = {name: value.detach().clone() for name, value in found.items()}
    for name, value in found.items():
        assert torch.equal(value, training[name]) and torch.equal(averaged[name], reference[name]), name
        assert not torch.equal(value, averaged[name])


def test_schedule_free_takes_no_falling_schedule() -> None:
    words = ["model=demo", "data=lantern_bay", "train.optimizer=schedule_free"]
    assert load_config(None, words).train.schedule.kind == "constant"
    assert load_config(None, words[:2]).train.schedule.kind == "cosine"
    assert TrainConfig(**load_config(None, words).train.model_dump()).schedule.kind == "constant"
    with pytest.raises(ConfigError, match="schedule_free needs schedule=constant"):
        load_config(None, [*words, "train.schedule=cosine"])


def test_vectors_are_not_decayed_and_rates_are_scaled() -> None:
    groups = parameter_groups(tensors(), lr=2.0, weight_decay=0.3, lr_scales={"down": 16.0})
    found = {name: (g["lr"], g["lr_scale"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert found["up"] == (2.0, 1.0, 0.3) and found["down"] == (32.0, 16.0, 0.3) and found["norm"] == (2.0, 1.0, 0.0)
    assert sum(len(group["params"]) for group in groups) == 5


WITH_LIBRARY = [kind for kind in names(OPTIMIZERS) if hasattr(load(OPTIMIZERS, kind), "REQUIRES")]


@pytest.mark.parametrize("kind", WITH_LIBRARY)
def test_a_missing_library_is_said_before_anything_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.verbs.train import create

    package, extra = load(OPTIMIZERS, kind).REQUIRES
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    words = f"train.optimizer={kind} needs the package {package}[\\s\\S]*pip install 'tunesmith\\[{extra}\\]'"
    with pytest.raises(UserError, match=words):
        check_installed(load(OPTIMIZERS, kind))
    with pytest.raises(UserError, match=words):
        load(OPTIMIZERS, kind).build([], config_of(OPTIMIZERS, kind)())
    with pytest.raises(UserError, match=words):
        create(load_config(None, ["model=demo", "data=lantern_bay", f"train.optimizer={kind}"]))


def test_the_extras_are_in_the_package() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert WITH_LIBRARY
    for kind in WITH_LIBRARY:
        package, extra = load(OPTIMIZERS, kind).REQUIRES
        assert any(line.startswith(package) for line in project["optional-dependencies"][extra]), kind
