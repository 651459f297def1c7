"""The profiler's files, and what deterministic mode asks of torch."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from test_loop import CONFIG, losses, new_run, setup
from tunesmith.config.progress import SILENT
from tunesmith.models.determinism import be_deterministic
from tunesmith.train.loop import train
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.train import create, execute


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture
def back_to_normal() -> object:
    yield
    torch.use_deterministic_algorithms(False)


def test_profile_and_determinism_change_no_number(tiny: Path, tmp_path: Path, back_to_normal: object) -> None:
    plain = setup(tiny, new_run(tmp_path, "plain"), CONFIG)
    train(plain)
    be_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    watched = setup(tiny, new_run(tmp_path, "watched"), CONFIG.model_copy(update={"profile": 2}))
    train(watched)
    assert losses(watched.run) == losses(plain.run)
    folder = watched.run.artifacts / "profile"
    assert {p.name for p in folder.iterdir()} == {"trace.json.gz", "operations.txt"}
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    steps = {e["name"] for e in events if e.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 2, "two steps are recorded, the warm-up is not"
    tables = (folder / "operations.txt").read_text()
    assert "aten::mm" in tables or "aten::addmm" in tables
    assert not (plain.run.artifacts / "profile").exists()


def test_a_training_that_ends_during_the_warm_up_leaves_no_profile(tiny: Path, tmp_path: Path) -> None:
    short = setup(tiny, new_run(tmp_path), CONFIG.model_copy(update={"profile": 2, "max_steps": 1}))
    train(short)
    assert not (short.run.artifacts / "profile").exists() and short.run.checkpoint_steps() == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_runs_on_a_gpu_are_equal(tiny: Path, back_to_normal: object) -> None:
    both = []
    for _ in range(2):
        config = load_config(
            None, [f"model={tiny}", "data=lantern_bay", "data.limit=30", "train.epochs=2", "train.deterministic=true"]
        )
        run = create(config)
        execute(run, SILENT)
        both.append(load_file(run.checkpoint() / "adapter_model.safetensors"))
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
