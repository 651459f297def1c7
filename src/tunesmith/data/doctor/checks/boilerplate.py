"""Refusals and phrases of other assistants: a model trained on them repeats them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunesmith.data.doctor import base

_PHRASE = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b|\bmy (?:training data|knowledge cut-?off)\b"
    r"|\bI(?:'|’)?m sorry,? but (?:as an|I can(?:no|'|’)t)|\bI can(?:no|'|’)t (?:assist|help) (?:you )?with (?:that|this)\b"
    r"|\b(?:developed|created|trained) by OpenAI\b|\bI am ChatGPT\b"
    r"|作为(?:一个|一名|一款)?(?:人工智能|AI|ＡＩ)(?:语言)?(?:模型|助手)|我(?:是|叫)ChatGPT|由OpenAI(?:开发|训练)|抱歉，我(?:无法|不能)(?:提供|协助|帮助|回答)",
    re.I,
)


_SIGNS = ("as an a", "training data", "knowledge cut", "sorry", "i can", "openai", "chatgpt", "作为", "抱歉")
"""One of them is in every phrase: a quick look before the slow one."""


class Check(base.Check):
    """Looked for in answers only: a person may well ask about AI language models."""

    title = "refusals and boilerplate"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        lowered = row.text.lower()
        if not any(sign in lowered for sign in _SIGNS):
            return
        for piece in row.answers():
            found = _PHRASE.search(piece.text)
            if found:
                yield row.finding(
                    "info",
                    f"{piece.where}: “{found[0]}”",
                    "remove such rows if your model should not talk like that",
                    base.shorten(piece.text, found.start()),
                )
