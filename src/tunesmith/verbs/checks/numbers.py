"""Check 3: the numbers of every hop, from the model as it was trained to the one that the server answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.chat.ollama_api import ServerGoneError
from tunesmith.config.errors import ServerError, UserError
from tunesmith.config.progress import Progress
from tunesmith.evaluate.served import lower_bound
from tunesmith.export.deploy_report import Check
from tunesmith.export.ollama_reply import MOST_LOGPROBS
from tunesmith.verbs.checks.prompts import ONE_TOKEN
from tunesmith.verbs.checks.subject import Served, Subject
from tunesmith.verbs.proof import BROKEN, Evidence, Position, usual_kl

EXPLAINED = (
    "KL (nats): how far two models' probabilities for the next token are apart, 0 is the same; top-1: how often both find the same token "
    "most likely. Whole vocabularies"
)
FP32 = "; transformers computes in fp32"
MEANS = "other weights answer than those that were trained"
TODO_FILE = "do not use this file; export again, or take a finer level (f16 loses nothing)"
TODO_SERVER = "deploy again; if it stays, update Ollama, or see in its log whether it runs the model on a device that computes wrongly"
SAME_FILE = 0.01
"""Mean KL (nats) between two programs that run the same file; other kernels and a cache in 16 bits stay below."""


@dataclass(frozen=True)
class Told:
    """What the server tells of one position: KL lower bounds (nats) and top-1 agreement, to the merged model and to the file here."""

    merged: tuple[float, bool]
    file: tuple[float, bool]


def local(evidence: Evidence, failure: UserError | None) -> Check:
    """The hops measured in this process; ``failure``: what ``check_parity`` raised."""
    figures = [*(str(hop) for hop in evidence.hops), *evidence.missing]
    if failure is not None:
        return Check(3, "failed", (failure.message, *figures), MEANS, failure.hint or TODO_FILE)
    if not evidence.positions:  # no hop reaches the file
        return Check(3, "not measured", tuple(figures))
    fp32 = "" if any(hop.how for hop in evidence.hops) else FP32
    return Check(3, "passed", (*figures, EXPLAINED + fp32))


def served(
    check: Check, subject: Subject, there: Served, evidence: Evidence, progress: Progress, made_there: str | None = None
) -> Check:
    """``check`` with the last hop, file → server, in it. ``made_there``: the level that the server made of the file itself."""
    progress.start("comparing the server's numbers", len(evidence.positions), "positions")
    found: list[Told] = []
    try:
        for position in evidence.positions:
            told = ask(subject, there, position)
            found += [told] if told is not None else []
            progress.advance(1)
    except ServerGoneError:
        raise
    except ServerError as error:
        progress.finish("the server refuses")
        return replace(
            check, state="failed", figures=(*check.figures, error.message), means=MEANS, todo=error.hint or TODO_SERVER
        )
    if not found:
        progress.finish("the server tells none")
        return replace(
            check, figures=(*check.figures, "file → server: not measured, since this server tells no probabilities")
        )
    usual = usual_kl((made_there or subject.made.level).lower()) + SAME_FILE
    same = SAME_FILE if made_there is None else usual
    lines = [
        f"{subject.made.file.name} → server: {_words([t.file for t in found])} (usual: below {same:g})",
        f"merged → server: {_words([t.merged for t in found])} (usual: below {usual:g})",
        f"the server tells {MOST_LOGPROBS} tokens at most: its KL is a lower bound, over these and one bucket of all others",
    ]
    wrong = _mean([t.file for t in found]) > BROKEN * same or _mean([t.merged for t in found]) > BROKEN * usual
    progress.finish(lines[0])
    if wrong:
        return replace(check, state="failed", figures=(*check.figures, *lines), means=MEANS, todo=TODO_SERVER)
    return replace(check, figures=(*check.figures, *lines))


def ask(subject: Subject, there: Served, position: Position) -> Told | None:
    """What the server tells after ``position``; None when it tells nothing, or the tokens cannot be written as a text."""
    text = as_text(subject, position.ids)
    if text is None:
        return None
    reply = there.server.complete(there.name, text, ONE_TOKEN, top=MOST_LOGPROBS)
    if not reply.top or not reply.top[0]:
        return None
    ids = subject.ids_of_bytes
    told = [(ids.get(name, ()), value) for name, value in reply.top[0]]
    if not any(len(group) for group, _ in told):
        return None
    return Told(lower_bound(position.merged, told), lower_bound(position.file, told))


def as_text(subject: Subject, ids: Sequence[int]) -> str | None:
    """A text that the GGUF's tokenizer reads as exactly ``ids`` (with the beginning token that it adds itself)."""
    vocabulary = subject.file.vocabulary
    rest = list(ids)
    if vocabulary.adds_bos:
        if rest[:1] != [vocabulary.bos]:
            return None
        rest = rest[1:]
    try:
        text = b"".join(vocabulary.piece(token, special=True) for token in rest).decode("utf-8")
    except UnicodeDecodeError:  # it ends inside a character
        return None
    for candidate in (text, text.removeprefix(" ")):
        if candidate and subject.file.tokenize(candidate, add_special=True) == list(ids):
            return candidate
    return None


def _mean(pairs: Sequence[tuple[float, bool]]) -> float:
    return sum(kl for kl, _ in pairs) / len(pairs)


def _words(pairs: Sequence[tuple[float, bool]]) -> str:
    agree = sum(same for _, same in pairs) / len(pairs)
    return f"mean KL ≥ {_mean(pairs):.2g} nats, top-1 agreement {agree:.1%} over {len(pairs)} positions"
