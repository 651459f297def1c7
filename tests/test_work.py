"""Commands that work with a run in processes of their own: real processes, ended in every way there is."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tunesmith.config.errors import UserError
from tunesmith.runs import work
from tunesmith.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create("model: demo\n", "works", tmp_path / "runs")


def ended(run: RunFolder) -> work.Work:
    """The newest work, once it is over."""
    while work.listed(run)[0].state == "running":
        time.sleep(0.05)
    return work.listed(run)[0]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes a connection and never answers: who asks it waits for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_answers_words_and_exit_codes_are_kept(run: RunFolder) -> None:
    work.start(run, ["--version"])
    first = ended(run)
    assert (first.state, first.code) == ("finished", 0) and first.answer.startswith("tunesmith ")
    work.start(run, ["chat", "nowhere-at-all"])
    second = ended(run)
    assert (second.state, second.code, second.command) == ("failed", 2, "chat") and "error: " in second.said
    assert [one.id for one in work.listed(run)] == [second.id, first.id] and second.ended >= second.started
    work.remove(second)
    assert [one.id for one in work.listed(run)] == [first.id]


def test_one_at_a_time_and_stopped_as_by_ctrl_c(run: RunFolder, silent: socket.socket) -> None:
    begun = work.start(run, ["chat", "ollama:x", "-p", "hello"])
    with silent.accept()[0]:
        assert work.read(begun.folder).state == "running"
        with pytest.raises(UserError, match="still at work"):
            work.start(run, ["--version"])
        with pytest.raises(UserError, match="still at work"):
            work.remove(work.read(begun.folder))
        family = psutil.Process(work.read(begun.folder).pid).children(recursive=True)
        work.stop(work.read(begun.folder))
        over = work.read(begun.folder)
        assert (over.state, over.code) == ("stopped", 130)
        assert not any(p.is_running() for p in family)
    with pytest.raises(UserError, match="is not running"):
        work.stop(over)


def test_killed_with_its_supervisor_it_is_interrupted(run: RunFolder, silent: socket.socket) -> None:
    begun = work.start(run, ["chat", "ollama:x", "-p", "hello"])
    with silent.accept()[0]:
        supervisor = psutil.Process(work.read(begun.folder).pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            process.kill()
    assert ended(run).state == "interrupted"
    work.start(run, ["--version"])
    assert ended(run).state == "finished"
