"""Which rows share a micro-batch: as few token-bounded bins as possible, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of ``lengths`` in bins of at most ``capacity`` tokens; a longer row gets its own bin.

    Each index appears once; bins and their rows are in a fixed order that depends on the lengths alone. O(n log n) for the
    sort, then O(n) steps on ``_Room``. Best-fit decreasing uses at most 11/9 of the fewest possible bins + 1 (Johnson et
    al., 1974).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")  # equal lengths in the order they came
    bins: list[list[int]] = []
    room = _Room()
    for i, length in zip(order.tolist(), sizes[order].tolist()):
        free = room.tightest(length)
        if free is None:
            at, free = len(bins), capacity
            bins.append([])
        else:
            at = room.pop(free)
        bins[at].append(i)
        if free > length:
            room.push(free - length, at)
    for members in bins:
        members.sort()
    return bins


def pack_stream(lengths: Iterable[int], capacity: int, *, ahead: int = 4096) -> Iterator[list[int]]:
    """``pack`` for rows that keep coming: of each ``ahead`` rows only the full bins are given out, the rows of the others
    wait for the next ones. Memory is bounded by ``ahead``; each index appears once, the last bins come at the end.

    A row waits for at most a few rounds: the bins of its round are given out once they are 99 % full, or when the rows that
    wait are more than half of ``ahead``, the fullest first.
    """
    waiting: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        waiting.append((i, length))
        if len(waiting) < ahead:
            continue
        bins = sorted(_bins(waiting, capacity), key=lambda b: -sum(length for _, length in b))
        rest = len(waiting)
        waiting = []
        for members in bins:
            if sum(length for _, length in members) >= 0.99 * capacity or rest > ahead // 2:
                rest -= len(members)
                yield [i for i, _ in members]
            else:
                waiting += members
        waiting.sort()
    for members in _bins(waiting, capacity):
        yield [i for i, _ in members]


def _bins(rows: Sequence[tuple[int, int]], capacity: int) -> list[list[tuple[int, int]]]:
    return [[rows[k] for k in members] for members in pack([length for _, length in rows], capacity)]


class _Room:
    """Bins by their free tokens. The tightest one that fits is found through a bit set: bit f is set where a bin has f free.

    Python's integers find and change a bit in O(capacity / 64), a few hundred nanoseconds for the capacities in use.
    """

    def __init__(self) -> None:
        self._bins: dict[int, list[int]] = {}
        self._bits = 0

    def tightest(self, length: int) -> int | None:
        """The least free room of a bin that still holds ``length`` tokens; None when no bin does."""
        fitting = self._bits >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else None

    def pop(self, free: int) -> int:
        """Take out a bin with exactly ``free`` tokens of room."""
        stack = self._bins[free]
        if len(stack) == 1:
            self._bits ^= 1 << free
        return stack.pop()

    def push(self, free: int, bin: int) -> None:
        stack = self._bins.setdefault(free, [])
        if not stack:
            self._bits |= 1 << free
        stack.append(bin)
