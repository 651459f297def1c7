"""What the page makes of metrics and logs: figures, the chart, following a growing file, files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.runs.folder import RunFolder
from tunesmith.web import chart, figures, run_files
from tunesmith.web.follow import Follower, last_record
from tunesmith.web.language import Texts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (63, "1 min 03 s"),
        (3600, "1 h 00 min"),
        (180_000, "2 d 2 h"),
        (None, "–"),
        (-1, "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.31349, "2.313"), (1e-5, "1e-05"), (1234.5, "1,234"), (0, "0"), (float("nan"), "–"), ("x", "–"), (True, "–")],
)
def test_numbers(value: object, text: str) -> None:
    assert figures.figure(value) == text


def test_logs_lose_colours_and_overdrawn_progress() -> None:
    assert figures.plain_log("a\x1b[31mred\x1b[0m\r\n10%\r20%\r100%\nend") == "ared\n100%\nend"


def step(n: int, loss: float) -> str:
    return json.dumps({"kind": "step", "step": n, "loss": loss}) + "\n"


def test_following_reads_only_what_is_new_and_begins_anew_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert not follower.poll()
    path.write_text(step(1, 3.0) + '{"kind": "st')
    assert follower.poll() and len(follower.records) == 1
    assert not follower.poll(), "a torn line is no news"
    path.write_text(step(1, 3.0) + step(2, 2.0))
    assert follower.poll() and [r["step"] for r in follower.records] == [1, 2]
    (tmp_path / "new").write_text(step(1, 9.0))
    (tmp_path / "new").replace(path)
    assert follower.poll() and [r["loss"] for r in follower.records] == [9.0]
    assert last_record(path, "step") == {"kind": "step", "step": 1, "loss": 9.0}
    assert last_record(path, "eval") is None
    path.unlink()
    assert follower.poll() and follower.records == []


def test_the_chart_has_both_losses_and_stays_small() -> None:
    records = [{"kind": "step", "step": i, "loss": 3 - i / 10_000 + (i == 7777)} for i in range(1, 20_001)]
    records += [{"kind": "step", "step": 20_001, "loss": float("nan")}, {"kind": "eval", "step": 10, "eval_loss": 2.5}]
    options = chart.options(records, Texts("en"))
    raw, average, measured = options["series"]
    assert len(raw["data"]) <= chart.MOST_POINTS + 2 and len(average["data"]) <= chart.MOST_POINTS + 2
    assert raw["data"][0][0] == 1 and raw["data"][-1][0] == 20_000
    assert [7777, 3.2223] in raw["data"], "a spike is not thinned away"
    assert measured["data"] == [[10, 2.5]]
    json.dumps(options, allow_nan=False)


def test_the_average_of_a_constant_is_that_constant() -> None:
    """Without bias correction the average would begin near 0."""
    assert [round(v, 9) for _, v in chart.smooth([(i, 2.0) for i in range(50)])] == [2.0] * 50


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("TUNESMITH_RUNS", str(tmp_path / "runs"))
    run = RunFolder.create("model: demo\n", "one")
    run.artifacts.mkdir()
    (run.artifacts / "loss.png").write_bytes(b"png")
    (tmp_path / "secret.txt").write_text("secret")
    (run.artifacts / "out.txt").symlink_to(tmp_path / "secret.txt")
    return run


def test_only_listed_runs_are_known(folder: RunFolder) -> None:
    assert run_files.known_run(folder.id) is not None
    for id in ("..", ".", "", "/etc", f"../runs/{folder.id}", f"{folder.id}/", folder.id[:-1]):
        assert run_files.known_run(id) is None, id


def test_files_stay_inside_the_run(folder: RunFolder) -> None:
    assert run_files.confined(folder, "artifacts/loss.png") is not None
    for name in ("../../secret.txt", "artifacts/out.txt", "/etc/passwd", "artifacts", "", "artifacts/\0", "x" * 5000):
        assert run_files.confined(folder, name) is None, name
    assert [a.name for a in run_files.artifacts(folder)] == ["artifacts/loss.png"]


def test_how_files_of_a_run_are_served() -> None:
    assert run_files.served_as(Path("a.html")) == ("text/html; charset=utf-8", True)
    assert run_files.served_as(Path("a.md")) == ("text/plain; charset=utf-8", True)
    assert run_files.served_as(Path("a.htm")) == ("application/octet-stream", False)
    assert run_files.served_as(Path("a.js")) == ("application/octet-stream", False)
    assert run_files.served_as(Path("a.PNG")) == ("image/png", True)
