"""No export has its name before it was compared with the model it was made from; whatever interrupts that leaves none or a proved one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gguf_families
from tunesmith.cli import main
from tunesmith.config.errors import ExportError, Terminated
from tunesmith.config.progress import SILENT, Silent
from tunesmith.export import record
from tunesmith.export.base import NotProvedError, partial_of, proved, whole_or_nothing
from tunesmith.export.targets import gguf
from tunesmith.verbs import export as verb
from tunesmith.verbs import proof
from tunesmith.verbs.choosing import for_kl, for_size
from tunesmith.verbs.export import Choice, export
from tunesmith.verbs.making import make, plugin_of
from tunesmith.verbs.merged import merged_folder
from tunesmith.verbs.targets import target_of


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize("to", ["fp8", "gptq"])
def test_a_folder_is_compared_before_it_gets_its_name(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Interrupted in the comparison: nothing under the name. Refuted: kept as .failed, and the message says so. Else: figures."""
    monkeypatch.chdir(tmp_path)
    target, plugin, out = target_of(f"{pair[0]}+{pair[1]}", SILENT), plugin_of(to), tmp_path / "out"
    how: dict[str, Any] = {"out": out, "given": {"calibration": [[3, 4, 5, 6] * 4, [7, 8, 9] * 5]}}
    seen: list[bool] = []
    real = proof.check_engine

    def interrupted(*args: Any, **more: Any) -> None:
        seen.append(out.exists())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proof, "check_engine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(target, plugin, plugin.Config(), SILENT, **how)
    assert seen == [False] and not out.exists() and not partial_of(out).exists()
    with monkeypatch.context() as patch:
        patch.setattr(proof, "BROKEN", -1.0)
        with pytest.raises(
            NotProvedError, match=r"out was not made: out does not answer as the merged model does"
        ) as caught:
            make(target, plugin, plugin.Config(), SILENT, **how)
    assert str(tmp_path / "out.failed") in str(caught.value) and caught.value.place == tmp_path / "out.failed"
    assert (tmp_path / "out.failed" / "config.json").exists() and not out.exists()
    assert proof.check_engine is real
    checks = make(target, plugin, plugin.Config(), SILENT, **how).report.checks
    assert checks["compared"].startswith("with the merged model: mean KL ")


def test_a_gguf_is_compared_before_it_gets_its_name(tmp_path: Path) -> None:
    """An importance matrix that such a level has no use for is told besides."""
    base, out = gguf_families.make(tmp_path / "model", "mistral"), tmp_path / "out" / "a.gguf"
    lines: list[str] = []

    class Said(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    def prove(work: Path) -> dict[str, Any]:
        assert work.read_bytes()[:4] == b"GGUF" and not out.exists()
        raise ExportError(f"{work} answers otherwise", hint="so it is")

    with pytest.raises(NotProvedError, match=r"a\.gguf was not made: .*a\.gguf\.failed answers otherwise") as caught:
        gguf.export(base, out, gguf.Config(level="f16", imatrix="mine.dat"), Said(), prove=prove)
    assert "so it is; the file that failed its proof is kept as" in str(caught.value.hint)
    assert [p.name for p in out.parent.iterdir()] == ["a.gguf.failed"]
    assert "warning: imatrix=mine.dat is not used: f16 is too exact for importances to matter" in lines


def test_a_refuted_merge_loses_its_name(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the export that was made from it: nothing takes either again, and no other level is tried."""
    monkeypatch.chdir(tmp_path)
    target, plugin = target_of(f"{pair[0]}+{pair[1]}", SILENT), plugin_of("fp8")
    merged = merged_folder(target, SILENT)
    with monkeypatch.context() as patch:
        patch.setattr(proof, "EXACT_BOUND", -1.0)
        with pytest.raises(NotProvedError, match="does not answer as the trained one does") as caught:
            make(target, plugin, plugin.Config(), SILENT, out=tmp_path / "out")
    assert caught.value.source == merged.with_name(f"{merged.name}.failed") and not merged.exists()
    assert visible(tmp_path) == [f"{merged.name}.failed", "out.failed"]

    def refuted(level: str) -> Any:
        raise caught.value

    maker: Any = SimpleNamespace(ladder=lambda: [("q2_k", 1), ("q8_0", 2)], make=refuted, progress=SILENT)
    for choose in (lambda: for_size(maker, 9), lambda: for_kl(maker, SimpleNamespace(texts=[Path("x")]), 1.0)):
        with pytest.raises(NotProvedError):
            choose()  # type: ignore[no-untyped-call]
    assert merged_folder(target, SILENT) == merged


def test_only_the_file_that_is_refuted_is_renamed(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file taken again is compared once more: what breaks off before says nothing of it; refuted, its record goes with it."""
    target, file = target_of(str(pair[0]), SILENT), tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    record.keep(file, {}, {}, SILENT, trial=False)
    made: Any = SimpleNamespace(file=file, level="f16", merged=pair[0])

    def raises(*_: Any, **__: Any) -> Any:
        raise ExportError("so it is")

    with monkeypatch.context() as patch:
        patch.setattr(proof, "check_merge", raises)
        with pytest.raises(ExportError, match="so it is"):
            proof.check_parity(target, [made], SILENT)
    assert visible(tmp_path) == ["a.gguf", "a.gguf.made.json"] and record.changed(file) is None
    monkeypatch.setattr(proof, "check_merge", lambda *_, **__: (None, [(1, 2)]))
    monkeypatch.setattr(proof, "check_file", raises)
    with pytest.raises(ExportError, match="so it is"):
        proof.check_parity(target, [made], SILENT)
    assert visible(tmp_path) == ["a.gguf.failed", "a.gguf.failed.made.json"]


def test_a_comparison_that_breaks_off_keeps_what_was_made(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"

    def breaks(work: Path) -> dict[str, Any]:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError) as caught, whole_or_nothing(out) as work:
        work.write_bytes(b"GGUF")
        proved(breaks, work, out)
    assert visible(tmp_path) == ["a.gguf.failed"] and "a.gguf.failed" in caught.value.__notes__[0]


def test_stopped_it_says_what_is_kept(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that was stopped between two files: the words name where it goes on, and there it does."""
    monkeypatch.chdir(tmp_path)

    class Stop(Silent):
        left = 12

        def advance(self, amount: float = 1, note: str = "") -> None:
            self.left -= 1
            if self.left == 0:
                raise Terminated

    how: dict[str, Any] = {"settings": ["max_shard_size=3e-5"], "out": tmp_path / "out"}
    with pytest.raises(Terminated) as caught:
        export(f"{pair[0]}+{pair[1]}", "hf", Stop(), **how)
    assert caught.value.args == (
        f"what is finished is kept in {tmp_path / '.out.partial'}; the same command goes on there",
    )
    _, said = export(f"{pair[0]}+{pair[1]}", "hf", SILENT, **how)
    assert any(line.startswith("resumed: ") for line in said) and visible(tmp_path) == ["out"]


def test_bounds_that_nothing_meets_are_told_before_a_merge(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.verbs import levels

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        levels.Maker, "estimate", lambda self, level, source=None: 10**6 if source == pair[0] else 1 / 0
    )
    with pytest.raises(verb.UserError, match="no level of this model fits into") as caught:
        export(f"{pair[0]}+{pair[1]}", "gguf", SILENT, choice=Choice(target_size="100KB"))
    assert "the smallest is " in str(caught.value)
    with pytest.raises(verb.UserError, match="--max-kl 0: no level loses nothing"):
        export(f"{pair[0]}+{pair[1]}", "gguf", SILENT, choice=Choice(max_kl=0.0))
    assert visible(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_every_command_that_is_stopped_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    """A second SIGTERM soon after the first does not disturb what is cleaned up."""
    from tunesmith.verbs import doctor

    cleaned = []

    def stopped() -> None:
        try:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
        except KeyboardInterrupt as stop:
            stop.args = ("the kept is kept",)
            if number == signal.SIGTERM:
                os.kill(os.getpid(), number)
            cleaned.append(number)
            raise

    monkeypatch.setattr(doctor, "examine", stopped)
    monkeypatch.setattr(sys, "argv", ["tunesmith", "doctor"])
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without it
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)
    assert caught.value.code == code and cleaned == [number]
    assert capsys.readouterr().err == "stopped: the kept is kept\n"


PROGRAM = """
import sys, time
from tunesmith.verbs import proof

def compare(*args, **more):
    print("comparing", flush=True)
    time.sleep(60)

proof.check_engine = compare
from tunesmith.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["gguf", "fp8"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_killed_between_written_and_proved(
    tmp_path: Path, to: str, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command in a process of its own, as the proof begins: nothing has the name; the next command makes and proves it."""
    base = gguf_families.make(tmp_path / "model", "mistral")
    work, runs = tmp_path / "work", tmp_path / "runs"
    work.mkdir()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "export",
        str(base),
        "--to",
        to,
        "--out",
        str(work / "out.gguf"),
        "--no-report",
    ]
    with subprocess.Popen(
        command,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TUNESMITH_RUNS": str(runs)},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "comparing\n", process.stderr.read()
        process.send_signal(number)
        assert process.wait(60) == code
        said = process.stderr.read().splitlines()
    assert visible(work) == []
    if number != signal.SIGKILL:
        assert said[-1].startswith("stopped: nothing half-made is left") and list(work.iterdir()) == []
    monkeypatch.chdir(work)
    export(str(base), to, SILENT, out=work / "out.gguf", choice=Choice(report=False))
    hidden = [p.name for p in work.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock")]
    assert "out.gguf" in visible(work) and hidden == []
    shutil.rmtree(work)
