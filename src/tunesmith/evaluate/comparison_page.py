"""A comparison as one self-contained page: no script, nothing loaded, light and dark; models' words are escaped, never markup."""

from __future__ import annotations

from html import escape

from tunesmith.evaluate.tasks.comparison import Candidate, Comparison, Question
from tunesmith.evaluate.word_changes import changed_words

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --soft: #62676e; --line: #d9dce0; --card: #f6f7f8; --mark: #fdeea6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e7e9; --soft: #9aa1a9; --line: #34383d; --card: #1e2125; --mark: #5a4c10; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 110rem; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
h2 span, h3, .soft { color: var(--soft); font-weight: 500; }
h3 { font-size: .8rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n { font-variant-numeric: tabular-nums; }
.answers { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
article, .context { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; min-width: 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; } mark { background: var(--mark); color: inherit; border-radius: .15rem; }
details { margin: .25rem 0 .75rem; } summary { cursor: pointer; color: var(--soft); }
""".strip()


def page(found: Comparison, title: str = "Comparison") -> str:
    """The comparison as HTML. Answers of the second model and on are marked where the one before them says otherwise, word by word."""
    body = [f"<h1>{escape(title)}</h1>", _figures(found)]
    if len(found.candidates) > 1:
        body.append('<p class="soft">Marked: what the answer to its left does not say there.</p>')
    body += [_question(found, i, question) for i, question in enumerate(found.questions)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _figures(found: Comparison) -> str:
    rows = found.figures()
    if len(rows) < 2:
        return ""
    head, *lines = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    table = [f"<table><thead><tr>{cells}</tr></thead><tbody>"]
    for name, *values in lines:
        numbers = "".join(f'<td class="n">{escape(value)}</td>' for value in values)
        table.append(f"<tr><td>{escape(name)}</td>{numbers}</tr>")
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in found.notes())
    return "".join(table) + "</tbody></table>" + notes


def _question(found: Comparison, index: int, question: Question) -> str:
    cards = []
    for place, candidate in enumerate(found.candidates):
        before = found.candidates[place - 1].answers[index] if place else None
        cards.append(_card(candidate, candidate.answers[index], before))
    if question.reference:
        cards.append(f'<article><h3>reference</h3><div class="text">{_visible(question.reference)}</div></article>')
    return (
        f"<section><h2><span>{index + 1}.</span> {_visible(question.text)}</h2>{_context(question)}"
        f'<div class="answers">{"".join(cards)}</div></section>'
    )


def _context(question: Question) -> str:
    """System prompt and earlier turns, folded."""
    earlier = question.messages[:-1]
    if not earlier:
        return ""
    turns = "".join(
        f'<p class="text"><span class="soft">{escape(str(m.get("role", "")))}:</span> {_visible(str(m.get("content", "")))}</p>'
        for m in earlier
    )
    return f'<details><summary>before that: {escape(", ".join(str(m.get("role", "")) for m in earlier))}</summary><div class="context">{turns}</div></details>'


def _card(candidate: Candidate, text: str, before: str | None) -> str:
    same = before is not None and text == before
    pieces = changed_words(before, text) if before is not None and not same else [(text, False)]
    words = "".join(f"<mark>{escape(piece)}</mark>" if changed else escape(piece) for piece, changed in pieces)
    note = ' <span class="soft">(the same words)</span>' if same and text else ""
    shown = words if text else '<span class="soft">(empty)</span>'
    return f'<article><h3>{escape(candidate.name)}{note}</h3><div class="text">{shown}</div></article>'


def _visible(text: str) -> str:
    return escape(text) if text.strip() else '<span class="soft">(empty)</span>'
