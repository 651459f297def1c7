"""An export that is there already is taken only when it would come out the same; else a new one takes its place when it is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tunesmith
from model_fixtures import edit_json
from tunesmith.config.base import Config, setting
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Silent
from tunesmith.export import imatrix, record
from tunesmith.export.base import LOCK, Report, again, partial_of, proved, whole_or_nothing
from tunesmith.export.fingerprint import of_folder
from tunesmith.export.targets import hf
from tunesmith.verbs.levels import Maker
from tunesmith.verbs.making import Made, config_of, make, plugin_of
from tunesmith.verbs.merged import merged_folder
from tunesmith.verbs.taken import settings_of
from tunesmith.verbs.targets import target_of


class Said(Silent):
    """A ``Progress`` that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def own(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base and an adapter that may be changed, in the folder that exports go to."""
    monkeypatch.chdir(tmp_path)
    base, adapter = (shutil.copytree(one, tmp_path / one.name) for one in pair)
    return base, adapter


def of(own: tuple[Path, Path]) -> Any:
    return target_of(f"{own[0]}+{own[1]}", SILENT)


def add_one(file: Path, where: str) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if where in name)
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path, Path, pytest.MonkeyPatch], object], str]] = {
    "nothing": (lambda base, adapter, patch: None, ""),
    "adapter": (
        lambda base, adapter, patch: add_one(adapter / "adapter_model.safetensors", "lora_B"),
        "what was learned is another",
    ),
    "alpha": (
        lambda base, adapter, patch: edit_json(adapter / "adapter_config.json", lora_alpha=7),
        "what was learned is another",
    ),
    "base": (lambda base, adapter, patch: add_one(base / "model.safetensors", "mlp"), "its base is another"),
    "template": (
        lambda base, adapter, patch: edit_json(base / "tokenizer_config.json", chat_template="{{ messages }}"),
        "its base is another",
    ),
    "programs": (
        lambda base, adapter, patch: patch.setattr(tunesmith, "__version__", "999"),
        f"other versions made it (tunesmith {tunesmith.__version__}, now 999)",
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_merge_is_taken_only_when_made_from_the_same(
    own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = merged_folder(of(own), SILENT)
    before = (out / "model.safetensors").stat().st_ino
    alter, words = CHANGES[change]
    alter(*own, monkeypatch)
    said = Said()
    found = merged_folder(of(own), said)
    if change in ("adapter", "alpha"):  # another adapter: a folder of its own
        assert found != out and (out / "model.safetensors").stat().st_ino == before
        out, words = found, ""
    assert found == out
    assert ((out / "model.safetensors").stat().st_ino == before) is (change == "nothing")
    assert said.text == (f"{out} is made again: {words}" if words else "")
    fresh = hf.export(own[1], tmp_path / "fresh", hf.Config(), base=own[0]).out
    assert (out / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "something hidden was left"
    assert str(tmp_path) not in (out / record.NAME).read_text(encoding="utf-8"), "a path of this machine"


def test_a_folder_that_is_not_ours_is_kept(own: tuple[Path, Path], tmp_path: Path) -> None:
    """By hand, of an older version, or changed since: not taken, and not deleted."""
    out = tmp_path / f"merged-adapter-{of_folder(own[1])[:8]}"
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    said = Said()
    assert merged_folder(of(own), said) == out
    assert "nothing tells what it was made from" in said.text and f"kept as {out}.old" in said.text
    assert (tmp_path / f"{out.name}.old" / "mine.txt").read_text(encoding="utf-8") == "mine"
    (out / "config.json").write_text("{}", encoding="utf-8")
    assert merged_folder(of(own), said) == out
    assert "config.json was changed after it was made" in said.text
    assert (tmp_path / f"{out.name}.old1" / "config.json").read_text(encoding="utf-8") == "{}"
    assert record.changed(out) is None and (out / "config.json").stat().st_size > 2


def test_two_adapters_of_one_folder_name(own: tuple[Path, Path], tmp_path: Path) -> None:
    """Each has its merged folder, and both stay."""
    other = shutil.copytree(own[1], tmp_path / "other" / own[1].name)
    edit_json(other / "adapter_config.json", lora_alpha=7)
    first, second = merged_folder(of(own), SILENT), merged_folder(of((own[0], other)), SILENT)
    assert first != second and record.changed(first) is record.changed(second) is None
    assert merged_folder(of(own), SILENT) == first


def test_a_merge_that_was_replaced_meanwhile_is_not_exported(own: tuple[Path, Path], tmp_path: Path) -> None:
    plugin = thing()

    def write(source: Path, out: Path, config: Thing, progress: Any, *, prove: Any) -> Report:
        with whole_or_nothing(out) as work:
            work.write_text("half of one, half of another", encoding="utf-8")
            add_one(source / "model.safetensors", "mlp")
            return Report(out, 1, proved(prove, work, out))

    vars(plugin)["export"] = write
    with pytest.raises(ExportError, match=r"while an export was made from it: model\.safetensors was changed"):
        make(of(own), plugin, Thing(), SILENT, out=tmp_path / "a.thing")
    assert not (tmp_path / "a.thing").exists() and (tmp_path / "a.thing.failed").exists()


@pytest.mark.parametrize("name", ["my-eval.json", "model-00002-of-00002.safetensors", "own/notes.txt"])
def test_a_file_that_was_added_is_kept(own: tuple[Path, Path], name: str) -> None:
    """Weights that somebody put there are not taken for the export's, and a person's own file is not deleted with it."""
    out = merged_folder(of(own), SILENT)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine", encoding="utf-8")
    said = Said()
    assert merged_folder(of(own), said) == out
    assert said.lines == [
        f"{out} is made again: {name} was added after it was made", f"what was there is kept as {out}.old",
    ]  # fmt: skip
    assert (out.with_name(f"{out.name}.old") / name).read_text(encoding="utf-8") == "mine"
    assert not (out / name).exists() and record.changed(out) is None


def test_a_hidden_file_changes_nothing_and_is_kept(own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out, said = merged_folder(of(own), SILENT), Said()
    (out / ".mine").write_text("mine", encoding="utf-8")
    assert merged_folder(of(own), said) == out and said.lines == []
    monkeypatch.setattr(tunesmith, "__version__", "999")
    merged_folder(of(own), said)
    assert (out.with_name(f"{out.name}.old") / ".mine").exists()


class Thing(Config):
    """Settings."""

    damp: int = setting(1, zh="阻尼", ge=0)
    """Not in the label."""
    imatrix: str = setting("auto", zh="文件")
    """A word or a file."""


def thing(export: Callable[..., Report] | None = None, kind: str = ".thing") -> ModuleType:
    """A target that writes its settings down."""
    plugin = ModuleType("tunesmith.export.targets.thing")

    def write(source: Path, out: Path, config: Thing, progress: Any, *, calibration: Any = None) -> Report:
        text = json.dumps([config.damp, config.imatrix, calibration])
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            out.mkdir()
            (out / "weights").write_text(text, encoding="utf-8")
        else:
            out.write_text(text, encoding="utf-8")
        return Report(out, len(text), {"damp": config.damp, "asked": "a question out of the data"})

    vars(plugin).update(OUT=kind, Config=Thing, export=export or write, label=lambda config: "thing")
    return plugin


def made(target: Any, damp: int = 1, weights: str = "auto", *, kind: str = ".thing", **how: Any) -> Made:
    return make(
        target, thing(kind=kind), Thing(damp=damp, imatrix=weights), how.pop("progress", SILENT), reuse=True, **how
    )


def test_settings_files_and_text_count(own: tuple[Path, Path], tmp_path: Path) -> None:
    """A file that a setting names counts by its content; so does the calibration text."""
    target, said = of(own), Said()
    first = made(target)
    assert first.fresh and not made(target).fresh and made(target).report.checks["damp"] == 1
    assert made(target, 2, progress=said).fresh and "its settings were others (damp 1, now 2)" in said.text
    assert json.loads(first.place.read_text())[0] == 2
    file = tmp_path / "importances"
    file.write_text("a", encoding="utf-8")
    assert made(target, weights=str(file)).fresh
    moved = Path(shutil.move(file, tmp_path / "elsewhere"))
    assert not made(target, weights=str(moved)).fresh, "the same content at another place"
    moved.write_text("b", encoding="utf-8")
    assert made(target, weights=str(moved), progress=said).fresh and "(imatrix)" in said.lines[-1]
    plugin = thing()
    vars(plugin)["calibration"] = lambda config: 10
    for rows, fresh in (([(1, 2)], True), ([(1, 2)], False), ([(1, 3)], True)):
        given = {"calibration": rows}
        assert make(target, plugin, Thing(), said, reuse=True, given=given).fresh is fresh
    assert "its calibration text was another" in said.text


def test_a_word_that_is_a_file_here_stays_a_word(own: tuple[Path, Path], tmp_path: Path) -> None:
    """The folder the person stands in decides nothing."""
    before = [settings_of(config_of(plugin_of("gguf"), (f"imatrix={word}",))) for word in ("auto", "off")]
    for name in ("auto", "off", "f16", "ggml"):
        (tmp_path / name).write_text("a file", encoding="utf-8")
    assert [settings_of(config_of(plugin_of("gguf"), (f"imatrix={word}",))) for word in ("auto", "off")] == before


def test_files_of_others(own: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a record, or with another content than recorded, a file is not taken; a copy of one is."""
    target, said = of(own), Said()
    place = made(target).place
    os.utime(place, (1, 1))
    assert not made(target).fresh, "copied: another time, the same content"
    place.write_text(place.read_text().replace("auto", "AUTO"), encoding="utf-8")
    assert made(target, progress=said).fresh and "thing was changed after it was made" in said.text
    assert "AUTO" in place.with_name(f"{place.name}.old").read_text()
    record.record_of(place).unlink()
    assert made(target, progress=said).fresh and record.UNKNOWN in said.lines[-2]
    assert place.with_name(f"{place.name}.old1").exists()


def test_a_new_one_knows_what_was_written_beside_the_old(own: tuple[Path, Path]) -> None:
    """So that a Modelfile that nobody changed is renewed in silence."""
    target = of(own)
    place = made(target).place
    record.note_beside(place, {"Modelfile": "abc"})
    assert made(target, 2).fresh and record.beside_of(place) == {"Modelfile": "abc"}


def test_what_lies_beside_a_changed_file_is_kept_with_it(own: tuple[Path, Path]) -> None:
    """Its record, and whatever else the new one would bring along."""
    target = of(own)
    place = made(target).place
    record_file = record.record_of(place)
    place.write_text("changed", encoding="utf-8")
    before = record_file.read_bytes()
    made(target)
    assert record_file.with_name(f"{record_file.name}.old").read_bytes() == before
    assert place.with_name(f"{place.name}.old").read_text(encoding="utf-8") == "changed"


def test_what_a_killed_command_finished_is_taken_only_when_made_from_the_same(own: tuple[Path, Path]) -> None:
    """Whole in its hidden folder, of other settings: made anew, not given the name."""
    target = of(own)
    place = made(target).place
    shutil.copytree(place.parent, again(place).parent)
    said = Said()
    assert made(target, 2, progress=said).report.checks["damp"] == 2
    assert json.loads(place.read_text(encoding="utf-8"))[0] == 2
    assert (record.read(place) or {})["made_from"]["settings"]["damp"] == 2


def test_a_place_that_the_person_named_is_refused(own: tuple[Path, Path], tmp_path: Path) -> None:
    target, out = of(own), tmp_path / "out" / "my.thing"
    made(target, out=out)
    before = out.read_bytes()
    assert not made(target, out=out).fresh
    with pytest.raises(ExportError, match=r"not what would be made: its settings were others \(damp 1, now 2\)"):
        made(target, 2, out=out)
    assert out.read_bytes() == before and made(target, out=out).report.checks["damp"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ExportError])
def test_the_old_one_stays_until_the_new_one_is_whole(
    own: tuple[Path, Path], tmp_path: Path, error: type[BaseException]
) -> None:
    target = of(own)
    place = made(target).place
    before = place.read_bytes()

    def breaks(source: Path, out: Path, config: Thing, progress: Any) -> Report:
        assert place.read_bytes() == before
        raise error("in the middle")

    with pytest.raises(error):
        make(target, thing(breaks), Thing(damp=2), SILENT, reuse=True)
    assert place.read_bytes() == before and not made(target).fresh
    assert sorted(p.name for p in place.parent.iterdir()) == [place.name, record.record_of(place).name]


def test_killed_between_the_two_renames(
    own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only moment at which a folder has no name: the next command gives it to the one that is finished."""
    target = of(own)
    place = made(target, kind="folder").place

    def killed(self: Path, other: Path) -> Path:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(record, "write_json", lambda path, value: path.write_text(json.dumps(value), encoding="utf-8"))
        with pytest.raises(SystemExit):
            made(target, 2, kind="folder")
    assert not place.exists() and again(place).is_dir()
    said = Said()
    assert made(target, 2, kind="folder", progress=said).report.checks == {"damp": 2}
    assert "a question" not in (place / record.NAME).read_text(encoding="utf-8"), "folders go to hubs"
    assert "an earlier command was killed" in said.text and json.loads((place / "weights").read_text())[0] == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or ".old" in p.name]


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["resumed", "replaced"])
def test_another_process_is_at_work(
    own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Half of a merge that another process goes on with, and a place that another process replaces: both are left alone."""
    target, out = of(own), tmp_path / f"merged-adapter-{of_folder(own[1])[:8]}"
    lock = partial_of(out) / LOCK
    if kind == "replaced":
        merged_folder(target, SILENT)
        monkeypatch.setattr(tunesmith, "__version__", "999")
        lock = tmp_path / f".{out.name}.again.lock"
    lock.parent.mkdir(exist_ok=True)
    (lock.parent / "half").write_text("half", encoding="utf-8")
    before = record.changed(out)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ExportError, match="another process is writing"):
            merged_folder(target, SILENT)
        other.kill()
    assert (lock.parent / "half").exists() and record.changed(out) == before
    assert merged_folder(target, SILENT) == out and record.changed(out) is None


def test_what_was_on_trial_is_known_by_its_record(own: tuple[Path, Path], tmp_path: Path) -> None:
    """Files of a call that was killed before it had chosen are taken away by the next one; what somebody wanted stays."""
    maker = Maker(of(own), plugin_of("gguf"), (), SILENT, trial=True)
    for level, trial in (("q8_0", True), ("q4_k_m", False), ("q2_k", True)):
        place = maker.place(level)
        place.parent.mkdir()
        place.write_bytes(b"GGUF")
        (place.parent / "Modelfile").write_text(f"FROM ./{place.name}\n", encoding="utf-8")
        record.keep(place, {}, {}, SILENT, trial=trial)
    maker.keep("q2_k")
    for level in ("q8_0", "q4_k_m", "q2_k"):
        maker.remove(level)
    assert [maker.place(level).exists() for level in ("q8_0", "q4_k_m", "q2_k")] == [False, True, True]
    assert not maker.place("q8_0").parent.exists()


@pytest.mark.parametrize("kept", ["q4_k_m", "f16", None])
def test_no_importance_matrix_is_left_alone(own: tuple[Path, Path], kept: str | None) -> None:
    """Where a level was taken away its matrix would stand in the way of others: it goes beside the level that stays, or away."""
    maker = Maker(of(own), plugin_of("gguf"), (), SILENT, trial=True)
    for level in ("q2_k", *filter(None, [kept])):
        maker.place(level).parent.mkdir()
        maker.place(level).write_bytes(b"GGUF")
        record.keep(maker.place(level), {}, {}, SILENT, trial=True)
    left = maker.place("q2_k").parent / imatrix.NAME
    entries = {"blk.0.ffn_up.weight": imatrix.Entry([[1.0, 2.0]], [1.0])}
    imatrix.write(imatrix.Matrix(left, entries, 1, (), "a model and a text"))
    maker.remove("q2_k")
    if kept is not None:
        maker.keep(kept)
    assert left.is_file(), "until all is chosen other levels take it"
    maker.tidy()
    assert not left.parent.exists()
    assert kept is None or (maker.place(kept).parent / imatrix.NAME).is_file() == (kept == "q4_k_m")


def test_an_importance_matrix_counts_by_its_content(own: tuple[Path, Path], tmp_path: Path) -> None:
    """In the key of the quality report too."""
    file = tmp_path / "imatrix.gguf"
    file.write_bytes(b"one")
    maker = Maker(of(own), plugin_of("gguf"), (f"imatrix={file}",), SILENT)
    first = maker.key("q4_k_m")
    copy = Path(shutil.copy(file, tmp_path / "copy.gguf"))
    assert Maker(of(own), plugin_of("gguf"), (f"imatrix={copy}",), SILENT).key("q4_k_m") == first
    file.write_bytes(b"two")
    assert maker.key("q4_k_m") != first
    assert config_of(plugin_of("gguf"), (f"imatrix={file}",)).imatrix == str(file)
