"""Where findings are kept: counted in memory, written to temporary files beyond a megabyte, so that a million of them do no harm."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from itertools import groupby
from typing import IO

from tunesmith.data.doctor.base import SEVERITIES, Finding, Severity

_IN_MEMORY = 1 << 20  # bytes per file


class Findings:
    """Findings by check, in the order in which they were made. A file is the findings of one check in one pass over the rows, and
    so in the order of the rows."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, int], IO[bytes]] = {}
        self._counts: dict[str, Counter[Severity]] = {}

    def add(self, check: str, finding: Finding, turn: int = 1) -> None:
        """``turn``: which pass over the rows."""
        key = (check, turn)
        if key not in self._files:
            self._files[key] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed with the object
        self._files[key].write(json.dumps(astuple(finding)).encode() + b"\n")
        self._counts.setdefault(check, Counter())[finding.severity] += 1

    def checks(self) -> list[str]:
        """Checks that found something, the gravest first."""
        return sorted(self._counts, key=lambda c: [-self._counts[c][s] for s in SEVERITIES])

    def count(self, severity: Severity, check: str | None = None) -> int:
        """How many findings of a severity there are, of one check or of all."""
        return sum(c[severity] for name, c in self._counts.items() if check in (None, name))

    def of(self, check: str) -> Iterator[Finding]:
        """The findings of one check."""
        for name, turn in sorted(self._files):
            if name == check:
                yield from self._read(name, turn)

    def fixable(self) -> Iterator[tuple[int, list[tuple[str, Finding]]]]:
        """Training rows that ``--fix`` has to do with, in order, with what was found."""

        def read(check: str, turn: int) -> Iterator[tuple[int, str, Finding]]:
            for f in self._read(check, turn):
                if f.fix and f.row >= 0 and f.part == "train":
                    yield f.row, check, f

        merged = heapq.merge(*(read(*key) for key in sorted(self._files)), key=lambda entry: entry[0])
        for row, entries in groupby(merged, key=lambda entry: entry[0]):
            yield row, [(check, finding) for _, check, finding in entries]

    def _read(self, check: str, turn: int) -> Iterator[Finding]:
        file, place = self._files[check, turn], 0
        while True:  # several readers may take turns on one file: each comes back to its own place
            file.seek(place)
            lines = file.readlines(1 << 16)
            if not lines:
                return
            place = file.tell()
            for line in lines:
                yield Finding(*json.loads(line))
