"""A model's own control tokens written in the text: they would end a turn, or begin one, in the middle of the words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunesmith.data.doctor import base

COMMON = frozenset({
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>",
    "<|end|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>",
})  # fmt: skip
"""What is looked for when no model is named."""


class Check(base.Check):
    """With a model: its special tokens, an error. Without: the well-known ones of other models, a warning."""

    title = "special tokens in the text"
    mends = "removes those at the beginning or end of a text; drops the row when one stands in between"

    def __init__(self, context: base.Context) -> None:
        super().__init__(context)
        tokens = context.special_tokens if context.special_tokens is not None else COMMON
        words = "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True) if t.strip())
        self.token = re.compile(words) if words else None
        self.ends = re.compile(rf"\A(?:\s*(?:{words}))+\s*|\s*(?:(?:{words})\s*)+\Z") if words else None

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        if self.token is None or not self.token.search(row.text):
            return
        of_model = self.context.special_tokens is not None
        for piece in row.pieces:
            found = self.token.search(piece.text)
            if not found:
                continue
            inside = self.token.search(self.clean(piece.text)) or not self.clean(piece.text)
            whose = "this model reads it as a control token" if of_model else "many models read it as a control token"
            yield row.finding(
                "error" if of_model else "warning",
                f"{piece.where}: {found[0]} in the text: {whose}",
                "remove it, or write it in another way; the chat template adds such tokens itself",
                base.shorten(piece.text, found.start()),
                "drop" if inside else "change",
            )

    def clean(self, text: str) -> str:
        return self.ends.sub("", text) if self.ends is not None else text
