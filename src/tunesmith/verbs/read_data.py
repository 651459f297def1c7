"""The data of a config, read once before anything is made: what cannot be read is said before a run exists."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.errors import DataError
from tunesmith.config.files import write_json
from tunesmith.config.home import home
from tunesmith.config.progress import Progress
from tunesmith.data.load import OpenSet, bad_rows_error, examples_of, open_set

if TYPE_CHECKING:
    from tunesmith.verbs.run_config import TrainRun


def check_data(config: TrainRun, kind: str, progress: Progress) -> None:
    """Read every row of a config's data once, as examples of ``kind``; sets that were read before are not read again, and
    those that stream over the net are left to the encoding.

    Raises DataError for files and rows that cannot be read (rows: unless ``skip_bad``), and what hubs raise.
    """
    data = config.data
    for choice in (*data.train, *data.eval):
        opened = open_set(choice, data, progress)
        known = counted(opened, kind)
        if opened.source.remote or (
            known is not None and (known.bad == 0 or (data.skip_bad and known.bad < known.rows))
        ):
            continue
        total = 0
        bad: list[DataError] = []
        progress.start(f"reading {choice}", None, "rows")
        for value in examples_of(opened, kind):
            total += 1
            progress.advance(1)
            if isinstance(value, DataError):
                bad.append(value)
        progress.finish()
        with contextlib.suppress(OSError):  # a home that cannot be written to only costs the time to read again
            write_json(_count_file(opened, kind), asdict(Counted(total, len(bad))))
        if bad and (not data.skip_bad or len(bad) == total):
            raise bad_rows_error(opened, bad, total)


@dataclass(frozen=True)
class Counted:
    """How many rows a set has, and how many of them cannot be read."""

    rows: int
    bad: int


def _count_file(opened: OpenSet, kind: str) -> Path:
    mark = hashlib.sha256(f"{opened.fingerprint()} {kind}".encode()).hexdigest()[:40]
    return home() / "cache" / "read" / f"{mark}.json"


def counted(opened: OpenSet, kind: str) -> Counted | None:
    """What was counted when the set was read before."""
    try:
        return Counted(**json.loads(_count_file(opened, kind).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
