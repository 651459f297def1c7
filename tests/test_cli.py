"""The command line as a person meets it: quick help, data on stdout, one message on stderr, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.runs.folder import RunFolder, Status

HERE = Path(__file__).parent


def tunesmith(*arguments: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "COLUMNS": "100"}
    command = [sys.executable, "-m", "tunesmith", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, input=stdin, encoding="utf-8"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["runs", "list"], ["schema"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    """--help must answer in a moment: what it imports is counted, since a clock would tell about the machine."""
    heavy = {"torch", "transformers", "peft", "nicegui", "matplotlib"}
    if arguments != ["schema"]:  # the stages' configs stand beside code with arrays: a tenth of a second
        heavy.add("numpy")
    code = (
        f"import sys\nsys.argv = ['tunesmith', *{arguments!r}]\nfrom tunesmith.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_help_imports_no_config_library_either() -> None:
    code = (
        "import sys\nsys.argv = ['tunesmith', '--help']\nfrom tunesmith.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(sorted({'pydantic', 'yaml', 'psutil', 'httpx'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["'model' is missing", "hint:"]),
        (["train", "demo"], ["not a YAML config", "model=demo"]),
        (["train", "my.json"], ["not a YAML config", "data=my.json"]),
        (["train", "none.yaml"], ["none.yaml", "no such file"]),
        (["train", "modle=demo", "data=x"], ["unknown key 'modle'", "did you mean 'model'"]),
        (["train", "model=demo", "data=lantern_bay", "train.lr=fast"], ["'train.lr'", "expected a number"]),
        (["train", "model=demo", "data=lantern_bya", "--check"], ["'lantern_bya'", "did you mean 'lantern_bay'"]),
        (["train", "model=./nowhere", "data=lantern_bay"], ["nowhere"]),
        (["chat", "nothing-here"], ["nothing-here", "hint:"]),
        (["compare", "demo"], ["at least two models"]),
        (["export", "demo", "--to", "gguff"], ["'gguff'", "did you mean 'gguf'"]),
        (["deploy", "demo", "--name", "../x"], ["../x"]),
        (["deploy", "demo", "--name", "x", "--to", "vllm"], ["'vllm'", "ollama"]),
        (["runs", "show", "none"], ["there is no run 'none'"]),
        (["runs", "delete", "none", "--yes"], ["there is no run 'none'"]),
        (["data", "check", "none.json"], ["none.json"]),
        (["schema", "dpo"], ["'dpo'", "known: train"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = tunesmith(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not list((tmp_path / "runs").glob("*")), "a mistake made a run folder"


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "afile").write_text("x")
    monkeypatch.setenv("TUNESMITH_RUNS", str(tmp_path / "afile" / "runs"))
    done = tunesmith("train", "model=demo", "data=lantern_bay")
    assert done.returncode == 2 and "cannot be made" in done.stderr and "TUNESMITH_HOME" in done.stderr


@pytest.mark.parametrize("device", ["cuda:99", "foo"])
def test_a_device_that_is_not_there(tiny: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("TUNESMITH_DEVICE", device)
    done = tunesmith("chat", str(tiny), "-p", "Hi")
    assert done.returncode == 2 and f"TUNESMITH_DEVICE={device}" in done.stderr and "Traceback" not in done.stderr


def test_bad_rows_make_no_run(tmp_path: Path) -> None:
    (tmp_path / "role.json").write_text('[{"conversations": [{"from": "alien", "value": "a"}]}]', encoding="utf-8")
    done = tunesmith("train", "model=demo", "data=role.json", cwd=tmp_path)
    assert done.returncode == 2 and "'alien'" in done.stderr and "known roles" in done.stderr
    assert "no runs yet" in tunesmith("runs", "list").stdout


def test_a_wrong_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("model: demo\ndata: lantern_bay\n", encoding="utf-8")
    done = tunesmith("train", "my.yaml", "train.lr=abc", cwd=tmp_path)
    assert done.returncode == 2 and "command line: 'train.lr'" in done.stderr and "my.yaml" not in done.stderr


def test_a_mistyped_command_is_exit_code_2() -> None:
    done = tunesmith("trian")
    assert done.returncode == 2 and "trian" in done.stderr


def test_schema_is_json_on_stdout() -> None:
    schema = json.loads(tunesmith("schema", "train").stdout)
    assert set(schema["required"]) == {"model", "data"}


def test_data_check_names_every_bad_row(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a"},
        {"instruction": "a", "output": "b"},
        {"output": "x"},
    ]
    (tmp_path / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    done = tunesmith("data", "check", "mine.json", cwd=tmp_path)
    assert done.returncode == 2
    for word in [
        "4 rows",
        "row 2",
        "'output' is missing",
        "row 4",
        "'instruction' is missing",
        "row 3: the same as",
        "2 errors",
    ]:
        assert word in done.stdout, done.stdout


def test_data_check_counts_tokens_with_a_model(tiny: Path) -> None:
    done = tunesmith("data", "check", "lantern_bay", "--model", str(tiny))
    assert done.returncode == 0, done.stderr
    assert "214 rows, alpaca" in done.stdout and "learned tokens: 50%" in done.stdout and "steps" in done.stdout


def test_runs_are_listed_shown_and_deleted() -> None:
    run = RunFolder.create("model: {ref: demo}\ndata: {train: [x]}\n", "mine")
    run.write_status(Status(state="finished", step=3, total_steps=3, result={"loss": 1.25}))
    listed = tunesmith("runs", "list")
    assert run.id in listed.stdout and "finished" in listed.stdout and "1.2500" in listed.stdout
    assert json.loads(tunesmith("runs", "list", "--json").stdout)[0]["id"] == run.id
    shown = tunesmith("runs", "show", "last").stdout
    assert "step 3 of 3" in shown and "ref: demo" in shown
    assert tunesmith("runs", "delete", "mine", "--yes").returncode == 2, "a part of an id must not delete"
    assert tunesmith("runs", "delete", run.id).returncode == 2, "without --yes nothing is deleted from a script"
    assert run.path.exists()
    assert tunesmith("runs", "delete", run.id, "--yes").returncode == 0 and not run.path.exists()
    assert "no runs yet" in tunesmith("runs", "list").stdout


def test_an_interrupted_run_is_seen_as_such() -> None:
    run = RunFolder.create("model: {ref: demo}\n", "dead")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    run.write_status(Status(state="running", pid=process.pid, pid_started=1.0))
    assert "interrupted" in tunesmith("runs", "list").stdout


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status.json that is a folder makes an error nobody planned: exit 1, one line, the traceback in a file."""
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    run = RunFolder.create("model: {ref: demo}\ndata: {train: [x]}\n", "broken")
    (run.path / "status.json").unlink()
    (run.path / "status.json").mkdir()
    done = tunesmith("runs", "resume", run.id)
    assert (
        done.returncode == 1 and "unexpected error: IsADirectoryError" in done.stderr and "Traceback" not in done.stderr
    )
    logs = list((tmp_path / "home" / "logs").glob("error-*.txt"))
    assert len(logs) == 1 and "Traceback" in logs[0].read_text()
