"""The proof of a deployment as one HTML page that needs nothing else: no script, style or font from anywhere, everything escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.evaluate.tasks.comparison import Comparison
    from tunesmith.export.deploy_report import Check, Proof

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2430; --dim:#5b6675; --page:#f6f7f9; --card:#fff; --line:#dfe3e8; --good:#0b6b33;
  --good-bg:#dcf5e5; --bad:#a8200d; --bad-bg:#fde7e3; --none-bg:#eceff3 }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e8ee; --dim:#9aa5b5; --page:#12161c; --card:#1a2029; --line:#2c3542;
  --good:#8fe3ae; --good-bg:#123d22; --bad:#ff9d8f; --bad-bg:#4a1a14; --none-bg:#262e3a } }
* { box-sizing:border-box } body { margin:0 auto; max-width:66rem; padding:1.6rem 1rem 4rem; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui,"Noto Sans SC","PingFang SC","Microsoft YaHei",sans-serif }
h1 { font-size:1.45rem; margin:0 0 .3rem; overflow-wrap:anywhere } h2 { font-size:1.05rem; margin:2rem 0 .6rem }
.outcome { font-size:1.02rem; margin:.2rem 0 1rem; overflow-wrap:anywhere }
.outcome.bad { color:var(--bad); font-weight:600 }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.15rem 1.1rem; margin:0 0 1.2rem; color:var(--dim); font-size:.9rem }
dt { color:var(--dim) } dd { margin:0; color:var(--ink); overflow-wrap:anywhere }
section { display:grid; grid-template-columns:2.1rem 1fr; gap:0 .8rem; background:var(--card); border:1px solid var(--line);
  border-radius:10px; padding:.75rem 1rem; margin-top:.6rem } section h3 { font-size:1rem; margin:.2rem 0 .25rem }
.sign { width:2rem; height:2rem; border-radius:50%; display:grid; place-items:center; font-weight:700; background:var(--none-bg) }
.passed .sign { background:var(--good-bg); color:var(--good) } .failed .sign { background:var(--bad-bg); color:var(--bad) }
.failed { border-color:var(--bad) } ul { margin:0; padding-left:1.1rem } li { overflow-wrap:anywhere } li::marker { color:var(--dim) }
.failed p { margin:.5rem 0 0 } .failed p b { color:var(--bad) }
.wide { overflow-x:auto; background:var(--card); border:1px solid var(--line); border-radius:10px } table { border-collapse:collapse; width:100% }
th, td { text-align:left; vertical-align:top; padding:.5rem .75rem; border-top:1px solid var(--line); min-width:9rem; white-space:pre-wrap;
  overflow-wrap:anywhere } thead th { border-top:0; font-size:.9rem; color:var(--dim) } td.q { color:var(--dim) } tfoot td { color:var(--dim); font-size:.9rem }
"""


def page(proof: Proof) -> str:
    """The page's text."""
    bad = " bad" if proof.broken else ""
    facts = "".join(
        f"<dt>{escape(what.replace('_', ' '))}</dt><dd>{escape(value)}</dd>" for what, value in proof.facts.items()
    )
    body = [
        f"<h1>{escape(proof.name)} in Ollama</h1>",
        f'<p class="outcome{bad}">{escape(proof.outcome)}</p>',
        f"<dl>{facts}</dl>",
        *(_check(check) for check in proof.checks),
    ]
    if proof.comparison is not None:
        body += ["<h2>Before and after</h2>", _answers(proof.comparison)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(proof.name)} in Ollama</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _check(check: Check) -> str:
    figures = "".join(f"<li>{escape(line)}</li>" for line in check.figures)
    words = ""
    if check.state == "failed":
        parts = (("What it means", check.means), ("What to do", check.todo))
        words = "".join(f"<p><b>{what}:</b> {escape(text)}</p>" for what, text in parts if text)
    return (
        f'<section class="{check.state.replace(" ", "-")}"><div class="sign" title="{escape(check.state)}">{check.sign}</div>'
        f"<div><h3>{check.number}. {escape(check.name)}</h3><ul>{figures}</ul>{words}</div></section>"
    )


def _answers(comparison: Comparison) -> str:
    """One row a question, one column a model; held-out loss at the foot where it was measured."""
    head = "".join(f"<th>{escape(c.name)}</th>" for c in comparison.candidates)
    rows = []
    for i, question in enumerate(comparison.questions):
        answers = "".join(f"<td>{escape(c.answers[i]) or '(empty)'}</td>" for c in comparison.candidates)
        rows.append(f'<tr><td class="q">{escape(question.text)}</td>{answers}</tr>')
    foot = ""
    if any(c.loss is not None for c in comparison.candidates):
        losses = "".join(
            f"<td>{'–' if c.loss is None else f'loss {c.loss:.4f}, perplexity {c.perplexity:.2f}'}</td>"
            for c in comparison.candidates
        )
        foot = f"<tfoot><tr><td>held-out rows</td>{losses}</tr></tfoot>"
    return f'<div class="wide"><table><thead><tr><th>asked</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>{foot}</table></div>'
