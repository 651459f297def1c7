"""An export that was interrupted goes on at the shard where it stood, and ends with the same bytes."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from model_fixtures import edit_json
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Silent
from tunesmith.export.base import partial_of
from tunesmith.export.shards import JOURNAL
from tunesmith.export.targets import hf

SHARD = hf.Config(max_shard_size=3e-5)  # 30 kB: a handful of shards
PROGRAM = """
import sys, time
from pathlib import Path
from tunesmith.config.progress import Silent
from tunesmith.export.targets import hf

class Slow(Silent):
    def advance(self, amount=1, note=""):
        print("advanced", flush=True)
        time.sleep(0.05)

adapter, out, base = map(Path, sys.argv[1:4])
hf.export(adapter, out, hf.Config(max_shard_size=3e-5), Slow(), base=base)
"""


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export, never interrupted."""
    base, adapter = pair
    return hf.export(adapter, tmp_path_factory.mktemp("whole") / "out", SHARD, base=base).out


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("model*.safetensors")}


def done_in(out: Path) -> list[str]:
    """The shards that are finished, as the journal says."""
    path = partial_of(out) / JOURNAL
    return sorted(json.loads(path.read_text())["finished"]) if path.exists() else []


def assert_same(out: Path, whole: Path) -> None:
    assert (out / "SHA256SUMS").read_text() == (whole / "SHA256SUMS").read_text()
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


class Stop(Silent):
    """Raises ``error`` when so many tensors were written."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("after", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 12, 16))])
def test_killed_and_taken_up_again(pair: tuple[Path, Path], whole: Path, tmp_path: Path, after: int) -> None:
    """kill -9 in the middle of a shard of a real process: the next call writes the shards that are missing, no other."""
    base, adapter = pair
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(adapter), str(out), str(base)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(after):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    finished, before = done_in(out), stamps(partial_of(out))
    report = hf.export(adapter, out, SHARD, base=base)
    assert report.checks.get("resumed", 0) == len(finished)
    assert (after > 1) is bool(finished), "the point of interest was missed"
    now = stamps(out)
    assert {name: now[name] for name in finished} == {name: before[name] for name in finished}
    assert_same(out, whole)
    assert not partial_of(out).exists()


@pytest.mark.parametrize("change", ["adapter", "alpha", "base", "shards"])
def test_other_inputs_start_afresh(pair: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    base, adapter = (shutil.copytree(one, tmp_path / one.name) for one in pair)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        hf.export(adapter, out, SHARD, Stop(8, KeyboardInterrupt()), base=base)
    assert done_in(out)
    config = SHARD
    if change == "shards":
        config = hf.Config(max_shard_size=4e-5)
    elif change == "alpha":
        edit_json(adapter / "adapter_config.json", lora_alpha=7)
    else:
        file = adapter / "adapter_model.safetensors" if change == "adapter" else base / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if change == "base" or "lora_B" in name)
        save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
    report = hf.export(adapter, out, config, base=base)
    assert "resumed" not in report.checks
    assert_same(out, hf.export(adapter, tmp_path / "again", config, base=base).out)


def test_damaged_finished_shard_is_written_again(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    base, adapter = pair
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        hf.export(adapter, out, SHARD, Stop(12, KeyboardInterrupt()), base=base)
    first = partial_of(out) / done_in(out)[0]
    first.write_bytes(bytes(first.stat().st_size))
    finished = len(done_in(out))
    assert hf.export(adapter, out, SHARD, base=base).checks["resumed"] == finished - 1 > 0
    assert_same(out, whole)


def test_full_disk(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """A file that may not grow beyond 20 kB (what a full disk answers too): one message, nothing under the name; more room: it goes on."""
    base, adapter = pair
    out = tmp_path / "out"
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, allowed[1]))
        with pytest.raises(ExportError, match="no room left") as caught:
            hf.export(adapter, out, SHARD, base=base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        signal.signal(signal.SIGXFSZ, old)
    assert "goes on" in str(caught.value.hint)
    assert not out.exists()
    left = [p for p in partial_of(out).glob("*.safetensors") if p.name not in done_in(out)]
    assert left == [], "an unfinished shard takes room"
    hf.export(adapter, out, SHARD, base=base)
    assert_same(out, whole)


def test_proof_decides_on_the_name(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """Interrupted amid the proof: not under its name, and the next call writes no weight again. Failed: kept as .failed."""
    base, adapter = pair
    out, seen = tmp_path / "out", []

    def prove(folder: Path) -> dict[str, Any]:
        assert not out.exists()
        seen.append(stamps(folder))
        if len(seen) == 1:
            raise KeyboardInterrupt
        if len(seen) == 2:
            raise ExportError(f"{folder} answers wrongly")
        return {"answer": "yes"}

    with pytest.raises(KeyboardInterrupt):
        hf.export(adapter, out, SHARD, base=base, prove=prove)
    assert not out.exists()
    with pytest.raises(ExportError, match=r"out\.failed answers wrongly") as caught:
        hf.export(adapter, out, SHARD, base=base, prove=prove)
    assert seen[0] == seen[1], "finished shards were written again"
    assert "remove it" in str(caught.value.hint)
    assert (
        not out.exists()
        and not partial_of(out).exists()
        and (tmp_path / "out.failed" / "model.safetensors.index.json").exists()
    )
    assert hf.export(adapter, out, SHARD, base=base, prove=prove).checks["answer"] == "yes"
    assert_same(out, whole)


@pytest.mark.slow
def test_two_at_once(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(adapter), str(out), str(base)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(ExportError, match="another process is writing"):
            hf.export(adapter, out, SHARD, base=base)
        assert process.wait(60) == 0, "the first one was disturbed"
    finally:
        process.kill()
    assert out.is_dir()
