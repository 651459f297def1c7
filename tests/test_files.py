"""Files of every kind: their rows, the place of each, and one message for what is broken; memory stays bounded."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from data_files import LINES, ROWS, config, put, questions, zipped, zstd
from tunesmith.config.errors import DataError
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.files.base import Options
from tunesmith.data.load import open_set
from tunesmith.data.rows import read_rows

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


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_lines_that_end_in_cr_alone(tmp_path: Path, name: str) -> None:
    """As Excel for Mac and old Macs write them."""
    content = {"a.jsonl": '{"text": "x"}\r{"text": "y"}\r', "a.csv": "text\rx\ry\r", "a.txt": "x\ry\r"}[name]
    (tmp_path / name).write_bytes(content.encode())
    opened = open_set(str(tmp_path / name), DataConfig(train=("x",)))
    assert [row["text"] for _, row in opened.raw()] == ["x", "y"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_value_that_python_cannot_hold_is_a_bad_row(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    from pyarrow import feather, parquet

    text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\x00\0\0\0\x01\0\0\0\x02\0\0\0"), pa.py_buffer(b"a\xff"))
    day = pa.array([0, 2**31 - 2], pa.int32()).view(pa.date32())
    table = pa.table({"text": text, "day": day, "when": pa.array([1, 2], pa.timestamp("s", "Mars/Olympus"))}).drop(
        ["when"]
    )
    path = tmp_path / f"a.{kind}"
    parquet.write_table(table, path) if kind == "parquet" else feather.write_feather(table, str(path), "uncompressed")
    (_, good), (_, bad) = open_set(str(path), DataConfig(train=("x",))).raw()
    assert good["text"] == "a" and isinstance(bad, DataError) and "row 2" in bad.message and "'text'" in bad.message
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, path) if kind == "parquet" else feather.write_feather(twice, str(path), "uncompressed")
    with pytest.raises(DataError, match="'text' stands twice"):
        open_set(str(path), DataConfig(train=("x",)))


def test_a_file_written_again_at_once_has_another_fingerprint(tmp_path: Path) -> None:
    """Same size, same time of change: as `cp -p`, rsync and quick editors leave it."""
    path = tmp_path / "a.txt"
    prints = set()
    for text in "one", "two":
        path.write_text(text)
        os.utime(path, ns=(0, 0))
        prints.add(open_set(str(path), DataConfig(train=("x",))).fingerprint())
    assert len(prints) == 2


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text("{")
    with pytest.raises(DataError) as error:
        open_set(str(path), DataConfig(train=("x",)))
    assert "\x1b" not in str(error.value) and "\\x1b[31m" in error.value.message


def test_texts_that_come_a_thousand_times_are_held_once(tmp_path: Path) -> None:
    """A Parquet file of some kilobytes whose rows all point at one long text must not fill the memory, nor may a row too long."""
    text = "x" * (8 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 400), pa.array([text]))
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    tracemalloc.start()
    count = sum(len(row["text"]) == len(text) for _, row in read_rows(tmp_path / "a.parquet"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400 and peak < 300 << 20
    long = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["y" * (65 << 20), "z"]))
    parquet.write_table(pa.table({"text": long}), tmp_path / "b.parquet", compression="zstd")
    rows = [row for _, row in read_rows(tmp_path / "b.parquet")]
    assert [isinstance(row, DataError) for row in rows] == [True, False, True] and "64 MB" in rows[0].message
