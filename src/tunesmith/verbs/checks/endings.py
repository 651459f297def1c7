"""Check 4: greedy answers come to their end, within a length that the training answers set."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.chat.base import Sampling
from tunesmith.chat.ollama_api import ServerGoneError
from tunesmith.chat.ollama_engine import request_options
from tunesmith.config.errors import ServerError
from tunesmith.config.progress import Progress
from tunesmith.data.example import Chat
from tunesmith.export.deploy_report import Check
from tunesmith.render.stop import stop_token_ids
from tunesmith.verbs.checks.subject import Served, Subject, for_server

MEANS = "the model talks on after its answer, or for ever"
TODO = (
    "look at PARAMETER stop in the Modelfile and at the end-of-turn in the training rows (`tunesmith data show`): it must be learned, "
    "and be the token that the server stops at"
)
TODO_MODEL = (
    "the model itself does not end them, so it did not learn to: train longer, or look whether the training rows end as they should "
    "(`tunesmith data show`)"
)
OWN = 0.1
"""This share of answers may run on when the model itself does the same: greedy answers of small models fall into loops."""


@dataclass(frozen=True)
class _Ran:
    """An answer that did not end. ``own``: the model does not end it here either, stopped at the tokens of its training."""

    question: str
    tail: str
    own: bool


def check(subject: Subject, served: Served | None, progress: Progress) -> Check:
    """Ask every prompt of `Asked`; what runs on is asked again in this process, to tell whose doing it is."""
    asked = subject.asked
    chats = [chat for chat in asked.chats if _fits(subject, chat)]
    limit = asked.limit
    progress.start("asking for answers that end", len(chats), "answers")
    ran: list[_Ran] = []
    try:
        for chat in chats:
            ended, text = (
                _there(served, chat, limit, subject.think)
                if served is not None
                else _here(subject, chat, limit, stops=False)
            )
            if not ended:
                own = not _here(subject, chat, limit, stops=True)[0]
                ran.append(_Ran(str(chat.prompt()[-1]["content"]), text[-60:], own))
            progress.advance(1)
    except ServerGoneError:
        raise
    except ServerError as error:
        progress.finish("the server refuses")
        return Check(4, "failed", (error.message,), "the model does not answer at all", error.hint or TODO)
    if not chats:
        return Check(4, "not measured", ("no prompt fits into the model's context",))
    where = "in Ollama" if served is not None else "in llama.cpp here"
    progress.finish(f"{len(chats) - len(ran)} of {len(chats)} end")
    head = f"{len(chats) - len(ran)} of {len(chats)} greedy answers to {asked.source} end within {limit} tokens {where} ({asked.why})"
    shown = [f"{one.question[:60]!r} runs on: …{one.tail!r}" for one in ran[:2]]
    theirs = [one for one in ran if not one.own]
    if theirs:
        note = f"{len(theirs)} of them end in this process, at the end-of-turn of the training"
        return Check(4, "failed", (head, note, *shown), MEANS, TODO)
    if len(ran) <= OWN * len(chats):
        return Check(4, "passed", (head, *shown))
    if not asked.trained:
        note = "the model does not end these answers by itself either; nothing was trained that should"
        return Check(4, "not measured", (head, note, *shown))
    return Check(4, "failed", (head, *shown), MEANS, TODO_MODEL)


def _fits(subject: Subject, chat: Chat) -> bool:
    ids = subject.training_ids(chat.prompt(), chat.tools)
    return len(ids) + subject.asked.limit <= subject.context or len(ids) * 2 <= subject.context


def _there(served: Served, chat: Chat, limit: int, think: bool | None) -> tuple[bool, str]:
    """(whether the answer ended with the server's reason ``stop``, its text)."""
    options = request_options(Sampling(max_tokens=limit))
    messages = [for_server(m) for m in chat.prompt()]
    reply = served.server.chat(served.name, messages, options, tools=chat.tools, think=think)
    return reply.done_reason == "stop", reply.thinking + reply.text


def _here(subject: Subject, chat: Chat, limit: int, *, stops: bool) -> tuple[bool, str]:
    """(whether the answer ended, its text) in llama.cpp. ``stops``: at the tokens that end answers in training; else as a server would:
    at those the file names, and at PARAMETER stop."""
    prompt = subject.training_ids(chat.prompt(), chat.tools)
    ids, ended = subject.file.answer_ids(prompt, Sampling(max_tokens=limit))
    vocabulary = subject.file.vocabulary
    if stops:
        return ended or bool(set(ids) & set(stop_token_ids(subject.renderer))), ""
    text = b"".join(vocabulary.piece(token, special=True) for token in ids).decode("utf-8", "replace")
    words = subject.modelfile.parameters.get("stop", ())
    assert isinstance(words, (list, tuple))
    return ended or any(word in text for word in words), text
