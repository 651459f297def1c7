"""What serving must know of rendering: derived from the chat template itself, so that training and serving stop at the same
token. Stop tokens, the Ollama TEMPLATE and its PARAMETER stop come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.render.conversation import Renderer
from tunesmith.render.endings import Endings
from tunesmith.render.traits import QUESTION


@dataclass(frozen=True)
class Serving:
    """``stop_ids`` end an answer as tokens, ``stop_texts`` as text (what an engine that sees text only must look for).

    ``end_of_turn`` is the text after an answer ("" when the template writes none), ``bos`` what the template itself writes at
    the very beginning: an engine that adds it too would say it twice. ``template`` and ``template_args`` render the prompt.
    """

    stop_ids: tuple[int, ...]
    stop_texts: tuple[str, ...]
    end_of_turn: str
    bos: str
    template: str
    template_args: Mapping[str, Any] = field(default_factory=dict)


def serving(renderer: Renderer, generation_config: Any = None) -> Serving:
    """All that is needed to serve what ``renderer`` renders."""
    endings = renderer.endings
    bos = str(renderer.tokenizer.bos_token or "")
    begins = bool(bos) and renderer.text([QUESTION]).startswith(bos)
    return Serving(
        stop_token_ids(renderer, generation_config),
        tuple(_stop_texts(endings)),
        endings.last.strip() or endings.middle.strip(),
        bos if begins else "",
        renderer.template,
        dict(renderer.template_args),
    )


def end_of_turn_token(renderer: Renderer) -> tuple[int, str] | None:
    """Id and text of the token the template puts after an answer (the last one of several); None when it puts none."""
    end = renderer.endings.last.strip() or renderer.endings.middle.strip()
    token = _last_special(renderer.endings, end)
    return (int(renderer.tokenizer.convert_tokens_to_ids(token)), token) if token else None


def stop_token_ids(renderer: Renderer, generation_config: Any = None) -> tuple[int, ...]:
    """Every token id that ends an answer: the template's end-of-turn first, then the tokenizer's and model's eos."""
    ends = renderer.endings
    turns = [_last_special(ends, end.strip()) for end in _ends(ends)]
    ids = [int(renderer.tokenizer.convert_tokens_to_ids(token)) for token in turns if token]
    if renderer.tokenizer.eos_token_id is not None:
        ids.append(int(renderer.tokenizer.eos_token_id))
    eos = getattr(generation_config, "eos_token_id", None)
    ids += [int(i) for i in (eos if isinstance(eos, (list, tuple)) else [eos]) if i is not None]
    return tuple(dict.fromkeys(ids))


def _ends(endings: Endings) -> list[str]:
    """What ends an answer. Where a middle turn ends otherwise than the last one, its end may stand inside an answer too
    (gpt-oss ends its thinking by it): the model is not stopped there."""
    return [endings.last.strip() or endings.middle, endings.call, *endings.headers]


def _last_special(endings: Endings, end: str) -> str:
    return next((token for token in endings.specials if end.endswith(token)), "")


def _stop_texts(endings: Endings) -> dict[str, None]:
    """The ends as texts, in order; where a middle answer has no end, the words that begin the next turn."""
    texts = [_last_special(endings, end.strip()) or end.strip() for end in _ends(endings)]
    if not endings.middle.strip() and not endings.headers:
        texts.append(endings.following.strip().partition("\n")[0].strip())
    return {text: None for text in texts if text}
