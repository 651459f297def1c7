"""A column of true and false that nothing reads: where it tells good answers from bad ones, the bad ones would be learned."""

from __future__ import annotations

from tunesmith.data.doctor import base


class Check(base.Check):
    """Its finding comes from the data set as a whole, not from rows (``verdict_finding``)."""

    title = "verdicts that are not read"


def verdict_finding(name: str, column: str) -> base.Finding:
    """The finding for a set with such a column."""
    return base.Finding(
        "warning",
        f"the column {column!r} is not read; if it tells good answers from bad ones, the bad ones would be learned too",
        f"'{{set: {name}, columns: {{kto_tag: {column}}}}}' makes feedback of the rows; leave out the bad rows to learn the good ones",
        name,
    )
