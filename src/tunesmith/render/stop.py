"""What ends an answer: derived from the chat template itself, so that training and serving stop at the same token."""

from __future__ import annotations

from typing import Any

from tunesmith.render.conversation import Renderer
from tunesmith.render.spans import MARKER, end_of_turn


def end_of_turn_token(renderer: Renderer) -> tuple[int, str] | None:
    """Id and text of the token the template puts after an answer; None when it puts none."""
    text = renderer.text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": MARKER}])
    tail = text[text.find(MARKER) + len(MARKER) :]
    token = end_of_turn(renderer, tail).strip()
    return (int(renderer.tokenizer.convert_tokens_to_ids(token)), token) if token else None


def stop_token_ids(renderer: Renderer, generation_config: Any = None) -> tuple[int, ...]:
    """Every token id that ends an answer: the template's end-of-turn first, then the tokenizer's and model's eos."""
    ids: list[int] = []
    turn = end_of_turn_token(renderer)
    if turn is not None:
        ids.append(turn[0])
    if renderer.tokenizer.eos_token_id is not None:
        ids.append(int(renderer.tokenizer.eos_token_id))
    eos = getattr(generation_config, "eos_token_id", None)
    ids += [int(i) for i in (eos if isinstance(eos, (list, tuple)) else [eos]) if i is not None]
    return tuple(dict.fromkeys(ids))
