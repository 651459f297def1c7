"""Check 2: the GGUF's tokenizer gives the ids the model was trained on, in this process and, by their number, on the server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tunesmith.config.progress import Progress
from tunesmith.export.deploy_report import Check
from tunesmith.export.load_back import PROBES
from tunesmith.verbs.checks.prompts import ONE_TOKEN, counted
from tunesmith.verbs.checks.subject import Served, Subject

MEANS = "the model reads other tokens than it was trained on: digits, spaces or special tokens fall apart otherwise"
TODO = "export again with this version, which writes the pre-tokenizer itself; a server that still differs is too old for this model: update it"
TEXTS = (
    *PROBES,
    "1234567890 00 1,000.50 3.14e-10 １２３",
    " ",
    "  \n\n\t\t\n   \r\n a\u00a0b\u3000c",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。\n繁體字與简体字混排，ＡＢＣ。",
    "🇨🇳🏳️‍🌈👨‍👩‍👧‍👦 e\u0301 ﷽ \u200d",
    "don't I'll we've THEY'RE it's 'S",
    "https://example.com/a?b=c&d=%20#e <|x|> [INST] </s",
)
SERVER = 8
"""So many texts are counted by the server."""


def check(
    subject: Subject,
    served: Served | None,
    progress: Progress,
    odd: Sequence[str] = (),
    *,
    prompts_differ: bool = False,
) -> Check:
    """Compare ids of all texts; the first difference is shown. ``odd``: prompts of other token counts on the server, in words;
    ``prompts_differ``: the check of prompts failed, and may have found a beginning token too many.
    """
    tokenizer = subject.renderer.tokenizer
    special = sorted({str(token) for token in tokenizer.all_special_tokens})
    rows = [subject.renderer.text(row.as_dicts(), tools=row.tools) for row in subject.asked.rows]
    texts = [*TEXTS, "".join(special), *(f"a {token} b" for token in special[:40]), *rows]
    progress.start("comparing tokens", len(texts), "texts")
    wrong: list[str] = []
    total = 0
    for text in texts:
        theirs = list(tokenizer(text, add_special_tokens=False).input_ids)
        ours = subject.file.tokenize(text)
        total += len(theirs)
        if ours != theirs:
            wrong.append(_first(text, ours, theirs))
        progress.advance(1)
    figures = [f"{len(texts)} texts, {total} tokens: ids equal in llama.cpp, which reads the GGUF here"]
    if wrong:
        figures = [f"{len(wrong)} of {len(texts)} texts have other ids in the GGUF than in training", *wrong[:3]]
    elif served is not None:
        counts, told = _on_server(subject, served, prompts_differ)
        figures += [told] if told else []
        wrong = [*counts, *odd]
        figures += wrong[:3]
    progress.finish(f"{len(wrong)} differ" if wrong else "equal")
    return Check(2, "failed", tuple(figures), MEANS, TODO) if wrong else Check(2, "passed", tuple(figures))


def _on_server(subject: Subject, served: Served, prompts_differ: bool) -> tuple[list[str], str]:
    """(texts of which the server counts other tokens, in words; what was counted)."""
    vocabulary = subject.file.vocabulary
    wrong, equal, offsets = [], 0, set()
    for text in [text for text in TEXTS if text.strip()][:SERVER]:
        expected = len(subject.file.tokenize(text)) + vocabulary.adds_bos
        reply = counted(served, expected, partial(served.server.complete, served.name, text, ONE_TOKEN))
        if not reply.prompt_tokens:
            return [], "the server tells no token counts"
        offsets.add(reply.prompt_tokens - expected)
        if reply.prompt_tokens == expected:
            equal += 1
        else:
            wrong.append(f"the server reads {text[:40]!r} as {reply.prompt_tokens} tokens, not {expected}")
    if prompts_differ and len(offsets) == 1 and wrong:
        return (
            [],
            f"every text has {offsets.pop():+d} tokens on the server: its beginning token (see 1), no text is read otherwise",
        )
    return wrong, f"the server counts as many tokens in {equal} of {equal + len(wrong)} texts"


def _first(text: str, ours: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"{text[:40]!r}, from token {at}: {ours[at : at + 4]} instead of {theirs[at : at + 4]}"
