"""``--to hf`` of a run: its card tells how it was learned, it is compared and asked before it gets its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import learned_runs
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs import deploy_adapter, making, merged, proof
from tunesmith.verbs.export import export
from tunesmith.verbs.targets import target_of

HF, ADAPTER = making.plugin_of("hf"), making.plugin_of("adapter")


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return learned_runs.train(tiny, tmp_path_factory.mktemp("runs"), "small", "method=lora", "method.rank=4")


def test_card_and_answer(run: RunFolder, tmp_path: Path) -> None:
    target = target_of(str(run.path), SILENT)
    assert making.place_of(target, HF, HF.Config()) == run.artifacts / "hf-step-6"
    place, said = export(str(run.path), "hf", SILENT, out=tmp_path / "out")
    report = dict(line.split(": ", 1) for line in said)
    assert report["asked"] == merged.QUESTION and report["answer"]
    assert report["compared"].startswith("with base")
    card = (place / "README.md").read_text(encoding="utf-8")
    rows = json.loads((run.path / "rows.json").read_text(encoding="utf-8"))
    assert f"data: lantern_bay; {rows['train']} rows learned, {rows['eval']} held out" in card
    assert rows["sha256"] in card
    assert "method lora (rank 4)" in card and "learning rate 0.002" in card and "6 steps" in card
    losses = [r["eval_loss"] for r in run.metrics() if r["kind"] == "eval"]
    assert f"{losses[-1]:.4f} at step 6" in card
    assert str(run.path) not in card and str(target.base.folder) not in card


def test_earlier_checkpoint_tells_its_own_figures(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.verbs.provenance import provenance

    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    lines = provenance(target_of(f"run:{run.id}@step-3", SILENT))
    assert any(line.startswith("3 steps") for line in lines)
    assert making.place_of(target_of(f"run:{run.id}@step-3", SILENT), HF, HF.Config()).name == "hf-step-3"
    assert provenance(target_of(f"run:{run.id}@base", SILENT)) == []


def test_adapter_alone(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter of a run on its base answers as the run; one that does not gets no name."""
    target = target_of(str(run.path), SILENT)
    report = making.make(target, ADAPTER, ADAPTER.Config(), SILENT, out=tmp_path / "out").report
    assert report.checks["compared"].startswith("with base") and report.checks["loads"]
    assert "method lora (rank 4)" in (report.out / "README.md").read_text(encoding="utf-8")
    assert not (report.out / "optimizer.safetensors").exists() and not (report.out / "trainer.json").exists()
    monkeypatch.setattr(proof, "MERGE_BOUND", -1.0)
    with pytest.raises(ExportError, match="does not answer"):
        making.make(target, ADAPTER, ADAPTER.Config(), SILENT, out=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_not_under_its_name_before_the_proof(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proof, "check_merge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(str(run.path), "hf", SILENT, out=out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(proof, "EXACT_BOUND", -1.0)
        with pytest.raises(ExportError, match="was not made") as caught:
            export(str(run.path), "hf", SILENT, out=out)
    assert str(tmp_path / "out.failed") in str(caught.value)
    assert not out.exists() and (tmp_path / "out.failed").is_dir()


def test_larger_than_memory(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large to open: it is written, and the report says why nobody asked it."""
    from tunesmith.models import devices

    monkeypatch.setattr(devices, "memory", lambda _: devices.Memory(0, 1000, 0, 1000))
    _, said = export(str(run.path), "hf", SILENT, out=tmp_path / "out")
    assert any(line.startswith("answer: not asked: in fp32 it needs") for line in said)


@pytest.mark.parametrize("text", ["{", "[]", '{"probes": 3}', '{"probes": [["a"]]}'])
def test_rows_that_cannot_be_read_are_left_out(run: RunFolder, tmp_path: Path, text: str) -> None:
    """A damaged rows.json is told, and other rows are compared."""
    target = target_of(str(run.path), SILENT)
    copy = RunFolder(tmp_path)
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    lines: list[str] = []
    said: Any = SimpleNamespace(say=lines.append)
    found = proof.probe_tokens(replace(target, run=copy), target.base.folder, 8, said)
    assert len(found) == 2 and lines[0].startswith(f"warning: {tmp_path / 'rows.json'} cannot be read")
    assert deploy_adapter._rows_of(replace(target, run=copy), said) == []
    assert proof.probe_tokens(target, target.base.folder, 8) != found
