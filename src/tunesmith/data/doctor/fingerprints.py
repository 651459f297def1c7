"""What is kept of every row: hashes, a MinHash signature and its place, about 100 bytes in all. No text.

Near duplicates by MinHash (Broder, "On the resemblance and containment of documents", 1997) with locality-sensitive hashing in
bands (Indyk & Motwani, 1998); of each minimum only 8 bits are kept (Li & König, "b-bit minwise hashing", 2010). Shingles are
windows of 8 bytes of UTF-8: 8 letters, or between two and three Chinese characters.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 64
"""Bytes of a signature, in bands of 4 that must agree: the 16 bands find 99.9 % of the pairs that are 80 % alike."""
SHORTEST = 40
"""Bytes; shorter texts have too few shingles to compare."""
LONGEST = 16_384
"""Bytes of a text that are looked at."""
_CHUNK = 1 << 19  # bytes of text hashed at a time: the work arrays then stay in the cache
_random = np.random.default_rng(1997)
_FACTORS = _random.integers(1, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_ADDENDS = _random.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
_NUMBERED = re.compile(r"(.*?)(\d{1,9})\Z", re.DOTALL)

Signatures = NDArray[np.uint8]


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b; white space at the ends does not count."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest())


class Origins:
    """Places of rows (``file:12``) in 8 bytes each: the text before the number once, the number per row."""

    def __init__(self) -> None:
        self._stems: dict[str, int] = {}
        self._names: list[str] = []
        self._stem, self._number = array("i"), array("i")

    def append(self, origin: str) -> None:
        found = _NUMBERED.match(origin)
        whole = found is None or (len(found[2]) > 1 and found[2][0] == "0")
        stem, number = (origin, -1) if found is None or whole else (found[1], int(found[2]))
        if stem not in self._stems:
            self._stems[stem] = len(self._names)
            self._names.append(stem)
        self._stem.append(self._stems[stem])
        self._number.append(number)

    def __getitem__(self, index: int) -> str:
        number = self._number[index]
        return self._names[self._stem[index]] + (str(number) if number >= 0 else "")

    def __len__(self) -> int:
        return len(self._number)


class Fingerprints:
    """One entry per row, in order; rows that could not be read have zeros, which count as equal to nothing."""

    def __init__(self) -> None:
        self.origins = Origins()
        self._whole, self._question, self._answer = array("Q"), array("Q"), array("Q")
        self._signatures = bytearray()
        self._waiting: list[bytes] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.origins)

    def append(self, origin: str, whole: str = "", question: str = "", answer: str = "", compared: str = "") -> None:
        """``whole`` stands for equality of rows; ``compared`` is the text that near duplicates are looked for in."""
        self.origins.append(origin)
        for kept, text in ((self._whole, whole), (self._question, question), (self._answer, answer)):
            kept.append(text_hash(text) if text else 0)
        plain = " ".join(compared.lower().split()).encode("utf-8", "surrogatepass")[:LONGEST]
        self._waiting.append(plain if len(plain) >= SHORTEST else b"")
        self._bytes += len(plain)
        if self._bytes >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._signatures += signatures(self._waiting).tobytes()
        self._waiting, self._bytes = [], 0

    @property
    def whole(self) -> NDArray[np.uint64]:
        return np.array(self._whole, dtype=np.uint64)

    @property
    def question(self) -> NDArray[np.uint64]:
        return np.array(self._question, dtype=np.uint64)

    @property
    def answer(self) -> NDArray[np.uint64]:
        return np.array(self._answer, dtype=np.uint64)

    @property
    def signatures(self) -> Signatures:
        """(rows, PERMUTATIONS), not copied: no row may follow. All zeros where there is too little text."""
        self._flush()
        return np.frombuffer(self._signatures, dtype=np.uint8).reshape(-1, PERMUTATIONS)


def signatures(texts: list[bytes]) -> Signatures:
    """MinHash signatures (len(texts), PERMUTATIONS); texts shorter than ``SHORTEST`` bytes get zeros."""
    result = np.zeros((len(texts), PERMUTATIONS), dtype=np.uint8)
    kept = [i for i, text in enumerate(texts) if len(text) >= SHORTEST]
    if not kept:
        return result
    # The windows of all texts at once; those that reach over the end of a text are left out.
    lengths = np.array([len(texts[i]) for i in kept])
    windows = np.frombuffer(b"".join([texts[i] for i in kept]), dtype=np.uint8).astype(np.uint64)
    for width in (1, 2, 4):
        windows = windows[:-width] | (windows[width:] << np.uint64(8 * width))
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    inside = np.ones(len(windows), dtype=bool)
    for back in range(1, 8):
        inside[starts[1:] - back] = False
    hashed = _mixed(windows[inside])
    starts = np.concatenate(([0], np.cumsum(lengths - 7)[:-1]))
    work = np.empty_like(hashed)
    for k in range(PERMUTATIONS):
        np.multiply(hashed, _FACTORS[k], out=work)
        np.add(work, _ADDENDS[k], out=work)
        least = np.minimum.reduceat(work, starts)
        least ^= (least >> np.uint32(8)) ^ (least >> np.uint32(16))
        result[kept, k] = least.astype(np.uint8)
    return result


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The finalizer of MurmurHash3 (Appleby): every bit of the window moves every bit of the result."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return (values ^ (values >> np.uint64(33))).astype(np.uint32)


def alike(a: Signatures, b: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity (0 to 1) of rows of signatures, less the share that agrees by chance (1/256)."""
    same = (a == b).mean(axis=1)
    found: NDArray[np.float64] = np.clip((same - 1 / 256) / (1 - 1 / 256), 0, 1)
    return found


def candidates(found: Signatures) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (earlier row, later row) that agree in a band: each row with the first of its bucket and with the one before it."""
    full = np.flatnonzero(found.any(axis=1))
    bands = np.ascontiguousarray(found).view(np.uint32)
    for band in range(bands.shape[1]):
        keys = bands[full, band]
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], full[order]
        fresh = np.concatenate(([True], keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, dtype=bool)
        first = rows[np.maximum.accumulate(np.where(fresh, np.arange(len(rows)), 0))]
        later = np.flatnonzero(~fresh)
        yield first[later], rows[later]
        yield rows[later - 1], rows[later]


def near(found: Signatures, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each row the earlier row most like it (-1 = none at least ``threshold`` alike) and how alike they are."""
    partner = np.full(len(found), -1, dtype=np.int64)
    score = np.zeros(len(found))
    for earlier, later in candidates(found):
        for at in range(0, len(later), 8192):
            a, b = earlier[at : at + 8192], later[at : at + 8192]
            how = alike(found[a], found[b])
            better = (how >= threshold) & (how > score[b])
            partner[b[better]], score[b[better]] = a[better], how[better]
    return partner, score


def first_of_equal(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the first row with the same hash, itself included; rows with hash 0 are their own."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    fresh = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, dtype=bool)
    first = np.empty(len(hashes), dtype=np.int64)
    first[order] = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    return np.where(hashes == 0, np.arange(len(hashes)), first)
