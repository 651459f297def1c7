"""What the data doctor and `data show` say of tokens: lengths, coverage, truncation; colours that equal the mask."""

from __future__ import annotations

import copy
import datetime
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from test_doctor import Made, chat, pair
from tunesmith.config.errors import UserError
from tunesmith.config.plugins import load, names
from tunesmith.config.progress import SILENT
from tunesmith.data.doctor.examine import Examination, examine
from tunesmith.data.example import Chat, Feedback, Message, Prompt, Text
from tunesmith.models.open import open_tokenizer
from tunesmith.render import token_pass
from tunesmith.render.conversation import Renderer
from tunesmith.render.segments import segments
from tunesmith.render.show_page import Block, PageRow, page
from tunesmith.render.show_terminal import coloured
from tunesmith.render.sides import sides
from tunesmith.render.token_pass import TokenPass, special_tokens_of
from tunesmith.verbs import data as verb
from tunesmith.verbs import data_show

PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@pytest.fixture(scope="module")
def renderer(smol: Path) -> Renderer:
    return Renderer(open_tokenizer(smol), max_length=120, date=datetime.date(2026, 1, 2))


def look(renderer: Renderer, *values: Any, **more: Any) -> tuple[Examination, TokenPass]:
    tokens = TokenPass(renderer, **more)
    return examine([Made(values)], tokens=tokens), tokens


def found(renderer: Renderer, check: str, *values: Any) -> list[Any]:
    return list(look(renderer, *values)[0].findings.of(check))


def with_template(renderer: Renderer, template: str) -> Renderer:
    tokenizer = copy.copy(renderer.tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer, max_length=renderer.max_length, date=renderer.date)


UNLEARNED = Chat((Message("user", "a"), Message("assistant", "b", train=False)))


def test_every_token_check_says_what_it_does() -> None:
    assert len(names(token_pass.CHECKS)) >= 5
    for name in names(token_pass.CHECKS):
        module = load(token_pass.CHECKS, name)
        assert module.__doc__ and module.Check.title and module.Check.mends


def test_a_row_without_a_learned_token_is_an_error(renderer: Renderer) -> None:
    (finding,) = found(renderer, "unlearned", chat("a", "b"), UNLEARNED)
    assert finding.severity == "error" and finding.fix == "drop" and finding.place == "made:2"
    assert found(renderer, "unlearned", chat("a", "b"), Prompt((Message("user", "q"),))) == []


def test_a_set_without_a_learned_token_is_an_error_of_its_own(renderer: Renderer) -> None:
    messages = [f.message for f in found(renderer, "unlearned", UNLEARNED, UNLEARNED)]
    assert len(messages) == 3 and "nothing is learned: 0 %" in messages[-1]


def test_what_is_shortened_and_what_does_not_fit(renderer: Renderer) -> None:
    long = "word " * 40
    values = (chat(long, "one", long, "two"), chat("a", long * 4), chat("a", "b"))
    (shortened,) = found(renderer, "truncated", *values)
    assert shortened.place == "made:1" and "loses 2 of 4 turns to fit data.max_length=120" in shortened.message
    (refused,) = found(renderer, "refused", *values)
    assert refused.place == "made:2" and refused.severity == "error" and refused.fix == "drop"


def test_a_template_without_an_end_of_turn_is_told_once(renderer: Renderer) -> None:
    (finding,) = found(with_template(renderer, PLAIN), "end_of_turn", chat("a", "b"), chat("c", "d"))
    assert finding.row == -1 and "may not learn to stop" in finding.message
    assert found(renderer, "end_of_turn", chat("a", "b"), Text("plain")) == []


def test_a_first_token_across_the_border_is_told(renderer: Renderer) -> None:
    assert len(found(with_template(renderer, PLAIN), "straddling", chat("a", "hello there"))) == 1
    assert found(renderer, "straddling", chat("a", "hello")) == []


def test_figures_are_those_of_the_renderer(renderer: Renderer) -> None:
    rows = [chat("question", "word " * n) for n in range(1, 20)]
    rendered = [renderer.render(row) for row in rows]
    _, tokens = look(renderer, *rows)
    figures = tokens.summary()
    assert figures["total"] == sum(len(r.ids) for r in rendered) and figures["learned"] == sum(
        r.learned for r in rendered
    )
    assert figures["max"] == len(rendered[-1].ids) and figures["rendered_rows"] == figures["of_rows"] == 19


@pytest.mark.parametrize("full", [False, True])
def test_a_sample_is_drawn_when_all_would_take_too_long(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(token_pass, "PATIENCE", 0.0)
    monkeypatch.setattr(token_pass, "SAMPLE", 40)
    rows = [chat(f"q{i}", f"a{i}") for i in range(100)]
    figures = look(renderer, *rows, full=full)[1].summary()
    assert figures["rendered_rows"] == (100 if full else 40) and figures["of_rows"] == 100
    assert list(look(renderer, *rows, full=full)[1].lengths) == list(look(renderer, *rows, full=full)[1].lengths)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(
    lambda s: s.strip() and "␂" not in s
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=WORDS, answer=WORDS)
def test_colours_equal_the_mask(renderer: Renderer, question: str, answer: str) -> None:
    """All text is shown once and in order, all tokens once, and what is marked learned is what the mask says."""
    rendered = renderer.render(chat(question, answer))
    pieces = list(segments(rendered, frozenset()))
    assert "".join(p.text for p in pieces) == rendered.text
    assert [t for p in pieces for t in p.tokens] == list(range(len(rendered.ids)))
    assert [i for p in pieces for i in p.ids] == list(rendered.ids)
    for piece in pieces:
        assert all(bool(rendered.mask[t]) == piece.learned for t in piece.tokens)
    marked = coloured(pieces, marks=True).plain
    start = next(rendered.offsets[t][0] for t, flag in enumerate(rendered.mask) if flag)
    assert marked.index("⟦") >= start or "⟦" in rendered.text
    assert coloured(pieces, marks=False).plain.count("\n") == rendered.text.count("\n")


class Shown(HTMLParser):
    """What a page says: text of spans by class, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.learned, self.addresses, self.stack = "", [], []  # type: str, list[str], list[str]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if tag in ("span", "section"):
            self.stack.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("span", "section"):
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        if any(style.startswith("t") and "l" in style.split() for style in self.stack):
            self.learned += data


def test_the_page_shows_the_mask_and_lets_nothing_through(renderer: Renderer) -> None:
    rendered = renderer.render(
        chat("<script>alert('x')</script>", '</pre><img src=x onerror=alert(1)> 🙂 & "b"\nsecond')
    )
    text = page("<b>t", "m&m", [PageRow("f<i>:1", [Block("", list(segments(rendered, frozenset())), (1, 1, 0))], "")])
    seen = Shown()
    seen.feed(text)
    runs = "".join(p.text for p in segments(rendered, frozenset()) if p.learned)
    assert seen.learned.replace("⏎", "") == runs and seen.addresses == []
    assert text.count("<script>") == 1 and "<img" not in text and "<b>t" not in text and "f<i>" not in text
    assert "http" not in unescape(re.sub(r"<meta http-equiv", "", text)) and "default-src 'none'" in text
    assert 'data-t="#' in text and "参与学习" in text and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("example", "labels"),
    [
        (chat("a", "b"), [""]), (pair("left", "right"), ["chosen", "rejected"]), (Feedback(chat("a", "b"), False), ["bad"]),
        (Prompt((Message("user", "q"),)), [""]), (Text("plain words"), [""]),
    ],
)  # fmt: skip
def test_every_kind_has_its_sides(renderer: Renderer, example: Any, labels: list[str]) -> None:
    made = sides(renderer, example)
    assert [side.label for side in made] == labels
    assert [any(s.rendered.mask) for s in made] == [s.learns for s in made]
    if isinstance(example, Text):
        assert (
            made[0].rendered.mask[0] == 0 and all(made[0].rendered.mask[1:]) and made[0].rendered.text == "plain words"
        )
    if isinstance(example, Prompt):
        assert made[0].rendered.text.endswith("<|im_start|>assistant\n")


def rows_file(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def messages(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)], **more}


def test_fixed_and_checked_again_there_is_no_error(smol: Path, tmp_path: Path) -> None:
    """Dropped and changed rows stand in the list with their reasons; the copy keeps keys and rows that nothing was said of."""
    bad = [
        messages("q1", "cafÃ© &amp; co<|im_end|>", id="keep &amp; me"), messages("q2", "a<|im_end|>b"), messages("only a question"),
        messages("q3", "good", note=1), messages("q3", "good", note=2), messages("q4", "far too long " * 900), [1, 2],
    ]  # fmt: skip
    name, out = rows_file(tmp_path / "in.jsonl", *bad), tmp_path / "out.jsonl"
    run, reference = verb.settings([name], model=str(smol))
    checked = verb.check(run, SILENT, tokens=reference is not None, fix=out)
    assert not checked.ok and checked.fixed is not None
    assert (checked.fixed.kept, checked.fixed.changed, checked.fixed.dropped) == (2, 1, 5)
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        messages("q1", "café & co", id="keep &amp; me"), messages("q3", "good", note=1),
    ]  # fmt: skip
    listed = [
        json.loads(line) for line in (tmp_path / "out.jsonl.dropped.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(entry["action"], entry["origin"].rpartition(":")[2]) for entry in listed] == [
        ("changed", "1"), ("dropped", "2"), ("dropped", "3"), ("dropped", "5"), ("dropped", "6"), ("dropped", "7"),
    ]  # fmt: skip
    assert listed[0]["row"] == bad[0] and listed[0]["after"]["messages"][1]["content"] == "café & co"
    assert (
        all(entry["reasons"] and entry["row"] for entry in listed) and listed[3]["reasons"][0]["check"] == "duplicates"
    )
    again = verb.check(verb.settings([str(out)], model=str(smol))[0], SILENT, tokens=True)
    assert again.ok and again.found.findings.count("warning") == 0
    with pytest.raises(UserError, match="nothing is overwritten"):
        verb.check(run, SILENT, tokens=False, fix=out)


def test_the_report_says_steps_coverage_and_truncation(tiny: Path, tmp_path: Path) -> None:
    from tunesmith.verbs.data_report import report

    name = rows_file(tmp_path / "in.jsonl", *(messages(f"question {i}", "an answer " * (i % 7 + 1)) for i in range(96)))
    run, _ = verb.settings([name], ["train.epochs=3", "data.max_length=64"], model=str(tiny))
    checked = verb.check(run, SILENT, tokens=True, picture=tmp_path / "p.png")
    text = "\n".join(line.plain for line in report(checked))
    assert "91 rows × 3 epochs / 16 = 18 steps: probably too few to see a change (5 rows held out)" in text
    assert "learned tokens: " in text and "tokens per row: " in text and "█" in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads("".join(verb.as_json(checked)))
    assert figures["tokens"]["max_length"] == 64 and figures["sets"][0]["rows"] == 96


def test_held_out_rows_are_those_of_training(tmp_path: Path) -> None:
    from tunesmith.data.load import load as load_data

    name = rows_file(tmp_path / "in.jsonl", *(messages(f"q{i}", f"a{i}") for i in range(50)))
    run, _ = verb.settings([name], ["data.eval_share=0.2"])
    held = {int(example.origin.rpartition(":")[2]) - 1 for example in load_data(run.data, run.train.seed).eval}
    assert held == set(verb.held_out(50, run.data, run.train.seed)) and len(held) == 10


def test_show_as_read_and_as_tokens(tiny: Path, tmp_path: Path) -> None:
    name = rows_file(tmp_path / "in.jsonl", messages("q1", "a1 \x1b[31m"), {"messages": []}, messages("q3", "a3"))
    run, _ = verb.settings([name], model=str(tiny))
    shown = data_show.show(run, SILENT, count=3, row=None, seed=None, tokens=True)
    text = "\n".join(line.plain for line in data_show.lines(shown, marks=True))
    assert "⟦a1 ‹U+001B›[31m<|im_end|>⟧" in text and "in.jsonl:2" in text and "no turn" in text
    plain = data_show.show(run, SILENT, count=1, row=3, seed=None, tokens=False)
    text = "\n".join(line.plain for line in data_show.lines(plain, marks=True))
    assert "[turn 2 (assistant)] a3" in text and "--model" in text and "q1" not in text
    assert json.loads(json.dumps(data_show.as_dict(shown)))["rows"][0]["sides"][0]["mask"]
    data_show.write_page(shown, tmp_path / "x.html")
    assert "im_end" in (tmp_path / "x.html").read_text(encoding="utf-8")
    drawn = [data_show.show(run, SILENT, count=2, row=None, seed=1, tokens=False).rows for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2
    with pytest.raises(UserError, match="has no row 9"):
        data_show.show(run, SILENT, count=1, row=9, seed=None, tokens=False)


def test_special_tokens_of_a_model(renderer: Renderer) -> None:
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= special_tokens_of(renderer.tokenizer)


def test_learning_everything_is_no_answer_without_an_end(tiny: Path, tmp_path: Path) -> None:
    name = rows_file(tmp_path / "in.jsonl", *(messages(f"q{i}", f"a{i}") for i in range(4)))
    for learn in "answers", "everything":
        run, _ = verb.settings([name], [f"data.learn={learn}"], model=str(tiny))
        assert "end_of_turn" not in verb.check(run, SILENT, tokens=True).found.findings.checks()
