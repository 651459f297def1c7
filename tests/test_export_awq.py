"""Export to AWQ: what scales may be folded into, the search for them, what is written, exports that go on, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import make_family
from test_export_gptq import OTHER_DENSE, Telling, texts
from tunesmith.config.errors import ExportError
from tunesmith.export import awq_blocks, awq_pairs
from tunesmith.export.gptq_solver import Grid, to_nearest
from tunesmith.export.layerwise import Layerwise
from tunesmith.export.targets import awq
from tunesmith.export.tensor_files import read_model
from tunesmith.models.open import open_model
from tunesmith.models.quantization.base import is_packed

CPU = torch.device("cpu")
SLOW = pytest.mark.slow
FEW = texts((20, 7, 33))
WIDE = {"hidden_size": 64, "intermediate_size": 96}
FOUND = {
    "llama": ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"),
    "gemma3": ("input_layernorm", "self_attn.v_proj", "pre_feedforward_layernorm", "mlp.up_proj"),
    "phi3": ("input_layernorm", "self_attn.qkv_proj", "post_attention_layernorm", "mlp.gate_up_proj"),
    "olmo2": (None, "self_attn.v_proj", None, "mlp.up_proj"),  # its norms come behind the layers
    "gpt_neox": ("input_layernorm", None, "post_attention_layernorm", None),  # q, k, v interleaved; GELU
    "cohere": ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"),  # attention and MLP read one norm
}
"""Family -> what was found before q, k, v; o; gate, up; down. Written down from the families' definitions."""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DEVICE", "cpu")


def uneven(folder: Path) -> Path:
    """The model with channels of very different size, and biases that are not 0."""
    torch.manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            tensors[name] = torch.randn_like(tensor)
        elif tensor.ndim == 1 and tensor.shape[0] == 64:
            tensors[name] = (tensor + 1) * torch.exp(1.2 * torch.randn(64))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven(make_family(tmp_path_factory.mktemp("base") / "qwen2", "qwen2", **WIDE))


def opened(folder: Path, rows: list[list[int]] = FEW) -> tuple[Layerwise, list[torch.Tensor]]:
    """The model with its first block filled, and what goes into it."""
    model = Layerwise(folder, read_model(folder), CPU)
    hidden = model.embed(rows)
    model.block(0)
    return model, hidden


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in ("llama", "gemma3", "phi3") else SLOW) for f in FOUND]
)
def test_scales_go_where_they_change_nothing(tmp_path: Path, family: str) -> None:
    """What is before each group is found in every family, and with scales of any size in all of them at once the block computes the same."""
    model, hidden = opened(make_family(tmp_path / family, family, **WIDE))
    groups = model.groups(0, hidden[0])
    found = [awq_pairs.find(model, 0, names, hidden[1]) for names in groups]
    assert tuple(one and one.module for one in found) == FOUND[family]
    expected = model.forward(0, hidden[2])
    torch.manual_seed(0)
    for names, before in zip(groups, found, strict=True):
        if before is not None:
            scales = torch.exp(torch.randn(before.count))
            before.divide(model.blocks[0], scales)
            awq_pairs.multiply(model, 0, names, scales[before.channel])
    torch.testing.assert_close(model.forward(0, hidden[2]), expected, rtol=1e-3, atol=1e-3 * expected.std().item())


def test_what_something_else_reads_is_left_alone(tmp_path: Path) -> None:
    """A norm whose output goes into the residual stream too takes no scales, and trying leaves no trace."""
    model, hidden = opened(make_family(tmp_path / "llama", "llama", **WIDE))
    block, normed = model.blocks[0], []
    block.input_layernorm.register_forward_hook(lambda _, __, out: normed.append(out))
    block.register_forward_hook(lambda _, __, out: out + normed[-1])
    qkv, o, *_ = model.groups(0, hidden[0])
    assert awq_pairs.find(model, 0, qkv, hidden[1]) is None
    assert awq_pairs.find(model, 0, o, hidden[1]) is not None
    before = {name: tensor.clone() for name, tensor in block.named_parameters()}
    assert awq_pairs.find(model, 0, qkv, hidden[1]) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in block.named_parameters())


def test_the_exponent_is_the_best_of_the_paper(qwen2: Path) -> None:
    """Equations 4 and 5 written out for q, k and v: s = mean|x|^a with its geometric middle at 1, W rounded as W diag(s), x divided by s."""
    model, hidden = opened(qwen2)
    names = model.groups(0, hidden[0])[0]
    norm = model.blocks[0].input_layernorm.weight
    x = torch.cat(list(model.inputs(0, names[0], hidden)))
    sample = awq_blocks._Sample(model, 0, hidden)
    grid = Grid(4, 32, False, search=False)
    before = awq_pairs.find(model, 0, names, hidden[1])
    mean, square = awq_blocks._inputs(model, 0, names[0], hidden)
    torch.testing.assert_close(mean, x.abs().mean(0))
    torch.testing.assert_close(square, x.square().mean(0))
    power, scales = awq_blocks._search(model, 0, names, before, mean, grid, sample)
    exact = [model.forward(0, h) for h in hidden]
    weights = [model.linear(0, name).weight.data for name in names]
    kept = norm.data
    errors = {}
    for step in range(11):
        s = mean ** (step / 10)
        s = s / (s.max() * s.min()).sqrt()
        norm.data = kept / s
        for name, weight in zip(names, weights, strict=True):
            model.linear(0, name).weight.data = to_nearest(weight * s, grid).weight()
        errors[step / 10] = sum(
            (model.forward(0, h) - y).square().sum().item() for h, y in zip(hidden, exact, strict=True)
        )
        if step / 10 == power:
            torch.testing.assert_close(scales, s)
    assert power == min(errors, key=errors.__getitem__) > 0
    assert errors[power] < 0.8 * errors[0.0]


def test_a_block_is_never_worse_than_rounded(qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales that look good in the search and come out worse as stored are dropped, all of them; the block goes on as what is written."""
    grid = Grid(4, 32, False)

    def made() -> tuple[dict[str, torch.Tensor], dict[str, Any], torch.Tensor]:
        model, hidden = opened(qwen2)
        tensors, figures = awq_blocks._block(model, 0, hidden, grid, Telling())
        left = model.forward(0, hidden[2])
        model.block(0)
        awq_blocks._restore(model, 0, tensors)
        assert torch.equal(model.forward(0, hidden[2]), left)
        return tensors, figures, left

    _, good, _ = made()
    assert max(good["exponents"].values()) > 0
    with monkeypatch.context() as patch:
        patch.setattr(awq_blocks, "find", lambda *_: None)
        rounded, figures, left = made()
    assert max(good["errors"].values()) < max(figures["errors"].values())

    def bad(*given: Any) -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        return 0.5, torch.exp(2 * torch.randn(given[3].count))

    monkeypatch.setattr(awq_blocks, "_search", bad)
    found, figures_, left_ = made()
    assert set(figures_["exponents"].values()) == {0.0} and figures_["errors"] == pytest.approx(
        figures["errors"], rel=1e-3
    )
    assert found.keys() == rounded.keys()
    torch.testing.assert_close(left_, left, rtol=1e-2, atol=1e-2)


def test_pairs_are_tried_on_more_than_one_token(tmp_path: Path) -> None:
    """In a row of one token q and k change nothing: there it cannot be seen that something else reads the norm before them."""
    model, hidden = opened(make_family(tmp_path / "llama", "llama", **WIDE), texts((1, 2, 40, 300)))
    model.blocks[0].self_attn.q_proj.register_forward_hook(lambda _, given, out: out + given[0][..., : out.shape[-1]])
    names = model.groups(0, hidden[2])[0]
    assert awq_pairs.find(model, 0, names, hidden[0]) is not None, "the trap"
    for rows, length in ((hidden, 40), (hidden[:2], 2), (hidden[::3], 300)):
        telling = awq_blocks._Sample(model, 0, rows).telling
        assert telling is not None and telling.shape[1] == length
        assert awq_pairs.find(model, 0, names, telling) is None
    assert awq_blocks._Sample(model, 0, hidden[:1]).telling is None


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """As AutoAWQ packs: output k of eight lies in bits 4 p … 4 p + 3 of its word, p = 0 4 1 5 2 6 3 7 for k = 0 … 7."""
    rows = [
        [(word & 0xFFFFFFFF) >> (4 * place) & 15 for word in row for place in (0, 4, 1, 5, 2, 6, 3, 7)]
        for row in words.tolist()
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "family",
    ["qwen2", "gemma3", *(pytest.param(f, marks=SLOW) for f in ("llama", "phi3", *OTHER_DENSE) if f != "qwen2")],
)
def test_what_is_written(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file read bit by bit is what our reader opens; only norms and biases beside the packed layers are changed; the whole model answers nearer to
    the exact one than with weights merely rounded."""
    base, out = uneven(make_family(tmp_path / "base", family, **WIDE)), tmp_path / "out"
    (base / "LICENSE").write_text("of the base")
    report = awq.export(base, out, awq.Config(), calibration=FEW)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings == {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in new if name.endswith(".qweight")}
    assert len(packed) == report.checks["layers"] and report.checks["group_size"] == 32
    changed = {n for n, t in old.items() if n.removesuffix(".weight") not in packed and not torch.equal(new[n], t)}
    assert all("norm" in name or name.endswith("bias") for name in changed)
    assert bool(changed) == (family not in ("olmo2",))
    assert (out / "LICENSE").read_text() == "of the base" and "AWQ" in (out / "README.md").read_text()
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert check.returncode == 0 and check.stdout.count("OK") == len(list(out.iterdir())) - 1
    assert not list(tmp_path.glob(".out*"))
    exact, found = (open_model(f, dtype=torch.float32, device=CPU) for f in (base, out))
    assert sum(map(is_packed, found.modules())) == len(packed)
    for layer in packed:
        q, z = unpacked(new[f"{layer}.qweight"]), unpacked(new[f"{layer}.qzeros"])
        size = len(q) // len(z)
        weight = (q - z.repeat_interleave(size, 0)) * new[f"{layer}.scales"].float().repeat_interleave(size, 0)
        assert torch.equal(found.get_submodule(layer).dequantize(), weight.t())
    with monkeypatch.context() as patch:
        patch.setattr(awq_blocks, "find", lambda *_: None)
        awq.export(base, tmp_path / "rounded", awq.Config(search=False), calibration=FEW)
    rounded = open_model(tmp_path / "rounded", dtype=torch.float32, device=CPU)
    with torch.no_grad():
        off = [
            sum((m(torch.tensor([row])).logits - exact(torch.tensor([row])).logits).square().sum() for row in texts(seed=3))
            for m in (found, rounded)
        ]  # fmt: skip
    assert off[0] < (0.9 if changed else 1.05) * off[1]  # ranges alone are chosen for other texts than these


def test_gone_on(tmp_path: Path, qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind a finished block, the same call takes it as it is, norms and biases too, and ends in the same bytes."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    awq.export(qwen2, straight, awq.Config(), calibration=FEW)

    def fails(*_: Any) -> Any:
        raise ExportError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(awq, "write_checkpoint", fails)
        with pytest.raises(ExportError, match="stopped here"):
            awq.export(qwen2, stopped, awq.Config(), calibration=FEW)
    (tmp_path / ".stopped.blocks" / "block-00001.safetensors").unlink()
    told = Telling()
    awq.export(qwen2, stopped, awq.Config(), told, calibration=FEW)
    assert told.said[0].startswith("1 of 2 blocks were finished before")
    assert (stopped / "SHA256SUMS").read_text() == (straight / "SHA256SUMS").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stopped", "straight"]


def test_layers_that_cannot_be_packed_take_their_part(tmp_path: Path) -> None:
    """16 outputs do not fill whole words: k and v stay in 16 bits, with the scales that the norm before them was divided by; the file says which."""
    base = uneven(make_family(tmp_path / "base", "llama", **WIDE | {"num_key_value_heads": 1}))
    report = awq.export(base, tmp_path / "out", awq.Config(), calibration=FEW)
    old, new = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kept = [f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in ("k", "v")]
    assert settings["modules_to_not_convert"] == kept and "4 layers stay in 16 bits" in report.notes[0]
    for i in (0, 1):
        norm, k = f"model.layers.{i}.input_layernorm.weight", f"model.layers.{i}.self_attn.k_proj.weight"
        scales = old[norm] / new[norm]
        assert scales.max() > 1.5 * scales.min()
        torch.testing.assert_close(new[k], old[k] * scales)


def test_refused(tmp_path: Path, qwen2: Path) -> None:
    out = tmp_path / "out"
    rows = [[random.Random(0).randrange(6, 96) for _ in range(8)]]
    for source, match, given, settings in (
        (qwen2, "AWQ needs calibration text", [[]], {}),
        (qwen2, "group_size=128 does not divide the (64|96) inputs", rows, {"group_size": 128}),
        (make_family(tmp_path / "experts", "mixtral"), "mixture of experts", rows, {}),
    ):
        with pytest.raises(ExportError, match=match):
            awq.export(source, out, awq.Config(**settings), calibration=given)
        assert not out.exists() and not list(tmp_path.glob(".*"))
    damaged = load_file(qwen2 / "model.safetensors")
    damaged["model.embed_tokens.weight"][:, 3] = float("inf")
    bad = make_family(tmp_path / "bad", "qwen2", **WIDE)
    save_file(damaged, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="not finite"):
        awq.export(bad, out, awq.Config(), calibration=FEW)
    with pytest.raises(ValueError, match="bits"):
        awq.Config(bits=8)
    assert awq.label(awq.Config()) == "awq-4bit" and awq.label(awq.Config(group_size=64)) == "awq-4bit-g64"
