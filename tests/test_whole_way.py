"""From data to a model in (a stand-in of) Ollama, through the verbs, with every real part running on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ollama_server
from ollama_models import Runner
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.export.modelfile import parse
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.train import create, execute

SETTINGS = ["data=lantern_bay", "data.limit=24", "data.max_length=256", "train.batch=8", "train.max_steps=6", "train.lr=2e-2", "output.name=whole"]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """A finished training run; each test of this module finds it in its own runs folder's place."""
    root = tmp_path_factory.mktemp("runs")
    os.environ["TUNESMITH_RUNS"] = str(root)
    made = create(load_config(None, [f"model={tiny}", *SETTINGS]))
    execute(made, SILENT)
    yield made


@pytest.fixture(autouse=True)
def same_runs(run: RunFolder, own_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nobody listens there


def test_the_run_folder_tells_everything(run: RunFolder) -> None:
    assert run.status().state == "finished" and run.status().step == 6
    assert (run.artifacts / "loss.png").stat().st_size > 5000
    config = config_of_run(run)
    assert config.precision in ("bf16", "fp32") and config.data.date, "what could change later is pinned"
    assert "training 6/6: loss" in run.log_path.read_text(encoding="utf-8")


def test_compare_before_and_after(run: RunFolder) -> None:
    from tunesmith.verbs.compare import run_comparison

    result, folder = run_comparison(
        [f"{run.id}@base", run.id], SILENT, limit=1, max_tokens=4, names=["before", "after"]
    )
    before, after = result.candidates
    assert before.loss is not None and after.loss is not None and after.loss < before.loss - 0.1
    # The loop measured the same rows with packing; here the engine's distributions are used.
    measured = [r["eval_loss"] for r in run.metrics() if r["kind"] == "eval"]
    assert (before.loss, after.loss) == pytest.approx((measured[0], measured[-1]), rel=2e-3)
    assert folder is not None and "held-out loss" in (folder / "comparison.md").read_text(encoding="utf-8")


def test_the_same_export_is_taken_and_another_refuses_to_overwrite(run: RunFolder, tmp_path: Path) -> None:
    from tunesmith.verbs.export import export

    place, checks = export(run.id, "hf", SILENT, out=tmp_path / "merged")
    assert (place / "model.safetensors").exists() and any("merged" in c for c in checks)
    written = (place / "model.safetensors").stat().st_mtime_ns
    assert export(run.id, "hf", SILENT, out=tmp_path / "merged")[0] == place
    assert (place / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ExportError, match="exists already and is not what would be made: its settings were others"):
        export(run.id, "hf", SILENT, out=tmp_path / "merged", settings=["max_shard_size=0.5"])
    with pytest.raises(UserError, match="no GGUF level 'q9_k_m'"):
        export(run.id, "gguf", SILENT, level="q9_k_m")


def test_deploy_with_a_server(run: RunFolder, tmp_path: Path) -> None:
    """The stand-in answers from the uploaded GGUF, through the deployed template, in llama.cpp."""
    from tunesmith.verbs.deploy import deploy
    from tunesmith.verbs.prove import ProofFailed

    with ollama_server.serving(tmp_path, Runner()) as server:
        with pytest.raises(ProofFailed, match="4 answers end"):  # after six steps
            deploy(run.id, "whole-way:tiny", SILENT, level="f16", url=server.url)
        assert server.models == {}
        done = deploy(run.id, "whole-way:tiny", SILENT, level="f16", url=server.url, force=True)
        assert done.report is not None and done.report.uploaded_bytes == 0, "it was sent before"
        assert {"weights", "template", "stop", "num_ctx"} <= set(done.report.checks)
        assert server.uploads() == 1
    report = json.loads((run.artifacts / "deploy_report.json").read_text(encoding="utf-8"))
    assert report["parity"]["mean_kl"] < 1e-3 and report["server"]["name"] == "whole-way:tiny"


def test_deploy_without_a_server(run: RunFolder) -> None:
    from tunesmith.verbs.deploy import deploy

    done = deploy(run.id, "whole-way", SILENT, level="f16", force=True)
    assert done.report is None and done.command.startswith("ollama create whole-way -f ")
    modelfile = parse(done.made.modelfile.read_text(encoding="utf-8"))
    assert (done.made.modelfile.parent / modelfile.from_).resolve() == done.made.file.resolve()
    assert modelfile.parameters["stop"] and modelfile.parameters["num_ctx"] == 256, "never longer than the model can"
    assert modelfile.template is not None and "SmolLM" in modelfile.template and modelfile.license is not None


def test_a_gguf_of_other_weights_is_found_out(run: RunFolder, tiny: Path, tmp_path: Path) -> None:
    """The proof must fail when the file is not the model: the untrained base in the place of the tuned one."""
    from dataclasses import replace

    from tunesmith.verbs.gguf import gguf
    from tunesmith.verbs.proof import check_parity
    from tunesmith.verbs.targets import target_of

    base, tuned = target_of(f"{run.id}@base", SILENT), target_of(run.id, SILENT)
    swapped = gguf(base, SILENT, level="f16", out=tmp_path / "base.gguf")
    real = gguf(tuned, SILENT, level="f16", reuse=True)
    with pytest.raises(ExportError, match="does not answer as the merged model does"):
        check_parity(tuned, [replace(swapped, merged=real.merged)], SILENT)
    assert not swapped.file.exists() and swapped.file.with_name("base.gguf.failed").exists()


def test_chat_from_a_pipe(run: RunFolder) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-m", "tunesmith", "chat", run.id, "--max-tokens", "3"]
    done = subprocess.run(command, input="Hi\n/new\nHello\n/exit\n", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_an_answer_can_be_broken_off(run: RunFolder) -> None:
    """Closing the stream ends the generating thread: nothing is left that could crash at exit."""
    import threading

    from tunesmith.chat.base import Sampling
    from tunesmith.verbs.targets import open_engine

    engine = open_engine(run.id, SILENT)
    before = threading.active_count()
    stream = engine.stream([{"role": "user", "content": "Hi"}], Sampling(max_tokens=200, temperature=5.0))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    engine.close()


def test_last_passes_over_failed_starts(run: RunFolder) -> None:
    from tunesmith.verbs.targets import target_of

    failed = RunFolder.create(run.config_path.read_text(encoding="utf-8"), "zz-failed", run.path.parent)
    failed.update_status(state="failed", created=run.stored_status().created + 100)
    assert target_of("last", SILENT).learned == run.checkpoint()
    failed.delete()


def test_references_to_a_run(run: RunFolder, tiny: Path) -> None:
    from tunesmith.verbs.targets import target_of

    assert target_of("last", SILENT).learned == run.checkpoint()
    assert target_of(f"run:{run.id}@base", SILENT).learned is None
    assert target_of(f"{run.id}@step-6", SILENT).learned == run.checkpoint(6)
    assert target_of(f"{tiny}+run:{run.id}", SILENT).learned == run.checkpoint()
    assert target_of(f"{tiny}+{run.checkpoint()}", SILENT).learned == run.checkpoint()
    for wrong in ("last@foo", f"{run.id}@step-5", f"run:{run.id}@step-x"):
        with pytest.raises(UserError):
            target_of(wrong, SILENT)


def test_a_detached_run_outlives_its_starter(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TUNESMITH_RUNS", str(tmp_path / "detached"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-m", "tunesmith", "train", f"model={tiny}", *SETTINGS, "--detach"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    started = RunFolder.open(Path(done.stdout.strip()))
    while started.status().active:
        time.sleep(0.2)
    assert started.status().state == "finished", started.log_tail()
    assert started.checkpoint_steps()[-1] == 6


def test_a_merge_that_loses_the_adapter_is_found_out(run: RunFolder, tiny: Path) -> None:
    """The proof starts at the model as trained: the untrained base in the place of the merged folder must fail."""
    from tunesmith.verbs.merged import merged_folder
    from tunesmith.verbs.proof import check_merge
    from tunesmith.verbs.targets import target_of

    target = target_of(run.id, SILENT)
    check_merge(target, merged_folder(target, SILENT), SILENT)
    with pytest.raises(ExportError, match="does not answer as the trained one does"):
        check_merge(target, tiny, SILENT)


@pytest.mark.slow
def test_a_run_is_exported_without_its_data(tiny: Path, tmp_path: Path) -> None:
    """The data file may be gone: the probes were kept with the run. It may also have changed: resuming then refuses."""
    import shutil

    from tunesmith.config.errors import TrainingError
    from tunesmith.verbs.export import export

    rows = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(8)]
    data = tmp_path / "mine.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    settings = ["train.max_steps=4", "train.save_every=2", "train.batch=4", "output.name=gone"]
    made = create(load_config(None, [f"model={tiny}", f"data={data}", *settings]))
    execute(made, SILENT)
    assert made.checkpoint_steps() == [2, 4]
    shutil.rmtree(made.checkpoint())
    made.update_status(state="stopped")
    data.write_text(json.dumps(rows[1:]), encoding="utf-8")
    with pytest.raises(TrainingError, match="is not what it began with"):
        execute(made, SILENT)
    data.unlink()
    (tmp_path / "notes.txt").write_text(
        "of others", encoding="utf-8"
    )  # so that what lies beside x.gguf carries its name
    place, _ = export(str(made.path), "gguf", SILENT, out=tmp_path / "x.gguf")
    assert place.exists()
    card = (tmp_path / "x.README.md").read_text(encoding="utf-8")
    assert "tags:\n- tunesmith\n- gguf\n" in card and f"base: {tiny.name}" in card
    assert "stage sft, method lora (rank" in card and "`x.gguf`" in card and "llama-server -m x.gguf" in card
    assert "ollama create gone -f Modelfile" in card and not (tmp_path / "README.md").exists()
