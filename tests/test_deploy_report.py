"""The report of a deployment: what is told of a failure, and that nothing in it can become code or markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunesmith.evaluate.tasks.comparison import Candidate, Comparison, Question
from tunesmith.export.deploy_report import ERRORS, NAMES, Check, Proof

EVIL = "</td><script>alert(1)</script>&amp;\"'`*_|\n# x ![p](http://x/y)"


def proof_with(text: str) -> Proof:
    comparison = Comparison(
        (Question(({"role": "user", "content": text},)),),
        (Candidate(text, (text,), 1.25, 3.49, 7, 0.5), Candidate("b", ("",), None, None, 0)),
    )
    checks = [Check(n, "failed" if n < 3 else "passed", (text,), text, text) for n in range(1, 6)]
    return Proof(text, text, (*checks, Check(6, "not measured", (text,))), {"model": text}, comparison)


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = proof_with(EVIL).save(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page and "</td><script" not in page
    places = (
        4 + 6 + 2 * 2 + 3
    )  # title, heading, outcome, fact; figures; meaning and advice of two; candidate, question, answer
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") == places
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags <= {
        *[
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "h3",
            "p",
            "b",
            "dl",
            "dt",
            "dd",
            "section",
            "div",
            "ul",
            "li",
            "table",
            "thead",
            "tbody",
            "tfoot",
            "tr",
            "th",
            "td",
        ]
    }
    markdown = (tmp_path / "deploy_report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)[<`\[]", markdown), "Markdown takes \\< as the sign itself"
    table = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3, 4}, "no text adds a cell"
    assert json.loads((tmp_path / "deploy_report.json").read_text(encoding="utf-8"))["checks"][0]["name"] == NAMES[1]


def test_numbers_that_are_none_make_no_broken_json(tmp_path: Path) -> None:
    """JSON has no NaN and no Infinity."""
    inf, nan = float("inf"), float("nan")
    comparison = Comparison((), (Candidate("a", (), nan, inf, 7),))
    Proof("m", "x", (Check(3, "failed", ("x",)),), {}, comparison, {"mean_kl": inf, "p95_kl": nan}).save(tmp_path)
    text = (tmp_path / "deploy_report.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["parity"] == {"mean_kl": "inf", "p95_kl": "nan"}


def test_what_a_failure_says() -> None:
    proof = Proof(
        "m",
        "Nothing was sent.",
        (
            Check(1, "failed", ("two differ", "first: …"), "it answers worse", "update it"),
            Check(5, "failed", ("no tools",)),
        ),
    )
    assert proof.checklist() == [
        "✗ 1 prompts as in training: two differ",
        "    first: …",
        "    what it means: it answers worse",
        "    what to do: update it",
        "✗ 5 capabilities and settings as meant: no tools",
    ]
    assert [check.number for check in proof.broken] == [1], "a capability that is lost is told, and the model served"
    assert ERRORS == (1, 2, 3, 4)
    page = proof.markdown()
    assert "**What it means:** it answers worse" in page
