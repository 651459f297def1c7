"""The page's words: both languages complete, every text used, every used text there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunesmith.web.language import NAMES, Texts, choose, table

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith" / "web"


def test_languages_have_the_same_texts_and_none_is_empty() -> None:
    assert set(table("en")) == set(table("zh"))
    for language in NAMES:
        assert [key for key, text in table(language).items() if not text.strip()] == []


def test_texts_speak_of_the_same_values() -> None:
    for key, text in table("en").items():
        assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", table("zh")[key])), key


def test_chinese_texts_are_chinese() -> None:
    without = [k for k, text in table("zh").items() if not re.search(r"[\u4e00-\u9fff]", text)]
    assert without == [], without


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in SOURCE.glob("*.py"))
    keys = set(table("en"))
    made = {f"{prefix}." for prefix in re.findall(r"f\"(\w+)\.\{", code)}
    literal = {
        w for w in re.findall(r"\"([a-z]+\.[a-z_]+)\"", code) if w.split(".")[0] in {k.split(".")[0] for k in keys}
    }
    for key in keys:
        assert key in literal or any(key.startswith(p) for p in made), f"{key} is not used"
    assert {w for w in literal if w not in keys and not w.endswith((".py", ".yaml", ".svg", ".css"))} <= {"run.pid"}


@pytest.mark.parametrize(
    ("cookie", "accept", "language"),
    [
        (None, None, "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "de-DE,de;q=0.9,zh;q=0.3,en;q=0.7", "en"),
        (None, "fr", "en"),
        (None, "en;q=x, zh-TW", "zh"),
        ("en", "zh-CN", "en"),
        ("zh", "en", "zh"),
        ("xx", "zh", "zh"),
    ],
)
def test_first_visit_follows_the_browser_then_the_choice(cookie: str | None, accept: str | None, language: str) -> None:
    assert choose(cookie, accept) == language


def test_help_falls_back_to_english() -> None:
    assert Texts("zh").help({"en": "Rank.", "zh": "秩。"}) == "秩。"
    assert Texts("zh").help({"en": "Rank.", "zh": ""}) == "Rank."
