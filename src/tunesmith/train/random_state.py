"""The random generators: their state as JSON, and work that leaves it as it was."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def dump() -> dict[str, Any]:
    """The states of torch's generators (CPU and every GPU) and Python's."""

    def text(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.cpu().numpy().tobytes()).decode("ascii")

    state: dict[str, Any] = {"cpu": text(torch.get_rng_state()), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = [text(t) for t in torch.cuda.get_rng_state_all()]
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Bring back what ``dump`` gave. The GPUs' states only where there are as many as there were."""

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(tensor(state["cpu"]))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensor(t) for t in state["cuda"]])


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn or seeded inside, training goes on as if it had not been."""
    before = random.getstate(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
