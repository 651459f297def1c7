"""Check 6: base, tuned and deployed model answer the same prompts, side by side, with their loss on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunesmith.chat.base import Engine, Sampling
from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.chat.ollama_api import ServerGoneError
from tunesmith.chat.ollama_engine import OllamaEngine
from tunesmith.chat.transformers_engine import TransformersEngine
from tunesmith.config.errors import RenderError
from tunesmith.config.progress import Progress
from tunesmith.evaluate.held_out import HeldOut, total_loss
from tunesmith.evaluate.tasks.comparison import Comparison, Question, compare
from tunesmith.export.deploy_report import Check
from tunesmith.export.ollama_shown import shorten
from tunesmith.render.conversation import Rendered
from tunesmith.render.stop import stop_token_ids
from tunesmith.verbs.checks.asked import spread
from tunesmith.verbs.checks.subject import Served, Subject
from tunesmith.verbs.opening import room_to_ask
from tunesmith.verbs.prompts import with_system
from tunesmith.verbs.quality_shown import why
from tunesmith.verbs.targets import open_weights, renderer_of

PROMPTS = 6
MOST_TOKENS = 128
ROWS = 12
"""The loss is measured on so many rows."""


def check(subject: Subject, served: Served | None, progress: Progress) -> tuple[Check, Comparison | None]:
    """Ask the base (when something was learned on it), the model, and the server's (or the file here): all with the same messages,
    the system prompt of the training among them."""
    target = subject.target
    chats = [chat for chat in spread(subject.asked.chats, PROMPTS) if not chat.tools]
    questions = [with_system(Question(tuple(chat.prompt()), chat.answer()), subject.system) for chat in chats]
    rows = _rendered(subject)
    openers: list[tuple[str, Callable[[], Engine]]] = []
    if target.learned is not None:
        before = replace(target, name=f"base of {target.name}", learned=None)
        openers.append(("base", lambda: TransformersEngine(open_weights(before), renderer_of(before), "base")))
    openers.append(("tuned" if target.learned is not None else "model", lambda: _model(subject)))
    where = "in Ollama" if served is not None else "GGUF"
    openers.append(
        (
            where,
            lambda: (
                OllamaEngine(served.name, served.server.url, think=subject.think)
                if served is not None
                else _file(subject)
            ),
        )
    )
    try:
        for one in (target, replace(target, learned=None)) if target.learned is not None else (target,):
            room_to_ask(one)
        found = compare(
            openers,
            questions,
            HeldOut(rendered=tuple(rows)),
            Sampling(max_tokens=min(subject.asked.limit, MOST_TOKENS)),
            progress,
        )
        total, tokens = total_loss(subject.file, rows) if served is not None and rows else (0.0, 0)
    except ServerGoneError:
        raise
    except Exception as error:  # it proves nothing, so it must not end a proved deployment
        return Check(6, "not measured", (f"the models could not be compared: {' '.join(why(error).split())}",)), None
    if served is not None and rows:
        loss = total / tokens
        last = replace(found.candidates[-1], why="", loss=loss, perplexity=_perplexity(loss), tokens=tokens)
        found = replace(found, candidates=(*found.candidates[:-1], last))
    figures = [f"{len(questions)} prompts ({subject.asked.source}), side by side in the report"]
    if subject.system:
        figures.append(f"all were asked with the system prompt of the training: {shorten(subject.system)}")
    if all(c.loss is not None for c in found.candidates):
        losses = ", ".join(f"{c.name} {c.loss:.4f}" for c in found.candidates)
        figures.append(
            f"loss (nats a token) over {found.candidates[0].tokens} tokens of {len(rows)} {subject.asked.source}: {losses}"
        )
        if served is not None:
            figures.append(
                "that of the deployed model is measured on the same file in llama.cpp: a server does not tell it"
            )
    return Check(6, "passed", tuple(figures)), found


def _rendered(subject: Subject) -> list[Rendered]:
    """Rows as tokens, those that fit the file's context."""
    found = []
    for row in subject.asked.rows[:ROWS]:
        try:
            rendered = subject.renderer.render(row)
        except RenderError:
            continue
        if len(rendered.ids) <= subject.file.n_ctx and any(rendered.mask[1:]):
            found.append(rendered)
    return found


def _model(subject: Subject) -> Engine:
    return TransformersEngine(open_weights(subject.target), renderer_of(subject.target), "tuned")


def _file(subject: Subject) -> Engine:
    return LlamaCppEngine(
        subject.made.file, tokenizer=subject.renderer.tokenizer, stop_token_ids=stop_token_ids(subject.renderer)
    )


def _perplexity(loss: float) -> float:
    import math

    return math.exp(min(loss, 700.0))
