"""Every broken file ends in exactly one message that points at the place, says what was found and how to mend it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broken_data import FILES, REGISTRIES, ROWS, Case
from tunesmith.config.errors import DataError, UserError
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.load import load, open_set


def read(case: Case, name: str, **settings: Any) -> tuple[list[Any], list[UserError]]:
    """Good examples, and the messages: one that ends the reading, or one for each bad row."""
    examples: list[Any] = []
    messages: list[UserError] = []
    choice = SetConfig.model_validate({"set": name, **(case.settings or {})})
    try:
        for found in open_set(choice, DataConfig(train=(choice,), **settings)).examples():
            (messages if isinstance(found, DataError) else examples).append(found)
    except UserError as error:
        messages.append(error)
    return examples, messages


def is_kind(error: UserError, case: Case, folder: Path) -> None:
    whole = f"{error.message}\n{error.hint or ''}".replace(str(folder), "")  # its name holds the case's
    missing = [word for word in (case.place, *case.words) if word.lower() not in whole.lower()]
    assert not missing, f"{missing} not said in: {whole}"
    assert error.hint, f"no way to mend it is named: {whole}"
    assert len(whole) < 1200, "a message, not a dump of the data"
    assert "Traceback" not in whole and "Error(" not in whole, whole


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_a_broken_file(case: Case, tmp_path: Path) -> None:
    _, messages = read(case, str(case.make(tmp_path)))
    assert len(messages) == 1, [m.message for m in messages]
    is_kind(messages[0], case, tmp_path)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_a_broken_row_among_good_ones(case: Case, tmp_path: Path) -> None:
    path = str(case.make(tmp_path))
    examples, messages = read(case, path)
    assert (len(examples), len(messages)) == (case.rows, 1), [m.message for m in messages]
    is_kind(messages[0], case, tmp_path)
    with pytest.raises(DataError, match="1 of 3 rows") as stopped:  # training does not begin
        load(DataConfig(train=path), seed=0)
    is_kind(stopped.value, case, tmp_path)
    split = load(DataConfig(train=path, eval_share=0, skip_bad=True), seed=0)
    assert len(split.train) == case.rows
    assert any(case.place in note and "left out" in note for note in split.notes), "left out, but not silently"


@pytest.mark.parametrize("case", REGISTRIES, ids=lambda case: case.name)
def test_a_broken_registry(case: Case, tmp_path: Path) -> None:
    registry = case.make(tmp_path)
    examples, messages = read(case, "mine", registry=str(registry))
    assert len(messages) == 1 and not examples, [m.message for m in messages]
    is_kind(messages[0], case, tmp_path)


@pytest.mark.parametrize("name", ["truncated-json", "gbk", "bomb", "unknown-keys"])
def test_the_command_says_it_once_and_ends_with_2(name: str, tmp_path: Path) -> None:
    case = next(case for case in FILES if case.name == name)
    path = str(case.make(tmp_path))
    for command in (["data", "check", path], ["train", "model=demo", f"data={path}", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("error") == 1 and "hint:" in done.stderr and "Traceback" not in done.stderr
        assert not list(tmp_path.glob("runs/*"))


def test_there_are_enough_of_them() -> None:
    names = [case.name for case in (*FILES, *ROWS, *REGISTRIES)]
    assert len(names) == len(set(names)) >= 60
