"""Where the tokens of many texts lie, as flat arrays: by the tokenizer's offsets, or by the bytes the tokens stand for.

Offsets cost the tokenizer about as much as the ids. Where every token stands for known bytes (byte-level BPE, or BPE with
byte fallback), the ids alone tell the places: if the bytes of a text's tokens, put together, are the bytes of that text, each
token lies where the ones before it end. That is checked for every text; one that fails (a normalizer changed it) is
measured by offsets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from tunesmith.render.workers import python_is_free


@dataclass(frozen=True)
class Tokens:
    """Tokens of several texts, one after the other. ``bounds``: R + 1 places in ``ids``; ``begin`` and ``end``: place of each
    token in its own text, in bytes where ``in_bytes``, else in characters."""

    ids: np.ndarray
    bounds: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    in_bytes: bool


class ByteTable:
    """The bytes of each token of a tokenizer. ``of`` gives None for tokenizers whose tokens do not simply join to the text."""

    def __init__(self, table: list[bytes]) -> None:
        self.table = table
        self.lengths = np.fromiter((len(b) for b in table), dtype=np.int64, count=len(table))

    @staticmethod
    def of(tokenizer: Any) -> ByteTable | None:
        backend = tokenizer.backend_tokenizer
        settings = json.loads(backend.to_str())
        kinds = set(kinds_of(settings.get("decoder")))
        # A post-processor may take the space off a token's offsets: bytes then say something else.
        if any(part.get("trim_offsets") for part in parts_of(settings.get("post_processor"))) or settings.get(
            "truncation"
        ):
            return None
        if "ByteLevel" not in kinds and "ByteFallback" not in kinds:
            return None
        added = {t["id"]: t["content"] for t in settings.get("added_tokens", ())}
        table = [b""] * backend.get_vocab_size(with_added_tokens=True)
        for word, i in backend.get_vocab(with_added_tokens=True).items():
            if i >= len(table):
                return None
            if i in added:
                table[i] = added[i].encode()
            elif "ByteLevel" in kinds:
                if not all(c in _BYTE_OF for c in word):
                    return None
                table[i] = bytes(_BYTE_OF[c] for c in word)
            elif len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
                table[i] = bytes([int(word[3:5], 16)])
            else:
                table[i] = word.replace("\u2581", " ").encode()
        return ByteTable(table)


def locate(tokenizer: Any, texts: Sequence[str], table: ByteTable | None) -> Tokens:
    """Tokens of ``texts`` (special tokens are in them already) and their places."""
    if not texts:
        nothing = np.zeros(0, np.int64)
        return Tokens(nothing.astype(np.uint32), np.zeros(1, np.int64), nothing, nothing, False)
    if table is not None and plain_call(tokenizer):
        with python_is_free():
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [e.ids for e in encodings]
        flat = list(chain.from_iterable(rows))
        try:
            whole = b"".join(map(table.table.__getitem__, flat))
        except IndexError:
            whole = b""
        raw = [text.encode() for text in texts]
        ids = np.fromiter(flat, dtype=np.uint32, count=len(flat))
        bounds = bounds_of([len(r) for r in rows])
        if whole == b"".join(raw):
            ends = np.cumsum(table.lengths[ids])
            row_end = np.concatenate([[0], ends])[bounds]
            if np.array_equal(np.diff(row_end), [len(r) for r in raw]):
                ends = ends - np.repeat(row_end[:-1], np.diff(bounds))
                return Tokens(ids, bounds, ends - table.lengths[ids], ends, True)
    with python_is_free():  # most of it
        encoded = tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
    rows, offsets = encoded["input_ids"], encoded["offset_mapping"]
    bounds = bounds_of([len(r) for r in rows])
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.uint32, count=int(bounds[-1]))
    flat_offsets = np.fromiter(
        chain.from_iterable(chain.from_iterable(offsets)), dtype=np.int64, count=2 * int(bounds[-1])
    )
    return Tokens(ids, bounds, flat_offsets[0::2], flat_offsets[1::2], False)


def mask_of(
    tokens: Tokens, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> tuple[np.ndarray, list[int]]:
    """1 for every token that begins in a learned span of its text (spans are in characters, ascending), 0 for the others; and
    for each text how many spans begin inside a token."""
    size = int(tokens.end.max(initial=0)) + 1
    if not tokens.in_bytes:
        size = max(size, max((len(t) for t in texts), default=0) + 1)
    base = np.arange(len(texts), dtype=np.int64) * (size + 1)  # each text gets its own stretch of one number line
    shift = np.repeat(base, np.diff(tokens.bounds))
    edges: list[int] = []
    for text, learned, at in zip(texts, spans, base.tolist()):
        for span in learned:
            edges += [at + _bytes_before(text, c) for c in span] if tokens.in_bytes else [at + c for c in span]
    marks = np.array(edges, dtype=np.int64)
    begin, end = tokens.begin + shift, tokens.end + shift
    mask = (np.searchsorted(marks, begin, side="right") % 2 == 1) & (end > begin)
    starts = marks[0::2]
    low, high = np.searchsorted(starts, begin, side="right"), np.searchsorted(starts, end, side="left")
    cut = {k for t in np.flatnonzero(high > low).tolist() for k in range(low[t], high[t])}
    owner = np.repeat(np.arange(len(texts)), [len(s) for s in spans])
    return mask, np.bincount(owner[sorted(cut)], minlength=len(texts)).tolist()


def _bytes_before(text: str, characters: int) -> int:
    return characters if text.isascii() else len(text[:characters].encode())


def bounds_of(lengths: Sequence[int]) -> np.ndarray:
    """Where parts of these lengths begin and end, put one after the other: R + 1 places."""
    bounds = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def plain_call(tokenizer: Any) -> bool:
    """Whether calling the tokenizer on texts is nothing but its Rust backend's ``encode_batch`` without padding."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    backend = tokenizer.backend_tokenizer
    return (
        all(getattr(own, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus"))
        and backend.truncation is None
        and backend.padding is None
        and bool(backend.encode_special_tokens) == bool(tokenizer.split_special_tokens)
    )


def parts_of(part: Any) -> list[dict[str, Any]]:
    """One part of a tokenizer.json with, after it, those inside a Sequence."""
    if not isinstance(part, dict):
        return []
    lists = ("normalizers", "pretokenizers", "processors", "decoders")
    return [part, *(found for key in lists for inner in part.get(key) or () for found in parts_of(inner))]


def kinds_of(part: Any) -> list[str]:
    """The type names of ``parts_of``; a Sequence itself does not count."""
    return [found["type"] for found in parts_of(part) if found["type"] != "Sequence"]


def _byte_of() -> dict[str, int]:
    """The 256 characters that byte-level BPE writes bytes with (Radford et al., 2019, GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_of()
