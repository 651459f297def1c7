"""Ids of many texts by the pieces they share: every distinct piece goes through the tokenizer once.

A text may be cut where its tokenizer cuts anyway and nothing on one side depends on the other:

- around added tokens. The tokenizers library looks for those first (leftmost, then longest) and normalizes and splits what lies
  between them part by part. Not so where an added token takes neighbouring white space with it or minds word borders.
- after words: between an ASCII letter and any other ASCII character but an apostrophe, where the text is split by one of
  ``SPLITS`` (below), and no normalizer or added token could reach over that place.

Which of it holds is read from the tokenizer's own settings (anything unknown: no pieces) and tried on probes. A piece is used only
if the bytes of its tokens are its own bytes, so that the places of tokens follow too; texts with other pieces are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from tunesmith.render.positions import ByteTable, Tokens, bounds_of, kinds_of, parts_of, plain_call
from tunesmith.render.workers import python_is_free

CACHE_BYTES = 64e6
"""Memory, as estimated, at which the known pieces are forgotten."""
ENTRY_BYTES = 200
"""Of a known piece, beside its text and ids (about 6 bytes for each character)."""
MOST_SEEN = 500_000
"""Parts between added tokens whose hashes are kept, to tell those that come again."""
REPEATED = 8
"""Pieces of a part between added tokens from which on it is remembered as a whole when it comes again."""
SPLITS = frozenset({
    # GPT-2, cl100k (Llama 3), Qwen 2, o200k. In none of them can a match hold a letter and then an ASCII character other than
    # a letter or an apostrophe; none looks at what lies before a match; what one looks ahead at, it does only after white
    # space. So a match ends between those two, whatever follows, and the next one begins there, whatever came before.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
})  # fmt: skip
_SEPARATE = {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace", "Sequence"}
"""Pre-tokenizers that see one part between added tokens at a time (Metaspace may ask whether it is the first one)."""
_WORDS = re.compile(r"[^A-Za-z]*[A-Za-z]+(?:(?=['\x80-\U0010ffff])[^A-Za-z]+[A-Za-z]*)*|[^A-Za-z]+")
"""Pieces that end after a letter before any ASCII character but letters and apostrophes."""
_PROBES = ("user\nHi there, it's 12  o'clock \n\n ok", " a b", "a ", "\n", "x y\tz é你好 d e", "  two", "end. I'm")

Ids = bytes | None
"""uint32 ids of a piece; None where its tokens do not stand for its bytes."""


@dataclass(frozen=True)
class Encoded:
    """``tokens`` of the texts ``rows`` (ascending); ``others`` have no pieces to be told by."""

    rows: list[int]
    tokens: Tokens
    others: list[int]


class Pieces:
    """Remembers the pieces of one tokenizer. Threads may share it."""

    def __init__(self, tokenizer: Any, table: ByteTable, added: dict[str, int], *, words: bool) -> None:
        self.tokenizer, self.table = tokenizer, table
        longest_first = sorted(added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if added else _whole
        self._cut = _WORDS.findall if words else _whole
        self._added: dict[str, Ids] = {text: np.uint32(i).tobytes() for text, i in added.items()}
        self._forget()

    @staticmethod
    def of(tokenizer: Any, table: ByteTable | None) -> Pieces | None:
        """None for a tokenizer whose texts may not be cut."""
        if table is None or not plain_call(tokenizer):
            return None
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        added = settings.get("added_tokens") or []
        if not _may_be_cut(settings) or any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
            return None
        apart = {t["content"]: t["id"] for t in added if not t["normalized"] and t["content"]}
        words = _cuts_words(settings) and len(apart) == len(added)
        pieces = Pieces(tokenizer, table, apart, words=words)
        return pieces if pieces._agree(list(apart)) else None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids and places, in bytes, of the texts whose pieces are told by their bytes."""
        if self._bytes > CACHE_BYTES or len(self._seen) > MOST_SEEN:
            self._forget()
        known, seen = self._known, self._seen  # those of this call, should another thread forget them
        split, cut = self._split, self._cut
        joined: list[Ids] = []
        missing: dict[int, list[str]] = {}
        for text in texts:
            pieces: list[str] = []
            for segment in split(text):
                if segment in known:
                    pieces.append(segment)
                    continue
                pieces += (words := cut(segment))
                if len(words) > REPEATED and (key := hash(segment)) in seen:
                    pieces[-len(words) :] = [segment]  # it comes again, such as a system prompt: one piece from now on
                elif len(words) > REPEATED:
                    seen.add(key)
            try:
                joined.append(b"".join(map(known.__getitem__, pieces)))  # type: ignore[arg-type]
            except (KeyError, TypeError):
                missing[len(joined)] = pieces
                joined.append(None)
        if missing:
            self._learn({p for pieces in missing.values() for p in pieces if p not in known}, known)
            for row, pieces in missing.items():
                found = [known[p] for p in pieces]
                joined[row] = None if None in found else b"".join(found)  # type: ignore[arg-type]
        return self._placed(joined)

    def _learn(self, pieces: set[str], known: dict[str, Ids]) -> None:
        """Encode what is not known yet, in one call."""
        texts = list(pieces)
        with python_is_free():
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        rows = [e.ids for e in encodings]
        flat = list(chain.from_iterable(rows))
        packed = np.array(flat, dtype=np.uint32).tobytes()
        written = list(map(self.table.table.__getitem__, flat))
        place = 0
        for text, ids in zip(texts, rows):
            end = place + len(ids)
            true = b"".join(written[place:end]) == text.encode()
            known[text] = packed[4 * place : 4 * end] if true else None
            place = end
        self._bytes += ENTRY_BYTES * len(texts) + 6 * sum(map(len, texts))

    def _placed(self, joined: Sequence[Ids]) -> Encoded:
        rows = [i for i, ids in enumerate(joined) if ids is not None]
        found = [ids for ids in joined if ids is not None]
        ids = np.frombuffer(b"".join(found), dtype=np.uint32)
        bounds = bounds_of([len(b) // 4 for b in found])
        lengths = self.table.lengths[ids]
        ends = np.cumsum(lengths)
        starts = np.concatenate([[0], ends])[bounds[:-1]]
        ends -= np.repeat(starts, np.diff(bounds))
        others = [i for i, b in enumerate(joined) if b is None]
        return Encoded(rows, Tokens(ids, bounds, ends - lengths, ends, True), others)

    def _forget(self) -> None:
        self._known: dict[str, Ids] = {"": b"", **self._added}
        self._seen: set[int] = set()
        self._bytes = 0.0

    def _agree(self, added: Sequence[str]) -> bool:
        """Whether probes come out as the tokenizer encodes them, with added tokens in all sorts of places."""
        marks = [*added[:4], *added[-2:], ""]
        texts = [f"{a}{p}{b}{q}" for a in marks for b in marks for p, q in pairwise(_PROBES)]
        made = self.encode(texts)
        wanted = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        bounds = made.tokens.bounds.tolist()
        return not made.others and all(
            made.tokens.ids[a:b].tolist() == wanted[row].ids for row, a, b in zip(made.rows, bounds, bounds[1:])
        )


def _may_be_cut(settings: dict[str, Any]) -> bool:
    """Whether parts between added tokens are encoded independently of each other, and always in the same way."""
    model = settings["model"]
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and all(
            part["type"] in _SEPARATE and part.get("prepend_scheme") != "first"
            for part in parts_of(settings.get("pre_tokenizer"))
        )
    )


def _cuts_words(settings: dict[str, Any]) -> bool:
    """Whether a text may be cut as ``_WORDS`` does, whatever stands around."""
    if set(kinds_of(settings.get("normalizer"))) - {"NFC"}:
        return False  # NFC changes nothing between two ASCII characters
    cuts = False
    for part in parts_of(settings.get("pre_tokenizer")):
        if part["type"] == "Split":
            if part["pattern"].get("Regex") not in SPLITS or part["behavior"] != "Isolated" or part.get("invert"):
                return False
            cuts = True
        elif part["type"] == "ByteLevel":
            cuts = cuts or part.get("use_regex", True)
        elif part["type"] not in ("Digits", "Sequence"):
            return False
    return cuts


def _whole(text: str) -> list[str]:
    return [text]
