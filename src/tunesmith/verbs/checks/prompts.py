"""Check 1: the prompt a server gives the model is the prompt it was trained on, with one beginning token, not two and not none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tunesmith.chat.ollama_api import ServerGoneError
from tunesmith.config.errors import ExportError, ServerError
from tunesmith.config.progress import Progress
from tunesmith.export.deploy_report import Check
from tunesmith.export.go_probes import Probe
from tunesmith.export.ollama_reply import Reply
from tunesmith.verbs.checks.probes import limited, probes_for, refused
from tunesmith.verbs.checks.shown import capabilities_of
from tunesmith.verbs.checks.subject import Served, Subject, for_server

MEANS = "the model is asked in another form than it was trained on, and answers worse or nonsense"
TODO = (
    "compare TEMPLATE and SYSTEM in the Modelfile with the chat template and the system prompt that the run keeps (chat_template.jinja, "
    "rows.json); an older Ollama may render otherwise: update it and deploy again"
)
ONE_TOKEN = {"num_predict": 1, "temperature": 0, "seed": 0}
THINKS_BY_ITSELF = (
    "a request that does not say `think` is answered with thinking by this server, where the model's own chat template leaves it off: "
    "clients that are to get answers as in training send `think: false`"
)
COUNTED = 24
"""The tokens of so many prompts are counted by the server, which reads each of them for that."""
CLOSE = 0.05
"""Log-probabilities (nats) of one prompt computed twice differ less: by the order of sums, not by a token."""


@dataclass
class Compared:
    """Conversations that were rendered as in training, those that were not (name -> words), and those of which that is known beforehand."""

    equal: list[str] = field(default_factory=list)
    differing: dict[str, str] = field(default_factory=dict)
    limited: list[str] = field(default_factory=list)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Tokens on the server and in training, of equal texts."""
    turned_on: bool = False
    """Whether the server thinks where neither request nor training says so."""

    def differs(self, probe: Probe, words: str) -> None:
        """``probe`` is rendered otherwise."""
        if probe.limit:
            self.limited.append(probe.name)
        else:
            self.differing[probe.name] = words

    @property
    def odd(self) -> dict[str, tuple[int, int]]:
        """Equal texts of other token counts."""
        return {name: counts for name, counts in self.counts.items() if counts[0] != counts[1]}


def check(subject: Subject, served: Served | None, progress: Progress) -> tuple[Check, tuple[str, ...]]:
    """Compare all probes: with the server's rendering, or with the TEMPLATE run here when there is no server.

    Also returns, in words, the equal texts that the server reads as another number of tokens, which is for the check of tokens to say.
    """
    every = probes_for(subject, capabilities_of(subject, served))
    probes = [probe for probe in every if not refused(subject, probe)]
    progress.start("comparing prompts", len(probes), "conversations")
    found = Compared()
    try:
        how = (
            _here(subject, probes, found, progress)
            if served is None
            else _there(subject, served, probes, found, progress)
        )
    except _CannotTell as error:
        progress.finish("not measured")
        return Check(1, "not measured", (str(error),)), ()
    odd, by = found.odd, how
    if found.counts and not odd:
        how += "; token counts equal, so the beginning token is there as often as in training"
    offsets = {there - here for there, here in found.counts.values()}
    if odd and len(offsets) == 1:  # the same everywhere: no text is read otherwise, something is added or lacking
        found.differing |= {name: _tokens(*counts) for name, counts in odd.items()}
        found.equal, odd = [name for name in found.equal if name not in odd], {}
    notes = [f"not compared: {limit}" for limit in limited(probes, found.limited)]
    notes += [THINKS_BY_ITSELF] * found.turned_on
    if len(probes) < len(every):
        names = ", ".join(probe.name for probe in every if probe not in probes)
        notes.append(f"not asked, since the model's own template refuses or cannot hold them: {names}")
    total = len(found.equal) + len(found.differing)
    progress.finish(f"{len(found.equal)} of {total} equal")
    strange = tuple(f"the server reads the prompt “{name}” as {_tokens(*counts)}" for name, counts in odd.items())
    if found.differing:
        first = [f"{name}: {words}" for name, words in list(found.differing.items())[:3]]
        head = (
            f"{len(found.differing)} of {total} conversations are given to the model otherwise than in training ({by})"
        )
        return Check(1, "failed", (head, *first, *notes), MEANS, TODO), strange
    if not total:
        return Check(1, "not measured", ("there is no conversation that can be compared", *notes)), strange
    return Check(1, "passed", (f"{total} conversations, {how}", *notes)), strange


class _CannotTell(Exception):
    """There is nothing to compare with."""


def _here(subject: Subject, probes: Sequence[Probe], found: Compared, progress: Progress) -> str:
    """The TEMPLATE run by our own reader of Go templates; its tokens, beginning token included, from the GGUF's tokenizer."""
    from tunesmith.export.go_template import render_as_ollama

    template = subject.modelfile.template
    if template is None:
        raise _CannotTell(
            "no TEMPLATE was found for this model, and no server is here to show what it makes of the GGUF's own"
        )
    for probe in probes:
        progress.advance(1)
        wanted, ids = _training(subject, probe)
        try:
            text = render_as_ollama(template, subject.as_served(probe.messages), probe.tools, probe.think)
        except ExportError as error:
            found.differs(probe, f"the TEMPLATE cannot render it: {error.message}")
            continue
        if text != wanted:
            found.differs(probe, difference(text, wanted))
        else:
            found.equal.append(probe.name)
            found.counts[probe.name] = (len(subject.file.tokenize(text, add_special=True)), len(ids))
    return "by the TEMPLATE run here, without a server"


def _there(subject: Subject, served: Served, probes: Sequence[Probe], found: Compared, progress: Progress) -> str:
    tells, turns_on = False, subject.think is False
    for i, probe in enumerate(probes):
        progress.advance(1)
        messages, tools = [for_server(m) for m in probe.messages], list(probe.tools)
        wanted, ids = _training(subject, probe)
        thinking = _training(subject, replace(probe, think=True)) if turns_on and probe.think is None else None
        try:
            if tells or i == 0:
                text = served.server.rendered_prompt(served.name, messages, tools=tools, think=probe.think)
                tells = text is not None
            else:
                text = None
            if text is not None:  # some servers show it; how often it stands there is counted below
                text = subject.without_bos(text)
            if thinking is not None and text == thinking[0] != wanted:
                found.turned_on = True
                wanted, ids = thinking
            if text is not None and text != wanted:
                found.differs(probe, difference(text, wanted))
                continue
            if tells and i >= COUNTED:
                found.equal.append(probe.name)
                continue
            ask = partial(
                served.server.chat,
                served.name,
                messages,
                ONE_TOKEN,
                tools=tools,
                think=probe.think,
                top=0 if tells else 5,
            )
            reply = counted(served, len(ids), ask)
            if thinking is not None and not tells and reply.prompt_tokens == len(thinking[1]) != len(ids):
                found.turned_on = True
                wanted, ids = thinking
            if not tells and reply.prompt_tokens not in (0, len(ids)):
                found.differs(probe, _tokens(reply.prompt_tokens, len(ids)))
            elif not tells and not _as_raw(served, wanted, reply, len(ids)):
                found.differs(probe, "it gives other probabilities than the training text does")
            else:
                found.equal.append(probe.name)
                if reply.prompt_tokens:
                    found.counts[probe.name] = (reply.prompt_tokens, len(ids))
        except ServerGoneError:
            raise
        except ServerError as error:
            found.differs(probe, error.message)
    how = (
        "as the server renders them"
        if tells
        else "by token counts and probabilities, as this server does not show what it renders"
    )
    return how if found.counts else f"{how}; this server tells no token counts"


def _training(subject: Subject, probe: Probe) -> tuple[str, list[int]]:
    """Text and token ids of a probe as in training; the text without a beginning token that the program adds itself."""
    text = subject.training_text(probe.messages, probe.tools, probe.think)
    return subject.without_bos(text), subject.renderer.encode_text(text)[0]


def counted(served: Served, expected: int, ask: Callable[[], Reply]) -> Reply:
    """The reply of ``ask()``; asked again after unloading when fewer tokens were counted, since some servers do not count remembered ones."""
    reply = ask()
    if reply.prompt_tokens < expected:
        served.server.unload(served.name)
        reply = ask()
    return reply


def _as_raw(served: Served, text: str, reply: Reply, expected: int) -> bool:
    """Whether the training text itself, given raw, leads to the same next tokens as the conversation did."""
    raw = counted(served, expected, partial(served.server.complete, served.name, text, ONE_TOKEN, top=5))
    if raw.prompt_tokens != reply.prompt_tokens or not raw.top or not reply.top:
        return raw.prompt_tokens == reply.prompt_tokens and raw.text == reply.text
    there = dict(reply.top[0])
    return raw.top[0][0][0] in there and all(
        abs(value - there[key]) < CLOSE for key, value in raw.top[0] if key in there
    )


def _tokens(there: int, here: int) -> str:
    more = there - here
    why = (
        " (the beginning token stands there twice?)"
        if more == 1
        else " (the beginning token is missing?)"
        if more == -1
        else ""
    )
    return f"{there} tokens instead of {here}{why}"


def difference(there: str, here: str) -> str:
    """Where two texts part, in words."""
    at = next((i for i, (a, b) in enumerate(zip(there, here)) if a != b), min(len(there), len(here)))
    start = max(0, at - 12)
    return f"in training {here[start : at + 28]!r}, now {there[start : at + 28]!r}"
