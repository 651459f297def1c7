"""Encoded rows on disk: the same back, once for many runs, made again when damaged; what failed is kept too."""

from __future__ import annotations

import copy
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.config.errors import DataError, RenderError, TrainingError, UserError
from tunesmith.config.progress import Silent
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render import cache
from tunesmith.render.conversation import Renderer
from tunesmith.render.identity import identity_of_renderer
from tunesmith.render.selection import Selection
from tunesmith.render.store import MANIFEST, DamagedStoreError, Layout, Store, StoreWriter
from tunesmith.stages import sft
from tunesmith.stages.base import lengths_of
from tunesmith.verbs.rows import Rows, encode_rows, pin_rows


@dataclass(frozen=True, eq=False)
class Pair:
    """An item as a stage of pairs would have it: two arrays of different lengths."""

    chosen: np.ndarray
    rejected: np.ndarray
    origin: str
    shared: int = 0

    @property
    def length(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def weight(self) -> float:
        return 1.0


PAIRS = Layout(Pair, {"chosen": "uint32", "rejected": "uint32"}, ("shared",))


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pairs(*shapes: tuple[list[int], list[int]]) -> list[Pair]:
    return [Pair(np.array(a, np.uint32), np.array(b, np.uint32), f"行:{i}", i) for i, (a, b) in enumerate(shapes)]


def plain(item: Pair) -> tuple[Any, ...]:
    return item.chosen.tolist(), item.rejected.tolist(), item.origin, item.shared


def write(folder: Path, *groups: list[Pair]) -> Store:
    folder.mkdir(exist_ok=True)
    writer = StoreWriter(folder, PAIRS)
    for group in groups:
        writer.add(group)
    writer.finish()
    return Store(folder, PAIRS)


ids = st.lists(st.integers(0, 2**32 - 1), max_size=5)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.tuples(ids, ids), max_size=8), cut=st.integers(0, 8))
def test_items_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: Any, cut: int) -> None:
    items = pairs(*rows)
    store = write(tmp_path_factory.mktemp("store"), items[:cut], items[cut:])
    assert [plain(item) for item in store] == [plain(item) for item in items]
    assert lengths_of(store) == [item.length for item in items] and store.weights.tolist() == [1.0] * len(items)
    assert [plain(item) for item in store[-2:]] == [plain(item) for item in items[-2:]]


def test_the_digest_is_of_the_items_and_not_of_where_they_came_from(tmp_path: Path) -> None:
    items = pairs(([1, 2], [3]), ([4], []))
    moved = [replace(item, origin="elsewhere") for item in items]
    changed = [items[0], replace(items[1], chosen=np.array([5], np.uint32))]
    same, other, third = (write(tmp_path / str(n), rows).digest for n, rows in enumerate((items, moved, changed)))
    assert same == other != third


@pytest.mark.parametrize("name", ["chosen", "rejected.bounds", "origin", "length", MANIFEST])
@pytest.mark.parametrize("how", ["cut", "changed", "removed"])
def test_damage_is_noticed(tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "store"
    write(folder, pairs(([1, 2], [3]), ([4], [5])))
    content = (folder / name).read_bytes()
    if how == "removed":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-1] if how == "cut" else b"\xff" + content[1:])
    with pytest.raises(DamagedStoreError):
        Store(folder, PAIRS)


def making(items: list[Pair], calls: list[int]) -> Any:
    def make(writer: StoreWriter) -> None:
        calls.append(1)
        writer.add(items)
        writer.fail(7, RenderError("row 7 is bad", hint="mend it"))

    return make


def test_made_once_and_kept_with_what_failed() -> None:
    calls: list[int] = []
    for warm in (False, True, True):
        store, was_there = cache.cached({"data": "x"}, PAIRS, making(pairs(([1], [2])), calls))
        assert was_there == warm and len(store) == 1
        failure = store.failures[0]
        assert failure.row == 7 and isinstance(failure.error, RenderError)
        assert (failure.error.message, failure.error.hint) == ("row 7 is bad", "mend it")
    cache.cached({"data": "y"}, PAIRS, making(pairs(([1], [2])), calls))
    assert len(calls) == 2


def test_a_damaged_one_is_made_again_with_a_note() -> None:
    calls: list[int] = []
    store, _ = cache.cached({}, PAIRS, making(pairs(([1], [2])), calls))
    (store.folder / "chosen").write_bytes(b"")
    said = Said()
    again, warm = cache.cached({}, PAIRS, making(pairs(([1], [2])), calls), said)
    assert not warm and len(calls) == 2 and plain(again[0])[:2] == ([1], [2])
    assert any("is damaged (chosen has 0 bytes of 4)" in line for line in said.lines)


def test_what_stops_half_way_leaves_nothing() -> None:
    def interrupted(writer: StoreWriter) -> None:
        writer.add(pairs(([1], [2])))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached({}, PAIRS, interrupted)
    assert not cache.entries() and [p.suffix for p in cache.cache_folder().iterdir()] in ([".lock"], [])
    _, warm = cache.cached({}, PAIRS, making(pairs(([1], [2])), []))
    assert not warm


def test_two_runs_at_once_make_it_once() -> None:
    calls: list[int] = []
    said = Said()

    def slowly(writer: StoreWriter) -> None:
        calls.append(1)
        time.sleep(0.3)
        writer.add(pairs(([1], [2])))

    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(cache.cached({}, PAIRS, slowly, said)[0])) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and [plain(s[0])[:2] for s in stores] == [([1], [2])] * 2
    assert said.lines == ["another run is encoding the same rows; waiting for it"]


def test_the_longest_unused_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [cache.cached({"n": n}, PAIRS, making(pairs(([n] * 50, [2])), []))[0] for n in range(3)]
    for age, store in zip((9000, 8000, 10), stores):
        os.utime(store.folder / MANIFEST, (time.time() - age,) * 2)
    size = sum(e.bytes for e in cache.entries())
    assert [e.path for e in cache.prune(limit=size - 1)] == [stores[0].folder]
    assert [e.path for e in cache.prune(limit=0)] == [stores[1].folder]  # the third was used a moment ago
    monkeypatch.setenv("TUNESMITH_CACHE_GB", "lots")
    with pytest.raises(DataError, match="TUNESMITH_CACHE_GB is 'lots'"):
        cache.prune()


def test_a_folder_that_cannot_be_written_is_said(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "cache").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be kept in"):
        cache.cached({}, PAIRS, making([], []))


@pytest.fixture(scope="module")
def stage(smol: Path) -> sft.Sft:
    return sft.build(sft.Config(), Renderer(open_tokenizer(smol), max_length=64))


def chats(n: int, bad: int | None = None) -> Iterator[Chat]:
    for i in range(n):
        words = "word " * 100 if i == bad else f"answer {i}"
        yield Chat((Message("user", f"q{i}"), Message("assistant", words)), origin=f"a:{i}")


def test_rows_out_of_the_cache_are_those_encoded(stage: sft.Sft) -> None:
    cold = encode_rows(stage, chats(20), {"data": "20"}, Silent(), count=20)
    warm = encode_rows(stage, iter(()), {"data": "20"}, Silent())  # the examples are not read
    expected = [stage.encode(chat) for chat in chats(20)]
    for rows in (cold, warm):
        assert [(r.ids.tolist(), r.mask.tolist(), r.origin) for r in rows] == [
            (r.ids.tolist(), r.mask.tolist(), r.origin) for r in expected
        ]
    for packed in (True, False):
        ours, theirs = (stage.collate(list(rows), packed=packed) for rows in (warm, expected))
        assert ours.ids_BT.equal(theirs.ids_BT) and ours.labels_BT.equal(theirs.labels_BT)


def test_a_bad_row_stops_or_is_named(stage: sft.Sft) -> None:
    with pytest.raises(RenderError, match="a:3: the conversation has"):
        encode_rows(stage, chats(5, bad=3), {"data": "bad"}, Silent())
    assert not cache.entries()
    silent_answer = Chat((Message("user", "q"), Message("assistant", "a", train=False)), origin="a:9")
    for _ in "cold", "warm":
        rows = encode_rows(stage, [*chats(5, bad=3), silent_answer], {"data": "bad"}, Silent(), skip_bad=True)
        assert len(rows) == 4 and [f.row for f in rows.failures] == [3, 5]
        assert "a:3: the conversation has" in rows.failures[0].error.message
        assert rows.failures[1].error.message == "a:9: no token of it is learned"


def test_what_changes_the_rows_changes_the_key(stage: sft.Sft) -> None:
    tokenizer = stage.batches.renderer.tokenizer
    own = Renderer(tokenizer, max_length=64)
    thinking = str(own.template) + "{% if enable_thinking %}{% endif %}"
    with_tools, splitting = copy.copy(tokenizer), copy.deepcopy(tokenizer)
    with_tools.chat_template = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template + " "}
    splitting.split_special_tokens = True
    others = [
        Renderer(tokenizer, max_length=65),
        Renderer(tokenizer, max_length=64, learn="last_answer"),
        Renderer(tokenizer, max_length=64, template=thinking),
        Renderer(tokenizer, max_length=64, template=thinking, template_args={"enable_thinking": False}),
        Renderer(tokenizer, max_length=64, template=str(own.template) + " "),
        Renderer(tokenizer, max_length=64, ignore_tools=True),
        Renderer(with_tools, max_length=64),
        Renderer(splitting, max_length=64),
    ]
    keys = [json.dumps(identity_of_renderer(r), sort_keys=True) for r in (own, *others)]
    assert len(set(keys)) == len(keys)
    assert identity_of_renderer(Renderer(tokenizer, max_length=64)) == identity_of_renderer(own)


def test_pinned_rows_notice_other_rows(stage: sft.Sft, tmp_path: Path) -> None:
    """Runs made before there were stores hashed tuples; they resume too."""
    run: Any = SimpleNamespace(path=tmp_path, id="r", checkpoint_steps=lambda: [1])
    stores = [encode_rows(stage, chats(n), {"n": n}, Silent()) for n in (4, 2)]
    rows = Rows(*(Selection([store], [(0, i) for i in range(len(store))]) for store in stores))
    pin_rows(run, rows)
    pin_rows(run, rows)
    pinned = json.loads((tmp_path / "rows.json").read_text())
    assert pinned["probes"][0] == rows.eval[0].ids.tolist()
    with pytest.raises(TrainingError, match="is not what it began with"):
        pin_rows(run, Rows(rows.eval, rows.train))
    import hashlib

    old = hashlib.sha256()
    for item in [*rows.train, *rows.eval]:
        old.update(repr((tuple(item.ids.tolist()), tuple(int(m) for m in item.mask))).encode())
    (tmp_path / "rows.json").write_text(json.dumps({"sha256": old.hexdigest(), "train": 4, "eval": 2}))
    pin_rows(run, rows)


@pytest.mark.parametrize(
    ("systems", "kept"), [(("a", "a"), "a"), (("a", "b"), None), (("a", ""), None), (("", ""), None)]
)
def test_the_system_prompt_of_all_rows_is_pinned(
    stage: sft.Sft, tmp_path: Path, systems: tuple[str, str], kept: str | None
) -> None:
    """Over one set and over several, encoded now or out of the cache; only of sets that something is learned from."""
    run: Any = SimpleNamespace(path=tmp_path, id="r", checkpoint_steps=lambda: [])

    def row(i: int, system: str) -> Chat:
        own = (Message("system", system),) if system.strip() else ()
        return Chat((*own, Message("user", f"q{i}"), Message("assistant", f"a{i}")))

    def pinned(train: Selection) -> Any:
        pin_rows(run, Rows(train, Selection([], [])))
        return json.loads((tmp_path / "rows.json").read_text())["system"]

    key = {"systems": list(systems), "at": str(tmp_path)}
    for _ in range(2):
        together = encode_rows(stage, (row(i, system) for i, system in enumerate(systems)), key, Silent())
        assert pinned(Selection([together], [(0, 0), (0, 1)])) == kept
    apart = [encode_rows(stage, [row(i, s)], {**key, "i": i}, Silent()) for i, s in enumerate(systems)]
    assert pinned(Selection(apart, [(0, 0), (1, 0)])) == kept
    assert pinned(Selection(apart, [(1, 0)])) == (systems[1].strip() or None)


def test_an_error_keeps_its_class_or_becomes_a_plain_one(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, PAIRS)
    writer.fail(0, DataError("a"))
    writer.fail(1, type("Own", (UserError,), {})("b"))
    writer.finish()
    assert [type(f.error) for f in Store(tmp_path, PAIRS).failures] == [DataError, UserError]


def test_the_rows_of_a_run_are_those_that_everybody_reads(stage: sft.Sft, tmp_path: Path) -> None:
    """Weights, mixing, rows held out, equal rows and rows that cannot be read or encoded: ``encode`` and ``load`` choose the
    same rows in the same order, whatever comes from the cache."""
    from tunesmith.data.load import load
    from tunesmith.verbs.read_data import check_data
    from tunesmith.verbs.rows import encode
    from tunesmith.verbs.run_config import TrainRun

    renderer = stage.batches.renderer
    lines = [{"instruction": f"q{i % 17}", "output": f"a{i % 17}"} for i in range(40)]
    bad, long = {"instruction": "q"}, {"instruction": "q", "output": "word " * 100}
    for name, rows in (("a", [*lines, bad]), ("b", [long, *lines[:9]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [{"set": str(tmp_path / "a.jsonl"), "weight": 1.5}, str(tmp_path / "b.jsonl")]
    mixed = {"train": sets, "mix": "interleave", "stop": "all_exhausted", "eval_share": 0.2, "skip_bad": True}
    own = {"train": sets[1:], "eval": [str(tmp_path / "a.jsonl")], "skip_bad": True}
    for data in (mixed, own):
        config = TrainRun.model_validate({"model": "demo", "data": data})
        split = load(config.data, config.train.seed)
        expected = [[e.origin for e in part if len(e.answer()) < 100] for part in (split.train, split.eval)]  # type: ignore[union-attr]
        for _ in "cold", "warm":
            check_data(config, "chat", Silent())
            rows = encode(config, stage, "chat", renderer, Silent())
            assert [[item.origin for item in part] for part in (rows.train, rows.eval)] == expected
            assert len(rows.failures) == 2 and rows.train.lengths.tolist() == [item.length for item in rows.train]
    strict = TrainRun.model_validate({"model": "demo", "data": {"train": sets}})
    with pytest.raises(DataError, match="1 of 41 rows cannot be used"):
        check_data(strict, "chat", Silent())
    with pytest.raises(DataError, match="learns from preference examples"):
        check_data(TrainRun.model_validate({"model": "demo", "data": sets[1:]}), "preference", Silent())


def test_a_strict_run_does_not_take_the_store_of_one_that_skips(stage: sft.Sft) -> None:
    loose = encode_rows(stage, chats(5, bad=3), {"data": "same"}, Silent(), skip_bad=True)
    assert len(loose) == 4
    with pytest.raises(RenderError):
        encode_rows(stage, chats(5, bad=3), {"data": "same"}, Silent())


def test_all_rows_bad_is_an_error_however_much_is_skipped(stage: sft.Sft) -> None:
    with pytest.raises(DataError, match="first"):
        encode_rows(stage, iter([DataError("first"), DataError("second")]), {"data": "bad"}, Silent(), skip_bad=True)


def test_a_selection_knows_its_order(stage: sft.Sft) -> None:
    store = encode_rows(stage, chats(4), {"data": "4"}, Silent())
    one, other = (Selection([store], [(0, i) for i in order]) for order in ((0, 1, 2), (2, 1, 0)))
    assert one.digest != other.digest
    assert [r.origin for r in other] == ["a:2", "a:1", "a:0"] and other.lengths.tolist() == [r.length for r in other]
    assert len(Selection([store], [])) == 0


def test_a_manifest_with_another_number_of_rows_is_damage(stage: sft.Sft) -> None:
    store = encode_rows(stage, chats(4), {"data": "4"}, Silent())
    manifest = store.folder / "manifest.json"
    for text in (manifest.read_text().replace('"rows": 4', '"rows": 1000'), "[" * 100_000):
        manifest.write_text(text)
        with pytest.raises(DamagedStoreError):
            Store(store.folder, store.layout)


def test_two_settings_of_a_stage_do_not_share_a_store(stage: sft.Sft, tmp_path: Path) -> None:
    """A stage decides what its items are: each setting of it has its own."""
    from tunesmith.verbs.rows import encode
    from tunesmith.verbs.run_config import TrainRun

    class Choosy(sft.Config):
        skew: int = 0

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"q{i}", "output": f"a{i}"}) + "\n" for i in range(5)))
    config = TrainRun.model_validate({"model": "demo", "data": {"train": [str(path)]}})
    for skew, stores in ((0, 1), (0, 1), (1, 2), (0, 2)):
        chosen = config.model_copy(update={"stage": Choosy(skew=skew)})
        encode(chosen, stage, "chat", stage.batches.renderer, Silent())
        assert len(cache.entries()) == stores


def test_a_set_of_bad_rows_alone_is_refused_before_the_run_each_time(tmp_path: Path) -> None:
    from tunesmith.verbs.read_data import check_data
    from tunesmith.verbs.run_config import TrainRun

    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": ""}\n' * 3)
    config = TrainRun.model_validate({"model": "demo", "data": {"train": [str(path)], "skip_bad": True}})
    for _ in "read", "counted before":
        with pytest.raises(DataError, match="3 of 3 rows cannot be used"):
            check_data(config, "chat", Silent())


def test_the_store_just_made_stays_however_small_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE_GB", "0")
    monkeypatch.setattr(cache, "FRESH_S", -1.0)
    for n in range(2):
        store, _ = cache.cached({"n": n}, PAIRS, making(pairs(([n], [2])), []))
        assert [entry.path for entry in cache.entries()] == [store.folder]


def test_another_version_of_the_code_is_another_key(
    stage: sft.Sft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What an old version read and rendered must not come out of the cache of a new one."""
    from tunesmith.config import code
    from tunesmith.data.config import DataConfig
    from tunesmith.data.load import open_set

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    renderer = stage.batches.renderer

    def keys() -> tuple[str, str]:
        code.code_of.cache_clear()
        fingerprint = open_set(str(path), DataConfig(train=("x",))).fingerprint()
        return json.dumps(identity_of_renderer(renderer), sort_keys=True), fingerprint

    before = keys()
    assert keys() == before
    read = Path.read_bytes

    def changed(self: Path) -> bytes:
        return read(self) + (b"# mended" if self.name == "columns.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    after = keys()
    monkeypatch.undo()
    code.code_of.cache_clear()
    assert after[0] != before[0] and after[1] != before[1]
