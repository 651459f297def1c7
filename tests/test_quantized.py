"""Quantized frozen bases: the packing, the solver, the layers, opening tensor by tensor, training, resuming, merging."""

from __future__ import annotations

import importlib.util
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from test_loop import CONFIG, losses, new_run, rows_for
from tunesmith.config.errors import ConfigError, ExportError, UserError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import SILENT, Progress
from tunesmith.models.methods import lora
from tunesmith.models.open import open_model
from tunesmith.models.quantization import _hqq_solver, _packing
from tunesmith.models.quantization import bnb as bnb_kind
from tunesmith.models.quantization import fp8 as fp8_kind
from tunesmith.models.quantization import hqq as hqq_kind
from tunesmith.models.quantization._fp8_linear import Fp8Linear
from tunesmith.models.quantization._hqq_linear import HqqLinear
from tunesmith.models.quantization.base import is_packed, size_of, weights_of
from tunesmith.runs.folder import RunFolder
from tunesmith.train.loop import train
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import parameter_groups
from tunesmith.train.setup import Setup
from tunesmith.verbs.export import export
from tunesmith.verbs.quantized import apply_method, check_method
from tunesmith.verbs.run_config import METHODS, load_config
from tunesmith.verbs.targets import open_weights, target_of
from tunesmith.verbs.train import create, execute

CPU = torch.device("cpu")
BITS_A_WEIGHT = {
    "nf4": 4.5,
    "int8": 8.6,
    "hqq8": 8.54,
    "hqq4": 4.54,
    "hqq3": 3.54,
    "hqq2": 2.54,
    "hqq3c": 3.5,
    "fp8": 8.6,
}
"""What a linear layer of the tiny model may take in memory, scales included (its rows are short, so that they weigh more)."""
KINDS: dict[str, Any] = {
    "nf4": bnb_kind.Config(), "int8": bnb_kind.Config(bits=8), "fp8": fp8_kind.Config(),
    "hqq8": hqq_kind.Config(bits=8), "hqq4": hqq_kind.Config(bits=4), "hqq3": hqq_kind.Config(bits=3),
    "hqq2": hqq_kind.Config(bits=2), "hqq3c": hqq_kind.Config(bits=3, compress_scales=True),
}  # fmt: skip


class Said(Progress):
    """What was said, as one text."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, line: str) -> None:
        self.text += line + "\n"


def opened(folder: Path, quantize: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    return open_model(folder, dtype=dtype, device=CPU, quantize=quantize)


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    """Weights with outliers, as those of language models."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * (1 + 4 * (torch.rand(rows, columns, generator=generator) < 0.02)) * 0.02


def packed_layer(weight: torch.Tensor, make: Any) -> Any:
    out, columns = weight.shape
    layer = make(columns, out, False, torch.float32)
    layer.weight = nn.Parameter(layer.pack(weight), requires_grad=False)
    return layer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_wastes_nothing_and_loses_nothing(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = _packing.pack(codes, bits)
    assert packed.numel() * 8 == codes.numel() * bits
    assert torch.equal(_packing.unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_solver_beats_rounding(bits: int) -> None:
    """At the same bits and storage: less of the error that it minimizes (p = 0.7), and no group is made worse in it."""
    groups = heavy_tailed(512, 64)

    def error(iterations: int) -> torch.Tensor:
        step, zero = _hqq_solver.steps_and_zeros(groups, bits, iterations=iterations)
        codes = _hqq_solver.quantize(groups, step, zero, bits)
        restored = (codes.float() - zero.float()[:, None]) * step.float()[:, None]
        return ((groups - restored).abs() / step.float()[:, None]).pow(0.7).sum(1)

    rounded, solved = error(0), error(20)
    assert solved.mean() < 0.98 * rounded.mean()
    assert (solved <= rounded * 1.01).all()  # 1%: zeros are rounded to 16 bits after the search


def test_hqq_holds_weights_of_any_size() -> None:
    """Tiny, huge, constant and shifted groups, and rows that are no multiple of the group."""
    weight = heavy_tailed(8, 100)
    weight[1] *= 1e-6
    weight[2] *= 1e4
    weight[3] = 0.5
    weight[4] = 0.0
    weight[5] += 3.0
    layer = packed_layer(weight, lambda *shape: HqqLinear(*shape, bits=8, group=32))
    found = layer.dequantize()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
    assert ((found - weight).abs() / scale).max() < 0.005
    assert torch.equal(found[4], weight[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["hqq3", "fp8"])
def test_the_layer_is_its_dequantized_weight(which: str, dtype: torch.dtype) -> None:
    """Forward and the gradient of the input equal a plain linear layer's; the weight is not kept for the backward pass."""
    make = (lambda *shape: HqqLinear(*shape, bits=3, group=32)) if which == "hqq3" else Fp8Linear
    layer = packed_layer(heavy_tailed(48, 64), make)
    assert isinstance(layer, nn.Linear) and not layer.weight.is_floating_point() and not layer.weight.requires_grad
    x = torch.randn(3, 5, 64, dtype=dtype, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = layer(x)
    assert not kept
    y.float().square().sum().backward()
    plain = x.detach().clone().requires_grad_()
    expected = plain @ layer.dequantize(dtype).t()
    expected.float().square().sum().backward()
    assert torch.equal(y, expected) and torch.allclose(x.grad, plain.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_opened_small_and_near(tiny: Path, name: str) -> None:
    """Every linear layer but the output is packed in the promised bytes; the model still answers as the 16-bit one does."""
    whole, small = opened(tiny), opened(tiny, KINDS[name])
    layers = {n: m for n, m in whole.named_modules() if type(m) is nn.Linear and n != "lm_head"}
    assert {n for n, m in small.named_modules() if is_packed(m)} == layers.keys()
    rest = sum(p.nbytes for n, p in whole.named_parameters() if n.removesuffix(".weight") not in layers)
    rest += sum(b.nbytes for b in whole.buffers())
    count = sum(m.weight.numel() for m in layers.values())
    shared = 16 * 4 + 256 * 4 + 64  # bitsandbytes' tables of the 4-bit and of the double quantized values
    tables = len(layers) * shared if name == "nf4" else 0
    assert (size_of(small).stored - rest - tables) * 8 / count < BITS_A_WEIGHT[name]
    assert weights_of(small) == weights_of(whole) == sum(p.numel() for p in whole.parameters())
    ids = torch.arange(40)[None] + 100
    with torch.no_grad():
        exact, found = (m(ids).logits.log_softmax(-1) for m in (whole, small))
    away = (exact.exp() * (exact - found)).sum(-1).mean()
    shuffled = (exact.exp() * (exact - exact.roll(1, dims=1))).sum(-1).mean()
    assert 0 < away < shuffled * (1.0 if name == "hqq2" else 0.5)


def test_opened_tensor_by_tensor(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a weight is packed, the 16-bit weights before it are gone: the peak is the packed model and one tensor."""
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    original = HqqLinear.pack

    def spying(self: HqqLinear, weight: torch.Tensor) -> torch.Tensor:
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weight))
        return original(self, weight)

    monkeypatch.setattr(HqqLinear, "pack", spying)
    opened(tiny, KINDS["hqq4"])
    assert len(alive) == 14 and max(alive) <= 1, alive


def _setup(folder: Path, run: RunFolder, quantize: Any, steps: int) -> Setup:
    stage, rows = rows_for(folder, 4)
    torch.manual_seed(0)
    model = open_model(folder, dtype=torch.float32, device=CPU, attention="varlen", quantize=quantize)
    model = lora.apply(model, lora.Config(rank=4, dropout=0.1), base_name=str(folder))
    masters = Masters(model, torch.float32)
    config = CONFIG.model_copy(update={"max_steps": steps, "epochs": 3, "batch": 2, "warmup": 0})
    config = type(config)(**config.model_dump(exclude={"schedule"}), schedule="constant")
    return Setup(
        model=model, stage=stage, train=rows, eval=(), config=config, run=run, masters=masters,
        optimizer=adamw.build(parameter_groups(masters.named(), lr=config.lr, weight_decay=0.0), adamw.Config()),
        micro_tokens=300, save_model=lambda to, state: lora.save(model, to, state),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["nf4", "int8", "fp8", "hqq8", "hqq4", "hqq3", "hqq2"])
def test_learns_and_resumes_bit_for_bit(tiny: Path, tmp_path: Path, name: str) -> None:
    """Six steps equal three and three; the loss falls; the base's packed weights are those it was opened with."""
    whole = _setup(tiny, new_run(tmp_path, "whole"), KINDS[name], 6)
    adapted = [n for n, _ in whole.model.named_modules() if n.endswith("lora_A.default")]
    assert len(adapted) == 14, "targets: all finds every packed layer"
    before = {n: p.detach().clone() for n, p in whole.model.named_parameters() if not p.requires_grad}
    train(whole)
    assert all(torch.equal(p, before[n]) for n, p in whole.model.named_parameters() if n in before)
    found = losses(whole.run)
    assert found[-1] < found[0]
    run = new_run(tmp_path, "halves")
    train(_setup(tiny, run, KINDS[name], 3))
    again = _setup(tiny, run, KINDS[name], 6)
    train(again, resume=(run.checkpoint(), lora.load_state(run.checkpoint(), again.model)))
    assert losses(run) == found
    expected = whole.masters.state()
    assert all(torch.equal(value, expected[key]) for key, value in again.masters.state().items())


def test_dora_knows_the_dequantized_norm(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = opened(tiny, KINDS["hqq4"])
    norm = model.model.layers[0].mlp.up_proj.dequantize().norm(dim=1)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"))
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    assert torch.allclose(layer.lora_magnitude_vector["default"].weight, norm)
    adapted(torch.arange(9)[None]).logits.mean().backward()


def test_what_cannot_be_done_is_said(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [f"model={tiny}", "data=lantern_bay", "model.quantize=hqq"])
    learning_all = type("full", (), {})
    check_method(config, tiny, learning_all)
    settings = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    stored = settings | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is stored quantized \(gptq"):
        check_method(config, tmp_path, learning_all)
    check_method(config, tmp_path, load_plugin(METHODS, "lora"))

    def rewriting(model: Any, method: Any, *, base_name: str) -> Any:
        from peft import LoraConfig, get_peft_model

        how = LoraConfig(target_modules="all-linear", init_lora_weights=method, task_type="CAUSAL_LM")
        return get_peft_model(model, how)

    for start in ("pissa_niter_2", "olora"):
        with pytest.raises(ConfigError, match="the base is quantized"):
            method = type("m", (), {"apply": staticmethod(rewriting)})
            apply_method(
                opened(tiny, KINDS["hqq8"]), config.model_copy(update={"method": start}), method, base_name="x"
            )
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(UserError, match="bitsandbytes") as caught:
        opened(tiny, KINDS["nf4"])
    assert "tunesmith[bnb]" in str(caught.value)
    with pytest.raises(ConfigError, match="group_size"):
        load_config(None, [f"model={tiny}", "data=lantern_bay", "model.quantize={kind: hqq, group_size: 20}"])


def test_a_run_is_opened_as_trained_and_merged_into_the_original(tiny: Path, capsys: Any) -> None:
    """Through the verbs: status, engine of the run, and the merge that tells how far it is from what was trained."""
    settings = [
        "data.limit=8",
        "data.eval_share=0",
        "data.max_length=128",
        "train.max_steps=3",
        "train.lr=1e-2",
        "precision=fp32",
    ]
    overrides = [f"model={tiny}", "model.quantize={kind: hqq, bits: 3}", "data=lantern_bay", "method.rank=4", *settings]
    run = create(load_config(None, overrides))
    execute(run, SILENT)
    log = run.log_path.read_text()
    assert "base hqq 3 bit, 0.0" in log and "GiB instead of" in log and "merged into the 16-bit model" in log
    text = f"run:{run.id}"
    trained = open_weights(target_of(text, SILENT))
    assert any(isinstance(module, HqqLinear) for module in trained.modules())
    said = Said()
    place, checks = export(text, "hf", said)
    assert "merged: 14" in checks
    assert "differs much from what was trained on the quantized base (mean KL" in said.text
    assert not any(is_packed(m) for m in opened(place).modules())


def test_the_merge_of_a_stored_base_needs_the_original(tiny: Path, tmp_path: Path) -> None:
    from test_quantized_stored import make_gptq

    stored = make_gptq(tiny, tmp_path / "gptq", bits=4)
    settings = ["data.limit=4", "data.eval_share=0", "data.max_length=128", "train.max_steps=2", "precision=fp32"]
    run = create(load_config(None, [f"model={stored}", "data=lantern_bay", "method.rank=4", *settings]))
    execute(run, SILENT)
    assert "base stored as gptq" in run.log_path.read_text()
    with pytest.raises(ExportError, match="stored as gptq") as caught:
        export(f"run:{run.id}", "hf", SILENT)
    assert "--base MODEL" in str(caught.value)
    place, checks = export(f"run:{run.id}", "hf", SILENT, base=str(tiny))
    assert "merged: 14" in checks and place.is_dir()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_as_on_the_cpu(tiny: Path, name: str) -> None:
    """Opened, run and learned on the GPU in bf16: near the CPU's answer, gradients in every adapter, less memory than 16 bit."""
    cuda, ids = torch.device("cuda"), torch.arange(40)[None] + 100
    model = open_model(tiny, dtype=torch.bfloat16, device=cuda, quantize=KINDS[name])
    assert all(t.is_cuda for t in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        here = opened(tiny, KINDS[name])(ids).logits.log_softmax(-1)
        there = model(ids.to(cuda)).logits.float().cpu().log_softmax(-1)
        exact = opened(tiny)(ids).logits.log_softmax(-1)
    between, away = ((here.exp() * (here - other)).sum(-1).mean() for other in (there, exact))
    assert between < max(0.1, away)
    adapted = lora.apply(model, lora.Config(rank=4), base_name="x")
    adapted(ids.to(cuda)).logits.float().square().mean().backward()
    learned = [p for p in adapted.parameters() if p.requires_grad]
    assert len(learned) == 28 and all(p.grad is not None for p in learned)
