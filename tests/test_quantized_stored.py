"""Checkpoints that are stored quantized, packed here bit by bit after the definition of their formats, opened as frozen bases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_fixtures import edit_json
from tunesmith.config.errors import UserError
from tunesmith.models.open import open_model
from tunesmith.models.quantization import hqq
from tunesmith.models.quantization.base import is_packed

CPU = torch.device("cpu")
Layer = dict[str, torch.Tensor]


def int32(value: int) -> int:
    """The 32 bits of ``value`` as a signed number."""
    return value - 2**32 if value >= 2**31 else value


def words_along(values: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] -> int32 words: each row as one long string of bits, the first value in the lowest bits."""
    rows = []
    for row in values.tolist():
        whole = 0
        for place, value in enumerate(row):
            whole |= value << (place * bits)
        rows.append([int32(whole >> (32 * k) & 0xFFFFFFFF) for k in range(len(row) * bits // 32)])
    return torch.tensor(rows, dtype=torch.int32)


def codes_of(
    weight: torch.Tensor, bits: int, group: int, order: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Codes [out, in], zeros and scales [groups, out] and g_idx [in] of a min-max quantization, and what they stand for."""
    columns = weight.shape[1]
    index = torch.arange(columns) // group
    if order is not None:
        index = index[order]
    scales, zeros = (
        torch.zeros(columns // group, len(weight)),
        torch.zeros(columns // group, len(weight), dtype=torch.int32),
    )
    for g in range(columns // group):
        part = weight[:, index == g]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[g] = ((high - low) / (2**bits - 1)).half().float()
        zeros[g] = (-low / scales[g]).round().clamp(0, 2**bits - 1).int()
    codes = (weight / scales[index].t() + zeros[index].t()).round().clamp(0, 2**bits - 1).int()
    return codes, zeros, scales, index, (codes - zeros[index].t()) * scales[index].t()


def gptq_layer(weight: torch.Tensor, bits: int, *, act_order: bool, v2: bool) -> tuple[Layer, torch.Tensor]:
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1)) if act_order else None
    codes, zeros, scales, index, exact = codes_of(weight, bits, 32, order)
    written = zeros if v2 else (zeros - 1) % 2**bits
    packed = words_along(codes, bits).t().contiguous()
    return {
        "qweight": packed, "qzeros": words_along(written, bits), "scales": scales.half(), "g_idx": index.int(),
    }, exact  # fmt: skip


def awq_layer(weight: torch.Tensor) -> tuple[Layer, torch.Tensor]:
    codes, zeros, scales, _, exact = codes_of(weight, 4, 32)

    def in_order(
        values: torch.Tensor,
    ) -> torch.Tensor:  # the k-th four bits of a word hold output (0, 2, 4, 6, 1, 3, 5, 7)[k]
        return words_along(values.view(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

    return {"qweight": in_order(codes.t()), "qzeros": in_order(zeros), "scales": scales.half()}, exact


def fp8_layer(weight: torch.Tensor) -> tuple[Layer, torch.Tensor]:
    rows, columns = weight.shape
    stored, exact = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    scales = torch.empty(-(-rows // 48), -(-columns // 40))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(48 * i, 48 * i + 48), slice(40 * j, 40 * j + 40))
            scales[i, j] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
            exact[at] = stored[at].float() * scales[i, j]
    return {"weight": stored, "weight_scale_inv": scales}, exact


def compressed_layer(weight: torch.Tensor, form: str) -> tuple[Layer, torch.Tensor]:
    if form == "float-quantized":
        scale = weight.abs().amax(1, keepdim=True) / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale": scale}, stored.float() * scale
    if form == "int-quantized":
        scale = weight.abs().amax(1, keepdim=True) / 127
        whole = (weight / scale).round().to(torch.int8)
        return {"weight": whole, "weight_scale": scale}, whole.float() * scale
    codes, zeros, scales, _, exact = codes_of(weight, 4, 32)  # unsigned here = signed there + 8, for values and zeros
    return {
        "weight_packed": words_along(codes, 4), "weight_scale": scales.t().contiguous(),
        "weight_zero_point": words_along(zeros, 4).t().contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }, exact  # fmt: skip


def rewritten(tiny: Path, folder: Path, make: Any, settings: dict[str, Any]) -> tuple[Path, Path]:
    """``tiny`` with its layers packed by ``make``, and beside it the same model with the dequantized weights."""
    tensors = load_file(tiny / "model.safetensors")
    packed, exact = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            layer, weight = make(tensor)
            packed |= {name.removesuffix("weight") + key: value for key, value in layer.items()}
            exact[name] = weight
        else:
            packed[name] = exact[name] = tensor
    for place, what in ((folder, packed), (folder.with_name(folder.name + "-exact"), exact)):
        shutil.copytree(tiny, place)
        save_file({k: v.contiguous() for k, v in what.items()}, place / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", quantization_config=settings)
    return folder, folder.with_name(folder.name + "-exact")


def make_gptq(tiny: Path, folder: Path, bits: int, *, act_order: bool = False, v2: bool = False) -> Path:
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act_order, "sym": False}
    if v2:
        settings["checkpoint_format"] = "gptq_v2"
    return rewritten(tiny, folder, lambda w: gptq_layer(w, bits, act_order=act_order, v2=v2), settings)[0]


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": None, "strategy": "channel", **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"gptq{bits}{'-order' if order else ''}{'-v2' if v2 else ''}": (
            lambda w, bits=bits, order=order, v2=v2: gptq_layer(w, bits, act_order=order, v2=v2),
            {"quant_method": "gptq", "bits": bits, "group_size": 32} | ({"checkpoint_format": "gptq_v2"} if v2 else {}),
        )
        for bits, order, v2 in ((2, False, False), (3, True, False), (4, True, True), (8, False, False))
    },
    "awq": (awq_layer, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "fp8": (fp8_layer, {"quant_method": "fp8", "weight_block_size": [48, 40]}),
    "ct-float": (lambda w: compressed_layer(w, "float-quantized"), compressed("float-quantized", type="float")),
    "ct-int": (lambda w: compressed_layer(w, "int-quantized"), compressed("int-quantized")),
    "ct-pack": (
        lambda w: compressed_layer(w, "pack-quantized"),
        compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_opened_as_it_is_stored(tiny: Path, tmp_path: Path, form: str) -> None:
    """Each layer dequantizes to what its packed numbers stand for, and the model answers as one with those weights."""
    stored, plain = rewritten(tiny, tmp_path / form, *FORMS[form])
    found = open_model(stored, dtype=torch.float32, device=CPU)
    exact = open_model(plain, dtype=torch.float32, device=CPU)
    for name, module in exact.named_modules():
        if name.endswith("_proj"):
            layer = found.get_submodule(name)
            assert is_packed(layer) and not layer.weight.is_floating_point()
            torch.testing.assert_close(layer.dequantize(), module.weight, rtol=1e-5, atol=1e-6)
    ids = torch.arange(30)[None] + 500
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, exact(ids).logits, rtol=1e-4, atol=1e-4)
    if form == "gptq4-order-v2":
        with pytest.raises(UserError, match="stored quantized already"):
            open_model(stored, dtype=torch.float32, device=CPU, quantize=hqq.Config())


def test_bitsandbytes_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """Saved by transformers itself in nf4, opened again with the same numbers, computing in the run's precision."""
    from tunesmith.models.quantization import bnb

    first = open_model(tiny, dtype=torch.float32, device=CPU, quantize=bnb.Config())
    first.save_pretrained(tmp_path / "nf4")
    again = open_model(tmp_path / "nf4", dtype=torch.float32, device=CPU)
    ids = torch.arange(30)[None] + 500
    with torch.no_grad():
        assert torch.equal(first(ids).logits, again(ids).logits)
    layer = again.model.layers[0].mlp.up_proj
    assert layer.compute_dtype == torch.float32
    assert layer.weight.quant_state.nested, "an evaluation must leave the scales as they were"


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "aqlm"},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "gptq", "bits": 5},
        compressed("nvfp4-pack-quantized", num_bits=4),
    ],
    ids=lambda s: str(s.get("format") or s["quant_method"]),
)
def test_other_forms_are_refused(tiny: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    edit_json(other / "config.json", quantization_config=settings)
    with pytest.raises(UserError, match="stored quantized in a way that cannot be trained on here") as caught:
        open_model(other, dtype=torch.float32, device=CPU)
    assert "model.quantize" in str(caught.value)


def test_a_claim_without_packed_tensors_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    edit_json(other / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(UserError, match="no file holds"):
        open_model(other, dtype=torch.float32, device=CPU)
    stored = make_gptq(tiny, tmp_path / "gptq", 4)
    tensors = load_file(stored / "model.safetensors")
    dropped = {k: v for k, v in tensors.items() if "layers.1.mlp.up_proj" not in k}
    save_file(dropped, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj"):
        open_model(stored, dtype=torch.float32, device=CPU)
    assert json.loads((stored / "config.json").read_text())["quantization_config"]["bits"] == 4
