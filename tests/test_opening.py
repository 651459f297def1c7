"""Proofs on machines whose memory does not hold the model in fp32: the next way to open it is taken, or what is missing is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import make_family
from model_fixtures import edit_json, make_adapter
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import Silent
from tunesmith.export import blockwise
from tunesmith.export.targets import hf
from tunesmith.verbs import merged as merged_verb
from tunesmith.verbs import opening, proof
from tunesmith.verbs.checks import numbers
from tunesmith.verbs.opening import NoRoomError, Way, in_gib, opened, ran_out_of_memory, ways
from tunesmith.verbs.proof import Evidence, Hop, check_engine, check_merge
from tunesmith.verbs.targets import Target, renderer_of, target_of

ROWS = [tuple(range(10, 40)), tuple(range(50, 62))]
CPU = torch.device("cpu")


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_DEVICE", "cpu")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A llama of 8 layers stored in bf16, and a LoRA for it."""
    root = tmp_path_factory.mktemp("opening")
    base = make_family(root / "base", "llama", num_hidden_layers=8)
    tensors = load_file(base / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
    edit_json(base / "config.json", dtype="bfloat16")
    make_adapter(base, root / "adapter", lora_alpha=64)
    return target_of(f"{base}+{root / 'adapter'}", Said())


@pytest.fixture(scope="module")
def whole(trained: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert trained.learned is not None
    out = tmp_path_factory.mktemp("merged") / "merged"
    hf.export(trained.learned, out, hf.Config(), base=trained.base.folder)
    return out


def needs(target: Target, **how: bool) -> dict[str, int]:
    found = [way for way in ways(target, ROWS, **{"as_trained": False, "answers": False} | how) if isinstance(way, Way)]
    return {str(way): way.needs for way in found}


def has(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(opening, "free_memory", lambda _: free)


def way_taken(target: Target, **how: Any) -> str:
    return opened(target, renderer_of(target), "m", ROWS, lambda _, way: str(way), Said(), **how)


def test_the_first_way_that_fits_is_taken(trained: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte; what must answer goes through 16 bits before the blocks, which cannot."""
    wanted = needs(trained)
    fp32, blocks, bf16 = "in fp32", "in fp32, one block at a time", "in bf16, as it is stored"
    assert list(wanted) == [fp32, blocks, bf16] and wanted[blocks] < wanted[bf16] < wanted[fp32]
    assert list(needs(trained, answers=True)) == [fp32, bf16, blocks]
    for free, compared, answered in (
        (wanted[fp32], fp32, fp32),
        (wanted[fp32] - 1, blocks, bf16),
        (wanted[bf16] - 1, blocks, blocks),
    ):
        has(monkeypatch, free)
        assert (way_taken(trained), way_taken(trained, answers=True)) == (compared, answered)
    has(monkeypatch, wanted[blocks] - 1)
    with pytest.raises(NoRoomError) as caught:
        way_taken(trained)
    for way, much in wanted.items():
        assert f"{way} it needs {in_gib(much)}, {in_gib(wanted[blocks] - 1)} are free" in caught.value.message
    assert "close other programs" in (caught.value.hint or "")


def test_what_ran_out_of_memory_is_tried_in_the_next_way(trained: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the estimate said that it fits, whatever the error is wrapped in; another error is no reason to try another way."""

    def too_large(*_: Any, **__: Any) -> Any:
        try:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
            )
        except RuntimeError as error:
            raise UserError("the model cannot be opened") from error

    monkeypatch.setattr(opening, "open_weights", too_large)
    assert way_taken(trained) == "in fp32, one block at a time"
    base = Target("base", trained.base)
    monkeypatch.setattr(blockwise, "BlockwiseEngine", too_large)
    with pytest.raises(NoRoomError, match="it ran out of memory"):
        way_taken(base)

    def unknown(*_: Any, **__: Any) -> Any:
        raise ExportError("what its blocks are given depends on the text")

    monkeypatch.setattr(blockwise, "BlockwiseEngine", unknown)
    with pytest.raises(NoRoomError, match="what its blocks are given"):
        way_taken(base)
    monkeypatch.setattr(opening, "open_weights", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        way_taken(trained)
    assert ran_out_of_memory(torch.OutOfMemoryError("x")) and ran_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not ran_out_of_memory(OSError(28, "No space left on device"))


@pytest.mark.parametrize("way", ["in fp32", "in fp32, one block at a time", "in bf16, as it is stored"])
def test_every_way_proves_a_merge_and_refutes_a_wrong_one(
    trained: Target, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A merge that lost its adapter is refused in each of them; 16 bits widen the bound and say so."""
    monkeypatch.setattr(opening, "ways", lambda *a, **k: [w for w in ways(*a, **k) if str(w) == way])
    monkeypatch.setattr(proof, "probe_tokens", lambda *_: [*ROWS])
    evidence = Evidence()
    reference, _ = check_merge(trained, whole, Said(), evidence=evidence)
    (hop,) = evidence.hops
    assert reference is not None and hop.figures.mean_kl < 0.01 and evidence.missing == []
    assert hop.usual == pytest.approx(0.04 if "bf16" in way else 0.02)
    assert hop.how == ("" if way == "in fp32" else f"trained {way}; merged {way}")
    lost = shutil.copytree(whole, tmp_path / "lost")
    shutil.copy(trained.base.folder / "model.safetensors", lost / "model.safetensors")
    with pytest.raises(ExportError, match="does not answer as the trained one"):
        check_merge(trained, lost, Said())


def test_what_cannot_be_compared_is_said_and_no_error(
    trained: Target, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "probe_tokens", lambda *_: [*ROWS])
    has(monkeypatch, 1000)
    said, evidence = Said(), Evidence()
    reference, sequences = check_merge(trained, whole, said, evidence=evidence)
    assert reference is None and evidence.hops == []
    assert check_engine(lambda: 1 / 0, "x.gguf", 0.1, reference, sequences, said, evidence=evidence) is None
    assert said.lines == [f"warning: {line}" for line in evidence.missing] and len(said.lines) == 2
    assert said.lines[0].startswith("warning: trained → merged: not compared: in fp32 it needs")
    assert "close other programs" in said.lines[0] and "merged → x.gguf: not compared" in said.lines[1]
    check = numbers.local(evidence, None)
    assert check.state == "not measured" and check.figures == tuple(evidence.missing) and not check.broken
    report = merged_verb.prove(trained, whole, said)
    assert report["compared"].startswith("trained → merged: not compared: in fp32 it needs")
    assert report["answer"].startswith("not asked: in fp32 it needs")
    assert trained.learned is not None
    assert merged_verb.prove(trained, trained.learned, said)["compared"].startswith("not compared: in fp32 it needs")


def test_only_the_merged_model_fits(trained: Target, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is still compared; that the merge was not stands beside it."""
    monkeypatch.setattr(proof, "probe_tokens", lambda *_: [*ROWS])
    monkeypatch.setattr(opening, "ways", lambda target, *a, **k: [] if target.learned else list(ways(target, *a, **k)))
    evidence = Evidence()
    reference, _ = check_merge(trained, whole, Said(), evidence=evidence)
    assert reference is not None and evidence.hops == [] and evidence.missing[0].startswith("trained → merged: not")


def test_the_bound_of_a_file_allows_for_the_numbers_of_the_reference(trained: Target, whole: Path) -> None:
    """Measured against a reference in bf16, a file may differ by what bf16 rounds, and by no more."""
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.evaluate.parity import Remembered
    from tunesmith.verbs.targets import open_weights

    model = Target("m", trained.base)
    engines = {
        precision: TransformersEngine(open_weights(model, precision=precision), renderer_of(model), precision)
        for precision in ("fp32", "bf16")
    }
    evidence = Evidence()
    rounded = Remembered(engines["bf16"], slack=0.01, how="in bf16, as it is stored")
    figures = check_engine(lambda: engines["fp32"], "x", 1e-9, rounded, ROWS, Said(), evidence=evidence)  # type: ignore[arg-type]
    assert figures is not None and 5e-9 < figures.mean_kl < 0.01
    assert evidence.hops == [Hop("merged → x", figures, 1e-9 + 0.01, "in bf16, as it is stored")]
    assert str(evidence.hops[0]).endswith("(usual: below 0.01; in bf16, as it is stored)")
    engines["fp32"] = TransformersEngine(open_weights(model, precision="fp32"), renderer_of(model), "fp32")
    with pytest.raises(ExportError, match="does not answer"):
        check_engine(lambda: engines["fp32"], "x", 1e-9, Remembered(engines["bf16"]), ROWS, Said())  # type: ignore[arg-type]


def test_memory_is_left_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.models import devices

    monkeypatch.setattr(devices, "memory", lambda _: devices.Memory(0, 10 * 2**30, 0, 16 * 2**30))
    assert opening.free_memory(CPU) == 9 * 2**30
    monkeypatch.setattr(devices, "memory", lambda _: devices.Memory(0, 10 * 2**30, 0, 60 * 2**30))
    assert opening.free_memory(CPU) == 7 * 2**30
    monkeypatch.setattr(devices, "memory", lambda _: devices.Memory(0, 5, 0, 60 * 2**30))
    assert opening.free_memory(CPU) == 0


def test_numbers_past_the_end_of_f16_are_told_of(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp makes of such a file is not-a-number; bf16 is the way out, and the message says it."""
    from tunesmith.chat.transformers_engine import TransformersEngine
    from tunesmith.verbs.targets import open_weights

    model = target_of(str(tiny), Said())
    engine = TransformersEngine(open_weights(model, precision="fp32"), renderer_of(model), "fp32")
    lost = TransformersEngine(open_weights(model, precision="fp32"), renderer_of(model), "lost")
    with torch.no_grad():
        next(iter(lost.model.parameters())).fill_(float("nan"))
    monkeypatch.setattr("tunesmith.chat.llamacpp.LlamaCppEngine", lambda *_, **__: lost)
    for level, words in (("f16", "65504"), ("q4_k_m", "too coarse")):
        monkeypatch.setattr(lost, "close", lambda: None)
        with pytest.raises(ExportError, match="not-a-number") as caught:
            proof.check_file(Path("x.gguf"), level, engine, ROWS, Said())  # type: ignore[arg-type]
        assert words in str(caught.value.hint)
