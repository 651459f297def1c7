"""Numbers as people read them."""

from __future__ import annotations

import math
import re
import time
from typing import Any

NONE = "–"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")


def is_number(value: Any) -> bool:
    """A finite int or float (not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 4, *, steady: bool = False) -> str:
    """A number with ``digits`` significant digits: ``2.313``, ``1,234``, ``1e-05``; ``steady`` keeps trailing zeros."""
    if not is_number(value):
        return NONE
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}" if steady else f"{value:.{digits}g}"


def duration(seconds: Any) -> str:
    """Seconds as ``42 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if not is_number(seconds) or seconds < 0:
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {s:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(seconds: Any) -> str:
    """Seconds since the epoch as local ``2026-11-23 18:07``."""
    if not is_number(seconds) or seconds <= 0:
        return NONE
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size(count: int) -> str:
    """Bytes as ``1.2 MB`` (powers of ten, as disks are sold)."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def plain_log(text: str) -> str:
    """A log without colour codes, and of lines that were drawn over (progress bars) only the last state."""
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
