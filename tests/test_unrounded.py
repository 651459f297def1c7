"""What was learned in small steps is not rounded away on its way into a file: merged models that something else is made of hold it exactly.

The base is in bf16, whose weights lie on a coarse grid; the adapter changes them by less than half its mesh.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import learned_runs
from model_fixtures import make_adapter, make_model
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.numbers import Numbers, learned_in
from tunesmith.export.packed_checkpoint import unchanged
from tunesmith.export.targets import fp8, gguf, hf
from tunesmith.export.tensor_files import read_model
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs import making, merged, proof
from tunesmith.verbs.export import export
from tunesmith.verbs.quality_files import weights_of
from tunesmith.verbs.targets import target_of

QUERY = "model.layers.0.self_attn.q_proj.weight"
VALUE = "model.layers.0.self_attn.v_proj.weight"


class Lines:
    """A ``Progress`` that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def start(self, *_: Any, **__: Any) -> None: ...

    advance = finish = start


@pytest.fixture(scope="module")
def base(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(few, tmp_path_factory.mktemp("base") / "bf16", "llama", dtype="bfloat16")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose adapter changes weights by a tenth of the mesh of bf16."""
    made = learned_runs.train(base, tmp_path_factory.mktemp("runs"), "small", "method=lora", "method.rank=4")
    for step in made.checkpoint_steps():
        _shrink(made.path / "checkpoints" / f"step-{step}" / "adapter_model.safetensors")
    return made


def _shrink(file: Path) -> None:
    """Scale B so that weights, which are about 0.3 and lie 0.002 apart in bf16, change by 0.0002 in the mean."""
    learned = load_file(file)
    for name, value in learned.items():
        if "lora_B" in name:
            a = learned[name.replace("lora_B", "lora_A")]
            change = (value @ a).abs().mean()
            learned[name] = value * (1e-4 / change)
    save_file(learned, file, metadata={"format": "pt"})


def exact(base: Path, adapter: Path, name: str) -> torch.Tensor:
    """W + scale · B A in float64."""
    weight = load_file(base / "model.safetensors")[name].double()
    learned = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    a, b = (learned[f"{stem}.lora_{part}.weight"].double() for part in "AB")
    return weight + told["lora_alpha"] / told["r"] * (b @ a)


def test_which_type() -> None:
    fine = Numbers(learned="F32")
    assert fine.of("BF16", "F32") == "F32" and fine.of("BF16") == "BF16" and fine.of("F64", "F32") == "F64"
    assert fine.of("BF16", "BF16") == "BF16" and fine.of("BF16", "F16") == "F16" and fine.of("I64", "F32") == "F32"
    assert Numbers(learned="F16").of("BF16", "F32") == "F16" and Numbers(learned="F16").of("F32", "F32") == "F32"
    assert (
        Numbers("F16").of("F32", "F32") == "F16" == Numbers("F16").of("BF16") and Numbers().of("BF16", "F32") == "BF16"
    )
    assert fine.serves("BF16") == "BF16" and Numbers("F32").serves("BF16") is None is Numbers().serves("BF16")


def test_merged_folder_is_exact_and_tells_what_it_serves(run: RunFolder, base: Path) -> None:
    target = target_of(str(run.path), SILENT)
    assert target.learned is not None
    folder = merged.merged_folder(target, SILENT)
    stored, want = read_model(folder), exact(base, target.learned, QUERY)
    assert (stored[QUERY].dtype, stored[QUERY].served) == ("F32", "BF16") and learned_in(folder) == "F32"
    found = load_file(folder / "model.safetensors")[QUERY].double()
    assert (found - want).abs().max() < 1e-7
    embedding = stored["model.embed_tokens.weight"]
    assert embedding.dtype == embedding.served == "BF16"
    assert '"dtype": "bfloat16"' in (folder / "config.json").read_text(encoding="utf-8")
    assert weights_of(folder) == sum(t.nbytes for t in read_model(base).values())
    assert unchanged(stored[QUERY]).dtype == "BF16", "what is packed from it is not stored in 32 bits"


def test_gguf_holds_what_was_learned(run: RunFolder, base: Path) -> None:
    target = target_of(str(run.path), SILENT)
    assert target.learned is not None
    place, _ = export(str(run.path), "gguf", SILENT, level="f16")
    header = read_gguf(place)
    tensor = header.tensors["blk.0.attn_v.weight"]
    with place.open("rb") as file:
        file.seek(tensor.offset)
        values = np.frombuffer(file.read(2 * int(np.prod(tensor.shape))), np.float16)
    want = exact(base, target.learned, VALUE)
    untrained = load_file(base / "model.safetensors")[VALUE].double()
    found = torch.from_numpy(values.astype(np.float64)).reshape(want.shape)
    moved = (want - untrained).abs().mean()
    assert (found - want).abs().mean() < 0.3 * moved


def test_rounded_merge_is_told(run: RunFolder, tmp_path: Path) -> None:
    """``--to hf`` in the base's own numbers is peft's merge; what it loses is said, with what loses less, and stands in the report."""
    lines: Any = Lines()
    place, rounded = export(str(run.path), "hf", lines, out=tmp_path / "rounded")
    told = [line for line in lines.said if "is too coarse" in line]
    assert len(told) == 1 and "bfloat16" in told[0] and "dtype=float32" in told[0]
    assert _lost(rounded) > 0.5 and f"{_lost(rounded):.0%} as far from the trained one" in told[0]
    for dtype, stored in (("float32", "F32"), ("float16", "F16")):
        lines = Lines()
        place, said = export(str(run.path), "hf", lines, settings=[f"dtype={dtype}"], out=tmp_path / dtype)
        assert {t.dtype for t in read_model(place).values()} == {stored} and learned_in(place) is None
        assert _lost(said) < (0.01 if stored == "F32" else _lost(rounded) / 3)
        assert f'"dtype": "{dtype}"' in (place / "config.json").read_text(encoding="utf-8")


def _lost(lines: list[str]) -> float:
    """How far rounding leaves the export from the trained model, of the way to the base; 0 where that is not worth a line."""
    told = dict(line.split(": ", 1) for line in lines)
    return float(told["rounded away"].partition("%")[0]) / 100 if "rounded away" in told else 0.0


def test_exact_merge_without_what_was_learned_is_refused(run: RunFolder, base: Path, tmp_path: Path) -> None:
    """However little training changed: a merged model that is nearer to the base than to the trained model is not taken."""
    target = target_of(str(run.path), SILENT)
    lost = Path(shutil.copytree(merged.merged_folder(target, SILENT), tmp_path / "lost"))
    _scale_learned(lost, base, 0.1)
    with pytest.raises(proof.MergeRefutedError, match="does not answer as the trained one does"):
        proof.check_merge(target, lost, SILENT)
    whole = Path(shutil.copytree(merged.merged_folder(target, SILENT), tmp_path / "whole"))
    evidence = proof.Evidence()
    proof.check_merge(target, whole, SILENT, evidence=evidence)
    assert evidence.hops[0].figures.mean_kl < proof.NOISE and evidence.hops[0].usual == proof.EXACT_BOUND


def _scale_learned(folder: Path, base: Path, by: float) -> None:
    """Leave only so much of what was learned, with the same header."""
    before, header = load_file(base / "model.safetensors"), read_model(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        for name, tensor in header.items():
            if tensor.serves not in (None, tensor.dtype):
                now = load_file(folder / "model.safetensors")[name]
                file.seek(tensor.offset)
                file.write((before[name].float() + by * (now - before[name].float())).numpy().tobytes())
                file.flush()


def test_little_disk(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for float32 it is float16, which is said; with room again it is made anew, and an exact one is taken without any room."""
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    shutil.rmtree(copy.artifacts, ignore_errors=True)
    target = target_of(str(copy.path), SILENT)
    usage = type(shutil.disk_usage(tmp_path))
    size = 4 * sum(t.nbytes // 2 for t in read_model(target.base.folder).values())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, size + 2**28))
        lines: Any = Lines()
        folder = merged.merged_folder(target, lines)
        assert learned_in(folder) == "F16" and any("float16 instead of float32" in line for line in lines.said)
        count = len(lines.said)
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**12))
        assert learned_in(merged.merged_folder(target, lines)) == "F16", "one command keeps to what it decided first"
        assert len(lines.said) == count
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, size + 2**28))
        proof.check_merge(target, folder, SILENT)
        made = making.make(target, making.plugin_of("gguf"), gguf.Config(level="f16"), SILENT)
    shutil.rmtree(folder)
    assert learned_in(merged.merged_folder(target, SILENT)) == "F32"
    again = making.make(target, making.plugin_of("gguf"), gguf.Config(level="f16"), SILENT, reuse=True)
    assert again.fresh and again.place == made.place, "a file of a coarser merge is not what would be made"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 0))
        assert learned_in(merged.merged_folder(target, SILENT)) == "F32"


def test_packed_targets_store_what_they_leave_in_the_served_type(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    whole = hf.export(adapter, tmp_path / "whole", hf.Config(), base=base, learned_in="F32").out
    head = read_model(whole)["lm_head.weight"]
    assert (head.dtype, head.served) == ("F32", "BF16")
    packed = read_model(fp8.export(whole, tmp_path / "fp8", fp8.Config()).out)
    assert packed["lm_head.weight"].dtype == "BF16" == packed[f"{QUERY}_scale"].dtype
    assert packed["lm_head.weight"].serves is None


def test_float16_ends(base: Path, tmp_path: Path) -> None:
    """Numbers beyond what a chosen type holds are an error, and nothing is left."""
    loud = Path(shutil.copytree(base, tmp_path / "loud"))
    tensors = load_file(loud / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].clone()
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"model\.norm\.weight holds numbers beyond 65504"):
        hf.export(loud, tmp_path / "out", hf.Config(dtype="float16"))
    assert not (tmp_path / "out").exists()
    whole = hf.export(loud, tmp_path / "out", hf.Config(dtype="float32")).out
    assert {t.dtype for t in read_model(whole).values()} == {"F32"}


def test_learned_in_full(base: Path, tmp_path: Path) -> None:
    """Weights learned in full in float32 stay so; those learned in bf16 have nothing to keep."""
    for dtype, stored in (("float32", "F32"), ("bfloat16", "BF16")):
        learned = Path(shutil.copytree(base, tmp_path / f"learned-{dtype}"))
        tensors = load_file(learned / "model.safetensors")
        save_file(
            {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()},
            learned / "model.safetensors",
            metadata={"format": "pt"},
        )
        out = hf.export(learned, tmp_path / dtype, hf.Config(), base=base, learned_in="F32").out
        found = read_model(out)[QUERY]
        assert (found.dtype, found.served) == (stored, "BF16")
        assert '"dtype": "bfloat16"' in (out / "config.json").read_text(encoding="utf-8")


def test_new_rows(base: Path, tmp_path: Path) -> None:
    """Learned rows of an embedding: the whole tensor is written as fine as they are, the others unchanged."""
    from tunesmith.export.rows import Rows, with_rows

    save_file({"values": torch.full((2, 4), 0.1234567)}, tmp_path / "rows.safetensors")
    old = torch.randn(5, 4).bfloat16()
    save_file({"old": old}, tmp_path / "old.safetensors")
    values = _one(tmp_path / "rows.safetensors", "values")
    planned = with_rows(_one(tmp_path / "old.safetensors", "old"), Rows((1, 5), values), "new", "F32")
    got = torch.frombuffer(bytearray(b"".join(bytes(c) for c in planned.chunks())), dtype=torch.float32).reshape(
        planned.shape
    )
    assert planned.shape == (6, 4) and bool((got[[1, 5]] == 0.1234567).all())
    assert torch.equal(got[[0, 2, 3, 4]], old[[0, 2, 3, 4]].float())


def _one(file: Path, name: str) -> Any:
    from tunesmith.export.tensor_files import read_header

    return read_header(file)[name]
