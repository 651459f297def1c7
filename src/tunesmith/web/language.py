"""The page's own words, one table per language, and which language a browser gets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

NAMES = {"en": "English", "zh": "中文"}
COOKIE = "tunesmith_language"


@cache
def table(language: str) -> Mapping[str, str]:
    """All texts of one language, by key."""
    text = (files("tunesmith.web") / "texts" / f"{language}.yaml").read_text(encoding="utf-8")
    return {str(k): str(v) for k, v in yaml.safe_load(text).items()}


class Texts:
    """The texts of one language: ``t("list.title")``, ``t("form.changed", count=3)``."""

    def __init__(self, language: str) -> None:
        self.language = language if language in NAMES else "en"
        self._table = table(self.language)

    def __call__(self, key: str, **values: Any) -> str:
        text = self._table[key]
        return text.format(**values) if values else text

    def help(self, texts: Mapping[str, str]) -> str:
        """The help of a setting in this language."""
        return texts.get(self.language) or texts.get("en", "")

    @property
    def html_lang(self) -> str:
        return "zh-CN" if self.language == "zh" else "en"


def choose(cookie: str | None, accept: str | None) -> str:
    """The language of a browser: what was chosen before, else the best of its Accept-Language, else English."""
    if cookie in NAMES:
        return str(cookie)
    wishes: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        tag, _, parameters = part.strip().partition(";")
        weight = parameters.strip().removeprefix("q=") if parameters else "1"
        try:
            wishes.append((float(weight), tag.strip().lower()))
        except ValueError:
            continue
    for share, tag in sorted(wishes, key=lambda w: -w[0]):
        if share > 0 and tag.split("-")[0] in NAMES:
            return tag.split("-")[0]
    return "en"
