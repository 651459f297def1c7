"""The wheel installs and runs without the clone: a new environment, another folder, the whole demo, into a stand-in of Ollama."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ollama_server
from conftest import TEST_HOME
from ollama_models import Runner

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.real
def test_the_wheel_runs_the_demo(tmp_path: Path) -> None:
    def call(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**clean, **environment})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("tunesmith-*.whl")
    call(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    from importlib.metadata import version

    call(python, "-m", "pip", "install", "-q", f"torch=={version('torch').partition('+')[0]}")
    call(python, "-m", "pip", "install", "-q", str(wheel))
    runs = tmp_path / "runs"
    with ollama_server.serving(tmp_path, Runner()) as server:
        settings = {"TUNESMITH_HOME": str(TEST_HOME), "TUNESMITH_RUNS": str(runs), "OLLAMA_HOST": server.url}
        done = call(str(tmp_path / "venv" / "bin" / "tunesmith"), "demo", "train.max_steps=8", **settings)
        assert "lantern-bay" in str(server.models)
    (run,) = runs.iterdir()
    for heading in range(1, 7):
        assert f"[{heading}/6]" in done.stdout
    for word in [
        "before: held-out loss",
        "after: held-out loss",
        "mean KL",
        "Q8_0",
        "talk to it: ollama run lantern-bay",
        "peak memory",
    ]:
        assert word in done.stdout, done.stdout
    assert (run / "artifacts" / "loss.png").exists() and (run / "artifacts" / "comparison.md").exists()
    assert list(run.glob("artifacts/gguf-q8_0-*/Modelfile"))
