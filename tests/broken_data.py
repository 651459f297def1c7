"""Broken data files as people have them, each with the one message it must end in.

A case makes its files in a folder. ``place`` is what the message must point at, ``words`` what it must say; ``rows`` says how
many rows are readable when the trouble is in a row and not in the file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOOD = {"instruction": "Name a colour.", "output": "Red."}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@dataclass(frozen=True)
class Case:
    """``files``: name -> content, the first one is the data set; or a function that makes it and returns its path.

    ``rows`` None = the file as a whole cannot be read; else the number of rows that can, beside exactly one bad row.
    """

    name: str
    files: dict[str, bytes] | Callable[[Path], Path]
    words: tuple[str, ...]
    rows: int | None = None
    place: str = ""
    settings: dict[str, Any] | None = None

    def make(self, folder: Path) -> Path:
        if callable(self.files):
            return self.files(folder)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder / next(iter(self.files))


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else dump(row)) + b"\n" for row in rows)


def parquet(folder: Path, table: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(table), folder / "set.parquet")
    return folder / "set.parquet"


def truncated_parquet(folder: Path) -> Path:
    path = parquet(folder, {"instruction": ["a"] * 50, "output": ["b"] * 50})
    path.write_bytes(path.read_bytes()[:-20])
    return path


def zipped(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def locked_zip() -> bytes:
    """A zip whose entry says that it is encrypted (bit 0 of its flags)."""
    content = bytearray(zipped(("set.jsonl", lines(GOOD))))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark) + at
        content[place : place + 2] = struct.pack("<H", struct.unpack("<H", content[place : place + 2])[0] | 1)
    return bytes(content)


def spoiled_zip() -> bytes:
    """A zip whose content is another than its checksum says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("set.jsonl", lines(GOOD))
    return buffer.getvalue().replace(b"Red.", b"Rot.")


def bomb() -> bytes:
    """A gzip file that is a thousand times larger inside: one row of 200 MB."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
        file.write(b'{"instruction": "')
        for _ in range(200):
            file.write(b"a" * 1_000_000)
        file.write(b'", "output": "b"}\n')
    return buffer.getvalue()


def link_outside(folder: Path) -> Path:
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.jsonl").write_bytes(lines(GOOD))
    (folder / "sets").mkdir()
    (folder / "sets" / "a.jsonl").symlink_to(folder / "outside" / "secret.jsonl")
    return folder / "sets"


def dangling_link(folder: Path) -> Path:
    (folder / "set.jsonl").symlink_to(folder / "gone.jsonl")
    return folder / "set.jsonl"


def mixed_folder(folder: Path) -> Path:
    (folder / "sets").mkdir()
    (folder / "sets" / "a.jsonl").write_bytes(lines(GOOD))
    (folder / "sets" / "b.csv").write_bytes(b"instruction,output\na,b\n")
    return folder / "sets"


def empty_folder(folder: Path) -> Path:
    (folder / "sets").mkdir()
    return folder / "sets"


def folder_without_data(folder: Path) -> Path:
    (folder / "sets").mkdir()
    (folder / "sets" / "README.md").write_text("nothing here")
    return folder / "sets"


def registered(entry: Any, content: Any = (GOOD,)) -> dict[str, bytes]:
    """A set called ``mine`` in a dataset_info.json beside its file."""
    return {"dataset_info.json": dump({"mine": entry}), "mine.json": dump(list(content))}


def alpaca(**changes: Any) -> dict[str, Any]:
    row = {**GOOD, **changes}
    return {key: value for key, value in row.items() if value != "-gone-"}


def talk(*turns: Any) -> dict[str, Any]:
    return {"messages": [{"role": t[0], "content": t[1]} if isinstance(t, tuple) else t for t in turns]}


def row(name: str, bad: Any, *words: str, good: Any = GOOD) -> Case:
    """One bad row between two good ones of a JSON Lines file."""
    return Case(name, {"set.jsonl": lines(good, bad, good)}, words, rows=2, place="set.jsonl:2")


FILES = [
    Case("truncated-json", {"set.json": dump([GOOD] * 5)[:-30]}, ("JSON",), place="set.json"),
    Case(
        "truncated-in-a-string", {"set.json": b'[{"instruction": "a", "output": "never en'}, ("JSON",), place="set.json"
    ),
    Case(
        "trailing-comma",
        {"set.json": b'[{"instruction": "a", "output": "b"},\n]'},
        ("JSON", "comma"),
        place="set.json:",
    ),
    Case(
        "missing-comma",
        {"set.json": b'[{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b"}]'},
        ("JSON", "comma"),
        place="set.json:2",
    ),
    Case(
        "single-quotes", {"set.json": b"[{'instruction': 'a', 'output': 'b'}]"}, ("JSON", "quote"), place="set.json:1"
    ),
    Case("python-none", {"set.json": b'[{"instruction": None, "output": "b"}]'}, ("JSON",), place="set.json:1"),
    Case("comment", {"set.json": b'// my data\n[{"instruction": "a", "output": "b"}]'}, ("JSON",), place="set.json:1"),
    Case("text-after-the-list", {"set.json": dump([GOOD]) + b"\n]"}, ("JSON",), place="set.json:2"),
    Case(
        "nested-quotes",
        {"set.jsonl": lines(GOOD, b'{"instruction": "say "hi"", "output": "hi"}')},
        ("JSON",),
        place="set.jsonl:2",
    ),
    Case(
        "one-bad-line",
        {"set.jsonl": lines(GOOD, b'{"instruction": "a", "output": ', GOOD)},
        ("JSON",),
        place="set.jsonl:2",
    ),
    Case(
        "two-objects-on-a-line", {"set.jsonl": dump(GOOD) + dump(GOOD) + b"\n"}, ("JSON", "line"), place="set.jsonl:1"
    ),
    Case(
        "pretty-printed-lines",
        {"set.jsonl": json.dumps(GOOD, indent=1).encode()},
        ("list of rows", "[ ]"),
        place="set.jsonl",
    ),
    Case(
        "gbk",
        {"set.json": json.dumps([{**GOOD, "output": "红色。"}], ensure_ascii=False).encode("gbk")},
        ("UTF-8", "iconv"),
        place="set.json:1",
    ),
    Case(
        "gbk-lines",
        {"set.jsonl": lines(GOOD) + json.dumps({**GOOD, "output": "红"}, ensure_ascii=False).encode("gbk")},
        ("UTF-8", "iconv"),
        place="set.jsonl:2",
    ),
    Case("latin-1-csv", {"set.csv": "instruction,output\ncafé,b\n".encode("latin-1")}, ("UTF-8",), place="set.csv:2"),
    Case("empty-json", {"set.json": b""}, ("empty",), place="set.json"),
    Case("empty-jsonl", {"set.jsonl": b"\n\n"}, ("empty",), place="set.jsonl"),
    Case("empty-list", {"set.json": b"[]"}, ("no row",), place="set.json"),
    Case("empty-csv", {"set.csv": b""}, ("empty",), place="set.csv"),
    Case("header-only-csv", {"set.csv": b"instruction,output\n"}, ("no row",), place="set.csv"),
    Case("empty-gzip", {"set.jsonl.gz": gzip.compress(b"")}, ("empty",), place="set.jsonl.gz"),
    Case("one-object", {"set.json": dump(GOOD)}, ("list",), place="set.json"),
    Case("a-number", {"set.json": b"42"}, ("list",), place="set.json"),
    Case("a-list-of-texts", {"set.json": b'["a", "b"]'}, ("object",), place="set.json"),
    Case("nested-too-deep", {"set.json": b"[" * 5000 + b"]" * 5000}, ("deep",), place="set.json"),
    Case("nul-bytes", {"set.jsonl": b"\x00" * 64}, ("NUL",), place="set.jsonl:1"),
    Case("nul-in-csv", {"set.csv": b"instruction,output\na,b\x00c\n"}, ("NUL",), place="set.csv:2"),
    Case("binary-as-json", {"set.json": bytes(range(256)) * 20}, ("UTF-8",), place="set.json:1"),
    Case("a-picture", {"set.json": b"\x89PNG\r\n\x1a\n" + bytes(100)}, (), place="set.json"),
    Case(
        "html-page",
        {"set.json": b"<!DOCTYPE html><html><body>404</body></html>"},
        ("web page", "raw"),
        place="set.json",
    ),
    Case(
        "git-lfs-pointer",
        {"set.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"},
        ("LFS",),
        place="set.parquet",
    ),
    Case(
        "git-lfs-pointer-jsonl",
        {"set.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"},
        ("LFS",),
        place="set.jsonl",
    ),
    Case(
        "huge-line",
        {"set.jsonl": b'{"instruction": "' + b"a" * 70_000_000 + b'", "output": "b"}\n'},
        ("MB",),
        place="set.jsonl:1",
    ),
    Case(
        "infinity",
        {"set.jsonl": lines(GOOD, b'{"instruction": "a", "output": "b", "score": Infinity}')},
        ("Infinity",),
        place="set.jsonl:2",
    ),
    Case("a-document", {"set.docx": b"PK\x03\x04"}, (".docx",), place="set.docx"),
    Case("excel", {"set.xlsx": b"PK\x03\x04"}, ("xlsx", "csv"), place="set.xlsx"),
    Case("pickle", {"set.pkl": b"\x80\x04N."}, (".pkl",), place="set.pkl"),
    Case("not-parquet", {"set.parquet": b"instruction,output\na,b\n"}, ("parquet",), place="set.parquet"),
    Case("truncated-parquet", truncated_parquet, ("parquet",), place="set.parquet"),
    Case(
        "parquet-with-other-columns",
        lambda folder: parquet(folder, {"a": ["x"], "b": ["y"]}),
        ("'a'", "'b'"),
        place="set.parquet",
    ),
    Case("not-arrow", {"set.arrow": b"nothing of the kind"}, ("arrow",), place="set.arrow"),
    Case("unknown-suffix", {"set.toml": b"a = 1"}, (".toml", ".jsonl"), place="set.toml"),
    Case(
        "truncated-gzip",
        {"set.jsonl.gz": gzip.compress(lines(*[{**GOOD, "n": i} for i in range(500)]))[:-200]},
        ("gz",),
        place="set.jsonl.gz",
    ),
    Case("damaged-bz2", {"set.jsonl.bz2": bz2.compress(lines(GOOD) * 50)[:-8]}, ("bz2",), place="set.jsonl.bz2"),
    Case("bomb", {"set.jsonl.gz": bomb()}, ("MB",), place="set.jsonl.gz"),
    Case("zip-with-nothing", {"set.zip": zipped(("README.txt.bak", b"x"))}, (), place="set.zip"),
    Case("zip-that-climbs", {"set.zip": zipped(("../../set.jsonl", lines(GOOD)))}, (), place="set.zip"),
    Case("zip-with-a-password", {"set.zip": locked_zip()}, ("password",), place="set.zip"),
    Case(
        "zip-in-a-zip", {"set.zip": zipped(("in.zip", zipped(("set.jsonl", lines(GOOD)))))}, ("zip",), place="set.zip"
    ),
    Case("zip-with-a-wrong-checksum", {"set.zip": spoiled_zip()}, ("damaged",), place="set.zip"),
    Case("not-a-zip", {"set.zip": b"PK\x03\x04 or so"}, ("zip",), place="set.zip"),
    Case("link-outside", link_outside, ("link",), place="a.jsonl"),
    Case("dangling-link", dangling_link, (), place="set.jsonl"),
    Case("mixed-folder", mixed_folder, (".csv", ".jsonl"), place="sets"),
    Case("empty-folder", empty_folder, ("no",), place="sets"),
    Case("folder-without-data", folder_without_data, ("no",), place="sets"),
    Case(
        "csv-without-a-header",
        {"set.csv": b"Name a colour.,Red.\nName a bird.,Owl.\n"},
        ("Name a colour.",),
        place="set.csv",
    ),
    Case("csv-with-a-short-row", {"set.csv": b"instruction,output\na,b\nc\n"}, ("2",), place="set.csv:3"),
    Case("csv-with-a-long-row", {"set.csv": b"instruction,output\na,b\nc,d,e\n"}, ("3",), place="set.csv:3"),
    Case("csv-with-an-open-quote", {"set.csv": b'instruction,output\na,b\n"c,d\ne,f\n'}, ("quote",), place="set.csv:3"),
    Case(
        "csv-with-a-column-twice",
        {"set.csv": b"instruction,output,output\na,b,c\n"},
        ("'output'", "twice"),
        place="set.csv",
    ),
    Case("pipes", {"set.csv": b"instruction|output\na|b\n"}, ("instruction|output",), place="set.csv"),
    Case(
        "unknown-keys",
        {"set.json": dump([{"frage": "a", "antwort": "b"}])},
        ("'frage'", "'antwort'", "columns"),
        place="set.json",
    ),
]

ROWS = [
    row("missing-column", {"instruction": "a"}, "'output'", "missing"),
    row("null-answer", alpaca(output=None), "'output'"),
    row("number-answer", alpaca(output=7), "'output'", "7"),
    row("list-answer", alpaca(output=["Red"]), "'output'", "list"),
    row("object-answer", alpaca(output={"a": 1}), "'output'"),
    row("true-as-answer", alpaca(output=True), "'output'"),
    row("empty-answer", alpaca(output=""), "empty"),
    row("blank-answer", alpaca(output=" \n\t"), "empty"),
    row("empty-question", alpaca(instruction="", input=" "), "empty"),
    row("text-history", alpaca(history="a"), "'history'"),
    row("odd-history", alpaca(history=[["a"]]), "'history'", "pair"),
    row("a-number-of-5000-digits", b'{"instruction": "a", "output": "b", "n": ' + b"9" * 5000 + b"}", "5,000 digits"),
    row("half-a-character-in-inner-json", {**TALK, "tools": '[{"name": "f\\ud800"}]'}, "half a character", good=TALK),
    row("a-key-twice-in-inner-json", {**TALK, "tools": '[{"name": "f", "name": "g"}]'}, "'name'", "twice", good=TALK),
    row("arguments-nested-too-deep", {**TALK, "tools": "[" * 600 + "]" * 600}, "nested", good=TALK),
    row("two-system-texts", {**talk(("system", "one"), ("user", "a"), ("assistant", "b")), "system": "two"}, "system", good=TALK),
    row("null-row", b"null", "object"),
    row("list-row", b"[1, 2]", "object"),
    row("duplicate-keys", b'{"instruction": "a", "output": "b", "output": "c"}', "'output'", "twice"),
    row("unknown-role", talk(("user", "a"), ("robot", "b")), "robot", good=TALK),
    row("no-role", talk({"content": "a"}, ("assistant", "b")), "turn 1", good=TALK),
    row("answer-first", talk(("assistant", "b"), ("user", "a")), "turn 1", good=TALK),
    row("two-questions-in-a-row", talk(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2", good=TALK),
    row("ends-with-a-question", talk(("user", "a"), ("assistant", "b"), ("user", "c")), "turn 3", good=TALK),
    row("no-answer", talk(("user", "a")), good=TALK),
    row("no-turns", {"messages": []}, good=TALK),
    row("system-in-the-middle", talk(("user", "a"), ("system", "s"), ("assistant", "b")), "system", good=TALK),
    row("turns-as-text", {"messages": "user: a"}, "'messages'", "list", good=TALK),
    row("null-content", talk(("user", None), ("assistant", "b")), "turn 1", good=TALK),
    row("number-content", talk(("user", "a"), ("assistant", 4)), "turn 2", "4", good=TALK),
    row("a-turn-that-is-text", {"messages": ["hi", "hello"]}, "turn 1", good=TALK),
    row("weight-of-two", talk(("user", "a"), {"role": "assistant", "content": "b", "weight": 2}), "weight", good=TALK),
    row("arguments-that-are-no-json", talk(("user", "a"), {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{oops"}}]}), "arguments", good=TALK),
    row("tools-that-are-no-json", {**TALK, "tools": "[{"}, "tools", good=TALK),
    row("open-think", talk(("user", "a"), ("assistant", "<think>hm")), "think", good=TALK),
    row("more-pictures-than-marks", {**talk(("user", "<image>a"), ("assistant", "b")), "images": ["1.png", "2.png"]},
        "image", "2", good=TALK),
]  # fmt: skip

REGISTRIES = [
    Case("registry-unknown-key", registered({"file_name": "mine.json", "colums": {}}), ("colums", "columns")),
    Case("registry-missing-file", registered({"file_name": "none.json"}), ("none.json",)),
    Case("registry-without-a-place", registered({"formatting": "alpaca"}), ("file_name",)),
    Case("registry-unknown-formatting", registered({"file_name": "mine.json", "formatting": "alpacca"}), ("alpaca",)),
    Case("registry-wrong-formatting", registered({"file_name": "mine.json", "formatting": "sharegpt"}), ("alpaca",)),
    Case(
        "registry-column-not-in-the-file",
        registered({"file_name": "mine.json", "columns": {"prompt": "question", "response": "output"}}),
        ("'question'", "'instruction'"),
    ),
    Case("registry-script", registered({"script_url": "make.py"}), ("script",)),
    Case(
        "registry-unknown-column-role",
        registered({"file_name": "mine.json", "columns": {"promt": "instruction"}}),
        ("promt", "prompt"),
    ),
    Case("registry-text-as-columns", registered({"file_name": "mine.json", "columns": "instruction"}), ("columns",)),
    Case("registry-samples-as-text", registered({"file_name": "mine.json", "num_samples": "ten"}), ("num_samples",)),
    Case("registry-is-a-list", {"dataset_info.json": b"[]", "mine.json": dump([GOOD])}, ("dataset_info.json",)),
    Case("registry-broken", {"dataset_info.json": b'{"mine": }', "mine.json": dump([GOOD])}, ("JSON",)),
    Case("registry-ranking-without-pairs", registered({"file_name": "mine.json", "ranking": True}), ("chosen",)),
]
