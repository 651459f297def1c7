"""What stands beside a one-file export: in a folder of its own under plain names, elsewhere under the file's; nothing of others is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.export import record
from tunesmith.export.beside import beside, modelfile_beside, renew, write_beside
from tunesmith.export.companions import copy_licences, front_matter, model_card
from tunesmith.export.facts import hub_name, origin_of
from tunesmith.export.tensor_files import read_header
from tunesmith.hub.folder import resolve_adapter_folder
from tunesmith.models.gguf_import import safetensors_of
from tunesmith.verbs import compare

CARD = "---\ntags: [tunesmith, gguf]\n---\n\n# small\n\n- GGUF: `{}`\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    (folder / "NOTICE.txt").write_text("made by others\n")
    return folder


def gguf(folder: Path, name: str = "small-Q8_0.gguf") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"GGUF")
    return folder / name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_of_its_own(base: Path, tmp_path: Path) -> None:
    file = gguf(tmp_path / "gguf-q8_0")
    (file.parent / "Modelfile").write_text(f"# a line\nFROM ./{file.name}\n")
    (file.parent / "imatrix.gguf").write_bytes(b"GGUF")
    for _ in range(2):  # and renewed, under the same names
        assert write_beside(file, base, CARD.format(file.name)) == []
        assert names(file.parent) == {file.name, "Modelfile", "imatrix.gguf", "README.md", "LICENSE", "NOTICE.txt"}
    assert set(beside(file)) == {"README.md", "LICENSE", "NOTICE.txt", "Modelfile"}


def test_a_folder_that_holds_other_things(base: Path, tmp_path: Path) -> None:
    """A project's own README and licence stay, and none is given to a folder that has none."""
    file = gguf(tmp_path / "project")
    (file.parent / "README.md").write_text("# My project\n")
    (file.parent / "LICENSE-of-mine.txt").write_text("mine\n")
    assert write_beside(file, base, CARD.format(file.name)) == []
    stem = file.stem
    theirs = {f"{stem}.README.md", f"{stem}.LICENSE", f"{stem}.NOTICE.txt"}
    assert names(file.parent) == {file.name, "README.md", "LICENSE-of-mine.txt", *theirs}
    assert (file.parent / "README.md").read_text() == "# My project\n"
    sent = beside(file)
    assert {name: path.name for name, path in sent.items()} == {
        "README.md": f"{stem}.README.md", "LICENSE": f"{stem}.LICENSE", "NOTICE.txt": f"{stem}.NOTICE.txt",
    }  # fmt: skip


def test_nothing_of_others_is_overwritten(base: Path, tmp_path: Path) -> None:
    file = gguf(tmp_path / "models")
    (file.parent / "notes.txt").write_text("others")
    for name in ("README.md", "LICENSE"):
        (file.parent / f"{file.stem}.{name}").write_text("somebody's own")
    left = write_beside(file, base, CARD.format(file.name))
    assert len(left) == 2 and all("stays as it is" in line for line in left)
    assert (file.parent / f"{file.stem}.README.md").read_text() == "somebody's own"
    assert (file.parent / f"{file.stem}.LICENSE").read_text() == "somebody's own"
    assert beside(file) == {}, "what is not known to belong to it is not sent with it"


def test_several_files_in_one_folder(base: Path, tmp_path: Path) -> None:
    """Each has its card, and neither takes the other's."""
    first, second = gguf(tmp_path / "out", "small-F16.gguf"), tmp_path / "out" / "small-Q8_0.gguf"
    write_beside(first, base, CARD.format(first.name))
    gguf(second.parent, second.name)
    write_beside(second, base, CARD.format(second.name))
    write_beside(first, base, CARD.format(first.name))
    assert beside(first)["README.md"].name == "README.md" and beside(first)["LICENSE"].name == "LICENSE"
    assert beside(second)["README.md"].name == "small-Q8_0.README.md"
    assert beside(second)["LICENSE"].name == "small-Q8_0.LICENSE"
    (first.parent / "Modelfile").write_text("FROM ./small-F16.gguf\n")
    assert modelfile_beside(second).name == "small-Q8_0.Modelfile" and "Modelfile" not in beside(second)
    assert modelfile_beside(first).name == "Modelfile" and "Modelfile" in beside(first)


def test_a_link_is_no_licence(base: Path, tmp_path: Path) -> None:
    """A model folder from somewhere may hold ``LICENSE-EXTRA -> ~/.ssh/id_rsa``: it is not copied into an export."""
    secret = tmp_path / "id_rsa"
    secret.write_text("a private key")
    (base / "LICENSE-EXTRA").symlink_to(secret)
    out = tmp_path / "out"
    out.mkdir()
    assert copy_licences([base], out) == ["LICENSE", "NOTICE.txt"] and names(out) == {"LICENSE", "NOTICE.txt"}
    file = gguf(tmp_path / "gguf")
    write_beside(file, base, CARD.format(file.name))
    assert not any("EXTRA" in name for name in names(file.parent))


def test_the_card_of_a_dequantized_base(base: Path, tmp_path: Path) -> None:
    """The demo model comes as a GGUF out of a package: the card has its name on the hub and the licence its text tells."""
    package = tmp_path / "demo"
    package.mkdir()
    (package / "tunesmith-source.json").write_text(json.dumps({"model": "org/Small-Instruct"}))
    (base / "origin.json").write_text(json.dumps({"gguf": str(package / "Small.Q4_1.gguf")}))
    assert origin_of(base) == package / "Small.Q4_1.gguf"
    name = hub_name(None, {}, base)
    (tmp_path / "README.md").write_text(model_card(base, name, ["one fact"]))
    card = (tmp_path / "README.md").read_text()
    assert front_matter(tmp_path / "README.md") | {"tags": []} == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": [], "license": "apache-2.0",
        "base_model": "org/Small-Instruct", "base_model_relation": "finetune",
    }  # fmt: skip
    assert (
        "- base: org/Small-Instruct, dequantized from Small.Q4_1.gguf\n- licence of the base: apache-2.0\n- one fact"
        in card
    )
    assert "# Small-Instruct, fine-tuned" in card and str(tmp_path) not in card


@pytest.mark.parametrize("content", [b"GGUFxxxxyyyy", b"GGUF\x03\x00\x00\x00" + b"\x05" * 40])
def test_a_damaged_gguf_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf cannot be read as GGUF"):
        safetensors_of(tmp_path / "broken.gguf")
    assert not list((tmp_path / "home").rglob("*.partial"))


def test_hints_name_what_helps(tmp_path: Path) -> None:
    """A run's checkpoint is nowhere to be fetched; a pickled adapter is opened by peft's class, not by a model's."""
    for place, words in (("checkpoints/step-3", "take an earlier one"), ("model", "fetch the model again")):
        file = tmp_path / place / "adapter_model.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
        with pytest.raises(ExportError) as caught:
            read_header(file)
        assert words in str(caught.value.hint)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="only as pickled") as refused:
        resolve_adapter_folder(folder, "here")
    assert "PeftModel" in str(refused.value.hint) and "AutoModel" not in str(refused.value.hint)


def test_a_comparison_reads_all_names_before_it_opens_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "open_engine", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "model").mkdir()
    for models in ([str(tmp_path / "model"), "nosuch"], [str(tmp_path / "model"), "run:nosuch"]):
        with pytest.raises(UserError, match="nosuch"):
            compare.run_comparison(models, SILENT, prompts=["hello"])


def test_what_was_changed_by_hand_is_kept(tmp_path: Path) -> None:
    """Modelfile and card are renewed as long as they are as they were written, also when the GGUF is made again; else kept and told."""
    file = tmp_path / "small-Q8_0.gguf"
    file.write_bytes(b"GGUF")
    record.keep(file, {}, {}, SILENT, trial=False)
    place, content = tmp_path / "Modelfile", f"FROM ./{file.name}\n"
    assert renew(file, place, content) is None and renew(file, place, content + "# two\n") is None
    assert record.changed(file) is None and names(tmp_path) == {file.name, record.record_of(file).name, "Modelfile"}
    place.write_text(content + "PARAMETER temperature 0\n", encoding="utf-8")
    assert f"kept as {tmp_path / 'Modelfile.old'}" in str(renew(file, place, content))
    assert place.read_text(encoding="utf-8") == content
    assert (tmp_path / "Modelfile.old").read_text(encoding="utf-8") == content + "PARAMETER temperature 0\n"
    base = tmp_path / "base"
    base.mkdir()
    prefixed = tmp_path / f"{file.stem}.README.md"
    assert write_beside(file, base, CARD.format(file.name)) == []
    assert write_beside(file, base, CARD.format(file.name) + "more") == []
    prefixed.write_text(CARD.format(file.name) + "mine", encoding="utf-8")
    assert f"{prefixed} was changed by hand" in write_beside(file, base, CARD.format(file.name))[0]
    assert prefixed.with_name(f"{prefixed.name}.old").read_text(encoding="utf-8").endswith("mine")
