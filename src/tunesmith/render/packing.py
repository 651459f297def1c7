"""Which rows share a micro-batch: as few token-bounded bins as possible, without padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of ``lengths`` in bins of at most ``capacity`` tokens; a longer row gets its own bin.

    Each index appears once; bins and their rows are in a fixed order that depends on the lengths alone. O(n log n).
    Best-fit decreasing uses at most 11/9 of the fewest possible bins + 1 (Johnson et al., 1974).
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, -bin), ascending
    for i in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        length = lengths[i]
        at = bisect_left(room, (length, -len(bins)))
        if at < len(room):
            free, negative = room.pop(at)
            bins[-negative].append(i)
            insort(room, (free - length, negative))
        else:
            bins.append([i])
            insort(room, (max(0, capacity - length), -(len(bins) - 1)))
    return [sorted(b) for b in bins]
