"""The ``tunesmith`` command."""

from __future__ import annotations


def main() -> None:
    """Entry point; the table of commands follows with the verbs."""
    raise SystemExit(2)
