"""Where rows come from and how many of each are learned: folders, names, settings, dataset_info.json, mixing."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_files import LINES, ROWS, config, put, questions
from tunesmith.config.errors import DataError, UserError
from tunesmith.config.load import validate
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.doctor.examine import examine
from tunesmith.data.example import Chat, Feedback, Message, Text
from tunesmith.data.identity import identity
from tunesmith.data.load import load, open_set
from tunesmith.data.mix import order
from tunesmith.data.registry import lookup
from tunesmith.data.sources import pinned


def test_a_folder_is_read_in_the_order_of_its_names_and_says_what_it_leaves_aside(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "deep/c.jsonl"):
        put(tmp_path / "set" / name, [{"instruction": name, "output": "x"}])
    for name in ("README.md", ".hidden.jsonl", "dataset_info.json", "pictures/1.png"):
        put(tmp_path / "set" / name, "{}")
    opened = open_set(str(tmp_path / "set"), config())
    assert [r["instruction"] for _, r in opened.raw()] == ["a.json", "b.jsonl", "deep/c.jsonl"]
    aside = next(note for note in opened.notes if "left aside" in note)
    assert all(name in aside for name in ("README.md", ".hidden.jsonl", "dataset_info.json", "1.png"))
    assert questions(tmp_path / "set" / "*.json*") == ["a.json", "b.jsonl"]
    assert questions(f"{tmp_path}/set/**/*.jsonl") == ["b.jsonl", "deep/c.jsonl"]


def test_splits_that_the_names_tell_are_not_mixed_up(tmp_path: Path) -> None:
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
        put(tmp_path / "set" / name, [{"instruction": name, "output": "x"}])
    with pytest.raises(DataError, match=r"several splits: test, train[\s\S]*split"):
        questions(tmp_path / "set")
    assert questions(SetConfig(set=str(tmp_path / "set"), split="train")) == ["train-1.jsonl", "train-2.jsonl"]
    assert questions(SetConfig(set=str(tmp_path / "set"), split="test")) == ["test.jsonl"]
    with pytest.raises(DataError, match=r"no split 'dev'"):
        questions(SetConfig(set=str(tmp_path / "set"), split="dev"))


def test_a_folder_with_configs_in_its_readme_is_read_as_a_hub_would(tmp_path: Path) -> None:
    put(tmp_path / "set/README.md", "---\nconfigs:\n- config_name: en\n  data_files: one.json\n"
        "- config_name: zh\n  data_files: two.json\n---\n# A set\n")  # fmt: skip
    put(tmp_path / "set/one.json", ROWS[:2])
    put(tmp_path / "set/two.json", ROWS[2:])
    assert questions(SetConfig(set=str(tmp_path / "set"), subset="zh")) == ["q2", "q3", "q4"]
    with pytest.raises(UserError, match=r"several subsets: en, zh"):
        questions(tmp_path / "set")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "mixed/a.jsonl", LINES)
    put(tmp_path / "mixed/b.csv", "a\n1\n")
    put(tmp_path / "none/README.md", "x")
    put(tmp_path / "link/a.jsonl", LINES)
    (tmp_path / "link/b.jsonl").symlink_to(tmp_path / "mixed/a.jsonl")
    for name, words in (("mixed", "several kinds"), ("none", "no data file"), ("link", "leads out of the folder")):
        with pytest.raises(DataError, match=words):
            open_set(str(tmp_path / name), config())
    with pytest.raises(DataError, match="no file fits the pattern"):
        open_set(str(tmp_path / "*.jsonl"), config())


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("missing.jsonl", "no file or folder 'missing.jsonl'"),
        ("./nothing", "no file or folder"),
        ("rows.jsn", "no file or folder 'rows.jsn'"),
        ("lantern_bai", "did you mean 'lantern_bay'"),
        ("hf:not a name", "not a data set's name"),
        ({"set": "lantern_bay", "revision": "main"}, "revision is for data sets on a hub"),
        ({"set": "lantern_bay", "split": "test"}, "a single file has no splits"),
        ({"set": "lantern_bay", "columns": {"promt": "q"}}, "did you mean 'prompt'"),
        ({"set": "lantern_bay", "columns": {"prompt": "q"}}, "no column 'q'"),
    ],
)
def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: Any, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        open_set(DataConfig(train=choice).train[0], config())


def test_paths_are_pinned_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.jsonl", LINES)
    for name, expected in {
        "a.jsonl": str(tmp_path / "a.jsonl"), "*.jsonl": str(tmp_path / "*.jsonl"), "lantern_bay": "lantern_bay",
        "hf:a/b": "hf:a/b", "a/b": "a/b",
    }.items():  # fmt: skip
        assert pinned(SetConfig(set=name, limit=3), None) == SetConfig(set=expected, limit=3)


def test_plain_names_stay_plain_in_a_saved_config() -> None:
    saved = DataConfig(train=["a", {"set": "b", "limit": 2}], eval="c").model_dump(mode="json")
    assert saved["train"] == ["a", {"set": "b", "limit": 2}] and saved["eval"] == ["c"]
    assert DataConfig.model_validate(saved) == DataConfig(train=["a", {"set": "b", "limit": 2}], eval="c")
    assert DataConfig(train={"set": "b"}) == DataConfig(train="b")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": [{"set": "a", "wieght": 2}]}, "did you mean 'weight'"),
        ({"train": ["a", "b"], "probabilities": [0.5, 0.5]}, "mix=interleave"),
        ({"train": ["a", "b"], "mix": "interleave", "probabilities": [1.0]}, "1 numbers for 2 sets"),
        ({"train": ["a", "b"], "mix": "interleave", "probabilities": [0.5, 0.6]}, "add up to 1"),
        ({"train": "a", "eval": {"set": "b", "weight": 2}}, "weight is for training sets"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(DataConfig, settings)


def test_the_limit_takes_the_first_rows_and_the_sample_any(tmp_path: Path) -> None:
    path = put(
        tmp_path / "a.jsonl", "".join(json.dumps({"instruction": f"q{i:02}", "output": "a"}) + "\n" for i in range(50))
    )
    assert questions(SetConfig(set=str(path), limit=3)) == ["q00", "q01", "q02"]
    sample = questions(SetConfig(set=str(path), sample=10))
    assert len(set(sample)) == 10 and sample == sorted(sample) != [f"q{i:02}" for i in range(10)]
    assert sample == questions(SetConfig(set=str(path), sample=10)), "always the same rows"
    more = Counter(questions(SetConfig(set=str(path), sample=120)))
    assert sum(more.values()) == 120 and len(more) == 50, "every row once, then drawn again"


def test_order_of_weights() -> None:
    assert order([3, 2]) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    twice_and_half = order([4, 6], [2, 0.5], seed=1)
    times = Counter(twice_and_half)
    assert [times[0, i] for i in range(4)] == [2] * 4 and sum(n for (s, _), n in times.items() if s == 1) == 3
    assert twice_and_half == order([4, 6], [2, 0.5], seed=1) != order([4, 6], [2, 0.5], seed=2)
    assert sum(1 for _ in order([10], [2.3])) == 23


def test_interleaving_is_that_of_the_datasets_library() -> None:
    import datasets

    sets = [datasets.Dataset.from_dict({"x": [f"{s}{i}" for i in range(n)]}) for s, n in (("a", 2), ("b", 5), ("c", 3))]
    for stop in ("first_exhausted", "all_exhausted"):
        theirs = datasets.interleave_datasets(sets, stopping_strategy=stop)["x"]
        ours = [f"{'abc'[s]}{row}" for s, row in order([2, 5, 3], mix="interleave", stop=stop)]
        assert ours == list(theirs)


def test_interleaving_with_probabilities() -> None:
    drawn = order([9000, 9000], mix="interleave", probabilities=[0.9, 0.1], seed=3)
    first = sum(1 for s, _ in drawn if s == 0)
    assert first == 9000 and 0.08 < 1 - first / len(drawn) < 0.12
    assert [row for s, row in drawn if s == 0] == list(range(9000)), "no row twice before every row once"
    over = order([100, 10], mix="interleave", probabilities=[0.5, 0.5], stop="all_exhausted", seed=3)
    assert set(over) == {(0, i) for i in range(100)} | {(1, i) for i in range(10)}


def test_held_out_rows_stay_out_of_weighted_and_interleaved_sets(tmp_path: Path) -> None:
    one = put(tmp_path / "one.json", [{"instruction": f"q{i % 30}", "output": "a"} for i in range(60)])
    two = put(tmp_path / "two.json", [{"instruction": f"q{i}", "output": "a"} for i in range(20, 60)])
    for settings in ({}, {"mix": "interleave", "stop": "all_exhausted"}):
        sets = ({"set": str(one), "weight": 2.5}, str(two))
        split = load(config(*sets, eval_share=0.2, **settings), seed=0)
        assert len(split.eval) == 20
        assert not {identity(e) for e in split.eval} & {identity(e) for e in split.train}
        assert split == load(config(*sets, eval_share=0.2, **settings), seed=0)
        assert any("equal to held-out" in note for note in split.notes)


def test_identity_is_the_content_of_any_kind_of_example() -> None:
    def talk(text: str, origin: str, **more: Any) -> Chat:
        return Chat((Message("user", "q"), Message("assistant", text, **more)), origin=origin)

    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}
    assert identity(talk("a", "x:1")) == identity(talk("a", "y:2"))
    assert identity(Feedback(talk("a", "x:1"), True)) == identity(Feedback(talk("a", "y:2"), True))
    different = [
        talk("a", ""), talk("b", ""), talk("a", "", train=False), talk("a", "", tool_calls=(call,)), Text("a"),
        Feedback(talk("a", ""), True), Feedback(talk("a", ""), False),
    ]  # fmt: skip
    assert len({identity(e) for e in different}) == len(different)


def test_the_fingerprint_tells_contents_and_settings_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", LINES)

    def of(**settings: Any) -> str:
        return open_set(SetConfig(set=str(path), **settings), config()).fingerprint()

    first = of()
    assert first == of() and len(first) == 64
    assert len({first, of(limit=3), of(sample=3), of(columns={"prompt": "output"})}) == 4
    put(path, LINES.replace("q0", "Q0"))
    assert of() != first


def test_an_entry_says_everything_about_a_set(tmp_path: Path) -> None:
    put(tmp_path / "data/train.jsonl", [{"q": f"q{i}", "a": "x"} for i in range(9)])
    put(tmp_path / "data/test.jsonl", [{"q": "t", "a": "x"}])
    entry = {
        "file_name": "data", "split": "train", "formatting": "alpaca", "num_samples": 4,
        "columns": {"prompt": "q", "response": "a", "history": None},
    }  # fmt: skip
    put(tmp_path / "dataset_info.json", {"mine": entry})
    assert len(questions("mine", registry=str(tmp_path))) == 4
    assert len(questions(SetConfig(set="mine", sample=2), registry=str(tmp_path))) == 2


# Entries as LLaMA-Factory's data/dataset_info.json writes them, one of each shape there is.
LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "identity": {"file_name": "identity.json"},
    "toolcall": {
        "file_name": "identity.json", "formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"},
    },
    "mllm_video_audio_demo": {
        "file_name": "identity.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos", "audios": "audios", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "alpaca_en": {
        "hf_hub_url": "llamafactory/alpaca_en", "ms_hub_url": "llamafactory/alpaca_en", "om_hub_url": "HaM/alpaca_en",
    },
    "wikiqa": {"hf_hub_url": "wiki_qa", "columns": {"prompt": "question", "response": "answer"}},
    "belle_dialog": {"hf_hub_url": "BelleGroup/generated_chat_0.4M", "ms_hub_url": "AI-ModelScope/generated_chat_0.4M"},
    "deepctrl": {"ms_hub_url": "deepctrl/deepctrl-sft-data"},
    "adgen_eval": {"hf_hub_url": "HasturOfficial/adgen", "split": "validation", "columns": {"prompt": "content"}},
    "open_thoughts": {
        "hf_hub_url": "llamafactory/OpenThoughts-114k", "formatting": "sharegpt", "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "system_tag": "system"},
    },
    "dpo_mix_en": {
        "hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "en", "ranking": True, "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "ultrafeedback_kto": {
        "hf_hub_url": "argilla/ultrafeedback-binarized-preferences-cleaned-kto",
        "columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"},
    },
    "starcoder_python": {
        "hf_hub_url": "bigcode/starcoderdata", "ms_hub_url": "AI-ModelScope/starcoderdata",
        "columns": {"prompt": "content"}, "folder": "python",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LLAMA_FACTORY)
def test_entries_as_llama_factory_s_users_have_them(tmp_path: Path, name: str) -> None:
    put(tmp_path / "identity.json", ROWS)
    put(tmp_path / "dataset_info.json", LLAMA_FACTORY)
    said, entry = LLAMA_FACTORY[name], lookup(name, str(tmp_path))
    assert entry is not None
    assert [f"{r.hub}_hub_url={r.name}" for r in entry.repositories] == [
        f"{key}={said[key]}" for key in ("hf_hub_url", "ms_hub_url") if key in said
    ]
    assert (entry.path is None) == bool(entry.repositories)
    assert entry.columns == said.get("columns", {}) and entry.tags == said.get("tags", {})
    for key in ("subset", "split", "folder"):
        assert getattr(entry, key) == said.get(key)
    assert (entry.ranking, entry.format) == (said.get("ranking", False), said.get("formatting"))


def test_the_order_of_the_hubs_decides_between_two_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "dataset_info.json", LLAMA_FACTORY)
    monkeypatch.setenv("TUNESMITH_HUBS", "ms,hf")
    entry = lookup("alpaca_en", str(tmp_path))
    assert entry is not None and [r.hub for r in entry.repositories] == ["ms", "hf"]


def test_columns_that_nothing_reads_are_named(tmp_path: Path) -> None:
    """A verdict beside messages would be lost, and the bad answers learned."""
    path = tmp_path / "a.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False, "id": 7}
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    (note,) = open_set(str(path), DataConfig(train=(str(path),))).notes
    assert "columns that are not read: 'label', 'id'" in note and "{kto_tag: label}" in note
    findings = examine([open_set(str(path), DataConfig(train=(str(path),)))]).findings
    assert "'label' is not read" in next(iter(findings.of("unread_verdict"))).message
    mapped = SetConfig.model_validate({"set": str(path), "columns": {"kto_tag": "label"}})
    opened = open_set(mapped, DataConfig(train=(mapped,)))
    assert "not read: 'id'" in opened.notes[0] and "kto_tag" not in opened.notes[0]
    assert not next(iter(opened.examples())).good  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x.jsonl", "x" * 400 + ".jsonl", "a\0b.jsonl"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(DataError, match=r"no file|no data set"):
        open_set(name, DataConfig(train=(name,)))


def test_two_entries_of_one_name_in_a_zip_are_both_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings(action="ignore"):
        for answer in "first", "second":
            archive.writestr("a.jsonl", json.dumps({"instruction": "q", "output": answer}) + "\n")
    opened = open_set(str(tmp_path / "a.zip"), DataConfig(train=("x",)))
    assert [e.answer() for e in opened.examples()] == ["first", "second"]  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["folder", "configs", "pattern", "loop"])
def test_links_out_of_a_folder_are_not_followed(tmp_path: Path, how: str) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(folder / "a.jsonl" if how == "loop" else tmp_path / "secret.jsonl")
    if how == "configs":
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    name = str(folder / "*.jsonl") if how == "pattern" else str(folder)
    with pytest.raises(DataError, match="a link that leads"):
        open_set(name, DataConfig(train=("x",)))
