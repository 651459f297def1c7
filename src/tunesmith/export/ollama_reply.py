"""One answer of an Ollama server, read from its JSON. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_LOGPROBS = 20
"""So many of the most likely tokens a server tells at most."""


@dataclass(frozen=True)
class Reply:
    """``prompt_tokens`` as the server counted them (0: it did not say); ``done_reason`` is ``stop`` or ``length``.

    ``top``: for each token of the answer the most likely ones as (bytes, natural-log probability), when asked for.
    """

    text: str
    prompt_tokens: int
    tokens: int
    done_reason: str
    thinking: str = ""
    top: tuple[tuple[tuple[bytes, float], ...], ...] = ()


def asking_logprobs(top: int) -> dict[str, Any]:
    """The fields of a request that wants the ``top`` most likely tokens of each step (0: none)."""
    return {"logprobs": True, "top_logprobs": min(top, MOST_LOGPROBS)} if top else {}


def read_reply(found: Mapping[str, Any], text: str, thinking: str = "") -> Reply:
    """The figures of an answer of ``/api/chat`` or ``/api/generate`` that was not streamed."""
    steps = found.get("logprobs") or []
    return Reply(
        text,
        int(found.get("prompt_eval_count") or 0),
        int(found.get("eval_count") or 0),
        str(found.get("done_reason") or ""),
        thinking,
        tuple(tuple((_bytes(one), float(one["logprob"])) for one in step.get("top_logprobs") or []) for step in steps),
    )


def _bytes(one: Mapping[str, Any]) -> bytes:
    """The token's bytes; its text alone may hold half a character."""
    return bytes(one["bytes"]) if one.get("bytes") else str(one.get("token", "")).encode("utf-8")
