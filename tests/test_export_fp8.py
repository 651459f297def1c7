"""Export to float8: what is written, what our reader makes of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import make_family
from tunesmith.config.errors import ExportError
from tunesmith.export.targets import fp8
from tunesmith.models.open import open_model
from tunesmith.models.quantization.base import is_packed

CPU = torch.device("cpu")
SLOW = pytest.mark.slow


def test_rows_keep_their_own_scale() -> None:
    """By hand: the largest number of float8 is 448, so a row [448, 224, 1, 0] has scale 1 and is exact; half of it has scale 0.5. The next float8
    numbers below 448 are 32 apart (3 bits of mantissa, 2^8 to 2^9), so 430 becomes 416 or 448, whichever is nearer: 416 + 16 = 432 > 430."""
    row = torch.tensor([448.0, 224.0, 1.0, 0.0])
    weight = torch.stack([row, row / 2, torch.zeros(4), torch.tensor([448.0, 430.0, -448.0, 434.0])])
    found, scale = fp8.rounded(weight)
    assert scale.flatten().tolist() == [1.0, 0.5, 1.0, 1.0]
    assert (found.float() * scale)[:3].tolist() == weight[:3].tolist()
    assert found.float()[3].tolist() == [448.0, 416.0, -448.0, 448.0]
    for dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # the scale is rounded to the type it is stored in, and the row is divided by that
        torch.manual_seed(0)
        weight = torch.randn(64, 32).to(dtype)
        found, scale = fp8.rounded(weight)
        assert scale.dtype == dtype and found.float().isfinite().all()
        off = (found.float() * scale.float() - weight.float()).abs()
        assert (off <= weight.float().abs() * 2.0**-4 * 1.001 + scale.float() * 2.0**-10).all()


def test_a_row_is_divided_by_the_scale_that_is_stored() -> None:
    """By hand, in bfloat16: the largest weight 1 gives the scale 1/448 = 146.3/128 * 2^-9, stored as 146/128 * 2^-9. 210/256 is 367.5 of the exact
    one, nearest to 352, and 368.2 of the stored one, nearest to 384 (float8 numbers there are 32 apart)."""
    found, scale = fp8.rounded(torch.tensor([[1.0, 210 / 256]]).bfloat16())
    assert scale.item() == 146 / 128 * 2**-9
    assert found.float().tolist() == [[448.0, 384.0]]


@pytest.mark.parametrize("largest", [2**-24, 1e-6, 1e-5, 3e-5, 4e-5, 1e-3, 0.02])
def test_small_rows_of_float16_stay(largest: float) -> None:
    """Their scales are below the normal numbers of float16, 2^-24 apart; each weight is still off by 1/16 at most, or by half of float8's smallest
    step: 2^-10 of the scale."""
    weight = (torch.linspace(-1, 1, 257) * largest).half()[None]
    found, scale = fp8.rounded(weight)
    off = (found.float() * scale.float() - weight.float()).abs()
    assert (off <= weight.float().abs() / 16 + scale.float() * 2**-10).all()
    assert found.float().abs().max() * scale.float() > 0.9 * weight.float().abs().max()


@pytest.mark.parametrize(
    "family", ["llama", "phi3", *(pytest.param(name, marks=SLOW) for name in ("qwen2", "gemma3", "gpt_neox", "cohere"))]
)
def test_what_is_written(tmp_path: Path, family: str) -> None:
    base, out = make_family(tmp_path / "base", family), tmp_path / "out"
    report = fp8.export(base, out, fp8.Config())
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["format"] == "float-quantized" and settings["quant_method"] == "compressed-tensors"
    group = settings["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel" and group["input_activations"] == {
        "num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "strategy": "token", "dynamic": True,
    }  # fmt: skip
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    packed = {name for name, tensor in new.items() if tensor.dtype == torch.float8_e4m3fn}
    assert len(packed) == report.checks["layers"] > 0
    for name, tensor in old.items():
        if name in packed:
            assert new[f"{name}_scale"].shape == (len(tensor), 1)
        else:
            assert torch.equal(new[name], tensor)
    exact, found = (open_model(folder, dtype=torch.float32, device=CPU) for folder in (base, out))
    layers = {name for name, module in found.named_modules() if is_packed(module)}
    assert layers == {name.removesuffix(".weight") for name in packed}
    linears = {name for name, module in exact.named_modules() if isinstance(module, torch.nn.Linear)}
    ignored = set(settings["ignore"])
    assert layers | ignored >= linears and not layers & ignored
    assert ignored - linears <= {name.removesuffix(".weight") for name in old}, (
        "as it is stored, where that is another name"
    )
    for name in layers:
        weight = exact.get_submodule(name).weight
        rounded, scale = fp8.rounded(weight)
        assert torch.equal(found.get_submodule(name).dequantize(), rounded.float() * scale)


@pytest.mark.parametrize(
    "family", ["mixtral", *(pytest.param(f, marks=SLOW) for f in ("qwen3_moe", "deepseek_v3", "jamba"))]
)
def test_experts(tmp_path: Path, family: str) -> None:
    """Each expert's weights are packed under their own names, as vLLM reads them, routers are not; opened by our reader the model answers as one
    whose weights are what the packed ones stand for."""
    sizes = {} if family in ("mixtral", "jamba") else {"moe_intermediate_size": 32}
    base, out = make_family(tmp_path / "base", family, **sizes), tmp_path / "out"
    report = fp8.export(base, out, fp8.Config())
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    experts = {name for name in old if ".experts." in name}
    packed = {name for name, tensor in new.items() if tensor.dtype == torch.float8_e4m3fn}
    assert experts and experts < packed and len(packed) == report.checks["layers"]
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    routers = [n for n in old if n.endswith((".gate.weight", ".router.weight"))]
    assert routers and not packed & set(routers) and {n.removesuffix(".weight") for n in routers} <= set(ignored)
    stand_for = dict(old)
    for name in packed:
        stand_for[name] = new[name].float() * new[f"{name}_scale"].float()
    plain = shutil.copytree(base, tmp_path / "plain")
    save_file(stand_for, plain / "model.safetensors", {"format": "pt"})
    ids = torch.arange(6, 40)[None]
    exact, found, first = (open_model(f, dtype=torch.float32, device=CPU)(ids).logits for f in (plain, out, base))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert (first - exact).abs().max() > 1e-3


def test_refused(tmp_path: Path) -> None:
    base, out = make_family(tmp_path / "base", "llama"), tmp_path / "out"
    with pytest.raises(ExportError, match="stores all experts of a layer in one tensor"):
        fp8.export(make_family(tmp_path / "experts", "granitemoe"), out, fp8.Config())
    fp8.export(base, tmp_path / "packed", fp8.Config())
    with pytest.raises(ExportError, match="stored quantized already"):
        fp8.export(tmp_path / "packed", out, fp8.Config())
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        fp8.export(base, out, fp8.Config())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "experts", "packed"]
