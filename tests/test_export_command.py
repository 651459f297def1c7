"""``tunesmith export``: any target file works as it is found, what is asked is checked before anything happens, levels are chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from learned_runs import train
from tunesmith.cli import app
from tunesmith.config import plugins
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.export import targets
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs import export as verb
from tunesmith.verbs.calibration import calibration_rows, own_text
from tunesmith.verbs.choosing import bytes_of
from tunesmith.verbs.export import Choice, export
from tunesmith.verbs.levels import chosen_levels
from tunesmith.verbs.making import config_of, plugin_of
from tunesmith.verbs.targets import renderer_of, target_of

NEW_TARGET = '''
"""``--to two-words``: a target nobody knew of. Its second sentence is not shown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.export.base import Report

OUT = ".thing"


class Config(BaseConfig):
    """Settings."""

    bits: int = setting(4, zh="位数", ge=2, le=8)
    """Bits."""


def label(config: Config) -> str:
    return f"thing-{config.bits}bit"


def calibration(config: Config) -> int:
    return 100 * config.bits


def export(source: Path, out: Path, config: Config, progress: Any, *, calibration: Any) -> Report:
    out.parent.mkdir(parents=True)
    out.write_text(json.dumps({"source": str(source), "bits": config.bits, "rows": calibration}))
    return Report(out, out.stat().st_size, {"bits": config.bits})
'''


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


class Said:
    """A ``Progress`` that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, *_: Any, **__: Any) -> None: ...
    def advance(self, *_: Any, **__: Any) -> None: ...
    def finish(self, note: str = "") -> None: ...
    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def new_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One new file in the folder of targets; no list is edited."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "two_words.py").write_text(NEW_TARGET, encoding="utf-8")
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder)])
    plugins.names.cache_clear()
    yield "two-words"
    plugins.names.cache_clear()


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny, tmp_path_factory.mktemp("runs"), "small", "train.max_steps=2", "train.save_every=2")


def test_a_new_file_is_a_target(run: RunFolder, new_target: str, tmp_path: Path) -> None:
    """Its place and name come from its label, its calibration rows are the run's training rows, whole, up to what it asked for."""
    place, words = export(str(run.path), new_target, SILENT, settings=["bits=2"])
    assert place == run.artifacts / "thing-2bit-step-2" / "small-thing-2bit.thing" and words == ["bits: 2"]
    made = json.loads(place.read_text())
    assert Path(made["source"]) == run.artifacts / "merged-step-2" and made["bits"] == 2
    target = target_of(str(run.path), SILENT)
    own = own_text(target, Path(made["source"]), SILENT)
    known = [[int(i) for i in item.ids] for item in own.calibrate]
    assert made["rows"] and all(row in known for row in made["rows"]), "whole conversations of the run"
    assert 200 <= sum(map(len, made["rows"])) < 200 + max(map(len, known))
    held = [[int(i) for i in item.ids] for item in own.measure]
    assert held and not [row for row in made["rows"] if row in held], "never what is measured on"
    text = renderer_of(target).tokenizer.decode(made["rows"][0])
    assert text.startswith("<|im_start|>system") and text.rstrip().endswith("<|im_end|>")
    before = place.stat().st_mtime_ns
    assert export(str(run.path), new_target, SILENT, settings=["bits=2"]) == (place, words), "the same again is taken"
    assert place.stat().st_mtime_ns == before
    with pytest.raises(ExportError, match="exists already and is not what would be made: its calibration text"):
        export(str(run.path), new_target, SILENT, settings=["bits=3"], out=place)
    with pytest.raises(UserError, match="'bits': expected at most 8"):
        export(str(run.path), new_target, SILENT, settings=["bits=9"])
    with pytest.raises(UserError, match="--level belongs to --to gguf; the target two-words has no levels"):
        export(str(run.path), new_target, SILENT, level="q8_0")


def test_calibration_is_repeatable_and_says_where_from(
    run: RunFolder, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, said = target_of(str(run.path), SILENT), Said()
    rows = calibration_rows(target, tiny, 150, 0, progress=said)
    assert rows == calibration_rows(target, tiny, 150, 0) != calibration_rows(target, tiny, 150, 1)
    assert len({len(row) for row in rows}) > 1, "rows need no common length"
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.verbs.calibration.WINDOW", 20)
        assert {len(row) for row in calibration_rows(target, tiny, 150, 0)} == {20}, "long conversations are cut"
    assert "calibrating with" in said.lines[-1] and f"run {run.id}'s own data" in said.lines[-1]
    every = calibration_rows(target, tiny, 10**6, 0, progress=said)
    own = len(own_text(target, tiny, SILENT).calibrate)
    assert len(every) > own and "(1000000 would be better" in said.lines[-1]
    assert len(set(every) - set(calibration_rows(target, tiny, 10**6, 0, progress=said)[:own])) == len(every) - own
    assert sum(map(len, every)) >= 2048 and "of the bundled general text, since that is little" in said.lines[-1]
    of_set = calibration_rows(target, tiny, 10**6, 0, "lantern_bay_heldout", progress=said)
    assert "the data set lantern_bay_heldout" in said.lines[-1] and not set(of_set) & set(every)
    measured = {tuple(row.ids) for row in own_text(target, tiny, SILENT, data="lantern_bay_heldout").measure}
    assert measured and not measured & set(of_set)
    bare = target_of(str(tiny), SILENT)
    general = calibration_rows(bare, tiny, 10**6, 0, progress=said)
    assert "bundled general text" in said.lines[-1] and max(map(len, general)) <= 256, "cut at the model's context"
    plain = tmp_path / "plain.txt"
    plain.write_text("one line of text\nanother line of text\nthe third one\n", encoding="utf-8")
    assert len(calibration_rows(bare, tiny, 10**6, 0, str(plain))) == 2
    plain.write_text("only one line\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 rows that can be read"):
        calibration_rows(bare, tiny, 10, 0, str(plain))


def test_a_run_without_its_data_falls_back_in_words(run: RunFolder, tiny: Path, tmp_path: Path) -> None:
    """The rows it kept are measured; nothing of them is calibrated with."""
    import shutil

    lost = RunFolder(tmp_path / run.path.name)
    shutil.copytree(run.path, lost.path)
    config = lost.config_path.read_text(encoding="utf-8")
    lost.config_path.write_text(config.replace("lantern_bay", str(tmp_path / "gone.json")), encoding="utf-8")
    said = Said()
    found = own_text(target_of(str(lost.path), SILENT), tiny, said)
    assert (
        "cannot be used" in said.lines[0]
        and "gone.json" in said.lines[0]
        and "rows that it kept are measured" in said.lines[0]
    )
    probes = json.loads((lost.path / "rows.json").read_text(encoding="utf-8"))["probes"]
    assert [list(row.ids) for row in found.measure] == [ids for ids in probes if len(ids) > 1]
    calibrated = {tuple(row.ids) for row in found.calibrate}
    assert calibrated and not calibrated & {tuple(ids) for ids in probes}
    kept = json.loads((lost.path / "rows.json").read_text(encoding="utf-8"))
    lost.config_path.write_text(config, encoding="utf-8")
    (lost.path / "rows.json").write_text(json.dumps(kept | {"sha256": "0" * 64}), encoding="utf-8")
    own_text(target_of(str(lost.path), SILENT), tiny, said)
    assert "they are not what the run learned" in said.lines[-1]


@pytest.mark.parametrize(
    ("to", "arguments", "words"),
    [
        ("gguff", {}, ["no export target 'gguff'", "did you mean 'gguf'"]),
        ("gguf", {"level": "q4km"}, ["no GGUF level 'q4km'", "did you mean", "There are: "]),
        ("gguf", {"settings": ["levl=q8_0"]}, ["unknown key 'levl'", "did you mean 'level'"]),
        ("gguf", {"settings": ["q8_0"]}, ["'q8_0' is no setting of the target gguf", "level=f16"]),
        ("gguf", {"settings": ["level=q8_0"], "level": "f16"}, ["--level and level=… both choose the level"]),
        ("hf", {"settings": ["max_shard_size=big"]}, ["'max_shard_size': expected a number"]),
        ("hf", {"choice": Choice(levels="all")}, ["--levels belongs to --to gguf; the target hf has no levels"]),
        ("hf", {"choice": Choice(max_kl=0.1)}, ["--max-kl belongs to --to gguf"]),
        ("gguf", {"choice": Choice(levels="q8_0,q4km")}, ["no GGUF level 'q4km'"]),
        ("gguf", {"choice": Choice(levels=" , ")}, ["--levels names no level"]),
        ("gguf", {"choice": Choice(levels="all", target_size="4GB")}, ["--levels and --target-size both choose"]),
        ("gguf", {"level": "q8_0", "choice": Choice(target_size="4GB")}, ["--level and --target-size both choose"]),
        ("gguf", {"choice": Choice(target_size="4 parsecs")}, ["--target-size 4 parsecs: expected a size", "4GB"]),
        ("gguf", {"choice": Choice(keep="none")}, ["--keep none: expected all or recommended"]),
    ],
)  # fmt: skip
def test_mistakes_are_said_before_a_model_is_looked_for(to: str, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        export("hf:nobody/nothing-of-this-name", to, SILENT, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_sizes_and_levels_in_words() -> None:
    assert bytes_of("4GB") == 4 * 10**9 and bytes_of("3.5 GiB") == 3758096384 and bytes_of("700mb") == 7 * 10**8
    gguf = plugin_of("gguf")
    assert chosen_levels(gguf, "Q4_K_M, q8_0") == ("q8_0", "q4_k_m"), "finest first"
    assert set(chosen_levels(gguf, "usual")) < set(chosen_levels(gguf, "all")) < set(gguf.LEVELS)
    assert [config_of(gguf, [f"imatrix={word}"]).imatrix for word in ("off", "auto", "x.dat")] == [
        "off",
        "auto",
        "x.dat",
    ]
    assert config_of(gguf, ["level=Q8_0"]) == config_of(gguf, (), "q8_0") == config_of(gguf, (), "Q8_0")


def test_help_names_every_target_and_shows_examples() -> None:
    said = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "120"}).output
    for name in plugins.names("tunesmith.export.targets"):
        assert f"  {name.replace('_', '-')} " in said
    assert "tunesmith export last --to gguf --max-kl 0.05" in said
    for option in ("--levels", "--target-size", "--max-kl", "--no-report", "--report-rows", "--keep", "--data"):
        assert option in said


def test_examples_of_the_help_are_commands() -> None:
    """Every example is read by the command itself, up to the model that is not there."""
    from tunesmith.cli.export import EXAMPLES

    for line in EXAMPLES:
        done = CliRunner().invoke(app, line.replace("last", "no-such-run").split())
        assert isinstance(done.exception, UserError) and "no-such-run" in str(done.exception), line


@pytest.fixture(scope="module")
def levelled(run: RunFolder) -> tuple[RunFolder, list[str], Path]:
    """A few levels in one go; a file lies where the folder of q4_0 is to be: it fails and the others stay."""
    said = Said()
    run.artifacts.mkdir(exist_ok=True)
    (run.artifacts / "gguf-q4_0-step-2").write_bytes(b"")
    place, _ = export(str(run.path), "gguf", said, choice=Choice(levels="q8_0,q4_0,q2_k", rows=2))
    return run, said.lines, place


@pytest.mark.slow
def test_levels_in_one_table(levelled: tuple[RunFolder, list[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, said, place = levelled
    report = json.loads((run.artifacts / "quality" / "step-2" / "quality.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in report["exports"]] == ["q2_k", "q8_0"] and list(report["failed"]) == ["q4_0"]
    assert place.is_file() and place.name == f"small-{report['recommended'].upper()}.gguf"
    sizes = {one["name"]: one["bytes"] for one in report["exports"]}
    assert sizes["q8_0"] == (run.artifacts / "gguf-q8_0-step-2" / "small-Q8_0.gguf").stat().st_size > sizes["q2_k"]
    by_name = {one["name"]: one for one in report["exports"]}
    assert list(by_name["q8_0"]["figures"]) == ["own data", "English", "Chinese"]
    assert by_name["q8_0"]["figures"]["own data"]["mean_kl"] < by_name["q2_k"]["figures"]["own data"]["mean_kl"]
    assert set(report["base_speed"]) == {"q8_0", "q2_k"}, "against a 16-bit GGUF in llama.cpp"
    assert any("q4_0 could not be made" in line for line in said)
    assert (run.artifacts / "gguf-q2_k-step-2" / "imatrix.gguf").is_file()
    assert not list((run.artifacts / "quality" / "step-2").glob(".*")), "no temporary file is left"

    calls: list[str] = []
    real = verb.Quality.measure
    monkeypatch.setattr(verb.Quality, "measure", lambda self, name, *a: calls.append(name) or real(self, name, *a))
    (run.artifacts / "quality" / "step-2" / "results" / "q2_k.json").unlink()  # as if interrupted before it
    export(str(run.path), "gguf", SILENT, choice=Choice(levels="q8_0,q2_k", rows=2))
    assert calls == ["q2_k"], "what was measured is not measured again"


@pytest.mark.slow
def test_an_interrupted_choice_takes_its_files_away_in_the_end(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first of two levels was made: the next call removes that one too when it is not the recommended one."""
    monkeypatch.chdir(tmp_path)
    choice = Choice(levels="q8_0,q2_k", keep="recommended", rows=2)
    names = [f"gguf-q8_0/{tiny.name}-Q8_0.gguf", f"gguf-q2_k/{tiny.name}-Q2_K.gguf"]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb.Quality, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            export(str(tiny), "gguf", SILENT, choice=choice)
    assert "what was finished before stays" in str(caught.value)
    assert [Path(name).exists() for name in names] == [True, False]
    place, _ = export(str(tiny), "gguf", SILENT, choice=choice)
    assert [str(tmp_path / name) for name in names if Path(name).exists()] == [str(place)]


@pytest.mark.slow
def test_the_finest_level_that_fits(tiny: Path, tmp_path: Path) -> None:
    """Between the sizes of q8_0 and f16: q8_0 or finer than it fits; below the smallest: the error names it."""
    from tunesmith.export.targets import gguf

    half, eight = (gguf.estimate(tiny, gguf.Config(level=level)) for level in ("f16", "q8_0"))
    limit = (half + eight) // 2
    place, words = export(
        str(tiny), "gguf", SILENT, out=tmp_path / "out", choice=Choice(target_size=f"{limit / 1e6}MB", report=False)
    )
    assert eight * 0.9 < place.stat().st_size <= limit and words[0].startswith("chosen: ")
    with pytest.raises(UserError, match="no level of this model fits into") as caught:
        export(str(tiny), "gguf", SILENT, out=tmp_path / "none", choice=Choice(target_size="100KB"))
    assert "the smallest is " in str(caught.value) and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_smallest_level_within_a_bound(run: RunFolder, tmp_path: Path) -> None:
    said = Said()
    place, words = export(
        str(run.path), "gguf", said, out=tmp_path / "out", choice=Choice(max_kl=0.03, report=False, rows=2)
    )
    tried = {line.split(":")[0]: line for line in said.lines if "within 0.03" in line}
    chosen = words[0].removeprefix("chosen: ")
    assert ", within" in tried[chosen] and "not within" in "".join(tried.values())
    assert sorted(p.name for p in (tmp_path / "out").glob("*.gguf") if p.name != "imatrix.gguf") == [place.name]
    with pytest.raises(UserError, match="no level stays within a mean KL of 1e-09") as caught:
        export(str(run.path), "gguf", SILENT, out=tmp_path / "none", choice=Choice(max_kl=1e-9, rows=2))
    assert "the best is f16 with" in str(caught.value)
