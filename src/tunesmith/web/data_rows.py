"""The answer of ``tunesmith data show --json`` -> a page of its own for a frame without rights.

The rows are the least trusted text there is. They are escaped, and stand in a frame (``sandbox``) that runs no script, under a
policy that loads nothing; so even a mistake in the escaping stays without consequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.web.language import Texts

MOST_BYTES = 32_000_000
"""Of an answer; a row is seldom larger than a thousandth of it."""
MOST_CHARACTERS = 20_000
"""Shown of one text."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink:#1d2125; --soft:#5f666d; --card:#fff; --line:#e4e4e0; --learned:#d3f3dc; --learned-ink:#0b4d22; --special:#7a3ea8; --bad:#b42318 }
.body--dark { --ink:#e7eaec; --soft:#9ba4ad; --card:#1c2024; --line:#2f353b; --learned:#164a2a; --learned-ink:#c3f2d1; --special:#d2a8ff;
  --bad:#ff8a7d }
* { box-sizing:border-box }
body { margin:0; background:var(--card); color:var(--ink); font:14px/1.5 system-ui,"Noto Sans SC","PingFang SC","Microsoft YaHei",sans-serif }
section { border-top:1px solid var(--line); padding:12px 2px 16px } section:first-of-type { border-top:0 }
h3 { font-size:13px; margin:0; overflow-wrap:anywhere; font-weight:600 } .facts { color:var(--soft); font-size:13px }
.where { color:var(--soft); font-size:12.5px; margin-top:8px; font-weight:600 } .bad { color:var(--bad); white-space:pre-wrap }
pre { margin:6px 0 0; white-space:pre-wrap; overflow-wrap:anywhere; font:13px/1.75 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace }
.key { display:flex; flex-wrap:wrap; gap:6px 18px; color:var(--soft); font-size:13px; padding-bottom:8px }
.l { background:var(--learned); color:var(--learned-ink); border-radius:3px } .s { color:var(--special); font-weight:600 } .n { color:var(--soft) }
.t:hover { outline:1.5px solid currentColor }
"""


def read_rows(path: Path) -> Mapping[str, Any]:
    """The answer. Raises ValueError when it is too large or not one."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"the rows take {size / 1e6:.0f} MB, too much for a page; ask for fewer")
    answer = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(answer, dict) or not isinstance(answer.get("rows"), list):
        raise ValueError("there are no rows in it")
    return answer


def document(answer: Mapping[str, Any], t: Texts) -> str:
    """The whole page for the frame."""
    key = ""
    if answer.get("model"):
        key = (
            f'<div class="key"><span><span class="l">{escape(t("rows.learned"))}</span></span>'
            f'<span class="s">{escape(t("rows.special"))}</span><span>{escape(t("rows.context"))}</span></div>'
        )
    rows = "".join(_row(row, t) for row in answer["rows"] if isinstance(row, Mapping))
    return (
        f'<!doctype html><html lang="{t.html_lang}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head>'
        f"<body>{key}{rows}</body></html>"
    )


def _row(row: Mapping[str, Any], t: Texts) -> str:
    parts = [f"<h3>{_text(row.get('origin'), t)}</h3>"]
    if row.get("problem"):
        parts.append(f'<div class="bad">{escape(t("rows.problem"))}: {_text(row["problem"], t)}</div>')
    sides = [s for s in _list(row.get("sides")) if isinstance(s, Mapping)]
    parts += [_side(side, t) for side in sides]
    if not sides:
        for piece in _list(row.get("pieces")):
            if isinstance(piece, Mapping):
                parts.append(
                    f'<div class="where">{_text(piece.get("where"), t)}</div><pre>{_text(piece.get("text"), t)}</pre>'
                )
    return f"<section>{''.join(parts)}</section>"


def _side(side: Mapping[str, Any], t: Texts) -> str:
    segments = [s for s in _list(side.get("segments")) if isinstance(s, Mapping)]
    count = len(_list(side.get("ids")))
    learned = sum(map(bool, _list(side.get("mask"))[1:]))
    facts = t("rows.facts", count=f"{count:,}", learned=f"{learned:,}", share=f"{learned / max(1, count):.0%}")
    if side.get("dropped_turns"):
        facts += " · " + t("rows.dropped", count=str(side["dropped_turns"]))
    label = f'<div class="where">{_text(side.get("label"), t)}</div>' if side.get("label") else ""
    return f'{label}<div class="facts">{escape(facts)}</div><pre>{"".join(_segment(s, t) for s in segments)}</pre>'


def _segment(segment: Mapping[str, Any], t: Texts) -> str:
    # A line end is drawn, so that the token that holds it can be seen and pointed at.
    shown = _text(segment.get("text"), t).replace("\n", '<span class="n">⏎</span>\n')
    places, ids = (", ".join(map(str, _list(segment.get(key)))) for key in ("tokens", "ids"))
    if not places:
        return shown
    style = "t" + (" l" if segment.get("learned") else "") + (" s" if segment.get("special") else "")
    return f'<span class="{style}" title="#{escape(places, quote=True)} · id {escape(ids, quote=True)}">{shown}</span>'


def _text(value: Any, t: Texts) -> str:
    """Escaped, with what cannot be seen or would turn the line around written out."""
    text = "" if value is None else str(value)
    left = len(text) - MOST_CHARACTERS
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"‹U+{ord(c):04X}›" for c in text[:MOST_CHARACTERS])
    return escape(shown, quote=True) + (
        f' <span class="n">{escape(t("rows.more", count=f"{left:,}"))}</span>' if left > 0 else ""
    )


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []
