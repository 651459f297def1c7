"""``tunesmith chat``: talk to a run, a model, a GGUF or a model in Ollama, in the terminal."""

from __future__ import annotations

import sys
from typing import Any

from tunesmith.chat.base import Sampling
from tunesmith.config.load import validate
from tunesmith.config.progress import Progress
from tunesmith.verbs.targets import open_engine


def chat(
    text: str, progress: Progress, *, prompt: str | None = None, system: str | None = None, **sampling_settings: Any
) -> None:
    """One answer to ``prompt``, or a conversation until ``/exit`` (or the end of the input).

    ``sampling_settings`` are those of ``chat.base.Sampling``.
    """
    sampling = validate(Sampling, sampling_settings)
    engine = open_engine(text, progress)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    start = len(messages)
    try:
        if prompt is not None:
            for piece in engine.stream([*messages, {"role": "user", "content": prompt}], sampling):
                print(piece, end="", flush=True)
            print()
            return
        if sys.stdin.isatty():
            print(f"Talking to {engine.name}. /new starts afresh, /exit ends.", file=sys.stderr)
        while (line := _read()) is not None:
            if line in ("/exit", "/quit"):
                return
            if line == "/new":
                del messages[start:]
                continue
            if not line:
                continue
            messages.append({"role": "user", "content": line})
            pieces = []
            try:
                for piece in engine.stream(messages, sampling):
                    pieces.append(piece)
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:  # breaks off this answer, not the conversation
                pass
            print(flush=True)
            messages.append({"role": "assistant", "content": "".join(pieces).strip()})
    finally:
        engine.close()


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
