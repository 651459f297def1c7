"""Where rows come from: files of every kind, folders, patterns, hubs; how sets are mixed and told apart."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from hub_standin import Counting, Standin, serving
from tunesmith.config.errors import DataError, ReferenceNotFoundError, ServerError, UserError
from tunesmith.config.load import validate
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.example import Chat, Feedback, Message, Text
from tunesmith.data.files.base import Options
from tunesmith.data.identity import identity
from tunesmith.data.load import load, load_set, open_set
from tunesmith.data.mix import order
from tunesmith.data.registry import lookup
from tunesmith.data.rows import read_rows
from tunesmith.data.sources import pinned

ROWS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def config(*sets: Any, **settings: Any) -> DataConfig:
    return DataConfig(train=sets or ("x",), **settings)


def put(path: Path, content: Any) -> Path:
    """Write text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def questions(choice: Any, **settings: Any) -> list[str]:
    """The questions of a set's rows, in order."""
    loaded = load_set(choice if isinstance(choice, SetConfig) else str(choice), config(**settings))
    assert not loaded.bad, loaded.bad
    return [e.messages[0].content for e in loaded.examples if isinstance(e, Chat)]


def zipped(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


# -- one file -----------------------------------------------------------------------------------------------------------

KINDS: dict[str, bytes] = {
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.jsonl": LINES.encode(),
    "a.ndjson": LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "lines.json": LINES.encode(),
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "one_line_list.jsonl": json.dumps(ROWS).encode(),
    "inside.json": json.dumps({"version": 2, "tags": ["x"], "data": ROWS}).encode(),
    "a.csv": b"instruction,output\n" + b"".join(f"q{i},a{i}\n".encode() for i in range(5)),
    "semicolon.csv": b"instruction;output\r\n" + b"".join(f"q{i};a{i}\r\n".encode() for i in range(5)),
    "a.tsv": b"instruction\toutput\n" + b"".join(f"q{i}\ta{i}\n".encode() for i in range(5)),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.jsonl.zst": zstd(LINES.encode()),
    "no_suffix_but.jsonl": gzip.compress(LINES.encode()),
    "a.zip": zipped({"in/rows.jsonl": LINES, "__MACOSX/x": b""}),
    "text_that_is.txt": LINES.encode(),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert questions(put(tmp_path / name, KINDS[name])) == [f"q{i}" for i in range(5)]


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "stream.arrow", "really.json"])
def test_columnar_files(tmp_path: Path, name: str) -> None:
    table, path = pa.Table.from_pylist(ROWS), tmp_path / name
    if name == "a.feather":
        feather.write_feather(table, path)
    elif name == "stream.arrow":  # what `datasets` saves
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        parquet.write_table(table, path)
    assert questions(path) == [f"q{i}" for i in range(5)]
    assert next(open_set(str(path), config()).raw())[0] == f"{path}:row 1"


def test_every_row_has_the_line_on_which_it_begins(tmp_path: Path) -> None:
    table = put(tmp_path / "a.csv", 'instruction,output\n"two\nlines",b\n\n"say ""hi""",d\n')
    assert [(o, r["instruction"]) for o, r in read_rows(table)] == [
        (f"{table}:2", "two\nlines"),
        (f"{table}:5", 'say "hi"'),
    ]
    lines = put(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [o for o, _ in read_rows(lines)] == [f"{lines}:1", f"{lines}:3"]
    rows = put(tmp_path / "a.json", [{"a": 1}, {"a": 2}])
    assert [o for o, _ in read_rows(rows)] == [f"{rows}:row 1", f"{rows}:row 2"]


def test_plain_text_by_line_paragraph_and_document(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    units = {unit: list(read_rows(path, Options(text_unit=unit))) for unit in ("line", "paragraph", "document")}
    assert [r["text"] for _, r in units["line"]] == ["one", "two", "three"]
    assert units["paragraph"] == [(f"{path}:1", {"text": "one\ntwo"}), (f"{path}:5", {"text": "three"})]
    assert [r["text"] for _, r in units["document"]] == ["one\ntwo\n\n\nthree"]


def test_a_list_inside_an_object_is_named_or_unmistakable(tmp_path: Path) -> None:
    named = put(tmp_path / "a.json", {"info": {"rows": [1]}, "samples": ROWS})
    assert len(questions(SetConfig(set=str(named), field="samples"))) == 5
    with pytest.raises(DataError, match=r"found one object with 'info', 'samples'"):
        questions(named)
    with pytest.raises(DataError, match=r"no list under 'sample'"):
        questions(SetConfig(set=str(named), field="sample"))
    with pytest.raises(DataError, match=r"several lists, 'train' and 'data'"):
        questions(put(tmp_path / "b.json", {"train": ROWS, "data": ROWS}))


BROKEN: list[tuple[str, str | bytes, str]] = [
    ("a.json", '[{"a": 1},\n {"a": 2},\n]', r"a\.json:3: not valid JSON: a comma after the last row"),
    ("a.json", '[{"a": 1}\n {"a": 2}]', r"a\.json:2: not valid JSON: expected ',' or ']'"),
    ("a.json", '[{"a": 1},\n {"a": "x', r"a\.json:2: not valid JSON: .*Unterminated string"),
    ("a.json", '[{"a": 1},\n', r"not valid JSON: the file ends in the middle"),
    ("a.json", '[{"a": 1}]\n[{"a": 2}]', r"a\.json:2: more stands after the end"),
    ("a.json", '{\n"a": 1}\n{\n"a": 2}', r"expected a list of rows"),
    ("a.json", '{"data": [{"a": 1}],}', r"a comma before the closing brace"),
    ("a.json", '"text"', r"expected a list of rows"),
    ("a.json", "hello", r"a\.json:1: not valid JSON"),
    ("a.json", " \n", r"the file is empty"),
    ("a.jsonl", '{"a": 1}\n\0\0', r"a\.jsonl:2: holds NUL bytes[\s\S]*UTF-16"),
    ("a.jsonl", LINES.encode("utf-16-le"), r"a\.jsonl:1: holds NUL bytes[\s\S]*UTF-16"),
    ("a.json", b"\xff\xfea\x00b", r"begins as UTF-16-LE text but is not"),
    ("a.csv", b"a,b\n1,2\n" + "你,3".encode("gbk"), r"a\.csv:3: not UTF-8 text[\s\S]*iconv -f GB18030"),
    ("a.json", b'[{"a": "' + b"\n" * 2 + "你".encode("gbk"), r"a\.json:3: not UTF-8 text"),
    ("a.csv", 'a,b\n1,2\n3,"x" y"\n', r"a\.csv:3: not valid CSV[\s\S]*written twice"),
    ("a.csv", 'a,b\n1,"never\nclosed\n', r"a\.csv:2: not valid CSV: unexpected end"),
    ("a.csv", "a,a\n1,2\n", r"a\.csv:1: the column 'a' stands twice"),
    ("a.parquet", b"PAR1 and no more", r"a\.parquet: not a whole Parquet file"),
    ("a.arrow", b"ARROW1 and no more", r"a\.arrow: not a whole Arrow file"),
    ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:90], r"damaged or cut short"),
    ("a.jsonl.xz", b"\xfd7zXZ\x00" + b"nonsense", r"damaged or cut short"),
    ("a.zip", b"PK\x03\x04nonsense", r"not a whole zip file"),
    ("a.zip", zipped({"../a.jsonl": LINES}), r"holds '\.\./a\.jsonl', which leads out of it"),
    ("a.zip", zipped({"b.zip": zipped({"a.jsonl": LINES})}), r"an archive inside an archive"),
    ("a.xlsx", zipped({"[Content_Types].xml": "", "xl/a.xml": ""}), r"Office document[\s\S]*CSV"),
    ("a.parquet.gz", gzip.compress(b"PAR1xxxxPAR1"), r"packed parquet file cannot be read in place"),
    ("a.pkl", b"\x80\x04\x95", r"Python pickle"),
    ("a.bin", b"\x01\x02\x03", r"file type \.bin is not read[\s\S]*supported: .*\.csv"),
    ("a.json.gz", gzip.compress(b" " * (80 << 20)), r"unpacks to more than 64 MB, over 300 times"),
    ("a.zip", zipped({"a.jsonl": b" " * (80 << 20)}), r"unpacks to more than 64 MB, over 300 times"),
    ("a.json", "[" * 100_000, r"nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BROKEN)
def test_a_broken_file_is_one_message(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_rows(put(tmp_path / name, content)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a":\n{"a": 3}\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n{"a": 3}\n', "a.jsonl:2: the key 'a' stands twice"),
        ("a.json", '[{"a": 1}, {"b": {"a": 1, "a": 2}}, {"a": 3}]', "a.json:row 2: the key 'a' stands twice"),
        ("a.json", '[{"a": 1}, {"a": NaN}, {"a": 3}]', "a.json:row 2: NaN is no JSON value"),
        ("a.jsonl", '{"a": 1}\n{"a": -Infinity}\n{"a": 3}\n', "a.jsonl:2: -Infinity is no JSON value"),
        (
            "a.json",
            '[{"a": 1}, {"a": "\\ud83d"}, {"a": "\\ud83d\\ude00"}]',
            "a.json:row 2: a \\ud… escape stands alone",
        ),
        ("a.csv", "a\n1\n2,3\n4\n", "a.csv:3: 2 values for 1 columns"),
        ("a.jsonl", '{"a": 1}\n' + '{"a":' * 50_000 + '\n{"a": 3}\n', "a.jsonl:2: nested too deeply"),
    ],
)
def test_a_row_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    first, bad, last = (row for _, row in read_rows(put(tmp_path / name, content)))
    assert isinstance(first, dict) and isinstance(last, dict)
    assert isinstance(bad, DataError) and words in bad.message


def test_what_the_name_says_wrongly_is_noted(tmp_path: Path) -> None:
    notes = open_set(str(put(tmp_path / "a.json", LINES)), config()).notes
    assert any("is read as jsonl" in note for note in notes)


def test_rows_across_the_edges_of_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [{"n": i, "text": '文\\"' * (i * 7919 % 100_000)} for i in range(40)]
    path = put(tmp_path / "a.json", json.dumps(rows, indent=1))
    assert [row for _, row in read_rows(path)] == rows
    path = put(tmp_path / "b.json", json.dumps(rows, ensure_ascii=False))
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.json.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """30 MB of rows are read within 12 MB."""
    path, text = tmp_path / name, "x" * 1000
    if name == "a.parquet":
        parquet.write_table(pa.table({"a": [f"{text}{i}" for i in range(30_000)]}), path, row_group_size=1000)
    elif name == "a.csv":
        put(path, "a\n" + f"{text}\n" * 30_000)
    else:
        one = json.dumps({"a": text})
        content = ("\n".join([one] * 30_000) if name == "a.jsonl" else f"[{', '.join([one] * 30_000)}]").encode()
        put(path, gzip.compress(content, 1) if name.endswith(".gz") else content)
    list(zip(range(3), read_rows(path)))  # imports are not counted
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000 and peak < 12 << 20, peak


# -- folders, patterns, names -------------------------------------------------------------------------------------------


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


# -- settings -----------------------------------------------------------------------------------------------------------


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


# -- limits, samples, mixing --------------------------------------------------------------------------------------------


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


# -- dataset_info.json --------------------------------------------------------------------------------------------------


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


# -- hubs ---------------------------------------------------------------------------------------------------------------

README = (
    "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train*.jsonl\n  - split: test\n"
    "    path: en/test.jsonl\n- config_name: zh\n  data_files: zh.json\n---\n# A set\n"
)


def repository() -> dict[str, bytes]:
    return {
        "README.md": README.encode(),
        "en/train-1.jsonl": LINES.encode(),
        "en/train-2.jsonl": LINES.replace('"q', '"more ').encode(),
        "en/test.jsonl": json.dumps({"instruction": "t", "output": "x"}).encode(),
        "zh.json": json.dumps([{"instruction": "问", "output": "答"}]).encode(),
    }


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """One stand-in for both hubs and an empty home."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TUNESMITH_OFFLINE", "TUNESMITH_HUBS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)
    plain = {"train.jsonl": LINES.encode(), "notes.md": b"x"}
    with serving(Standin(data={"org/set": repository(), "org/plain": plain})) as standin:
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", standin.url)
        yield standin


def of_hub(hub: str, **settings: Any) -> SetConfig:
    return SetConfig(set=f"{hub}:org/set", **settings)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_a_set_on_a_hub(hubs: Standin, hub: str, streaming: bool) -> None:
    train = questions(of_hub(hub, subset="en", streaming=streaming))
    assert train == [f"q{i}" for i in range(5)] + [f"more {i}" for i in range(5)]
    fetched = {path for method, path, _ in hubs.requests if method == "GET"}
    assert fetched == {"README.md", "en/train-1.jsonl", "en/train-2.jsonl"}, "nothing else is asked for"
    assert questions(of_hub(hub, subset="en", split="test", streaming=streaming)) == ["t"]
    assert questions(of_hub(hub, subset="zh", streaming=streaming)) == ["问"]
    origin = next(open_set(of_hub(hub, subset="zh", streaming=streaming), config()).raw())[0]
    assert origin.startswith(f"{hub}:org/set@") and origin.endswith("/zh.json:row 1")


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_what_a_hub_s_set_does_not_have(hubs: Standin, hub: str) -> None:
    for settings, words in (
        ({}, "several subsets: en, zh"),
        ({"subset": "fr"}, r"no subset 'fr'[\s\S]*en, zh"),
        ({"subset": "en", "split": "dev"}, r"no split 'dev'[\s\S]*train, test"),
        ({"subset": "en", "split": "train[:10%]"}, "slice"),
        ({"subset": "en", "revision": "v9"}, "no revision 'v9'|with a revision 'v9'"),
        ({"folder": "fr"}, r"no folder 'fr'"),
    ):
        with pytest.raises(UserError, match=words):
            open_set(of_hub(hub, **settings), config())
    with pytest.raises(ReferenceNotFoundError, match="no data set org/none"):
        open_set(f"{hub}:org/none", config())


def test_a_set_that_is_only_a_script_is_refused(hubs: Standin) -> None:
    hubs.data["org/script"] = {"script.py": b"raise SystemExit", "README.md": b"# x"}
    with pytest.raises(UserError, match=r"code of a data set is not run[\s\S]*refs/convert/parquet"):
        open_set("hf:org/script", config())


def test_a_gated_set_says_what_to_do(hubs: Standin) -> None:
    hubs.gated.add("org/plain")
    with pytest.raises(ReferenceNotFoundError, match=r"accepted its terms[\s\S]*HF_TOKEN"):
        open_set("hf:org/plain", config())


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_what_was_fetched_is_used_offline(hubs: Standin, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    online = open_set(of_hub(hub, subset="en"), config())
    monkeypatch.setenv("TUNESMITH_OFFLINE", "1")
    before = len(hubs.requests) + len(hubs.asked)
    offline = open_set(of_hub(hub, subset="en"), config())
    assert list(offline.raw()) == list(online.raw()) and offline.fingerprint() == online.fingerprint()
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        open_set(of_hub(hub, subset="zh"), config())
    with pytest.raises(ReferenceNotFoundError, match="network is switched off"):
        open_set(f"{hub}:org/plain", config())
    assert len(hubs.requests) + len(hubs.asked) == before


@pytest.mark.parametrize("hub", ["hf", "ms"])
def test_a_changed_file_is_fetched_again(hubs: Standin, hub: str) -> None:
    first = open_set(f"{hub}:org/plain", config()).fingerprint()
    if hub == "ms":  # a branch of ModelScope has no commit here, its files have hashes
        hubs.data["org/plain"]["train.jsonl"] = LINES.replace("q0", "Q0").encode()
        again = open_set("ms:org/plain", config())
        assert again.fingerprint() != first and "Q0" in questions("ms:org/plain")
    else:
        assert open_set("hf:org/plain", config()).fingerprint() == first
        assert len(hubs.gets("train.jsonl")) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(hubs: Standin) -> None:
    hubs.data["org/plain"]["train.jsonl"] = LINES.encode() * 3000
    hubs.cut["train.jsonl"] = 400_000
    assert len(questions("ms:org/plain")) == 15_000
    first, second = hubs.gets("train.jsonl")
    assert first is None and second is not None and second.startswith("bytes=") and second != "bytes=0-"


def test_a_broken_connection_is_taken_up_again_while_streaming(hubs: Standin) -> None:
    hubs.cut["train.jsonl"] = 50
    assert questions(SetConfig(set="ms:org/plain", streaming=True)) == [f"q{i}" for i in range(5)]
    hubs.status["train.jsonl"] = 404
    with pytest.raises(ServerError, match="HTTP 404"):
        questions(SetConfig(set="ms:org/plain", streaming=True))


def test_parquet_is_streamed_in_parts(hubs: Standin) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), buffer)
    hubs.data["org/set"] = {"data/train-00000-of-00001.parquet": buffer.getvalue()}
    assert questions(of_hub("hf", streaming=True)) == [f"q{i}" for i in range(5)]
    assert all(asked and asked.startswith("bytes=") for _, _, asked in hubs.requests)


def test_a_bare_name_is_looked_for_on_each_hub(hubs: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    assert questions("org/plain") == [f"q{i}" for i in range(5)]
    assert open_set("org/plain", config()).place.startswith("hf:")
    monkeypatch.setenv("TUNESMITH_HUBS", "ms")
    assert open_set("org/plain", config()).place.startswith("ms:")
    monkeypatch.setenv("TUNESMITH_HUBS", "hf,ms")
    with pytest.raises(ReferenceNotFoundError, match=r"2 places:\n  - Hugging Face.*\n  - ModelScope"):
        open_set("org/none", config())


def test_the_second_url_of_an_entry_is_taken_when_the_first_fails(hubs: Standin, tmp_path: Path) -> None:
    entry = {"hf_hub_url": "org/gone", "ms_hub_url": "org/plain", "num_samples": 3}
    put(tmp_path / "dataset_info.json", {"mine": entry})
    assert len(questions("mine")) == 3
    progress = Counting()
    open_set(SetConfig(set="mine", streaming=True), config(), progress)


def test_a_hub_that_lists_impossible_files_is_refused(hubs: Standin) -> None:
    hubs.data["org/plain"]["../../escape.jsonl"] = b"{}"
    for hub in ("hf", "ms"):
        with pytest.raises(ServerError, match="impossible file"):
            open_set(f"{hub}:org/plain", config())
