"""Rendered rows as one HTML page that needs nothing else: no script, style or font from anywhere, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from tunesmith.render.segments import Segment
from tunesmith.render.show_terminal import visible

_LABELS = {
    "learned": ("learned", "参与学习"),
    "special": ("special token", "特殊 token"),
    "context": ("read, not learned", "仅作上下文"),
    "hover": ("hover a token for its position and id", "悬停可查看 token 的位置与编号"),
    "tokens": ("tokens", "个 token"),
    "share": ("learned", "参与学习"),
    "dropped": ("earlier turns dropped", "个较早的轮次被丢弃"),
    "problem": ("cannot be shown", "无法显示"),
    "other": ("中文", "English"),
}

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2430; --dim:#667085; --page:#f6f7f9; --card:#fff; --line:#dfe3e8;
  --learned:#d3f3dc; --learned-ink:#0b4d22; --special:#7a3ea8; --bad:#b42318; --edge:#0002; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e8ee; --dim:#98a2b3; --page:#12161c; --card:#1a2029; --line:#2c3542;
  --learned:#123d22; --learned-ink:#b9f0c9; --special:#d2a8ff; --bad:#ff8a80; --edge:#fff3; } }
* { box-sizing:border-box } body { margin:0 auto; max-width:62rem; padding:1.5rem 1rem 4rem; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,"Noto Sans SC","PingFang SC","Microsoft YaHei",sans-serif }
h1 { font-size:1.25rem; margin:0 } .bar { display:flex; flex-wrap:wrap; gap:.4rem 1.2rem; align-items:baseline; color:var(--dim) }
.bar h1 { color:var(--ink) } button { margin-left:auto; font:inherit; color:inherit; background:none; border:1px solid var(--line);
  border-radius:6px; padding:.1rem .6rem; cursor:pointer }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; margin-top:1rem; padding: .8rem 1rem }
h2 { font-size:.95rem; margin:0; overflow-wrap:anywhere } .side { font-weight:600; margin-top:.6rem } .facts { color:var(--dim); font-size:.85rem }
pre { margin:.6rem 0 0; white-space:pre-wrap; overflow-wrap:anywhere; font:13px/1.75 ui-monospace,"Noto Sans Mono CJK SC",Consolas,monospace }
.t { position:relative; border-radius:3px } .t:hover { outline:1.5px solid currentColor; box-shadow:0 0 0 2px var(--edge) }
.t:hover::after { content:attr(data-t); position:absolute; left:0; top:100%; z-index:1; white-space:nowrap; pointer-events:none;
  background:var(--ink); color:var(--page); border-radius:4px; padding:0 .4rem; font:12px/1.6 system-ui,sans-serif }
.l { background:var(--learned); color:var(--learned-ink) } .s { color:var(--special); font-weight:600 } .n { color:var(--dim) }
.bad { color:var(--bad) } html[lang=en] .zh, html[lang=zh] .en { display:none }
"""
_SCRIPT = """
const root = document.documentElement;
if ((navigator.language || "").startsWith("zh")) root.lang = "zh";
document.querySelector("button").onclick = () => { root.lang = root.lang === "zh" ? "en" : "zh"; };
"""


@dataclass(frozen=True)
class Block:
    """One text of a row. ``facts``: number of tokens, learned tokens and dropped turns, when there are tokens."""

    label: str
    pieces: Sequence[Segment]
    facts: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class PageRow:
    """A row: its place, and its texts or why there are none."""

    origin: str
    blocks: Sequence[Block] = ()
    problem: str = ""


def page(title: str, subtitle: str, rows: Iterable[PageRow]) -> str:
    """The whole page. English and Chinese, light and dark, by the browser's own settings; a button changes the language."""
    legend = "".join(
        f'<span class="{style}">{_label(key)}</span>'
        for style, key in (("l", "learned"), ("s", "special"), ("", "context"))
    )
    body = "".join(map(_row, rows))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<div class="bar"><h1>{escape(title)}</h1><span>{escape(subtitle)}</span><button type="button">{_label("other")}</button></div>'
        f'<div class="bar facts">{legend}<span>{_label("hover")}</span></div>{body}<script>{_SCRIPT}</script></body></html>\n'
    )


def _label(key: str) -> str:
    english, chinese = _LABELS[key]
    return f'<span class="en">{escape(english)}</span><span class="zh">{escape(chinese)}</span>'


def _row(row: PageRow) -> str:
    problem = f'<p class="bad">{_label("problem")}: {escape(row.problem)}</p>' if row.problem else ""
    return f"<section><h2>{escape(row.origin)}</h2>{problem}{''.join(map(_block, row.blocks))}</section>\n"


def _block(block: Block) -> str:
    side = f'<div class="side">{escape(block.label)}</div>' if block.label else ""
    facts = ""
    if block.facts is not None:
        count, learned, dropped = block.facts
        lost = f" · <b>{dropped} {_label('dropped')}</b>" if dropped else ""
        share = learned / max(1, count)
        facts = f'<div class="facts">{count:,} {_label("tokens")} · {share:.0%} {_label("share")}{lost}</div>'
    return f"{side}{facts}<pre>{''.join(map(_piece, block.pieces))}</pre>"


def _piece(piece: Segment) -> str:
    # A line end is drawn, so that the token that holds it can be seen and pointed at.
    shown = escape(visible(piece.text)).replace("\n", '<span class="n">⏎</span>\n')
    if not piece.tokens:
        return shown
    style = "t" + (" l" if piece.learned else "") + (" s" if piece.special else "")
    places = ", ".join(map(str, piece.tokens))
    return f'<span class="{style}" data-t="#{places} · id {", ".join(map(str, piece.ids))}">{shown}</span>'
