"""Comparisons: what is asked, what of the answers differs, the page, and losses that may be compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.chat.base import Messages, NoDistributionError, Sampling
from tunesmith.config.errors import UserError
from tunesmith.config.progress import SILENT
from tunesmith.data.example import Chat, Message
from tunesmith.evaluate.comparison_page import page
from tunesmith.evaluate.held_out import HeldOut, learned_bytes
from tunesmith.evaluate.tasks.comparison import Candidate, Comparison, Question, compare
from tunesmith.evaluate.word_changes import MOST, changed_words
from tunesmith.render.conversation import Rendered
from tunesmith.verbs.prompts import questions


def asked(tmp_path: Path, name: str, text: str, **more: Any) -> list[Question]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return questions((), tmp_path / name, more.get("system"))


def test_prompts_of_every_form(tmp_path: Path) -> None:
    lines = asked(tmp_path, "p.txt", "\ufeff one \n\n你好🙂\n")
    assert [q.text for q in lines] == ["one", "你好🙂"]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    value = [
        "one",
        talk,
        {"messages": [*talk, {"role": "assistant", "content": "d"}]},
        {"instruction": "sum", "input": "1 2", "output": "3"},
    ]
    found = asked(tmp_path, "p.json", json.dumps(value), system="Be brief.")
    assert [q.text for q in found] == ["one", "c", "c", "sum\n1 2"]
    assert [q.reference for q in found] == ["", "", "d", "3"]
    assert all(q.messages[0] == {"role": "system", "content": "Be brief."} for q in found)
    own = asked(
        tmp_path,
        "q.jsonl",
        '{"prompt": "x", "system": "Own."}\n\n["no"]\n'.replace('["no"]', '"y"'),
        system="Be brief.",
    )
    assert [q.messages[0]["content"] for q in own] == ["Own.", "Be brief."]
    assert questions(["-p"], tmp_path / "p.txt", None)[0].text == "-p"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.json", "{}", "expected a list"),
        ("p.json", "[1]", "p.json: entry 1 is no prompt: 1"),
        ("p.json", "[", "cannot be read as JSON"),
        ("p.jsonl", '"a"\n{"x": 1}', r'p.jsonl:2 is no prompt: \{"x": 1\}'),
        ("p.json", '[[{"role": "human", "content": "a"}]]', "message 1 is"),
        ("p.json", '[[{"role": "system", "content": "a"}]]', "does not end with a question"),
        ("p.txt", "\n \n", "there is no prompt in it"),
        ("p.json", "[[]]", "does not end with a question"),
    ],
)
def test_what_is_no_prompt(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        asked(tmp_path, name, text)
    assert "hint:" in str(caught.value)


def test_a_file_that_is_none_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    for name, words in (("p.txt", "cannot be read as text"), ("none.txt", "no such file")):
        with pytest.raises(UserError, match=words):
            questions((), tmp_path / name, None)


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        ("The cat sat.", "The dog sat.", ["dog"]),
        ("a b c", "a b c", []),
        ("", "new words", ["new words"]),
        ("gone", "", []),
        ("我喜欢猫。", "我喜欢狗。", ["狗"]),
        ("one two", "one  two", []),
        ("x", "x! y?", ["! y?"]),
    ],
)
def test_changed_words(before: str, after: str, marked: list[str]) -> None:
    found = changed_words(before, after)
    assert "".join(piece for piece, _ in found) == after
    assert [piece.strip() for piece, changed in found if changed] == marked


def test_texts_too_long_to_compare_are_left_unmarked() -> None:
    text = "word " * MOST
    assert changed_words(text, text + "x") == [(text + "x", False)]


class Tags(HTMLParser):
    """Every tag of a page, and the text of marks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.marks: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs), attrs
        if tag == "mark":
            self.marks.append("")

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.seen and self.seen[-1] == "mark":
            self.marks[-1] += data


def comparison() -> Comparison:
    evil = '<script>alert(1)</script> & "quotes" <b>'
    talk = ({"role": "system", "content": evil}, {"role": "user", "content": "Hi <i>"})
    return Comparison(
        (Question(talk, "ref <u>"), Question(({"role": "user", "content": ""},))),
        (
            Candidate("base <x>", ("The cat sat.", ""), 2.0, math.exp(2), 9, 3.1),
            Candidate("tuned", (f"The dog sat. {evil}", "x" * 900), 1.0, math.e, 9, 1.5),
            Candidate("ollama:a", (f"The dog sat. {evil}", ""), None, None, 0, None, "a server tells no distributions"),
        ),
    )


def test_the_page_holds_words_as_words() -> None:
    text = page(comparison(), "base <x> · tuned")
    tags = Tags()
    tags.feed(text)
    assert not {"script", "b", "i", "u", "x", "img", "link"} & set(tags.seen)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert tags.marks[0].strip() == "dog" and "alert(1)" in tags.marks[1]
    assert text.count("(the same words)") == 1, "the deployed model says what the tuned one said"
    assert text.count("(empty)") == 3, "two answers and a question"
    assert "ollama:a was not measured: a server tells no distributions" in text and "<td>base &lt;x&gt;</td>" in text
    assert re.search(r"overflow-wrap: anywhere", text), "900 letters without a space stay in their card"


def test_losses_of_other_tokens_are_not_put_side_by_side() -> None:
    found = comparison()
    assert found.figures()[0] == ["model", "held-out loss", "perplexity"] and found.same_tokens
    other = Comparison(found.questions, (found.candidates[0], Candidate("b", ("", ""), None, None, 4, 2.5)))
    assert other.figures() == [["model", "bits per byte"], ["base <x>", "3.1000"], ["b", "2.5000"]]
    assert "cut text into different tokens" in other.notes()[0] and "2.5000" in other.markdown()
    assert "perplexity" not in other.markdown()


class Coin:
    """Finds each of ``size`` tokens equally likely."""

    def __init__(self, size: int, renderer: Any = None, fails: Exception | None = None) -> None:
        self.name, self.size, self.renderer, self.fails = "coin", size, renderer, fails

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        yield "heads"

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        if self.fails is not None:
            raise self.fails
        return np.full((len(tokens), self.size), -math.log(self.size), np.float32)

    def close(self) -> None: ...


class Letters:
    """A renderer of ``width`` letters a token; all but the first token are learned."""

    def __init__(self, width: int) -> None:
        self.width, self.learn, self.max_length = width, "answers", None

    def render(self, chat: Chat) -> Rendered:
        text = chat.answer()
        spans = tuple((i, min(i + self.width, len(text))) for i in range(0, len(text), self.width))
        return Rendered(tuple(range(len(spans))), (0, *[1] * (len(spans) - 1)), text, spans)


CHAT = Chat((Message("user", "q"), Message("assistant", "abcdefgh")))


def test_bits_per_byte_by_hand() -> None:
    """Eight letters; one a token: seven learned tokens of ln 16 nats = 4 bits over the seven learned bytes: 4 bits a byte.
    Two a token: three learned tokens of 4 bits, charged to the same seven bytes of the first model: 12 / 7."""
    rows = HeldOut.of([CHAT], Letters(1))  # type: ignore[arg-type]
    assert learned_bytes(rows.rendered[0]) == 7
    same = rows.measure(Coin(16, Letters(1)))
    assert same.loss == pytest.approx(math.log(16)) and same.bits_per_byte == pytest.approx(4) and same.tokens == 7
    other = rows.measure(Coin(16, Letters(2)))
    assert other.loss is None and other.bits_per_byte == pytest.approx(12 / 7) and other.tokens == 3


def test_bytes_are_those_of_the_text() -> None:
    """A character of three bytes that two tokens share counts once."""
    row = Rendered((1, 2, 3), (0, 1, 1), "a你", ((0, 1), (1, 2), (1, 2)))
    assert learned_bytes(row) == 3


def test_only_servers_go_unmeasured() -> None:
    """A mistake that is no server's nature is an error, not an empty field."""
    rows = HeldOut.of([CHAT], Letters(1))  # type: ignore[arg-type]
    assert "a server" in rows.measure(Coin(16, fails=NoDistributionError("no"))).why
    with pytest.raises(UserError, match="too long"):
        rows.measure(Coin(16, Letters(1), UserError("9 tokens are too long")))
    question = [Question(({"role": "user", "content": "?"},))]
    found = compare([("coin", lambda: Coin(16, Letters(1)))], question, rows, Sampling(), SILENT)
    assert found.candidates[0].answers == ("heads",) and found.candidates[0].perplexity == pytest.approx(16)
