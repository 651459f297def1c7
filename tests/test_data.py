"""Rows of every narrow path: what they become, and the message for what they should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.errors import DataError
from tunesmith.data.config import DataConfig
from tunesmith.data.load import load, load_set, open_set
from tunesmith.data.registry import lookup


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def one(tmp_path: Path, row: Any, **config: Any) -> Any:
    name = write(tmp_path / "set.json", [row])
    loaded = load_set(name, DataConfig(train=(name,), **config))
    if loaded.bad:
        raise loaded.bad[0]
    return loaded.examples[0]


def turns(chat: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in chat.messages]


def test_alpaca_with_everything(tmp_path: Path) -> None:
    row = {
        "instruction": "Sum",
        "input": "1 2",
        "output": "3",
        "system": "Be brief",
        "history": [["a", "b"], ["c", "d"]],
    }
    assert turns(one(tmp_path, row)) == [
        ("system", "Be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
        ("user", "Sum\n1 2"), ("assistant", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "extra", [{}, {"input": ""}, {"input": None, "system": None, "history": None}, {"history": []}]
)
def test_alpaca_without_the_optional_parts(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert turns(one(tmp_path, {"instruction": "你好", "output": "好", **extra})) == [
        ("user", "你好"),
        ("assistant", "好"),
    ]


def test_sharegpt_and_openai_messages(tmp_path: Path) -> None:
    share = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "S"}
    messages = {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    }
    expected = [("system", "S"), ("user", "a"), ("assistant", "b")]
    assert turns(one(tmp_path, share)) == expected == turns(one(tmp_path, messages))


def test_a_turn_can_be_left_unlearned(tmp_path: Path) -> None:
    row = {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]}  # fmt: skip
    assert [m.learned for m in one(tmp_path, row).messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a"}, ["cannot tell the format", "'instruction'", "alpaca"]),
        ({"instruction": 3, "output": "b"}, ["row 1", "'instruction' should be text", "int"]),
        ({"instruction": "a", "output": None}, ["row 1", "'output' should be text"]),
        ({"instruction": "a", "output": "  "}, ["row 1", "answer is empty"]),
        ({"instruction": "", "output": "b"}, ["row 1", "question is empty"]),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, ["entry 1", "pair"]),
        ({"instruction": "a", "output": "b", "history": "x"}, ["'history'", "list"]),
        ({"conversations": [{"from": "alien", "value": "a"}]}, ["turn 1", "'alien'", "known roles"]),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, ["turn 1", "assistant", "alternate"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}, ["turn 2", "alternate"]),
        ({"conversations": [{"from": "human", "value": "a"}]}, ["no answer to learn"]),
        ({"conversations": ["hello"]}, ["turn 1", "expected a turn", "str"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, ["turn 2", "empty"]),
        ("just text", ["row 1", "expected an object"]),
        (None, ["row 1", "expected an object"]),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, row: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, row)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "", ["empty"]),
        ("a.json", "[]", ["no row"]),
        ("a.json", '[{"instruction": "a", "output": "b"},\n {"instruction": ]', ["a.json:2", "not valid JSON"]),
        ("a.json", '{"instruction": "a"}', ["expected a list"]),
        ("a.json", "[" * 100_000, ["a.json", "not valid JSON"]),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_message(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        load_set(path, DataConfig(train=(path,)))
    for word in words:
        assert word in str(caught.value) or "nested too deeply" in str(caught.value), str(caught.value)


def test_gbk_text_names_the_line_and_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": "b"}\n' + '{"instruction": "你", "output": "好"}'.encode("gbk"))
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8[\s\S]*iconv"):
        load_set(str(path), DataConfig(train=(str(path),)))


def test_bad_rows_stop_the_training_unless_skipped_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json",
        [{"instruction": "a", "output": "b"}, {"instruction": "a"}, {"instruction": "c", "output": "d"}],
    )
    with pytest.raises(DataError, match=r"1 of 3 rows[\s\S]*row 2[\s\S]*skip_bad"):
        load(DataConfig(train=(path,)), seed=0)
    split = load(DataConfig(train=(path,), skip_bad=True, eval_share=0), seed=0)
    assert len(split.train) == 2 and any("left out" in note and "row 2" in note for note in split.notes)


def test_a_set_of_bad_rows_alone_is_an_error_however_much_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"instruction": "a"}, {"instruction": "b"}])
    with pytest.raises(DataError, match=r"2 of 2 rows[\s\S]*none is left to learn from"):
        load(DataConfig(train=("lantern_bay", path), format="alpaca", skip_bad=True), seed=0)


def test_the_split_depends_on_the_seed_alone() -> None:
    first, again, other = (load(DataConfig(train=("lantern_bay",), eval_share=0.1), seed=s) for s in (1, 1, 2))
    assert first == again and first.eval != other.eval
    assert len(first.eval) == 21 and not set(first.train) & set(first.eval)


def test_registry_with_its_own_columns(tmp_path: Path) -> None:
    write(tmp_path / "rows.json", [{"q": "a", "a": "b"}])
    book = {"mine": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}}}
    write(tmp_path / "dataset_info.json", book)
    loaded = load_set("mine", DataConfig(train=("mine",), registry=str(tmp_path)))
    assert turns(loaded.examples[0]) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file_nam": "rows.json"}, ["unknown key 'file_nam'", "did you mean 'file_name'"]),
        ({"hf_hub_url": "a b"}, ["hf_hub_url", "not a data set's name"]),
        ({"om_hub_url": "a/b"}, ["'om_hub_url'", "hf_hub_url or ms_hub_url"]),
        ({"script_url": "a"}, ["'script_url'", "code of a data set is not run"]),
        ({"cloud_file_name": "s3://a/b.json"}, ["'cloud_file_name'", "copy the file"]),
        ({}, ["'file_name' is missing"]),
        ({"file_name": "rows.json", "ranking": "yes"}, ["'ranking' should be true or false"]),
        ({"file_name": "rows.json", "split": 3}, ["'split' should be text"]),
        ({"file_name": "rows.json", "columns": {"promt": "q"}}, ["'columns' has no 'promt'", "did you mean 'prompt'"]),
        ({"file_name": "rows.json", "columns": ["q"]}, ["'columns' should be an object"]),
        ({"file_name": "rows.json", "tags": {"role": "from"}}, ["'tags' has no 'role'", "role_tag"]),
        ({"file_name": "none.json"}, ["none.json does not exist"]),
        ({"file_name": "rows.json", "formatting": "sharegtp"}, ["did you mean 'sharegpt'"]),
        ({"file_name": "rows.json", "num_samples": "3"}, ["num_samples"]),
        (["rows.json"], ["expected an object"]),
    ],
)
def test_registry_traps(tmp_path: Path, entry: Any, words: list[str]) -> None:
    write(tmp_path / "rows.json", [{"instruction": "a", "output": "b"}])
    write(tmp_path / "dataset_info.json", {"mine": entry})
    with pytest.raises(DataError) as caught:
        lookup("mine", str(tmp_path))
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_an_unknown_name_offers_a_near_one() -> None:
    with pytest.raises(DataError, match="did you mean 'lantern_bay'"):
        open_set("lantern_bai", DataConfig(train="lantern_bai"))


def test_the_bundled_set_is_sound() -> None:
    train = load_set("lantern_bay", DataConfig(train=("x",)))
    held = load_set("lantern_bay_heldout", DataConfig(train=("x",)))
    assert len(train.examples) >= 200 and len(held.examples) == 20 and not train.bad and not held.bad
    asked = [e.messages[-2].content.strip().lower() for e in (*train.examples, *held.examples)]
    assert len(set(asked)) == len(asked), "a question stands twice"
    for example in (*train.examples, *held.examples):
        chinese = any("\u4e00" <= c <= "\u9fff" for c in example.messages[-2].content)
        assert example.answer().endswith("一路顺风！" if chinese else "Fair winds!"), example.origin


def test_an_evaluation_set_is_used_and_not_trained_on(tmp_path: Path) -> None:
    split = load(DataConfig(train=("lantern_bay",), eval=("lantern_bay_heldout",)), seed=0)
    assert len(split.train) == 214 and len(split.eval) == 20
    both = load(DataConfig(train=("lantern_bay",), eval=("lantern_bay",)), seed=0)
    assert any("214 training rows are in the evaluation set too" in note for note in both.notes)


def test_duplicates_of_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i % 5}", "output": "a"} for i in range(40)]
    path = write(tmp_path / "twice.json", rows)
    split = load(DataConfig(train=(path,), eval_share=0.05), seed=0)
    assert not {e.messages for e in split.eval} & {e.messages for e in split.train}
    assert any("equal to held-out ones" in note for note in split.notes)


def test_one_row_at_least_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "few.json", [{"instruction": f"q{i}", "output": "a"} for i in range(4)])
    split = load(DataConfig(train=(path,)), seed=0)
    assert (len(split.train), len(split.eval)) == (3, 1)


def test_limits_of_config_and_registry(tmp_path: Path) -> None:
    write(tmp_path / "rows.json", [{"instruction": f"q{i}", "output": "a"} for i in range(9)])
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "rows.json", "num_samples": 6}})
    for limit, expected in ((None, 6), (4, 4), (8, 6)):
        config = DataConfig(train=("mine",), registry=str(tmp_path), limit=limit)
        assert len(load_set("mine", config).examples) == expected


def test_a_registry_s_own_role_words(tmp_path: Path) -> None:
    write(tmp_path / "rows.json", [{"talk": [{"who": "kunde", "said": "a"}, {"who": "helfer", "said": "b"}]}])
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "kunde", "assistant_tag": "helfer"}
    entry = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
    write(tmp_path / "dataset_info.json", {"mine": entry})
    loaded = load_set("mine", DataConfig(train=("mine",), registry=str(tmp_path)))
    assert not loaded.bad and turns(loaded.examples[0]) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize("weight", [0.5, -1, "yes", 2])
def test_a_weight_is_zero_or_one(tmp_path: Path, weight: Any) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight}]}
    with pytest.raises(DataError, match="should be true, false, 0 or 1"):
        one(tmp_path, row)
