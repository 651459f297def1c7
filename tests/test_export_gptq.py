"""Export to GPTQ: models run block by block, exports that are killed and go on, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES, make_family
from model_fixtures import edit_json
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Silent
from tunesmith.export.layerwise import Layerwise
from tunesmith.export.targets import gptq
from tunesmith.export.tensor_files import read_model
from tunesmith.models.open import open_model
from tunesmith.models.quantization.base import is_packed

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Widths that fill whole words."""
LENGTHS = (20, 7, 20, 40, 33, 61)
SLOW = pytest.mark.slow
DENSE = ["llama", "gemma3", "phi3"]
OTHER_DENSE = [
    "llama-tied", "llama3-rope", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "glm4", "gpt_neox", "granite", "olmo2", "smollm3", "stablelm",
    "cohere", "starcoder2", "ernie4_5",
]  # fmt: skip
ROUTED = ["mixtral", "qwen3_moe", "granitemoe", "gpt_oss", "deepseek_v3", "llama4"]
EVERY_DENSE = [*DENSE, *(pytest.param(name, marks=SLOW) for name in OTHER_DENSE)]


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(6, 96) for _ in range(n)] for n in lengths]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DEVICE", "cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("base") / "llama", "llama", **WIDE)


def layerwise(folder: Path) -> Layerwise:
    return Layerwise(folder, read_model(folder), CPU)


def inputs_of(model: Any, name: str, run: Callable[..., Any], *args: Any, **more: Any) -> list[torch.Tensor]:
    """What the layer ``name`` of ``model`` gets while ``run`` runs with the arguments."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        run(*args, **more)
    handle.remove()
    return seen


@pytest.mark.parametrize("family", EVERY_DENSE)
def test_block_by_block_equals_the_whole_model(tmp_path: Path, family: str) -> None:
    """Rows of unequal length through one block at a time end in the states of the model as transformers runs it, bit for bit; the inputs of
    layers, and who shares them, are the model's too."""
    folder = make_family(tmp_path / family, family)
    parts = layerwise(folder)
    hidden = parts.embed(texts())
    last = len(parts.blocks) - 1
    for i in range(last):
        parts.block(i)
        hidden = [parts.forward(i, h) for h in hidden]
        parts.empty(i)
        assert all(p.is_meta for p in parts.model.parameters()), "nothing stays in memory"
    parts.block(last)
    groups = parts.groups(last, hidden[0])
    assert sorted(name for names in groups for name in names) == sorted(parts.linears[last])
    attention = parts.model.config._attn_implementation  # eager in Gemma 2, which has no other
    whole = open_model(folder, dtype=torch.float32, device=CPU, attention=attention)
    for row, h in zip(texts(), hidden, strict=True):
        (found,) = inputs_of(whole, f"{parts.name}.{last}.{groups[-1][0]}", whole, torch.tensor([row]))
        (mine,) = inputs_of(parts.blocks[last], groups[-1][0], parts.forward, last, h)
        assert torch.equal(mine, found)
    for names in groups:
        together = [inputs_of(whole, f"{parts.name}.{last}.{n}", whole, torch.tensor(texts()[:1]))[0] for n in names]
        assert all(torch.equal(one, together[0]) for one in together)


def test_long_rows_are_cut(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At what the model reads, and at a bound that keeps memory small whatever it reads; empty rows are left out."""
    parts, rows = layerwise(llama), [list(range(6, 66)) * 5, [], [7, 8]]
    assert parts.cut(rows) == [rows[0][:128], [7, 8]], "the model reads 128"
    monkeypatch.setattr("tunesmith.export.layerwise.LONGEST", 50)
    assert parts.cut(rows) == [rows[0][:50], [7, 8]]


def test_no_padding_takes_part(llama: Path) -> None:
    """The Hessian of rows of unequal length is the mean over their own tokens, as a padded batch gives it when its padding is left out."""
    parts, rows = layerwise(llama), texts()
    hidden = parts.embed(rows)
    parts.block(0)
    found = parts.hessian(0, "mlp.down_proj", hidden)
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    whole = open_model(llama, dtype=torch.float32, device=CPU, attention="sdpa")
    (x,) = inputs_of(whole, "model.layers.0.mlp.down_proj", whole, ids, attention_mask=mask)
    x = x[mask.bool()]
    assert len(x) == sum(LENGTHS)
    torch.testing.assert_close(found, x.t() @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"bits": 8}),
        ("gemma3", {"bits": 4, "act_order": "activation"}),
        ("phi3", {"bits": 3}),
        *(pytest.param(name, {"bits": 4}, marks=SLOW) for name in OTHER_DENSE),
        pytest.param("llama", {"bits": 2}, marks=SLOW),
        pytest.param("qwen2", {"bits": 3, "act_order": "activation", "sym": True}, marks=SLOW),
    ],
)
def test_what_is_written(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    """Our reader opens it packed; each layer's outputs on the text are off by what was reported; all else is the source's, byte for byte."""
    base = make_family(tmp_path / "base", family, **WIDE)
    (base / "LICENSE").write_text("of the base")
    config = gptq.Config(**settings)
    report = gptq.export(base, tmp_path / "out", config, calibration=texts())
    out = tmp_path / "out"
    raw = json.loads((out / "config.json").read_text())
    quantization = raw["quantization_config"]
    assert quantization["bits"] == config.bits and quantization["group_size"] == 32 == report.checks["group_size"]
    assert (
        quantization["desc_act"] == (config.act_order == "activation") and quantization["checkpoint_format"] == "gptq"
    )
    assert quantization["sym"] == (config.sym if config.sym is not None else config.bits in (4, 8))
    assert bool(report.notes) == (config.bits in (2, 3) or not quantization["sym"]), "what vLLM does not load"
    assert "rope_theta" in raw or family not in ("llama", "phi3")
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in new if name.endswith(".qweight")}
    assert len(packed) == report.checks["layers"]
    for name, tensor in old.items():
        assert (name.removesuffix(".weight") in packed) or torch.equal(new[name], tensor)
    for name in ("qweight", "qzeros", "g_idx"):
        assert all(new[f"{layer}.{name}"].dtype == torch.int32 for layer in packed)
    assert (out / "LICENSE").read_text() == "of the base" and "GPTQ" in (out / "README.md").read_text()
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert check.returncode == 0 and check.stdout.count("OK") == len(list(out.iterdir())) - 1
    assert not list(tmp_path.glob(".out*"))
    exact, found = (open_model(f, dtype=torch.float32, device=CPU) for f in (base, out))
    assert sum(map(is_packed, found.modules())) == len(packed)
    ids = torch.tensor(texts()[:1])
    first = min(packed)
    x = torch.cat([inputs_of(exact, first, exact, torch.tensor([row]))[0][0] for row in texts()])
    with torch.no_grad():
        weight, rounded = exact.get_submodule(first).weight, found.get_submodule(first).dequantize()
        error = ((x @ (weight - rounded).t()).square().sum() / (x @ weight.t()).square().sum()).item()
        assert error < {2: 0.3, 3: 0.08, 4: 0.02, 8: 1e-4}[config.bits]
        if config.bits == 8:
            torch.testing.assert_close(found(ids).logits, exact(ids).logits, rtol=0.3, atol=0.3)


def test_layers_that_share_an_input_share_their_order(tmp_path: Path, llama: Path) -> None:
    """Loaders that fuse q, k and v (gate and up) keep one ``g_idx`` for them."""
    gptq.export(llama, tmp_path / "out", gptq.Config(act_order="activation"), calibration=texts())
    found = load_file(tmp_path / "out" / "model.safetensors")
    layer = "model.layers.1."
    q, k, v, o, gate, up = (
        found[f"{layer}{name}_proj.g_idx"]
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up")
    )
    assert torch.equal(q, k) and torch.equal(q, v) and torch.equal(gate, up)
    assert not torch.equal(q, q.sort().values) and not torch.equal(q, o)


def test_layers_that_cannot_be_packed_stay(tmp_path: Path) -> None:
    """48 inputs do not fill whole words: those layers stay as they are, and the file says which."""
    base = make_family(tmp_path / "base", "llama")
    report = gptq.export(base, tmp_path / "out", gptq.Config(), calibration=texts())
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.down_proj.weight" in found and "model.layers.0.self_attn.o_proj.qweight" in found
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert r"-:^model\.layers\.0\.mlp\.down_proj$" in settings["dynamic"]
    assert any("stay in 16 bits" in note for note in report.notes)


class Telling(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tunesmith.config.progress import Silent
from tunesmith.export.targets import gptq

class Killing(Silent):
    count = 0
    def advance(self, amount=1, note=""):
        self.count += amount
        if self.count >= 9:  # seven layers a block: within the second
            os.kill(os.getpid(), signal.SIGKILL)

source, out, rows = json.loads(sys.argv[1])
gptq.export(Path(source), Path(out), gptq.Config(), Killing(), calibration=rows)
"""


def test_killed_and_gone_on(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a real kill the same call takes the finished block as it is, ends in the bytes of an export that was not killed, and
    leaves nothing behind. Two exports of the same are the same, too."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    gptq.export(llama, straight, gptq.Config(), calibration=texts())
    job = json.dumps([str(llama), str(killed), texts()])
    torch.set_num_threads(2)
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", KILLED, job], env=environment, capture_output=True).returncode == -9
    assert not killed.exists() and (tmp_path / ".killed.blocks" / "block-00000.safetensors").exists()
    solved: list[str] = []
    real = Layerwise.hessian

    def hessian(self: Layerwise, i: int, name: str, hidden: Any) -> torch.Tensor:
        solved.append(f"{i}.{name}")
        return real(self, i, name, hidden)

    monkeypatch.setattr(Layerwise, "hessian", hessian)
    told = Telling()
    gptq.export(llama, killed, gptq.Config(), told, calibration=texts())
    assert "1 of 2 blocks were finished before" in told.said[0]
    assert solved and all(name.startswith("1.") for name in solved)
    assert (killed / "SHA256SUMS").read_text() == (straight / "SHA256SUMS").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change", ["text", "damage", *(pytest.param(c, marks=SLOW) for c in ("settings", "weights", "none"))]
)
def test_finished_blocks_are_of_this_export(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Blocks of another text, other settings or another model are not taken; nor is a damaged file."""
    base, out = shutil.copytree(llama, tmp_path / "base"), tmp_path / "out"

    def fails(*args: Any, **more: Any) -> Any:
        raise ExportError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(gptq, "write_checkpoint", fails)
        with pytest.raises(ExportError, match="stopped here"):
            gptq.export(base, out, gptq.Config(), calibration=texts())
    assert not out.exists()
    files = tmp_path / ".out.blocks"
    rows, config = texts(), gptq.Config()
    if change == "text":
        rows = texts(seed=1)
    elif change == "settings":
        config = gptq.Config(damp=0.02)
    elif change == "weights":
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1.5
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
    elif change == "damage":
        last = files / "block-00001.safetensors"
        last.write_bytes(last.read_bytes()[:-10])
    told = Telling()
    gptq.export(base, out, config, told, calibration=rows)
    expected = {"none": "2 of 2", "damage": "1 of 2"}.get(change)
    assert bool(told.said) == (expected is not None)
    assert expected is None or told.said[0].startswith(expected)
    gptq.export(base, tmp_path / "fresh", config, calibration=rows)
    assert (out / "SHA256SUMS").read_text() == (tmp_path / "fresh" / "SHA256SUMS").read_text()


def test_full_disk(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is done where it can be seen; caught in the middle, with what is finished kept."""
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ExportError, match="GiB free"):
            gptq.export(llama, tmp_path / "out", gptq.Config(), calibration=texts())
    assert not list(tmp_path.iterdir())
    from safetensors import torch as files

    real = files.save_file

    def full(tensors: Any, path: Any, *more: Any) -> None:
        if "00001" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(ExportError, match="is full; what is finished is kept in"):
            gptq.export(llama, tmp_path / "out", gptq.Config(), calibration=texts())
    assert not (tmp_path / "out").exists()
    told = Telling()
    gptq.export(llama, tmp_path / "out", gptq.Config(), told, calibration=texts())
    assert told.said[0].startswith("1 of 2")


def test_refused(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "out"

    def refused(source: Path, match: str, rows: Any = None, **settings: Any) -> None:
        with pytest.raises(ExportError, match=match):
            gptq.export(source, out, gptq.Config(**settings), calibration=texts() if rows is None else rows)
        assert not out.exists() and not list(tmp_path.glob(".*"))

    refused(llama, "needs calibration text", [])
    refused(llama, "needs calibration text", [[], []])
    refused(llama, "group_size=128 does not divide the (64|96) inputs", group_size=128)
    refused(tmp_path, "config.json is missing")
    quantized = shutil.copytree(llama, tmp_path / "quantized")
    edit_json(quantized / "config.json", quantization_config={"quant_method": "awq"})
    refused(quantized, r"stored quantized already \(awq\)")
    adapter = shutil.copytree(llama, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, "not a whole model")
    damaged = shutil.copytree(llama, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.embed_tokens.weight"][8, 3] = float("inf")
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="are not finite"):
        gptq.export(damaged, out, gptq.Config(), calibration=texts())
    out.mkdir()
    with pytest.raises(ExportError, match="exists already"):
        gptq.export(llama, out, gptq.Config(), calibration=texts())
    for wrong in ({"bits": 5}, {"group_size": 48}, {"act_order": "yes"}, {"damp": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            gptq.Config(**wrong)


@pytest.mark.parametrize(
    "family", ["qwen3_moe", *(pytest.param(name, marks=SLOW) for name in ROUTED if name != "qwen3_moe")]
)
def test_experts_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(ExportError, match="mixture of experts"):
        layerwise(make_family(tmp_path / family, family))
    assert family in FAMILIES
