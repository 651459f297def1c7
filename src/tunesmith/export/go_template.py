"""Choose the Ollama TEMPLATE of a model by comparing what it renders, never by the model's name.

A family (a file of `go_families`, or the template that `go_derive` reads off the model's own) fits when it gives the same text
as the model's own template for every required probe conversation. A template with ``.Tools`` or ``.Thinking`` makes the server
claim tools or thinking for the model; it is taken only when it also says the same in conversations with tools or thinking.

Ollama itself cannot do some things that Jinja templates do, whatever the template (it has no function that trims white
space, and it merges neighbouring messages of one role): such differences are told as `GoTemplate.limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.export.go_capabilities import capabilities
from tunesmith.export.go_derive import derived
from tunesmith.export.go_families import (
    FILLED,
    FOLDER,
    assigned,
    families,
    filled,
    own,
    render_as_ollama,
    source,
    stops,
)
from tunesmith.export.go_probes import (
    MARK,
    PROBE,
    PROBES,
    THINKING_PROBES,
    TOOL_PROBES,
    ModelTemplate,
    Probe,
    model_template,
)
from tunesmith.export.go_values import values

__all__ = [
    "FOLDER", "PROBE", "PROBES", "THINKING_PROBES", "TOOL_PROBES", "Choice", "GoTemplate", "ModelTemplate", "Probe", "Render",
    "choose", "families", "model_template", "render_as_ollama", "source", "stops", "values",
]  # fmt: skip

Render = Callable[[list[dict[str, str]], bool], str]
"""The model's own template: (messages, add_generation_prompt) -> text. It may raise for a conversation it refuses."""
DERIVED = "derived"
"""The family's name of a template that was read off the model's own."""


@dataclass(frozen=True)
class GoTemplate:
    """A template that Ollama can run and that was found to say what the model's own says.

    ``text`` goes into the Modelfile, ``stop`` into its parameters. ``compared`` conversations were equal. ``limits`` are
    sentences for the report: where Ollama will differ in spite of that. ``capabilities`` are what a server claims for the
    model because of this template: ``completion``, ``tools``, ``thinking``.
    """

    family: str
    text: str
    stop: tuple[str, ...]
    default_system: str
    compared: int
    limits: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ("completion",)


@dataclass(frozen=True)
class Choice:
    """``template``, or None when no family fits; ``reason`` is one sentence either way."""

    template: GoTemplate | None
    reason: str

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What a server claims because of the template; without one it depends on the template that the server finds itself."""
        return self.template.capabilities if self.template is not None else ()


@dataclass(frozen=True)
class _Found:
    """One candidate: how many conversations were equal, and the first that was not, in words."""

    family: str
    text: str
    equal: int
    first: str | None = None


def choose(render: Render, bos: str = "", model: ModelTemplate | None = None) -> Choice:
    """The family that says exactly what ``render`` says.

    ``bos`` is the text of the beginning-of-sequence token when the server's tokenizer adds that token by itself (the
    GGUF's ``tokenizer.ggml.add_bos_token``): it is then cut off the front of what ``render`` gives. ``model`` (see
    `model_template`) renders tools and thinking as well; without it only templates that claim neither are considered.
    """
    wanted = {probe.name: _plain(render, probe, bos) for probe in PROBES}
    alone = wanted["user"]
    if alone is None:
        return Choice(None, "the model's own chat template cannot render a single question")
    known = wanted | {
        name: _full(model, PROBE[name], bos)
        for name in dict.fromkeys(FILLED.values())
        if name not in wanted and model is not None and (model.tools if PROBE[name].needs_tools else model.thinking)
    }
    tried = [_compare(family, filled(source(family), known), PROBES, wanted) for family in families()]
    checked, unfit = _checked([found for found in tried if found.first is None], model, bos)
    stop = {family: stops(family) for family in families()}
    if max((_claims(found.text) for found, _, _ in checked), default=-1) < _handled(model):
        own_forms = derived(lambda messages: _bare(render, messages, bos), model, bos)
        more_tried = [_compare(DERIVED, form.text, PROBES, wanted) for form in own_forms]
        more_checked, more_unfit = _checked([found for found in more_tried if found.first is None], model, bos)
        stop[DERIVED] = own_forms[0].stop if own_forms else ()
        checked, unfit = checked + more_checked, unfit + more_unfit
    if not checked:
        reason = f"no family fits the model's own chat template: {unfit[0]}" if unfit else _refusal(tried, alone)
        return Choice(None, reason)
    best, more, limits = max(checked, key=lambda c: (_claims(c[0].text), c[1]))
    template = GoTemplate(
        family=best.family,
        text=best.text,
        stop=stop[best.family],
        default_system=assigned(best.text, "default"),
        compared=best.equal + more,
        limits=tuple(dict.fromkeys((*_limits(best.text, PROBES, wanted), *limits))),
        capabilities=capabilities(best.text),
    )
    return Choice(template, _reason(template, model, unfit))


def _reason(template: GoTemplate, model: ModelTemplate | None, unfit: Sequence[str]) -> str:
    said = f"{template.family} says the same as the model's own template in {template.compared} conversations"
    if template.family == DERIVED:
        said = f"a template read off the model's own says the same in {template.compared} conversations"
    asked = {"tools": model is not None and model.tools, "thinking": model is not None and model.thinking}
    lacking = [name for name, has in asked.items() if has and name not in template.capabilities]
    if lacking:
        why = f" ({unfit[0]})" if unfit else ""
        said += f"; without {' and '.join(lacking)}, which no template of ours writes as the model's own does{why}: newer servers run the model's own for these"
    return said


def _refusal(tried: Sequence[_Found], alone: str) -> str:
    nearest = max(tried, key=lambda found: found.equal)
    if not nearest.equal:
        return f"no family fits the model's own chat template, which begins {alone[:40]!r}"
    return f"no family fits the model's own chat template; the nearest, {nearest.family}, differs for {nearest.first}"


# --- tools and thinking ------------------------------------------------------------------------------------------


def _claims(text: str) -> int:
    return len(capabilities(text)) - 1


def _handled(model: ModelTemplate | None) -> int:
    return model.tools + model.thinking if model is not None else 0


def _checked(
    fitting: Sequence[_Found], model: ModelTemplate | None, bos: str
) -> tuple[list[tuple[_Found, int, tuple[str, ...]]], list[str]]:
    """Candidates whose claims hold, with how many more conversations were equal and their limits; why the others do not."""
    if model is None:
        return [(found, 0, ()) for found in fitting if not _claims(found.text)], []
    handled = {"tools": model.tools, "thinking": model.thinking}
    probes = {
        "tools": TOOL_PROBES,
        "thinking": tuple(p for p in THINKING_PROBES if model.tools or not p.needs_tools),
    }
    rendered: dict[str, str | None] = {}
    good: list[tuple[_Found, int, tuple[str, ...]]] = []
    bad: list[str] = []
    for found in fitting:
        claims = [claim for claim in capabilities(found.text) if claim != "completion"]
        if not all(handled.get(claim, False) for claim in claims):
            continue
        asked = [p for claim in claims for p in probes[claim] if "tools" in claims or not p.needs_tools]
        for probe in asked:
            if probe.name not in rendered:
                rendered[probe.name] = _full(model, probe, bos)
        compared = _compare(found.family, found.text, asked, rendered)
        if compared.first is None:
            good.append((found, compared.equal, _limits(found.text, asked, rendered)))
        else:
            bad.append(f"{found.family} differs for {compared.first}")
    return good, bad


def _full(model: ModelTemplate, probe: Probe, bos: str) -> str | None:
    try:
        text = model.render([dict(m) for m in probe.messages], probe.tools, probe.think)
    except Exception:  # a template is foreign code: whatever it raises means that it refuses
        return None
    return text.removeprefix(bos) if bos else text


# --- comparing ---------------------------------------------------------------------------------------------------


def _plain(render: Render, probe: Probe, bos: str) -> str | None:
    return _bare(render, [dict(m) for m in probe.messages], bos)


def _bare(render: Render, messages: list[dict[str, str]], bos: str) -> str | None:
    """None when the model's template refuses the conversation."""
    try:
        text = render(messages, True)
    except Exception:  # as in `_full`
        return None
    return text.removeprefix(bos) if bos else text


def _compare(family: str, text: str, probes: Sequence[Probe], wanted: Mapping[str, str | None]) -> _Found:
    equal, first = 0, None
    for probe in probes:
        theirs = wanted[probe.name]
        if theirs is None or probe.limit:
            continue
        ours = own(text, probe)
        if ours == theirs:
            equal += 1
        elif first is None:
            first = f"“{probe.name}”: {_difference(ours, theirs)}"
    return _Found(family, text, equal, first)


def _difference(ours: str, theirs: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    start = max(0, at - 12)
    return f"the model's has {theirs[start : at + 28]!r} where Ollama would have {ours[start : at + 28]!r}"


def _limits(text: str, probes: Sequence[Probe], wanted: Mapping[str, str | None]) -> tuple[str, ...]:
    found = [p.limit for p in probes if p.limit and wanted[p.name] not in (None, own(text, p))]
    if wanted.get("marked system", MARK) is None:
        found.append("the model's own chat template refuses a system prompt; Ollama will accept one")
    elif MARK not in str(wanted.get("marked system", MARK)):
        found.append("the model's own chat template leaves a system prompt out without a word, and so does this one")
    return tuple(dict.fromkeys(found))
