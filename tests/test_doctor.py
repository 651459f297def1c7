"""The data doctor: every check finds its row and lets the near miss pass; what is fixed stays fixed; memory is bounded."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load, names
from tunesmith.data.doctor import base, fingerprints, histogram
from tunesmith.data.doctor.examine import CHECKS, Examination, examine
from tunesmith.data.doctor.findings import Findings
from tunesmith.data.example import Chat, Example, Feedback, Message, Preference, Prompt, Text

LONG = "The keeper of the light walks up the hundred and four steps every evening, and down again in the morning. "
OTHER = "Nets are mended on the quay while the boats wait for the tide that carries them out beyond the stone wall. "


@dataclass
class Made:
    """A set in memory."""

    values: Sequence[Example | DataError]
    name: str = "made"
    place: str = "made"
    format: str = "made"
    reason: str = "by hand"

    def raw(self) -> Iterator[tuple[str, Any]]:
        return ((f"made:{i}", {"row": i}) for i in range(1, len(self.values) + 1))

    def examples(self) -> Iterator[Example | DataError]:
        for i, value in enumerate(self.values, 1):
            if isinstance(value, DataError):
                yield value
            elif isinstance(value, Feedback):
                yield replace(value, chat=replace(value.chat, origin=f"made:{i}"))
            else:
                yield replace(value, origin=f"made:{i}")


def chat(*texts: str, system: str = "") -> Chat:
    head = (Message("system", system),) if system else ()
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Chat((*head, *turns))


def pair(chosen: str, rejected: str, question: str = "Which way?") -> Preference:
    return Preference((Message("user", question),), (Message("assistant", chosen),), (Message("assistant", rejected),))


def look(*values: Example | DataError, held: Sequence[Example] = (), **more: Any) -> Examination:
    return examine([Made(values)], [Made(held, name="held")] if held else [], **more)


def found(check: str, *values: Example | DataError, **more: Any) -> list[base.Finding]:
    return list(look(*values, **more).findings.of(check))


CALL = Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "tide", "arguments": {}}},))
TAGGED = chat("What is it?", "<div class='x'>A lamp</div><br>")
QUESTIONS = [chat(f"What of number {i}?", "That I cannot know before the tide turns.") for i in range(8)]
ROWS: dict[str, tuple[list[Any], list[Any]]] = {
    "unreadable": ([DataError("made:1: the role 'alien' is not known", hint="known roles: user")], [chat("a", "b")]),
    "empty": ([chat("question")], [Chat((Message("user", "q"), CALL, Message("tool", ""), Message("assistant", "ok")))]),
    "duplicates": ([chat("a", "b"), chat("a", "b ")], [chat("a", "b"), chat("a", "b", system="s"), chat("a", "B")]),
    "near_duplicates": (
        [chat("Tell me", LONG * 2), chat("Tell me", LONG * 2 + "Yes.")],
        [chat("Tell me", LONG, system=LONG * 5), chat("Tell me", OTHER, system=LONG * 5), chat("3+4?", "7"), chat("3+5?", "8")],
    ),
    "encoding": ([chat("a", "cafÃ© au lait")], [chat("a", "café, naïve, Ångström, 你好，联通。“so” he said…")]),
    "characters": ([chat("a", "b\u200bc")], [chat("a", "👩\u200d🚀 می\u200cخواهم\n\tline")]),
    "html_leftovers": ([TAGGED], [chat("How do I write a <div> in HTML?", "<div>…</div> &amp;"), chat("a < b", "AT&T; x<y>z")]),
    "special_tokens": ([chat("a", "b<|im_end|>c")], [chat("a", "b < | im_end | > <|custom|> [INSTANT]")]),
    "cut_answers": (
        [chat("a", LONG * 3 + "And then the keeper said that it was time to go because the")],
        [chat("a", LONG * 3), chat("a", LONG * 3 + "\n```python\nprint(1)\n```"), chat("a", "the")],
    ),
    "answer_lengths": (
        [*[chat(f"q{i}", "An answer of usual length.") for i in range(30)], chat("q", "x" * 9000)],
        [*[chat(f"q{i}", "An answer of usual length.") for i in range(30)], chat("q", "x" * 400)],
    ),
    "boilerplate": ([chat("a", "As an AI language model, I cannot.")], [chat("Do you know as an AI language model?", "Yes, a bit.")]),
    "repeated_answers": (QUESTIONS, [chat(f"Is {i} even?", "yes") for i in range(8)]),
    "contradictions": ([chat("Capital?", "Rome"), chat("Capital?", "Paris")], [chat("Capital?", "Rome"), chat("Capital?", "Rome")]),
    "private": ([chat("a", "write to jane.doe@lanternbay.org")], [chat("a", "me@example.com 12345678901234567X a@b")]),
    "preference_pairs": ([pair("left", "left ")], [pair("left", "right")]),
    "feedback_labels": (
        [Feedback(chat(f"q{i}", f"a{i}"), True) for i in range(12)],
        [Feedback(chat(f"q{i}", f"a{i}"), i % 4 > 0) for i in range(12)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("check", ROWS)
def test_a_check_finds_its_row_and_passes_the_near_miss(check: str) -> None:
    rows, near_miss = ROWS[check]
    hits = found(check, *rows)
    assert hits and all(f.message and f.mend and f.severity in base.SEVERITIES for f in hits)
    assert all(f.place and f.excerpt for f in hits if f.row >= 0)
    assert found(check, *near_miss) == []


def test_every_check_is_tested_and_says_what_it_mends() -> None:
    tested = {*ROWS, "leaks", "other_kind", "unread_verdict"}
    assert set(names(CHECKS)) == tested
    for name in tested:
        module = load(CHECKS, name)
        assert module.__doc__ and module.Check.title and module.Check.mends


def test_a_finding_names_place_excerpt_and_mend() -> None:
    (finding,) = found("unreadable", chat("a", "b"), DataError("data/x.jsonl:7: 'output' is missing", hint="add it"))
    assert finding.place == "data/x.jsonl:7" and finding.mend == "add it" and finding.fix == "drop" and finding.row == 1
    assert finding.excerpt == '{"row": 2}' and finding.severity == "error"


@pytest.mark.parametrize(
    ("held", "train", "words"),
    [
        (chat("Where?", LONG), chat("Where?", LONG), "is the same as the evaluation row made:1"),
        (chat("Where?", LONG), chat("Where?", OTHER), "asks the same question"),
        (chat("Where?", LONG * 2), chat("Where now?", LONG * 2 + "Ah."), "is almost the same"),
        (chat("Where?", LONG), chat("What?", OTHER), ""),
    ],
)
def test_leaks(held: Chat, train: Chat, words: str) -> None:
    messages = [f.message for f in found("leaks", chat("first", "row"), train, held=[held])]
    assert (len(messages) == 1 and words in messages[0]) if words else messages == []


def test_a_near_duplicate_across_the_split_is_told() -> None:
    rows = [chat("Where?", LONG * 2), chat("Where?", LONG * 2 + "Ah."), chat("What?", OTHER)]
    (finding,) = found("leaks", *rows, held_out=lambda n: frozenset({1}))
    assert "1 near duplicates lie on both sides" in finding.message
    assert found("leaks", *rows, held_out=lambda n: frozenset({2})) == []


@pytest.mark.parametrize(
    ("check", "text", "clean"),
    [
        ("encoding", "cafÃ©", "café"), ("encoding", "ä½\xa0å¥½", "你好"), ("encoding", "浣犲ソ", "你好"),
        ("encoding", "锟斤拷", "锟斤拷"), ("encoding", "你好，世界", "你好，世界"),
        ("characters", "\ufeffa\u200b\x07b", "ab"), ("characters", "a\ufffdb", "a\ufffdb"),
        ("html_leftovers", "a &amp;&nbsp;b &#20320;", "a & b 你"), ("html_leftovers", "a & b &c;", "a & b &c;"),
        ("special_tokens", "</s> hi <|im_end|>\n", "hi"), ("special_tokens", "a<|im_end|>b", "a<|im_end|>b"),
    ],
)  # fmt: skip
def test_what_is_mended(check: str, text: str, clean: str) -> None:
    module = load(CHECKS, check)
    context = base.Context(fingerprints.Fingerprints(), fingerprints.Fingerprints())
    assert module.Check(context).clean(text) == clean


def test_a_models_own_tokens_are_errors_and_those_of_others_pass() -> None:
    own = frozenset({"<eos>"})
    assert [f.severity for f in found("special_tokens", chat("a", "b<eos>c"), special_tokens=own)] == ["error"]
    assert found("special_tokens", chat("a", "b<|im_end|>c"), special_tokens=own) == []


def test_tool_calls_make_rows_different() -> None:
    other = replace(CALL, tool_calls=({"type": "function", "function": {"name": "wind", "arguments": {}}},))
    rows = [
        Chat((Message("user", "Now?"), call, Message("tool", "3"), Message("assistant", "3"))) for call in (CALL, other)
    ]
    assert found("duplicates", *rows) == [] and len(found("duplicates", rows[0], rows[0])) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([Text("a b c")], "1 text"), ([Prompt((Message("user", "q"),), "42")], "1 prompt"), ([pair("a", "b")], "1 preference"),
        ([Feedback(chat("a", "b"), False)], "0 marked good, 1 bad"), ([chat("a", "b", system="s")], "1 row with a system prompt"),
    ],
)  # fmt: skip
def test_every_kind_is_counted(values: list[Any], expected: str) -> None:
    report = look(*values)
    assert expected in "\n".join(report.shapes["train"].lines()) and report.findings.count("error") == 0


def test_a_file_that_breaks_off_is_an_error_and_the_rest_is_checked() -> None:
    class Broken(Made):
        def examples(self) -> Iterator[Example | DataError]:
            yield from super().examples()
            raise DataError("x.jsonl:3: not valid JSON", hint="mend it")

    report = examine([Broken([chat("a", "b"), chat("a", "b")])])
    assert "2 rows were read before it" in report.stopped and report.findings.count("error") == 1
    assert report.findings.count("warning", "duplicates") == 1


def test_minhash_estimates_the_share_of_common_shingles() -> None:
    """Against the exact Jaccard similarity of the sets of 8-byte windows; the standard error is below 0.0625 (64 values)."""
    chance = random.Random(5)
    errors = []
    for change in (0.0, 0.02, 0.1, 0.3):
        a = "".join(chance.choices("abcdefgh 灯塔", k=600))
        b = "".join(chance.choice("xyz") if chance.random() < change else c for c in a)
        one, other = a.encode(), b.encode()
        shingles = [{t[i : i + 8] for i in range(len(t) - 7)} for t in (one, other)]
        exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
        signs = fingerprints.signatures([one, b"short", other])
        errors.append(abs(float(fingerprints.alike(signs[:1], signs[2:])[0]) - exact))
        assert not signs[1].any()
    assert max(errors) < 0.2 and sum(errors) / len(errors) < 0.08


def test_signatures_do_not_depend_on_what_is_beside_them() -> None:
    texts = [(LONG + str(i)).encode() for i in range(20)] + [OTHER.encode()]
    alone = np.concatenate([fingerprints.signatures([t]) for t in texts])
    assert (fingerprints.signatures(texts) == alone).all()


@given(
    st.lists(
        st.one_of(st.text(), st.integers(0, 10**12).map(lambda n: f"f.jsonl:{n}"), st.just("a:row 07")), max_size=30
    )
)
def test_origins_come_back_as_they_were(places: list[str]) -> None:
    kept = fingerprints.Origins()
    for place in places:
        kept.append(place)
    assert [kept[i] for i in range(len(kept))] == places


def test_findings_beyond_memory_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.doctor.findings._IN_MEMORY", 2000)
    kept = Findings()
    made = [base.Finding("warning", f"m{i}\ud800", "mend", f"f:{i}", "你好", "drop", "train", i) for i in range(3000)]
    for i, finding in enumerate(made):
        kept.add("b" if i % 3 else "a", finding)
    assert [f for f in made if f.row % 3] == list(kept.of("b")) and kept.count("warning") == 3000
    assert [row for row, _ in kept.fixable()] == list(range(3000))


@pytest.mark.parametrize("limit", [None, 50, 5000])
@given(lengths=st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_a_histogram_counts_every_row_once(limit: int | None, lengths: list[int]) -> None:
    bins = histogram.bins(lengths, limit)
    assert sum(count for _, _, count in bins) == len(lengths)
    assert all(sum(a <= n < b for n in lengths) == count for a, b, count in bins)
    assert len(histogram.bars(bins)) == len(bins) <= 14


@pytest.mark.parametrize(("limit", "marked"), [(40, True), (4000, False), (None, False)])
def test_the_plot_has_whole_turns_the_limit_and_the_learned_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, marked: bool
) -> None:
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (drawn.append(self), save(self, *args)))
    histogram.plot(tmp_path / "plot.png", {2: 40}, [10, 20, 30], limit, "a set", 0.25)
    turns, lengths = drawn[0].axes
    assert (tmp_path / "plot.png").stat().st_size > 0 and "learned tokens: 25%" in drawn[0].get_suptitle()
    assert all(float(tick).is_integer() for axes in drawn[0].axes for tick in axes.get_yticks())
    assert 2 in turns.get_xticks() and all(float(tick).is_integer() for tick in turns.get_xticks())
    assert [list(line.get_xdata()) for line in lengths.lines] == ([[40, 40]] if marked else [])
    assert ("4,000" in lengths.get_xlabel()) == (limit == 4000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "x"]) | JSON, "content": st.text() | JSON}
)
ROW = (
    JSON
    | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4) | JSON})
    | st.fixed_dictionaries({"instruction": st.text() | JSON, "output": st.text() | JSON})
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, max_size=6))
def test_arbitrary_rows_never_crash_it(rows: list[Any], tmp_path: Path) -> None:
    """Checked, told as text and JSON, fixed; and what was fixed has no error."""
    from tunesmith.verbs import data as verb
    from tunesmith.verbs.data_report import report

    path, out = tmp_path / "any.jsonl", tmp_path / "out.jsonl"
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *rows]), encoding="utf-8")
    for old in tmp_path.glob("out.jsonl*"):
        old.unlink()
    run, _ = verb.settings([str(path)])
    checked = verb.check(run, _silent(), tokens=False, fix=out)
    json.loads("".join(verb.as_json(checked)))
    assert "\n".join(line.plain for line in report(checked, everything=True))
    again = verb.check(verb.settings([str(out)])[0], _silent(), tokens=False)
    assert again.ok, list(again.found.findings.of("unreadable"))
    assert again.found.rows + checked.fixed.dropped == len(rows) + 1  # type: ignore[union-attr]


def _silent() -> Any:
    from tunesmith.config.progress import SILENT

    return SILENT


@pytest.mark.slow
def test_memory_grows_by_bytes_per_row_not_by_texts() -> None:
    """What 20,000 rows more need, by tracemalloc: far below the 400 characters that each of them has, which would be over 500 bytes."""

    class Many(Made):
        def examples(self) -> Iterator[Example | DataError]:
            chance = random.Random(0)
            for i in range(int(self.format)):
                words = " ".join(chance.choices(("tide", "lamp", "boat", "rope", "salt", "gull", "quay", "bell"), k=75))
                yield replace(chat(f"q{i}", words), origin=f"many.jsonl:{i}")

    def peak(rows: int) -> int:
        tracemalloc.start()
        try:
            report = examine([Many([], format=str(rows))])
            assert report.rows == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(4_000), peak(24_000)
    assert (large - small) / 20_000 < 300


def test_rows_for_another_stage_are_told(tmp_path: Path) -> None:
    from tunesmith.data.config import DataConfig
    from tunesmith.data.doctor.examine import Stage
    from tunesmith.data.load import open_set

    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 2 + '{"prompt": "p", "chosen": "c", "rejected": "d"}\n'
    )
    opened = open_set(str(path), DataConfig(train=(str(path),)))
    for named, severity in ((True, "error"), (False, "warning")):
        found = examine([opened], stage=Stage("sft", "chat", named)).findings
        (finding,) = found.of("other_kind")
        assert (
            finding.severity == severity
            and "3 rows are preference examples" in finding.message
            and "dpo" in finding.mend
        )
    assert "other_kind" not in examine([opened], stage=Stage("dpo", "preference", True)).findings.checks()
