"""Keys, e-mail addresses and identity numbers: what should not be in a model's memory."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunesmith.data.doctor import base

_KEY = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bhf_[A-Za-z0-9]{34}\b|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"
    r"|\bAIza[0-9A-Za-z_-]{35}\b|\bxox[bpars]-[0-9A-Za-z-]{20,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
)
_KEY_SIGNS = ("AKIA", "gh", "hf_", "sk-", "AIza", "xox", "PRIVATE KEY")
_MAIL = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_PLACEHOLDER = re.compile(
    r"@(?:[\w-]+\.)*(?:example|test|domain|email|company|sample)\.\w+\Z|\A(?:user|your|name|someone)", re.I
)
_CITIZEN = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[0-9Xx](?![0-9A-Za-z])"
)


class Check(base.Check):
    """Precise patterns only: a Chinese identity number must have the right check digit (GB 11643), made-up addresses pass."""

    title = "keys and personal data"

    def row(self, row: base.Row) -> Iterable[base.Finding]:
        text = row.text
        keys = any(sign in text for sign in _KEY_SIGNS) and _KEY.search(text)
        mail = "@" in text and any(not _PLACEHOLDER.search(m) for m in _MAIL.findall(text))
        citizen = any(_valid(n) for n in _CITIZEN.findall(text))
        for found, pattern, what in (
            (keys, _KEY, "a secret key"),
            (mail, _MAIL, "an e-mail address"),
            (citizen, _CITIZEN, "an identity number"),
        ):
            if found:
                yield from self._pieces(row, pattern, what)

    def _pieces(self, row: base.Row, pattern: re.Pattern[str], what: str) -> Iterable[base.Finding]:
        for piece in row.pieces:
            hits = [m for m in pattern.finditer(piece.text) if not _PLACEHOLDER.search(m[0])]
            if hits and (pattern is not _CITIZEN or any(_valid(m[0]) for m in hits)):
                hidden = hits[0][0][:3] + "…"  # a report is passed around more freely than the data
                yield row.finding("info", f"{piece.where}: {what} ({hidden})", "replace it by a made-up one", hidden)


def _valid(number: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(d) * w for d, w in zip(number, weights)) % 11] == number[-1].upper()
