"""Importance matrices: what the hooks add up, the files, and what ``imatrix`` means."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gguf_families
from families import make_family
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT
from tunesmith.export import imatrix
from tunesmith.export.gguf_mix import Facts, may_quantize
from tunesmith.export.gguf_plan import Outline, outline
from tunesmith.export.imatrix import Entry, Matrix
from tunesmith.export.importance import Watch, collect, places

ROWS = [[6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25, 26]]


def test_sums_by_hand() -> None:
    """x = [[1, 2], [3, 0]] and [[0, 1]] enter a linear layer: sums of squares 1 + 9 + 0 and 4 + 0 + 1, three rows."""
    layer = torch.nn.Linear(2, 3)
    stranger = torch.nn.Linear(2, 3)
    with torch.no_grad(), Watch({"a": layer.weight}) as watch:
        layer(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
        stranger(torch.tensor([[5.0, 5.0]]))
        layer(torch.tensor([[0.0, 1.0]]))
        _ = stranger.weight @ torch.tensor([[1.0], [2.0]])
    layer(torch.tensor([[7.0, 7.0]]))
    assert watch.sums["a"].tolist() == [[10.0, 5.0]] and watch.counts["a"].tolist() == [3]
    assert set(watch.sums) == {"a"}


def test_weight_on_the_left() -> None:
    """W x with x a column for each of two rows, as Mamba's code multiplies: 1 + 9 and 4 + 0."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    with torch.no_grad(), Watch({"w": weight}) as watch:
        _ = weight @ torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert watch.sums["w"].tolist() == [[10.0, 4.0]] and watch.counts["w"].tolist() == [2]


@pytest.mark.parametrize("way", ["linear", "matmul", "bmm"])
def test_experts_by_hand(way: str) -> None:
    """Expert 1 of 3 gets [1, 2] and [3, 0], expert 2 gets [0, 1], expert 0 nothing."""
    weight = torch.nn.Parameter(torch.ones(3, 4, 2) if way == "linear" else torch.ones(3, 2, 4))
    one, two = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    with torch.no_grad(), Watch({"e": weight}) as watch:
        if way == "bmm":  # all rows go to every expert, those of others as zeros
            torch.bmm(torch.stack([torch.zeros(3, 2), torch.cat([one, two * 0]), torch.cat([one * 0, two])]), weight)
        else:
            for expert, x in ((1, one), (2, two)):
                part = weight[torch.tensor(expert)]
                _ = torch.nn.functional.linear(x, part) if way == "linear" else x @ part
    assert watch.sums["e"].tolist() == [[0, 0], [10, 4], [0, 1]] and watch.counts["e"].tolist() == [0, 2, 1]


def llama_outline(layers: int = 2, width: int = 32, inner: int = 48) -> Outline:
    """What the converter says of the tiny llama."""
    names = {
        "self_attn.q_proj": ("attn_q", (32, width)), "self_attn.k_proj": ("attn_k", (16, width)), "self_attn.v_proj": ("attn_v", (16, width)),
        "self_attn.o_proj": ("attn_output", (width, 32)), "mlp.gate_proj": ("ffn_gate", (inner, width)),
        "mlp.up_proj": ("ffn_up", (inner, width)), "mlp.down_proj": ("ffn_down", (width, inner)),
    }  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {"output.weight": (96, width)}
    sources: dict[str, tuple[str, ...]] = {"lm_head.weight": ("output.weight",)}
    for i in range(layers):
        for theirs, (ours, shape) in names.items():
            tensors[f"blk.{i}.{ours}.weight"] = shape
            sources[f"model.layers.{i}.{theirs}.weight"] = (f"blk.{i}.{ours}.weight",)
    return Outline(Facts("llama", layers), tensors, {}, sources, 0)


def test_a_model_reads_its_text(tmp_path: Path) -> None:
    """Equal to the inputs that forward hooks see, squared and added up outside; the output is left out."""
    from transformers import AutoModelForCausalLM

    folder = make_family(tmp_path / "model", "llama")
    found = collect(folder, ROWS, llama_outline(), SILENT)
    assert set(found) == {name for name in llama_outline().tensors if name.startswith("blk.")}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, list[Any]] = {}
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0].double())
        )
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    for name, tensor in (
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.k_proj", "blk.0.attn_k.weight"),
    ):
        wanted = torch.cat(seen[name]).square().sum(0).numpy()
        np.testing.assert_allclose(found[tensor].sums[0], wanted, rtol=1e-4)
        assert found[tensor].counts.tolist() == [12]


def test_experts_get_what_was_sent_to_them(tmp_path: Path) -> None:
    """Mixtral: every token goes to 2 of 4 experts, as its router says, and counts for these; gate and up share their input."""
    from transformers import AutoModelForCausalLM

    folder = make_family(tmp_path / "model", "mixtral")
    tensors = {
        "blk.0.ffn_gate_exps.weight": (4, 48, 32), "blk.0.ffn_up_exps.weight": (4, 48, 32), "blk.0.ffn_down_exps.weight": (4, 32, 48),
    }  # fmt: skip
    found = collect(folder, ROWS, Outline(Facts("llama", 2, 4), tensors, {}, {}, 0), SILENT)
    assert set(found) == set(tensors)
    for name, entry in found.items():
        assert entry.sums.shape == (4, tensors[name][-1]) and entry.counts.sum() == 2 * 12
    gate, up = found["blk.0.ffn_gate_exps.weight"], found["blk.0.ffn_up_exps.weight"]
    assert (gate.sums == up.sums).all() and not np.allclose(gate.sums[0], gate.sums[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        told = [model(torch.tensor([row]), output_router_logits=True).router_logits[0] for row in ROWS]
    sent = torch.bincount(torch.cat(told).topk(2).indices.flatten(), minlength=4)
    assert gate.counts.tolist() == sent.tolist() and len(set(sent.tolist())) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "gemma3",
        "phi3",
        "glm4",
        "falcon",
        "qwen3_moe",
        "granitemoe",
        "gpt_oss",
        "deepseek_v2",
        "llama4",
        "jamba",
        "lfm2",
    ],
)
def test_every_weight_of_every_family_is_found(tmp_path: Path, family: str) -> None:
    """All that may be rounded has an importance of its size; but attn_k_b, whose input transformers does not compute."""
    folder = gguf_families.make(tmp_path / "model", family)
    told = outline(folder)
    rows = [[(i * 7 + j * j) % 90 + 6 for j in range(40)] for i in range(10)]
    found = collect(folder, rows, told, SILENT)
    wanted = {
        n
        for n, shape in told.tensors.items()
        if n.startswith("blk.") and may_quantize(n, shape) and "attn_k_b" not in n
    }
    assert wanted and wanted <= set(found)
    Matrix(tmp_path, found).means(told.tensors)  # raises for another size


def test_places() -> None:
    tensors = {
        "blk.3.attn_k_b.weight": (4, 16, 12),
        "blk.3.attn_v_b.weight": (4, 10, 16),
        "blk.3.attn_qkv.weight": (64, 32),
        "blk.3.attn_qkv.bias": (64,),
    }
    told = Outline(
        Facts("deepseek2", 4), tensors, {},
        {"kv_b": ("blk.3.attn_k_b.weight", "blk.3.attn_v_b.weight"), "qkv": ("blk.3.attn_qkv.weight", "blk.3.attn_qkv.bias")}, 0,
    )  # fmt: skip
    assert places("model.layers.3.kv_b", ["kv_b"], told, (1, 16)) == ["blk.3.attn_v_b.weight"]
    assert places("model.layers.3.qkv", ["qkv"], told, (1, 32)) == ["blk.3.attn_qkv.weight"]
    assert places("model.layers.3.qkv", ["qkv"], told, (1, 31)) == []


def some(file: Path) -> Matrix:
    entries = {
        "blk.0.attn_q.weight": Entry(np.array([[2.0, 4.0, 6.0]]), np.array([2])),
        "blk.0.ffn_up_exps.weight": Entry(
            np.array([[3.0, 6.0, 9.0], [0.0, 0.0, 0.0], [5.0, 0.0, 1.0]]), np.array([3, 0, 5])
        ),
    }
    return Matrix(file, entries, 7, ("mine",), "abc")


def test_file_written_and_read(tmp_path: Path) -> None:
    """Sums and counts stay apart, each expert's own; one that nothing was sent to counts as 1 everywhere."""
    imatrix.write(some(tmp_path / "a.gguf"))
    found = imatrix.read(tmp_path / "a.gguf")
    assert (found.chunks, found.datasets, found.made_from) == (7, ("mine",), "abc")
    means = found.means(
        {"blk.0.attn_q.weight": (5, 3), "blk.0.ffn_up_exps.weight": (3, 5, 3), "blk.1.attn_q.weight": (5, 3)}
    )
    assert means["blk.0.attn_q.weight"].tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(means["blk.0.ffn_up_exps.weight"], [[1, 2, 3], [1, 1, 1], [1, 0, 0.2]])
    assert set(means) == {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"}
    with pytest.raises(ExportError, match="belongs to another model"):
        found.means({"blk.0.attn_q.weight": (5, 4)})


def test_old_file(tmp_path: Path) -> None:
    """The .dat of before: means times calls; experts lie one behind the other."""

    def entry(name: str, calls: int, values: list[float]) -> bytes:
        return struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name.encode(), calls, len(values), *values)

    old = tmp_path / "old.dat"
    content = (
        struct.pack("<i", 2)
        + entry("blk.0.attn_q.weight", 2, [2, 4, 6])
        + entry("blk.0.ffn_up_exps.weight", 1, [1, 2, 3, 4, 5, 6])
    )
    old.write_bytes(content + struct.pack("<ii4s", 9, 4, b"text"))
    found = imatrix.read(old)
    means = found.means({"blk.0.attn_q.weight": (5, 3), "blk.0.ffn_up_exps.weight": (2, 5, 3)})
    assert means["blk.0.attn_q.weight"].tolist() == [[1, 2, 3]] and means["blk.0.ffn_up_exps.weight"].tolist() == [
        [1, 2, 3],
        [4, 5, 6],
    ]
    assert (found.chunks, found.datasets) == (9, ("text",))
    for size in (3, 10, len(content) - 4):
        old.write_bytes(content[:size])
        with pytest.raises(ExportError, match="cannot be read as an importance matrix"):
            imatrix.read(old)
    with pytest.raises(ExportError, match="there is no importance matrix"):
        imatrix.read(tmp_path / "none.gguf")


def test_what_the_setting_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """off: none. auto: computed once for a model and a text, taken again for the same, computed again for another, and somebody's own file stays."""
    from tunesmith.export import gguf_plan, importance

    source, out = tmp_path / "model", tmp_path / "out" / "m.gguf"
    source.mkdir()
    (source / "config.json").write_text("{}")
    computed = []
    monkeypatch.setattr(gguf_plan, "outline", lambda *a: None)
    monkeypatch.setattr(importance, "collect", lambda *a: computed.append(1) or some(out).entries)

    def asked(wanted: str, rows: Any) -> Matrix | None:
        return imatrix.for_export(source, out, wanted, rows, tmp_path / "log", SILENT)

    assert asked("off", ROWS) is None and asked("auto", None) is None and asked("auto", [[]]) is None
    first, again = asked("auto", ROWS), asked("auto", ROWS)
    assert first is not None and again is not None and first.file == out.parent / "imatrix.gguf" == again.file
    assert (
        computed == [1] and first.chunks == 1 and first.covered == {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"}
    )
    other = asked("auto", ROWS[:1])
    assert other is not None and other.made_from != first.made_from and computed == [1, 1]
    assert asked(str(first.file), ROWS) is not None
    imatrix.write(replace(some(out.parent / "theirs.gguf"), made_from=""))
    (out.parent / "theirs.gguf").replace(first.file)
    before = first.file.read_bytes()
    with pytest.raises(ExportError, match="no export computed it"):
        asked("auto", ROWS)
    assert first.file.read_bytes() == before and not imatrix.is_ours(first.file)
