"""The converter's processes: loaded once, a job lives and dies alone, and nothing outlives the process that asked."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import gguf_families
from tunesmith.config.errors import ExportError
from tunesmith.export import converter_process
from tunesmith.export.targets import gguf

pytestmark = pytest.mark.skipif(not converter_process.FORKS, reason="there the converter is started for each job")
CONFIG = gguf.Config(level="f32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_families.make(tmp_path_factory.mktemp("model") / "llama", "llama", dtype="bfloat16")


class KillsAtOnce:
    """A ``Progress`` that ends the job while it runs."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None: ...
    def finish(self, note: str = "") -> None: ...
    def say(self, line: str) -> None: ...
    def advance(self, amount: float = 1, note: str = "") -> None:
        self.end()

    def __init__(self, end: Any) -> None:
        self.end = end


def forks() -> list[psutil.Process]:
    assert converter_process._warm is not None
    return psutil.Process(converter_process._warm.process.pid).children()


def kill_forks() -> None:
    for job in forks():
        with suppress(psutil.NoSuchProcess):  # it ended since it was looked up
            job.kill()


def wait_for(what: Any) -> Any:
    for _ in range(3000):
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come in 30 s")


def test_a_job_that_dies_takes_nothing_with_it(model: Path, tmp_path: Path) -> None:
    first = gguf.export(model, tmp_path / "first.gguf", CONFIG).out.read_bytes()
    warm = converter_process._warm
    assert warm is not None and forks() == []
    with pytest.raises(ExportError, match=r"was killed \(signal 9\)"):
        gguf.export(model, tmp_path / "killed.gguf", CONFIG, KillsAtOnce(kill_forks))
    assert not (tmp_path / "killed.gguf").exists() and (tmp_path / "killed.gguf.log").exists()
    assert gguf.export(model, tmp_path / "second.gguf", CONFIG).out.read_bytes() == first
    assert converter_process._warm is warm


def test_an_interrupted_job_is_ended(model: Path, tmp_path: Path) -> None:
    seen: list[psutil.Process] = []

    def interrupt() -> None:
        seen.extend(wait_for(forks))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.export(model, tmp_path / "out.gguf", CONFIG, KillsAtOnce(interrupt))
    assert forks() == [] and not seen[0].is_running()
    assert list(tmp_path.iterdir()) == []
    assert gguf.export(model, tmp_path / "out.gguf", CONFIG).out.exists()


def test_an_interrupt_that_reaches_the_job_first_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for(forks)[0].kill()
        warm = converter_process._warm
        assert warm is not None
        wait_for(lambda: select.select([warm.process.stdout], [], [], 0)[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.export(model, tmp_path / "out.gguf", CONFIG, KillsAtOnce(interrupt))
    assert list(tmp_path.iterdir()) == []


def test_the_process_that_forks_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says how many, numpy starts as many as there are cores."""
    script = tmp_path / "script.py"
    script.write_text("import os, numpy\nprint(len(os.listdir('/proc/self/task')), flush=True)\n")
    monkeypatch.setattr(converter_process, "SCRIPT", script)
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    warm = converter_process.Warm(tmp_path, environment, tmp_path / "log")
    assert warm.process.stdout is not None and warm.process.stdout.readline() == b"1\n"
    warm.close()


def test_a_warm_process_that_is_gone_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a script that loads no converter and answers the first order."""
    script = tmp_path / "script.py"
    script.write_text("input()\nprint(0, flush=True)\ninput()\ninput()\n")
    monkeypatch.setattr(converter_process, "SCRIPT", script)
    monkeypatch.setattr(converter_process, "_warm", None)
    job, log = tmp_path / "job.json", tmp_path / "log"
    assert converter_process.start(job, tmp_path, {}, log).wait() == 0
    warm = converter_process._warm
    assert warm is not None
    running = converter_process.start(job, tmp_path, {}, log)
    assert running.poll() is None and converter_process._warm is warm
    warm.process.kill()
    assert running.wait() == -signal.SIGKILL
    assert converter_process.start(job, tmp_path, {}, log).wait() == 0 and converter_process._warm is not warm
    converter_process.stop()


def test_a_second_job_at_the_same_time_has_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow way, which other systems always go, with a script that says what it was asked."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nif sys.argv[1] == 'serve': input()\nelse: print('alone', sys.argv[1], os.environ['X'])\nsys.exit(3)\n"
    )
    monkeypatch.setattr(converter_process, "SCRIPT", script)
    monkeypatch.setattr(converter_process, "_warm", None)
    job, log = tmp_path / "job.json", tmp_path / "log"
    warm = converter_process.start(job, tmp_path, {"X": "1"}, tmp_path / "warm.log")
    alone = converter_process.start(job, tmp_path, {"X": "1"}, log)
    assert isinstance(alone, subprocess.Popen) and alone.wait() == 3 and log.read_text() == f"alone {job} 1\n"
    assert warm.wait() == 3


PARENT = """
import subprocess, sys, time
from pathlib import Path
from tunesmith.export import converter_process
converter_process.SCRIPT = Path(sys.argv[1])
warm = converter_process.Warm(Path("/"), {}, Path(sys.argv[1]).with_name("log"))
print(warm.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """With a script that loads no converter but serves as the real one does."""
    real = converter_process.SCRIPT.read_text(encoding="utf-8")
    (tmp_path / "script.py").write_text(real.replace("    load(converter)\n", ""), encoding="utf-8")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        warm = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, how)
    wait_for(lambda: not warm.is_running() or warm.status() == psutil.STATUS_ZOMBIE)
